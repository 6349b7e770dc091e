"""What the paper says of its first figure, as numbers that can fail.

Which digits look alike is a property of the images. The paper names those of MNIST:
4 and 9, 3 and 5, 5 and 8. On other images these claims are tested all the same, and may
fail there without a fault of the theory.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from learndyn.paper.claims import Claim, Measured, Statement, claims_of
from learndyn.paper.digits.result import DigitsResult


SIMILAR = ((4, 9), (3, 5), (5, 8))
"""The pairs that the paper names."""
_BRIGHT = 9
"""The pairs must be among so many of 45, a fifth."""
RISE = 0.01
"""Probability by which a path must rise above both its ends to count as a zig-zag."""

_SECTION = "Section 2, Figure 1"
_OF_MNIST = (
    "Which digits look alike depends on the images; the paper's pairs are MNIST's."
)


def digits_claims(results: Sequence[DigitsResult]) -> tuple[Claim, ...]:
    """The claims on these results; without any they are not applicable."""
    claims = claims_of(_STATEMENTS, results, "No images of digits were learnt.")
    sources = [f"{source}." for source in sorted({one.source for one in results})]
    return tuple(
        replace(claim, note=" ".join([*sources, claim.note]).strip())
        for claim in claims
    )


def _rank_of_nine(result: DigitsResult) -> float:
    """Place of 9 among the wrong answers to images of 4, 1 is the most probable."""
    answers = np.delete(result.final[4], 4)
    nine = result.final[4, 9]
    return float(1 + (answers > nine).sum())


def _worst_rank(result: DigitsResult) -> float:
    """The lowest place of the paper's three pairs among all 45."""
    both = result.final + result.final.T
    everyone = both[np.triu_indices(len(both), 1)]
    return float(max(1 + (everyone > both[pair]).sum() for pair in SIMILAR))


def _zigzags(result: DigitsResult) -> float:
    """Digits whose main wrong answer first rises, then falls."""
    rises = [
        path.max() - max(path[0], path[-1])
        for path in (result.softmax[:, u, _main_rival(result, u)] for u in range(10))
    ]
    return float(sum(rise >= RISE for rise in rises))


def _main_rival(result: DigitsResult, digit: int) -> int:
    """The wrong answer with the highest mean probability over the whole training."""
    mean = result.softmax[:, digit].mean(axis=0)
    mean[digit] = -1
    return int(mean.argmax())


def _rank_of_pull_up(result: DigitsResult) -> float:
    """Place of 9s among other digits, by how much pi(4) rises while 4s are learnt."""
    rises = pull_up(result, 4)
    return float(1 + (np.delete(rises, 4) > rises[9]).sum())


def pull_up(result: DigitsResult, digit: int) -> Float[np.ndarray, " class"]:
    """Rise of the mean pi(digit) on every class while `digit` is learnt, all looks."""
    return np.sum([p.paths[digit, -1] - p.paths[digit, 0] for p in result.looks], 0)


def _is(
    measure: Callable[[DigitsResult], float], holds: Callable[[float], bool]
) -> Callable[[DigitsResult], Measured]:
    def test(result: DigitsResult) -> Measured:
        value = measure(result)
        return Measured(result.seed, value, bool(holds(value)))

    return test


_STATEMENTS: tuple[Statement[DigitsResult], ...] = (
    Statement(
        "digits-first-order",
        "Section 2, Proposition 1",
        "One update changes every answer by -eta A K G, up to an error of order "
        "eta squared.",
        "slope of log error on log learning rate, over four decades: 2.0 +- 0.1",
        _is(
            lambda result: result.one_update.order, lambda value: abs(value - 2) <= 0.1
        ),
        "digits_first_order",
        "order",
    ),
    Statement(
        "digits-kernel-ranks-influence",
        "Section 2, Proposition 1",
        "The kernel says which digits learning a digit will influence.",
        "Spearman of first-order and actual influence over 90 pairs of different "
        "digits, summed over training: at least 0.8",
        _is(
            lambda result: result.accumulated["predicted, actual"],
            lambda value: value >= 0.8,
        ),
        "digits_influence",
        "rank correlation",
        "First-order: A K G of other images than those learnt and observed.",
    ),
    Statement(
        "digits-kernel-and-confusion",
        _SECTION,
        "Digits with a large kernel between them are the ones that are confused.",
        "Spearman of the mean norm of K and the mean wrong answer over 90 pairs, "
        "over training: at least 0.3",
        _is(
            lambda result: result.accumulated["norms, confused"],
            lambda value: value >= 0.3,
        ),
        "digits_confusion",
        "rank correlation",
    ),
    Statement(
        "digits-nine-for-four",
        _SECTION,
        "After training, images of a 4 keep a bump of probability on 9.",
        "place of 9 among the wrong answers to 4s: first or second",
        _is(_rank_of_nine, lambda value: value <= 2),
        "digits_confusion",
        "place",
        _OF_MNIST,
    ),
    Statement(
        "digits-similar-pairs",
        _SECTION,
        "The pairs 4 and 9, 3 and 5, 5 and 8 are brighter than other pairs.",
        "lowest place of the three among all 45 pairs by mean wrong answer: "
        f"{_BRIGHT} or better",
        _is(_worst_rank, lambda value: value <= _BRIGHT),
        "digits_confusion",
        "place",
        _OF_MNIST,
    ),
    Statement(
        "digits-pull-up",
        _SECTION,
        "Learning 4s lifts the answer 4 on images of 9.",
        "place of 9s among other digits by the rise of pi(4): first or second",
        _is(_rank_of_pull_up, lambda value: value <= 2),
        "digits_pull_up",
        "place",
        _OF_MNIST,
    ),
    Statement(
        "digits-zig-zag",
        "Section 2",
        "The most probable wrong answer rises early in training, and falls again "
        "later.",
        "digits whose main wrong answer rises by 0.01 above both ends of its path: "
        "at least 5 of 10",
        _is(_zigzags, lambda value: value >= 5),
        "digits_paths",
        "digits of 10",
        "The paper says so of similar digits; whether less similar answers do "
        "it less is not tested.",
    ),
)
