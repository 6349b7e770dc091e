r"""Does the kernel stay the same while the model learns?

Ren & Sutherland 2025 (Section 3.1) let K "change slowly" between updates, and reason
with one kernel for a whole run. Here that is measured: gradients of the same pairs are
sketched now and then, always by the same hash, and compared with the first ones.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

import numpy as np
import pyarrow as pa
from jaxtyping import Float
from torch import nn

from learndyn.diagnose.intervals import spearman
from learndyn.errors import BadInput
from learndyn.forces.gradients import TokenLogps
from learndyn.forces.kernel.sketch import CountSketch, ProbeGradients
from learndyn.measure.score import Scorer, ScoreSettings
from learndyn.probes.tokenize import TokenizedPair


_METADATA = b"learndyn_sketch"
"""Key of a table's metadata: the seed, and which pairs and parameters were sketched."""


@dataclass(frozen=True, eq=False)
class Sketches:
    """Sketched gradients of some pairs at one moment of a run."""

    values: Float[np.ndarray, "pair size"]
    seed: int
    """Of the hash."""
    what: str
    """SHA-256 of the parameters' names and shapes, and of the pairs' token ids: what
    must be the same where two are compared."""

    @property
    def kernel(self) -> Float[np.ndarray, "pair pair"]:
        """Estimated inner products of gradients, nats^2 per squared parameter unit."""
        wide = self.values.astype(np.float64)
        return wide @ wide.T

    def to_table(self) -> pa.Table:
        """One row per pair: `pair`, its position, and `sketch`, a list."""
        count, size = self.values.shape
        lists = pa.FixedSizeListArray.from_arrays(
            pa.array(np.ascontiguousarray(self.values).reshape(-1)), size
        )
        known = json.dumps({"seed": self.seed, "what": self.what})
        return pa.table(
            {"pair": pa.array(np.arange(count, dtype=np.int32)), "sketch": lists},
            metadata={_METADATA: known.encode()},
        )

    @classmethod
    def from_table(cls, table: pa.Table) -> "Sketches":
        """Inverse of `to_table`, also through a Parquet file.

        Raises:
            BadInput: if `to_table` did not make the table.
        """
        text = (table.schema.metadata or {}).get(_METADATA)
        if text is None or table.column_names != ["pair", "sketch"] or not len(table):
            raise BadInput(
                f"a table with the columns {', '.join(table.column_names)} and "
                f"{len(table)} rows holds no sketches: give a table that "
                "Sketches.to_table made, with its metadata."
            )
        known = json.loads(text)
        flat = table["sketch"].combine_chunks().flatten().to_numpy()
        values = flat.reshape(len(table), -1)
        return cls(values, int(known["seed"]), str(known["what"]))


@dataclass(frozen=True)
class KernelWatch:
    """Looks at the kernel of a set of pairs, always in the same way."""

    size: int = 4096
    """Length of a sketch: 4 bytes each for every pair."""
    seed: int = 0
    parameters: str | None = None
    """Regular expression that is searched in parameters' names; None takes all that
    training may move."""

    def __post_init__(self) -> None:
        CountSketch(self.size, self.seed)

    def look(
        self,
        model: nn.Module | TokenLogps,
        pairs: Sequence[TokenizedPair],
        **settings: Unpack[ScoreSettings],
    ) -> Sketches:
        """Sketch the gradients of log pi(response | prompt) as the model stands.

        One backward pass for each pair. Given `TokenLogps`, no self-test is made again;
        `settings` are those of `Scorer.attach` and serve models only.

        Raises:
            BadInput: as `ProbeGradients.of` and `Scorer.attach`.
        """
        if isinstance(model, TokenLogps):
            logps = model.on(pairs)
        else:
            logps = TokenLogps.of(Scorer.attach(model, pairs, **settings))
        gradients = ProbeGradients.of(logps, self.parameters)
        values = gradients.sketches(CountSketch(self.size, self.seed))
        return Sketches(values.numpy(), self.seed, _what(gradients))


@dataclass(frozen=True)
class Drift:
    """How far the kernel has moved; all three are 1 where it has not.

    Measured in small DPO runs, the order of the off-diagonal cosines goes first,
    then the gradients' own directions; the kernel's cosine is ruled by the longest
    gradients and hardly moves.
    """

    rank_correlation: float
    """Spearman's, between the cosines of all pairs of responses then and now: whether
    who is like whom has kept its order. NaN where all cosines are equal."""
    self_cosine: float
    """Mean over responses of the cosine of a gradient now with the same one then."""
    kernel_cosine: float
    """<K_now, K_then> / (||K_now|| ||K_then||), diagonals included."""


def drift(first: Sketches, now: Sketches) -> Drift:
    """Compare the kernel now with the first one.

    Raises:
        BadInput: if both are not of the same pairs, parameters, seed and length; if
            there are fewer than three pairs; if a gradient is zero or not finite.
    """
    if (first.seed, first.what) != (now.seed, now.what) or (
        first.values.shape != now.values.shape
    ):
        raise BadInput(
            f"the two sketches cannot be compared: the first is of {_label(first)}; "
            f"the other of {_label(now)}. Look at the same pairs and parameters with "
            "the same KernelWatch."
        )
    if len(first.values) < 3:
        raise BadInput(
            f"drift needs three or more pairs, and there are {len(first.values)}: it "
            "compares the order of the cosines between them."
        )
    then, here = (_unit(sketches) for sketches in (first, now))
    above = np.triu_indices(len(then), 1)  # each pair once; the diagonal is 1
    kernels = first.kernel, now.kernel
    sizes = [np.linalg.norm(kernel) for kernel in kernels]
    return Drift(
        rank_correlation=spearman((then @ then.T)[above], (here @ here.T)[above]),
        self_cosine=float((then * here).sum(1).mean()),
        kernel_cosine=float((kernels[0] * kernels[1]).sum() / (sizes[0] * sizes[1])),
    )


def _unit(sketches: Sketches) -> Float[np.ndarray, "pair size"]:
    """Sketches of length 1, in float64."""
    wide = sketches.values.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1)
    wrong = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
    if len(wrong):
        raise BadInput(
            f"the gradients of {len(wrong)} of {len(norms)} pairs are zero or not "
            f"finite, at positions {wrong[:20].tolist()}: they have no direction. "
            "Leave them out, or take an earlier checkpoint if the model has diverged."
        )
    return wide / norms[:, None]


def _label(sketches: Sketches) -> str:
    count, size = sketches.values.shape
    return f"{count} pairs, {size} numbers, seed {sketches.seed}, {sketches.what[:12]}"


def _what(gradients: ProbeGradients) -> str:
    shapes = [[name, *p.shape] for name, p in gradients.parameters.items()]
    # Not the weights: they are what changes between the two.
    pairs = [[p.prompt_ids, p.response_ids] for p in gradients.logps.plan.pairs]
    return hashlib.sha256(json.dumps([shapes, pairs]).encode()).hexdigest()
