r"""Why one update moved what it moved: actual beside predicted, the parts of it, and
the training tokens that did most of it.

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
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int

from learndyn.diagnose.intervals import Interval, paired_bootstrap
from learndyn.diagnose.numbers import Scale
from learndyn.errors import BadInput
from learndyn.probes.kinds import in_paper_order
from learndyn.record.forces import Forces, Influence


_TOP = 12
"""Training tokens in the list of the most influential ones."""
_TOP_OF_KIND = 3
"""And in the list of each kind."""
AROUND = 6
"""Tokens of the same response shown before and after."""


@dataclass(frozen=True, slots=True)
class TopToken:
    """One training token and the kind that it moved most."""

    example: int
    position: int
    role: str
    before: str
    """The tokens of its response just before it, as far as they are recorded."""
    token: str
    after: str
    example_text: str
    push: float
    """dL/dlogp: below 0 the update raised the token, above 0 it lowered it."""
    kind: str
    change: float
    """Nats: mean over the kind's watched probes."""

    @property
    def raised(self) -> bool:
        """Whether the update raised this token."""
        return self.push < 0


@dataclass(frozen=True)
class InfluenceSummary:
    """The training tokens that moved the probes most."""

    tokens: int
    """Training tokens of the batch."""
    top: list[TopToken]
    """By the kind that each moved most, the largest first."""
    of_kind: dict[str, list[TopToken]]
    share: float
    """Of the sum over tokens of |change of the kind moved most|, what `top` makes."""
    roles: dict[str, frozenset[str]]
    """Of the tokens that the loss raises ("pull") and lowers ("push")."""

    def to_list(self, *, text: bool) -> list[dict[str, Any]]:
        """`top` for JSON; without any training text if `text` is false."""
        hidden = () if text else ("before", "token", "after", "example_text")
        rows = [asdict(token) for token in self.top]
        return [{k: v for k, v in row.items() if k not in hidden} for row in rows]


def _summed_up(influence: Influence) -> InfluenceSummary:
    """The most influential training tokens, overall and of each kind.

    What is not finite counts as zero.
    """
    change = np.nan_to_num(influence.change, nan=0.0, posinf=0.0, neginf=0.0)
    size = np.abs(change)
    if size.size == 0:
        return InfluenceSummary(len(influence.token), [], {}, float("nan"), {})
    most = size.max(axis=1)
    first = _largest(most, _TOP)
    moved = size.argmax(axis=1)
    total = float(most.sum())
    return InfluenceSummary(
        tokens=len(most),
        top=[_token(influence, row, int(moved[row])) for row in first],
        of_kind={
            kind: [
                _token(influence, row, column)
                for row in _largest(size[:, column], _TOP_OF_KIND)
            ]
            for column, kind in enumerate(influence.kinds)
        },
        share=float(most[first].sum()) / total if total else float("nan"),
        roles={
            "pull": _roles(influence, influence.push < 0),
            "push": _roles(influence, influence.push > 0),
        },
    )


def _roles(influence: Influence, which: Bool[np.ndarray, " token"]) -> frozenset[str]:
    return frozenset(influence.role[row] for row in np.flatnonzero(which))


def on_one_line(token: str) -> str:
    """A token's text with its line breaks and tabs as signs."""
    return token.replace("\n", "↵").replace("\t", "⇥").replace("\r", "")


def _largest(size: Float[np.ndarray, " token"], count: int) -> Int[np.ndarray, " row"]:
    order = np.argsort(-size, kind="stable")[:count]
    return order[size[order] > 0]


def _token(influence: Influence, row: np.integer | int, kind: int) -> TopToken:
    example, place = influence.example[row], influence.position[row]
    same = influence.example == example
    distance = influence.position - place
    before = np.flatnonzero(same & (distance < 0) & (distance >= -AROUND))
    after = np.flatnonzero(same & (distance > 0) & (distance <= AROUND))
    return TopToken(
        example=int(example),
        position=int(place),
        role=influence.role[row],
        before=_joined(influence, before),
        token=influence.token[row],
        after=_joined(influence, after),
        example_text=influence.example_text.get(int(example), ""),
        push=float(influence.push[row]),
        kind=influence.kinds[kind],
        change=float(influence.change[row, kind]),
    )


def _joined(influence: Influence, rows: Int[np.ndarray, " row"]) -> str:
    order = rows[np.argsort(influence.position[rows], kind="stable")]
    return "".join(influence.token[row] for row in order)


_DUST = 1e-3
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
        return next((forces for forces in self.kinds if forces.kind == kind), None)

    def to_dict(self, *, text: bool = True) -> dict[str, Any]:
        """All numbers, in nats, for JSON; no training text if `text` is false."""
        top = self.influence
        return {
            "step": self.step,
            "fit": asdict(self.fit) | {"trusted": self.fit.trusted},
            "kinds": [asdict(kind) for kind in self.kinds],
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

    Rounding of the weights that is below `_DUST` of the change is left out.
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
        influence=None if forces.influence is None else _summed_up(forces.influence),
        info=forces.info,
    )


def _without_dust(forces: Forces) -> Forces:
    """The same without the part "rounding" where that is none to speak of."""
    dust = forces.parts.get("rounding")
    known = forces.predicted[np.isfinite(forces.predicted)]
    if dust is None or not np.linalg.norm(dust) < _DUST * np.linalg.norm(known):
        return forces
    names = [name for name in forces.parts if name != "rounding"]
    return replace(
        forces,
        parts={name: forces.parts[name] for name in names},
        token_parts={n: v for n, v in forces.token_parts.items() if n in names},
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
    above = np.abs(actual) > NOISE_FACTOR * noise
    measured = len(actual) > 0 and bool(np.isfinite(actual).all())
    error = float(np.linalg.norm(predicted - actual)) if measured else float("nan")
    spread = np.linalg.norm(actual - actual.mean()) if measured else float("nan")
    return Fit(
        relative_error=_over(error, float(np.linalg.norm(actual))),
        r2=1 - _over(error**2, float(spread) ** 2),
        slope=_share(actual, predicted),
        above_noise=(
            float(above.mean()) if measured and np.isfinite(noise).all() else np.nan
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
