r"""Gradients of probes, one at a time, and their sketches.

A CountSketch adds every number of a gradient g, with a random sign, to one of k sums:

    S(g)_b  =  sum over { d : h(d) = b } of  s(d) g_d

so that E <S(f), S(g)> = <f, g>, with a standard error of about ||f|| ||g|| / sqrt(k)
(Charikar, Chen and Farach-Colton 2002). h and s are computed from a seed, the name of
the parameter and the position in it: nothing of the gradient's length is ever stored,
and another process with the same seed makes the same sketch.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from learndyn.errors import BadInput
from learndyn.forces.direction import parameters_of
from learndyn.forces.gradients import TokenLogps


_BLOCK = 2**18
"""Numbers that are hashed at once, all with the same keys."""

_FACTORS = (0x85EBCA6B - 2**32, 0xC2B2AE35 - 2**32)
"""Of the last step of MurmurHash3 (Appleby, public domain), as signed numbers."""


@dataclass(frozen=True, slots=True)
class CountSketch:
    """Sketches named tensors, always the same way.

    Raises:
        BadInput: if `size` is not a power of two from 2 to 2^24.
    """

    size: int
    """Length k of a sketch; cosines of sketches are off by about 1 / sqrt(k)."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse other lengths: the hash's lowest bits are the bucket."""
        if not 2 <= self.size <= 2**24 or self.size & (self.size - 1):
            raise BadInput(
                f"the length of a sketch is {self.size}; it must be a power of two "
                "from 2 to 16777216, such as 4096, 8192 or 16384."
            )

    def __call__(self, parts: Mapping[str, Tensor]) -> Float[Tensor, " size"]:
        """The sketch of one gradient, given by parameter name.

        Accumulated in float32, or float64 if a part is.
        """
        wide = torch.float32
        for part in parts.values():
            wide = torch.promote_types(wide, part.dtype)
        device = next(iter(parts.values())).device
        total = torch.zeros(self.size, dtype=wide, device=device)
        for name, part in parts.items():
            flat = part.detach().reshape(-1).to(device, wide)
            for first, hashed in self._hashes(name, len(flat), device):
                bucket = hashed & (self.size - 1)
                sign = (hashed >> 31).to(wide).mul_(2).add_(1)  # -1 or 0 to -1 or 1
                total.index_add_(0, bucket, sign.mul_(flat[first : first + len(sign)]))
        return total

    def _hashes(
        self, name: str, count: int, device: torch.device
    ) -> Iterator[tuple[int, Int[Tensor, " block"]]]:
        """32 random bits for each number of a parameter, block by block."""
        for first in range(0, count, _BLOCK):
            # The name and not the parameter's place: another order of parameters, or an
            # adapter beside them, leaves the sketch of each as it was.
            where = f"{self.seed}\0{name}\0{first}".encode()
            digest = hashlib.sha256(where).digest()
            keys = [
                int.from_bytes(digest[i : i + 4], "little", signed=True) for i in (0, 4)
            ]
            size = min(_BLOCK, count - first)
            bits = torch.arange(size, dtype=torch.int32, device=device)
            # twice: with one key alone, whole blocks could share their buckets
            for key in keys:
                _mix(bits.bitwise_xor_(key))
            yield first, bits


def _mix(bits: Int[Tensor, " block"]) -> None:
    """Spread the information of every bit over all 32, in place."""
    # torch shifts int32 with its sign: the mask makes it the shift of a plain number.
    for shift, factor in zip((16, 13), _FACTORS, strict=True):
        bits.bitwise_xor_((bits >> shift) & (2 ** (32 - shift) - 1)).mul_(factor)
    bits.bitwise_xor_((bits >> 16) & 0xFFFF)


@dataclass(frozen=True, eq=False)
class ProbeGradients:
    """d log pi(response | prompt) / d theta of pairs, one by one; make it by `of`."""

    logps: TokenLogps
    parameters: dict[str, nn.Parameter]
    """By which is differentiated, by first name."""

    @classmethod
    def of(cls, logps: TokenLogps, pattern: str | None = None) -> "ProbeGradients":
        """Of the pairs, by all trainable parameters or those that match.

        `pattern` is a regular expression that is searched in the parameters' names.

        Raises:
            BadInput: if no parameter is trainable, none matches, or `pattern` is not a
                regular expression.
        """
        model = logps.model
        trainable = parameters_of(model)
        if not trainable:
            raise BadInput(
                f"no parameter of {type(model).__name__} has requires_grad: there is "
                "no gradient. Unfreeze some, or attach an adapter."
            )
        if pattern is None:
            return cls(logps, trainable)
        try:
            chosen = {n: p for n, p in trainable.items() if re.search(pattern, n)}
        except re.error as error:
            raise BadInput(
                f"parameters={pattern!r} is not a regular expression: {error}. To find "
                "a name as it is written, give re.escape(name)."
            ) from error
        if not chosen:
            raise BadInput(
                f"parameters={pattern!r} matches none of the {len(trainable)} "
                f"trainable parameters of {type(model).__name__}. They are named like "
                f"{', '.join(_examples(list(trainable)))}."
            )
        return cls(logps, chosen)

    def __len__(self) -> int:
        return len(self.logps.plan.pairs)

    @cached_property
    def size(self) -> int:
        """D: numbers of one gradient."""
        return sum(p.numel() for p in self.parameters.values())

    @property
    def n_bytes(self) -> int:
        """Bytes of one gradient, in float32 or wider."""
        return sum(p.numel() * self.dtype.itemsize for p in self.parameters.values())

    @cached_property
    def dtype(self) -> torch.dtype:
        """Of sums over gradients: float32, or float64 if a parameter is."""
        wide = torch.float32
        for parameter in self.parameters.values():
            wide = torch.promote_types(wide, parameter.dtype)
        return wide

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        """The gradient of one pair, by parameter name; nats per unit of parameter.

        Zeros for a parameter that the pair's log-probability does not depend on.
        """
        one = self.logps.select([row])
        with one.measuring(), torch.enable_grad():
            total = torch.cat([one.logp(piece) for piece in one.pieces]).sum()
            parts = torch.autograd.grad(
                total, list(self.parameters.values()), allow_unused=True
            )
        return {
            name: torch.zeros_like(p) if part is None else part
            for (name, p), part in zip(self.parameters.items(), parts, strict=True)
        }

    def flat(self, row: int) -> Float[Tensor, " size"]:
        """The gradient of one pair as one vector, in float32 or wider."""
        parts = self[row]
        device = next(iter(parts.values())).device
        return torch.cat([p.flatten().to(device, self.dtype) for p in parts.values()])

    def sketches(self, sketch: CountSketch) -> Float[Tensor, "pair size"]:
        """Sketches of all pairs' gradients, on the CPU."""
        return torch.stack([sketch(self[row]).cpu() for row in range(len(self))])


def _examples(names: Iterable[str]) -> list[str]:
    """First, middle and last: of many alike layers these differ most."""
    names = list(names)
    return [names[i] for i in sorted({0, len(names) // 2, len(names) - 1})]
