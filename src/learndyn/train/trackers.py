"""What an observation gives the trainer's own trackers (W&B, TensorBoard, trackio)."""

import math

import numpy as np
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

from learndyn.diagnose.intervals import standard_error
from learndyn.probes.probe import ProbeSet
from learndyn.record.observation import Observation
from learndyn.train.schedule import Subset


_TRACKED = ("logp", "argmax_logp")


def send(
    trainer: Trainer,
    values: dict[str, float],
    args: TrainingArguments,
    state: TrainerState,
    control: TrainerControl,
) -> None:
    """Hand `values` to every tracker of `trainer`; what is not finite is left out.

    Past the trainer's own log: `trainer.log` would add rows to its history, flush TRL's
    running averages and cancel the trainer's own row of this step. Trackers are
    callbacks, so they are handed the values themselves, and the flags are restored.
    """
    flags = dict(vars(control))
    known = {name: value for name, value in values.items() if math.isfinite(value)}
    for callback in trainer.callback_handler.callbacks:
        if type(callback).__module__.startswith("transformers.integrations"):
            callback.on_log(args, state, control, logs=dict(known), model=None)
    vars(control).update(flags)


def tracked(
    probes: ProbeSet, observation: Observation, first: Observation, panel: Subset | None
) -> dict[str, float]:
    """Means of a full observation; of a run with a panel, at every observation, the
    changes of the panel. Means over the panel would jump at every full observation."""
    full = len(observation.ids) == len(probes)
    values = _means_by_kind(probes, observation) if full else {}
    if panel is not None:
        values |= _panel_changes(panel.probes.probes, first, observation, panel.rows)
    if observation.approximate is None:
        return values
    label = f"probes_approximate_{observation.approximate.replace(' ', '_')}/"
    return {
        label + name.removeprefix("probes/"): value for name, value in values.items()
    }


def _means_by_kind(probes: ProbeSet, observation: Observation) -> dict[str, float]:
    """Means over probes, nats per response, of a full observation."""
    kinds = np.array([probe.kind for probe in probes])
    return {
        f"probes/{kind}/{column}_mean": float(
            getattr(observation, column)[kinds == kind].mean()
        )
        for kind in probes.kinds
        for column in _TRACKED
    }


def _panel_changes(
    panel: ProbeSet, first: Observation, observation: Observation, rows: np.ndarray
) -> dict[str, float]:
    """Mean change of the panel's probes since the first observation, nats per response,
    and its standard error over prompts.

    The same probes at every observation, so that the curve has no jump where an
    observation is full. `rows` are the panel's positions in the first observation.
    """
    kinds = np.array([probe.kind for probe in panel])
    now = np.isin(observation.ids, rows)
    values: dict[str, float] = {}
    for column in _TRACKED:
        change = getattr(observation, column)[now] - getattr(first, column)[rows]
        for kind in panel.kinds:
            own = change[kinds == kind]
            name = f"probes/{kind}/{column}_panel_change"
            values[f"{name}_mean"] = float(own.mean())
            values[f"{name}_se"] = float(standard_error(own, np.ones_like(own)))
    return values
