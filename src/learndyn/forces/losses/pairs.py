"""A loss on pairs: the i-th chosen response with the i-th rejected one.

Such a loss sees a pair through the two summed log-probabilities (and lengths), so its
push is one number per response, the slope by that sum, on each of its tokens.
"""

from abc import abstractmethod
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from learndyn.forces.losses.loss import Loss, Responses


@dataclass(frozen=True)
class Pairs:
    """The log-probabilities of a batch, by pair."""

    logp: Float[Tensor, " token"]
    """log pi of each response token, nats."""
    responses: Responses
    chosen_index: Int[Tensor, " pair"]
    rejected_index: Int[Tensor, " pair"]

    @classmethod
    def of(cls, logp: Float[Tensor, " token"], responses: Responses) -> "Pairs":
        """The pairs of a batch.

        Raises:
            BadInput: if there are not as many chosen as rejected, or `logp` does not
                fit the responses.
        """
        return cls(responses.check_tokens(logp), responses, *responses.pairs())

    def sums(self) -> tuple[Float[Tensor, " pair"], Float[Tensor, " pair"]]:
        """log pi(y | x) of chosen and rejected, summed over tokens, nats."""
        return self.split(self.responses.sums(self.logp))

    def means(self) -> tuple[Float[Tensor, " pair"], Float[Tensor, " pair"]]:
        """log pi(y | x) / tokens of chosen and rejected, nats per token.

        Raises:
            BadInput: if a response has no token.
        """
        return self.split(self.responses.means(self.logp))

    def lengths(self) -> tuple[Float[Tensor, " pair"], Float[Tensor, " pair"]]:
        """Tokens of chosen and rejected, to divide by.

        Raises:
            BadInput: if a response has no token.
        """
        return self.split(self.responses.lengths(self.logp))

    def log_ratios(self) -> tuple[Float[Tensor, " pair"], Float[Tensor, " pair"]]:
        """log pi/pi_ref of chosen and rejected, summed over tokens, nats.

        Raises:
            BadInput: if there is no reference.
        """
        return self.split(self.responses.log_ratios(self.logp))

    def margin(self) -> Float[Tensor, " pair"]:
        """log-ratio of the chosen minus that of the rejected, nats.

        Raises:
            BadInput: if there is no reference.
        """
        chosen, rejected = self.log_ratios()
        return chosen - rejected

    def split(
        self, per_response: Float[Tensor, " response"]
    ) -> tuple[Float[Tensor, " pair"], Float[Tensor, " pair"]]:
        """One number per response as (chosen, rejected), pair by pair."""
        return per_response[self.chosen_index], per_response[self.rejected_index]


@dataclass(frozen=True)
class PairLoss(Loss):
    """Mean over pairs of a loss of the two log-probabilities."""

    layout = "pairs"
    roles = {"chosen": True, "rejected": False}  # noqa: RUF012 never written to

    @abstractmethod
    def each(self, pairs: Pairs) -> Float[Tensor, " pair"]:
        """The loss of each pair, differentiable."""

    @abstractmethod
    def slopes(
        self, pairs: Pairs
    ) -> tuple[Float[Tensor, " pair"], Float[Tensor, " pair"]]:
        """d each / d log pi(y+) and d each / d log pi(y-), in closed form, per nat."""

    def value(
        self, logp: Float[Tensor, " token"], responses: Responses
    ) -> Float[Tensor, ""]:
        """Mean over pairs, differentiable in `logp` (nats).

        Raises:
            BadInput: if the numbers of chosen and rejected differ, `logp` does not fit,
                or what the loss compares with is missing.
        """
        return self.each(Pairs.of(logp, responses)).mean()

    def push(
        self, logp: Float[Tensor, " token"], responses: Responses
    ) -> Float[Tensor, " token"]:
        """The slope of a response on each of its tokens, / pairs, per nat.

        Raises:
            BadInput: as `value`.
        """
        pairs = Pairs.of(logp.detach(), responses)
        chosen, rejected = self.slopes(pairs)
        slope = logp.new_zeros(len(responses.n_tokens))
        slope = slope.index_copy(0, pairs.chosen_index, chosen / len(chosen))
        slope = slope.index_copy(0, pairs.rejected_index, rejected / len(rejected))
        return responses.spread(slope)
