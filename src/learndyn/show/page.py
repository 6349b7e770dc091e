"""The pieces of the page: escaping, tables, figures, the frame around them.

Text from outside reaches the page through `text()` alone. The page holds no script and
asks the network for nothing; its policy forbids both. Figures are SVG images inside
data addresses, where a browser runs no script either.
"""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learndyn.diagnose.intervals import Interval
from learndyn.diagnose.numbers import bracket, nats
from learndyn.errors import BadInput
from learndyn.record.files import visible
from learndyn.show.chart import (
    DOWN,
    HAIRLINE,
    INK,
    LINE,
    MUTED,
    PAPER,
    TEXT,
    UP,
    Chart,
    mixed,
    style_of,
    svg_of,
)


POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

_GENERATOR = '<meta name="generator" content="learndyn">'
"""By this a page is known as ours."""

TINTS = (0.14, 0.28, 0.42, 0.56)
"""How thickly a colour lies under a token, at each level of its change."""


def _strip_style() -> str:
    """Styles of tokens: u1 to u4 for up, d1 to d4 for down, and what dominated."""
    levels = [
        f".{side}{level} {{ background: {mixed(colour, tint)}; }}"
        for side, colour in (("u", UP), ("d", DOWN))
        for level, tint in enumerate(TINTS, start=1)
    ]
    return "\n".join(
        [
            ".strip { font-size: 14px; line-height: 1.2; margin: 6px 0 22px; }",
            ".t { display: inline-block; vertical-align: top; white-space: pre-wrap;",
            "  overflow-wrap: anywhere; max-width: 100%; padding: 2px 1px 1px;",
            "  margin: 0 1px 5px 0; border-bottom: 3px solid transparent;",
            "  print-color-adjust: exact; -webkit-print-color-adjust: exact; }",
            f".t .n {{ display: block; font-size: 11px; color: {INK}; }}",
            f".pull {{ border-bottom: 3px solid {UP}; }}",
            f".push {{ border-bottom: 3px double {DOWN}; }}",
            f".at {{ border-bottom: 2px solid {INK}; font-weight: 600;",
            "  white-space: pre-wrap; }",
            *levels,
        ]
    )


_STYLE = f"""
:root {{ color-scheme: light; }}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: {PAPER}; color: {INK}; font: 16px/1.55 Inter,
  "Segoe UI", system-ui, -apple-system, Roboto, "Noto Sans", sans-serif;
  font-variant-numeric: tabular-nums; }}
main, header, footer {{ max-width: 1160px; margin: 0 auto; padding: 0 28px; }}
header {{ padding-top: 28px; color: {MUTED}; font-size: 14px; }}
h1 {{ font-size: 32px; line-height: 1.2; letter-spacing: -.02em; font-weight: 650;
  margin: 6px 0 10px; overflow-wrap: anywhere; text-wrap: balance; color: {INK}; }}
h2 {{ font-size: 24px; line-height: 1.25; letter-spacing: -.015em; font-weight: 650;
  margin: 44px 0 6px; padding-top: 28px; border-top: 1px solid {HAIRLINE};
  overflow-wrap: anywhere; }}
section:first-child h2 {{ margin-top: 20px; }}
.state {{ color: {MUTED}; font-size: 14px; margin: 44px 0 0; padding-top: 28px;
  border-top: 1px solid {HAIRLINE}; max-width: none; overflow-wrap: anywhere; }}
section:first-child > section:first-child .state {{ margin-top: 20px; }}
.chip {{ display: inline-block; border: 2px solid {MUTED}; border-radius: 4px;
  padding: 0 8px; font-weight: 650; letter-spacing: .04em; color: {MUTED};
  margin-right: 6px; }}
.chip.squeeze {{ border-color: {TEXT["rejected"]}; color: {TEXT["rejected"]}; }}
.chip.fit {{ border-color: {TEXT["chosen"]}; color: {TEXT["chosen"]}; }}
.chip.collapse {{ border-color: {INK}; color: {PAPER}; background: {INK};
  print-color-adjust: exact; -webkit-print-color-adjust: exact; }}
h2.answer {{ border: 0; margin-top: 0; padding-top: 10px; font-size: 27px;
  max-width: 34em; text-wrap: balance; }}
.three {{ display: flex; flex-wrap: wrap; gap: 12px 44px; margin: 22px 0; }}
.three dt {{ font-size: 13px; font-weight: 500; color: {MUTED}; margin: 0; }}
.three dd {{ font-size: 24px; font-weight: 650; }}
.three .limits, td .limits {{ color: {MUTED}; font-weight: 400; }}
.three .limits {{ font-size: 14px; }}
.remedy {{ background: {mixed(LINE["chosen"], 0.06)}; padding: 4px 18px; margin: 22px 0;
  max-width: 72ch; border-left: 3px solid {TEXT["chosen"]}; }}
.remedy h3 {{ margin: 10px 0 0; font-size: 16px; }}
code {{ font: 13px/1.5 ui-monospace, Menlo, Consolas, monospace; display: block;
  white-space: pre-wrap; overflow-wrap: anywhere; background: {INK}; color: {PAPER};
  padding: 8px 12px; border-radius: 4px; max-width: 84ch; }}
a {{ color: {TEXT["chosen"]}; }}
h3 {{ font-size: 18.5px; font-weight: 650; margin: 36px 0 6px; }}
p, ul.said {{ max-width: 68ch; }}
ul.said {{ padding-left: 1.1em; margin: 10px 0; }}
ul.said li {{ margin: 5px 0; }}
.lead {{ font-size: 18.5px; margin: 10px 0; }}
.muted {{ color: {MUTED}; font-size: 14px; }}
.note {{ border-left: 3px solid {TEXT["rejected"]}; padding: 2px 0 2px 12px;
  max-width: 68ch; }}
figure {{ margin: 28px 0; }}
figure img {{ display: block; width: 100%; height: auto; }}
.scroll {{ overflow-x: auto; margin: 10px 0; }}
table {{ border-collapse: collapse; font-size: 14px; min-width: 100%; }}
th, td {{ text-align: right; padding: 5px 0 5px 18px; white-space: nowrap;
  border-bottom: 1px solid {HAIRLINE}; vertical-align: top; }}
th {{ color: {MUTED}; font-weight: 500; }}
th:first-child, td:first-child {{ text-align: left; padding-left: 0; }}
table.plain {{ min-width: 0; width: 100%; table-layout: fixed; }}
table.plain td {{ text-align: left; white-space: pre-wrap; overflow-wrap: anywhere; }}
table.plain td:first-child {{ width: 30%; color: {MUTED}; }}
td.said, th.said {{ text-align: left; white-space: normal; min-width: 22em;
  overflow-wrap: anywhere; }}
dl {{ margin: 10px 0; }}
dt {{ font-size: 14px; font-weight: 600; margin-top: 12px; overflow-wrap: anywhere; }}
dd {{ margin: 0; font-size: 14px; white-space: pre-wrap; overflow-wrap: anywhere;
  max-width: 84ch; }}
summary {{ cursor: pointer; font-weight: 600; margin: 14px 0; }}
footer {{ color: {MUTED}; font-size: 13px; padding-top: 36px; padding-bottom: 44px; }}
@media (max-width: 700px) {{
  main, header, footer {{ padding-left: 18px; padding-right: 18px; }}
  h1 {{ font-size: 25px; }} h2, h2.answer {{ font-size: 21px; }}
  .lead {{ font-size: 17px; }}
  table.plain td:first-child {{ width: 44%; }}
}}
{_strip_style()}
@media print {{ .scroll {{ overflow: visible; }} figure {{ break-inside: avoid; }} }}
"""


@dataclass(frozen=True, slots=True)
class Markup:
    """HTML that is safe: made here, with every outside text escaped."""

    html: str
    running: bool = False
    """Whether it is running text: it then wraps inside its table cell."""


def text(value: Any) -> str:
    """Any value from outside as HTML text, also safe inside a quoted attribute."""
    return html.escape(visible(str(value)), quote=True)


def cut(value: str, length: int = 600) -> str:
    """At most `length` characters of a text; how many were cut is said."""
    if len(value) <= length:
        return value
    return f"{value[:length]} … ({len(value) - length} more characters)"


def coloured(kind: str) -> Markup:
    """A kind's name in the colour of its family."""
    return Markup(f"<span style='color:{style_of(kind).text}'>{text(kind)}</span>")


def interval_cell(interval: Interval, digits: int = 1) -> Markup:
    """A mean with its limits in grey."""
    return Markup(
        f"{text(nats(interval.mean, digits))} "
        f"<span class='limits'>{text(bracket(interval, digits))}</span>"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str | Markup]]) -> str:
    """A table of numbers; it scrolls sideways by itself where it is too wide."""
    body = "".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in rows)
    prose = [any(_running(row[column]) for row in rows) for column in range(len(head))]
    top = "".join(
        f"<th scope='col'{_style(running)}>{text(name)}</th>"
        for name, running in zip(head, prose, strict=True)
    )
    return (
        f"<div class='scroll' tabindex='0' role='region' aria-label='Table'><table>"
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def plain_table(rows: Sequence[tuple[str, str]]) -> str:
    """Names and values, one pair per row."""
    body = "".join(
        f"<tr><td>{text(name)}</td><td>{text(value)}</td></tr>" for name, value in rows
    )
    return f"<table class='plain'><tbody>{body}</tbody></table>"


def sentences(texts: Sequence[str]) -> str:
    """The first sentence larger, the others as a list."""
    first, rest = texts[0], texts[1:]
    items = "".join(f"<li>{text(sentence)}</li>" for sentence in rest)
    listed = f"<ul class='said'>{items}</ul>" if rest else ""
    return f"<p class='lead'>{text(first)}</p>{listed}"


def details(summary: str, inner: str) -> str:
    """Something that is folded away until it is asked for; `inner` is HTML."""
    return f"<details><summary>{text(summary)}</summary>{inner}</details>"


def section(anchor: str, inner: str) -> str:
    """A part of the page that can be linked to; "" where `inner` is."""
    return f"<section id='{text(anchor)}'>{inner}</section>" if inner else ""


def link(anchor: str, name: str) -> Markup:
    """To a section of the same page."""
    return Markup(f"<a href='#{text(anchor)}'>{text(name)}</a>")


def figure(wide: Chart, narrow: Chart, alt: str) -> str:
    """One figure in two drawings; the browser shows the one that fits."""
    return (
        "<figure><picture>"
        f"<source media='(max-width: 700px)' srcset='{_address(narrow)}' "
        f"width='{narrow.width}' height='{narrow.height}'>"
        f"<img src='{_address(wide)}' alt='{text(alt)}' "
        f"width='{wide.width}' height='{wide.height}'></picture></figure>"
    )


def document(title: str, above: str, body: str, below: str) -> str:
    """The whole page."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
{_GENERATOR}
<meta name="referrer" content="no-referrer">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text(title)}</title>
<style>{_STYLE}</style></head>
<body><header>{above}<h1>{text(title)}</h1></header>
<main>{body}</main>
<footer>{text(below)}</footer></body></html>
"""


def page_in(folder: Path, name: str, *, overwrite: bool) -> Path:
    """Where a page of ours may be written.

    Raises:
        BadInput: if `folder` is a file, or a page that is not ours is there and
            `overwrite` is false.
    """
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{folder} is a file. Name a folder for the page.")
    page = folder / name
    if page.exists() and not overwrite and not _is_ours(page):
        raise BadInput(
            f"{page} was not written by learndyn, so it is left alone. Choose another "
            "out=, or replace it with overwrite=True."
        )
    return page


def _is_ours(page: Path) -> bool:
    with page.open("rb") as file:
        return _GENERATOR.encode() in file.read(2000)


def _cell(cell: str | Markup) -> str:
    if not isinstance(cell, Markup):
        return f"<td>{text(cell)}</td>"
    return f"<td{_style(cell.running)}>{cell.html}</td>"


def _running(cell: str | Markup) -> bool:
    return isinstance(cell, Markup) and cell.running


def _style(running: bool) -> str:
    return " class='said'" if running else ""


def _address(chart: Chart) -> str:
    data = base64.b64encode(svg_of(chart).encode("utf-8")).decode("ascii")
    return f"data:image/svg+xml;base64,{data}"
