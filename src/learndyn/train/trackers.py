"""Means of an observation in the trainer's own trackers (W&B, TensorBoard, trackio)."""

import math

import numpy as np
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

from learndyn.probes.probe import ProbeSet
from learndyn.record.observation import Observation


def send_means(
    trainer: Trainer,
    probes: ProbeSet,
    observation: Observation,
    args: TrainingArguments,
    state: TrainerState,
    control: TrainerControl,
) -> None:
    """Hand the means over probes of each kind to every tracker of `trainer`.

    Past the trainer's own log: `trainer.log` would add rows to its history, flush TRL's
    running averages and cancel the trainer's own row of this step. Trackers are
    callbacks, so they are handed the values themselves, and the flags are restored.
    """
    flags = dict(vars(control))
    for callback in trainer.callback_handler.callbacks:
        if type(callback).__module__.startswith("transformers.integrations"):
            means = means_by_kind(probes, observation)
            callback.on_log(args, state, control, logs=means, model=None)
    vars(control).update(flags)


def means_by_kind(probes: ProbeSet, observation: Observation) -> dict[str, float]:
    """Means over probes, nats per response; what is not finite is left out."""
    kinds = np.array([probe.kind for probe in probes])
    means: dict[str, float] = {}
    for kind in probes.kinds:
        for column in ("logp", "argmax_logp"):
            value = float(getattr(observation, column)[kinds == kind].mean())
            means[f"probes/{kind}/{column}_mean"] = value
    return {name: value for name, value in means.items() if math.isfinite(value)}
