"""Whether an answer is right, judged from the prompt's text and the answer's alone.

An answer is strictly right if it is one polite sentence about the prompt's two things
with their two facts and one polite ending, and nothing else. Words in another order,
another thing's facts, several guesses, or a second answer do not pass.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from learndyn.errors import BadInput
from learndyn.lab import vocabulary as words
from learndyn.lab.phrases import Pair


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
    pair = asked(prompt)
    answer = answer.strip()
    named = [w for w in re.findall(r"\w+", answer) if w in _world_words()]
    return Grade(
        facts=set(named) == {pair.a, pair.b, *pair.facts},
        grammatical=_any_answer().fullmatch(answer) is not None,
        polite=answer.startswith(tuple(f"{opener} " for opener in words.OPENERS))
        and not _curt_part().search(answer),
    )


def asked(prompt: str) -> Pair:
    """The pair that a prompt asks about."""
    text = prompt.strip().removeprefix("Human:").removesuffix("Assistant:").strip()
    for name, pattern in _questions():
        if match := pattern.fullmatch(text):
            return Pair(name, match["a"], match["b"])
    raise BadInput(
        f"{prompt!r} is no question of the embedded world, so no answer to it can be "
        "graded. Give a prompt made by learndyn.lab.world.make_rows."
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
