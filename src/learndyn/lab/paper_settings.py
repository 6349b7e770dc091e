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

FOLDERS = ("seeds", "digits", "runs", "figures", "logs")
"""What a reproduction holds besides its page, its claims and its marker."""


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
            and `overwrite` is false, or one whose marker cannot be read, or if to
            overwrite it would remove an input.
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
            before = _kept(marker).get("settings")
            if before != settings.key:
                raise BadInput(
                    f"{out} holds a reproduction with other settings: {before}. Choose "
                    "another --out, or start anew with --overwrite."
                )
            return
        _spare_inputs(settings)
        for name in FOLDERS:
            shutil.rmtree(out / name, ignore_errors=True)
        for name in ("claims.json", "reproduction.html", MARKER):
            (out / name).unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    write_state(settings, {})


def _spare_inputs(settings: ReproduceSettings) -> None:
    """Refuse to remove what the new reproduction is to be made from."""
    for name, given in settings.key.items():
        if given is None:
            continue
        path, out = Path(given).resolve(), settings.out.resolve()
        removed = [(out / folder).resolve() for folder in FOLDERS]
        if path == out or any(path.is_relative_to(each) for each in removed):
            raise BadInput(
                f"--overwrite would remove {given}, which --{name} names: it is in "
                f"{settings.out}. Copy it elsewhere first, or choose another --out."
            )


def _kept(marker: Path) -> dict[str, Any]:
    try:
        kept = json.loads(marker.read_text(encoding="utf-8"))
    except ValueError:  # bytes that are no UTF-8, too
        kept = None
    if not isinstance(kept, dict):
        raise BadInput(
            f"{marker} cannot be read: it is cut off or not JSON. Start anew with "
            "--overwrite, or choose another --out."
        )
    return kept


def read_times(settings: ReproduceSettings) -> dict[str, Any]:
    """How long each job took, of this command and of those before it.

    Raises:
        BadInput: if the marker of `out` cannot be read.
    """
    return _kept(settings.out / MARKER).get("times", {})


def write_state(settings: ReproduceSettings, times: dict[str, Any]) -> None:
    """Keep the settings, by which a stopped command is continued, and the times."""
    text = dumps({"settings": settings.key, "times": times}, indent=1)
    write_whole(
        settings.out / MARKER, lambda path: path.write_text(text, encoding="utf-8")
    )
