"""What was trained on is known from the trainer's rows, in each method's columns."""

from types import SimpleNamespace

import pyarrow as pa
import pytest
from datasets import Dataset
from hypothesis import given, strategies as st

from learndyn.probes.probe import Probe, ProbeSet
from learndyn.probes.token_rows import IdIndex, JoinedRows, TokenRows
from learndyn.probes.tokenize import TokenizedPair, TokenizedProbes
from learndyn.probes.trained import Trained, trained_on_texts
from learndyn.probes.trainer_data import trained_on


BOS, EOS = 1, 2
TOKENIZER = SimpleNamespace(
    eos_token="</s>", bos_token_id=BOS, eos_token_id=EOS, chat_template=None
)


def ids(text: str) -> tuple[int, ...]:
    return tuple(ord(letter) for letter in text)


def probes(bos: bool = False) -> TokenizedProbes:
    """Two prompts that are trained on and one that is not, each with three kinds; the
    second is said to be held out."""
    rows, pairs = [], []
    for prompt, split in (("ask a:", "train"), ("ask bb:", "test"), ("new:", "train")):
        for kind in ("chosen", "rejected", "other"):
            response = f" {kind} of {prompt}"
            rows.append(Probe(prompt, kind, prompt, response, split))
            start = (BOS, *ids(prompt)) if bos else ids(prompt)
            pairs.append(TokenizedPair(start, (*ids(response), EOS), False, True))
    return TokenizedProbes(ProbeSet(tuple(rows)), tuple(pairs), "hash")


PROMPTS = ["ask a:", "ask bb:", "ask ccc:", "ask dddd:"]
CHOSEN = [f" chosen of {prompt}" for prompt in PROMPTS]
REJECTED = [f" rejected of {prompt}" for prompt in PROMPTS]
TEXTS = {"prompt": PROMPTS, "chosen": CHOSEN, "rejected": REJECTED}
KTO = {
    "prompt": PROMPTS * 2,
    "completion": CHOSEN + REJECTED,
    "label": [True] * 4 + [False] * 4,
}


def tokens(texts: list[str], end: tuple[int, ...] = (EOS,)) -> list[list[int]]:
    return [[*ids(text), *end] for text in texts]


def whole(answers: list[str], prompts: list[str] = PROMPTS, start=()) -> list[list]:
    rows = zip(prompts, tokens(answers), strict=True)
    return [[*start, *ids(prompt), *answer] for prompt, answer in rows]


def labels(answers: list[str], prompts: list[str] = PROMPTS, start=()) -> list[list]:
    rows = zip(prompts, tokens(answers), strict=True)
    return [[-100] * len([*start, *prompt]) + answer for prompt, answer in rows]


ROWS = whole(CHOSEN)
PACKED = [ROWS[0] + ROWS[1], ROWS[2] + ROWS[3]]
LENGTHS = [[len(ROWS[0]), len(ROWS[1])], [len(ROWS[2]), len(ROWS[3])]]


@pytest.mark.parametrize(
    ("family", "columns", "by", "rows", "lowered"),
    [
        ("preference", TEXTS, "text", 4, True),
        (
            "preference",  # TRL appends the end of text to its own columns
            TEXTS | {"chosen": [text + "</s>" for text in CHOSEN]},
            *("text", 4, True),
        ),
        ("unpaired", KTO, "text", 8, True),
        ("sft", {"prompt": PROMPTS, "completion": CHOSEN}, "text", 4, False),
        (
            "preference",
            {
                "prompt_ids": tokens(PROMPTS, ()),
                "chosen_ids": tokens(CHOSEN),
                "rejected_ids": tokens(REJECTED),
            },
            *("ids", 4, True),
        ),
        (
            "preference",  # LLaMA-Factory
            {
                "chosen_input_ids": whole(CHOSEN, start=(BOS,)),
                "chosen_labels": labels(CHOSEN, start=(BOS,)),
                "rejected_input_ids": whole(REJECTED, start=(BOS,)),
                "rejected_labels": labels(REJECTED, start=(BOS,)),
            },
            *("ids", 4, True),
        ),
        (
            "unpaired",
            {
                "input_ids": whole(CHOSEN + REJECTED, PROMPTS * 2),
                "labels": labels(CHOSEN + REJECTED, PROMPTS * 2),
                "kto_tags": [True] * 4 + [False] * 4,
            },
            *("ids", 8, True),
        ),
        (
            "sft",
            {"input_ids": whole(CHOSEN), "labels": labels(CHOSEN)},
            *("ids", 4, False),
        ),
        ("sft", {"input_ids": whole(CHOSEN)}, "ids", 4, False),
        ("sft", {"input_ids": PACKED, "seq_lengths": LENGTHS}, "ids", 4, False),
    ],
)
@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("listed", [False, True])
def test_rows_are_met_in_any_columns(family, columns, by, rows, lowered, bos, listed):
    dataset = Dataset.from_dict(columns)
    before = dataset[0]
    watched = probes(bos)
    found = trained_on(
        dataset.to_list() if listed else dataset, watched, family, TOKENIZER
    )
    assert (found.matched_by, found.rows) == (by, rows)
    assert found.prompts == {"ask a:", "ask bb:"}
    assert found.raised == {0, 3}
    assert found.lowered == ({1, 4} if lowered else frozenset())
    assert dataset[0] == before
    assert Trained.of_info(found.to_info()) == found


def test_a_shuffled_part_of_a_data_set_is_read_as_that_part():
    dataset = Dataset.from_dict(TEXTS).select([3, 1])
    found = trained_on(dataset, probes(), "preference", TOKENIZER)
    assert (found.rows, found.prompts) == (2, {"ask bb:"})


def test_swapped_columns_are_seen():
    swapped = TEXTS | {"chosen": REJECTED, "rejected": CHOSEN}
    found = trained_on(Dataset.from_dict(swapped), probes(), "preference", TOKENIZER)
    assert (found.raised, found.lowered) == ({1, 4}, {0, 3})


def test_prompts_alone_are_met_of_an_online_method():
    dataset = Dataset.from_dict({"prompt": PROMPTS})
    found = trained_on(dataset, probes(), "online", TOKENIZER)
    assert found.prompts == {"ask a:", "ask bb:"}
    assert not found.raised | found.lowered


def test_prompts_that_are_messages_are_written_by_their_template():
    def write(messages, **_):
        return f"ask {messages[0]['content']}:"

    tokenizer = SimpleNamespace(
        **{**vars(TOKENIZER), "chat_template": "x", "apply_chat_template": write}
    )
    rows = [[{"role": "user", "content": text}] for text in ("a", "ccc")]
    found = trained_on(
        Dataset.from_dict({"prompt": rows}), probes(), "online", tokenizer
    )
    assert (found.rows, found.prompts) == (2, {"ask a:"})


def test_a_dialogue_that_is_cut_elsewhere_is_the_same():
    """TRL takes all that chosen and rejected share for the prompt."""
    rows = {"prompt": ["ask a: cho"], "raised": ["sen of ask a:"]}
    found = trained_on_texts(probes().probes, [rows])
    assert (found.prompts, found.raised) == ({"ask a:"}, {0})


class Stream:
    features = None

    def __iter__(self):
        raise AssertionError


@pytest.mark.parametrize(
    ("dataset", "family", "rows", "why"),
    [
        (Stream(), "sft", None, "a Stream is not read beforehand"),
        (
            Dataset.from_dict(TEXTS).to_iterable_dataset(),
            *("preference", None, "IterableDataset is not read"),
        ),
        (
            Dataset.from_dict(TEXTS).with_transform(lambda rows: rows),
            *("preference", None, "not read"),
        ),
        (Dataset.from_dict({"text": PROMPTS}), "sft", 4, "its columns are text"),
        (
            Dataset.from_dict({"input_ids": [[1, 2, 3]] * 4}),
            *("sft", 4, "blocks of one length"),
        ),
        (
            Dataset.from_dict({"prompt": ["else"], "completion": ["more"]}),
            *("sft", 1, "no probe is among the rows"),
        ),
        ([], "sft", None, "not read"),
    ],
)
def test_what_cannot_be_known_is_said(dataset, family, rows, why):
    found = trained_on(dataset, probes(), family, TOKENIZER)
    assert (found.rows, found.matched_by) == (rows, None)
    assert why in found.why_unknown
    assert Trained.of_info(found.to_info()) == found


def test_probes_of_which_none_is_said_to_be_trained_on_may_all_be_held_out():
    held_out = ProbeSet(tuple(p for p in probes().probes if p.split == "test"))
    found = trained_on_texts(held_out, [{"prompt": ["x"], "raised": ["y"]}])
    assert (found.matched_by, found.prompts) == ("text", frozenset())


ROW = st.lists(st.integers(0, 5), max_size=8)
PAIR = st.tuples(ROW.filter(bool), ROW.filter(bool))


def forms(prompt: list[int]) -> set[tuple[int, ...]]:
    """A probe's prompt as a row may write it."""
    plain = prompt[1:] if prompt[0] == BOS else prompt
    return {tuple(form) for form in (prompt, plain, [BOS, *plain]) if form}


@given(rows=st.lists(PAIR, min_size=1, max_size=6), probes=st.lists(PAIR, max_size=4))
def test_rows_are_found_by_hashes_as_they_are_by_comparing(rows, probes):
    pairs = [TokenizedPair(tuple(p), tuple(r), False, False) for p, r in probes]
    index = IdIndex(pairs, BOS, EOS)
    columns = [pa.array(column, pa.list_(pa.int64())) for column in zip(*rows)]  # noqa: B905
    joined = index.find(JoinedRows(*(TokenRows.of(column) for column in columns)))
    texts = [prompt + answer for prompt, answer in rows]
    whole = index.find(TokenRows.of(pa.array(texts, pa.list_(pa.int64()))))
    for i, (prompt, response) in enumerate(probes):
        mine = forms(prompt)
        same = [answer for start, answer in rows if tuple(start) in mine]
        assert (i in joined[0]) == bool(same)
        rests = [
            text[len(form) :]
            for text in texts
            for form in mine
            if tuple(text[: len(form)]) == form and len(text) > len(form)
        ]
        assert (i in whole[0]) == bool(rests)
        end = response[:-1] if response[-1] == EOS else response
        for found, answers in ((joined[1], same), (whole[1], rests)):
            is_one = [
                rest[: len(end)] == end and rest[len(end) : len(end) + 1] in ([], [EOS])
                for rest in answers
            ]
            assert (i in found) == any(is_one)
