"""What the screen shows while jobs run in several processes."""

import re
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path


class Screen:
    """Finished jobs, one line each; below them the last line of each running job's log.

    On a terminal the lower part is drawn anew every second. Elsewhere, such as in a
    file, it is printed twice a minute.
    """

    def __init__(self) -> None:
        self.terminal = sys.stderr.isatty()
        self.interval = 1.0 if self.terminal else 30.0
        self.lines = 0
        self.last = time.monotonic()

    def __enter__(self) -> "Screen":
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def print(self, line: str) -> None:
        """A line that stays."""
        self.clear()
        print(line, file=sys.stderr, flush=True)

    def show(self, running: Mapping[str, Path]) -> None:
        """Running jobs by name, each with its log."""
        now = time.monotonic()
        if not self.terminal and now - self.last < 0.9 * self.interval:
            return
        self.last = now
        self.clear()
        width = shutil.get_terminal_size().columns - 1 if self.terminal else 160
        for name, log in running.items():
            print(f"{name}: {_last_line(log, name)}"[:width], file=sys.stderr)
        self.lines = len(running)
        sys.stderr.flush()

    def clear(self) -> None:
        """Remove the lower part."""
        if self.terminal and self.lines:
            print(f"\x1b[{self.lines}F\x1b[J", end="", file=sys.stderr)
        self.lines = 0


def _last_line(log: Path, name: str) -> str:
    """What a job says last, without its name."""
    try:
        text = log.read_bytes()[-1000:].decode("utf-8", "replace")
    except OSError:  # not begun to write
        return "starting"
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
    stage = name.rpartition(": ")[2]
    return lines[-1].removeprefix(f"{stage}: ") if lines else "starting"
