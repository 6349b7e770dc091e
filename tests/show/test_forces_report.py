"""The forces of an update in words, numbers and pictures: right, equal and safe."""

import base64
import dataclasses
import itertools
import json
import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from synthetic import PARTS, make_forces, probe_table, write_run
from test_report import HOSTILE, Reader, assert_safe

from learndyn.diagnose.intervals import Interval
from learndyn.diagnose.numbers import Scale, nats
from learndyn.diagnose.updates.update import _TOP, AROUND, TRUST, _summed_up, explain
from learndyn.diagnose.updates.words import (
    force_sentences,
    layers_title,
    parts_title,
)
from learndyn.errors import BadInput
from learndyn.probes.kinds import PAPER_KINDS
from learndyn.record.run_directory import RunDirectory
from learndyn.show import chart as palette
from learndyn.show.chart import NARROW, WIDE
from learndyn.show.explain.explain import explain_run
from learndyn.show.explain.figures import layers_figure, parts_figure
from learndyn.show.page import TINTS
from learndyn.show.report.report import summaries, write_report


DRIFT = dict.fromkeys(PAPER_KINDS, -5.0)


@pytest.fixture(scope="module")
def probes():
    return probe_table(PAPER_KINDS, 16)


@pytest.fixture
def run(tmp_path):
    return RunDirectory.open(write_run(tmp_path / "run", drift=DRIFT, prompts=6))


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A run with forces of three updates, and the last one explained."""
    path = write_run(tmp_path_factory.mktemp("one") / "dpo", drift=DRIFT, prompts=6)
    run = RunDirectory.open(path)
    for step in (25, 50, 75):
        run.write_forces(make_forces(run.read_probes(), step))
    return explain_run(path)


def told(forces, probes, **changes):
    """The sentences about a changed record, as one text."""
    changed = dataclasses.replace(forces, **changes)
    return " ".join(force_sentences(explain(changed, probes)))


# diagnose: the numbers


def test_means_of_kinds_are_plain_means_and_their_parts_add_up(probes):
    forces = make_forces(probes)
    found = explain(forces, probes)
    assert [kind.kind for kind in found.kinds] == list(PAPER_KINDS)
    kinds = np.array(probes["kind"].to_pylist())
    for kind in found.kinds:
        rows = kinds == kind.kind
        assert kind.actual.mean == pytest.approx(forces.actual[rows].mean())
        assert kind.predicted.mean == pytest.approx(forces.predicted[rows].mean())
        parts = sum(part.mean for part in kind.parts.values())
        assert parts == pytest.approx(kind.predicted.mean, abs=1e-12)
        assert sum(kind.groups.values()) == pytest.approx(kind.predicted.mean)
        assert kind.actual.low < kind.actual.mean < kind.actual.high
        assert kind.actual.n == 16


def test_the_fit_finds_the_planted_error_scale_and_noise(probes):
    forces = make_forces(probes)
    generator = np.random.default_rng(0)
    predicted = generator.standard_normal(len(probes))
    parts = {"pull": predicted}
    planted = dataclasses.replace(
        forces, predicted=predicted, parts=parts, groups=parts, actual=2 * predicted
    )
    fit = explain(planted, probes).fit
    assert fit.relative_error == pytest.approx(0.5)  # |p - 2p| / |2p|
    assert fit.slope == pytest.approx(2.0)
    exact = dataclasses.replace(planted, actual=predicted, noise=np.abs(predicted) / 2)
    fit = explain(exact, probes).fit
    assert (fit.relative_error, fit.slope, fit.r2) == pytest.approx((0.0, 1.0, 1.0))
    assert fit.above_noise == 0.0  # every change is twice its noise, three are asked
    quiet = dataclasses.replace(exact, noise=np.abs(predicted) / 4)
    assert explain(quiet, probes).fit.above_noise == 1.0


def test_shares_add_up_to_one_and_cancelling_parts_are_counted(probes):
    found = explain(make_forces(probes), probes)
    assert sum(found.shares.values()) == pytest.approx(1.0)
    assert sum(found.layers.values()) == pytest.approx(1.0)
    assert found.gap == pytest.approx(0.0, abs=1e-12)
    ones = np.ones(len(probes))
    forces = dataclasses.replace(
        make_forces(probes),
        predicted=ones,
        parts={"pull": 4 * ones, "push": -3 * ones},
    )
    found = explain(forces, probes)
    assert found.cancellation == pytest.approx(7.0)
    assert found.kinds[0].cancellation == pytest.approx(7.0)
    assert found.shares == pytest.approx({"pull": 4.0, "push": -3.0})
    missing = dataclasses.replace(forces, parts={"pull": 0.5 * ones})
    assert explain(missing, probes).gap == pytest.approx(0.5)


def test_the_strongest_training_tokens_are_found_with_their_context(probes):
    influence = make_forces(probes).influence
    change = 1e-6 * np.ones_like(influence.change)
    change[30, 2] = -7.0  # token 6 of row 1
    change[100, 0] = 3.0
    change[50] = np.nan
    top = _summed_up(dataclasses.replace(influence, change=change))
    first, second = top.top[:2]
    assert (first.example, first.position, first.change) == (1, 6, -7.0)
    assert (first.kind, first.token) == (influence.kinds[2], influence.token[30])
    assert first.before == "".join(influence.token[30 - AROUND : 30])
    assert first.after == "".join(influence.token[31 : 31 + AROUND])
    assert (second.example, second.change) == (4, 3.0)
    assert len(top.top) == _TOP
    assert top.of_kind[influence.kinds[2]][0] == first
    assert top.share == pytest.approx(1.0, abs=1e-4)
    assert (first.role, first.raised) == ("rejected", False)


def test_a_context_does_not_leave_its_own_answer(probes):
    influence = make_forces(probes).influence
    change = np.zeros_like(influence.change)
    change[24, 0] = 1.0  # the first token of row 1
    (token,) = _summed_up(dataclasses.replace(influence, change=change)).top
    assert token.before == ""


def test_forces_of_probes_that_the_run_lacks_are_refused(probes):
    forces = make_forces(probes)
    with pytest.raises(BadInput, match="update 25"):
        explain(forces, probes.slice(0, 10))


@pytest.mark.parametrize(
    ("values", "unit", "written"),
    [
        ((12.0, -0.5), "nats", "−0.5"),
        ((0.5, 0.012), "mnat", "+12.0"),
        ((0.0021, 0.0005), "mnat", "+0.50"),
        ((1e-4, 3.4e-6), "µnat", "+3.4"),
        ((2e-8, 1.1e-8), "µnat", "+0.011"),
        ((float("nan"), 0.0), "nats", "0.0"),
    ],
)
def test_one_unit_fits_the_largest_number_of_a_page(values, unit, written):
    scale = Scale.of(values)
    assert (scale.unit, scale.value(values[1])) == (unit, written)


def test_a_finer_scale_keeps_the_unit_and_shows_two_figures():
    scale = Scale.of([0.5])
    assert scale.finer([1.2e-6]).value(1.2e-6) == "+0.0012"
    assert scale.finer([1.2e-6]).unit == scale.unit
    assert scale.limits(Interval(0.1, -0.1, 0.2)) == "[−100.0, +200.0]"


# diagnose: the words


def test_the_sentence_about_chosen_tells_what_each_force_alone_would_do(probes):
    forces = make_forces(probes, history=0.0)
    found = explain(forces, probes)
    pull, push = (found.of("chosen").parts[name].mean for name in ("pull", "push"))
    said = force_sentences(found)[0]
    assert (
        "Pulling the chosen answers up alone would have raised it by "
        f"{nats(1000 * pull)}; pushing the rejected answers down took "
        f"{nats(1000 * push)} of it back." in said
    )
    assert "mnat, thousandths of a nat" in said


def test_a_sentence_is_no_surer_than_its_interval(probes):
    forces = make_forces(probes)
    ones = np.ones(len(probes))
    up = dict(parts={}, groups={}, predicted=ones, actual=ones)
    assert "raised chosen by +1.00 nats" in told(forces, probes, **up)
    mixed = np.where(np.arange(len(probes)) % 2, 1.0, -1.0)
    unsure = told(forces, probes, **{**up, "actual": mixed, "predicted": mixed})
    assert "did not clearly move chosen" in unsure


def test_agreement_is_told_and_disagreement_hides_the_parts(probes):
    good = " ".join(force_sentences(explain(make_forces(probes), probes)))
    assert "agree (relative error 1." in good
    assert "can be trusted" in good
    found = explain(make_forces(probes, error=1.2), probes)
    assert found.fit.relative_error > TRUST
    bad = " ".join(force_sentences(found))
    assert "do not agree" in bad
    for word in ("alone would have", "memory", "layer", "training token"):
        assert word not in bad
    assert "do not trust" in parts_title(found)
    assert "do not trust" in layers_title(found)


def test_what_is_pushed_down_is_named_by_its_role(probes):
    forces = make_forces(probes)
    assert forces.influence is not None
    count = len(forces.influence.token)

    def said(roles, push):
        influence = replace(forces.influence, role=roles, push=push)
        return force_sentences(explain(replace(forces, influence=influence), probes))[0]

    chosen, down = ("chosen",) * count, np.ones(count)
    assert "pushing the chosen answers down" in said(chosen, down).lower()
    assert "tokens that the loss lowers" in said(("",) * count, down)
    mixed = ("chosen", "rejected") * (count // 2) + ("chosen",) * (count % 2)
    assert "tokens that the loss lowers" in said(mixed, down)


def test_a_hypothetical_update_is_called_so(probes):
    made = make_forces(probes)
    told = "This update is hypothetical: one step of dpo."
    found = explain(replace(made, info=made.info | {"hypothetical": told}), probes)
    assert force_sentences(found)[1] == told


def test_a_rough_agreement_is_called_rough(probes):
    def said(error):
        return " ".join(
            force_sentences(explain(make_forces(probes, error=error), probes))
        )

    assert "so the parts can be trusted" in said(0.03)
    assert "agree roughly" in said(0.2)
    assert "agree" in said(0.6)
    assert "agree roughly" not in said(0.6)


@pytest.mark.parametrize(("share", "shown"), [(1e-5, False), (1e-2, True)])
def test_rounding_is_shown_only_where_there_is_some(share, shown, probes):
    made = make_forces(probes)
    rounding = {"rounding": share * made.predicted}
    found = explain(replace(made, parts=made.parts | rounding), probes)
    assert ("rounding" in found.parts) == shown


def test_a_change_that_drowns_in_rounding_is_called_noise(probes):
    forces = make_forces(probes, error=1.2)
    said = told(forces, probes, noise=10 * np.ones(len(probes)))
    assert "mostly noise" in said
    assert "neither confirm nor refute" in said
    # an agreement is one, however large the noise is said to be
    said = told(make_forces(probes), probes, noise=10 * np.ones(len(probes)))
    assert "can be trusted" in said


def test_the_optimizers_memory_is_told_where_it_counts(probes):
    found = explain(make_forces(probes, history=0.3), probes)
    share = f"{100 * found.shares['history']:.0f}"
    assert any(
        s.startswith(f"The optimizer's memory of earlier batches made {share}")
        for s in force_sentences(found)
    )
    weak = " ".join(force_sentences(explain(make_forces(probes, history=0), probes)))
    assert "memory" not in weak


def test_the_kernel_line_says_whether_the_assumption_holds(probes):
    forces = make_forces(probes)
    kernel = {"rank_correlation": 0.97, "self_cosine": 0.99, "since": 0}
    assert "that holds here so far" in told(forces, probes, info={"kernel": kernel})
    kernel |= {"rank_correlation": 0.5}
    said = told(forces, probes, info={"kernel": kernel})
    assert "does not hold here any more" in said
    assert "+0.50" in said
    for nothing in ({}, {"kernel": None}, {"kernel": "x"}, {"kernel": {"since": 1}}):
        assert "kernel" not in told(forces, probes, info=nothing)


def test_what_was_not_measured_is_not_judged(probes):
    lost = np.full(len(probes), np.nan)
    forces = make_forces(probes)
    said = told(forces, probes, actual=lost)
    assert "was not checked against actual" in said
    assert "as predicted; it was not measured" in said
    zero = 0 * lost
    nothing = dict(actual=np.zeros_like(zero), predicted=np.zeros_like(zero), parts={})
    assert "nothing moved" in told(forces, probes, **nothing)


def test_probes_with_values_that_are_not_finite_are_left_out_and_counted(probes):
    forces = make_forces(probes)
    push = forces.parts["push"].copy()
    push[[0, 20]] = np.nan
    found = explain(
        dataclasses.replace(forces, parts={**forces.parts, "push": push}), probes
    )
    assert found.lost == 2
    for kind in found.kinds:
        parts = sum(part.mean for part in kind.parts.values())
        assert parts == pytest.approx(kind.predicted.mean, abs=1e-12)
    assert "2 probes have values that are not finite" in " ".join(
        force_sentences(found)
    )
    everything = told(forces, probes, predicted=np.full(len(probes), np.nan))
    assert "none of its 208 probes has finite values" in everything


# show: the page


def test_the_page_is_safe_and_its_figures_are_beside_it(good):
    read = assert_safe(good.page)
    assert good.page.name == "explain.html"
    assert "<script" not in good.page.read_text()
    for name in ("parts", "layers"):
        figure = good.page.parent / "figures" / f"explain-00000075_{name}"
        ElementTree.parse(f"{figure}.svg")
        assert figure.with_suffix(".png").stat().st_size > 0
    assert not list(good.page.parent.rglob("*.tmp"))
    words = " ".join(read.words)
    for heading in ("Every kind in numbers", "Token by token", "All recorded updates"):
        assert heading in words


def test_the_tables_show_the_numbers_of_diagnose(good):
    rows = {row[0]: row[1:] for row in Reader(good.page).rows if len(row) == 9}
    scale = good.explanation.scale
    for kind in good.explanation.kinds:
        assert rows[kind.kind] == [
            f"{scale.value(kind.actual.mean)} {scale.limits(kind.actual)}",
            scale.value(kind.predicted.mean),
            *(scale.value(kind.parts[name].mean) for name in PARTS),
            "6",
        ]
    facts = dict(row for row in Reader(good.page).rows if len(row) == 2)
    assert facts["answers"] == f"{good.explanation.fit.probes}, to 6 prompts"
    top = [row for row in Reader(good.page).rows if row and "lowered it" in row]
    finer = scale.finer(token.change for token in good.explanation.influence.top)
    lowered = [token for token in good.explanation.influence.top if not token.raised]
    assert [row[0] for row in top] == [finer.value(t.change) for t in lowered]


def test_the_parts_that_are_shown_sum_to_what_is_shown_as_predicted(good):
    number = re.compile(r"[+−]?\d+\.\d+")
    for row in Reader(good.page).rows:
        if len(row) != 9 or row[0] not in PAPER_KINDS:
            continue
        _, predicted, *parts = [
            float(number.search(cell)[0].replace("−", "-")) for cell in row[1:8]
        ]
        assert sum(parts) == pytest.approx(predicted, abs=0.05 * 6)


def test_the_table_of_updates_has_every_recorded_one(good):
    rows = [row for row in Reader(good.page).rows if row and row[0] in "25 50 75"]
    run = RunDirectory.open(good.page.parent)
    for row, step in zip(rows, (25, 50, 75), strict=True):
        found = explain(run.read_forces(step), run.read_probes())
        assert row[0] == str(step)
        assert row[1] == f"{100 * found.fit.relative_error:.1f} %"
        assert row[2] == nats(1000 * found.of("chosen").actual.mean)


def test_every_sentence_is_on_the_page_and_in_the_terminal(good):
    words = Reader(good.page).words
    for sentence in good.sentences:
        assert sentence in words
        assert sentence in good.to_text()
    assert good.to_text().endswith(f"page: {good.page}")
    assert "chosen_semantic" in good.to_text()


def test_the_dictionary_is_json_and_in_nats(good):
    found = json.loads(json.dumps(good.to_dict(), allow_nan=False))
    assert found["step"] == 75
    assert found["fit"]["trusted"] is True
    chosen = good.explanation.of("chosen")
    assert found["kinds"][0]["actual"]["mean"] == chosen.actual.mean
    assert set(found["kinds"][0]["parts"]) == set(PARTS)
    assert found["top_tokens"][0]["change"] == good.explanation.influence.top[0].change


def test_each_token_stands_on_the_colour_of_its_change(run):
    forces = make_forces(run.read_probes())
    values = np.zeros_like(forces.token_actual)
    chosen = run.read_probes()["kind"].to_pylist().index("chosen")
    values[8 * chosen : 8 * chosen + 8] = [1, -1, 0.5, -0.5, 0.05, 0, 0, 0]
    first = forces.predicted.copy()
    first[chosen] = 9.0  # so that this prompt is shown
    forces = dataclasses.replace(
        forces,
        token_actual=values,
        predicted=first,
        actual=first,
        parts={},
        groups={},
        token_parts={},
        token_text=tuple(f"w{i}" for i in range(len(values))),
    )
    run.write_forces(forces)
    html = explain_run(run.path).page.read_text()
    at = 8 * chosen
    styles = {
        int(token): style.split()
        for style, token in re.findall(r"<span class='([^']*)'>w(\d+)<", html)
    }
    assert [styles[at + i] for i in range(5)] == [
        ["t", "u4"],
        ["t", "d4"],
        ["t", "u2"],
        ["t", "d2"],
        ["t"],
    ]


def test_the_line_under_a_token_is_of_the_larger_force(run):
    forces = make_forces(run.read_probes())
    n = len(forces.token_actual)
    one, two = np.ones(n, np.float32), 2 * np.ones(n, np.float32)
    for pull, push, style in ((two, one, "pull"), (one, -two, "push")):
        parts = {"pull": pull, "push": push}
        run.write_forces(dataclasses.replace(forces, token_parts=parts))
        html = explain_run(run.path).page.read_text()
        other = {"pull": "push", "push": "pull"}[style]
        assert html.count(f" {style}'>") == 32  # two prompts, two answers, 8 tokens
        assert f" {other}'>" not in html


def test_figures_are_drawn_for_both_widths_and_any_names(probes):
    forces = make_forces(probes, layers=40)
    names = [HOSTILE.replace("\ud800", ""), "$\\frac{", "", "pull"]
    strange = dataclasses.replace(
        forces,
        parts={name: forces.predicted / 4 for name in names},
        groups={f"{i} $x{'very ' * 9}": forces.predicted / 42 for i in range(42)},
    )
    for record in (forces, strange):
        found = explain(record, probes)
        for width in (WIDE, NARROW):
            for make in (parts_figure, layers_figure):
                assert make(found, width=width).width == width


def test_parts_that_are_not_to_be_trusted_are_drawn_faint(probes):
    def opacities(**changes):
        chart = parts_figure(explain(make_forces(probes, **changes), probes))
        return {bar.get_alpha() for axes in chart.figure.axes for bar in axes.patches}

    assert opacities() == {1.0}
    assert max(opacities(error=1.2)) < 0.5


def test_hostile_names_and_texts_are_escaped_everywhere(run):
    forces = make_forces(run.read_probes())
    influence = dataclasses.replace(
        forces.influence,
        kinds=(HOSTILE, *forces.influence.kinds[1:]),
        role=(HOSTILE,) * len(forces.influence.role),
        token=(HOSTILE,) * len(forces.influence.token),
        example_text=dict.fromkeys(range(8), HOSTILE),
    )
    hostile = dataclasses.replace(
        forces,
        parts={HOSTILE: forces.parts["pull"], **forces.parts},
        token_parts={**forces.token_parts, HOSTILE: forces.token_predicted},
        groups={HOSTILE: forces.predicted, "$\\frac{": 0 * forces.predicted},
        token_text=(HOSTILE,) * len(forces.token_text),
        info={
            HOSTILE: [HOSTILE],
            "notes": [HOSTILE],
            "kernel": {"rank_correlation": 1, "self_cosine": 1, "since": HOSTILE},
        },
        influence=influence,
    )
    run.write_forces(hostile)
    told = explain_run(run.path)
    for page in (told.page, write_report([run.path])):
        html = page.read_text()
        assert_safe(page)
        assert "<script" not in html
        for data in re.findall(r"base64,([A-Za-z0-9+/=]+)", html):
            root = ElementTree.fromstring(base64.b64decode(data))
            assert not {e.tag for e in root.iter() if "script" in str(e.tag)}
    assert "\x00" not in told.to_text()


def test_without_text_nothing_of_the_data_is_anywhere(tmp_path):
    secret = {"prompt": "SECRETP", "response": "SECRETR"}
    run = RunDirectory.open(
        write_run(tmp_path / "run", drift=DRIFT, prompts=3, texts=secret)
    )
    forces = make_forces(run.read_probes())
    influence = dataclasses.replace(
        forces.influence,
        token=("SECRETT",) * len(forces.influence.token),
        example_text=dict.fromkeys(range(8), "SECRETE"),
    )
    tokens = ("SECRETW",) * len(forces.token_text)
    run.write_forces(
        dataclasses.replace(forces, token_text=tokens, influence=influence)
    )
    told = explain_run(run.path)
    html = told.page.read_text()
    for word in ("SECRETP", "SECRETT", "SECRETE", "SECRETW"):
        assert word in html
    silent = explain_run(run.path, text=False)
    assert "SECRET" not in silent.page.read_text()
    assert "SECRET" not in silent.to_text()
    assert "SECRET" not in json.dumps(silent.to_dict())
    assert "SECRET" not in write_report([run.path], text=False).read_text()
    assert "SECRET" not in json.dumps(summaries([run.path]))
    assert "Training tokens that moved" in silent.page.read_text()


def test_a_lost_influence_is_told_and_the_rest_is_shown(run):
    run.write_forces(make_forces(run.read_probes()))
    (run.path / "forces" / "influence-00000025.parquet").write_bytes(b"no")
    told = explain_run(run.path)
    words = " ".join(assert_safe(told.page).words)
    assert "The training tokens are left out: cannot read" in words
    assert "Every kind in numbers" in words
    assert told.problem in told.to_text()
    words = " ".join(assert_safe(write_report([run.path])).words)
    assert "The training tokens are left out" in words


def test_a_corrupt_record_stops_the_explanation_but_not_the_report(run):
    for step in (25, 50):
        run.write_forces(make_forces(run.read_probes(), step))
    (run.path / "forces" / "step-00000050.parquet").write_bytes(b"no")
    with pytest.raises(BadInput, match="step-00000050"):
        explain_run(run.path)
    words = " ".join(assert_safe(write_report([run.path])).words)
    assert "cannot read" in words
    assert "First, peak and last" in words
    assert "step-00000050" in " ".join(
        assert_safe(explain_run(run.path, 25).page).words
    )
    assert "error" in summaries([run.path])[0]["forces"][1]


def test_the_report_has_the_last_recorded_update_and_all_of_them_in_a_table(good):
    page = write_report([good.page.parent])
    read = assert_safe(page)
    words = " ".join(read.words)
    assert "Update 75: which forces moved what" in words
    assert "All recorded updates" in words
    for sentence in good.sentences:
        assert sentence in read.words
    assert (page.parent / "figures" / "forces_parts.svg").exists()
    numbers = summaries([page.parent])[0]["forces"]
    assert [one["step"] for one in numbers] == [25, 50, 75]
    assert numbers[2]["shares"] == good.explanation.shares


def test_a_run_without_forces_has_no_such_section(run):
    page = write_report([run.path])
    html = page.read_text()
    assert "forces" not in html
    assert "All recorded updates" not in html
    assert summaries([run.path])[0]["forces"] == []
    with pytest.raises(BadInput, match="no recorded forces"):
        explain_run(run.path)


def test_a_step_that_was_not_recorded_is_refused_with_those_that_were(good):
    with pytest.raises(BadInput, match=r"step 30\. Recorded: 25, 50, 75"):
        explain_run(good.page.parent, 30)


def test_a_page_of_another_program_is_left_alone(run, tmp_path):
    run.write_forces(make_forces(run.read_probes()))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "explain.html").write_text("mine")
    with pytest.raises(BadInput, match="overwrite=True"):
        explain_run(run.path, out=tmp_path / "out")
    explain_run(run.path, out=tmp_path / "out", overwrite=True)
    assert "learndyn" in (tmp_path / "out" / "explain.html").read_text()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BadInput, match="is a file"):
        explain_run(run.path, out=tmp_path / "file")


def test_values_that_are_not_finite_do_not_stop_the_page(run):
    forces = make_forces(run.read_probes())
    lost = np.full_like(forces.actual, np.nan)
    tokens = np.full_like(forces.token_actual, np.nan)
    for changes in (
        {"actual": lost, "token_actual": tokens},
        {"predicted": lost, "token_predicted": tokens},
        {"actual": lost, "predicted": lost, "noise": lost},
        {"parts": {"pull": lost}, "token_parts": {"pull": tokens, "push": tokens}},
        {"groups": {"embedding": lost, "head": lost}},
        {"token_actual": tokens, "token_predicted": tokens},
    ):
        run.write_forces(dataclasses.replace(forces, **changes))
        told = explain_run(run.path)
        assert_safe(told.page)
        json.dumps(told.to_dict(), allow_nan=False)
        assert told.to_text()


def test_one_probe_is_enough_for_a_page_that_says_how_little_it_is(tmp_path):
    run = RunDirectory.open(write_run(tmp_path / "r", drift={"other": 1.0}, prompts=1))
    run.write_forces(make_forces(run.read_probes(), layers=0))
    words = " ".join(assert_safe(explain_run(run.path).page).words)
    assert "Only 1 prompt:" in words
    assert "[interval unknown]" in words


def test_probes_without_parts_layers_and_tokens_give_a_page(tmp_path):
    run = RunDirectory.open(write_run(tmp_path / "run", drift=DRIFT, prompts=3))
    probes = probe_table(PAPER_KINDS, 3, tokens=0)
    forces = make_forces(probes, influence=False)
    run.write_forces(
        dataclasses.replace(forces, parts={}, token_parts={}, groups={}, info={})
    )
    words = " ".join(assert_safe(explain_run(run.path).page).words)
    assert "Token by token" not in words
    assert "Training tokens that" not in words


def test_equal_forces_give_equal_bytes(good):
    before = good.page.read_bytes()
    assert explain_run(good.page.parent).page.read_bytes() == before


# colours

SIGHT = {
    "normal": np.eye(3),
    "protan": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deutan": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritan": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
"""Machado, Oliveira & Fernandes 2009: full dichromacy, on linear RGB."""
TO_LMS = [
    [0.4122214708, 0.5363325363, 0.0514459929],
    [0.2119034982, 0.6806995451, 0.1073969566],
    [0.0883024619, 0.2817188376, 0.6299787005],
]
TO_LAB = [
    [0.2104542553, 0.7936177850, -0.0040720468],
    [1.9779984951, -2.4285922050, 0.4505937099],
    [0.0259040371, 0.7827717662, -0.8086757660],
]


def seen(colour, sight):
    """A colour in OKLab x 100 (Ottosson 2020), as someone sees it."""
    channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    low = channels <= 0.04045
    linear = np.where(low, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.array(SIGHT[sight]) @ linear, 0, 1)
    return 100 * np.array(TO_LAB) @ np.cbrt(np.array(TO_LMS) @ linear)


@pytest.mark.parametrize("sight", SIGHT)
def test_parts_of_one_update_can_be_told_apart(sight):
    names = [*PARTS]
    for one, other in itertools.combinations(names, 2):
        colours = palette._PART[one], palette._PART[other]
        distance = np.linalg.norm(seen(colours[0], sight) - seen(colours[1], sight))
        assert distance >= 9.9, (one, other)


def test_parts_can_be_seen_and_words_on_tints_can_be_read():
    for colour in palette._PART.values():
        assert palette.contrast(colour) >= 3
    for tint in TINTS:
        for colour in (palette.UP, palette.DOWN):
            paper = palette.mixed(colour, tint)
            assert palette.contrast(palette.INK, paper) >= 4.5
    assert palette.mixed("#000000", 0.0) == palette.PAPER
    assert palette.mixed("#0A4A9E", 1.0) == "#0A4A9E"
    assert palette.part_colour("url(evil)") == palette._PART["other"]
