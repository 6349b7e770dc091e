"""Token ids: the boundary, end-of-text, cuts, and agreement with TRL's DPOTrainer."""

import dataclasses
import types

import pytest
from datasets import Dataset
from small_tokenizers import CHATML, TEXTS, byte_level, chatml, message, metaspace
from transformers import PreTrainedTokenizerFast

from learndyn.errors import BadInput
from learndyn.probes.data import read_data
from learndyn.probes.probe import Probe, ProbeSet
from learndyn.probes.tokenize import (
    PairTokenizer,
    TokenizedProbes,
    tokenize,
    tokenizer_hash,
)


ALL = pytest.mark.parametrize(
    "tokenizer",
    [byte_level(), byte_level(bos=True), metaspace()],
    ids=["byte-level", "with BOS", "metaspace"],
)


@ALL
@pytest.mark.parametrize("prompt", ["the c", "the cat", "the cat\n"])
@pytest.mark.parametrize("response", ["at sat", " sat on", "\nI am"])
def test_prompt_ids_never_depend_on_the_response(tokenizer, prompt, response):
    encode = PairTokenizer(tokenizer)
    pair = encode(prompt, response)
    assert pair.prompt_ids == encode(prompt, " the dog").prompt_ids
    assert pair.prompt_ids == tuple(tokenizer(prompt)["input_ids"])


@ALL
@pytest.mark.parametrize("prompt", ["the c", "the cat\n"])
@pytest.mark.parametrize("response", ["at sat", " sat on", "\n\nthe", "", "\nthe"])
def test_prompt_and_response_ids_spell_the_text(tokenizer, prompt, response):
    pair = PairTokenizer(tokenizer)(prompt, response)
    ids = [*pair.prompt_ids, *pair.response_ids]
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert text.removeprefix(" ") == prompt + response


def test_a_merge_across_the_boundary_is_not_made():
    tokenizer = byte_level()
    pair = PairTokenizer(tokenizer)("the c", "at")
    joined = tokenizer("the cat")["input_ids"]
    assert len(pair.prompt_ids) + len(pair.response_ids) - 1 > len(joined)


@ALL
def test_the_prompt_has_bos_where_the_tokenizer_puts_it(tokenizer):
    ids = PairTokenizer(tokenizer)("the cat", " sat").prompt_ids
    puts_bos = tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id
    assert (ids[0] == tokenizer.bos_token_id) == puts_bos
    assert ids.count(tokenizer.bos_token_id) == puts_bos


@ALL
def test_a_response_has_no_bos_and_ends_in_one_eos(tokenizer):
    ids = PairTokenizer(tokenizer)("the cat", " sat on the mat").response_ids
    assert tokenizer.bos_token_id not in ids
    assert ids[-1] == tokenizer.eos_token_id
    assert ids.count(tokenizer.eos_token_id) == 1


@ALL
def test_an_empty_response_is_eos_alone(tokenizer):
    pair = PairTokenizer(tokenizer)("the cat", "")
    assert pair.response_ids == (tokenizer.eos_token_id,)
    assert pair.has_eos
    assert not pair.truncated


def test_eos_written_inside_a_response_is_ordinary_text():
    tokenizer = byte_level()
    ids = PairTokenizer(tokenizer)("the cat", " sat <eos> on").response_ids
    assert ids.count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(ids) == " sat <eos> on<eos>"


def test_eos_written_inside_a_prompt_is_ordinary_text():
    tokenizer = byte_level()
    ids = PairTokenizer(tokenizer)("the <eos> cat", " sat").prompt_ids
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids) == "the <eos> cat"


def test_a_response_that_ends_in_eos_text_gets_one_eos():
    tokenizer = byte_level()
    encode = PairTokenizer(tokenizer)
    assert encode("the cat", " sat<eos>") == encode("the cat", " sat")


def test_a_rendered_text_gets_neither_bos_nor_eos_and_keeps_its_special_tokens():
    tokenizer = byte_level(bos=True)
    pair = PairTokenizer(tokenizer)("<bos>the cat", " sat<eos>\n", rendered=True)
    assert tokenizer.decode([*pair.prompt_ids]) == "<bos>the cat"
    assert pair.prompt_ids.count(tokenizer.bos_token_id) == 1
    assert pair.response_ids.count(tokenizer.eos_token_id) == 1
    assert pair.response_ids[-1] != tokenizer.eos_token_id
    assert pair.has_eos


def test_a_space_adding_tokenizer_does_not_add_one_between_prompt_and_response():
    tokenizer = metaspace()
    with_space = PairTokenizer(tokenizer)("the", " cat").response_ids
    without = PairTokenizer(tokenizer)("the", "cat").response_ids
    assert tokenizer.convert_ids_to_tokens(with_space[:1])[0].startswith("▁")
    assert not tokenizer.convert_ids_to_tokens(without[:1])[0].startswith("▁")


def test_a_long_prompt_keeps_its_end_and_is_flagged():
    tokenizer = byte_level()
    whole = tokenizer("the dog sat on the log. the cat")["input_ids"]
    encode = PairTokenizer(tokenizer, max_length=20, max_prompt_length=4)
    pair = encode("the dog sat on the log. the cat", " sat")
    assert list(pair.prompt_ids) == whole[-4:]
    assert pair.truncated
    assert pair.has_eos


def test_a_cut_prompt_keeps_bos_and_its_end():
    tokenizer = byte_level(bos=True)
    whole = tokenizer("the dog sat on the log. the cat")["input_ids"]
    encode = PairTokenizer(tokenizer, max_length=20, max_prompt_length=4)
    pair = encode("the dog sat on the log. the cat", " sat")
    assert list(pair.prompt_ids) == [whole[0], *whole[-3:]]
    assert pair.truncated


def test_a_long_response_keeps_its_start_loses_eos_and_is_flagged():
    tokenizer = byte_level()
    encode = PairTokenizer(tokenizer, max_length=6, max_prompt_length=3)
    whole = PairTokenizer(tokenizer)("the", " cat sat on the mat. the dog")
    pair = encode("the", " cat sat on the mat. the dog")
    kept = 6 - len(pair.prompt_ids)
    assert pair.response_ids == whole.response_ids[:kept]
    assert pair.truncated
    assert not pair.has_eos


def test_what_just_fits_is_not_flagged():
    tokenizer = byte_level()
    whole = PairTokenizer(tokenizer)("the", " cat sat")
    n_prompt, n = len(whole.prompt_ids), len(whole.response_ids)
    exact = PairTokenizer(tokenizer, n_prompt + n, n_prompt)("the", " cat sat")
    assert exact == whole
    assert not exact.truncated
    assert PairTokenizer(tokenizer, n_prompt + n - 1, n_prompt)(
        "the", " cat sat"
    ).truncated


@pytest.mark.parametrize(("length", "prompt"), [(10, 10), (10, 12), (10, 0), (1, None)])
def test_limits_without_room_are_refused_with_both_numbers(length, prompt):
    with pytest.raises(BadInput, match=rf"max_prompt_length .* max_length {length}"):
        PairTokenizer(byte_level(), length, prompt)


def test_a_tokenizer_without_eos_is_refused():
    tokenizer = byte_level()
    tokenizer.eos_token = None
    with pytest.raises(BadInput, match=r"no EOS token.*Set tokenizer\.eos_token"):
        PairTokenizer(tokenizer)


def test_the_hash_does_not_change_when_the_tokenizer_is_used():
    tokenizer = byte_level(bos=True)
    before = tokenizer_hash(tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer(TEXTS, padding=True, truncation=True, max_length=5)
    assert tokenizer_hash(tokenizer) == before
    PairTokenizer(tokenizer)("the <eos>", " cat <eos>")
    assert tokenizer_hash(tokenizer) == before
    assert tokenizer_hash(byte_level(bos=True)) == before


def test_the_hash_changes_with_vocabulary_eos_and_bos_rule():
    hashes = {
        tokenizer_hash(byte_level()),
        tokenizer_hash(byte_level(vocab=300)),
        tokenizer_hash(byte_level(bos=True)),
        tokenizer_hash(byte_level(eos="<end>")),
        tokenizer_hash(metaspace()),
    }
    moved = byte_level()
    moved.eos_token = "<bos>"
    assert len(hashes | {tokenizer_hash(moved)}) == 6


def test_a_tokenized_set_survives_its_table():
    probes = ProbeSet(
        (
            Probe("a", "chosen", "the cat", " sat"),
            Probe("a", "rejected", "the cat", ""),
            Probe("b", "chosen", "the dog", " sat on the log", "test"),
        )
    )
    done = tokenize(probes, byte_level(), max_length=8, max_prompt_length=4)
    again = TokenizedProbes.from_table(done.to_table(), done.tokenizer_hash)
    assert again == done
    assert again.probes.fingerprint == probes.fingerprint
    assert done.n_tokens == [len(pair.response_ids) for pair in done.pairs]
    assert 0 < sum(pair.has_eos for pair in done.pairs) / len(done.pairs) <= 1


def trl_ids(rows: list[dict], tokenizer: PreTrainedTokenizerFast) -> list[dict]:
    """The ids that TRL's DPOTrainer trains on, by its own method."""
    trl = pytest.importorskip("trl")
    trainer = types.SimpleNamespace(_tokenizer=tokenizer)
    args = types.SimpleNamespace(
        dataset_num_proc=None, max_length=1024, truncation_mode="keep_start"
    )
    made = trl.DPOTrainer._prepare_dataset(
        trainer, Dataset.from_list(rows), tokenizer, args, "train"
    )
    return made.to_list()


def assert_parity(rows, data, tokenizer):
    encode = PairTokenizer(tokenizer)
    for theirs, ours in zip(trl_ids(rows, tokenizer), data.rows, strict=True):
        for kind in ("chosen", "rejected"):
            pair = encode(ours.prompt, ours.responses[kind], ours.rendered)
            assert list(pair.prompt_ids) == theirs["prompt_ids"]
            assert list(pair.response_ids) == theirs[f"{kind}_ids"]


def conversations() -> list[dict]:
    first = [message("user", "what colour is the sky?")]
    second = [*first, message("assistant", "blue"), message("user", "and the cat?")]
    return [
        {
            "prompt": prompt,
            "chosen": [message("assistant", "it is blue.")],
            "rejected": [message("assistant", "it is <|im_end|> not.")],
        }
        for prompt in (first, second)
    ]


def saved(rows: list[dict], folder) -> str:
    Dataset.from_list(rows).save_to_disk(folder / "data")
    return str(folder / "data")


def test_conversational_rows_have_the_ids_that_trl_trains_on(tmp_path):
    rows, tokenizer = conversations(), chatml()
    data = read_data(saved(rows, tmp_path), tokenizer=tokenizer)
    assert all(row.rendered for row in data.rows)
    assert_parity(rows, data, tokenizer)


def test_an_implicit_conversational_prompt_has_the_ids_that_trl_trains_on(tmp_path):
    rows = [
        {side: row["prompt"] + row[side] for side in ("chosen", "rejected")}
        for row in conversations()
    ]
    tokenizer = chatml()
    data = read_data(saved(rows, tmp_path), tokenizer=tokenizer)
    assert_parity(rows, data, tokenizer)


def test_a_template_that_rewrites_the_prompt_has_the_ids_that_trl_trains_on(tmp_path):
    """The completion starts where prompt alone and whole conversation diverge."""
    tokenizer = chatml()
    tokenizer.chat_template = CHATML.replace(
        "assistant\n{% endif", "assistant\n<think>{% endif"
    )
    rows = conversations()
    data = read_data(saved(rows, tmp_path), tokenizer=tokenizer)
    assert not data.rows[0].prompt.endswith("<think>")
    assert_parity(rows, data, tokenizer)


def test_tools_and_template_settings_reach_the_template_as_in_trl(tmp_path):
    tokenizer = chatml()
    tokenizer.chat_template = "{{ tools }}{{ style }}" + CHATML
    rows = [
        {
            **row,
            "tools": '[{"name": "look"}]',
            "chat_template_kwargs": {"style": "terse"},
        }
        for row in conversations()
    ]
    data = read_data(saved(rows, tmp_path), tokenizer=tokenizer)
    assert "look" in data.rows[0].prompt
    assert "terse" in data.rows[0].prompt
    assert_parity(rows, data, tokenizer)


@pytest.mark.parametrize("bos", [False, True])
def test_standard_rows_have_the_ids_that_trl_trains_on_where_nothing_merges(
    tmp_path, bos
):
    rows = [
        {"prompt": "the cat", "chosen": " sat on the mat", "rejected": " is green"},
        {"prompt": "hello\nAssistant:", "chosen": " I am<eos>", "rejected": " no"},
    ]
    tokenizer = byte_level(bos=bos)
    assert_parity(rows, read_data(saved(rows, tmp_path)), tokenizer)


def test_a_pair_tokenizer_cannot_be_changed():
    encode = PairTokenizer(byte_level())
    with pytest.raises(dataclasses.FrozenInstanceError):
        encode.max_length = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_a_response_without_any_token_is_refused_with_the_numbers():
    # Rendered text gets no EOS: a template that ends an answer with nothing leaves none
    encode = PairTokenizer(byte_level(), max_length=64)
    said = (
        r"the response '' to the prompt 'the cat' has no token to score: prompt \d+ \+"
    )
    with pytest.raises(BadInput, match=said):
        encode("the cat", "", rendered=True)
