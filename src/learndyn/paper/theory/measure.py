"""The paper's theory, measured on one seed's model and runs.

What Ren & Sutherland 2025 derive (Sections 2 and 3, Appendices B, C and E) is asked of
a tiny model, where A, K and G are written out, and of the weights of real runs. The
walk of (y+, y-) and how peaky the answers became (Sections 4.1 and 4.2, Figure 9) need
observations alone. `theory.claims` says which statements hold, `theory.figures` draws
them.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float

from learndyn.diagnose.intervals import paired_bootstrap
from learndyn.errors import BadInput
from learndyn.forces.batch import Batch
from learndyn.forces.direction import placed
from learndyn.forces.losses import loss_named
from learndyn.forces.predict import Predictor
from learndyn.measure.load import load_model
from learndyn.paper.finetuning.recorded import probed_split
from learndyn.paper.theory.kernel import (
    UPDATES,
    Weights,
    kernel_bounds,
    kernel_path,
    short_run,
    weights_of,
)
from learndyn.paper.theory.losses import residuals
from learndyn.paper.theory.result import (
    Numbers,
    Order,
    RunPeakiness,
    TheoryResult,
    Walk,
)
from learndyn.paper.theory.sign_rule import sign_rules
from learndyn.paper.theory.steps import (
    Setting,
    tiny_orders,
    trained_order,
    two_kernels,
)
from learndyn.record.trajectory import Trajectory


def _walk(role: str, run: Trajectory) -> Walk:
    """Mean log-probability of chosen and rejected at each observation.

    Raises:
        BadInput: if a kind is not there, or no prompt was scored at all observations.
    """
    sides = [_scored(run, "logp", kind) for kind in ("chosen", "rejected")]
    chosen, rejected = (side.mean(1).tolist() for side in sides)
    turn, fall = (_change(side) for side in sides)
    return Walk(role, run.steps.tolist(), chosen, rejected, turn, fall)


def _peak(role: str, run: Trajectory, vocabulary: int) -> RunPeakiness:
    """||A||_F along chosen, and log pi(y*) against log(1 - pi(y*)).

    Raises:
        BadInput: as `_walk`.
    """
    size = np.sqrt(vocabulary - 2 + vocabulary * _scored(run, "p_norm2", "chosen"))
    band = paired_bootstrap(size)
    tokens = _scored(run, None, "chosen")
    argmax, rest = (
        (_scored(run, column, "chosen") / tokens).mean(1)
        for column in ("argmax_logp", "rest_logp")
    )
    x, y = argmax - argmax.mean(), rest - rest.mean()
    slope = float(x @ y / (x @ x)) if x @ x else 0.0
    spread = float(y @ y)
    return RunPeakiness(
        role=role,
        steps=run.steps.tolist(),
        a_norm=band.mean.tolist(),
        low=band.low.tolist(),
        high=band.high.tolist(),
        rise=_change(size),
        argmax=argmax.tolist(),
        rest=rest.tolist(),
        slope=slope,
        r2=1 - float(((y - slope * x) ** 2).sum()) / spread if spread else 1.0,
    )


def _scored(
    run: Trajectory, column: str | None, kind: str
) -> Float[np.ndarray, "step prompt"]:
    """One column (None: the tokens) of the training prompts that were scored at every
    observation.

    Raises:
        BadInput: if there is no such prompt, or of this kind.
    """
    split = probed_split(run)
    rows = run.rows(kind, split)
    scored = rows[run.covered[:, rows].all(axis=0)]
    if not len(scored):
        raise BadInput(
            f"no prompt of kind {kind} in {run.run.path} was scored at every "
            "observation. Score the run again without a panel."
        )
    if column is None:
        return (
            np.broadcast_to(run.n_tokens[scored], (len(run.steps), len(scored))) * 1.0
        )
    return run.columns[column][:, scored]


def _change(values: Float[np.ndarray, "step prompt"]) -> Numbers:
    """Mean, low, high of the change from first to last observation."""
    interval = paired_bootstrap(values[-1] - values[0]).at()
    return [interval.mean, interval.low, interval.high]


_NEEDED = ("sft", "dpo")
_SFT_END = "SFT end"

_TRAINED = 8
"""Prompts whose answers make the batch of `trained_order`."""

_SPLIT = 32
"""Prompts, none of them probed, whose pairs make the update of `two_kernels`."""

_PROBED = 6
"""Prompts that `two_kernels` looks at."""

_PUSHED = 3
"""Rejected responses that `sign_rules` pushes down, position by position."""


def measure_theory(seed: int, runs: Mapping[str, Path], *, model: Path) -> TheoryResult:
    """Measure all of it, in about a minute on one core for the embedded model.

    `model` is what SFT started from; `runs` holds finished run directories by role,
    "sft" and "dpo" with their weights in `model/`. Every other role is drawn as a walk.

    Raises:
        BadInput: if a role, its weights, or probes of chosen and rejected are missing,
            or the model has no forward mode.
    """
    _check(runs)
    loaded = {role: Trajectory.load(path) for role, path in runs.items()}
    setting = Setting.of(loaded["sft"])
    trained = load_model(model)
    few = setting.of_prompts(setting.prompts[:2])
    predictor = Predictor.attach(trained, few.pairs, method="forward-mode")
    ends = {role: weights_of(load_model(runs[role] / "model")) for role in _NEEDED}
    checkpoints = _checkpoints(seed, predictor, setting, loaded, ends)
    responses = [
        *setting.answers("chosen", setting.prompts[:1]),
        *setting.answers("rejected", setting.prompts[1:2]),
    ]
    path = kernel_path(predictor, few, responses, checkpoints, seed=seed)
    orders = [*tiny_orders(seed), _trained(predictor, setting, "sft")]
    with placed(trained, ends["sft"]):
        orders.append(_trained(predictor, setting, "dpo"))
        some = setting.of_prompts(setting.prompts[:_PROBED])
        others = setting.prompts[_PROBED : _PROBED + _SPLIT] or setting.prompts
        kernels = two_kernels(
            predictor.on_pairs(some.pairs),
            some,
            _batch(predictor, setting, "dpo", others),
        )
        at = list(checkpoints).index(_SFT_END)
        norms = np.array(path.norms[at])
        bounds = kernel_bounds(predictor, few, responses, norms, seed=seed)
        pushed = setting.answers("rejected", setting.prompts[:_PUSHED])
        rules = sign_rules(predictor, pushed)
    return TheoryResult(
        seed=seed,
        orders=orders,
        kernels=kernels,
        residuals=residuals(seed),
        walks=[_walk(role, run) for role, run in loaded.items()],
        kernel_path=path,
        bounds=bounds,
        peaks=[
            _peak(role, loaded[role], predictor.logps.vocabulary) for role in _NEEDED
        ],
        sign_rules=rules,
    )


def _check(runs: Mapping[str, Path]) -> None:
    for role in _NEEDED:
        if role not in runs:
            raise BadInput(
                f"the runs ({', '.join(runs) or 'none'}) lack {role!r}: the theory is "
                f"measured on {' and '.join(_NEEDED)}."
            )
        if not (runs[role] / "model").is_dir():
            raise BadInput(
                f"{runs[role]} has no weights in model/, and the kernel is measured on "
                "them. Train the run again."
            )


def _checkpoints(
    seed: int,
    predictor: Predictor,
    setting: Setting,
    runs: Mapping[str, Trajectory],
    ends: Mapping[str, Weights],
) -> dict[str, tuple[str, Weights]]:
    """Real weights by name: start, short run, end, of SFT and then of DPO."""
    model = predictor.model
    start = weights_of(model)
    checkpoints = {"start": ("sft", start)}
    for role in _NEEDED:
        settings = runs[role].run.info.trainer
        with placed(model, start if role == "sft" else ends["sft"]):
            for update, weights in short_run(
                predictor, setting, role, settings, seed=seed
            ):
                checkpoints[f"{role.upper()} {update}"] = (role, weights)
        checkpoints[f"{role.upper()} end"] = (role, ends[role])
    assert len(checkpoints) == 1 + len(_NEEDED) * (len(UPDATES) + 1)
    return checkpoints


def _batch(
    predictor: Predictor, setting: Setting, loss: str, prompts: tuple[str, ...]
) -> Batch:
    chosen = setting.answers("chosen", prompts)
    rejected = setting.answers("rejected", prompts) if loss == "dpo" else []
    return Batch.of(predictor.logps, chosen, rejected, loss_named(loss))


def _trained(predictor: Predictor, setting: Setting, loss: str) -> Order:
    batch = _batch(predictor, setting, loss, setting.prompts[:_TRAINED])
    return trained_order(loss, predictor, batch)
