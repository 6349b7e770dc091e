"""Which prompts were squeezed, and where the probability of their answers went."""

import numpy as np
import pytest
from simulated import drifting, simulated, write_token_run
from synthetic import make_forces, write_run
from test_per_token import answers, pushed, softmax, squeezing, unlikely

from learndyn.diagnose.prompts import ChosenTokens, by_prompt, token_texts
from learndyn.record.trajectory import Trajectory


def planted(chosen, greedy, rejected=None, **options):
    """Last changes of each prompt, nats; half of them at the observation before."""

    def path(ends, begin):
        return begin + np.outer([0, 0.5, 1], ends)

    logp = {"chosen": path(chosen, -60.0)}
    if rejected is not None:
        logp["rejected"] = path(rejected, -80.0)
    return simulated(logp, path(greedy, -20.0), **options)


def test_a_prompt_is_squeezed_where_greedy_rises_and_chosen_falls():
    found = by_prompt(planted([-3, -1, 4, -2, 0], [1, 5, 2, -1, 0]))
    assert [row.prompt_id for row in found.rows if row.squeezed] == ["p0000", "p0001"]
    assert found.squeezed.mean == pytest.approx(2 / 5)
    assert found.squeezed.low < 2 / 5 < found.squeezed.high


def test_the_most_squeezed_come_first_by_the_smaller_of_both_moves():
    found = by_prompt(planted([-3, -2, -9, 4, -8], [9, 3, 1, 6, -4]))
    assert [row.depth for row in found.rows] == [3, 2, 1, -4, -4]
    assert [row.prompt_id[-1] for row in found.rows] == ["0", "1", "2", "3", "4"]


def test_rows_hold_the_changes_of_their_own_prompt_and_probe():
    chosen, greedy, rejected = [-1.0, -2.0, 3.0], [0.5, 2.5, 1.0], [-7.0, -8.0, -9.0]
    run = planted(chosen, greedy, rejected, prompts=["c", "a", "b"])
    rows = {row.prompt_id: row for row in by_prompt(run).rows}
    for i, name in enumerate("cab"):
        row = rows[name]
        assert row.chosen == pytest.approx(chosen[i])
        assert row.greedy == pytest.approx(greedy[i])
        assert row.rejected == pytest.approx(rejected[i])
        assert run.prompt_of[row.probe] == name
        assert run.kind_of[row.probe] == "chosen"
        assert row.off_target is None  # no token ids


def test_prompts_that_diverged_are_left_out():
    run = planted([-1, -2, -3], [1, 1, 1])
    run.columns["logp"][-1, 1] = np.nan
    found = by_prompt(run)
    assert [row.prompt_id for row in found.rows] == ["p0000", "p0002"]
    assert found.squeezed.n == 2


def test_probes_without_chosen_have_no_rows():
    assert by_prompt(drifting({"rejected": -0.1}, None)) is None


def test_a_last_observation_of_the_panel_has_the_panels_prompts_only():
    run = planted([-1, -2, -3, -4], [1, 1, 1, 1], panel=[1, 2])
    run.scored[-1] = run.scored[1]
    for values in run.columns.values():
        values[-1, ~run.scored[-1]] = np.nan
    found = by_prompt(run)
    assert sorted(row.prompt_id for row in found.rows) == ["p0001", "p0002"]


def test_a_row_of_means_is_no_prompt_of_the_others():
    run = simulated(
        {
            "chosen": -60 + np.outer([0, 1], [-1.0, 2.0, -3.0]),
            "rejected": np.array([[-80.0], [-90.0]]),
        },
        -20 + np.outer([0, 1], [1.0, 1.0, 1.0]),
    )
    found = by_prompt(run)
    assert [row.prompt_id for row in found.rows] == ["p0000", "p0002", "p0001"]
    assert {row.rejected for row in found.rows} == {None}


def test_off_target_is_the_change_of_first_favourites_that_are_no_labels(tmp_path):
    trajectory, run, labels = squeezing(tmp_path / "run")
    for row in by_prompt(trajectory).rows[:5]:
        key = row.prompt_id, "chosen"
        begin, end = (np.log(softmax(run[t][key])) for t in (0, -1))
        favourite, at = begin.argmax(axis=1), np.arange(len(begin))
        moved = (end - begin)[at, favourite][favourite != labels[key]].sum()
        assert row.off_target == pytest.approx(moved, rel=1e-4, abs=1e-5)
        assert row.tokens == len(labels[key])


def test_token_rows_are_those_of_the_full_distributions(tmp_path):
    logits, labels = answers()
    run = [logits, {k: pushed(v, labels[k], 3.0) for k, v in logits.items()}]
    trajectory = write_token_run(tmp_path / "run", run, labels)
    key = "p007", "chosen"
    rows = ChosenTokens.of(trajectory).rows("p007")
    begin, end = (np.log(softmax(run[t][key])) for t in (0, -1))
    assert [row.position for row in rows] == list(range(len(begin)))
    assert (begin.argmax(axis=1) != end.argmax(axis=1)).any()
    for m, row in enumerate(rows):
        first, last = int(begin[m].argmax()), int(end[m].argmax())
        assert (row.label, row.first_favourite) == (labels[key][m], first)
        assert row.label_change == pytest.approx(
            (end - begin)[m, row.label], rel=1e-4, abs=1e-5
        )
        assert row.first_favourite_change == pytest.approx(
            (end - begin)[m, first], rel=1e-4, abs=1e-5
        )
        assert row.last_favourite == last
        assert row.last_favourite_logp == pytest.approx(end[m, last], rel=1e-4)
        assert row.off_target == (first != labels[key][m])


def test_favourites_are_those_that_gained_mass_at_positions_of_other_labels(tmp_path):
    trajectory, run, labels = squeezing(tmp_path / "run")
    mass = np.zeros((2, 12))
    for key, label in labels.items():
        if key[1] != "chosen":
            continue
        for when, logits in enumerate((run[0], run[-1])):
            share = softmax(logits[key])
            for m, y in enumerate(label):
                top = share[m].argmax()
                if top != y:
                    mass[when, top] += share[m, top]
    gain = mass[1] - mass[0]
    found = ChosenTokens.of(trajectory).favourites(most=4)
    expected = [int(i) for i in np.argsort(-gain)[:4] if gain[i] > 0]
    assert [one.token for one in found] == expected
    assert [one.gain for one in found] == pytest.approx(gain[expected], rel=1e-4)


def test_training_that_fits_leaves_no_favourite_that_gained(tmp_path):
    logits, labels = answers()
    fitted = {k: pushed(v, labels[k], 30.0) for k, v in logits.items()}
    trajectory = write_token_run(tmp_path / "run", [logits, fitted], labels)
    assert ChosenTokens.of(trajectory).favourites() == []


def test_tokens_of_a_panel_are_matched_to_their_own_probes(tmp_path):
    logits, labels = answers(prompts=10)
    extra = "p000", "random_words"  # the kinds do not alternate from probe to probe
    logits[extra], labels = logits["p001", "chosen"], {extra: np.array([1])} | labels
    logits[extra] = logits[extra][:1]
    end = {k: pushed(v, unlikely(v), -3.0) for k, v in logits.items()}
    whole = write_token_run(tmp_path / "whole", [logits, end], labels)
    panel = write_token_run(
        tmp_path / "panel", [logits, end, end], labels, panel=["p003", "p008"]
    )
    between = Trajectory(
        panel.run,
        panel.probes,
        panel.steps[:2],
        panel.n_tokens,
        {name: values[:2] for name, values in panel.columns.items()},
        panel.scored[:2],
    )
    found = ChosenTokens.of(between)
    assert set(found.prompt.tolist()) == {"p003", "p008"}
    assert found.rows("p008") == ChosenTokens.of(whole).rows("p008")


def test_a_prompt_that_is_not_there_has_no_rows(tmp_path):
    trajectory = squeezing(tmp_path / "run")[0]
    assert ChosenTokens.of(trajectory).rows("p999") == []


def test_a_run_without_values_per_token_has_no_token_rows(tmp_path):
    trajectory = squeezing(tmp_path / "run")[0]
    bare = Trajectory(
        trajectory.run,
        trajectory.probes.drop_columns(["response_ids"]),
        trajectory.steps,
        trajectory.n_tokens,
        trajectory.columns,
    )
    assert ChosenTokens.of(bare) is None
    assert token_texts(bare) == {}
    assert by_prompt(bare).rows[0].off_target is None


def test_texts_of_tokens_come_from_recorded_forces_alone(tmp_path):
    trajectory = Trajectory.load(write_run(tmp_path / "run", prompts=2))
    assert token_texts(trajectory) == {}
    forces = make_forces(trajectory.probes)
    trajectory.run.write_forces(forces)
    assert token_texts(trajectory)[7] in forces.token_text
