"""What is measured of the paper's theory on one seed; plain numbers, for JSON.

`learndyn.paper.theory.measure` measures it, `learndyn.paper.theory.claims` tests it and
`learndyn.paper.theory.figures` draws it, without any model.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


Numbers = list[float]


@dataclass(frozen=True)
class Order:
    """How the error of the first-order prediction falls with the step (Prop. 1)."""

    loss: str
    """ "sft" or "dpo"."""
    model: str
    """ "tiny": A, K and G written out in float64; "trained": the run's own model."""
    steps: Numbers
    """Falling; the first moves the most moved token by `theory_steps.FIRST` nats."""
    errors: Numbers
    """||actual - predicted|| over all that is predicted, nats, per step."""
    changes: Numbers
    """||actual||, nats."""
    without_a: Numbers
    """As `errors`, with A left out of the product; empty for "trained"."""
    noise: float
    """||rounding|| of an actual change, nats: errors near it say nothing."""
    slope: float
    """Power of the step that the error goes with, over the clear errors."""
    decades: float
    """Decades of the step over which errors are clear of rounding."""


@dataclass(frozen=True)
class Kernels:
    """The two kernels of a DPO update at the SFT checkpoint, kind by kind (Eq. 7)."""

    kinds: list[str]
    pull: Numbers
    """Mean first-order change by the part of y+, nats, per kind."""
    push: Numbers
    """The same by the part of y-."""
    actual: Numbers
    """Mean change by the update as it was made."""
    relative_error: float
    """||actual - (pull + push)|| / ||actual|| over all probes."""
    greedy_pull: float
    """Change by the part of y+ of the tokens that are most probable along chosen, nats
    per response."""
    greedy_push: float
    greedy_actual: float
    margin: float
    """Change of the probes' margin that the update was scaled to, nats."""


@dataclass(frozen=True)
class Residuals:
    """What the losses ask of y+ and y- as the margin grows (Appendix B.2)."""

    margins: Numbers
    """log-ratio of y+ minus that of y-, nats; both move by half of it."""
    chosen: dict[str, Numbers]
    """dL/dlogp of y+ by loss, per nat; below 0 it is raised."""
    rejected: dict[str, Numbers]
    """The same of y-; above 0 it is lowered: the paper's negative gradient."""
    printed: dict[str, dict[str, Numbers]]
    """The paper's printed residual by loss and role ("chosen", "rejected")."""
    misses: dict[str, float]
    """Largest difference of the printed residual to autograd's, over random logits, as
    a share of the largest residual."""
    sppo_rejected: float
    """Change of log pi(y-) by a small step on SPPO from the reference, per nat by which
    that step raises log pi(y+)."""


@dataclass(frozen=True)
class Walk:
    """One run in the plane of log pi(y+) and log pi(y-)."""

    role: str
    steps: list[int]
    chosen: Numbers
    """Mean over prompts, nats per response."""
    rejected: Numbers
    turn: Numbers
    """Change of y+ from first to last observation: mean, low, high, nats."""
    fall: Numbers
    """The same of y-."""


@dataclass(frozen=True)
class KernelPath:
    """||K(o, u)||_F at checkpoints of SFT and DPO (Appendix C.1)."""

    checkpoints: list[str]
    stages: list[str]
    """ "sft" or "dpo" of each checkpoint. The SFT checkpoint ends one and starts the
    other."""
    kinds: list[str]
    """Kind of each observed response o."""
    norms: list[list[Numbers]]
    """Checkpoint by trained response u by o; logits^2 per squared unit of parameter."""
    ranks: list[Numbers]
    """Spearman's correlation over o of checkpoints t and t', mean over u."""
    drift: list[Numbers]
    """||K_t - K_t'||_F / sqrt(||K_t||_F ||K_t'||_F), over all o and u."""


@dataclass(frozen=True)
class Bounds:
    """LBK against the kernel it is a lower bound of (Appendix C.2)."""

    exact_lbk: Numbers
    """LBK / eta^2 of pairs (o, u) of the tiny model, K written out, float64."""
    exact_kernel: Numbers
    """||K||_F^2 of the same pairs."""
    lbk: Numbers
    """LBK / eta^2 of pairs of the SFT checkpoint."""
    kernel: Numbers
    """||K||_F^2 of the same, estimated."""
    notebook: Numbers
    """The reference notebook's LBK of the same steps, in its own unit."""
    kinds: list[str]
    """Kind of o of each pair."""
    rank_lbk: float
    """Spearman's correlation over o of LBK and ||K||_F, mean over u."""
    rank_notebook: float
    """The same of the notebook's."""
    a_norm: float
    """Largest difference of ||A||_F^2 to V - 2 + V ||pi||^2, as a share of it."""


@dataclass(frozen=True)
class RunPeakiness:
    """How peaky the distributions along chosen are over one run (Figure 9)."""

    role: str
    steps: list[int]
    a_norm: Numbers
    """Mean over prompts of the root mean square over tokens of ||A||_F."""
    low: Numbers
    high: Numbers
    """95 % interval over prompts."""
    rise: Numbers
    """Change of `a_norm` from first to last: mean, low, high."""
    argmax: Numbers
    """Mean over prompts of log pi(y*) per token, nats."""
    rest: Numbers
    """The same of log(1 - pi(y*))."""
    slope: float
    """Of `rest` on `argmax`, over all observations."""
    r2: float


@dataclass(frozen=True)
class SignRule:
    """Who rises where y- is pushed down: pi_i > tau = ||pi||^2 - pi_y (Section 3.3)."""

    pushed: str
    """ "one": each position on its own, as in the theory; "all": the whole response."""
    label_falls: float
    """Share of positions of y- at which y- falls."""
    top_rises: float
    """Share of positions at which the most probable other token rises."""
    valley: float | None
    """Share of the vocabulary (y aside) for which the rule gives the sign of the actual
    change, where y- is not the most probable token. None without such a position."""
    peak: float | None
    """The same where it is."""
    flat: float
    """What saying "falls" of every token would get right, or "rises", if that is more:
    most of a vocabulary falls, so `valley` and `peak` alone say little."""
    above: float
    """Share of the tokens with pi_i > tau that rise."""
    below: float
    """Share of the other tokens that rise."""
    ratios: Numbers
    """log10(pi_i / tau), middles of bins, where tau > 0."""
    rising: Numbers
    """Share of the tokens of each bin that rise."""
    positions: int


@dataclass(frozen=True)
class TheoryResult:
    """All of it, for one seed."""

    seed: int
    orders: list[Order]
    kernels: Kernels
    residuals: Residuals
    walks: list[Walk]
    kernel_path: KernelPath
    bounds: Bounds
    peaks: list[RunPeakiness]
    sign_rules: list[SignRule]

    def to_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> "TheoryResult":
        """Inverse of `to_dict`."""
        return cls(
            seed=int(entries["seed"]),
            orders=[Order(**one) for one in entries["orders"]],
            kernels=Kernels(**entries["kernels"]),
            residuals=Residuals(**entries["residuals"]),
            walks=[Walk(**one) for one in entries["walks"]],
            kernel_path=KernelPath(**entries["kernel_path"]),
            bounds=Bounds(**entries["bounds"]),
            peaks=[RunPeakiness(**one) for one in entries["peaks"]],
            sign_rules=[SignRule(**one) for one in entries["sign_rules"]],
        )
