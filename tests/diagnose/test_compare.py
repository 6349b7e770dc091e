"""Comparison: a known difference is found at updates, margin and gap."""

from dataclasses import replace

import pytest
from synthetic import write_run

from learndyn.diagnose.two_runs.compare import compare
from learndyn.errors import BadInput
from learndyn.record.run_directory import RunDirectory
from learndyn.record.trajectory import Trajectory


A = {"chosen": -6.0, "rejected": -40.0, "irrelevant_train": -8.0}
"""Ends at a margin of 34."""
B = {"chosen": -2.0, "rejected": -22.0, "irrelevant_train": -2.0}
"""Ends at a margin of 20."""


def load(path, **options):
    return Trajectory.load(write_run(path, **options))


@pytest.fixture
def pair(tmp_path):
    return (
        load(tmp_path / "a", drift=A, noise=0.0),
        load(tmp_path / "b", drift=B, noise=0.0, greedy=6.0, off_target=-0.5),
    )


def test_at_equal_updates_the_difference_is_that_of_the_drifts(pair):
    found = compare(*pair, "updates")
    assert found.at == 100
    for kind in A:
        difference = found.kinds[kind].difference.mean
        assert difference == pytest.approx(B[kind] - A[kind])
    assert found.greedy.difference.mean == pytest.approx(2)
    assert found.off_target.difference.mean == pytest.approx(-1, rel=1e-5)
    assert found.lost_share == 0


def test_equal_updates_means_the_last_update_that_both_runs_have(tmp_path):
    a = load(tmp_path / "a", drift=A, noise=0.0)
    b = load(tmp_path / "b", drift=B, noise=0.0, steps=(0, 40, 60))
    found = compare(a, b, "updates")
    assert found.at == 60
    assert found.kinds["chosen"].a == pytest.approx(0.6 * A["chosen"])
    assert found.kinds["chosen"].b == pytest.approx(B["chosen"])


def test_the_matched_margin_is_four_fifths_of_the_smaller_end(pair):
    found = compare(*pair, "margin")
    assert found.at == pytest.approx(0.8 * 20)
    assert found.step_a == pytest.approx(100 * 16 / 34)
    assert found.step_b == pytest.approx(80)
    assert found.kinds["chosen"].a == pytest.approx(A["chosen"] * 16 / 34)
    assert found.kinds["chosen"].b == pytest.approx(B["chosen"] * 0.8)
    assert found.greedy.difference.mean == pytest.approx(0.8 * 6 - 4 * 16 / 34)


@pytest.mark.parametrize("by", ["margin", "gap"])
def test_at_a_matched_point_chosen_and_rejected_differ_by_the_same_amount(tmp_path, by):
    a = load(tmp_path / "a", drift=A, noise=0.8)
    b = load(tmp_path / "b", drift=B, noise=0.8, seed=0)
    found = compare(a, b, by)
    chosen, rejected = (found.kinds[k].difference for k in ("chosen", "rejected"))
    assert chosen.mean == pytest.approx(rejected.mean)
    assert chosen.low == pytest.approx(rejected.low)
    assert chosen.high == pytest.approx(rejected.high)


def test_the_gap_compares_levels_at_the_same_gap_whatever_the_starts(tmp_path):
    a = load(tmp_path / "a", drift=A, noise=0.0, start={"rejected": -80.0})
    b = load(tmp_path / "b", drift=A, noise=0.0, start={"rejected": -60.0})
    found = compare(a, b, "gap")
    levels = found.kinds
    for side in ("a", "b"):
        gap = getattr(levels["chosen"], side) - getattr(levels["rejected"], side)
        assert gap == pytest.approx(found.at)
    # start + 80 % of the stretch that both pass: from 20 (a's start) to 34 (b's end)
    assert found.at == pytest.approx(20 + 0.8 * 14, abs=1)
    assert found.off_target is None
    # b needs 20 nats more of the same drift, so its chosen is lower by 20 * 6 / 34
    assert levels["chosen"].difference.mean == pytest.approx(-20 * 6 / 34, abs=1e-6)


def test_the_margin_does_not_see_what_the_gap_sees(tmp_path):
    a = load(tmp_path / "a", drift=A, noise=0.0, start={"rejected": -80.0})
    b = load(tmp_path / "b", drift=A, noise=0.0, start={"rejected": -60.0})
    assert compare(a, b, "margin").kinds["chosen"].difference.mean == pytest.approx(0)


def test_runs_that_pass_no_common_gap_are_not_compared(tmp_path):
    a = load(tmp_path / "a", drift=A, start={"rejected": -180.0})
    b = load(tmp_path / "b", drift=A)
    found = compare(a, b, "gap")
    assert found.at is None
    assert found.kinds == {}
    assert "no gap that both runs pass through" in found.reason


def test_a_run_compared_with_itself_differs_by_exactly_zero(tmp_path):
    a = load(tmp_path / "a", noise=1.0)
    for by in ("updates", "margin", "gap"):
        for difference in compare(a, a, by).kinds.values():
            interval = difference.difference
            assert (interval.mean, interval.low, interval.high) == (0, 0, 0)


def test_pairing_makes_the_interval_narrower_than_the_spread_of_prompts(tmp_path):
    a = load(tmp_path / "a", drift=A, noise=0.8, seed=3)
    near = {kind: value - 1 for kind, value in A.items()}
    b = load(tmp_path / "b", drift=near, noise=0.8, seed=3)
    found = compare(a, b, "updates").kinds["rejected"].difference
    assert found.high - found.low < 1
    assert found.mean == pytest.approx(-1, abs=0.3)


def test_a_point_that_loses_many_resamples_gives_way_to_the_largest_that_does_not(
    tmp_path,
):
    a = load(tmp_path / "a", drift=A, noise=0.5)
    b = load(tmp_path / "b", drift=B, noise=0.5)
    early, late = (compare(a, b, "margin", fraction=f) for f in (0.5, 0.99))
    assert early.lost_share < 0.01
    assert early.reason is None
    assert early.at < late.at < 2 * early.at
    assert late.reason.endswith("more than 20 %: an earlier margin was taken.")
    assert 0.19 < late.lost_share <= 0.2
    assert late.kinds["chosen"].difference.n == 24
    beyond = compare(a, b, "margin", at=late.at + 0.01)
    assert beyond.lost_share > 0.2
    assert (beyond.at, beyond.kinds, beyond.greedy) == (None, {}, None)
    assert "nats or never reach it, more than 20 %." in beyond.reason


def test_a_point_is_refused_where_none_half_as_far_keeps_enough_resamples(tmp_path):
    a = load(tmp_path / "a", drift=A)
    b = load(tmp_path / "b", drift=B, noise=4.0, prompts=24, seed=1)
    for by in ("margin", "gap"):
        found = compare(a, b, by)
        assert (found.at, found.kinds) == (None, {})
        assert 0.2 < found.lost_share < 1
        assert f"and no {by} at least half as far loses less." in found.reason
    assert compare(a, b, "updates").kinds["chosen"].difference.n == 24


def test_runs_that_watched_other_answers_are_refused(tmp_path):
    a = load(tmp_path / "a")
    b = load(tmp_path / "b", info={"probe_fingerprint": "0" * 64})
    with pytest.raises(BadInput, match=r"watched other answers.*fff.*000"):
        compare(a, b, "updates")


def test_runs_without_a_fingerprint_are_refused(tmp_path):
    a = load(tmp_path / "a", info={"probe_fingerprint": None})
    with pytest.raises(BadInput, match="fingerprint"):
        compare(a, a, "updates")


def test_margin_needs_chosen_and_rejected(tmp_path):
    a = load(tmp_path / "a", drift={"chosen": 1.0})
    with pytest.raises(BadInput, match="lack chosen or rejected"):
        compare(a, a, "margin")
    assert compare(a, a, "updates").kinds["chosen"].difference.mean == 0


def test_probes_are_aligned_by_prompt_and_kind_and_not_by_position(tmp_path):
    a = load(tmp_path / "a", drift=A, noise=0.8)
    order = list(reversed(range(len(a.probes))))
    columns = {name: values[:, order] for name, values in a.columns.items()}
    b = Trajectory(a.run, a.probes.take(order), a.steps, a.n_tokens[order], columns)
    chosen = compare(a, b, "gap").kinds["chosen"].difference
    assert (chosen.mean, chosen.low, chosen.high) == pytest.approx((0, 0, 0))


def cut(trajectory, **info):
    """The same run with one prompt token and one response token less per probe."""
    table = trajectory.probes
    for name, of in (("n_tokens", None), ("prompt_ids", 1), ("response_ids", 7)):
        values = table[name].to_pylist()
        values = [v[:-1] if of else v - 1 for v in values]
        index = table.column_names.index(name)
        table = table.set_column(index, name, [values])
    run = RunDirectory(trajectory.run.path, {**trajectory.run.info, **info})
    return replace(trajectory, run=run, probes=table)


def test_runs_that_cut_the_same_texts_elsewhere_are_refused_with_the_numbers(tmp_path):
    a = load(tmp_path / "a", info={"max_length": 64})
    shorter = cut(a, max_length=32)
    with pytest.raises(BadInput, match=r"72 of 72 probes have other token ids") as said:
        compare(a, shorter, "updates")
    assert "scored 8 and 7 tokens after prompts of 2 and 1" in str(said.value)
    assert "max_length was 64 and 32" in str(said.value)


def test_runs_of_other_tokenizers_are_refused(tmp_path):
    a = load(tmp_path / "a", info={"tokenizer_sha256": "a" * 64})
    b = load(tmp_path / "b", info={"tokenizer_sha256": "b" * 64})
    with pytest.raises(BadInput, match=r"tokenizers differ \(SHA-256 aaa.* and bbb"):
        compare(a, b, "updates")


def test_a_point_outside_a_run_gives_a_reason_and_no_numbers(tmp_path):
    a = load(tmp_path / "a")
    found = compare(a, a, "updates", at=1000.0)
    assert (found.at, found.kinds) == (None, {})
    assert "never reaches it" in found.reason
