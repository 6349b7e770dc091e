"""Fixtures shared by all tests, and what makes them quick."""

import contextlib
import gc
import os
import sys
from pathlib import Path

import matplotlib.figure
import pytest
import type_checks


os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may need the network
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["LEARNDYN_CACHE"] = ""  # no test leaves scores behind, or finds any
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models are quickest on one
os.fsync = lambda handle: None  # tests kill processes, never the machine
type_checks.install()

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"

SAVE = matplotlib.figure.Figure.savefig


def pytest_collection_finish() -> None:
    """What was imported stays: to look through it at every collection takes time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch):
    """Warnings are given once in a process: here, once in a test."""
    route = sys.modules.get("learndyn.measure.route")
    if route is not None:
        monkeypatch.setattr(route, "_WARNED", set())


@pytest.fixture(autouse=True, scope="session")
def small_prints():
    """PNG files of a few pixels: each figure is drawn in full as SVG already."""

    def savefig(figure, target, *args, format=None, dpi=None, **kwargs):
        if format == "png":
            figure, dpi = matplotlib.figure.Figure(), 1
        return SAVE(figure, target, *args, format=format, dpi=dpi, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matplotlib.figure.Figure, "savefig", savefig)
        yield


@pytest.fixture(scope="session")
def full_prints(small_prints):
    """A context in which PNG files have all their pixels."""

    @contextlib.contextmanager
    def within():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(matplotlib.figure.Figure, "savefig", SAVE)
            yield

    return within


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the authors' published data."""
    if not SHARED.is_dir():
        pytest.skip(f"the authors' data are not at {SHARED}")
    return SHARED
