"""`train.jsonl`: what the trainer logged, one JSON object per line."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class TrainLog:
    """The lines of a training log."""

    rows: list[dict[str, Any]]
    """Those that can be read, in order."""
    unread: int
    """How many cannot; one that a crash cut after others is not counted."""

    @classmethod
    def read(cls, path: Path) -> "TrainLog":
        """Read a log; where there is none it has no lines.

        Raises:
            OSError: if it is there and cannot be read.
        """
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
