"""What `learndyn reproduce` is asked for, and the folder that it goes to."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learndyn.errors import BadInput
from learndyn.record.atomic import write_whole
from learndyn.record.plain import dumps


PARTS = ("runs", "theory", "digits", "softmax")
"""What can be reproduced; theory needs the runs."""

MARKER = "reproduce.json"


@dataclass(frozen=True)
class ReproduceSettings:
    """What is reproduced, from what, and where it goes."""

    out: Path = Path("runs/reproduce")
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of data and training order; a claim is tested on each."""
    model: str | None = None
    """Folder or hub id; None: the embedded model."""
    data: str | None = None
    """Preference data; None: the embedded world."""
    probes: str | None = None
    """Probe file; None: built from the data."""
    authors: Path | None = None
    """Folder of the authors' result folders, or one of these: draw them instead."""
    images: Path | None = None
    """Folder of MNIST's IDX files; None: scikit-learn's digits."""
    jobs: int | None = None
    """Processes at once; None: the cores that this process may use."""
    parts: tuple[str, ...] = PARTS

    @property
    def key(self) -> dict[str, Any]:
        """What finished stages depend on, beside their seed."""
        given = {"model": self.model, "data": self.data, "probes": self.probes}
        given |= {"authors": self.authors, "images": self.images}
        return {k: None if v is None else str(v) for k, v in given.items()}


def check(settings: ReproduceSettings) -> None:
    """Refuse settings that contradict each other.

    Raises:
        BadInput: if they do.
    """
    if not settings.seeds or len(set(settings.seeds)) < len(settings.seeds):
        raise BadInput(
            f"--seeds {' '.join(map(str, settings.seeds))}: give one seed or more, "
            "each once."
        )
    unknown = sorted(set(settings.parts) - set(PARTS))
    if unknown:
        raise BadInput(f"no part {', '.join(unknown)}. There are: {', '.join(PARTS)}.")
    if "theory" in settings.parts and "runs" not in settings.parts:
        raise BadInput("the part theory needs the part runs. Name both.")
    if settings.probes is not None and settings.data is None:
        raise BadInput(
            "--probes are of data of one's own, and no --data are given: the embedded "
            "world makes its own probes."
        )
    if settings.authors is not None and (settings.model or settings.data):
        raise BadInput(
            "--authors draws recorded runs and trains none, so it takes no --model and "
            "no --data. Leave one of them out."
        )


def prepare(settings: ReproduceSettings, overwrite: bool) -> None:
    """An empty folder with a marker, or the same reproduction, to be continued.

    Raises:
        BadInput: if `out` holds anything else, or a reproduction with other settings
            and `overwrite` is false.
    """
    out, marker = settings.out, settings.out / MARKER
    if out.exists() and not out.is_dir():
        raise BadInput(f"{out} is a file. Name a folder with --out.")
    if out.is_dir() and any(out.iterdir()) and not marker.is_file():
        raise BadInput(
            f"{out} holds files and no reproduction, so it is left alone. Choose "
            "another --out."
        )
    if marker.is_file():
        if not overwrite:
            before = json.loads(marker.read_text(encoding="utf-8")).get("settings")
            if before != settings.key:
                raise BadInput(
                    f"{out} holds a reproduction with other settings: {before}. Choose "
                    "another --out, or start anew with --overwrite."
                )
            return
        for name in ("seeds", "digits", "runs", "figures", "logs"):
            shutil.rmtree(out / name, ignore_errors=True)
        for name in ("claims.json", "reproduction.html", MARKER):
            (out / name).unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    write_state(settings, {})


def read_times(settings: ReproduceSettings) -> dict[str, Any]:
    """How long each job took, of this command and of those before it."""
    marker = settings.out / MARKER
    return json.loads(marker.read_text(encoding="utf-8")).get("times", {})


def write_state(settings: ReproduceSettings, times: dict[str, Any]) -> None:
    """Keep the settings, by which a stopped command is continued, and the times."""
    text = dumps({"settings": settings.key, "times": times}, indent=1)
    write_whole(
        settings.out / MARKER, lambda path: path.write_text(text, encoding="utf-8")
    )
