"""Changes: what drifted by a known amount is found to have drifted by it."""

import numpy as np
import pyarrow as pa
import pytest
from synthetic import DPO_DRIFT, TOKENS, write_run

from learndyn.diagnose.changes import change_curves, kind_table
from learndyn.diagnose.paths import GREEDY
from learndyn.errors import BadInput
from learndyn.record.trajectory import Trajectory


@pytest.fixture
def exact(tmp_path):
    return Trajectory.load(write_run(tmp_path / "run", noise=0.0))


def test_each_curve_starts_at_zero_and_ends_at_its_drift(exact):
    for kind, curve in change_curves(exact).items():
        drift = 4.0 if kind == GREEDY else DPO_DRIFT[kind]
        assert curve.mean[0] == 0
        assert curve.mean[-1] == pytest.approx(drift)
        assert curve.steps.tolist() == [0, 25, 50, 75, 100]


def test_the_greedy_path_is_the_argmax_along_chosen_and_stands_last(exact):
    curves = change_curves(exact)
    assert list(curves)[-1] == GREEDY
    argmax = exact.values("argmax_logp", "chosen")
    expected = (argmax - argmax[0]).mean(axis=1)
    np.testing.assert_allclose(curves[GREEDY].mean, expected)


def test_per_token_divides_the_sum_by_the_tokens(exact):
    per_token = change_curves(exact, per="token")
    for kind, curve in change_curves(exact).items():
        np.testing.assert_allclose(per_token[kind].mean, curve.mean / TOKENS)


def test_per_token_is_pooled_over_responses_of_unequal_length(exact):
    lengths = np.arange(1, len(exact.n_tokens) + 1)
    uneven = Trajectory(exact.run, exact.probes, exact.steps, lengths, exact.columns)
    rows = uneven.rows("chosen")
    change = uneven.columns["logp"][-1, rows] - uneven.columns["logp"][0, rows]
    curve = change_curves(uneven, per="token")["chosen"]
    assert curve.mean[-1] == pytest.approx(change.sum() / lengths[rows].sum())
    assert curve.mean[-1] != pytest.approx(np.mean(change / lengths[rows]))


def test_bands_hold_the_mean_and_widen_with_the_noise(tmp_path):
    calm = Trajectory.load(write_run(tmp_path / "calm", noise=0.1))
    wild = Trajectory.load(write_run(tmp_path / "wild", noise=1.0))
    widths = []
    for trajectory in (calm, wild):
        curve = change_curves(trajectory)["rejected"]
        assert (curve.low <= curve.mean).all()
        assert (curve.mean <= curve.high).all()
        widths.append(curve.high[-1] - curve.low[-1])
    assert widths[1] > 5 * widths[0]


def test_other_columns_have_curves_too(exact):
    curves = change_curves(exact, "entropy")
    assert GREEDY not in curves
    assert (curves["chosen"].mean == 0).all()


def test_the_table_says_first_peak_last_and_the_share_that_fell(tmp_path):
    path = write_run(tmp_path / "run", drift={"chosen": -4.0, "up": 3.0}, noise=0.0)
    rows = {row.kind: row for row in kind_table(Trajectory.load(path))}
    assert (rows["chosen"].fell, rows["up"].fell) == (1.0, 0.0)
    assert (rows["chosen"].peak_step, rows["up"].peak_step) == (0, 100)
    for row in rows.values():
        assert row.change.mean == pytest.approx(row.last - row.first)
        assert row.peak >= max(row.first, row.last)
        assert row.prompts == 24


def test_a_split_keeps_its_own_prompts(tmp_path):
    trajectory = Trajectory.load(write_run(tmp_path / "run"))
    split = ["test" if p < "p010" else "train" for p in trajectory.prompt_of]
    place = trajectory.probes.schema.get_field_index("split")
    probes = trajectory.probes.set_column(place, "split", pa.array(split))
    mixed = Trajectory(
        trajectory.run,
        probes,
        trajectory.steps,
        trajectory.n_tokens,
        trajectory.columns,
    )
    counts = [kind_table(mixed, s)[0].prompts for s in ("test", "train", None)]
    assert counts == [10, 14, 24]
    with pytest.raises(BadInput, match="no probe of split dev"):
        kind_table(mixed, "dev")


def test_a_value_that_is_not_finite_lowers_the_count_only(exact):
    rows = exact.rows("chosen")
    exact.columns["logp"][-1, rows[0]] = np.nan
    curve = change_curves(exact)["chosen"]
    assert curve.n.tolist() == [24, 24, 24, 24, 23]
    assert curve.mean[-1] == pytest.approx(DPO_DRIFT["chosen"])
