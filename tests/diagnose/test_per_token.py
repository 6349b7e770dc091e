"""Squeezing token by token, on distributions pushed by the paper's own step."""

import numpy as np
import pytest
from simulated import write_token_run
from synthetic import write_run

from learndyn.diagnose.intervals import pooled_bootstrap
from learndyn.diagnose.paths import Paths
from learndyn.diagnose.squeeze import _PER_TOKEN_DELTA, per_token
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


def test_pushing_unlikely_tokens_down_fires_and_is_sure(tmp_path):
    found = per_token(squeezing(tmp_path / "run")[0])
    assert found.fires
    assert found.off_target.mean > 0
    assert found.favourite.mean[-1] > _PER_TOKEN_DELTA
    assert set(found.squeeze) == {"chosen", "rejected"}


def test_pulling_the_labels_up_does_not_fire(tmp_path):
    found = per_token(fitting(tmp_path / "run"))
    assert not found.fires
    assert not found.sure
    assert found.off_target.below_zero
    assert found.squeeze["chosen"].mean[-1] < 0


def test_a_leak_does_not_fire_although_favourites_fall_less_than_labels(tmp_path):
    found = per_token(leaking(tmp_path / "run"))
    assert found.squeeze["chosen"].low[-1] > _PER_TOKEN_DELTA
    assert found.favourite.high[-1] < 0
    assert not found.fires


def test_numbers_are_those_of_the_full_distributions(tmp_path):
    trajectory, run, labels = squeezing(tmp_path / "run")
    found = per_token(trajectory)
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
    assert found.squeeze["chosen"].mean[-1] == pytest.approx(ahead / counted)
    assert found.off_target.mean == pytest.approx(np.mean(astray), rel=1e-5)
    assert found.off_target_tokens == len(astray)
    assert found.prompts == 30


def test_limits_are_those_of_the_pooled_bootstrap_over_prompts(tmp_path):
    trajectory = squeezing(tmp_path / "run")[0]
    paths = Paths.of(trajectory)
    change = (paths.greedy - paths.greedy[0]) - (
        paths.logp["chosen"] - paths.logp["chosen"][0]
    )
    expected = pooled_bootstrap(change[-1], paths.n_tokens["chosen"]).at()
    found = per_token(trajectory).squeeze["chosen"].at(-1)
    assert [found.low, found.high] == pytest.approx([expected.low, expected.high])


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
    found = per_token(trajectory)
    assert set(read) == {0, 380}
    assert len(found.steps) == len(found.squeeze["chosen"].mean) == 20


def test_between_full_observations_only_the_panel_is_judged(tmp_path):
    panel = [f"p{i:03d}" for i in range(8)]
    found = per_token(squeezing(tmp_path / "panel", panel=panel)[0])
    whole = per_token(squeezing(tmp_path / "whole")[0])
    assert (found.prompts, whole.prompts) == (8, 30)
    assert found.squeeze["chosen"].n.tolist() == [8] * 7
    assert found.off_target.n == 8


def test_a_run_without_values_per_token_has_no_answer(tmp_path):
    trajectory = squeezing(tmp_path / "run")[0]
    bare = trajectory.probes.drop_columns(["response_ids"])
    assert per_token(_with(trajectory, probes=bare)) is None
    counts = np.zeros_like(trajectory.n_tokens)
    assert per_token(_with(trajectory, n_tokens=counts)) is None
    no_chosen = Trajectory.load(write_run(tmp_path / "b", drift={"rejected": -1.0}))
    assert per_token(no_chosen) is None


def test_a_run_whose_favourites_are_all_labels_does_not_fire(
    tmp_path,
):
    logits, _ = answers()
    labels = {key: values.argmax(axis=1) for key, values in logits.items()}
    run = [logits, {k: pushed(v, unlikely(v), -3.0) for k, v in logits.items()}]
    found = per_token(write_token_run(tmp_path / "run", run, labels))
    assert (found.off_target, found.off_target_tokens, found.fires) == (None, 0, False)


def _with(trajectory, **changes):
    fields = ("run", "probes", "steps", "n_tokens", "columns", "scored")
    return Trajectory(**{n: getattr(trajectory, n) for n in fields} | changes)
