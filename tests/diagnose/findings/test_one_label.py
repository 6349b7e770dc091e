"""KTO that saw examples of one label only."""

import pytest
from planted import with_info, with_log

from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.faults.one_label import OneLabel


def rows(*kinds, count=5):
    return [
        {"step": s} | {f"rewards/{k}": -0.1 * s for k in kinds} for s in range(count)
    ]


def found(base, log, method="kto"):
    facts = Facts(with_info(with_log(base, log), method=method))
    finding = OneLabel.detect(facts)
    return finding, finding and finding.headline(facts)


@pytest.mark.parametrize(
    ("kind", "there", "lacks"),
    [("rejected", "undesirable", "desirable"), ("chosen", "desirable", "undesirable")],
)
def test_a_label_that_never_came_is_named(base, kind, there, lacks):
    finding, headline = found(base, rows(kind))
    assert finding.severity == "problem"
    assert headline == f"KTO saw only {there} examples, not one {lacks} one."
    assert f"rewards/{kind} is logged in 5 rows" in finding.says


def test_both_labels_are_fine_even_in_batches_of_one(base):
    mixed = [*rows("rejected"), *rows("chosen")]
    assert found(base, mixed)[0].severity == "fine"


def test_other_methods_and_short_logs_are_not_judged(base):
    assert found(base, rows("rejected"), method="dpo")[0] is None
    assert found(base, rows("rejected", count=2))[0] is None
    assert found(base, [{"step": 1, "loss": 0.5}])[0] is None
