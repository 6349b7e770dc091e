"""Runs that an earlier rule named wrongly, by their numbers: name, sureness, advice.

Nats per response, mean over 48 prompts of about 40 tokens; `docs/diagnosis.md` has the
runs they stand for. The authors' own runs are in tests/paper/test_authors.py.
"""

import re

import numpy as np
import pytest
from simulated import simulated

from learndyn.diagnose.squeeze_index import squeeze_index
from learndyn.diagnose.verdict import diagnose


DPO = {"method": "dpo", "trainer": {"beta": 0.1, "loss_type": ["sigmoid"]}}
SFT = {"method": "sft"}


def run_of(ends, greedy, info, *, starts=-80.0, spread=None, observations=11):
    """A run that drifts to these means; `spread` is the standard deviation over
    prompts, where it is not that of an interval of the study."""
    generator = np.random.default_rng(0)
    time = np.linspace(0, 1, observations)[:, None]
    time = np.minimum(1, time / 0.75)  # level over the last fifth

    def path(start, mean, sd):
        noise = generator.standard_normal(48)
        return start + time * (mean + sd * (noise - noise.mean()))

    logp = {
        kind: path(starts, mean, spread if spread is not None else sd)
        for kind, (mean, sd) in ends.items()
    }
    mean, sd = greedy
    return simulated(logp, path(starts * 0.55, mean, spread or sd), info=info)


STUDY = {
    "the demo's SFT": (
        run_of({"chosen": (64.8, 3), "rejected": (51, 3)}, (43.2, 2), SFT, starts=-90),
        ("FIT", True),
        "^Training does what it should: chosen rose",
        "^No sign of a bug",
        None,
    ),
    "a DPO that squeezes a little and surely": (
        run_of(
            {
                "chosen": (-3.9, 7),
                "rejected": (-5.5, 8),
                **dict.fromkeys(("irrelevant_train", "random_words"), (-3, 4)),
                "custom": (0.5, 6),
            },
            (3.3, 3.5),
            DPO,
        ),
        ("SQUEEZE", True),
        "^Chosen fell: −3.9 .*probably because the push on rejected squeezes",
        "^Probably not a bug: the loss pushed rejected down",
        "log-likelihood term",
    ),
    "chosen that fell far while its favourites stayed": (
        run_of(
            {"chosen": (-107.7, 90), "rejected": (-189, 90), "custom": (0, 0)},
            (0, 0),
            DPO,
            starts=-300,
        ),
        ("DISPLACED", True),
        "^Chosen fell: −107.7 .*did not go to the model's own favourites",
        "^Probably not a bug: .*margin grew",
        "log-likelihood term",
    ),
    "the demo's DPO": (
        run_of({"chosen": (-0.8, 1.2), "rejected": (-53, 25)}, (1.1, 0.2), DPO),
        ("SQUEEZE", True),
        "^Chosen fell: −0.8",
        "^Probably not a bug: .*margin grew",
        "log-likelihood term",
    ),
    "a DPO at a tiny rate": (
        run_of({"chosen": (-0.013, 0.01), "rejected": (-0.02, 0.01)}, (0.0, 0), DPO),
        ("STILL", True),
        r"^Nothing moved by a size that counts: chosen changed by −0\.013",
        "no effect yet",
        None,
    ),
    "thirteen kinds, chosen gains most": (
        run_of(
            {"chosen": (19.3, 20), "rejected": (4, 20), "random_words": (1, 9)},
            (1.1, 9),
            DPO,
        ),
        ("FIT", True),
        "^Training does what it should: chosen rose by \\+19.3",
        "^No sign of a bug",
        None,
    ),
}


@pytest.mark.parametrize("name", STUDY)
def test_a_run_of_the_study_is_named_as_it_is(name):
    run, (state, sure), first, second, advice = STUDY[name]
    verdict = diagnose(run)
    assert (verdict.state.state, verdict.state.sure) == (state, sure)
    assert re.search(first, verdict.sentences[0])
    assert re.search(second, verdict.sentences[1])
    given = [item.do for item in verdict.advice]
    assert bool(given) == (advice is not None)
    assert advice is None or re.search(advice, " ".join(given))
    assert "Train longer" not in str(verdict)


def test_the_index_that_named_the_demo_s_sft_wrongly_is_above_zero():
    assert squeeze_index(STUDY["the demo's SFT"][0]).end.low > 0.05
