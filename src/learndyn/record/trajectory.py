"""One run, read and checked: every probe's numbers at every observed step."""

import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int

from learndyn.errors import BadInput, NotInstalled, listed
from learndyn.probes.kinds import in_paper_order
from learndyn.probes.notebook import table_html
from learndyn.probes.panel import Panel
from learndyn.record.observation import PROBE_COLUMNS, Observation, Sums, read_tokens
from learndyn.record.run_directory import RunDirectory
from learndyn.record.training import Training


if TYPE_CHECKING:
    import pandas


def _read_observations(
    run: RunDirectory,
    steps: list[int],
    probes: pa.Table,
    panel: Int[np.ndarray, " row"] | None,
) -> tuple[list[Sums], tuple[str, ...]]:
    """All observations that can be read, and what to say of the others.

    Each is of all probes or of those of the `panel`.
    """
    first, unit = steps[0], run.info.step_unit
    if first > 0 and run.info.began_before(first, run.read_log()):
        raise BadInput(
            f"the first observation of {run.path} is missing: its earliest file is "
            f"from {unit} {first}, and the run began before that. Changes are measured "
            "from the first observation. Restore the file, or train again."
        )
    read, unreadable = [], []
    for step in steps:
        try:
            one = run.read_sums(step)
            _check_rows(one, probes, panel, run)
            read.append(one)
        except BadInput as error:
            if not read:
                raise BadInput(
                    f"{error}\nIt is the first observation of {run.path}, which all "
                    "others are compared with. Restore the file, or train again."
                ) from error
            unreadable.append(f"The observation at {unit} {step} is left out: {error}")
    if unreadable:
        more = f" And {len(unreadable) - 1} more." if unreadable[1:] else ""
        warnings.warn(unreadable[0] + more, stacklevel=3)
    return read, tuple(unreadable)


def _check_lengths(first: Sums, probes: pa.Table, path: str) -> None:
    """The probe table is of this run only if its answers have as many tokens.

    Imported runs do not know the number: it is 0.
    """
    if "n_tokens" not in probes.column_names:
        return
    expected = probes["n_tokens"].to_numpy()
    differ = (expected != first.n_tokens) & (expected > 0) & (first.n_tokens > 0)
    if differ.any():
        row = int(np.argmax(differ))
        raise BadInput(
            f"probes.parquet of {path} belongs to another run: {differ.sum()} of "
            f"{len(probes)} answers have another number of tokens than was scored at "
            f"update {first.step} (row {row}: {expected[row]} and "
            f"{first.n_tokens[row]}). Restore this run's own file."
        )


def _check_rows(
    observation: Sums,
    probes: pa.Table,
    panel: Int[np.ndarray, " row"] | None,
    run: RunDirectory,
) -> None:
    """An observation is of all probes or of the panel's, never of others."""
    ids, known = observation.ids, len(probes)
    if np.array_equal(ids, np.arange(known)):
        return
    if panel is not None and np.array_equal(ids, panel):
        return
    path = run.observation_path(observation.step)
    expected = np.arange(known) if panel is None or len(ids) == known else panel
    if len(ids) == len(expected):
        row = int(np.argmax(ids != expected))
        raise BadInput(
            f"the probe ids in {path} differ from those of probes.parquet at "
            f"{np.sum(ids != expected)} of {len(ids)} rows (row {row}: {ids[row]}, not "
            f"{expected[row]}). The file is damaged."
        )
    foreign = np.setdiff1d(ids, np.arange(known))
    lacks = f" and lacks {len(foreign)} of those" if len(foreign) else ""
    panels = "no panel" if panel is None else f"a panel of {len(panel)} probes"
    raise BadInput(
        f"{path} has {len(ids)} probes, "
        f"probes.parquet has {known}{lacks}; run.json has {panels}. An observation "
        "holds all probes or the panel's, and the panel never changes."
    )


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
    """Optimizer updates at each observation, ascending; of an imported run what its
    `step_unit` says."""
    n_tokens: Int[np.ndarray, " probe"]
    """Scored tokens of each response, EOS included."""
    columns: dict[str, Float[np.ndarray, "step probe"]]
    """NaN where a probe was not scored (see `covered`), or the model had diverged."""
    scored: Bool[np.ndarray, "step probe"] | None = None
    """As `covered`; None where every probe was scored at every step."""
    approximate: str | None = None
    """As of its observations; None where all are exact."""
    unreadable: tuple[str, ...] = ()
    """Why observations were left out, in words, one sentence for each file."""
    missing: tuple[int, ...] = ()
    """Where the run's schedule has an observation and there is no file."""

    @classmethod
    def load(cls, path: str | Path) -> "Trajectory":
        """Read a run directory, finished or not.

        An observation whose file is corrupt, or is of other probes than all of them or
        those of the run's panel, is left out, with a warning, and named in
        `unreadable`; without the first one there would be nothing to compare with. One
        that should be there and is not is in `missing`.

        Raises:
            BadInput: if `path` is not a run directory, is of another schema version,
                has no observation yet, or its first one is missing, cannot be read or
                is not of all probes.
        """
        run = RunDirectory.open(path)
        steps = run.steps  # once: a run that is still going adds to them
        if not steps:
            raise BadInput(f"{path} has no observation yet: nothing to read.")
        probes = run.read_probes()
        panel = _panel_rows(run, probes)
        read, unreadable = _read_observations(run, steps, probes, panel)
        scored = np.zeros((len(read), len(probes)), dtype=bool)
        columns = {name: np.full(scored.shape, np.nan) for name in PROBE_COLUMNS}
        for index, one in enumerate(read):
            scored[index, one.ids] = True
            for name, values in columns.items():
                values[index, one.ids] = one.columns[name]
        first, unit = read[0], run.info.step_unit
        if not scored[0].all():
            raise BadInput(
                f"the first observation of {path}, at {unit} {first.step}, holds only "
                f"{scored[0].sum()} of {len(probes)} probes (the panel), so the others "
                "cannot be compared with it. The full one before it was removed: "
                "restore its file, or train again."
            )
        _check_lengths(first, probes, str(path))
        observed = np.array([one.step for one in read])
        label = next((o.approximate for o in read if o.approximate is not None), None)
        missing = run.info.missing_steps(steps)
        tokens = first.n_tokens
        return cls(
            *(run, probes, observed, tokens, columns),
            *(scored, label, unreadable, missing),
        )

    @classmethod
    def of(cls, source: "AnyRun") -> "Trajectory":
        """The trajectory itself, or the one in a run directory.

        All that takes a run takes a path by this.

        Raises:
            BadInput: as `load`.
        """
        if isinstance(source, Trajectory):
            return source
        return cls.load(source.path if isinstance(source, RunDirectory) else source)

    def __repr__(self) -> str:
        return f"Trajectory({self._about})"

    def _repr_html_(self) -> str:
        rows = []
        for kind in self.kinds:
            values = self.values("logp", kind)
            # of the same prompts at both ends, also where the last is of the panel
            both = values[[0, -1]][:, np.isfinite(values[[0, -1]]).all(axis=0)]
            first, last = both.mean(axis=1) if both.size else (np.nan, np.nan)
            numbers = (f"{first:.1f}", f"{last:.1f}", f"{last - first:+.1f}")
            rows.append((kind, both.shape[1], *numbers))
        head = ("kind", "prompts", "first", "last", "change")
        return table_html(
            f"Trajectory {self._about}; mean log π(response | prompt), nats", head, rows
        )

    @property
    def _about(self) -> str:
        return (
            f"{str(self.run.path)!r}: {len(self.steps)} observations, "
            f"{self.unit}s {self.steps[0]} to {self.steps[-1]}, "
            f"{len(self.probes)} probes, {len(self.kinds)} kinds"
        )

    def report(self, out: str | Path | None = None, *, overwrite: bool = False) -> Path:
        """Write `report.html` about the run, as `learndyn.write_report`."""
        return self.run.report(out, overwrite=overwrite)

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
    def unit(self) -> str:
        """What `steps` count: "update", unless run.json differs."""
        return self.run.info.step_unit

    @property
    def defects(self) -> dict[str, str]:
        """Columns and kinds that run.json lists as not what their names say: why."""
        entries = [entry for entry in self.run.info.defects if isinstance(entry, dict)]
        return {
            name: str(entry.get("what", "not what its name says")).rstrip(".")
            for entry in entries
            for name in str(entry.get("column")).split(", ")
        }

    @property
    def means_only(self) -> set[str]:
        """Kinds of which only a mean over prompts is recorded."""
        return set(self.kinds) & set(self.run.info.means_only)

    @property
    def covered(self) -> Bool[np.ndarray, "step probe"]:
        """Which probes each observation is of: all, or between full observations those
        of the run's panel."""
        if self.scored is None:
            return np.ones((len(self.steps), len(self.probes)), dtype=bool)
        return self.scored

    @property
    def lost(self) -> Bool[np.ndarray, "step probe"]:
        """Values that were scored and are not finite: the model had diverged."""
        return self.covered & ~np.isfinite(self.columns["logp"])

    @cached_property
    def panel(self) -> Panel | None:
        """The panel, if any observation so far is of its prompts alone."""
        return None if self.covered.all() else self.run.info.panel

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
        """One column of one kind; prompts sorted by id.

        NaN where an observation is of the panel and the prompt is not in it: compare
        changes of the same prompts, as `learndyn.diagnose.changes` does, not means.
        """
        return self.columns[column][:, self.rows(kind, split)]

    def observation(self, step: int) -> Observation:
        """Everything seen at `step`, per-token values included.

        Its rows are `ids`: those of the panel, where the observation is not full.
        """
        return self.run.read_observation(step)

    def tokens(self, column: str, step: int) -> np.ndarray:
        """One of `TOKEN_COLUMNS` at `step`, flat: scored probe after scored probe.

        Raises:
            BadInput: if its file cannot be read.
        """
        path = self.run.observation_path(step)
        try:
            return read_tokens(path, column)
        except (OSError, pa.ArrowException, KeyError) as error:
            raise BadInput(f"cannot read {column} in {path}: {error}") from error

    @cached_property
    def train_log(self) -> list[dict[str, Any]]:
        """What the trainer logged, one mapping per logged update."""
        return self.run.read_log()

    @cached_property
    def training(self) -> Training:
        """What the run trained on: rows, epochs, and which probes are among them."""
        return Training.of(self.run.info, self.probes, self.train_log)

    @property
    def trained_prompts(self) -> Bool[np.ndarray, " probe"] | None:
        """Whether each probe's prompt was trained on, by the trainer's own rows; None
        where not known. `split_of` is what the probe file says."""
        return self.training.prompts

    def to_pandas(self) -> "pandas.DataFrame":
        """Long table: one row per (step, probe) that was scored, texts left out.

        Means over the rows of a step are of other prompts where an observation is of
        the panel; the rows with `panel` true are of the same prompts at every step.

        Raises:
            NotInstalled: if pandas is not.
        """
        try:
            import pandas
        except ImportError as error:
            raise NotInstalled(
                "pandas is not installed. Reading a run does not need it; to_pandas() "
                "does. Install it with: pip install pandas"
            ) from error

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
        frame["panel"] = np.tile(self.covered.all(axis=0), len(self.steps))
        for name, values in self.columns.items():
            frame[name] = values.reshape(-1)
        scored = self.covered.reshape(-1)
        return pandas.DataFrame({name: v[scored] for name, v in frame.items()})


AnyRun = Trajectory | RunDirectory | str | Path
"""What all that reads a run takes; `Trajectory.of` reads it."""


def _panel_rows(run: RunDirectory, probes: pa.Table) -> Int[np.ndarray, " row"] | None:
    """Rows of the probe table whose prompts are in the panel; None without one."""
    panel = run.info.panel
    if panel is None or panel.prompts is None:
        return None
    prompt_of = probes["prompt_id"].to_pylist()
    foreign = sorted(set(panel.prompts) - set(prompt_of))
    if foreign:
        raise BadInput(
            f"{len(foreign)} of {len(panel.prompts)} prompts of the panel in "
            f"{run.path / 'run.json'} are not in probes.parquet:\n{listed(foreign)}"
        )
    expected = set(panel.prompts)
    return np.array([i for i, prompt in enumerate(prompt_of) if prompt in expected])
