r"""CHES: how alike a pair's two answers are to the model, before any training.

The centered hidden embedding similarity of a preference pair (Razin et al. 2024,
arXiv 2410.08847, Definition 2, and the length-normalized Definition 3). With h the last
hidden states, which are the input of the output embedding, and S their sum over an
answer's n positions,

    CHES     =  < S+, S- >            -  ||S+||^2
    LN-CHES  =  < S+, S- > / (n+ n-)  -  ||S+||^2 / n+^2

The higher, the more alike the answers are where it counts, and the more a push on
rejected is one on chosen too. The score weighs all positions alike, which the gradient
does not, and holds the hidden states fixed: it has no calibrated zero, and is made to
rank the pairs of one model.

Which states: those that predict the answer's tokens. That is from the prompt's last
token on, without the state of the answer's own last token, as in the published code. An
answer ends in EOS here, so the state that predicts EOS counts (`eos="include"`).
`eos="exclude"` leaves out the state that predicts the answer's last EOS and those that
predict what a chat template writes after it; without `eos_id`, the last token's state.
A cut answer has no EOS and keeps all its states.

Each term is thousands of products that nearly cancel. They are summed in float64,
whatever the states' own precision: float16 would overflow, bfloat16 keep 3 digits.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Unpack

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from learndyn.errors import BadInput
from learndyn.measure.forward import output_embedding
from learndyn.measure.neutral import undisturbed
from learndyn.measure.reader import Reader
from learndyn.measure.score import Scorer, ScoreSettings
from learndyn.probes.tokenize import TokenizedPair


Eos = Literal["include", "exclude"]

_CHUNK = 2048
"""States that exist in float64 at once."""


@dataclass(frozen=True, eq=False)
class Ches:
    """CHES of preference pairs and what it is made of, axis pair, float64."""

    inner: Float[np.ndarray, " pair"]
    """< S+, S- >."""
    chosen_norm2: Float[np.ndarray, " pair"]
    """||S+||^2."""
    n_chosen: Int[np.ndarray, " pair"]
    """States that are summed."""
    n_rejected: Int[np.ndarray, " pair"]

    @property
    def ches(self) -> Float[np.ndarray, " pair"]:
        """< S+, S- > - ||S+||^2."""
        return self.inner - self.chosen_norm2

    @property
    def ln_ches(self) -> Float[np.ndarray, " pair"]:
        """The same of the means: long answers have no larger score."""
        n = self.n_chosen.astype(np.float64)
        return self.inner / (n * self.n_rejected) - self.chosen_norm2 / n**2


def _ches_of_states(
    chosen: Float[Tensor, "pair time_chosen d"],
    chosen_mask: Bool[Tensor, "pair time_chosen"],
    rejected: Float[Tensor, "pair time_rejected d"],
    rejected_mask: Bool[Tensor, "pair time_rejected"],
) -> Ches:
    """CHES from hidden states that exist already, padded on whichever side.

    A mask is true at the states that count, see above; what stands elsewhere may be
    anything, NaN too.
    """
    good, n_good = _masked_sums(chosen, chosen_mask)
    bad, n_bad = _masked_sums(rejected, rejected_mask)
    return _of_sums(good, n_good, bad, n_bad)


def ches(
    model: nn.Module,
    chosen: Sequence[TokenizedPair],
    rejected: Sequence[TokenizedPair],
    *,
    eos: Eos = "include",
    eos_id: int | None = None,
    **settings: Unpack[ScoreSettings],
) -> Ches:
    """CHES of pairs of answers under a model as it stands.

    `settings` are those of `Scorer.attach`. The model is left as it was.

    Raises:
        BadInput: if there are not as many rejected as chosen, as `Scorer.attach`, and
            as `ches_with`.
    """
    if len(chosen) != len(rejected):
        raise BadInput(
            f"{len(chosen)} chosen and {len(rejected)} rejected answers make no pairs: "
            "give one rejected answer for each chosen one."
        )
    scorer = Scorer.attach(model, (*chosen, *rejected), **settings)
    return ches_with(scorer, eos, eos_id)


def ches_with(scorer: Scorer, eos: Eos = "include", eos_id: int | None = None) -> Ches:
    """The same with a scorer of all chosen, then all rejected answers.

    Raises:
        BadInput: if an answer has no state that counts, or one of them is not finite.
    """
    sums, counts = _state_sums(scorer, eos, eos_id)
    half = len(counts) // 2
    return _of_sums(sums[:half], counts[:half], sums[half:], counts[half:])


def _state_sums(
    scorer: Scorer, eos: Eos = "include", eos_id: int | None = None
) -> tuple[Float[Tensor, "answer d"], Int[np.ndarray, " answer"]]:
    """Sum of the hidden states of each answer, float64, and how many they are."""
    pairs = scorer.plan.pairs
    counted = torch.from_numpy(
        np.concatenate([_counted(pair, eos, eos_id) for pair in pairs])
    )
    answer = torch.from_numpy(
        np.repeat(np.arange(len(pairs)), [len(p.response_ids) for p in pairs])
    )
    sums = torch.zeros(0, 0, dtype=torch.float64)
    reader = _tapping(scorer.reader)
    with undisturbed(scorer.model), reader.casting():
        for piece in scorer.pieces:
            states, targets = reader.tier.read(reader.forward, piece), piece.targets
            if not sums.numel():
                sums = torch.zeros(len(pairs), states.shape[-1], dtype=torch.float64)
            # A state counts once for each label that it predicts: the prompt's last one
            # belongs to every answer that starts there.
            flat = torch.from_numpy(targets.flat)
            source = torch.from_numpy(targets.source)[counted[flat]].to(states.device)
            owner = answer[flat[counted[flat]]]
            for first in range(0, len(owner), _CHUNK):
                part = slice(first, first + _CHUNK)
                sums.index_add_(0, owner[part], states[source[part]].cpu().double())
    return sums, np.bincount(answer[counted].numpy(), minlength=len(pairs))


def _tapping(reader: Reader) -> Reader:
    """The same reader, told to hand back what the output embedding is given.

    Where a model's head cannot be learnt, `Scorer` reads whole logits.
    """
    # The input of the output embedding, and not `output_hidden_states[-1]`: some models
    # scale between the two, and the states of all layers would be kept.
    tap = output_embedding(reader.forward.model)
    return replace(reader, forward=replace(reader.forward, tap=tap))


def _counted(
    pair: TokenizedPair, eos: Eos, eos_id: int | None
) -> Bool[np.ndarray, " token"]:
    """Which tokens of an answer count, each by the state that predicts it."""
    counted = np.ones(len(pair.response_ids), dtype=bool)
    if eos == "exclude" and pair.has_eos:
        ends = [i for i, token in enumerate(pair.response_ids) if token == eos_id]
        counted[ends[-1] if ends else -1 :] = False
    return counted


def _masked_sums(
    states: Float[Tensor, "pair time d"], mask: Bool[Tensor, "pair time"]
) -> tuple[Float[Tensor, "pair d"], Int[np.ndarray, " pair"]]:
    """Sums in float64, one answer's states at a time."""
    # By index and not by multiplying with the mask: NaN times 0 is NaN.
    rows = [one[here].double().sum(0) for one, here in zip(states, mask, strict=True)]
    return torch.stack(rows).cpu(), mask.sum(-1).cpu().numpy()


def _of_sums(
    chosen: Float[Tensor, "pair d"],
    n_chosen: Int[np.ndarray, " pair"],
    rejected: Float[Tensor, "pair d"],
    n_rejected: Int[np.ndarray, " pair"],
) -> Ches:
    bare = np.flatnonzero((n_chosen == 0) | (n_rejected == 0))
    if len(bare):
        raise BadInput(
            f"{len(bare)} of {len(n_chosen)} pairs have an answer without a state that "
            f"counts, the first at position {bare[0]}. An empty answer has its EOS "
            'alone: leave such pairs out, or count EOS with eos="include".'
        )
    scores = Ches(
        torch.linalg.vecdot(chosen, rejected).numpy(),
        torch.linalg.vecdot(chosen, chosen).numpy(),
        n_chosen,
        n_rejected,
    )
    bad = np.flatnonzero(~np.isfinite(scores.ches))
    if len(bad):
        raise BadInput(
            f"the hidden states of {len(bad)} of {len(n_chosen)} pairs are not "
            f"finite, the first at position {bad[0]}. Check the model's weights; in "
            "float16 they may overflow: load it in float32."
        )
    return scores
