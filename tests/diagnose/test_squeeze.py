"""Evidence for squeezing: planted amounts are found, at the end and at a margin."""

import pytest
from synthetic import write_run

from learndyn.diagnose.squeeze import squeeze_evidence
from learndyn.diagnose.squeeze_index import squeeze_index
from learndyn.record.trajectory import Trajectory


@pytest.fixture
def exact(tmp_path):
    return Trajectory.load(write_run(tmp_path / "run", noise=0.0))


def test_planted_changes_are_found_at_the_last_observation(exact):
    found = squeeze_evidence(exact)
    assert found.step == 100
    assert found.chosen.mean == pytest.approx(-6)
    assert found.rejected.mean == pytest.approx(-40)
    assert found.margin.mean == pytest.approx(34)
    assert found.greedy.mean == pytest.approx(4)
    assert found.greedy_relative.mean == pytest.approx(4 / 12)
    assert (found.falling, found.rising, len(found.kinds)) == (3, 0, 3)


def test_relative_change_is_pooled_over_the_size_of_the_start(exact):
    first, last = exact.values("logp", "chosen")[[0, -1]]
    expected = (last - first).sum() / abs(first).sum()
    assert squeeze_evidence(exact).chosen_relative.mean == pytest.approx(expected)


def test_off_target_counts_only_positions_where_the_first_argmax_is_no_label(exact):
    found = squeeze_evidence(exact)
    assert found.off_target_tokens == 24 * 4  # every second of 8 tokens
    assert found.off_target.mean == pytest.approx(0.5, rel=1e-6)


def test_a_run_without_off_target_positions_has_no_off_target(exact):
    index = exact.probes.schema.get_field_index("response_ids")
    rows = [[9 if i % 2 == 0 else 7 for i in range(8)]] * len(exact.probes)
    probes = exact.probes.set_column(index, "response_ids", [rows])
    agreeing = Trajectory(exact.run, probes, exact.steps, exact.n_tokens, exact.columns)
    found = squeeze_evidence(agreeing)
    assert (found.off_target, found.off_target_tokens) == (None, 0)


@pytest.mark.parametrize("margin", [1.0, 8.5, 17.0, 33.0])
def test_at_a_margin_everything_is_interpolated_to_that_margin(exact, margin):
    found = squeeze_evidence(exact, at_margin=margin)
    share = margin / 34
    assert found.margin.mean == pytest.approx(margin)
    assert found.step == pytest.approx(100 * share)
    assert found.chosen.mean == pytest.approx(-6 * share)
    assert found.greedy.mean == pytest.approx(4 * share)
    assert found.off_target.mean == pytest.approx(0.5 * share, rel=1e-5)


def test_a_margin_that_is_never_reached_gives_the_reason_and_no_number(exact):
    found = squeeze_evidence(exact, at_margin=35.0)
    assert found.chosen is None
    assert found.step is None
    assert "never reached 35 nats; its highest value is 34.0" in found.reason


def test_probes_without_rejected_have_no_margin(tmp_path):
    path = write_run(tmp_path / "run", drift={"chosen": 2.0})
    trajectory = Trajectory.load(path)
    assert squeeze_evidence(trajectory).margin is None
    assert "lack" in squeeze_evidence(trajectory, at_margin=1.0).reason


def test_the_squeeze_index_is_greedy_minus_the_best_kind(exact):
    found = squeeze_evidence(exact)
    best = max(interval.mean for interval in found.relative.values())
    expected = found.greedy_relative.mean - best
    assert squeeze_index(exact).end.mean == pytest.approx(expected)


def test_fitting_has_a_negative_index_although_most_kinds_fall(tmp_path):
    drift = {"chosen": 30.0, "rejected": -9.0, "irrelevant_train": -5.0}
    fit = Trajectory.load(write_run(tmp_path / "run", drift=drift, greedy=1.0))
    found = squeeze_evidence(fit)
    assert found.falling == 2
    assert found.greedy.above_zero
    assert squeeze_index(fit).end.below_zero
