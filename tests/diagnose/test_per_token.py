"""Squeezing token by token, on distributions pushed by the paper's own step."""

import numpy as np
import pytest
from simulated import write_token_run
from synthetic import write_run

from learndyn.diagnose.intervals import pooled_bootstrap
from learndyn.diagnose.paths import Paths
from learndyn.diagnose.state import state_of
from learndyn.record.trajectory import Trajectory


VOCABULARY = 12


def softmax(logits):
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


def pushed(logits, token, strength):
    """One gradient step on log pi(token), up or down (Section 3.3)."""
    at = np.arange(len(token))
    out = logits - strength * softmax(logits)
    out[at, token] += strength
    return out


def answers(prompts=30, seed=0):
    """Logits and labels of chosen and rejected; labels are likely, rarely the first."""
    generator = np.random.default_rng(seed)
    logits, labels = {}, {}
    for i in range(prompts):
        for kind in ("chosen", "rejected"):
            length = int(generator.integers(2, 9))
            key = f"p{i:03d}", kind
            logits[key] = 2 * generator.standard_normal((length, VOCABULARY))
            order = np.argsort(-logits[key], axis=1)
            rank = generator.choice([0, 1, 2], size=length, p=[0.3, 0.4, 0.3])
            labels[key] = order[np.arange(length), rank]
    return logits, labels


def unlikely(logits):
    """The least likely token at each position."""
    return logits.argmin(axis=1)


def squeezing(path, steps=6, **options):
    """Unlikely tokens are pushed down again and again, at every position."""
    logits, labels = answers()
    weak = {key: unlikely(v) for key, v in logits.items()}
    for key, values in logits.items():  # a rejected answer's token is likely no more
        values[np.arange(len(values)), weak[key]] += 2.0
    run = [logits]
    for _ in range(steps):
        run.append({k: pushed(v, weak[k], -1.5) for k, v in run[-1].items()})
    return write_token_run(path, run, labels, **options), run, labels


def fitting(path):
    logits, labels = answers()
    run = [logits]
    for _ in range(6):
        run.append({k: pushed(v, labels[k], 0.7) for k, v in run[-1].items()})
    return write_token_run(path, run, labels)


def leaking(path):
    """Distributions flatten, and labels fall more than the favourites do."""
    logits, labels = answers()
    run = [logits]
    for step in range(1, 7):
        now = {}
        for key, values in logits.items():
            moved = (1 - 0.08 * step) * values
            moved[np.arange(len(values)), labels[key]] -= 0.3 * step
            now[key] = moved
        run.append(now)
    return write_token_run(path, run, labels)


def test_pushing_unlikely_tokens_down_is_a_squeeze(tmp_path):
    report = state_of(squeezing(tmp_path / "run")[0])
    assert (report.state, report.sure) == ("SQUEEZE", True)
    assert report.off_target.up
    assert report.greedy.up


def test_pulling_the_labels_up_is_a_fit(tmp_path):
    report = state_of(fitting(tmp_path / "run"))
    assert (report.state, report.sure) == ("FIT", True)
    assert report.off_target.down
    assert report.sq.down


def test_a_leak_is_a_collapse_although_favourites_fall_less_than_labels(tmp_path):
    report = state_of(leaking(tmp_path / "run"))
    assert report.sq.up
    assert report.greedy.down
    assert (report.state, report.new_peaks) == ("COLLAPSE", False)


def test_numbers_are_those_of_the_full_distributions(tmp_path):
    trajectory, run, labels = squeezing(tmp_path / "run", steps=4)
    report = state_of(trajectory)  # of five observations the last one decides
    ahead, astray, counted = 0.0, [], 0
    for (prompt, kind), label in labels.items():
        if kind != "chosen":
            continue
        begin = np.log(softmax(run[0][prompt, kind]))
        end = np.log(softmax(run[-1][prompt, kind]))
        for m, y in enumerate(label):
            favourite = begin[m].argmax()
            ahead += (end[m].max() - begin[m].max()) - (end[m, y] - begin[m, y])
            counted += 1
            if favourite != y:
                astray.append(end[m, favourite] - begin[m, favourite])
    assert report.sq.per_token.mean == pytest.approx(ahead / counted)
    assert report.off_target.per_token.mean == pytest.approx(np.mean(astray), rel=1e-5)
    assert report.prompts == 30


def test_limits_are_those_of_the_pooled_bootstrap_over_prompts(tmp_path):
    trajectory = squeezing(tmp_path / "run", steps=4)[0]
    paths = Paths.of(trajectory)
    change = (paths.greedy - paths.greedy[0]) - (
        paths.logp["chosen"] - paths.logp["chosen"][0]
    )
    expected = pooled_bootstrap(change[-1], paths.n_tokens["chosen"]).at()
    interval = state_of(trajectory).sq.per_token
    assert [interval.low, interval.high] == pytest.approx([expected.low, expected.high])


def test_token_lists_are_read_at_the_first_and_the_last_observation_alone(
    tmp_path, monkeypatch
):
    trajectory = Trajectory.load(write_run(tmp_path / "run", steps=range(0, 400, 20)))
    read = []
    whole = Trajectory.tokens
    monkeypatch.setattr(
        Trajectory,
        "tokens",
        lambda self, column, step: read.append(step) or whole(self, column, step),
    )
    assert state_of(trajectory).off_target is not None
    assert set(read) == {0, 380}


def test_between_full_observations_only_the_panel_is_judged(tmp_path):
    panel = [f"p{i:03d}" for i in range(8)]
    part = state_of(squeezing(tmp_path / "panel", panel=panel)[0])
    whole = state_of(squeezing(tmp_path / "whole")[0])
    assert (part.prompts, whole.prompts) == (8, 30)
    assert part.off_target.nats.n == 8


def test_without_token_ids_former_favourites_are_not_known(tmp_path):
    trajectory = squeezing(tmp_path / "run")[0]
    bare = trajectory.probes.drop_columns(["response_ids"])
    assert state_of(_with(trajectory, probes=bare)).off_target is None


def test_a_run_whose_favourites_are_all_labels_has_none_off_them(tmp_path):
    logits, _ = answers()
    labels = {key: values.argmax(axis=1) for key, values in logits.items()}
    run = [logits, {k: pushed(v, unlikely(v), -3.0) for k, v in logits.items()}]
    report = state_of(write_token_run(tmp_path / "run", run, labels))
    assert report.off_target is None


def _with(trajectory, **changes):
    fields = ("run", "probes", "steps", "n_tokens", "columns", "scored")
    return Trajectory(**{n: getattr(trajectory, n) for n in fields} | changes)
