"""How the embedded world speaks: pairs of things, wordings, and draws of them."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from learndyn.lab import vocabulary as words


ZIPF_EXPONENT = 1.3
"""Option i of a slot is drawn with weight 1 / i**1.3, i = 1, 2, ..."""

Draw = Callable[[Sequence[str]], str]
"""Draws one option of a wording slot."""


@dataclass(frozen=True, slots=True)
class Pair:
    """The two things that a question is about."""

    domain: str
    a: str
    b: str

    @property
    def facts(self) -> tuple[str, str]:
        """The right answer, (f(a), g(b))."""
        domain = words.DOMAINS[self.domain]
        return domain.first[self.a], domain.second[self.b]


@dataclass(frozen=True, slots=True)
class Wording:
    """All choices of a response that are not facts."""

    opener: str
    core: str
    """A template over `{a}`, `{b}`, `{f}`, `{g}`."""
    ending: str
    """A template over the names of `details`."""
    details: dict[str, str]

    def say(self, pair: Pair, facts: tuple[str, str]) -> str:
        f, g = facts
        core = self.core.format(a=pair.a, b=pair.b, f=f, g=g)
        return f"{self.opener} {core}. {self.ending.format(**self.details)}"


# Ways to draw an option.


def flat(rng: random.Random) -> Draw:
    """Every option equally often."""
    return rng.choice


def zipf(rng: random.Random) -> Draw:
    """The first option most often."""
    return lambda options: rng.choices(
        options, [i**-ZIPF_EXPONENT for i in range(1, len(options) + 1)]
    )[0]


def tail(rng: random.Random) -> Draw:
    """The last option most often: fluent, and rare under `zipf`."""
    draw = zipf(rng)
    return lambda options: draw(options[::-1])


# Parts of a response.


def details(draw: Draw) -> dict[str, str]:
    """What the ending says; nothing in the prompt decides it."""
    return {slot: draw(options) for slot, options in words.DETAILS.items()}


def polite(draw: Draw, domain: str) -> Wording:
    """The family of the chosen answers."""
    cores = words.DOMAINS[domain].cores
    return Wording(draw(words.OPENERS), draw(cores), draw(words.ENDINGS), details(draw))


def curt(rng: random.Random, domain: str) -> Wording:
    """Impolite or evasive in at least one part; the others are a polite answer's.

    The two families must share contexts: pushing down a response whose contexts never
    occur in the chosen answers leaves these alone.
    """
    draw, table = flat(rng), words.DOMAINS[domain]
    while True:
        rude = [rng.random() < chance for chance in (0.3, 0.4, 0.6)]
        if any(rude):
            break
    return Wording(
        draw(words.CURT_OPENERS if rude[0] else words.OPENERS),
        draw(table.curt_cores if rude[1] else table.cores),
        draw(words.CURT_ENDINGS if rude[2] else words.ENDINGS),
        details(draw),
    )


def reword(rng: random.Random, wording: Wording, domain: str) -> Wording:
    """The same meaning: another opener, core and ending of the same family each.

    Details are part of the meaning and stay.
    """
    table = words.DOMAINS[domain]

    def other(option: str, *families: Sequence[str]) -> str:
        (family,) = (family for family in families if option in family)
        return rng.choice([x for x in family if x != option])

    return replace(
        wording,
        opener=other(wording.opener, words.OPENERS, words.CURT_OPENERS),
        core=other(wording.core, table.cores, table.curt_cores),
        ending=other(wording.ending, words.ENDINGS, words.CURT_ENDINGS),
    )


def wrong_facts(rng: random.Random, pair: Pair) -> tuple[str, str]:
    """Facts of two other things of the same domain: both wrong."""
    return another_pair(rng, pair).facts


def another_pair(rng: random.Random, pair: Pair) -> Pair:
    """Both things replaced by others of the same domain."""
    domain = words.DOMAINS[pair.domain]
    return Pair(
        pair.domain,
        rng.choice([a for a in domain.first if a != pair.a]),
        rng.choice([b for b in domain.second if b != pair.b]),
    )


def question(rng: random.Random, pair: Pair) -> str:
    """One of the ways to ask, each equally often."""
    template = rng.choice(words.DOMAINS[pair.domain].questions)
    return template.format(a=pair.a, b=pair.b)


def story(rng: random.Random) -> str:
    """A sentence of an unrelated grammar."""
    slots = {slot: rng.choice(options) for slot, options in words.STORY_WORDS.items()}
    again = {f"{s}2": rng.choice(options) for s, options in words.STORY_WORDS.items()}
    return words.STORY.format(**slots, **again)


def shuffled(rng: random.Random, text: str) -> str:
    """The same words in another order."""
    before = text.split()
    after = before[:]
    while after == before:
        rng.shuffle(after)
    return " ".join(after)


def _all_words() -> list[str]:
    tables = words.DOMAINS.values()
    nouns = [
        w for t in tables for d in (t.first, t.second) for x in d.items() for w in x
    ]
    slots = [w for options in words.DETAILS.values() for w in options]
    stories = [
        w for options in words.STORY_WORDS.values() for o in options for w in o.split()
    ]
    openers = [w for opener in words.OPENERS for w in opener.split()]
    return sorted({*nouns, *slots, *stories, *openers})


ALL_WORDS = _all_words()
