r"""What the authors' notebook calls LBK and SignDelta, from a finished run.

Their figures (Fig. 8 of Ren & Sutherland 2025) come from `cal_ratio` of the notebook
`iclr_rebuttal`. It is not what the paper defines (App. C.2, Eq. 23-31), for which see
`learndyn.forces.proxies`. With l_i(t) the summed log-probability of the response to
prompt i of one kind at observation t:

    notebook LBK        sqrt( sum_i (l_i(t+1) - l_i(t))^2 )  /  (a(t+1) g(t+1))
    notebook SignDelta        mean_i (l_i(t+1) - l_i(t))     /  (a(t+1) g(t+1))

    a  =  sqrt( mean_i ||A_i||_F )      g  =  mean_i p_e(i)

Differences to the paper: only the label's log-probability counts, not all V; changes
are over all updates between two observations, and over prompts; their norm is not
squared; of the norm of A, which is a root already, a root is taken again, of its mean
over prompts; p_e = ||pi - e_y|| is that of the probes, of one kind whatever was trained
on, and stands for the push of the trained response; A and p_e are those after the
change; the learning rate is in neither. The order of kinds is much the same, the values
are not. One thing differs from the notebook, too: it has (mean ||pi||)^2 over tokens
where an observation keeps the mean of ||pi||^2, which is never smaller.
"""

import numpy as np
from jaxtyping import Float, Int

from learndyn.diagnose.finding import clock
from learndyn.errors import BadInput
from learndyn.record.trajectory import Trajectory


def notebook_lbk(
    trajectory: Trajectory,
    kind: str,
    vocabulary: int,
    *,
    error_kind: str = "chosen",
    split: str | None = None,
) -> Float[np.ndarray, " change"]:
    """The notebook's LBK of one kind, one number from each observation to the next.

    `vocabulary` is V, the number of logits (with padding, as the model has it).
    `error_kind` is the kind whose p_e divides; the notebook always takes "chosen". Over
    prompts that were scored at every observation. No unit: nats / sqrt(||A||_F).

    Raises:
        BadInput: if there are fewer than two observations, no prompt was scored at all
            of them, a kind is not there, or `vocabulary` is below 2.
    """
    change = np.diff(_scored(trajectory, "logp", kind, split), axis=0)
    divisor = _divisor(trajectory, kind, vocabulary, error_kind, split)
    return np.linalg.norm(change, axis=1) / divisor


def notebook_sign_delta(
    trajectory: Trajectory,
    kind: str,
    vocabulary: int,
    *,
    error_kind: str = "chosen",
    split: str | None = None,
) -> Float[np.ndarray, " change"]:
    """The notebook's SignDelta of one kind, from each observation to the next.

    Unlike the paper's it is a mean over prompts of label log-probabilities, and divided
    as `notebook_lbk` is, whose arguments it takes.

    Raises:
        BadInput: as `notebook_lbk`.
    """
    change = np.diff(_scored(trajectory, "logp", kind, split), axis=0)
    divisor = _divisor(trajectory, kind, vocabulary, error_kind, split)
    return change.mean(1) / divisor


def _divisor(
    trajectory: Trajectory,
    kind: str,
    vocabulary: int,
    error_kind: str,
    split: str | None,
) -> Float[np.ndarray, " change"]:
    """Root of the mean norm of A, times the mean p_e: both after each change."""
    if vocabulary < 2:
        raise BadInput(
            f"vocabulary is {vocabulary}: give the number of logits of the model, its "
            "config's vocab_size."
        )
    p_norm2 = _scored(trajectory, "p_norm2", kind, split)
    a_norm = np.sqrt(vocabulary - 2 + vocabulary * p_norm2)
    p_e = _scored(trajectory, "p_gap", error_kind, split)
    return (np.sqrt(a_norm.mean(1)) * p_e.mean(1))[1:]


def _scored(
    trajectory: Trajectory, column: str, kind: str, split: str | None
) -> Float[np.ndarray, "step prompt"]:
    """One column, of prompts that were scored at every observation.

    Raises:
        BadInput: if there is only one observation, or no such prompt.
    """
    if len(trajectory.steps) < 2:
        raise BadInput(
            f"{trajectory.run.path} has one observation, at {clock(trajectory)} "
            f"{trajectory.steps[0]}: a change needs two."
        )
    rows: Int[np.ndarray, " prompt"] = trajectory.rows(kind, split)
    always = trajectory.covered[:, rows].all(axis=0)
    if not always.any():
        raise BadInput(
            f"no prompt of kind {kind} in {trajectory.run.path} was scored at every "
            f"observation: the panel has none of its {len(rows)}. Score the run again "
            "without a panel."
        )
    return trajectory.columns[column][:, rows[always]]
