"""The check finds each confound, and nothing in a set that has none."""

import json

import pytest
from small_tokenizers import byte_level, chatml

from learndyn.probes.build import build_probes, load_probes
from learndyn.probes.check import CheckReport, check_probes
from learndyn.probes.data import Data, Row
from learndyn.probes.kinds import AUTHORS_KINDS
from learndyn.probes.probe import Probe, ProbeSet


def clean(n: int = 4) -> list[Probe]:
    return [
        Probe(f"p{i}", kind, f"question {i}?", f" {kind} text number {i}")
        for i in range(n)
        for kind in ("chosen", "rejected")
    ]


def report(probes: list[Probe], tokenizer=None, **settings) -> CheckReport:
    return check_probes(ProbeSet(tuple(probes)), tokenizer, **settings)


def only(found: CheckReport) -> tuple[str, str, str]:
    """The one finding there is: severity, title, detail."""
    assert len(found.findings) == 1, found.to_text()
    return found.findings[0]


def test_a_set_without_confounds_has_no_findings():
    found = report(clean())
    assert found.findings == ()
    assert "0 problems, 0 warnings, 0 notes" in found.to_text()
    assert check_probes(ProbeSet(tuple(clean())), byte_level()).findings == ()


def test_a_kind_without_chosens_leading_space_is_a_problem():
    extra = [Probe(f"p{i}", "mine", f"question {i}?", f"my own {i}") for i in range(4)]
    severity, title, detail = only(report(clean() + extra))
    assert severity == "problem"
    assert title == "1 of 3 kinds do not begin as chosen does"
    assert "chosen 4/4; mine 0/4." in detail


def test_empty_responses_are_a_problem_and_named():
    probes = [*clean(3), Probe("p3", "chosen", "question 3?", " ok then my friend")]
    probes.append(Probe("p3", "rejected", "question 3?", " "))
    severity, title, detail = only(report(probes))
    assert (severity, title) == ("problem", "empty responses: 1 rejected")
    assert detail.startswith("p3 (rejected). ")


@pytest.mark.parametrize(("words", "found"), [(6, False), (7, True), (2, True)])
def test_lengths_over_one_and_a_half_times_apart_are_a_warning(words, found):
    extra = [
        Probe(f"p{i}", "mine", f"question {i}?", f" {'w ' * (words - 1)}{i}")
        for i in range(4)
    ]
    titles = [f.title for f in report(clean() + extra).findings]
    assert any("mean length" in title for title in titles) == found


def test_lengths_are_counted_in_tokens_with_end_of_text():
    found = report(clean(), byte_level())
    mine = next(kind for kind in found.kinds if kind.kind == "chosen")
    ids = byte_level()(" chosen text number 0")["input_ids"]
    assert mine.tokens == len(ids) + 1
    assert mine.words == 4
    assert mine.tokens_ratio == 1


def test_a_test_prompt_that_is_a_training_prompt_is_a_leak():
    probes = [*clean(), Probe("t", "chosen", " question 1? ", " other", "test")]
    probes.append(Probe("t", "rejected", " question 1? ", " another", "test"))
    found = {f.title: f for f in report(probes).findings}
    leak = found["test prompts that are training prompts too: 1"]
    assert leak.severity == "problem"
    assert leak.detail.startswith("t. ")
    assert "prompts under more than one id: 1" in found


def test_an_irrelevant_test_text_that_is_trained_on_is_a_leak():
    texts = [
        " chosen text number 2",
        " held out text a",
        " held out b c",
        " free d e f",
    ]
    extra = [
        Probe(f"p{i}", "irrelevant_test", f"question {i}?", text)
        for i, text in enumerate(texts)
    ]
    severity, title, detail = only(report(clean() + extra))
    assert severity == "problem"
    assert title == "irrelevant_test responses that are a training chosen: 1"
    assert "p0" in detail


@pytest.mark.parametrize("kind", ["irrelevant_train", "random_permuted"])
def test_a_contrast_that_equals_chosen_is_a_problem(kind):
    texts = ["chosen text number 0", "own b c d", "own e f g", "own h i j"]
    extra = [
        Probe(f"p{i}", kind, f"question {i}?", f" {text}")
        for i, text in enumerate(texts)
    ]
    titles = [(f.severity, f.title) for f in report(clean() + extra).findings]
    expected = f"{kind} responses equal to the prompt's own chosen: 1"
    assert ("problem", expected) in titles


def test_one_text_under_two_kinds_is_a_warning():
    probes = [p for p in clean() if (p.prompt_id, p.kind) != ("p0", "rejected")]
    probes.append(Probe("p0", "rejected", "question 0?", " chosen text number 0"))
    severity, title, detail = only(report(probes))
    assert (severity, title) == ("warning", "prompts with one text under two kinds: 1")
    assert detail == "chosen = rejected (1). Of the prompts p0."


def test_the_same_prompt_under_two_ids_is_a_warning():
    probes = clean()
    probes += [Probe("q", k, "question 1?", f" {k} text it is") for k in ("chosen",)]
    probes += [Probe("q", "rejected", "question 1?", " rejected text it is")]
    severity, title, detail = only(report(probes))
    assert (severity, title) == ("warning", "prompts under more than one id: 1")
    assert "p1 = q" in detail


def test_repeated_texts_and_missing_kinds_are_notes():
    probes = clean()[:-1]
    probes[2] = Probe("p1", "chosen", "question 1?", " chosen text number 0")
    notes = {f.title: f.detail for f in report(probes).findings}
    assert (
        "chosen 3 of 4" in notes["kinds that repeat texts under different prompts: 1"]
    )
    assert "rejected for 1 of 4 train" in notes["some prompts lack some kinds"]
    assert {f.severity for f in report(probes).findings} == {"note"}


def test_kinds_are_missing_per_split():
    extra = [
        Probe("t", "chosen", "new?", " chosen text number 9", "test"),
        Probe("t", "mine", "new?", " mine text number 9", "test"),
    ]
    _, _, detail = only(report(clean() + extra))
    assert "mine for 4 of 4 train prompts" in detail
    assert "rejected for 1 of 1 test prompts" in detail


def test_special_tokens_in_plain_texts_are_a_warning_in_rendered_ones_not():
    tokenizer = chatml()
    texts = clean()
    texts[0] = Probe("p0", "chosen", "question 0?", " chosen <|im_end|> text 0")
    severity, title, detail = only(report(texts, tokenizer))
    assert severity == "warning"
    assert "special token '<|im_end|>' in their text: 1" in title
    assert "p0 (chosen)" in detail
    rendered = [
        Probe(p.prompt_id, p.kind, p.prompt, p.response + "<|im_end|>", "train", True)
        for p in clean()
    ]
    assert report(rendered, tokenizer).findings == ()


def test_cuts_are_counted_by_kind():
    found = report(clean(), byte_level(), max_length=10, max_prompt_length=8)
    cut = next(f for f in found.findings if "cut to fit 10 tokens" in f.title)
    assert cut.severity == "warning"
    assert cut.title.startswith("8 of 8 probes")
    assert "4 chosen, 4 rejected" in cut.detail


def test_the_report_is_plain_data_and_narrow_text():
    found = report([*clean(), Probe("p0", "x" * 30, "question 0?", "y")], byte_level())
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["n_prompts"] == {"train": 4}
    assert plain["findings"][0]["severity"] == "problem"
    assert {row["kind"] for row in plain["kinds"]} == {"chosen", "rejected", "x" * 30}
    words = found.to_text()
    assert "tokens  x chosen" in words
    assert max(map(len, words.splitlines())) <= 105


def test_built_sets_have_no_problems():
    def data(split: str) -> Data:
        rows = (
            Row(
                f"{split}{i}", f"{split} {i}?", {"chosen": f" {split} says {i} or {i}b"}
            )
            for i in range(12)
        )
        return Data(tuple(rows), split, split, "")

    found = check_probes(build_probes(data("train"), data("test")))
    assert [f for f in found.findings if f.severity == "problem"] == []


def test_the_authors_probes_have_the_known_confounds(shared_data):
    path = shared_data / "hh" / "probes_train.jsonl"
    found = check_probes(load_probes(path, rename=AUTHORS_KINDS, empty="keep"))
    text = found.to_text()
    kinds = {row.kind: row for row in found.kinds}
    assert kinds["chosen"].leading_space == 1
    for kind in ("chosen_semantic", "chosen_format", "rejected_semantic"):
        assert kinds[kind].leading_space == 0
    assert "8 of 13 kinds do not begin as chosen does" in text
    assert "empty responses: 21 chosen_initial, 1 rejected" in text
    assert "train-000247 (rejected)" in text
    assert "random_permuted responses equal to the prompt's own chosen: 8" in text
    assert "irrelevant_train 306 of 500" in text
    assert kinds["chosen"].words == pytest.approx(46.9, abs=0.05)
    assert kinds["chosen_selfr"].words == pytest.approx(105.8, abs=0.05)
    assert max(map(len, text.splitlines())) <= 88
