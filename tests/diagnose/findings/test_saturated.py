"""A loss at 0 long before the end: later updates push on nothing."""

import pytest
from planted import with_info, with_log

from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.faults.saturated import Saturated


def rows(loss, accuracy=None, epoch=0.01):
    accuracy = [float(value < 0.5) for value in loss] if accuracy is None else accuracy
    return [
        {"step": s, "loss": value, "rewards/accuracies": right, "epoch": epoch * s}
        for s, (value, right) in enumerate(zip(loss, accuracy, strict=True), start=1)
    ]


EARLY = [0.69, 0.1, 0.02, *[0.004] * 9]


def found(base, log, **info):
    return Saturated.detect(Facts(with_info(with_log(base, log), **info)))


def test_an_early_end_of_the_loss_says_from_when_and_why(base):
    finding = found(base, rows(EARLY))
    assert (finding.severity, finding.numbers["since"]) == ("watch", 4)
    assert "From update 4 on the loss is below 0.01" in finding.says
    assert "something trivial" in finding.says
    again = found(base, rows(EARLY, epoch=0.5))
    assert "in pass 2 over the pairs: stop there" in again.says


@pytest.mark.parametrize(
    "loss",
    [
        [0.69, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.02, 0.008],
        [0.69, 0.004, 0.004, 0.004, 0.3, 0.004, 0.004],
        [0.69, 0.62, 0.6, 0.55, 0.5, 0.52],
    ],
    ids=["at-the-end", "not-throughout", "never"],
)
def test_a_loss_that_comes_to_0_late_or_not_is_not_saturated(base, loss):
    assert found(base, rows(loss)).severity == "fine"


def test_a_loss_near_0_with_pairs_the_wrong_way_is_something_else(base):
    log = rows(EARLY, accuracy=[0.5] * len(EARLY))
    assert found(base, log).severity == "fine"


def test_methods_without_pairs_and_a_broken_loss_are_not_judged(base):
    assert found(base, rows(EARLY), method="sft") is None
    assert found(base, rows(EARLY)[:4]) is None
    assert found(base, rows([0.69, 5.0, *[0.004] * 10])) is None
