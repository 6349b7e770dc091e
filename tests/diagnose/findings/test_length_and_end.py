"""The end-of-text token, and answers that grow longer."""

import numpy as np
import pytest
from planted import with_info, with_splits
from simulated import write_answers

from learndyn.diagnose.endings import Endings
from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.signs.eos_unlearned import EosUnlearned
from learndyn.diagnose.findings.signs.length_drift import LengthDrift
from learndyn.diagnose.verdict import diagnose
from learndyn.record.trajectory import Trajectory


RISES = (-2.0, -1.0)


def sft(path, end, tokens=RISES, **options):
    """A fit whose end-of-text token goes as `end` says."""
    answers = {"chosen": [tokens] * 5 + [end], "rejected": [(-2.0, -2.5)] * 6}
    return with_info(write_answers(path, answers, **options), method="sft")


def test_end_of_text_that_falls_while_the_answer_rises_is_the_headline(tmp_path):
    run = sft(tmp_path / "run", (-0.2, -0.5))
    finding = EosUnlearned.detect(Facts(run))
    assert (finding.severity, finding.numbers["manner"]) == ("problem", "falls")
    assert finding.numbers["end_of_text"][0] == pytest.approx(-0.3, abs=0.02)
    assert finding.numbers["others"][0] == pytest.approx(1.0, abs=0.05)
    first, bug, numbers, *_ = diagnose(run).sentences
    assert first.startswith("The model unlearns to stop: end-of-text after chosen went")
    assert len(first.split()) <= 20
    assert "masked from the loss" in bug
    assert numbers == finding.says
    assert diagnose(run).advice[0] == EosUnlearned.mend


@pytest.mark.parametrize(
    ("end", "tokens"),
    [
        ((-0.2, -0.05), RISES),  # it is learned with the answer
        ((-0.2, -0.22), RISES),  # it hardly moves, and was likely
        ((-0.2, -0.5), (-2.0, -2.4)),  # everything falls
        ((-0.2, -0.5), (-2.0, -1.995)),  # nothing is learned
        ((-3.0, -1.5), RISES),  # unlikely still, and learned
    ],
)
def test_end_of_text_that_does_as_the_answer_does_is_no_sign(tmp_path, end, tokens):
    finding = EosUnlearned.detect(Facts(sft(tmp_path / "run", end, tokens)))
    assert finding.severity == "fine"
    assert finding.says.startswith("At the end of chosen the end-of-text token (EOS)")


def test_end_of_text_that_stays_unlikely_is_not_learned(tmp_path):
    run = sft(tmp_path / "run", (-4.0, -4.0))
    finding = EosUnlearned.detect(Facts(run))
    assert (finding.severity, finding.numbers["manner"]) == ("problem", "stays")
    assert finding.says.startswith("The model does not learn to stop")
    preference = EosUnlearned.detect(Facts(with_info(run, method="dpo")))
    assert preference.severity == "fine"


def test_where_the_method_is_not_known_a_fall_is_a_fault_and_under_dpo_a_sign(tmp_path):
    run = sft(tmp_path / "run", (-0.2, -0.5))
    for method, severity in ((None, "problem"), ("dpo", "watch"), ("grpo", "watch")):
        info = with_info(run, method=method)
        assert EosUnlearned.detect(Facts(info)).severity == severity


def test_answers_without_an_end_cannot_tell(tmp_path):
    run = sft(tmp_path / "run", (-0.2, -0.5), cut=True)
    finding = EosUnlearned.detect(Facts(run))
    assert finding.severity == "watch"
    assert finding.says.startswith("Whether the model unlearns to stop cannot be told")
    assert "12 of 12 watched chosen answers" in finding.says


def test_runs_without_values_per_token_have_no_end(tmp_path):
    run = sft(tmp_path / "run", (-0.2, -0.5))
    bare = Trajectory(
        run.run,
        run.probes.drop_columns(["response_ids"]),
        run.steps,
        run.n_tokens,
        run.columns,
    )
    assert Endings.of(bare) is None
    assert EosUnlearned.detect(Facts(bare)) is None


def test_the_end_is_read_on_prompts_that_were_trained_on(tmp_path):
    run = sft(tmp_path / "run", (-0.2, -0.5))
    names = np.where(run.prompt_of < "p006", "train", "test")
    finding = EosUnlearned.detect(Facts(with_splits(run, names)))
    assert finding.numbers["answers"] == 6


def test_in_a_chat_template_the_token_before_the_line_break_is_the_end(tmp_path):
    run = sft(tmp_path / "run", (-0.2, -0.5))
    probes = run.probes.set_column(
        run.probes.column_names.index("rendered"),
        "rendered",
        [[True] * len(run.probes)],
    )
    ids = [[*row[:-2], 0, 7] for row in probes["response_ids"].to_pylist()]
    column = probes.column_names.index("response_ids")
    probes = probes.set_column(column, "response_ids", [ids])
    fields = ("run", "steps", "n_tokens", "columns")
    chat = Trajectory(probes=probes, **{name: getattr(run, name) for name in fields})
    ends = Endings.of(chat)
    assert ends.ends.all()
    assert ends.tokens.tolist() == [4] * len(probes)


def pairs(path, chosen, rejected, **options):
    return write_answers(path, {"chosen": chosen, "rejected": rejected}, **options)


LONG = [RISES] * 9 + [(-0.2, -0.2)]
SHORT = [(-2.0, -3.0)] * 3 + [(-0.2, -0.9)]


def test_chosen_that_is_much_longer_and_rises_is_a_length_bias(tmp_path):
    run = pairs(tmp_path / "run", LONG, SHORT)
    finding = LengthDrift.detect(Facts(run))
    assert finding.severity == "problem"
    assert finding.numbers["times"][0] == pytest.approx(2.5)
    assert "chosen is 2.5 [2.5, 2.5] times as long as rejected" in finding.says
    assert "at the end of rejected changed by −0.7" in finding.says
    first = diagnose(run).sentences[0]
    assert first.endswith("(length bias): chosen is 2.5 times as long as rejected.")
    assert len(first.split()) <= 20
    assert "no bug in the code" in diagnose(run).sentences[1]


def test_the_setting_is_advised_where_the_trainer_has_it(tmp_path):
    run = pairs(tmp_path / "run", LONG, SHORT)
    finding = LengthDrift.detect(Facts(run))
    assert ["Balance" in advice.do for advice in finding.advice(Facts(run))] == [True]
    with_setting = with_info(run, trainer={"ld_alpha": None, "beta": 0.1})
    first, *_ = finding.advice(Facts(with_setting))
    assert "DPOConfig(ld_alpha=0.5)" in first.do


@pytest.mark.parametrize(
    ("changes", "severity"),
    [
        ({"trainer": {"ld_alpha": 0.5}}, "fine"),
        ({"trainer": {"loss_type": ["sigmoid_norm"]}}, "fine"),
        ({"method": "cpo", "trainer": {"loss_type": "simpo"}}, "fine"),
        ({"method": "cpo", "trainer": {"loss_type": "sigmoid"}}, "problem"),
        ({"trainer": {"ld_alpha": 1.0}}, "problem"),
    ],
)
def test_a_loss_per_token_rewards_no_length(tmp_path, changes, severity):
    run = with_info(pairs(tmp_path / "run", LONG, SHORT), **changes)
    assert LengthDrift.detect(Facts(run)).severity == severity


@pytest.mark.parametrize(
    ("chosen", "severity"),
    [
        (LONG[3:], "watch"),  # 1.75 times as long
        (LONG[5:], "fine"),  # 1.25 times
        ([(-1.0, -2.0)] * 9 + [(-0.2, -0.2)], "fine"),  # longer, and falls
        ([(-1.0, -2.0)] * 9 + [(-0.2, -0.5)], "problem"),  # falls, and its end too
        ([(-2.0, -2.0)] * 9 + [(-0.2, -0.2)], "fine"),  # nothing moves
    ],
)
def test_less_is_less(tmp_path, chosen, severity):
    run = pairs(tmp_path / "run", chosen, SHORT)
    assert LengthDrift.detect(Facts(run)).severity == severity


def test_rejected_that_is_longer_pushes_towards_short_answers(tmp_path):
    short = [*[RISES] * 3, (-0.6, -0.2)]
    run = pairs(tmp_path / "run", short, [(-2.0, -3.0)] * 10)
    finding = LengthDrift.detect(Facts(run))
    assert finding.severity == "problem"
    assert "towards short answers" in finding.says


def test_signs_that_differ_by_length_are_told(tmp_path):
    # 10 tokens lose 0.2 nats each, 4 lose 0.3: more per response, less per token
    run = pairs(
        tmp_path / "run",
        [(-2.0, -2.2)] * 9 + [(-0.2, -0.4)],
        [(-2.0, -2.3)] * 4,
        noise=0.005,
    )
    finding = LengthDrift.detect(Facts(run))
    assert finding.numbers["margin"][2] < 0 < finding.numbers["margin_per_token"][1]
    assert "its sign is a matter of length" in finding.says


@pytest.mark.parametrize("method", ["sft", "kto", "grpo", None])
def test_other_methods_compare_no_pairs(tmp_path, method):
    run = with_info(pairs(tmp_path / "run", LONG, SHORT), method=method)
    assert LengthDrift.detect(Facts(run)) is None
