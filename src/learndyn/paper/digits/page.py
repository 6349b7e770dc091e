"""digits.html: the paper's first figure on images of digits, measured and drawn."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from learndyn.paper.claims import Claim
from learndyn.paper.digits.figures import digit_figures
from learndyn.paper.digits.result import DigitsResult
from learndyn.paper.figures import drawn, plain
from learndyn.record.files import write_whole
from learndyn.show.page import (
    Markup,
    document,
    page_in,
    plain_table,
    sentences,
    table,
    text,
)


_SEEDS = 3
"""From the given one on."""

_AGREEMENTS = {
    "predicted, actual": "A K G and actual influence",
    "predicted, actual, rows": "the same within each learnt digit, mean",
    "norms, actual": "norm of K and actual influence",
    "norms, confused": "norm of K and wrong answers",
    "predicted, confused": "A K G and wrong answers",
    "actual, confused": "actual influence and wrong answers",
}
"""Names of the rank correlations, for the table."""


@dataclass(frozen=True, eq=False)
class DigitsPage:
    """What was found, and where the page is."""

    page: Path
    results: tuple[DigitsResult, ...]
    claims: tuple[Claim, ...]

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "page": str(self.page),
            "claims": [claim.to_dict() for claim in self.claims],
            "seeds": [result.seed for result in self.results],
            "agreement": [dict(result.accumulated) for result in self.results],
        }

    def to_text(self) -> str:
        """For people."""
        return "\n".join(
            [*_sentences(self.results, self.claims), "", f"Page: {self.page}"]
        )


def write_digits(
    out: str | Path,
    images: Path | None = None,
    seed: int = 0,
    *,
    overwrite: bool = False,
) -> DigitsPage:
    """Learn digits with three seeds; write `digits.html`, `digits.json`, `figures/`.

    `images` is a folder of MNIST's IDX files; without it scikit-learn's digits serve.

    Raises:
        BadInput: if `out` is a file or holds a page that is not ours and `overwrite` is
            false, scikit-learn is missing, or the images cannot be read.
    """
    from learndyn.paper.digits.claims import digits_claims
    from learndyn.paper.digits.measure import measure_digits

    folder = Path(out)
    page = page_in(folder, "digits.html", overwrite=overwrite)
    results = tuple(measure_digits(seed + i, images) for i in range(_SEEDS))
    claims = tuple(digits_claims(results))
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    body = "".join(
        [
            f"<section>{sentences(_sentences(results, claims))}",
            *(drawn(figure, folder / "figures") for figure in digit_figures(results)),
            "</section><section><h2>Claims</h2>",
            _claims(claims),
            "</section><section><h2>Rank correlations</h2>",
            _agreements(results),
            "</section><section><h2>Settings</h2>",
            plain_table(_facts(results)),
            "</section>",
        ]
    )
    above = "<div>learndyn · Ren &amp; Sutherland 2025, Section 2, Figure 1</div>"
    below = (
        "Answers are observed on images that were not learnt, but for the one image of "
        "the one update. What the kernel predicts is worked out on other images than "
        "those on which the actual changes are seen."
    )
    whole = document("Learning dynamics on images of digits", above, body, below)
    measured = json.dumps([result.to_dict() for result in results])
    for path, content in ((folder / "digits.json", measured), (page, whole)):
        write_whole(path, _writer(content))
    return DigitsPage(page, results, claims)


def _writer(content: str) -> Any:
    return lambda path: path.write_text(content, encoding="utf-8")


def _sentences(results: Sequence[DigitsResult], claims: Sequence[Claim]) -> list[str]:
    passed = sum(claim.outcome == "PASS" for claim in claims)
    ranks = ", ".join(f"{r.accumulated['predicted, actual']:.2f}" for r in results)
    right = np.mean([r.accuracy[-1] for r in results])
    lines = [
        f"{passed} of {len(claims)} claims of the paper's first figure hold on all "
        f"{len(results)} seeds ({results[0].source}).",
        f"The kernel and real updates rank the influence of digit on digit alike: "
        f"Spearman {ranks} over 90 pairs.",
        f"{right:.0%} of the observed images are answered right at the end.",
    ]
    failed = [claim for claim in claims if claim.outcome == "FAIL"]
    return lines + [f"Not reproduced: {claim.says} ({claim.rule})" for claim in failed]


def _claims(claims: Sequence[Claim]) -> str:
    rows = [
        [
            Markup(text(claim.says), running=True),
            claim.outcome,
            f"{claim.holding} of {len(claim.measured)}",
            ", ".join(plain(one.value, 2) for one in claim.measured),
            Markup(text(f"{claim.rule}. {claim.note}"), running=True),
        ]
        for claim in claims
    ]
    return table(("statement", "outcome", "seeds", "measured", "rule and note"), rows)


def _agreements(results: Sequence[DigitsResult]) -> str:
    rows = []
    for result in results:
        moments = [(f"epoch {look.epoch}", look.agreement) for look in result.looks]
        for moment, agreement in [*moments, ("summed", result.accumulated)]:
            cells = [plain(agreement[name], 2) for name in _AGREEMENTS]
            rows.append([f"seed {result.seed}, {moment}", *cells])
    return table(("", *_AGREEMENTS.values()), rows) + (
        "<p class='muted'>Spearman, over the 90 pairs of different digits. All is of "
        "the moment; summed, wrong answers are their mean over training.</p>"
    )


def _facts(results: Sequence[DigitsResult]) -> list[tuple[str, str]]:
    listed = [("images", results[0].source)]
    for name in results[0].facts:
        values = dict.fromkeys(result.facts[name] for result in results)
        listed.append((name, ", ".join(f"{value:g}" for value in values)))
    return listed
