"""One run, read: every probe's numbers at every observed step, with named axes."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from learndyn.errors import BadInput
from learndyn.probes.kinds import in_paper_order
from learndyn.record.observation import PROBE_COLUMNS, Observation
from learndyn.record.run_directory import RunDirectory


if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The path of one model through training, axes step x probe. Not an RL rollout.

    Make it by `Trajectory.load`. Values are read once and kept; per-token values are
    read when asked for.
    """

    run: RunDirectory
    probes: pa.Table
    """One row per probe: prompt_id, kind, prompt, response, split, n_tokens, ..."""
    steps: Int[np.ndarray, " step"]
    """Optimizer updates at each observation, ascending."""
    n_tokens: Int[np.ndarray, " probe"]
    """Scored tokens of each response, EOS included."""
    columns: dict[str, Float[np.ndarray, "step probe"]]

    @classmethod
    def load(cls, path: str | Path) -> "Trajectory":
        """Read a run directory, finished or not.

        Raises:
            BadInput: if `path` is no run directory, is of another schema version, has
                no observation yet, or an observation has other probes.
        """
        run = RunDirectory.open(path)
        steps = run.steps  # once: a run that is still going adds to them
        if not steps:
            raise BadInput(f"{path} has no observation yet: nothing to read.")
        probes = run.read_probes()
        observations = [run.read_observation(step) for step in steps]
        for observation in observations:
            if len(observation.logp) != len(probes):
                raise BadInput(
                    f"observation {observation.step} of {path} has "
                    f"{len(observation.logp)} probes, probes.parquet has {len(probes)}."
                )
        columns = {
            name: np.stack([getattr(o, name) for o in observations])
            for name in PROBE_COLUMNS
        }
        return cls(run, probes, np.array(steps), observations[0].n_tokens, columns)

    def __repr__(self) -> str:
        """What it holds, in a line."""
        return (
            f"Trajectory({str(self.run.path)!r}: {len(self.steps)} observations, "
            f"updates {self.steps[0]} to {self.steps[-1]}, {len(self.probes)} probes, "
            f"{len(self.kinds)} kinds)"
        )

    @cached_property
    def kind_of(self) -> np.ndarray:
        """Kind of each probe (text), axis probe."""
        return np.array(self.probes["kind"].to_pylist())

    @cached_property
    def prompt_of(self) -> np.ndarray:
        """Prompt id of each probe (text), axis probe."""
        return np.array(self.probes["prompt_id"].to_pylist())

    @cached_property
    def split_of(self) -> np.ndarray:
        """Split of each probe (text), axis probe."""
        return np.array(self.probes["split"].to_pylist())

    @property
    def kinds(self) -> list[str]:
        """All kinds, in the paper's order."""
        return in_paper_order(set(self.kind_of))

    def rows(self, kind: str, split: str | None = None) -> Int[np.ndarray, " prompt"]:
        """Positions of the probes of one kind, sorted by prompt id.

        Two kinds with the same prompts so line up prompt by prompt.

        Raises:
            BadInput: if no probe is of this kind (and split).
        """
        mask = self.kind_of == kind
        if split is not None:
            mask &= self.split_of == split
        rows = np.flatnonzero(mask)
        if len(rows) == 0:
            where = f" of split {split}" if split else ""
            raise BadInput(
                f"{self.run.path} has no probe of kind {kind}{where}. "
                f"It has: {', '.join(self.kinds)}."
            )
        return rows[np.argsort(self.prompt_of[rows], kind="stable")]

    def values(
        self, column: str, kind: str, split: str | None = None
    ) -> Float[np.ndarray, "step prompt"]:
        """One column of one kind; prompts sorted by id."""
        return self.columns[column][:, self.rows(kind, split)]

    def observation(self, step: int) -> Observation:
        """Everything seen at `step`, per-token values included."""
        return self.run.read_observation(step)

    @cached_property
    def train_log(self) -> list[dict[str, Any]]:
        """What the trainer logged, one mapping per logged update."""
        return self.run.read_log()

    def to_pandas(self) -> "pandas.DataFrame":
        """Long table: one row per (step, probe), texts left out.

        Raises:
            ImportError: if pandas is not installed.
        """
        import pandas

        keys = ("prompt_id", "kind", "split")
        frame = {
            "step": np.repeat(self.steps, len(self.probes)),
            "probe_id": np.tile(np.arange(len(self.probes)), len(self.steps)),
        }
        for name in keys:
            frame[name] = np.tile(
                np.array(self.probes[name].to_pylist()), len(self.steps)
            )
        frame["n_tokens"] = np.tile(self.n_tokens, len(self.steps))
        for name, values in self.columns.items():
            frame[name] = values.reshape(-1)
        return pandas.DataFrame(frame)
