"""A model that grows surer of other tokens than chosen's."""

import numpy as np
import pytest
from planted import planted, with_column, with_info, with_kinds
from synthetic import write_run

from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.signs.peakiness import Peakiness, _sharpening
from learndyn.record.trajectory import Trajectory


KINDS = ("chosen", "rejected")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "run"
    options = {"prompts": 40, "steps": (0, 10, 20, 30, 40, 50)}
    return Trajectory.load(write_run(path, drift=dict.fromkeys(KINDS, 0.0), **options))


def surer(base, p_norm2, right, chosen):
    """A run whose ||pi||^2 and pi(y) along chosen change by so much, and chosen."""
    run = planted(base, {"chosen": chosen})
    rise = np.linspace(0, 1, 6)[:, None] * (1 + 0.2 * np.sin(np.arange(40)))
    run = with_column(run, "p_norm2", "chosen", 0.3 + p_norm2 * rise)
    return with_column(run, "energy", "chosen", 0.6 - right * rise)


def test_a_model_that_is_surer_of_other_tokens_is_found(base):
    finding = Peakiness.detect(Facts(surer(base, 0.10, -0.02, -4.0)))
    assert (finding.name, finding.severity) == ("peakiness", "watch")
    assert "as models do whose answers repeat" in finding.says
    assert finding.numbers["beyond_chosen"][0] == pytest.approx(0.12, rel=0.05)


def test_former_favourites_that_lose_are_new_peaks(tmp_path):
    options = {"prompts": 40, "off_target": -3.0, "greedy": 4.0}
    path = write_run(tmp_path / "run", drift={"chosen": -20.0}, **options)
    run = Trajectory.load(path)
    rise = np.linspace(0, 1, len(run.steps))[:, None] * (
        1 + 0.2 * np.sin(np.arange(40))
    )
    run = with_column(run, "p_norm2", "chosen", 0.3 + 0.2 * rise)
    finding = Peakiness.detect(Facts(run))
    assert finding.severity == "watch"
    assert "not of its former favourites" in finding.says
    assert finding.numbers["off_target"][0] == pytest.approx(-3.0, rel=0.1)


@pytest.mark.parametrize(
    ("p_norm2", "right", "chosen"),
    [(0.10, 0.15, -4.0), (0.10, -0.02, 4.0), (0.04, -0.02, -4.0), (-0.1, -0.2, -4.0)],
    ids=["surer-of-chosen", "chosen-rises", "too-little", "less-sure"],
)
def test_each_sign_of_peakiness_is_needed(base, p_norm2, right, chosen):
    run = surer(base, p_norm2, right, chosen)
    assert Peakiness.detect(Facts(run)).severity == "fine"


def test_the_norm_of_a_is_told_where_the_number_of_logits_is_known(base):
    run = surer(base, 0.10, -0.02, -4.0)
    assert _sharpening(run).a_norm is None
    first, last = _sharpening(with_info(run, vocabulary=1000)).a_norm
    assert first == pytest.approx(np.sqrt(1000 - 2 + 1000 * 0.3))
    assert last > first


def test_columns_that_are_not_known_give_no_finding(base):
    run = with_column(base, "energy", "chosen", np.full((6, 40), np.nan))
    assert _sharpening(run) is None
    assert _sharpening(with_kinds(base, ("rejected",))) is None
