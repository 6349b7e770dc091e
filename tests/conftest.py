"""Fixtures shared by all tests."""

import gc
import os
import sys
from pathlib import Path

import pytest


os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may need the network
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["LEARNDYN_CACHE"] = ""  # no test leaves scores behind, or finds any

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


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


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the authors' published data."""
    if not SHARED.is_dir():
        pytest.skip(f"the authors' data are not at {SHARED}")
    return SHARED
