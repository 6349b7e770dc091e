r"""Who rises where y- is pushed down: the sign rule of one softmax, asked of a model.

A small step down on y of one softmax layer with logits z' = z + s (pi - e_y) gives

    d log pi_i  =  s (pi_i - tau - 1[i = y]),      tau = ||pi||^2 - pi_y

so that another token rises if and only if pi_i > tau (Ren & Sutherland 2025, Section
3.3 and Appendix E, to first order). In a language model K is no multiple of I, and all
positions of a response are pushed at once: how far does the rule go there?
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import forward_ad

from learndyn.forces.direction import Direction, scaled
from learndyn.forces.gradients import Rows
from learndyn.forces.predict import Predictor
from learndyn.paper.theory.result import SignRule
from learndyn.probes.tokenize import TokenizedPair


_BINS = np.arange(-3.0, 3.01, 0.5)
"""Edges of log10(pi / tau)."""


def sign_rules(predictor: Predictor, pairs: Sequence[TokenizedPair]) -> list[SignRule]:
    """Push these responses down by a vanishing step, each of their positions on its
    own and all at once; see who rises, by a derivative of all V log-probabilities."""
    one, whole = _Tally("one"), _Tally("all")
    for pair in pairs:
        own = predictor.on_pairs([pair])
        count = len(pair.response_ids)
        labels = np.array(pair.response_ids)
        for where in [*range(count), None]:
            weights = np.ones(count) if where is None else np.eye(count)[where]
            down = scaled(own.logps.pullback(weights), -1.0)
            pi, change = _all_changes(own, down)
            if where is None:
                whole.add(pi, change, labels)
            else:
                only = slice(where, where + 1)
                one.add(pi[only], change[only], labels[only])
    return [one.result(), whole.result()]


def _all_changes(
    predictor: Predictor, direction: Direction
) -> tuple[Float[np.ndarray, "token vocab"], Float[np.ndarray, "token vocab"]]:
    """pi before, and d log pi of the whole vocabulary, at each position; flat order.

    In forward mode, which `predictor` has to have.
    """
    width = predictor.logps.vocabulary
    pi = np.zeros((predictor.logps.plan.n_tokens, width))
    change = np.zeros_like(pi)

    def read(rows: Rows) -> None:
        logits, tangent = forward_ad.unpack_dual(rows.logits)
        where = rows.flat.numpy()
        before = logits.detach().double().softmax(-1)
        moved = torch.zeros_like(before) if tangent is None else tangent.double()
        pi[where] = before.cpu().numpy()
        change[where] = _centred(before, moved).cpu().numpy()

    assert predictor.forward_mode is not None
    predictor.forward_mode.along(direction, read)
    return pi, change


def _centred(
    pi: Float[Tensor, "label vocab"], change: Float[Tensor, "label vocab"]
) -> Float[Tensor, "label vocab"]:
    """A dz: d log pi = dz - <pi, dz>."""
    return change - (pi * change).sum(-1, keepdim=True)


class _Tally:
    """Counts over positions."""

    def __init__(self, pushed: str) -> None:
        self.pushed = pushed
        self.label: list[bool] = []
        self.top: list[bool] = []
        self.right: dict[bool, list[float]] = {True: [], False: []}
        self.rose = {True: [0, 0], False: [0, 0]}
        self.counts = np.zeros(len(_BINS) - 1)
        self.rising = np.zeros(len(_BINS) - 1)

    def add(
        self,
        pi: Float[np.ndarray, "token vocab"],
        change: Float[np.ndarray, "token vocab"],
        labels: Int[np.ndarray, " token"],
    ) -> None:
        """Some positions."""
        for before, moved, label in zip(pi, change, labels.tolist(), strict=True):
            others = np.arange(len(before)) != label
            tau = float(before @ before - before[label])
            rises, rest = moved[others] > 0, before[others]
            peak = bool(before[label] >= rest.max())
            self.label.append(bool(moved[label] < 0))
            self.top.append(bool(rises[rest.argmax()]))
            self.right[peak].append(float((rises == (rest > tau)).mean()))
            for side in (True, False):
                of_side = rises[(rest > tau) == side]
                self.rose[side][0] += int(of_side.sum())
                self.rose[side][1] += len(of_side)
            if tau > 0:
                where = np.digitize(np.log10(rest / tau), _BINS) - 1
                inside = (where >= 0) & (where < len(self.counts))
                np.add.at(self.counts, where[inside], 1)
                np.add.at(self.rising, where[inside], rises[inside])

    def result(self) -> SignRule:
        """The shares."""
        counted = self.counts > 0
        risen, known = np.sum(list(self.rose.values()), axis=0).tolist()
        share = risen / known
        middles = (_BINS[:-1] + _BINS[1:]) / 2
        return SignRule(
            pushed=self.pushed,
            label_falls=float(np.mean(self.label)),
            top_rises=float(np.mean(self.top)),
            valley=_mean(self.right[False]),
            peak=_mean(self.right[True]),
            flat=max(share, 1 - share),
            above=self.rose[True][0] / max(1, self.rose[True][1]),
            below=self.rose[False][0] / max(1, self.rose[False][1]),
            ratios=middles[counted].tolist(),
            rising=(self.rising[counted] / self.counts[counted]).tolist(),
            positions=len(self.label),
        )


def _mean(values: Sequence[float]) -> float | None:
    """None where there is no such position: JSON has no NaN."""
    return float(np.mean(values)) if values else None
