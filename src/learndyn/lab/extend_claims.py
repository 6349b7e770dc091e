"""Claims about extend, SFT on both answers before DPO (Section 4.3, Figure 5, Table 1).

At equal updates and, because extend moves at another speed, at a matched DPO margin.
"""

import math

import numpy as np

from learndyn.diagnose.compare import By, Difference, compare
from learndyn.diagnose.intervals import Interval
from learndyn.diagnose.paths import GREEDY
from learndyn.diagnose.state import state_of
from learndyn.lab.claims import Measured
from learndyn.lab.paper_statements import (
    Absent,
    Measure,
    Statement,
    above,
    along_chosen,
    below,
    measured,
    rises,
    run_of,
    values,
)
from learndyn.lab.recorded import Recorded, difference, probed_split


FIGURE = "Section 4.3, Figure 5"
TABLE = "Section 4.3, Table 1"

MARGIN = 0.05
"""Share of prompts by which extend may at most be better where it is "no better"."""


def rejected_higher_after_sft(one: Recorded) -> Measured:
    """log pi(rejected) after extend's SFT minus that after plain SFT."""
    extended, plain = (values(one, r, "rejected") for r in ("extend-sft", "sft"))
    found = difference(extended[-1], plain[-1])
    return measured(one, found, above(found))


def argmax_rises_less(one: Recorded) -> Measured:
    """Change of the argmax along chosen in DPO, extend minus plain."""
    extended, plain = (values(one, r, GREEDY) for r in ("extend-dpo", "dpo"))
    found = difference(extended[-1] - extended[0], plain[-1] - plain[0])
    return measured(one, found, below(found))


def squeezes_less(one: Recorded) -> Measured:
    """Squeeze index of DPO after extend minus that of plain DPO."""
    found = []
    for role in ("extend-dpo", "dpo"):
        run = run_of(one, role)
        along_chosen(run)
        known = probed_split(run)
        found.append(state_of(run, split=known).sx)
    extended, plain = found
    if not (math.isfinite(extended.mean) and math.isfinite(plain.mean)):
        raise Absent("a dpo run has no greedy path")
    return Measured(one.seed, extended.mean - plain.mean, extended.high < plain.low)


def chosen_higher(by: By) -> Measure:
    """Change of chosen, extend minus plain DPO, at a matched point."""

    def measure(one: Recorded) -> Measured:
        found = _compared(one, by).get("chosen")
        if found is None:
            raise Absent("the dpo runs have no chosen probes")
        return measured(one, found.difference, above(found.difference))

    return measure


def others_fall_less(one: Recorded) -> Measured:
    """Change of all other kinds, extend minus plain, mean over kinds."""
    paths = []
    kinds = set(run_of(one, "dpo").kinds) & set(run_of(one, "extend-dpo").kinds)
    others = sorted(kinds - {"chosen", "rejected"})
    if not others:
        raise Absent("the dpo runs probe chosen and rejected alone")
    for role in ("extend-dpo", "dpo"):
        moved = [values(one, role, k) for k in others]
        paths.append(np.mean([path[-1] - path[0] for path in moved], axis=0))
    found = difference(*paths)
    return measured(one, found, above(found))


def answers_better(one: Recorded) -> Measured:
    """Share of held-out prompts answered right after DPO, extend minus plain."""
    found = _right(one, "extend-dpo", "dpo")
    return measured(one, found, above(found))


def starts_no_better(one: Recorded) -> Measured:
    """The same after SFT, before any DPO. An interval that merely holds zero says
    little: the upper limit decides."""
    found = _right(one, "extend-sft", "sft")
    if all(one.right["sft"]):
        raise Absent("plain SFT answers all right already: nothing could be better")
    return measured(one, found, below(found, MARGIN))


def _right(one: Recorded, stage: str, other: str) -> Interval:
    if stage not in one.right or other not in one.right:
        raise Absent("answers are graded in the embedded world alone")
    return difference(*(np.array(one.right[s], dtype=float) for s in (stage, other)))


def _compared(one: Recorded, by: By) -> dict[str, Difference]:
    plain, extended = run_of(one, "dpo"), run_of(one, "extend-dpo")
    found = compare(plain, extended, by)
    if found.at is None:
        raise Absent(f"the runs cannot be matched by {by}: {found.reason}")
    return found.kinds


EXTEND_STATEMENTS = (
    Statement(
        "extend-sft-rejected-rises",
        FIGURE,
        "SFT on both answers makes rejected more likely.",
        "change of log π(rejected) over extend's SFT > 0, 95 % interval above 0",
        rises("extend-sft", "rejected"),
        "extend_sft",
    ),
    Statement(
        "extend-sft-rejected-higher",
        FIGURE,
        "DPO then starts from more likely rejected answers.",
        "log π(rejected) after SFT, extend minus plain, 95 % interval above 0",
        rejected_higher_after_sft,
        "extend_sft",
    ),
    Statement(
        "extend-argmax-rises-less",
        FIGURE,
        "After extend the favourites rise less during DPO.",
        "change of the argmax along chosen, extend minus plain, at equal updates, "
        "95 % interval below 0",
        argmax_rises_less,
        "extend_dpo",
    ),
    Statement(
        "extend-squeezes-less",
        FIGURE,
        "Extend weakens the squeezing effect.",
        "squeeze index, extend minus plain < 0, the two 95 % intervals apart",
        squeezes_less,
        "extend_dpo",
        unit="share",
    ),
    Statement(
        "extend-others-fall-less",
        FIGURE,
        "After extend the other answers fall less.",
        "change of all kinds but chosen and rejected, mean over kinds, extend minus "
        "plain, at equal updates, 95 % interval above 0",
        others_fall_less,
        "extend_dpo",
    ),
    Statement(
        "extend-chosen-higher",
        FIGURE,
        "After extend chosen keeps more of its probability.",
        "change of chosen, extend minus plain, at equal updates, 95 % interval above 0",
        chosen_higher("updates"),
        "extend_dpo",
    ),
    Statement(
        "extend-chosen-higher-at-margin",
        FIGURE,
        "So it does where both have moved equally far.",
        "the same at a matched DPO margin, 95 % interval above 0",
        chosen_higher("margin"),
        "extend_matched",
        note="The paper compares at equal updates; this takes speed out of it.",
    ),
    Statement(
        "extend-answers-better",
        TABLE,
        "DPO after extend gives better answers than DPO alone.",
        "share of held-out prompts answered right (greedy, strict), extend minus "
        "plain, 95 % interval above 0",
        answers_better,
        "table_1",
        unit="share",
        note="The paper asks ChatGPT and Claude which answer is better; here code "
        "checks whether it is right.",
    ),
    Statement(
        "extend-starts-no-better",
        TABLE,
        "Before DPO extend is no better than plain SFT.",
        f"the same after SFT: 95 % interval below +{MARGIN:g}",
        starts_no_better,
        "table_1",
        unit="share",
    ),
)
