"""Colour is the family of a kind, the dash its member; the same in every picture.

The colours keep an OKLab distance of 10 or more between any two families for normal,
protan, deutan and tritan sight, a contrast of 3 for lines and 4.5 for text on `PAPER`.
A family that is not listed is drawn as `other`: nothing from a file names a colour.
"""

from dataclasses import dataclass

from learndyn.diagnose.paths import GREEDY
from learndyn.probes.kinds import FAMILIES, family


PAPER = "#FCFCFA"
INK = "#14171C"
MUTED = "#59616E"
HAIRLINE = "#E3E4E0"

LINE: dict[str, str] = {
    "chosen": "#0A4A9E",
    "rejected": "#B4380A",
    "irrelevant": "#2A9468",
    "random": "#A86CBB",
    "greedy": INK,
    "other": "#6B7280",
}
TEXT: dict[str, str] = LINE | {
    "irrelevant": "#1B7A53",
    "random": "#8B4AA0",
    "other": MUTED,
}

PART: dict[str, str] = {
    "pull": LINE["chosen"],
    "push": LINE["rejected"],
    "history": "#9B59C6",
    "decay": "#3A3F47",
    "other": "#8A9099",
    "gradient": LINE["irrelevant"],
}
"""Colours of the parts of an update, as far from each other as those of families, but
for `gradient`, which is pull, push and other in one. A part that is not listed is
drawn as `other`."""

UP, DOWN = LINE["chosen"], LINE["rejected"]
"""Directions, in pictures where colour is a number."""

Dash = tuple[float, ...]
SOLID: Dash = ()
DASHES: dict[str, Dash] = {
    "semantic": (6.0, 3.0),
    "test": (6.0, 3.0),
    "words": (6.0, 3.0),
    "format": (2.0, 2.5),
    "human": (2.0, 2.5),
    "initial": (10.0, 3.0, 2.0, 3.0),
}
"""Dash of a member, the part of a kind after the first underscore; lengths in pt."""

MAIN_WIDTH = 2.4
THIN_WIDTH = 1.4


@dataclass(frozen=True, slots=True)
class Style:
    """How one kind is drawn."""

    line: str
    text: str
    """Darker than `line` where that is too light to read."""
    dash: Dash
    width: float
    band: float
    """Opacity of the interval."""


def style_of(kind: str) -> Style:
    """The style of a kind, or of the greedy path."""
    if kind == GREEDY:
        return Style(LINE["greedy"], TEXT["greedy"], SOLID, 2.8, 0.2)
    name = family(kind)
    member = kind.partition("_")[2]
    main = kind in FAMILIES
    return Style(
        LINE[name],
        TEXT[name],
        SOLID if main else DASHES.get(member, SOLID),
        MAIN_WIDTH if main else THIN_WIDTH,
        0.2 if main else 0.12,
    )


def part_colour(name: str) -> str:
    """The colour of a part of an update."""
    return PART.get(name, PART["other"])


def mixed(colour: str, share: float, paper: str = PAPER) -> str:
    """`colour` laid thinly over `paper`: 0 is the paper, 1 the colour."""
    pairs = ((int(c[i : i + 2], 16) for c in (colour, paper)) for i in (1, 3, 5))
    return "#" + "".join(f"{round(share * a + (1 - share) * b):02X}" for a, b in pairs)


def contrast(colour: str, paper: str = PAPER) -> float:
    """WCAG 2 contrast ratio of two `#RRGGBB` colours, 1 to 21."""
    light, dark = sorted((_luminance(colour), _luminance(paper)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
