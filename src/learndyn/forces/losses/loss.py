r"""What a loss asks of each response token: its push.

A loss sees the model only through the log-probabilities of the response tokens, so one
number a token holds all that it does to the model:

    G_l = dL/dz_l = push_l (e_{y_l} - pi_l),    push_l = dL/dlogp_l

at the logits z of token l. push < 0 raises the token (SFT has -1), push > 0 lowers it:
the negative gradient of Ren & Sutherland 2025 (Section 3.2). Tokens are flat: response
after response.

A loss is written once, as `value`; `push` is its gradient by autograd. That is exact
only where `value` is written so that its backward pass is stable too: near certainty
(logp = 0) and far from the reference (|log-ratio| of hundreds of nats). Measured on all
losses against their closed forms (tests/forces/test_losses.py): 2e-14 in float64; in
float32 an error against float64 of at most 4 times the closed form's in float32, plus
1e-6.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import ClassVar, Literal, get_args, get_origin

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from learndyn.errors import BadInput


@dataclass(frozen=True)
class Responses:
    """What a loss needs of a batch beside the log-probabilities; responses in order.

    Raises:
        BadInput: if there is no response, a count is negative, or lengths differ.
    """

    n_tokens: Int[Tensor, " response"]
    """Scored tokens of each response, EOS included."""
    chosen: Bool[Tensor, " response"]
    """Chosen or desirable (True), rejected or undesirable (False)."""
    reference: Float[Tensor, " response"] | None = None
    """log pi_ref(response | prompt), summed over tokens, nats."""
    old_logp: Float[Tensor, " token"] | None = None
    """GRPO: log-probability of each token under the policy that sampled it, nats."""
    advantage: Float[Tensor, " response"] | None = None
    """GRPO: advantage of each response, any unit."""

    def __post_init__(self) -> None:
        if len(self.n_tokens) == 0:
            raise BadInput("the batch has no responses: give at least one.")
        if bool((self.n_tokens < 0).any()):
            raise BadInput(
                f"n_tokens has {int(self.n_tokens.min())}: a response cannot have "
                "fewer than 0 tokens."
            )
        for name in ("chosen", "reference", "advantage"):
            given = getattr(self, name)
            if given is not None and given.shape != self.n_tokens.shape:
                raise BadInput(
                    f"{name} has {len(given)} entries for {len(self.n_tokens)} "
                    "responses: give one for each response."
                )
        if self.old_logp is not None:
            self.check_tokens(self.old_logp, "old_logp")

    def check_tokens(
        self, logp: Float[Tensor, " token"], name: str = "logp"
    ) -> Float[Tensor, " token"]:
        """`logp` again, if it has as many tokens as the responses together."""
        total = int(self.n_tokens.sum())
        if len(logp) != total:
            raise BadInput(
                f"{name} has {len(logp)} tokens, but the {len(self.n_tokens)} "
                f"responses have {total} together: give the response tokens only, "
                "response after response."
            )
        if logp.device != self.n_tokens.device:
            raise BadInput(
                f"{name} is on {logp.device} and the responses on "
                f"{self.n_tokens.device}: put them on one device."
            )
        return logp

    def owner(self) -> Int[Tensor, " token"]:
        """The response that each token belongs to."""
        which = torch.arange(len(self.n_tokens), device=self.n_tokens.device)
        return which.repeat_interleave(self.n_tokens)

    def sums(self, logp: Float[Tensor, " token"]) -> Float[Tensor, " response"]:
        """log pi(response | prompt): summed over tokens, nats; 0 without tokens."""
        # index_add and not a split: one differentiable kernel, in the order of tokens.
        empty = logp.new_zeros(len(self.n_tokens))
        return empty.index_add(0, self.owner(), logp)

    def means(self, logp: Float[Tensor, " token"]) -> Float[Tensor, " response"]:
        """Mean over the tokens of each response, nats per token."""
        return self.sums(logp) / self.lengths(logp)

    def lengths(self, like: Float[Tensor, " any"]) -> Float[Tensor, " response"]:
        """Tokens of each response in the dtype of `like`, to divide by."""
        return _no_zeros(self.n_tokens).to(like)

    def spread(
        self, per_response: Float[Tensor, " response"]
    ) -> Float[Tensor, " token"]:
        """Each response's number on each of its tokens."""
        return per_response[self.owner()]

    def log_ratios(self, logp: Float[Tensor, " token"]) -> Float[Tensor, " response"]:
        """log pi(y | x) - log pi_ref(y | x), summed over tokens, nats."""
        if self.reference is None:
            raise BadInput(
                "this loss compares with a reference model: give the summed "
                "log-probabilities of the responses under it (reference=...)."
            )
        return self.sums(logp) - self.reference.to(logp)

    def pairs(self) -> tuple[Int[Tensor, " pair"], Int[Tensor, " pair"]]:
        """Indices (chosen, rejected): the i-th chosen with the i-th rejected."""
        # By order among their kind, so that chosen and rejected may come in blocks (as
        # TRL concatenates them) or in turns.
        chosen = self.chosen.nonzero()[:, 0]
        rejected = (~self.chosen).nonzero()[:, 0]
        if len(chosen) != len(rejected):
            raise BadInput(
                f"{len(chosen)} chosen and {len(rejected)} rejected responses: a loss "
                "on pairs needs as many of both."
            )
        return chosen, rejected


def _no_zeros(n_tokens: Int[Tensor, " any"]) -> Int[Tensor, " any"]:
    if bool((n_tokens == 0).any()):
        raise BadInput(
            f"{int((n_tokens == 0).sum())} of {len(n_tokens)} responses have no "
            "tokens, and this loss takes a mean over the tokens of each: leave those "
            "out."
        )
    return n_tokens


@dataclass(frozen=True)
class Loss(ABC):
    """A loss on the log-probabilities of response tokens.

    Raises:
        BadInput: if an option is not finite, not positive where it has to be, or none
            of the words there are.
    """

    name: ClassVar[str]
    """As on the command line."""
    paper: ClassVar[str]
    """Authors, year, arXiv number, equation."""
    equation: ClassVar[str]
    """The loss of one response or pair."""
    push_equation: ClassVar[str]
    """dL/dlogp of its tokens. Divide by the number of responses or pairs."""
    differs: ClassVar[str] = ""
    """Where TRL 1.16, or the paper's text, has something else."""
    layout: ClassVar[Literal["responses", "pairs", "advantages"]]
    """What a batch has to hold."""
    needs_reference: ClassVar[bool] = False
    averages: ClassVar[bool] = False
    """Sees means over the tokens of a response, not sums."""
    roles: ClassVar[Mapping[str, bool]]
    """Whom it treats differently, and the value of `chosen` (or the sign of the
    advantage) that makes a response one of them."""
    positive: ClassVar[tuple[str, ...]] = ("beta",)
    """Options that have to be above 0."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise BadInput(f"{self.name}: {field.name} is {value}: not finite.")
            choices = get_args(field.type) if get_origin(field.type) is Literal else ()
            if choices and value not in choices:
                raise BadInput(
                    f"{self.name}: {field.name} is {value!r}: choose from "
                    f"{', '.join(choices)}."
                )
            # beta 0 would divide by 0 in IPO and SPPO, and push nothing in DPO.
            if field.name in self.positive and value <= 0:
                raise BadInput(
                    f"{self.name}: {field.name} is {value:g}: give a number above 0."
                )

    @property
    def reach(self) -> float:
        """Nats from the reference within which the push changes sign, if it does."""
        beta = getattr(self, "beta", None)
        return 50.0 if beta is None else 20.0 / beta

    @abstractmethod
    def value(
        self, logp: Float[Tensor, " token"], responses: Responses
    ) -> Float[Tensor, ""]:
        """The loss, differentiable in `logp` (nats): a mean over responses or pairs.

        Raises:
            BadInput: if the batch is not what the loss needs.
        """

    def push(
        self, logp: Float[Tensor, " token"], responses: Responses
    ) -> Float[Tensor, " token"]:
        """dL/dlogp of each token, per nat; without a graph."""
        leaf = logp.detach().requires_grad_()
        with torch.enable_grad():  # callers measure under no_grad
            (slope,) = torch.autograd.grad(self.value(leaf, responses), leaf)
        return slope


def log_one_minus_exp(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """log(1 - e^x) for x < 0, exact at both ends (Maechler 2012)."""
    near = x > -math.log(2)
    # log1p has an infinite slope where e^x rounds to 1, which autograd would multiply
    # by 0 in the branch that is not taken.
    below = torch.where(near, -math.log(2), x)
    return torch.where(near, (-x.expm1()).log(), (-below.exp()).log1p())


def below_zero(logp: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`logp`, but no closer to 0 than the dtype resolves; its slope stays 1.

    A token that the model is sure of has logp 0 in float32, and 1 - p is 0 where a loss
    takes its logarithm. The clamp is taken off the graph, so the gradient stays that
    of the smallest 1 - p there is, and does not vanish.
    """
    over = (logp + torch.finfo(logp.dtype).eps).clamp(min=0)
    return logp - over.detach()


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
        """The pairs of a batch."""
        return cls(responses.check_tokens(logp), responses, *responses.pairs())

    def sums(self) -> tuple[Float[Tensor, " pair"], Float[Tensor, " pair"]]:
        """log pi(y | x) of chosen and rejected, summed over tokens, nats."""
        return self.split(self.responses.sums(self.logp))

    def means(self) -> tuple[Float[Tensor, " pair"], Float[Tensor, " pair"]]:
        """log pi(y | x) / tokens of chosen and rejected, nats per token."""
        return self.split(self.responses.means(self.logp))

    def lengths(self) -> tuple[Float[Tensor, " pair"], Float[Tensor, " pair"]]:
        """Tokens of chosen and rejected, to divide by."""
        return self.split(self.responses.lengths(self.logp))

    def log_ratios(self) -> tuple[Float[Tensor, " pair"], Float[Tensor, " pair"]]:
        """log pi/pi_ref of chosen and rejected, summed over tokens, nats."""
        return self.split(self.responses.log_ratios(self.logp))

    def margin(self) -> Float[Tensor, " pair"]:
        """log-ratio of chosen minus log-ratio of rejected, nats."""
        chosen, rejected = self.log_ratios()
        return chosen - rejected

    def split(
        self, per_response: Float[Tensor, " response"]
    ) -> tuple[Float[Tensor, " pair"], Float[Tensor, " pair"]]:
        """One number per response as (chosen, rejected), pair by pair."""
        return per_response[self.chosen_index], per_response[self.rejected_index]


@dataclass(frozen=True)
class PairLoss(Loss):
    """Mean over pairs of a loss of the two summed log-probabilities (and lengths).

    So all tokens of a response have the same push.
    """

    layout = "pairs"
    roles = {"chosen": True, "rejected": False}  # noqa: RUF012 never written to

    @abstractmethod
    def each(self, pairs: Pairs) -> Float[Tensor, " pair"]:
        """The loss of each pair, differentiable."""

    def value(
        self, logp: Float[Tensor, " token"], responses: Responses
    ) -> Float[Tensor, ""]:
        """Mean over pairs, differentiable in `logp` (nats)."""
        return self.each(Pairs.of(logp, responses)).mean()
