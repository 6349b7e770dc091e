"""reproduction.html: every claim, what was measured, and the figure that shows it.

Static: no script, nothing fetched. Every text that is not ours goes through `text()`.
"""

import math
from collections.abc import Sequence, Set
from pathlib import Path

from learndyn.diagnose.numbers import figures
from learndyn.paper.claims import Claim, Measured, Outcome
from learndyn.paper.figures import PaperFigure, embedded, plain
from learndyn.record.files import write_whole
from learndyn.show.chart import INK, LINE, MUTED, TEXT
from learndyn.show.page import (
    Markup,
    document,
    plain_table,
    table,
    text,
)


_COLOURS: dict[Outcome, str] = {
    "PASS": TEXT["irrelevant"],
    "FAIL": TEXT["rejected"],
    "N-A": MUTED,
}
"""Green, brown and grey; the word in it says the same."""


def write_page(
    out: Path,
    claims: Sequence[Claim],
    paper_figures: Sequence[PaperFigure],
    facts: Sequence[tuple[str, str]],
) -> Path:
    """Write `reproduction.html` and `figures/` into `out`; returns the page."""
    folder = out / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    named = {paper_figure.name for paper_figure in paper_figures}
    lost = [c for c in claims if c.measured and c.figure not in named]
    parts = [
        _summary(claims, paper_figures),
        _every(claims, named),
        "<section><h2>Figures</h2>",
    ]
    parts += [_figure(paper_figure, claims, folder) for paper_figure in paper_figures]
    parts.append("</section>")
    if lost:
        parts.append(_without_figure(lost))
    parts.append("<section><h2>Settings, versions and times</h2>")
    parts.append(plain_table(list(facts)))
    parts.append("</section>")
    above = "<div>learndyn · Learning Dynamics of LLM Finetuning (ICLR 2025)</div>"
    below = (
        "A claim is reproduced where its rule holds on every seed that could test it. "
        "Intervals are 95 % paired bootstrap over prompts of one seed, and a rule that "
        "names an interval must hold for all of it. A claim that failed is shown "
        "failing: it is a result, not an error."
    )
    whole = document("The paper, reproduced", above, "".join(parts), below)
    page = out / "reproduction.html"
    write_whole(page, lambda path: path.write_text(whole, encoding="utf-8"))
    return page


def _summary(claims: Sequence[Claim], paper_figures: Sequence[PaperFigure]) -> str:
    counts = {o: sum(claim.outcome == o for claim in claims) for o in _COLOURS}
    return (
        f"<p class='lead'>{counts['PASS']} of {len(claims)} claims reproduced, "
        f"{counts['FAIL']} failed, {counts['N-A']} not applicable.</p>"
        f"<p class='muted'>{len(paper_figures)} figures, as PNG and SVG in the folder "
        "figures; the claims as JSON in claims.json.</p>"
    )


def _every(claims: Sequence[Claim], drawn: Set[str]) -> str:
    """All claims at a glance; those that nothing could test, folded."""
    tested = [claim for claim in claims if claim.measured]
    rest = [claim for claim in claims if not claim.measured]
    parts = ["<section><h2>Claims</h2>"]
    if tested:
        head = ("outcome", "claim", "holds on", "measured; bold where it fails")
        parts.append(table(head, [_row(claim, drawn) for claim in tested]))
    if rest:
        listed = "".join(
            f"<dt>{text(claim.says)}</dt><dd class='muted'>{text(claim.source)}: "
            f"{text(claim.note)}</dd>"
            for claim in rest
        )
        parts.append(
            f"<details><summary>{len(rest)} not applicable</summary><dl>{listed}</dl>"
            "</details>"
        )
    return "".join([*parts, "</section>"])


def _row(claim: Claim, drawn: Set[str]) -> list[str | Markup]:
    source = (
        f"<br><span class='limits' style='color:{MUTED}'>{text(claim.source)}</span>"
    )
    return [
        _chip(claim.outcome),
        Markup(_named(claim, drawn) + source, running=True),
        f"{claim.holding} of {len(claim.measured)}",
        Markup("; ".join(_one(claim, one) for one in claim.measured), running=True),
    ]


def _chip(outcome: Outcome) -> Markup:
    """An outcome as a word in its colour."""
    return Markup(
        f"<span style='color:{_COLOURS[outcome]};border:1px solid {_COLOURS[outcome]};"
        f"border-radius:3px;padding:0 6px;font-size:13px;font-weight:600;"
        f"white-space:nowrap'>{text(outcome)}</span>"
    )


def _named(claim: Claim, drawn: Set[str]) -> str:
    """What a claim says, a link to its figure where that was drawn."""
    if claim.figure not in drawn:
        return text(claim.says)
    return f"<a href='#{text(claim.figure)}' style='color:{INK}'>{text(claim.says)}</a>"


def _one(claim: Claim, one: Measured) -> str:
    """One seed's number; bold where it does not hold."""
    digits = _digits(claim)
    number = _number(one.value, digits)
    limits = ""
    if one.low is not None and one.high is not None:
        low, high = _number(one.low, digits), _number(one.high, digits)
        limits = f" <span class='limits'>[{text(low)}, {text(high)}]</span>"
    shown = text(number) if one.holds else f"<b>{text(number)}</b>"
    return f"{shown}{limits}"


def _number(value: float, digits: int | None) -> str:
    if digits is None:
        return figures(value, 2)
    return plain(value, digits)


def _digits(claim: Claim) -> int | None:
    """Decimals that show the largest value with three figures or so.

    None for values all below a thousandth: these are written with two figures.
    """
    shown = [v for m in claim.measured for v in (m.value, m.low, m.high)]
    values = [v for v in shown if v is not None and math.isfinite(v)]
    largest = max(map(abs, values), default=0.0)
    if all(value == round(value) for value in values):
        return 0
    if largest < 1e-3:
        return None
    return next((d for d, least in ((1, 10.0), (2, 1.0)) if largest >= least), 3)


def _figure(paper_figure: PaperFigure, claims: Sequence[Claim], folder: Path) -> str:
    """One figure with the claims that it shows."""
    about = (
        f"<p class='muted'>{text(paper_figure.about)}</p>" if paper_figure.about else ""
    )
    shown = "".join(_beside(one) for one in claims if one.figure == paper_figure.name)
    return (
        f"<h3 id='{text(paper_figure.name)}'>{text(paper_figure.paper)}</h3>"
        f"{embedded(paper_figure, folder)}{about}{shown}"
    )


def _beside(claim: Claim) -> str:
    """A claim below its figure: outcome, statement, rule, numbers."""
    edge = _COLOURS[claim.outcome] if claim.outcome != "N-A" else LINE["other"]
    note = f" {text(claim.note)}" if claim.note and claim.measured else ""
    unit = f" ({text(claim.unit)})" if claim.measured else ""
    return (
        f"<div style='border-left:3px solid {edge};padding:2px 0 2px 12px;"
        "margin:14px 0;max-width:76ch'>"
        f"<p style='margin:0'>{_chip(claim.outcome).html} {text(claim.says)}</p>"
        f"<p class='muted' style='margin:2px 0'>{text(claim.source)}. Rule: "
        f"{text(claim.rule)}.{note}</p>"
        f"<p style='margin:2px 0;font-size:14px'>{_by_seed(claim)}{unit}</p></div>"
    )


def _by_seed(claim: Claim) -> str:
    if not claim.measured:
        return text(claim.note)
    return "; ".join(
        f"<span class='muted'>{text(_seed(one))}</span> {_one(claim, one)}"
        for one in claim.measured
    )


def _seed(one: Measured) -> str:
    return f"seed {one.seed}:" if isinstance(one.seed, int) else f"{one.seed}:"


def _without_figure(claims: Sequence[Claim]) -> str:
    parts = ["<section><h2>Claims without a figure here</h2>"]
    parts += [_beside(claim) for claim in claims]
    return "".join([*parts, "</section>"])
