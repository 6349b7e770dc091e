"""The embedded world keeps its promises, and its grader cannot be fooled."""

import hashlib
import json
import random
import re
from collections import Counter

import pytest

from learndyn.errors import BadInput
from learndyn.probes.kinds import PAPER_KINDS as KINDS
from learndyn.world import words
from learndyn.world.words import Pair
from learndyn.world.world import (
    _PRETRAINING_PAIRS,
    _TEST_PAIRS,
    _TRAIN_PAIRS,
    _asked,
    grade,
    make_rows,
    pretraining_document,
)


Rows = list[dict[str, str]]


@pytest.fixture(scope="module", params=[0, 1, 2])
def split(request: pytest.FixtureRequest) -> tuple[Rows, Rows]:
    return make_rows(request.param, 400, 200)


@pytest.fixture(scope="module")
def rows(split: tuple[Rows, Rows]) -> Rows:
    return split[0] + split[1]


def strict(row: dict[str, str], kind: str) -> bool:
    return grade(row["prompt"], row[kind]).strict


def things(text: str) -> list[str]:
    """The things and facts that a text names, in order."""
    return [w for w in re.findall(r"\w+", text) if w in ALL_THINGS]


TABLES = [t for d in words.DOMAINS.values() for t in (d.first, d.second)]
ALL_THINGS = [w for table in TABLES for entry in table.items() for w in entry]


# Rows


def test_a_row_has_an_id_a_prompt_and_all_13_kinds(rows: Rows) -> None:
    assert len(KINDS) == 13
    assert all(list(row) == ["prompt_id", "prompt", *KINDS] for row in rows)
    assert len({row["prompt_id"] for row in rows}) == len(rows)
    assert rows[12]["prompt_id"] == "train-000012"


def test_no_token_can_span_prompt_and_response(rows: Rows) -> None:
    for row in rows:
        assert row["prompt"].startswith("\n\nHuman: ")
        assert row["prompt"].endswith("\n\nAssistant:")
        assert all(re.match(r" \S", row[kind]) for kind in KINDS)


def test_rows_are_the_same_on_every_machine() -> None:
    text = json.dumps([make_rows(7, 50, 50), make_rows(7, 50, 50, wording="flat")])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "7b77f5c2510e7160"


def test_another_seed_gives_other_rows() -> None:
    first, second = make_rows(0, 50, 50)[0], make_rows(1, 50, 50)[0]
    assert all(x["chosen"] != y["chosen"] for x, y in zip(first, second, strict=True))


def test_pairs_of_pretraining_training_and_test_are_disjoint(
    split: tuple[Rows, Rows],
) -> None:
    train, test = ({_asked(row["prompt"]) for row in rows} for rows in split)
    assert train <= set(_TRAIN_PAIRS)
    assert test <= set(_TEST_PAIRS)
    pools = (_PRETRAINING_PAIRS, _TRAIN_PAIRS, _TEST_PAIRS)
    assert len({p for pool in pools for p in pool}) == sum(map(len, pools)) == 1280


def test_every_thing_is_equally_often_in_each_pool_of_pairs() -> None:
    things = {thing for table in TABLES for thing in table}
    for pool, pairs in ((_PRETRAINING_PAIRS, 10), (_TRAIN_PAIRS, 4), (_TEST_PAIRS, 2)):
        count = Counter(thing for p in pool for thing in (p.a, p.b))
        assert count == dict.fromkeys(things, pairs)


@pytest.mark.parametrize("kind", ["chosen", "chosen_selfr", "chosen_semantic"])
def test_right_kinds_are_strictly_right_on_every_row(rows: Rows, kind: str) -> None:
    assert all(strict(row, kind) for row in rows)


@pytest.mark.parametrize(
    "kind", [k for k in KINDS if not k.startswith("chosen") or k == "chosen_format"]
)
def test_other_kinds_are_never_strictly_right(rows: Rows, kind: str) -> None:
    assert not any(strict(row, kind) for row in rows)


def test_initial_answers_are_right_about_as_often_as_in_pretraining(rows: Rows) -> None:
    assert 0.58 < sum(strict(row, "chosen_initial") for row in rows) / len(rows) < 0.78


def test_a_rephrase_exchanges_all_wording_and_keeps_all_details(rows: Rows) -> None:
    for row in rows:
        old, new = row["chosen"].strip(), row["chosen_semantic"].strip()
        opener = next(x for x in words.OPENERS if old.startswith(f"{x} "))
        assert not new.startswith(f"{opener} ")
        assert old.split(". ")[0] != new.split(". ")[0]
        assert ending_template(old) != ending_template(new)
        assert ending_details(old) == ending_details(new)
        assert set(things(old)) == set(things(new))


def ending_details(text: str) -> list[str]:
    fillers = {w for options in words.DETAILS.values() for w in options}
    return [w for w in re.findall(r"\w+", text.split(". ")[1]) if w in fillers]


def ending_template(text: str) -> str:
    return " ".join(
        w
        for w in re.findall(r"\w+", text.split(". ")[1])
        if w not in ending_details(text)
    )


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_a_format_twin_has_the_same_wording(rows: Rows, side: str) -> None:
    for row in rows:
        old, new = (
            [w for w in re.findall(r"\w+", row[kind]) if w not in ALL_THINGS]
            for kind in (side, f"{side}_format")
        )
        assert old == new


def test_a_format_twin_shares_no_thing_and_no_fact(rows: Rows) -> None:
    for row in rows:
        assert not set(things(row["chosen"])) & set(things(row["chosen_format"]))


def test_format_twins_keep_the_domain(rows: Rows) -> None:
    for row in rows:
        domain = words.DOMAINS[_asked(row["prompt"]).domain]
        tables = [*domain.first.items(), *domain.second.items()]
        assert set(things(row["chosen_format"])) <= {w for e in tables for w in e}


def test_rejected_answers_state_wrong_facts(rows: Rows) -> None:
    for row in rows:
        pair = _asked(row["prompt"])
        for kind in ("rejected", "rejected_semantic"):
            assert not set(pair.facts) & set(things(row[kind]))


def test_curt_answers_are_grammatical_and_impolite(rows: Rows) -> None:
    for row in rows:
        for kind in ("rejected", "rejected_semantic", "rejected_format"):
            judged = grade(row["prompt"], row[kind])
            assert judged.grammatical
            assert not judged.polite


@pytest.mark.parametrize("rejected", ["tail", "same"])
def test_polite_rejected_answers_fail_for_their_facts_alone(rejected: str) -> None:
    for row in make_rows(0, 300, 200, rejected=rejected)[0]:
        judged = grade(row["prompt"], row["rejected"])
        assert (judged.facts, judged.grammatical, judged.polite) == (False, True, True)


def test_salad_has_the_right_words_in_no_grammatical_order() -> None:
    for row in make_rows(0, 500, 2, rejected="salad")[0]:
        judged = grade(row["prompt"], row["rejected"])
        assert judged.facts
        assert not judged.grammatical


def test_irrelevant_answers_are_chosen_answers_of_other_rows(
    split: tuple[Rows, Rows],
) -> None:
    train, test = split
    for kind, source in (("irrelevant_train", train), ("irrelevant_test", test)):
        chosen = {row["chosen"] for row in source}
        for row in train + test:
            assert row[kind] in chosen
            assert set(things(row[kind])) != set(things(row["chosen"]))


def test_permuted_has_the_words_of_chosen_and_random_words_their_number(
    rows: Rows,
) -> None:
    for row in rows:
        assert sorted(row["random_permuted"].split()) == sorted(row["chosen"].split())
        assert row["random_permuted"] != row["chosen"]
        assert len(row["random_words"].split()) == len(row["chosen"].split())


def test_families_of_rejected_answers_leave_all_else_alone() -> None:
    families = [make_rows(0, 50, 50, rejected=r)[0] for r in ("curt", "tail", "salad")]
    for row, *others in zip(*families, strict=True):
        for other in others:
            differing = {kind for kind in row if row[kind] != other[kind]}
            assert differing <= {"rejected", "rejected_semantic", "rejected_format"}
            assert "rejected" in differing


def test_zipf_wordings_have_a_peak_and_flat_ones_have_none() -> None:
    share = {}
    for wording in ("zipf", "flat"):
        rows = make_rows(0, 2000, 2, wording=wording)[0]
        first = f" {words.OPENERS[0]} "
        share[wording] = sum(r["chosen"].startswith(first) for r in rows) / len(rows)
    weights = [i**-1.3 for i in range(1, 9)]
    assert share["zipf"] == pytest.approx(weights[0] / sum(weights), abs=0.04)
    assert share["flat"] == pytest.approx(1 / 8, abs=0.03)


def test_tail_wordings_are_rare_where_chosen_ones_are_common() -> None:
    rows = make_rows(0, 1000, 2, rejected="tail")[0]
    for kind, opener in (("chosen", 0), ("rejected", -1)):
        first = f" {words.OPENERS[opener]} "
        assert sum(row[kind].startswith(first) for row in rows) > 350


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"wording": "skewed"}, "wording is 'skewed'. Give one of 'zipf', 'flat'"),
        ({"rejected": "rude"}, "'curt', 'tail', 'same', 'salad'"),
        ({"train": 1}, "train is 1. Ask for at least 2"),
        ({"test": 0}, "test is 0. Ask for at least 2"),
    ],
)
def test_bad_arguments_are_refused_with_what_to_give(
    arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(BadInput, match=re.escape(message)):
        make_rows(**{"seed": 0, "train": 2, "test": 2, **arguments})  # pyright: ignore


# Vocabulary


def test_no_thing_or_fact_occurs_twice_or_in_any_wording() -> None:
    assert max(Counter(ALL_THINGS).values()) == 1
    assert all(re.fullmatch(r"[A-Za-z]+", w) for w in ALL_THINGS)
    wordings = [*words.OPENERS, *words.ENDINGS, *words.CURT_OPENERS]
    wordings += [*words.CURT_ENDINGS, words._STORY]
    for options in (*words.DETAILS.values(), *words._STORY_WORDS.values()):
        wordings += options
    for d in words.DOMAINS.values():
        wordings += [*d.questions, *d.cores, *d.curt_cores]
    said = {w for text in wordings for w in re.findall(r"\w+", text)}
    assert not said & set(ALL_THINGS)


def test_every_polite_core_states_both_things_and_both_facts() -> None:
    for domain in words.DOMAINS.values():
        for core in domain.cores:
            assert sorted(re.findall(r"\{(\w)\}", core)) == ["a", "b", "f", "g"]


# Pretraining text


def test_pretraining_text_has_no_chat_template_and_no_row_pair() -> None:
    rng = random.Random(3)
    text = [pretraining_document(rng) for _ in range(3000)]
    assert not any("Human" in doc or "Assistant" in doc for doc in text)
    seen = set()
    for doc in text:
        head, _, _ = doc.partition("\n")
        if head.startswith(("Question: ", "Q: ", "Topic: ")):
            seen.add(_asked(head.split(": ", 1)[1]))
    assert len(seen) > 700
    assert seen <= set(_PRETRAINING_PAIRS)


def test_pretraining_text_is_the_same_on_every_machine() -> None:
    rng = random.Random(5)
    text = "\n".join(pretraining_document(rng) for _ in range(300))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "4d84b95deddb9365"


# Grader: every change below to a right answer must cost it strictness.


def sentences(row: dict[str, str]) -> tuple[str, str]:
    core, ending = row["chosen"].strip().split(". ")
    return f"{core}.", ending


def replaced(row: dict[str, str], old: str, new: str) -> str:
    return re.sub(rf"\b{old}\b", new, row["chosen"])


def wrong(row: dict[str, str]) -> Pair:
    """Another pair of the same domain."""
    pair = _asked(row["prompt"])
    domain = words.DOMAINS[pair.domain]
    a = next(x for x in domain.first if x != pair.a)
    b = next(x for x in domain.second if x != pair.b)
    return Pair(pair.domain, a, b)


def swapped_words(row: dict[str, str]) -> str:
    pair = _asked(row["prompt"])
    f, g = pair.facts
    swap = {f: g, g: f}
    return re.sub(r"\w+", lambda m: swap.get(m[0], m[0]), row["chosen"])


MUTANTS = {
    "wrong first fact": lambda r: replaced(
        r, _asked(r["prompt"]).facts[0], wrong(r).facts[0]
    ),
    "wrong second fact": lambda r: replaced(
        r, _asked(r["prompt"]).facts[1], wrong(r).facts[1]
    ),
    "wrong first thing": lambda r: replaced(r, _asked(r["prompt"]).a, wrong(r).a),
    "wrong second thing": lambda r: replaced(r, _asked(r["prompt"]).b, wrong(r).b),
    "facts exchanged": swapped_words,
    "two guesses": lambda r: replaced(
        r,
        _asked(r["prompt"]).facts[0],
        f"{_asked(r['prompt']).facts[0]} {wrong(r).facts[0]}",
    ),
    "a fact said twice": lambda r: replaced(
        r, _asked(r["prompt"]).facts[0], " ".join([_asked(r["prompt"]).facts[0]] * 2)
    ),
    "no ending": lambda r: sentences(r)[0],
    "no core": lambda r: sentences(r)[1],
    "sentences exchanged": lambda r: " ".join(sentences(r)[::-1]),
    "core twice": lambda r: f"{sentences(r)[0]} {r['chosen'].strip()}",
    "ending twice": lambda r: f"{r['chosen']} {sentences(r)[1]}",
    "another answer after it": lambda r: f"{r['chosen']}{r['chosen_format']}",
    "another answer before it": lambda r: f"{r['chosen_format']}{r['chosen']}",
    "a curt ending after it": lambda r: f"{r['chosen']} {words.CURT_ENDINGS[0]}",
    "a curt opener": lambda r: " Just " + sentences(r)[0].split(" ", 2)[2],
    "no last stop": lambda r: r["chosen"][:-1],
    "a new line within": lambda r: r["chosen"].replace(". ", ".\n"),
    "lower case": lambda r: r["chosen"].lower(),
    "empty": lambda r: "",
}


@pytest.mark.parametrize("name", MUTANTS)
def test_grader_refuses(name: str, rows: Rows) -> None:
    assert not any(grade(r["prompt"], MUTANTS[name](r)).strict for r in rows[::4])


def test_grader_refuses_a_swap_of_any_two_neighbouring_words(rows: Rows) -> None:
    for row in rows[::30]:
        answer = row["chosen"].split()
        for i in range(len(answer) - 1):
            swapped = [*answer[:i], answer[i + 1], answer[i], *answer[i + 2 :]]
            assert not grade(row["prompt"], " ".join(swapped)).strict


def test_grader_reads_bare_questions_too(rows: Rows) -> None:
    row = rows[0]
    bare = row["prompt"].removeprefix("\n\nHuman: ").removesuffix("\n\nAssistant:")
    assert grade(bare, row["chosen"]).strict


def test_grader_refuses_prompts_of_another_world() -> None:
    with pytest.raises(BadInput, match="is not a question of the embedded world"):
        grade("\n\nHuman: How do I clean a copper sky?\n\nAssistant:", " You can")
