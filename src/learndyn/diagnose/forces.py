r"""Why one update moved what it moved: actual beside predicted, and the parts of it.

All means are over the prompts of a kind; their intervals resample prompts, the same
ones for every part, so that parts and whole stay paired. Over all watched probes o

    relative error  =  ||predicted - actual|| / ||actual||
    slope           =  <predicted, actual> / ||predicted||^2     1: the size is right
    r2              =  1 - ||actual - predicted||^2 / ||actual - its mean||^2
    share of a part =  <part, predicted> / ||predicted||^2       shares add up to 1
    cancellation    =  sum |parts| / sum |predicted|             1: nothing cancels

The norms are over probes, the summed log-probabilities in nats. A part that is as large
as the others and of the other sign has a share below zero.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float

from learndyn.diagnose.influence import InfluenceSummary, summed_up
from learndyn.diagnose.intervals import Interval, paired_bootstrap
from learndyn.diagnose.numbers import Scale
from learndyn.errors import BadInput
from learndyn.probes.kinds import in_paper_order
from learndyn.record.forces import Forces


DUST = 1e-3
"""Share of the change below which the rounding of weights is not shown."""

TRUST = 0.3
"""Relative error above which the parts explain another change than the actual one."""

NOISE_FACTOR = 3.0
"""A change counts as seen from this many standard deviations of its rounding on."""


@dataclass(frozen=True, slots=True)
class Fit:
    """How well the predicted changes of all probes agree with the actual ones."""

    relative_error: float
    """NaN where nothing was measured or nothing moved, like all the others."""
    r2: float
    slope: float
    above_noise: float
    """Share of probes that moved by more than `NOISE_FACTOR` times their rounding; NaN
    where the rounding is not known."""
    probes: int

    @property
    def trusted(self) -> bool:
        """Whether the prediction is close enough for its parts to explain anything."""
        return self.relative_error <= TRUST

    @property
    def noisy(self) -> bool:
        """Whether most changes drown in the rounding of the actual values."""
        return self.above_noise < 0.5


@dataclass(frozen=True)
class KindForces:
    """One kind: means over its prompts, nats per response."""

    kind: str
    actual: Interval
    predicted: Interval
    parts: dict[str, Interval]
    groups: dict[str, float]
    cancellation: float
    """sum |parts| / |predicted|, of the means; NaN without parts."""


@dataclass(frozen=True, eq=False)
class Explanation:
    """What one update did, kind by kind, and which forces did it."""

    step: int
    kinds: list[KindForces]
    fit: Fit
    shares: dict[str, float]
    """Of each part in the predicted change; they add up to 1."""
    layers: dict[str, float]
    """The same of each group."""
    cancellation: float
    gap: float
    """||sum of parts - predicted|| / ||predicted||; NaN without parts."""
    lost: int
    """Probes left out because a value of theirs is not finite."""
    prompts: int
    influence: InfluenceSummary | None
    info: dict[str, Any]

    @cached_property
    def scale(self) -> Scale:
        """The unit of all numbers about kinds: chosen by the largest of them."""
        return Scale.of(
            interval.mean
            for kind in self.kinds
            for interval in (kind.actual, kind.predicted, *kind.parts.values())
        )

    @property
    def parts(self) -> list[str]:
        """Names of the parts, in the order of the record."""
        return list(self.shares)

    def of(self, kind: str) -> KindForces | None:
        """The forces on one kind, if it was watched."""
        return next((found for found in self.kinds if found.kind == kind), None)

    def to_dict(self, *, text: bool = True) -> dict[str, Any]:
        """All numbers, in nats, for JSON; no training text if `text` is false."""
        top = self.influence
        return {
            "step": self.step,
            "fit": _fields(self.fit) | {"trusted": self.fit.trusted},
            "kinds": [_plain_kind(kind) for kind in self.kinds],
            "shares": self.shares,
            "layers": self.layers,
            "cancellation": self.cancellation,
            "parts_missing": self.gap,
            "probes_left_out": self.lost,
            "prompts": self.prompts,
            "top_tokens": [] if top is None else top.to_list(text=text),
            "info": self.info,
        }


def explain(forces: Forces, probes: pa.Table, *, seed: int = 0) -> Explanation:
    """Sum one record up; `probes` is the run's table of probes.

    Rounding of the weights that is below `DUST` of the change is left out.

    Raises:
        BadInput: if the record is of probes that the table lacks, or of none.
    """
    ids, known = forces.probe_ids, len(probes)
    if len(ids) == 0 or ids.min() < 0 or ids.max() >= known:
        raise BadInput(
            f"the forces of update {forces.step} are of {len(ids)} probes, rows "
            f"{ids.tolist()[:1]} to {ids.tolist()[-1:]} of probes.parquet, which has "
            f"{known} rows. Record them again with this run's probes."
        )
    kind_of, prompt_of = (
        np.array(probes[name].to_pylist())[ids] for name in ("kind", "prompt_id")
    )
    forces = _without_dust(forces)
    usable = _usable(forces)
    whole = forces.predicted[usable]
    parts = {name: values[usable] for name, values in forces.parts.items()}
    groups = {name: values[usable] for name, values in forces.groups.items()}
    return Explanation(
        forces.step,
        kinds=list(_kinds(forces, usable, kind_of, seed)),
        fit=_fit(forces, usable),
        shares={name: _share(values, whole) for name, values in parts.items()},
        layers={name: _share(values, whole) for name, values in groups.items()},
        cancellation=_cancellation(list(parts.values()), whole),
        gap=_gap(list(parts.values()), whole),
        lost=int(np.sum(~usable)),
        prompts=len(set(prompt_of[usable].tolist())),
        influence=None if forces.influence is None else summed_up(forces.influence),
        info=forces.info,
    )


def _without_dust(forces: Forces) -> Forces:
    """The same without the part "rounding" where that is none to speak of."""
    dust = forces.parts.get("rounding")
    known = forces.predicted[np.isfinite(forces.predicted)]
    if dust is None or not np.linalg.norm(dust) < DUST * np.linalg.norm(known):
        return forces
    kept = [name for name in forces.parts if name != "rounding"]
    return replace(
        forces,
        parts={name: forces.parts[name] for name in kept},
        token_parts={n: v for n, v in forces.token_parts.items() if n in kept},
    )


def _usable(forces: Forces) -> Bool[np.ndarray, " probe"]:
    """Probes with every value finite: else means of parts and whole are of others."""
    values = [forces.predicted, *forces.parts.values(), *forces.groups.values()]
    if np.isfinite(forces.actual).any():  # where nothing was measured, nothing is lost
        values.append(forces.actual)
    return np.all([np.isfinite(v) for v in values], axis=0)


def _kinds(
    forces: Forces, usable: Bool[np.ndarray, " probe"], kind_of: np.ndarray, seed: int
) -> Iterator[KindForces]:
    for kind in in_paper_order(set(kind_of.tolist())):
        rows = usable & (kind_of == kind)
        if not rows.any():
            continue
        columns = [forces.actual, forces.predicted, *forces.parts.values()]
        band = paired_bootstrap(np.stack([c[rows] for c in columns]), seed=seed)
        parts = {name: band.at(i) for i, name in enumerate(forces.parts, start=2)}
        means = [np.array([interval.mean]) for interval in parts.values()]
        yield KindForces(
            kind,
            actual=band.at(0),
            predicted=band.at(1),
            parts=parts,
            groups={n: float(v[rows].mean()) for n, v in forces.groups.items()},
            cancellation=_cancellation(means, band.mean[1:2]),
        )


def _fit(forces: Forces, usable: Bool[np.ndarray, " probe"]) -> Fit:
    actual, predicted = forces.actual[usable], forces.predicted[usable]
    noise = forces.noise[usable]
    seen = np.abs(actual) > NOISE_FACTOR * noise
    measured = len(actual) > 0 and bool(np.isfinite(actual).all())
    error = float(np.linalg.norm(predicted - actual)) if measured else float("nan")
    spread = np.linalg.norm(actual - actual.mean()) if measured else float("nan")
    return Fit(
        relative_error=_over(error, float(np.linalg.norm(actual))),
        r2=1 - _over(error**2, float(spread) ** 2),
        slope=_share(actual, predicted),
        above_noise=(
            float(seen.mean()) if measured and np.isfinite(noise).all() else np.nan
        ),
        probes=len(actual),
    )


def _share(
    part: Float[np.ndarray, " probe"], whole: Float[np.ndarray, " probe"]
) -> float:
    return _over(float(part @ whole), float(whole @ whole))


def _cancellation(parts: list[np.ndarray], whole: Float[np.ndarray, " probe"]) -> float:
    if not parts:
        return float("nan")
    return _over(float(np.abs(parts).sum()), float(np.abs(whole).sum()))


def _gap(parts: list[np.ndarray], whole: Float[np.ndarray, " probe"]) -> float:
    if not parts:
        return float("nan")
    missing = np.sum(parts, axis=0) - whole
    return _over(float(np.linalg.norm(missing)), float(np.linalg.norm(whole)))


def _over(above: float, below: float) -> float:
    return above / below if below > 0 else float("nan")


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


def _plain_kind(kind: KindForces) -> dict[str, Any]:
    return {
        "kind": kind.kind,
        "actual": _fields(kind.actual),
        "predicted": _fields(kind.predicted),
        "parts": {name: _fields(part) for name, part in kind.parts.items()},
        "groups": kind.groups,
        "cancellation": kind.cancellation,
    }
