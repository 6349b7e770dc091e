r"""How alike a model's probes are to its training: the empirical neural tangent kernel.

    kernel[o, u]  =  < d log pi(y_o | x_o) / d theta,  d log pi(y_u | x_u) / d theta >

log pi summed over response tokens. It is how fast log pi(y_o) rises where gradient
ascent raises log pi(y_u), and its cosine how alike both are to the model. It is one
number for each pair of responses, not the V x V blocks of the paper's K: for their norm
see `kernel_norm`.

    exact     every gradient, as many at once as memory allows
    ghost     layers' inputs and output gradients in their place, see `ghost`
    sketch    k numbers of each gradient, see `sketch`; the error is about 1 / sqrt(k)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Unpack, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from learndyn.errors import BadInput, listed
from learndyn.forces.gradients import TokenLogps
from learndyn.forces.kernel.ghost import Ghost, NotCovered, products
from learndyn.forces.kernel.sketch import CountSketch, ProbeGradients
from learndyn.measure.score import Scorer, ScoreSettings
from learndyn.probes.tokenize import TokenizedProbes


KernelMethod = Literal["auto", "exact", "ghost", "sketch"]

_MEMORY = 2**30
"""Bytes of gradients that are held at once, unless told otherwise."""

_COLUMNS = 2**14
"""Numbers of each gradient that are made float64 at once."""


@dataclass(frozen=True, eq=False)
class Kernel:
    """Inner products of the gradients of all probes."""

    kernel: Float[np.ndarray, "probe probe"]
    """Nats^2 per squared unit of parameter; float64, symmetric."""
    sketch: Float[np.ndarray, "probe size"] | None
    """The gradients' sketches; None where the kernel is exact."""
    method: str
    """ "exact", "ghost" or "sketch"."""
    why: str
    """Why this method was taken."""

    @property
    def cosine(self) -> Float[np.ndarray, "probe probe"]:
        """Cosines between gradients, -1 to 1; the diagonal is 1."""
        # A sketched kernel has the sketch's own norms, so that no cosine is above 1.
        norms = np.sqrt(self.kernel.diagonal())
        cosine = self.kernel / (norms[:, None] * norms)
        np.fill_diagonal(cosine, 1.0)
        return cosine


def entk(
    model: nn.Module,
    probes: TokenizedProbes,
    *,
    method: KernelMethod = "auto",
    size: int = 8192,
    seed: int = 0,
    parameters: str | None = None,
    memory: int = _MEMORY,
    **settings: Unpack[ScoreSettings],
) -> Kernel:
    """The empirical neural tangent kernel between all probes.

    Gradients are by the trainable parameters (an adapter's, where there is one), or
    those of them in whose name the regular expression `parameters` is found. `size` and
    `seed` belong to the sketch. At most `memory` bytes of gradients exist at once;
    where all need more, "exact" and "ghost" compute gradients again, N^2 / 2b in all
    where b fit. "auto" takes the first that computes no gradient twice: "exact", else
    "ghost" where it is right for the model, else "sketch". `settings` are those of
    `Scorer.attach`.

    Raises:
        BadInput: if `method` is unknown, or "ghost" is wrong for the model; if a
            gradient is zero or not finite (names the probes); as `ProbeGradients.of`,
            `CountSketch` and `Scorer.attach`.
    """
    if method not in get_args(KernelMethod):
        known = ", ".join(get_args(KernelMethod))
        raise BadInput(f"method is {method!r}: choose from {known}.")
    sketch = CountSketch(size, seed)  # refuses a wrong size before any work
    logps = TokenLogps.of(Scorer.attach(model, probes.pairs, **settings))
    gradients = ProbeGradients.of(logps, parameters)
    chosen, why, ghost = _choose(method, gradients, memory)
    sketches = None
    if chosen == "sketch":
        sketches = gradients.sketches(sketch).double()
        kernel = sketches @ sketches.T
    elif ghost is not None:
        most = memory // _ghost_bytes(ghost)
        kernel = _streamed(ghost.__getitem__, products, len(gradients), most)
    else:
        most = memory // gradients.n_bytes
        kernel = _streamed(gradients.flat, _dense_products, len(gradients), most)
    _check_gradients(kernel.diagonal().numpy(), probes)
    return Kernel(
        kernel.numpy(),
        None if sketches is None else sketches.numpy(),
        chosen,
        why,
    )


def _choose(
    method: KernelMethod, gradients: ProbeGradients, memory: int
) -> tuple[str, str, Ghost | None]:
    """Which method, why, and the ghost where it is that."""
    if method in ("exact", "sketch"):
        return method, "asked for", None
    count, each = len(gradients), gradients.n_bytes
    size = f"{count} gradients of {gradients.size} numbers are {count * each} bytes"
    if method == "auto" and count * each <= memory:
        return "exact", f"{size}, which fit into {memory}", None
    try:
        ghost = Ghost.attach(gradients)
    except NotCovered as error:
        if method == "ghost":
            raise BadInput(
                f"method ghost is wrong for {type(gradients.logps.model).__name__}: "
                f"{error}. Take method exact or sketch."
            ) from error
        return "sketch", f"{size}, over {memory}; ghost: {error}", None
    if method == "ghost":
        return "ghost", "asked for", ghost
    factors = count * _ghost_bytes(ghost)
    if factors > memory:
        return "sketch", f"{size}, their factors up to {factors}: over {memory}", None
    return "ghost", f"{size}, over {memory}; their factors at most {factors}", ghost


def _ghost_bytes(ghost: Ghost) -> int:
    """Bytes of the factors of the longest pair."""
    # Of the longest pair: inputs and output gradients grow with its tokens, prompt
    # included, and how much a layer keeps is known only by running it.
    pairs = ghost.gradients.logps.plan.pairs
    lengths = [len(pair.prompt_ids) + len(pair.response_ids) for pair in pairs]
    return ghost[int(np.argmax(lengths))].n_bytes


def _streamed(
    read: Callable[[int], Any],
    multiply: Callable[[Sequence[Any], Sequence[Any]], Tensor],
    count: int,
    most: int,
) -> Float[Tensor, "pair pair"]:
    """All products of `count` items, of which `most` (at least two) exist at once.

    A block of rows stays, and the items after it pass by, a few at a time.
    """
    # Every block reads all later items again: a large block costs fewer gradients, and
    # an eighth of the memory is enough to multiply by matrices instead of vectors.
    passing = max(1, most // 8)
    size = count if count <= most else max(1, most - passing)
    total = torch.zeros(count, count, dtype=torch.float64)
    for start in range(0, count, size):
        stop = min(start + size, count)
        block = [read(row) for row in range(start, stop)]
        total[start:stop, start:stop] = multiply(block, block)
        for first in range(stop, count, passing):
            last = min(first + passing, count)
            other = [read(row) for row in range(first, last)]
            total[start:stop, first:last] = multiply(block, other)
            total[first:last, start:stop] = total[start:stop, first:last].T
    return (total + total.T) / 2  # a product of matrices is symmetric to rounding only


def _dense_products(
    rows: Sequence[Float[Tensor, " _"]], columns: Sequence[Float[Tensor, " _"]]
) -> Float[Tensor, "row column"]:
    """Products of flat gradients, in float64 on the CPU.

    float64, since the products of a billion numbers nearly cancel where gradients are
    nearly orthogonal; by COLUMNS, since a float64 copy of all would double the memory.
    """
    total = torch.zeros(len(rows), len(columns), dtype=torch.float64)
    for first in range(0, len(rows[0]), _COLUMNS):
        part = slice(first, first + _COLUMNS)
        left = torch.stack([row[part] for row in rows]).double()
        same = rows is columns
        right = left if same else torch.stack([c[part] for c in columns]).double()
        total += (left @ right.T).cpu()
    return total


def _check_gradients(
    squares: Float[np.ndarray, " probe"], probes: TokenizedProbes
) -> None:
    """Refuse probes whose gradient is zero or not finite."""
    wrong = np.flatnonzero(~(np.isfinite(squares) & (squares > 0)))
    if not len(wrong):
        return
    lines = [
        f"{i}: {probes.probes[i].kind} of {probes.probes[i].prompt_id}: "
        f"||gradient||^2 is {squares[i]}"
        for i in wrong.tolist()
    ]
    raise BadInput(
        f"{len(wrong)} of {len(squares)} probes have a gradient that is zero or not "
        f"finite:\n{listed(lines)}\nZero: the chosen parameters do not touch these "
        "probes. Not finite: the model has diverged; take an earlier checkpoint."
    )
