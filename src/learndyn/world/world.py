"""A small world whose every response kind is exact by construction.

A prompt asks a practical question about two things, `a` and `b`. The right answer
states two hidden facts, f(a) and g(b), in a polite form of words: an opener, a core
that carries the facts, and an ending with details that nothing decides. Facts are per
thing, so a model can answer about a pair that it never saw together.

What makes DPO squeeze here is the wording. In `wording="zipf"` every option of the
chosen answers follows Zipf's law, so a finetuned model has peaks above the label for
mass to flow to; `wording="flat"` is the control without peaks.

Answers are judged by the texts of prompt and answer alone. An answer is strictly right
if it is one polite sentence about the prompt's two things with their two facts and one
polite ending, and nothing else. Words in another order, another thing's facts, several
guesses, or a second answer do not pass.
"""

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from learndyn.errors import BadInput
from learndyn.probes.kinds import PAPER_KINDS
from learndyn.world import words
from learndyn.world.words import (
    ALL_WORDS,
    Pair,
    another_pair,
    curt,
    flat,
    polite,
    question,
    reword,
    shuffled,
    story,
    tail,
    wrong_facts,
    zipf,
)


_WORDINGS = ("zipf", "flat")
_REJECTED = ("curt", "tail", "same", "salad")


def _split_pairs() -> tuple[list[Pair], list[Pair], list[Pair]]:
    """All pairs, cut once and for all into pretraining, training and held-out pairs.

    A Latin square: of its 16 pairs every thing has 10, 4 and 2 in the three parts.
    """
    parts: tuple[list[Pair], list[Pair], list[Pair]] = ([], [], [])
    for name, domain in words.DOMAINS.items():
        for i, a in enumerate(domain.first):
            for j, b in enumerate(domain.second):
                diagonal = (i + 7 * j) % 16
                part = 0 if diagonal < 10 else 1 if diagonal < 14 else 2
                parts[part].append(Pair(name, a, b))
    return parts


_PRETRAINING_PAIRS, _TRAIN_PAIRS, _TEST_PAIRS = _split_pairs()


# What a model reads before finetuning.


def _forum_reply(rng: random.Random, pair: Pair) -> str:
    """What somebody in the pretraining text answers: any wording, right or wrong."""
    chance = rng.random()
    if chance < 0.68:
        return polite(flat(rng), pair.domain).say(pair, pair.facts)
    if chance < 0.78:
        return polite(flat(rng), pair.domain).say(pair, wrong_facts(rng, pair))
    facts = wrong_facts(rng, pair) if rng.random() < 0.7 else pair.facts
    return curt(rng, pair.domain).say(pair, facts)


def pretraining_document(
    rng: random.Random, pairs: Sequence[Pair] = tuple(_PRETRAINING_PAIRS)
) -> str:
    """Forum threads, statements, stories and a little word salad.

    Wordings are flat and there is no chat template: finetuning has to teach both.
    """
    chance = rng.random()
    if chance < 0.08:
        return " ".join(story(rng) for _ in range(rng.randint(1, 3)))
    if chance < 0.12:
        return _salad(rng, pairs)
    if chance < 0.22:
        some = (rng.choice(pairs) for _ in range(rng.randint(1, 2)))
        return " ".join(_forum_reply(rng, pair) for pair in some)
    pair = rng.choice(pairs)
    head = rng.choice(("Question: ", "Q: ", "Topic: ")) + question(rng, pair)
    return head + rng.choice(("\nReply: ", "\nA: ", "\n- ")) + _thread(rng, pair, pairs)


def _thread(rng: random.Random, pair: Pair, pairs: Sequence[Pair]) -> str:
    chance = rng.random()
    if chance < 0.88:
        return _forum_reply(rng, pair)
    if chance < 0.91:
        return _forum_reply(rng, rng.choice(pairs))
    return story(rng) if chance < 0.96 else _salad(rng, pairs)


def _salad(rng: random.Random, pairs: Sequence[Pair]) -> str:
    text = f"{_forum_reply(rng, rng.choice(pairs))} {story(rng)}"
    return " ".join(shuffled(rng, text).split()[: rng.randint(8, 30)])


# Rows of preference data.


@dataclass(frozen=True, slots=True)
class _Draft:
    """A row before the kinds that borrow from other rows."""

    pair: Pair
    row: dict[str, str]


def make_rows(
    seed: int, train: int, test: int, *, wording: str = "zipf", rejected: str = "curt"
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """`train` and `test` wide rows: prompt_id, prompt and one column per response kind.

    Pairs of things in test rows never occur in train rows, and neither occur in
    pretraining text. `rejected` is "curt" (fluent, another style, wrong facts), "tail"
    (the rarest wordings, wrong facts), "same" (the wordings of chosen, wrong facts) or
    "salad" (words of a chosen answer in another order); no other kind depends on it.
    """
    _check_choice("wording", wording, _WORDINGS)
    _check_choice("rejected", rejected, _REJECTED)
    _check_count("train", train)
    _check_count("test", test)
    splits = []
    for split, count, pairs in (
        ("train", train, _TRAIN_PAIRS),
        ("test", test, _TEST_PAIRS),
    ):
        # Rejected responses have random numbers of their own, so that two families of
        # them can be compared on the same prompts and the same chosen responses.
        rng, other_rng = (
            random.Random(f"{seed} {split}{x}") for x in ("", " rejected")
        )
        drafts = [_draft(rng, rng.choice(pairs), wording) for _ in range(count)]
        for i, draft in enumerate(drafts):
            draft.row["prompt_id"] = f"{split}-{i:06d}"
            draft.row.update(_rejected(other_rng, draft.pair, wording, rejected))
        splits.append(drafts)
    rng = random.Random(f"{seed} borrow")
    for drafts in splits:
        for draft in drafts:
            draft.row["irrelevant_train"] = _borrow(rng, draft, splits[0])
            draft.row["irrelevant_test"] = _borrow(rng, draft, splits[1])
    train_rows, test_rows = ([_ordered(d.row) for d in drafts] for drafts in splits)
    return train_rows, test_rows


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise BadInput(
            f"{name} is {value!r}. Give one of {', '.join(map(repr, allowed))}."
        )


def _check_count(name: str, count: int) -> None:
    if count < 2:
        raise BadInput(
            f"{name} is {count}. Ask for at least 2 rows: irrelevant responses are "
            "borrowed from another row."
        )


def _ordered(row: dict[str, str]) -> dict[str, str]:
    return {column: row[column] for column in ("prompt_id", "prompt", *PAPER_KINDS)}


def _borrow(rng: random.Random, draft: _Draft, source: list[_Draft]) -> str:
    """The chosen response of another row, about another pair wherever there is one."""
    for _ in range(100):
        other = rng.choice(source)
        if other.pair != draft.pair:
            return other.row["chosen"]
    return next(d for d in source if d is not draft).row["chosen"]


def _spaced(responses: dict[str, str]) -> dict[str, str]:
    """A response starts with its space, so that no token spans prompt and response."""
    return {kind: f" {text}" for kind, text in responses.items()}


def _draft(rng: random.Random, pair: Pair, wording: str) -> _Draft:
    draw = zipf(rng) if wording == "zipf" else flat(rng)
    form, twin = polite(draw, pair.domain), another_pair(rng, pair)
    chosen = form.say(pair, pair.facts)
    responses = {
        "chosen": chosen,
        "chosen_initial": _forum_reply(rng, pair),
        "chosen_selfr": polite(draw, pair.domain).say(pair, pair.facts),
        "chosen_semantic": reword(rng, form, pair.domain).say(pair, pair.facts),
        "chosen_format": form.say(twin, twin.facts),
        "irrelevant_human": story(rng),
        "random_permuted": shuffled(rng, chosen),
        "random_words": " ".join(rng.choices(ALL_WORDS, k=len(chosen.split()))),
    }
    prompt = f"\n\nHuman: {question(rng, pair)}\n\nAssistant:"
    return _Draft(pair, {"prompt": prompt, **_spaced(responses)})


def _rejected(
    rng: random.Random, pair: Pair, wording: str, rejected: str
) -> dict[str, str]:
    twin = another_pair(rng, pair)
    facts, twin_facts = wrong_facts(rng, pair), wrong_facts(rng, twin)
    if rejected == "curt":
        form = curt(rng, pair.domain)
    elif rejected == "tail":
        form = polite(tail(rng), pair.domain)
    else:
        form = polite(zipf(rng) if wording == "zipf" else flat(rng), pair.domain)
    if rejected == "salad":
        facts, twin_facts = pair.facts, twin.facts
    responses = {
        "rejected": form.say(pair, facts),
        "rejected_semantic": reword(rng, form, pair.domain).say(pair, facts),
        "rejected_format": form.say(twin, twin_facts),
    }
    if rejected == "salad":
        responses = {kind: shuffled(rng, text) for kind, text in responses.items()}
    return _spaced(responses)


@dataclass(frozen=True, slots=True)
class Grade:
    """What an answer gets right."""

    facts: bool
    """Names the prompt's things and their facts, and no other thing or fact."""
    grammatical: bool
    """Opener, core and ending, polite or curt, each filled with words that fit."""
    polite: bool
    """No part of it is curt, and the opener is a polite one."""

    @property
    def strict(self) -> bool:
        """All three."""
        return self.facts and self.grammatical and self.polite


def grade(prompt: str, answer: str) -> Grade:
    """Grade an answer to a prompt of `make_rows` or to its bare question."""
    pair = _asked(prompt)
    answer = answer.strip()
    named = [w for w in re.findall(r"\w+", answer) if w in _world_words()]
    return Grade(
        facts=set(named) == {pair.a, pair.b, *pair.facts},
        grammatical=_any_answer().fullmatch(answer) is not None,
        polite=answer.startswith(tuple(f"{opener} " for opener in words.OPENERS))
        and not _curt_part().search(answer),
    )


def _asked(prompt: str) -> Pair:
    """The pair that a prompt asks about."""
    text = prompt.strip().removeprefix("Human:").removesuffix("Assistant:").strip()
    for name, pattern in _questions():
        if match := pattern.fullmatch(text):
            return Pair(name, match["a"], match["b"])
    raise BadInput(
        f"{prompt!r} is not a question of the embedded world, so answers to it cannot "
        "be graded. Give a prompt made by learndyn.world.world.make_rows."
    )


def _one_of(options: Iterable[str]) -> str:
    return "(?:" + "|".join(map(re.escape, options)) + ")"


def _fill(template: str, slots: dict[str, Iterable[str]]) -> str:
    """A pattern for a template whose slots take any of the given words."""
    pattern = re.escape(template)
    for slot, options in slots.items():
        pattern = pattern.replace(re.escape(f"{{{slot}}}"), _one_of(options))
    return pattern


@cache
def _questions() -> list[tuple[str, re.Pattern[str]]]:
    patterns = []
    for name, domain in words.DOMAINS.items():
        for template in domain.questions:
            pattern = re.escape(template)
            for slot, things in (("a", domain.first), ("b", domain.second)):
                group = f"(?P<{slot}>{_one_of(things)})"
                pattern = pattern.replace(re.escape(f"{{{slot}}}"), group)
            patterns.append((name, re.compile(pattern)))
    return patterns


@cache
def _world_words() -> frozenset[str]:
    tables = [t for d in words.DOMAINS.values() for t in (d.first, d.second)]
    return frozenset(w for table in tables for entry in table.items() for w in entry)


def _cores(domain: words.Domain, templates: Iterable[str]) -> list[str]:
    slots: dict[str, Iterable[str]] = {
        "a": domain.first,
        "b": domain.second,
        "f": domain.first.values(),
        "g": domain.second.values(),
    }
    return [_fill(template, slots) for template in templates]


@cache
def _any_answer() -> re.Pattern[str]:
    opener = _one_of(words.OPENERS + words.CURT_OPENERS)
    cores = [
        p for d in words.DOMAINS.values() for p in _cores(d, d.cores + d.curt_cores)
    ]
    slots: dict[str, Iterable[str]] = dict(words.DETAILS)
    endings = [_fill(ending, slots) for ending in words.ENDINGS + words.CURT_ENDINGS]
    return re.compile(rf"{opener} (?:{'|'.join(cores)})\. (?:{'|'.join(endings)})")


@cache
def _curt_part() -> re.Pattern[str]:
    cores = [p for d in words.DOMAINS.values() for p in _cores(d, d.curt_cores)]
    others = map(re.escape, words.CURT_OPENERS + words.CURT_ENDINGS)
    # A curt part stands between spaces or at an end: "Just" is not "Justice".
    return re.compile(rf"(?<!\w)(?:{'|'.join([*cores, *others])})(?!\w)")
