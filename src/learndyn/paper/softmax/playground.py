"""playground.html: the squeezing effect on one softmax, in figures and to play with.

The figures, the sentences and the claims are complete where scripts are off. The part
to play with computes in the reader's browser, with the formulas of `softmax/step.py` in
a script of ours that stands in the page itself. The page's policy names that script by
its hash, so no other one runs, and nothing is fetched.
"""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from learndyn.paper.claims import Claim
from learndyn.paper.figures import drawn
from learndyn.paper.softmax.claims import softmax_claims
from learndyn.paper.softmax.figures import softmax_figures
from learndyn.record.files import write_whole
from learndyn.show.chart import (
    DOWN,
    HAIRLINE,
    INK,
    LINE,
    MUTED,
    PAPER,
    UP,
    mixed,
)
from learndyn.show.page import (
    POLICY,
    Markup,
    document,
    page_in,
    sentences,
    table,
    text,
)


_SEEDS = (0, 1, 2)
"""Of the claims' random draws."""

_SCRIPT = "\n".join(
    Path(__file__).with_name(name).read_text(encoding="utf-8")
    for name in ("softmax.js", "playground.js")
)

_TITLE = "The squeezing effect on one softmax"

_LEAD = (
    "Pushing one label of a peaky softmax down takes probability from nearly all "
    "other labels too, and gives it to the one that was likeliest already.",
    "π are the probabilities of a softmax, y the label that is pushed, y* the "
    "likeliest other, and s the learning rate times the squared length of the input "
    "x. The step adds s (π − e_y) to the logits.",
    "So label i changes by the factor exp(s (π_i − 1[i = y])) / Z, and i ≠ y gains if "
    "and only if π_i > τ = ln(Z) / s. For small steps τ is Σ π_j² − π_y.",
    "Pulling y up is the exact mirror: y gains, and of the others the likeliest loses "
    "most.",
)

_HEAD = ("statement", "outcome, seeds", "measured", "claim", "holds where; note")

_STYLE = f"""
.try {{ display: flex; flex-wrap: wrap; gap: 16px 28px; align-items: end;
  margin: 18px 0; }}
.try label {{ display: block; font-size: 13px; color: {MUTED}; }}
.try select, .try input, .try button {{ font: inherit; color: {INK};
  background: {PAPER}; border: 1px solid {MUTED}; border-radius: 4px;
  padding: 5px 8px; min-height: 36px; }}
.try input[type=range] {{ padding: 0; width: 200px; accent-color: {UP};
  vertical-align: middle; }}
.try input[type=number] {{ width: 5.5em; }}
.try output {{ font-size: 14px; margin-left: 8px; color: {INK}; }}
.try :focus-visible {{ outline: 3px solid {UP}; outline-offset: 2px; }}
#said {{ min-height: 6.4em; }}
#bars {{ display: block; width: 100%; height: auto; cursor: pointer; }}
#bars .grid {{ stroke: {HAIRLINE}; }}
#bars text {{ font-size: 12px; fill: {MUTED}; text-anchor: middle; }}
#bars .tick, #bars .end {{ text-anchor: end; }}
#bars .name {{ font-size: 13px; font-weight: 650; fill: {INK}; }}
#bars .before {{ fill: {mixed(MUTED, 0.22)}; }}
#bars .loses {{ fill: {LINE["other"]}; }}
#bars .gains, #bars .pulled {{ fill: {UP}; }}
#bars .best {{ fill: {INK}; }}
#bars .pushed {{ fill: {DOWN}; }}
#bars .tau {{ stroke: {INK}; stroke-dasharray: 6 4; }}
@media (max-width: 700px) {{ .try > * {{ width: 100%; }}
  .try input[type=range] {{ width: calc(100% - 5em); }} }}
"""

_CONTROLS = """
<div class='try' role='group' aria-label='Settings'>
<div><label for='v'>labels</label><select id='v'>
<option>10</option><option>50</option><option>1000</option></select></div>
<div><label for='std'>peakiness: standard deviation of the logits</label>
<input id='std' type='range' min='0' max='6' step='0.05'>
<output id='std-value' for='std'></output></div>
<div><label for='y'>label y to push: 1 is the likeliest</label>
<input id='y' type='number' min='1' step='1'>
<button type='button' id='peak'>peak</button>
<button type='button' id='middle'>middle</button>
<button type='button' id='valley'>valley</button></div>
<div><label for='down'>direction</label><select id='down'>
<option value='1'>push down</option><option value='0'>pull up</option></select></div>
<div><label for='s'>strength s of one step</label>
<input id='s' type='range' min='-2' max='1' step='0.02'>
<output id='s-value' for='s'></output></div>
<div><label for='steps'>steps</label>
<input id='steps' type='number' min='1' max='200' step='1'></div>
<div><label for='opt'>optimizer</label><select id='opt'>
<option value='sgd'>SGD</option><option value='momentum'>momentum 0.9</option>
<option value='rmsprop'>RMSprop</option><option value='adam'>Adam</option>
</select></div>
<div><label for='log'>height of bars</label><select id='log'>
<option value='1'>log scale</option><option value='0'>linear</option></select></div>
</div>
<p id='said' class='lead' aria-live='polite'></p>
<figure><svg id='bars' role='img'></svg></figure>
<p class='muted'>Wide grey bars: before. Narrow bars: after; orange the label pushed
down, black y*, blue gains, dark grey loses. Dashed: τ; whose wide bar is taller gains.
Click a bar to push its label.</p>
<div class='scroll' tabindex='0' role='region' aria-label='Who gains'><table>
<thead><tr><th scope='col'>who</th><th scope='col'>π before</th>
<th scope='col'>π after</th><th scope='col'>gain</th>
<th scope='col'>log ratio, nats</th></tr></thead><tbody id='who'></tbody></table></div>
"""


def write_playground(out: str | Path, *, overwrite: bool = False) -> Path:
    """Write `playground.html` and `figures/` into the folder `out`; returns the page.

    Raises:
        BadInput: if `out` is a file, or a page that is not ours is there and
            `overwrite` is false.
    """
    folder = Path(out)
    page = page_in(folder, "playground.html", overwrite=overwrite)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    body = "".join(
        [
            f"<section>{sentences(_LEAD)}",
            *(drawn(figure, folder / "figures") for figure in softmax_figures()),
            "</section>",
            _claims(softmax_claims(_SEEDS)),
            "<section id='try'><h2>Try it</h2><noscript><p class='note'>This part "
            "computes in your browser and needs its scripts. All that stands above is "
            "complete without.</p></noscript>",
            f"<div id='try-controls' hidden>{_CONTROLS}</div></section>",
        ]
    )
    above = "<div>learndyn · Ren &amp; Sutherland 2025, Section 3.3, Appendix E</div>"
    below = (
        "One softmax layer with a row of weights for each label; in a network labels "
        "share weights, so this tells the direction, not the size. The script is in "
        "the page, nothing is fetched, and the settings are in the address."
    )
    whole = _with_script(document(_TITLE, above, body, below), _STYLE, _SCRIPT)
    write_whole(page, lambda path: path.write_text(whole, encoding="utf-8"))
    return page


def _with_script(page: str, style: str, script: str) -> str:
    """The same page with a style and a script, the only one its policy lets run."""
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode()
    policy = (
        f"{POLICY}; script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    head, body = page.split("</style></head>", 1)
    inside, end = body.rsplit("</body>", 1)
    return (
        f"{head.replace(POLICY, policy, 1)}{style}</style></head>"
        f"{inside}<script>{script}</script></body>{end}"
    )


def _claims(claims: Sequence[Claim]) -> str:
    rows = [
        [
            _running(claim.says),
            f"{claim.outcome}, {claim.holding} of {len(claim.measured)}",
            f"{_measured(claim)} {claim.unit}",
            claim.source.removeprefix("Appendix E, "),
            _running(f"{claim.rule}. {claim.note}".strip()),
        ]
        for claim in claims
    ]
    passed = sum(claim.outcome == "PASS" for claim in claims)
    return (
        f"<section><h2>{passed} of {len(claims)} statements of Appendix E hold</h2>"
        + table(_HEAD, rows)
        + "</section>"
    )


def _measured(claim: Claim) -> str:
    """The seeds' numbers, once if they agree."""
    values = [f"{one.value:.3g}" for one in claim.measured]
    return values[0] if len(set(values)) == 1 else ", ".join(values)


def _running(words: str) -> Markup:
    """A table cell of running text."""
    return Markup(text(words), running=True)
