"""The parts of the reproduction that are no finetuning runs: theory, digits, softmax.

Each part gives its claims and its figures from what was measured and kept on disk; of
no seed it gives its claims, not applicable, and no figure.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from learndyn.errors import BadInput
from learndyn.lab.claims import Claim
from learndyn.record.atomic import write_whole
from learndyn.show.plates import Plate


Part = tuple[list[Claim], list[Plate]]

REASON = "reason"
"""Key of a file that says why there is no measurement."""


def measure_theory_of(seed: int, folder: Path, model: Path, path: Path) -> None:
    """Measure one seed's theory on its finished runs and keep it at `path`.

    Where its model or probes do not allow it, the reason is kept instead.
    """
    from learndyn.lab.theory import measure_theory

    runs = {role: folder / role for role in ("sft", "dpo")}
    try:
        found = measure_theory(seed, runs, model=model).to_dict()
    except BadInput as error:  # a model of one's own may not have what it takes
        found = {REASON: str(error)}
    _keep(found, path)


def measure_digits_of(seed: int, images: Path | None, path: Path) -> None:
    """Measure learning on images of digits with one seed and keep it at `path`."""
    from learndyn.lab.digits import measure_digits

    _keep(measure_digits(seed, images).to_dict(), path)


def theory(out: Path, seeds: Sequence[int]) -> Part:
    """The decomposition, the kernels, the proxies, peakiness and residuals."""
    from learndyn.lab.theory_claims import theory_claims
    from learndyn.lab.theory_result import TheoryResult

    paths = [out / "seeds" / str(seed) / "theory.json" for seed in seeds]
    given = _read(paths)
    found = [TheoryResult.from_dict(one) for one in given if REASON not in one]
    refused = [one[REASON] for one in given if REASON in one]
    said = "; ".join(dict.fromkeys(refused))
    claims = list(theory_claims(found))
    if not found:
        return [replace(c, note=said) if said else c for c in claims], []
    from learndyn.show.theory_figures import theory_plates

    if refused:
        left = f"Not measured on {len(refused)} of {len(given)}: {said}"
        claims = [replace(c, note=f"{c.note} {left}".strip()) for c in claims]
    return claims, theory_plates(found)


def digits(out: Path, seeds: Sequence[int]) -> Part:
    """The paper's first figure."""
    from learndyn.lab.digit_result import DigitsResult
    from learndyn.lab.digits import digits_claims

    paths = [out / "digits" / f"{seed}.json" for seed in seeds]
    found = [DigitsResult.from_dict(one) for one in _read(paths)]
    if not found:
        return list(digits_claims(found)), []
    from learndyn.show.digit_figures import digit_plates

    return list(digits_claims(found)), digit_plates(found)


def softmax(out: Path, seeds: Sequence[int]) -> Part:
    """The squeezing effect on one softmax (Appendix E); nothing is kept of it."""
    from learndyn.lab.softmax_claims import softmax_claims

    if not seeds:
        return list(softmax_claims(seeds)), []
    from learndyn.show.softmax_figures import softmax_plates

    return list(softmax_claims(seeds)), softmax_plates()


def _keep(found: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found)  # NaN stays NaN
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def _read(paths: Sequence[Path]) -> list[dict[str, Any]]:
    there = [path for path in paths if path.exists()]
    return [json.loads(path.read_text(encoding="utf-8")) for path in there]
