"""Does the kernel stay what it was while this run trains? Looked at as it goes."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from learndyn.errors import BadInput
from learndyn.forces.reading import TokenReader
from learndyn.forces.stability import KernelWatch, Sketches, drift
from learndyn.record.atomic import write_whole
from learndyn.record.tables import read_table


PROBES = 32
"""Probes whose gradients are sketched: one backward pass each."""

SIZE = 4096
"""Length of a sketch; a cosine is then right to about 1/64."""

STEP = "learndyn_step"


class KernelCheck:
    """The kernel of a few probes at the start of a run, and later ones against it.

    The first sketches are kept in the run's forces folder, so that a resumed run goes
    on from the same.
    """

    def __init__(self, reader: TokenReader, folder: Path) -> None:
        self._reader = reader.select(range(min(PROBES, len(reader.plan.pairs))))
        self._path = folder / "kernel-start.parquet"
        self._watch = KernelWatch(size=SIZE)
        self._first: Sketches | None = None
        self._since = 0

    def begin(self, step: int) -> None:
        """Look at the model as training begins, or read what an earlier look found."""
        if step > 0 and self._path.exists():
            try:
                table = read_table(self._path)
                since = int((table.schema.metadata or {})[STEP.encode()])
                if since <= step:
                    self._first, self._since = Sketches.from_table(table), since
                    return
            except (OSError, pa.ArrowInvalid, KeyError, ValueError):
                pass  # unreadable: the comparison starts here, and says so
        self._first, self._since = self._look(), step
        table = self._first.to_table()
        label = {**(table.schema.metadata or {}), STEP: str(step)}
        table = table.replace_schema_metadata(label)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self._path, lambda path: pq.write_table(table, path))

    def compare(self) -> tuple[dict[str, Any] | None, str]:
        """The kernel as the model stands against the first one, or why it cannot be
        compared: other probes or parameters than the first ones, too few probes."""
        if self._first is None:
            return None, ""
        try:
            found = drift(self._first, self._look())
        except BadInput as error:
            return None, f"the kernel was not compared: {error}"
        return {**asdict(found), "since": self._since}, ""

    def _look(self) -> Sketches:
        return self._watch.look(self._reader, self._reader.plan.pairs)
