"""Built probe sets: what each kind is, where it is from, and that seeds decide it."""

import json
import random
from dataclasses import replace

import pytest
from small_tokenizers import chatml, message

from learndyn.errors import BadInput
from learndyn.probes.build import (
    _BUILT_KINDS,
    build_probes,
    load_probes,
    probes_from_rows as as_they_are,
)
from learndyn.probes.data import Data, Row, read_data
from learndyn.probes.kinds import AUTHORS_KINDS


def rows_of(split: str, n: int) -> tuple[Row, ...]:
    chance = random.Random(split)
    words = [f"{split}{i}" for i in range(40)]
    return tuple(
        Row(
            f"{split}-{i:06d}",
            f"{split} question {i}?",
            {
                "chosen": "  " + "\n".join(chance.sample(words, 6)) + f" {i}",
                "rejected": " " + " ".join(chance.sample(words, 4)),
            },
        )
        for i in range(n)
    )


def data_of(split: str, n: int = 30) -> Data:
    return Data(rows_of(split, n), f"{split}.jsonl", split, "0" * 64)


TRAIN, TEST = data_of("train"), data_of("test")


def by_key(probes):
    return {(p.prompt_id, p.kind): p for p in probes}


def test_every_prompt_has_every_kind_that_needs_no_model():
    probes = build_probes(TRAIN, TEST, prompts=10)
    assert probes.kinds == ["chosen", "rejected", *_BUILT_KINDS]
    assert len(probes) == 2 * 10 * 6
    assert len([p for p in probes if p.split == "test"]) == 60
    assert build_probes(TRAIN).kinds == [
        "chosen",
        "rejected",
        "irrelevant_train",
        "random_permuted",
        "random_words",
    ]


def test_kinds_that_the_rows_hold_are_kept_as_they_are():
    rows = tuple(
        replace(row, responses={**row.responses, "random_words": "mine"})
        for row in TRAIN.rows
    )
    probes = build_probes(replace(TRAIN, rows=rows))
    assert {p.response for p in probes if p.kind == "random_words"} == {"mine"}


def test_prompts_are_a_random_choice_and_not_the_first():
    first = build_probes(TRAIN, prompts=10, seed=1).prompt_ids
    assert first != [row.row_id for row in TRAIN.rows[:10]]
    assert first == sorted(first)
    assert first == build_probes(TRAIN, prompts=10, seed=1).prompt_ids
    assert first != build_probes(TRAIN, prompts=10, seed=2).prompt_ids


def test_the_order_of_the_rows_does_not_matter():
    turned = [replace(data, rows=data.rows[::-1]) for data in (TRAIN, TEST)]
    one = build_probes(TRAIN, TEST, prompts=10, seed=3)
    other = build_probes(*turned, prompts=10, seed=3)
    assert one.fingerprint == other.fingerprint
    assert one.fingerprint != build_probes(TRAIN, TEST, prompts=10, seed=4).fingerprint


def test_a_prompt_gets_the_same_responses_whichever_others_are_chosen():
    few = by_key(build_probes(TRAIN, TEST, prompts=5))
    all_of_them = by_key(build_probes(TRAIN, TEST))
    assert all(all_of_them[key] == probe for key, probe in few.items())


def test_irrelevant_train_is_chosen_of_another_row_of_the_whole_training_data():
    probes = build_probes(TRAIN, TEST, prompts=3)
    chosen = {row.row_id: row.responses["chosen"] for row in TRAIN.rows}
    lenders = probes.manifest["borrowed"]["irrelevant_train"]
    for probe in probes:
        if probe.kind == "irrelevant_train":
            lender = lenders[probe.prompt_id]
            assert lender != probe.prompt_id
            assert probe.response == chosen[lender]
    assert not set(lenders.values()) <= set(probes.prompt_ids)


def test_irrelevant_train_is_never_the_same_text_or_of_the_same_prompt():
    first, second, third = TRAIN.rows[:3]
    same_text = replace(second, responses={"chosen": first.responses["chosen"] + " "})
    same_prompt = replace(third, prompt=first.prompt + " ")
    rows = (first, same_text, same_prompt, TRAIN.rows[3])
    for seed in range(20):
        probes = build_probes(replace(TRAIN, rows=rows), seed=seed)
        lenders = probes.manifest["borrowed"]["irrelevant_train"]
        assert lenders[first.row_id] == "train-000003"
        assert lenders[same_text.row_id] in ("train-000002", "train-000003")
        assert lenders[same_prompt.row_id] in ("train-000001", "train-000003")


def test_irrelevant_test_is_held_out():
    known_prompt = replace(TEST.rows[0], prompt=TRAIN.rows[0].prompt)
    known_text = replace(TEST.rows[1], responses=TRAIN.rows[1].responses)
    test = replace(TEST, rows=(known_prompt, known_text, *TEST.rows[2:5]))
    for seed in range(20):
        probes = build_probes(TRAIN, test, seed=seed)
        used = set(probes.manifest["borrowed"]["irrelevant_test"].values())
        assert used == {row.row_id for row in test.rows[2:]}
        assert probes.manifest["not_held_out"] == ["test-000000", "test-000001"]
        asked = {p.prompt_id for p in probes if p.split == "test"}
        assert asked == used


def test_test_data_that_are_all_training_data_are_refused():
    with pytest.raises(BadInput, match=r"each of the 30 test rows .* nothing is held"):
        build_probes(TRAIN, replace(TRAIN, split="test"))


def test_random_permuted_has_chosens_words_in_another_order():
    probes = by_key(build_probes(TRAIN))
    for row in TRAIN.rows:
        text = probes[row.row_id, "random_permuted"].response
        chosen = row.responses["chosen"]
        assert text != chosen
        assert sorted(text.split()) == sorted(chosen.split())
        assert [c for c in text if c.isspace()] == [c for c in chosen if c.isspace()]


def test_two_words_are_always_swapped_and_one_word_is_left_out():
    rows = tuple(
        Row(f"r{i}", f"question {i}", {"chosen": text})
        for i, text in enumerate([" yes no", " yes", " no no no"] * 5)
    )
    probes = build_probes(Data(rows, "s", "train", ""))
    texts = [p.response for p in probes if p.kind == "random_permuted"]
    assert texts == [" no yes"] * 5
    assert len(probes.manifest["left_out"]["random_permuted"]) == 10


def test_random_words_are_as_many_as_chosens_and_from_the_training_responses():
    known = {w for r in TRAIN.rows for t in r.responses.values() for w in t.split()}
    for probe in build_probes(TRAIN, TEST):
        if probe.kind == "random_words":
            words = probe.response.split()
            assert len(words) == 7
            assert set(words) <= known


def test_built_kinds_begin_as_chosen_does():
    rows = tuple(
        replace(r, responses={"chosen": " " * (i % 3) + r.responses["chosen"].strip()})
        for i, r in enumerate(TRAIN.rows)
    )
    probes = build_probes(replace(TRAIN, rows=rows), TEST)
    texts = by_key(probes)
    for probe in probes:
        chosen = texts[probe.prompt_id, "chosen"].response
        if probe.kind in _BUILT_KINDS:
            assert len(probe.response) - len(probe.response.lstrip()) == (
                len(chosen) - len(chosen.lstrip())
            )


def test_the_template_stays_around_built_responses(tmp_path):
    path = tmp_path / "chat.jsonl"
    rows = [
        {
            "prompt": [message("user", f"question {i}")],
            "chosen": [message("assistant", f"the answer is {i}")],
            "rejected": [message("assistant", f"none of {i}")],
        }
        for i in range(8)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    data = read_data(path, tokenizer=chatml())
    words = {w for i in range(8) for w in f"the answer is {i} none of".split()}
    for probe in build_probes(data):
        assert probe.rendered
        assert probe.response.endswith("<|im_end|>\n")
        assert set(probe.response.removesuffix("<|im_end|>\n").split()) <= words


def test_ids_that_train_and_test_share_are_told_apart():
    test = replace(
        TEST,
        rows=tuple(
            replace(row, row_id=other.row_id)
            for row, other in zip(TEST.rows, TRAIN.rows, strict=True)
        ),
    )
    probes = build_probes(TRAIN, test)
    assert len(probes.prompt_ids) == 60
    assert {p.prompt_id[:5] for p in probes if p.split == "test"} == {"test:"}


def test_the_manifest_tells_sources_seed_and_counts_and_is_saved(tmp_path):
    probes = build_probes(TRAIN, TEST, prompts=4, seed=7)
    about = probes.manifest
    assert about["seed"] == 7
    assert [s["sha256"] for s in about["sources"]] == ["0" * 64] * 2
    assert about["prompts"] == {"train": 4, "test": 4}
    assert about["counts"]["test"]["irrelevant_test"] == 4
    probes.save(tmp_path / "probes.parquet")
    again = load_probes(tmp_path / "probes.parquet")
    assert again == probes
    assert again.manifest == about


def test_kinds_restrict_the_set():
    probes = build_probes(TRAIN, kinds=["chosen", "random_words"])
    assert probes.kinds == ["chosen", "random_words"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"prompts": 31}, "31 prompts were asked for, and there are 30 usable train"),
        ({"prompts": 0}, "Ask for 1 to 30"),
        ({"kinds": ["chosen_semantic"]}, "no row has the kind chosen_semantic"),
        ({"kinds": ["irrelevant_test"]}, "irrelevant_test needs held-out rows"),
    ],
)
def test_what_cannot_be_built_is_told(settings, expected):
    with pytest.raises(BadInput, match=expected):
        build_probes(TRAIN, **settings)


def test_a_single_row_cannot_borrow():
    with pytest.raises(BadInput, match="no row can lend irrelevant_train to train-0"):
        build_probes(data_of("train", 1))


def test_rows_without_chosen_get_no_built_kind():
    rows = tuple(
        replace(row, responses={"rejected": row.responses["rejected"]})
        for row in TRAIN.rows[:3]
    )
    probes = build_probes(replace(TRAIN, rows=rows + TRAIN.rows[3:]))
    built = {p.prompt_id for p in probes if p.kind in _BUILT_KINDS}
    assert built == {row.row_id for row in TRAIN.rows[3:]}
    with pytest.raises(BadInput, match="has no chosen responses"):
        build_probes(replace(TRAIN, rows=rows), kinds=["random_words"])


def test_rendered_and_plain_data_do_not_mix():
    rendered = tuple(replace(row, rendered=True) for row in TEST.rows)
    with pytest.raises(BadInput, match="only one of train and test was rendered"):
        build_probes(TRAIN, replace(TEST, rows=rendered))


def test_rows_as_they_are_keep_every_column_and_their_split():
    probes = as_they_are(TEST, "test")
    assert probes.kinds == ["chosen", "rejected"]
    assert {p.split for p in probes} == {"test"}
    assert len(probes) == 60


def test_wide_files_of_any_type_are_probes(tmp_path):
    path = tmp_path / "wide.jsonl"
    path.write_text(json.dumps({"prompt": "a", "y": "b", "z": "c"}))
    probes = load_probes(path, rename={"y": "chosen"}, split="validation")
    assert [(p.kind, p.split) for p in probes] == [("chosen", "test"), ("z", "test")]


def test_chat_messages_are_probes_with_a_tokenizer(tmp_path):
    path = tmp_path / "chat.jsonl"
    chat = {
        k: [message(r, k)] for k, r in (("prompt", "user"), ("chosen", "assistant"))
    }
    path.write_text(json.dumps(chat))
    (probe,) = load_probes(path, tokenizer=chatml())
    assert probe.rendered
    with pytest.raises(BadInput, match="needs a tokenizer"):
        load_probes(path)


def test_a_parquet_file_that_is_not_ours_is_read_as_wide_rows(tmp_path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"prompt": ["a"], "chosen": ["b"]}), tmp_path / "w.parquet")
    assert load_probes(tmp_path / "w.parquet").kinds == ["chosen"]
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(BadInput, match="not a readable Parquet file"):
        load_probes(tmp_path / "broken.parquet")


def test_the_authors_pairs_give_a_set_without_their_faults(shared_data):
    """No test text from train, no own chosen, one leading space everywhere."""
    sides = []
    for split in ("train", "test"):
        path = shared_data / "hh" / f"probes_{split}.jsonl"
        data = read_data(path, split=split, rename=AUTHORS_KINDS, empty="drop")
        rows = tuple(
            replace(row, responses={"chosen": row.responses["chosen"]})
            for row in data.rows
        )
        sides.append(replace(data, rows=rows))
    train, test = sides
    probes = build_probes(train, test, prompts=200)
    known = {row.responses["chosen"].strip() for row in train.rows}
    for probe in probes:
        assert probe.response.startswith(" ")
        if probe.kind == "irrelevant_test":
            assert probe.response.strip() not in known


def test_fewer_prompts_will_do_in_either_split_where_that_is_said():
    few = replace(TEST, rows=TEST.rows[:4])
    probes = build_probes(TRAIN, few, prompts=10, or_fewer=True)
    assert probes.manifest["prompts"] == {"train": 10, "test": 4}
    with pytest.raises(BadInput, match="10 prompts were asked for, and there are 4"):
        build_probes(TRAIN, few, prompts=10)


def test_the_probes_of_a_run_are_read_from_its_folder_or_its_file(tmp_path):
    from learndyn.probes.tokenize import tokenize
    from learndyn.record.run_directory import RunDirectory

    probes = build_probes(TRAIN, TEST, prompts=3)
    table = tokenize(probes, chatml()).to_table()
    run = RunDirectory.create(tmp_path / "a=b", table, {})
    for source in (run.path, str(run.path), run.path / "probes.parquet"):
        assert load_probes(source).fingerprint == probes.fingerprint
