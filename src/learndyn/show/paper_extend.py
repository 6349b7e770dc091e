"""The paper's figures of extend: SFT on both answers, then the same DPO."""

from collections.abc import Sequence
from typing import Any

from learndyn.diagnose.paths import GREEDY
from learndyn.lab.recorded import Recorded
from learndyn.show.canvas import Sheet
from learndyn.show.palette import Style, style_of
from learndyn.show.panels import Panel, small_multiples
from learndyn.show.paper_dpo import ROLES, compared
from learndyn.show.paper_lines import ends, line, lines, sentence, told
from learndyn.show.paper_sft import of_seeds


DASHED = (5.0, 2.5)


def extend_sft(seeds: Sequence[Recorded], width: int) -> Sheet:
    """Levels of chosen and rejected during the two ways of SFT."""
    panels = []
    for kind in ("chosen", "rejected"):
        base = style_of(kind)
        plain = Style(base.line, base.text, DASHED, 1.6, base.band)
        solid = Style(base.line, base.text, (), 2.2, base.band)
        options: Any = {"clock": "share", "level": True, "skip": 1}
        found = lines(
            line(seeds, "sft", kind, name="plain", style=plain, **options),
            line(seeds, "extend-sft", kind, name="extend", style=solid, **options),
        )
        if found:
            panels.append(Panel(kind, found, "% of the updates", signed=False))
    rejected = [
        told(name, ends(seeds, role, "rejected"))
        for name, role in (("extend", "extend-sft"), ("plain SFT", "sft"))
    ]
    title = f"Rejected during SFT: {sentence(*rejected)} nats"
    unit = f"log π, nats per response, without its jump at the start{of_seeds(seeds)}"
    return small_multiples(width, title, unit, panels)


def extend_dpo(seeds: Sequence[Recorded], width: int) -> Sheet:
    """DPO after extend against plain DPO, at equal updates."""
    found = [
        told(name, ends(seeds, role, kind))
        for kind, role, name in (
            ("chosen", "extend-dpo", "chosen"),
            ("chosen", "dpo", "plain"),
            (GREEDY, "extend-dpo", "the favourites"),
            (GREEDY, "dpo", "plain"),
        )
    ]
    pairs = [sentence(found[0], found[1]), sentence(found[2], found[3])]
    title = f"DPO after extend: {'; '.join(p for p in pairs if p)} nats"
    return compared(seeds, ("dpo", "extend-dpo"), title, width)


def extend_matched(seeds: Sequence[Recorded], width: int) -> Sheet:
    """Chosen and the favourites at equal margin, and at equal gap."""
    panels = []
    for clock, level in (("margin", False), ("gap", True)):
        for kind in ("chosen", GREEDY):
            found = []
            for role in ("dpo", "extend-dpo"):
                name, style = ROLES[role]
                found.append(
                    line(
                        seeds,
                        role,
                        kind,
                        name="plain" if role == "dpo" else name,
                        style=style,
                        clock=clock,
                        level=level,
                    )
                )
            if lines(*found):
                what = "log π" if level else "change"
                heading = f"{kind}: {what} by {clock}"
                panel = Panel(heading, lines(*found), f"{clock}, nats", 1, not level)
                panels.append(panel)
    title = "Extend against plain DPO where both have moved equally far"
    unit = (
        "nats per response; margin: change of log π(chosen) − log π(rejected), gap: "
        f"that difference itself{of_seeds(seeds)}"
    )
    return small_multiples(width, title, unit, panels)
