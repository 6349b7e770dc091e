"""The run directory: the interface between the code that measures and all that reads.

    runs/NAME/
      run.json        schema version, settings, versions, hashes, probe fingerprint
      config.yaml     `learndyn run --config runs/NAME/config.yaml` replays the run
      probes.parquet  one row per probe: texts, token ids, flags
      observations/step-00000025.parquet    one row per probe
      train.jsonl     one line per logged update
      forces/step-00000025.parquet    what one update did, where that was asked for
      forces/influence-00000025.parquet    one row per training token of its batch

Every file is written whole and then renamed, and `run.json` comes first into a folder
that is itself renamed into place. So a folder with a `run.json` can always be read,
and a crash loses at most the observation that was being written.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from learndyn.errors import BadInput
from learndyn.record.files import (
    NO_SPACE,
    dumps,
    full,
    read_table,
    steps_in,
    to_plain as to_plain,
    write_whole,
)
from learndyn.record.forces import (
    Forces,
    ForceSums,
    forget_forces,
    read_force_sums,
    read_forces,
    write_forces,
)
from learndyn.record.observation import Observation, Sums, read_sums
from learndyn.record.run_info import SCHEMA_VERSION, RunInfo, read_run_json


@dataclass(frozen=True, slots=True)
class TrainLog:
    """The lines of a training log."""

    rows: list[dict[str, Any]]
    """Those that can be read, in order."""
    unread: int
    """How many cannot; one that a crash cut after others is not counted."""

    @classmethod
    def read(cls, path: Path) -> "TrainLog":
        """Read a log; where there is none it has no lines."""
        if not path.exists():
            return cls([], 0)
        rows, unread = [], 0
        # Bytes: the cut may fall inside a letter. "\n" alone: splitlines() would also
        # split at U+2028, which JSON leaves as it is.
        *lines, end = path.read_bytes().split(b"\n")
        for line in lines:
            row = _object(line)
            if row is not None:
                rows.append(row)
            elif line.strip():
                unread += 1
        row = _object(end)  # None: the crash came in the middle of this line
        if row is None and end.strip() and not rows:
            unread += 1
        return cls(rows if row is None else [*rows, row], unread)


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


_OWN_NAMES = frozenset(
    {
        "run.json",
        "config.yaml",
        "probes.parquet",
        "observations",
        "train.jsonl",
        "forces",
        "figures",
        "report.html",
        "compare.html",
        "explain.html",
        "model",
        ".model.new",
        "checkpoints",
    }
)
"""What a run directory may hold; with anything else in it, it is never removed."""


class RunDirectory:
    """One run on disk, open for writing or reading. Make it by `create` or `open`."""

    def __init__(self, path: Path, info: Mapping[str, Any]) -> None:
        self.path = path
        self.info = self._typed(info)
        """What `run.json` holds, and the method that the log tells where that is
        silent."""

    @classmethod
    def create(
        cls,
        path: str | Path,
        probes: pa.Table,
        info: Mapping[str, Any],
        *,
        config: dict[str, Any] | None = None,
        overwrite: bool = False,
    ) -> "RunDirectory":
        """Make a new run directory, whole or not at all.

        A run that is overwritten stays until the new one can take its place.
        `config` None writes no config.yaml: the run cannot be replayed from it.

        Raises:
            BadInput: if something is at `path` already and `overwrite` is false, or if
                it is not a run directory, or one with files that learndyn did not write
                (then nothing is ever removed).
        """
        path = Path(path)
        building = path.with_name(f".{path.name}.new")
        old = path.with_name(f".{path.name}.old")
        if is_run(old) and not path.exists():  # a crash between the renames below
            old.rename(path)
        refuse_taken(path, overwrite)
        info = {"schema_version": SCHEMA_VERSION, **info}
        for leftover in (building, old):
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            (building / "observations").mkdir(parents=True)
            pq.write_table(probes, building / "probes.parquet", compression="zstd")
            if config:
                text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
                (building / "config.yaml").write_text(text, encoding="utf-8")
            (building / "run.json").write_text(dumps(info, indent=2), encoding="utf-8")
            if path.exists():
                path.rename(old)
            building.rename(path)
        except BaseException as error:
            if old.exists() and not path.exists():
                old.rename(path)
            shutil.rmtree(building, ignore_errors=True)
            if isinstance(error, OSError) and error.errno in NO_SPACE:
                raise full(path / "run.json", error) from error
            raise
        shutil.rmtree(old, ignore_errors=True)
        return cls(path, info)

    @classmethod
    def open(cls, path: str | Path) -> "RunDirectory":
        """Open an existing run directory.

        Raises:
            BadInput: if there is none at `path`, or if it is of another schema version.
        """
        path = Path(path)
        return cls(path, read_run_json(path))

    def __repr__(self) -> str:
        return f"RunDirectory({str(self.path)!r}: {len(self.steps)} observations)"

    def report(self, out: str | Path | None = None, *, overwrite: bool = False) -> Path:
        """Write `report.html` about the run, as `learndyn.write_report`."""
        from learndyn import write_report  # it stands far above: come by the door

        return write_report([self.path], out, overwrite=overwrite)

    @classmethod
    def of(cls, source: "RunDirectory | str | Path") -> "RunDirectory":
        """The run directory itself, or the one at a path.

        Raises:
            BadInput: as `open`.
        """
        return source if isinstance(source, RunDirectory) else cls.open(source)

    @property
    def steps(self) -> list[int]:
        """Steps of all complete observations, ascending."""
        return steps_in(self.path / "observations")

    def observation_path(self, step: int) -> Path:
        """Where the observation of `step` is or will be."""
        return self.path / "observations" / f"step-{step:08d}.parquet"

    def write_observation(self, observation: Observation) -> None:
        """Add one observation, whole, replacing one of the same step.

        Raises:
            StorageFull: if the disk is full; all earlier observations are intact.
        """
        table = observation.to_table()
        write_whole(
            self.observation_path(observation.step),
            lambda path: pq.write_table(table, path, compression="zstd"),
        )

    def read_observation(self, step: int) -> Observation:
        """Read the observation of `step`.

        Raises:
            BadInput: if it is absent or corrupt.
        """
        path = self.observation_path(step)
        try:
            return Observation.from_table(step, read_table(path))
        except (OSError, pa.ArrowException, KeyError) as error:
            raise BadInput(
                f"cannot read observation {step} of {self.path}: {error}. "
                f"Complete observations: {self.steps}."
            ) from error

    def read_sums(self, step: int) -> Sums:
        """Read the observation of `step` without its tokens.

        Raises:
            BadInput: if it is absent or corrupt.
        """
        path = self.observation_path(step)
        try:
            return read_sums(path, step)
        except (OSError, pa.ArrowException, KeyError, ValueError) as error:
            why = " ".join(str(error).split())
            raise BadInput(f"cannot read {path}: {why[:200].rstrip('.')}.") from error

    @property
    def forces_steps(self) -> list[int]:
        """Steps whose update has a complete record of its forces, ascending."""
        return steps_in(self.path / "forces")

    def write_forces(self, forces: Forces) -> None:
        """Add the forces of one update, replacing those of the same step.

        Raises:
            StorageFull: if the disk is full; the records of other steps are intact.
        """
        write_forces(self.path / "forces", forces)

    def read_forces(self, step: int, *, influence: bool = True) -> Forces:
        """Read the forces of the update to `step`; its influence only if asked for.

        Raises:
            BadInput: if they are absent or corrupt.
        """
        return read_forces(self.path / "forces", step, influence=influence)

    def read_force_sums(self, step: int) -> ForceSums:
        """Read the forces of the update to `step`, without tokens and layers.

        Raises:
            BadInput: if they are absent or corrupt.
        """
        return read_force_sums(self.path / "forces", step)

    def read_probes(self) -> pa.Table:
        """The probe table: texts, token ids and flags, one row per probe."""
        try:
            return read_table(self.path / "probes.parquet")
        except FileNotFoundError as error:
            raise BadInput(
                f"{self.path} has no probes.parquet, which says which answers its "
                "observations scored. Restore the file; a run on the same "
                "probes has the same one, if its run.json has the same "
                "probe_fingerprint and tokenizer_sha256."
            ) from error
        except (OSError, pa.ArrowException) as error:
            raise BadInput(
                f"cannot read {self.path / 'probes.parquet'}: {error}"
            ) from (error)

    def append_log(self, row: dict[str, Any]) -> None:
        """Add one line to `train.jsonl`.

        Raises:
            StorageFull: if the disk is full; all earlier lines are intact.
        """
        path = self.path / "train.jsonl"
        try:
            with path.open("a", encoding="utf-8") as handle:
                handle.write(dumps(row) + "\n")
        except OSError as error:
            if error.errno in NO_SPACE:
                raise full(path, error) from error
            raise

    def read_log(self) -> list[dict[str, Any]]:
        """All complete lines of `train.jsonl`; a line cut by a crash is left out."""
        return TrainLog.read(self.path / "train.jsonl").rows

    def rewind(self, step: int) -> None:
        """Forget all that came after `step`, so that a resumed run writes it anew.

        Observations go from the last backwards: what is left is a run at any moment.
        """
        for later in reversed([s for s in self.steps if s > step]):
            self.observation_path(later).unlink()
        forget_forces(self.path / "forces", step)
        rows = [row for row in self.read_log() if row.get("step", 0) <= step]
        text = "".join(dumps(row) + "\n" for row in rows)
        write_whole(
            self.path / "train.jsonl",
            lambda path: path.write_text(text, encoding="utf-8"),
        )

    def update_info(self, **changes: Any) -> None:
        """Change entries of `run.json`, whole."""
        self.info = self._typed({**self.info, **changes})
        text = dumps(self.info.entries, indent=2)
        write_whole(
            self.path / "run.json",
            lambda path: path.write_text(text, encoding="utf-8"),
        )

    def _typed(self, entries: Mapping[str, Any]) -> RunInfo:
        info = RunInfo.of(entries)
        silent = info.family == "unknown" and not info.method
        return info.told_by(self.read_log()) if silent else info


def is_run(path: str | Path) -> bool:
    """Whether a run directory stands at `path`."""
    return (Path(path) / "run.json").is_file()


def refuse_taken(path: Path, overwrite: bool, *, resume: bool | None = False) -> None:
    """Refuse a path that no run may be written to, before the work for it is done.

    With `resume` a run that is there is to be continued; None: it could not be.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not is_run(path):
        raise BadInput(
            f"{path} exists and is not a run directory, so it is left alone. "
            "Choose another out=."
        )
    if resume:
        return
    if not overwrite:
        advice = "" if resume is None else "continue it with resume=True, "
        raise BadInput(
            f"{path} holds a run already ({len(RunDirectory.open(path).steps)} "
            f"observations). Choose another out=, {advice}or replace it with "
            "overwrite=True."
        )
    foreign = sorted(p.name for p in path.iterdir() if p.name not in _OWN_NAMES)
    if foreign:
        raise BadInput(
            f"{path} holds a run and also {', '.join(foreign[:5])}"
            f"{' and more' if len(foreign) > 5 else ''}, which learndyn did not write, "
            "so it is not overwritten. Move them, or choose another out=."
        )
