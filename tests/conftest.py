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

SHARED = Path(
    os.environ.get("LEARNDYN_SHARED")
    or Path(__file__).resolve().parents[2] / "shared" / "data"
)
"""The authors' published data: beside the checkout, or where LEARNDYN_SHARED says."""

SAVE = matplotlib.figure.Figure.savefig


SLOW = {
    "test_causes.py": 70,
    "test_resume.py": 60,
    "test_tiers.py": 50,
    "test_verdict.py": 50,
    "test_state.py": 45,
    "test_reproduce.py": 45,
    "test_demo.py": 35,
    "test_kernel.py": 30,
    "test_provenance.py": 30,
    "test_predict.py": 30,
    "test_run_forces.py": 30,
    "test_cli.py": 30,
    "test_score.py": 30,
    "test_panel.py": 25,
    "test_split.py": 25,
    "test_explain.py": 20,
    "test_theory.py": 20,
    "test_forces_withstand.py": 20,
    "test_recipes.py": 20,
    "test_callback.py": 20,
    "test_forces_report.py": 20,
    "test_jobs.py": 20,
    "test_plan.py": 18,
    "test_playground.py": 15,
    "test_order.py": 15,
    "test_authors.py": 15,
    "test_report.py": 15,
    "test_coverage.py": 15,
    "test_world.py": 14,
    "test_why.py": 12,
    "test_kernel_norm.py": 12,
    "test_real_data.py": 12,
    "test_planted_errors.py": 12,
    "test_losses.py": 12,
    "test_path.py": 12,
    "test_door.py": 10,
    "test_run_kernel.py": 10,
    "test_scoring.py": 10,
    "test_batch_watch.py": 10,
    "test_tangent_head.py": 10,
    "test_foresight.py": 10,
    "test_sign_split.py": 8,
    "test_digits.py": 8,
    "test_softmax.py": 8,
    "test_akg.py": 8,
    "test_compare_command.py": 8,
    "test_route.py": 6,
    "test_bad_runs.py": 6,
    "test_noise.py": 5,
    "test_loss_docs.py": 5,
    "test_forces_docs.py": 5,
}
"""Seconds on one core of the files that take longest. They are begun first, so that no
process is left alone with one of them; `--quick` leaves out all that are not named."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="leave out slow files")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    named = {Path(word.split("::")[0]).resolve() for word in config.args}
    slow = collection_path.name in SLOW and collection_path not in named
    return True if slow and config.getoption("quick") else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: -SLOW.get(item.path.name, 0))


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


@pytest.fixture
def no_page(monkeypatch):
    """Leave out the figures, which take longer than these runs."""
    monkeypatch.setattr(
        "learndyn.show.report.report.write_report",
        lambda runs, *_, **__: Path("no page"),
    )


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the authors' published data."""
    if not SHARED.is_dir():
        pytest.skip(f"the authors' data are not at {SHARED}")
    return SHARED
