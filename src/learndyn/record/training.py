"""What a run trained on, and what its log says of those rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int

from learndyn.record.run_info import RunInfo


@dataclass(frozen=True, eq=False)
class LoggedRewards:
    """The trainer's implicit rewards of its own training rows, in nats.

    log pi - log pi_ref of whole responses, means over the rows of a batch or of the
    updates between two logged ones: rewards/chosen and rewards/rejected over beta.
    """

    steps: Int[np.ndarray, " row"]
    chosen: Float[np.ndarray, " row"]
    rejected: Float[np.ndarray, " row"]

    @property
    def margin(self) -> Float[np.ndarray, " row"]:
        """What chosen gained over rejected, in nats."""
        return self.chosen - self.rejected

    @classmethod
    def of(
        cls, info: RunInfo, log: Sequence[Mapping[str, Any]]
    ) -> "LoggedRewards | None":
        """Read the log of a method with a reference; None where it has no rewards.

        Without a reference (SimPO, CPO, ORPO) the logged reward is not a change, so it
        is not read.
        """
        if not info.has_reference or not info.beta or info.family == "online":
            return None
        rows = [
            (row["step"], row["rewards/chosen"], row["rewards/rejected"])
            for row in log
            if all(
                isinstance(row.get(name), int | float)
                for name in ("step", "rewards/chosen", "rewards/rejected")
            )
        ]
        if not rows:
            return None
        steps, chosen, rejected = np.array(rows, dtype=float).T
        return cls(steps.astype(int), chosen / info.beta, rejected / info.beta)


@dataclass(frozen=True, eq=False)
class Training:
    """What a run trained on, probe by probe."""

    rows: int | None
    """Training examples of one epoch; None where not known."""
    epochs: float | None
    """Times that each of them was seen, so far."""
    prompts: Bool[np.ndarray, " probe"] | None
    """Whether the probe's prompt was trained on; None where not known: an older run, a
    stream, rows without their bounds."""
    raised: Bool[np.ndarray, " probe"] | None
    """Whether the probe itself was trained on as an answer to raise: chosen, desirable,
    or what SFT imitates."""
    lowered: Bool[np.ndarray, " probe"] | None
    """Whether the probe itself was trained on as an answer to lower."""
    why_unknown: str
    """Why it is not known which probes were trained on; empty if it is."""
    absent: tuple[str, ...]
    """Prompt ids of split "train" that are not among the training rows."""
    leaked: tuple[str, ...]
    """Prompt ids of other splits that are among them."""
    rewards: LoggedRewards | None
    """The trainer's rewards of its training rows, in nats."""

    @classmethod
    def of(
        cls, info: RunInfo, probes: pa.Table, log: Sequence[Mapping[str, Any]]
    ) -> "Training":
        """Read what `run.json` and `train.jsonl` say of the probes of a run."""
        trained = info.trained
        rows = info.train_rows
        epochs, rewards = _epochs(info, rows, log), LoggedRewards.of(info, log)
        if trained is None or trained.matched_by is None:
            why = "" if trained is None else trained.why_unknown
            why = why or "the run was recorded by a version that did not look"
            return cls(rows, epochs, None, None, None, why, (), (), rewards)
        names = probes["prompt_id"].to_pylist()
        of_train = dict(zip(names, probes["split"].to_pylist(), strict=True))
        every = range(len(names))
        masks = (
            np.array([name in trained.prompts for name in names], dtype=bool),
            np.array([i in trained.raised for i in every], dtype=bool),
            np.array([i in trained.lowered for i in every], dtype=bool),
        )
        absent = (p for p, s in of_train.items() if s == "train")
        leaked = (p for p, s in of_train.items() if s != "train")
        return cls(
            *(rows, epochs, *masks, ""),
            tuple(p for p in absent if p not in trained.prompts),
            tuple(p for p in leaked if p in trained.prompts),
            rewards,
        )


def _epochs(
    info: RunInfo, rows: int | None, log: Sequence[Mapping[str, Any]]
) -> float | None:
    logged = [row["epoch"] for row in log if isinstance(row.get("epoch"), int | float)]
    if logged:
        return float(max(logged))
    sizes = ("per_device_train_batch_size", "gradient_accumulation_steps")
    one, parts = (info.trainer.get(name) for name in sizes)
    if not rows or not info.final_step:
        return None
    if not isinstance(one, int) or not isinstance(parts, int):
        return None
    return info.final_step * one * parts / rows
