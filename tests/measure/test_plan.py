"""The layout of trees, batches and branches: relations that any right one must keep.

Every tier's work is unfolded into what each label is predicted from: the tokens that
its predicting position sees, in order. That must be its prompt and the response so far.
"""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from learndyn.measure.plan import Pack, ProbePlan
from learndyn.measure.tiers import TIERS, Limits
from learndyn.probes.tokenize import TokenizedPair


many = settings(deadline=None, max_examples=100, derandomize=True)
IDS = st.integers(1, 2)  # few, so that prompts and responses repeat
PAIRS = st.lists(
    st.tuples(
        st.lists(IDS, min_size=1, max_size=2), st.lists(IDS, min_size=1, max_size=5)
    ),
    min_size=1,
    max_size=12,
)
LIMITS = st.builds(
    Limits,
    tokens=st.integers(1, 25),
    rows=st.none() | st.integers(1, 12),
    batch_size=st.integers(1, 5),
    padding_side=st.sampled_from(["left", "right"]),
)


def plan_of(pairs) -> ProbePlan:
    return ProbePlan(
        tuple(TokenizedPair(tuple(p), tuple(r), False, False) for p, r in pairs)
    )


def contexts(piece) -> list[tuple[int, ...]]:
    """What each predicting position of a piece of work reads, itself last."""
    found = []
    if isinstance(piece, Pack):
        for at in piece.predicts:
            seen = piece.visible()[at]
            order = piece.positions[seen].argsort()
            found.append(tuple(piece.ids[seen][order].tolist()))
    elif hasattr(piece, "prompt"):
        prompt = tuple(piece.prompt[0].tolist())
        found.append(prompt)
        for ids, known in piece.batches:
            for row, here in zip(ids.tolist(), known.tolist(), strict=True):
                found += [
                    (*prompt, *row[: t + 1]) for t, real in enumerate(here) if real
                ]
    else:
        padded = piece.padded
        for ids, real, predicts in zip(
            padded.ids, padded.attention.bool(), padded.predicts, strict=True
        ):
            found += [
                tuple(ids[: t + 1][real[: t + 1]].tolist())
                for t in predicts.nonzero().squeeze(-1).tolist()
            ]
    return found


@pytest.mark.parametrize("tier", TIERS, ids=lambda tier: tier.name)
@many
@given(pairs=PAIRS, limits=LIMITS)
def test_every_token_is_scored_once_and_from_its_own_past(tier, pairs, limits):
    plan = plan_of(pairs)
    owner = [(i, k) for i, (_, r) in enumerate(pairs) for k in range(len(r))]
    scored = []
    for piece in tier.pieces(plan, limits):
        seen, targets = contexts(piece), piece.targets
        for flat, source, label in zip(
            targets.flat, targets.source, targets.labels, strict=True
        ):
            prompt, response = pairs[owner[flat][0]]
            assert seen[source] == (*prompt, *response[: owner[flat][1]])
            assert label == response[owner[flat][1]]
        assert set(targets.source) == set(range(len(seen)))  # nothing in vain
        scored += targets.flat.tolist()
    assert sorted(scored) == list(range(plan.n_tokens))


@many
@given(pairs=PAIRS, limits=LIMITS, window=st.none() | st.integers(1, 6))
def test_a_token_sees_its_prompt_and_its_own_response_within_the_window(
    pairs, limits, window
):
    for pack in plan_of(pairs).packs(limits.tokens, limits.rows):
        seen = pack.visible(window)
        tree, branch, at = pack.tree, pack.branch, pack.positions
        for i in range(len(pack.ids)):
            for j in range(len(pack.ids)):
                related = tree[i] == tree[j] and branch[j] in (0, branch[i])
                near = window is None or at[i] - at[j] < window
                assert bool(seen[i, j]) == bool(related and at[j] <= at[i] and near)


@many
@given(pairs=PAIRS, limits=LIMITS)
def test_segments_cover_a_pack_and_see_what_its_tokens_see(pairs, limits):
    for pack in plan_of(pairs).packs(limits.tokens, limits.rows):
        expected = torch.zeros(len(pack.ids), len(pack.ids), dtype=torch.bool)
        covered = [i for s in pack.segments for i in range(s.own.start, s.own.stop)]
        for segment in pack.segments:
            expected[segment.own, segment.prompt] = True
            expected[segment.own, segment.own] = True
        assert covered == list(range(len(pack.ids)))
        assert torch.equal(expected.tril(), pack.visible())


@many
@given(pairs=PAIRS)
def test_a_prompt_is_encoded_once(pairs):
    plan = plan_of(pairs)
    prompts = {tuple(prompt) for prompt, _ in pairs}
    size = sum(map(len, prompts)) + sum(len(r) - 1 for _, r in pairs)
    (pack,) = plan.packs(10**6)
    assert len(pack.ids) == size
    assert len(pack.predicts) == len(prompts) + sum(len(r) - 1 for _, r in pairs)
    assert len({tree.prompt_ids for tree in plan.trees}) == len(plan.trees)
    sizes = [len(tree.prompt_ids) for tree in plan.trees]
    for i, tree in enumerate(plan.trees):
        sizes[i] += sum(len(pairs[k][1]) - 1 for k in tree.pairs)
    assert sizes == sorted(sizes, reverse=True)


@many
@given(pairs=PAIRS, limits=LIMITS)
def test_a_pack_is_over_its_limits_by_a_prompt_or_a_single_response(pairs, limits):
    for pack in plan_of(pairs).packs(limits.tokens, limits.rows):
        over = len(pack.ids) > limits.tokens
        if limits.rows is not None:
            over |= len(pack.predicts) > limits.rows
        if not over:
            continue
        assert pack.tree.max() == 0
        if int((pack.targets.source == 0).sum()) > 1:
            assert len(pack.predicts) - 1 <= limits.tokens
            assert limits.rows is None or len(pack.predicts) <= limits.rows


@many
@given(pairs=PAIRS, limits=LIMITS)
def test_neighbouring_packs_would_not_fit_into_one(pairs, limits):
    sizes = [len(pack.ids) for pack in plan_of(pairs).packs(limits.tokens)]
    assert all(one + next_one > limits.tokens for one, next_one in pairwise(sizes))


def test_forty_responses_to_one_prompt_are_split_and_share_it():
    prompt, responses = list(range(1, 21)), [[1] * 11 for _ in range(40)]
    plan = plan_of([(prompt, response) for response in responses])
    packs = plan.packs(120)
    assert [len(pack.ids) for pack in packs] == [20 + 12 * 10] * 3 + [20 + 4 * 10]
    assert all(pack.ids[:20].tolist() == prompt for pack in packs)
    by_rows = plan.packs(10**6, most_rows=30)
    assert [len(pack.predicts) for pack in by_rows] == [1 + 2 * 10] * 20


def test_targets_follow_the_pairs_order_not_the_trees():
    plan = plan_of([([1], [7, 8]), ([2, 2], [9]), ([1], [5])])
    np.testing.assert_array_equal(plan.starts, [0, 2, 3, 4])
    (pack,) = plan.packs(100)
    order = np.argsort(pack.targets.flat)
    np.testing.assert_array_equal(pack.targets.labels[order], [7, 8, 9, 5])
