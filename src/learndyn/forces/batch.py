"""The responses that an update is made of, and what the loss asks of every token."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from learndyn.errors import BadInput
from learndyn.forces.gradients import TokenLogps
from learndyn.forces.losses.loss import Loss, Responses
from learndyn.probes.tokenize import TokenizedPair


@dataclass(frozen=True, eq=False)
class Batch:
    """Training responses with their push. Tokens are flat: response after response."""

    pairs: tuple[TokenizedPair, ...]
    push: Float[np.ndarray, " token"]
    """dL/dlogp of each response token. Above 0 the update lowers the token: the paper's
    negative gradient."""
    roles: tuple[str, ...]
    """What each response is to the loss: "chosen", "rejected" or "" (not known)."""

    def __post_init__(self) -> None:
        tokens = sum(len(pair.response_ids) for pair in self.pairs)
        if len(self.push) != tokens or len(self.roles) != len(self.pairs):
            raise BadInput(
                f"{len(self.pairs)} responses of {tokens} tokens need a role for each "
                f"response and a push for each token; there are {len(self.roles)} "
                f"roles and {len(self.push)} pushes."
            )
        lost = int(np.sum(~np.isfinite(self.push)))
        if lost:
            raise BadInput(
                f"dL/dlogp is not finite at {lost} of {tokens} training tokens. Look "
                "for NaN in the loss, or for log-probabilities that are -inf."
            )

    @classmethod
    def of(
        cls,
        logps: TokenLogps,
        chosen: Sequence[TokenizedPair],
        rejected: Sequence[TokenizedPair],
        loss: Loss,
        *,
        reference: Float[np.ndarray, " response"] | None = None,
        advantage: Float[np.ndarray, " response"] | None = None,
    ) -> "Batch":
        """A batch of a loss, at the model as it stands.

        `reference` and `advantage` are of the chosen, then the rejected responses. By
        default the model is its own reference, as at the first update of a run. A loss
        that knows advantages gets +1 for chosen and -1 for rejected by default.

        Raises:
            BadInput: if the loss cannot be computed from these.
        """
        pairs = (*chosen, *rejected)
        if not pairs:
            raise BadInput("the batch is empty: give chosen or rejected responses.")
        own = logps.on(pairs)
        logp = own.values()
        good = np.arange(len(pairs)) < len(chosen)
        # Defaults of a first update: pi is pi_ref and pi_old, so all ratios are 1.
        sums = own.summed(logp) if reference is None else reference
        worth = np.where(good, 1.0, -1.0) if advantage is None else advantage
        responses = Responses(
            n_tokens=torch.from_numpy(np.diff(own.offsets)),
            chosen=torch.from_numpy(good),
            reference=torch.from_numpy(np.asarray(sums, np.float64)),
            old_logp=torch.from_numpy(logp.copy()),
            advantage=torch.from_numpy(np.asarray(worth, np.float64)),
        )
        # In float64 on the CPU, whatever the model's precision: beta h of two sums of
        # hundreds of nats must not lose the digits that decide sigma(-beta h).
        push = loss.push(torch.from_numpy(logp), responses).numpy()
        roles = ["chosen"] * len(chosen) + ["rejected"] * len(rejected)
        return cls(pairs, push, tuple(roles))

    @property
    def example(self) -> Int[np.ndarray, " token"]:
        """Which response each token belongs to."""
        counts = [len(pair.response_ids) for pair in self.pairs]
        return np.repeat(np.arange(len(counts)), counts)

    @property
    def position(self) -> Int[np.ndarray, " token"]:
        """Place of each token within its response."""
        counts = [len(pair.response_ids) for pair in self.pairs]
        return np.concatenate([np.arange(n) for n in counts])
