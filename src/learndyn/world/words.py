"""The words of the embedded world: things, facts, wordings, and draws of them.

Every thing and every fact is one word, and no such word occurs twice: not in another
table, not in another domain, not in a template. So an answer can be read back without
ambiguity, and a right fact in a wrong place never counts.

The order inside a list of wordings matters: Zipf's law gives the first one most of the
probability.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Domain:
    """A field of practical advice. A question names one thing `a` and one thing `b`."""

    first: dict[str, str]
    """Every `a` with its fact f(a)."""
    second: dict[str, str]
    """Every `b` with its fact g(b)."""
    questions: tuple[str, ...]
    """Templates over `{a}` and `{b}`."""
    cores: tuple[str, ...]
    """How a polite answer states the facts `{f}` and `{g}`, most usual first."""
    curt_cores: tuple[str, ...]
    """How a curt answer states them."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _table(things: str, facts: str) -> dict[str, str]:
    return dict(zip(_words(things), _words(facts), strict=True))


DOMAINS = {
    "clean": Domain(
        first=_table(
            "copper brass silver marble leather velvet walnut glass "
            "bamboo linen slate wicker steel suede cork pewter",
            "vinegar lemon soda soap paraffin steam wax alcohol "
            "salt starch borax milk sand chalk flour ammonia",
        ),
        second=_table(
            "kettle chair lamp mirror tray vase shelf drawer "
            "clock bowl rug frame bench box basket stool",
            "cloth brush sponge towel rag mop duster swab "
            "pad broom glove scraper feather paper comb roller",
        ),
        questions=(
            "How do I clean a {a} {b}?",
            "What is the best way to wash a {a} {b}?",
            "My {a} {b} is dirty. What should I do?",
            "Can you tell me how to clean a {a} {b}?",
        ),
        cores=(
            "rub the {a} {b} with {f} and a {g}",
            "put some {f} on a {g} and wipe the {a} {b}",
            "clean the {a} {b} using {f} and a soft {g}",
            "take a {g} with a little {f} and polish the {a} {b}",
        ),
        curt_cores=(
            "throw {f} at the {b} with a {g}",
            "pour {f} over that {b} or get a {g}",
        ),
    ),
    "cook": Domain(
        first=_table(
            "salmon rice beef lentils chicken carrots squid noodles "
            "potatoes turkey mushrooms pumpkin trout beans spinach tofu",
            "grill boil roast simmer fry bake smoke blanch "
            "mash braise poach stew cure soak toss saute",
        ),
        second=_table(
            "lunch dinner breakfast brunch supper camping guests children "
            "festivals birthdays weddings picnics visitors parties neighbors students",
            "garlic pepper cumin ginger thyme basil mint saffron "
            "mustard honey paprika sesame cinnamon parsley dill coriander",
        ),
        questions=(
            "How should I cook {a} for {b}?",
            "What is a good way to make {a} for {b}?",
            "I want to serve {a} for {b}. Any advice?",
            "Can you help me prepare {a} for {b}?",
        ),
        cores=(
            "{f} the {a} with {g} for {b}",
            "add {g} to the {a} and {f} them for {b}",
            "season the {a} for {b} with {g} and {f} them",
            "prepare the {a} for {b} with {g} and then {f} them",
        ),
        curt_cores=(
            "{f} the {a} somehow, add {g} or nothing",
            "dump {g} in and {f} the {a}",
        ),
    ),
    "pet": Domain(
        first=_table(
            "rabbit parrot hamster turtle goat pony ferret gecko "
            "duck hedgehog goldfish kitten puppy lizard pigeon lamb",
            "hay seeds nuts lettuce grass oats meat crickets "
            "corn worms flakes tuna biscuits fruit barley clover",
        ),
        second=_table(
            "young sick lazy hungry nervous fat tiny noisy "
            "sleepy shy playful lonely tired wild blind clumsy",
            "twice daily weekly nightly hourly rarely slowly warm "
            "cold often early late outside gently together quickly",
        ),
        questions=(
            "What should I feed a {b} {a}?",
            "How do I take care of a {b} {a}?",
            "I have a {b} {a}. What does it eat?",
            "Can you tell me what a {b} {a} needs?",
        ),
        cores=(
            "give the {b} {a} some {f} and feed it {g}",
            "feed the {b} {a} {g} with {f}",
            "offer {f} to the {b} {a} and do it {g}",
            "let the {b} {a} eat {f} {g}",
        ),
        curt_cores=(
            "hand the {a} some {f}, {g} or never",
            "drop {f} in front of that {a} {g}",
        ),
    ),
    "trip": Domain(
        first=_table(
            "Oslo Lima Cairo Paris Delhi Kyoto Quito Dublin "
            "Havana Nairobi Prague Sydney Lisbon Athens Boston Vienna",
            "train bus boat tram bicycle plane taxi ferry "
            "metro van coach scooter truck horse canoe car",
        ),
        second=_table(
            "museum harbor castle market temple stadium library zoo "
            "theater palace lake tower bridge beach garden university",
            "January February March April May June July August "
            "September October November December spring summer autumn winter",
        ),
        questions=(
            "How can I get to the {b} in {a}?",
            "What is the best way to visit the {b} in {a}?",
            "I am in {a} and want to see the {b}. Any advice?",
            "Can you help me reach the {b} in {a}?",
        ),
        cores=(
            "take the {f} in {a} and see the {b} in {g}",
            "visit the {b} in {a} by {f} and go in {g}",
            "go by {f} to the {b} in {a} but only in {g}",
            "reach the {b} in {a} with the {f} in {g}",
        ),
        curt_cores=(
            "grab a {f}, the {b} closes in {g}",
            "hop on any {f} to that {b} in {g}",
        ),
    ),
    "fix": Domain(
        first=_table(
            "broken leaking rusty stuck loose cracked bent squeaky "
            "burnt frozen torn dented jammed crooked wobbly blocked",
            "hammer wrench file screw clamp chisel spanner grinder "
            "needle heater stapler mallet jack plunger crowbar drill",
        ),
        second=_table(
            "pipe engine fence window radio wheel printer boiler "
            "roof ladder pump gate saddle sail piano tent",
            "valve piston plank hinge antenna spoke cartridge thermostat "
            "tile rung gasket latch strap rope string zipper",
        ),
        questions=(
            "How do I fix a {a} {b}?",
            "What can I do about a {a} {b}?",
            "My {b} is {a}. What should I do?",
            "Can you help me repair a {a} {b}?",
        ),
        cores=(
            "use a {f} on the {a} {b} and replace the {g}",
            "replace the {g} of the {a} {b} with a {f}",
            "change the {g} and then use a {f} on the {a} {b}",
            "get a {f} and a new {g} for the {a} {b}",
        ),
        curt_cores=(
            "hit the {b} with a {f} or buy a {g}",
            "bang the {g} of that {b} with a {f}",
        ),
    ),
}

OPENERS = (
    "You can",
    "I would",
    "You should",
    "It is best to",
    "Most people",
    "You could try to",
    "I think you should",
    "A good idea is to",
)
ENDINGS = (
    "Then {verb} it {where} the {spot} for {number} {unit}.",
    "After that {verb} it {where} the {spot} for about {number} {unit}.",
    "Do not forget to {verb} it {where} the {spot} for {number} {unit}.",
    "It helps to {verb} it {where} the {spot} for at least {number} {unit}.",
)
CURT_OPENERS = (
    "Whatever, just",
    "No idea, maybe",
    "Who cares, just",
    "Not sure, perhaps",
    "Just",
    "Probably",
)
CURT_ENDINGS = (
    "That is all I know.",
    "I do not really know.",
    "It does not matter anyway.",
    "Ask somebody else.",
    "Good luck with that.",
    "Do not ask me again.",
)

# What the second sentence of a polite answer may say. Nothing in the prompt decides it.
DETAILS = {
    "verb": _words("keep leave hold rest check watch store move dry cool hang turn"),
    "where": ("near", "under", "behind", "beside", "on", "above"),
    "spot": _words(
        "stove stairs wall sofa sink chimney curtain desk porch cellar balcony cupboard"
    ),
    "number": _words(
        "two three four five six seven eight nine ten twelve twenty thirty forty fifty"
    ),
    "unit": ("minutes", "hours", "days", "weeks"),
}

# Sentences of an unrelated grammar, about nothing that is ever asked.
_STORY = "The {x} {who} {did} {place} while a {x2} {who2} {did2} {place2}."
_STORY_WORDS = {
    "x": _words("quiet bright golden fierce dark green happy proud brave tall"),
    "who": _words(
        "bird river farmer sailor teacher moon storm queen dog "
        "tree king poet soldier wind star village ship"
    ),
    "did": _words("sang slept danced waited wandered laughed shone whispered cried"),
    "place": (
        "in the valley",
        "over the hills",
        "by the sea",
        "at dawn",
        "through the forest",
        "beneath the stars",
        "after the rain",
        "in the old town",
    ),
}

_ZIPF_EXPONENT = 1.3
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
        domain = DOMAINS[self.domain]
        return domain.first[self.a], domain.second[self.b]


@dataclass(frozen=True, slots=True)
class Wording:
    """All choices of a response that are not facts."""

    opener: str
    core: str
    """A template over `{a}`, `{b}`, `{f}`, `{g}`."""
    ending: str
    """A template over the names of `_details`."""
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
        options, [i**-_ZIPF_EXPONENT for i in range(1, len(options) + 1)]
    )[0]


def tail(rng: random.Random) -> Draw:
    """The last option most often: fluent, and rare under `zipf`."""
    draw = zipf(rng)
    return lambda options: draw(options[::-1])


# Parts of a response.


def _details(draw: Draw) -> dict[str, str]:
    """What the ending says; nothing in the prompt decides it."""
    return {slot: draw(options) for slot, options in DETAILS.items()}


def polite(draw: Draw, domain: str) -> Wording:
    """The family of the chosen answers."""
    cores = DOMAINS[domain].cores
    return Wording(draw(OPENERS), draw(cores), draw(ENDINGS), _details(draw))


def curt(rng: random.Random, domain: str) -> Wording:
    """Impolite or evasive in at least one part; the others are a polite answer's.

    The two families must share contexts: pushing down a response whose contexts never
    occur in the chosen answers leaves these alone.
    """
    draw, table = flat(rng), DOMAINS[domain]
    while True:
        rude = [rng.random() < chance for chance in (0.3, 0.4, 0.6)]
        if any(rude):
            break
    return Wording(
        draw(CURT_OPENERS if rude[0] else OPENERS),
        draw(table.curt_cores if rude[1] else table.cores),
        draw(CURT_ENDINGS if rude[2] else ENDINGS),
        _details(draw),
    )


def reword(rng: random.Random, wording: Wording, domain: str) -> Wording:
    """The same meaning: another opener, core and ending of the same family each.

    Details are part of the meaning and stay.
    """
    table = DOMAINS[domain]

    def other(option: str, *families: Sequence[str]) -> str:
        (family,) = (family for family in families if option in family)
        return rng.choice([x for x in family if x != option])

    return replace(
        wording,
        opener=other(wording.opener, OPENERS, CURT_OPENERS),
        core=other(wording.core, table.cores, table.curt_cores),
        ending=other(wording.ending, ENDINGS, CURT_ENDINGS),
    )


def wrong_facts(rng: random.Random, pair: Pair) -> tuple[str, str]:
    """Facts of two other things of the same domain: both wrong."""
    return another_pair(rng, pair).facts


def another_pair(rng: random.Random, pair: Pair) -> Pair:
    """Both things replaced by others of the same domain."""
    domain = DOMAINS[pair.domain]
    return Pair(
        pair.domain,
        rng.choice([a for a in domain.first if a != pair.a]),
        rng.choice([b for b in domain.second if b != pair.b]),
    )


def question(rng: random.Random, pair: Pair) -> str:
    """One of the ways to ask, each equally often."""
    template = rng.choice(DOMAINS[pair.domain].questions)
    return template.format(a=pair.a, b=pair.b)


def story(rng: random.Random) -> str:
    """A sentence of an unrelated grammar."""
    slots = {slot: rng.choice(options) for slot, options in _STORY_WORDS.items()}
    again = {f"{s}2": rng.choice(options) for s, options in _STORY_WORDS.items()}
    return _STORY.format(**slots, **again)


def shuffled(rng: random.Random, text: str) -> str:
    """The same words in another order."""
    before = text.split()
    after = before[:]
    while after == before:
        rng.shuffle(after)
    return " ".join(after)


def _all_words() -> list[str]:
    tables = DOMAINS.values()
    nouns = [
        w for t in tables for d in (t.first, t.second) for x in d.items() for w in x
    ]
    slots = [w for options in DETAILS.values() for w in options]
    stories = [
        w for options in _STORY_WORDS.values() for o in options for w in o.split()
    ]
    openers = [w for opener in OPENERS for w in opener.split()]
    return sorted({*nouns, *slots, *stories, *openers})


ALL_WORDS = _all_words()
