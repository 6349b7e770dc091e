"""`learndyn compare`: sentences, JSON that matches them, and a page."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from synthetic import write_run

from learndyn.cli import main
from learndyn.diagnose.two_runs.compare import compare
from learndyn.errors import BadInput
from learndyn.record.trajectory import Trajectory
from learndyn.show.chart import NARROW, WIDE
from learndyn.show.compare import compare as compare_runs
from learndyn.show.report.curves import comparison_figure


A = {"chosen": -6.0, "rejected": -40.0, "irrelevant_train": -8.0}
"""Ends at a margin of 34."""
B = {"chosen": 2.0, "rejected": -18.0, "irrelevant_train": -2.0}
"""Ends at a margin of 20."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The baseline and two runs of other drift, all on the same probes."""
    folder = tmp_path_factory.mktemp("compared")
    return [
        write_run(folder / "dpo", drift=A, noise=0.1),
        write_run(folder / "extend", drift=B, noise=0.1, off_target=-0.5, seed=1),
        write_run(folder / "gentle", drift={k: v / 2 for k, v in A.items()}, seed=2),
    ]


def test_the_first_run_is_the_baseline_of_all_others(runs):
    found = compare_runs(*runs)
    assert [pair.names for pair in found.pairs] == [
        ("dpo", "extend"),
        ("dpo", "gentle"),
    ]
    assert found.page is None
    text = found.to_text()
    assert text.index("extend against dpo") < text.index("gentle against dpo")
    chosen = found.pairs[0].results["updates"].kinds["chosen"]
    assert chosen.difference.mean == pytest.approx(B["chosen"] - A["chosen"], abs=0.5)


def test_runs_the_other_way_round_differ_by_the_sign(runs):
    there = compare_runs(*runs[:2]).to_dict()["comparisons"][0]["by"]
    back = compare_runs(*runs[1::-1]).to_dict()["comparisons"][0]["by"]
    for by in ("updates", "margin", "gap"):
        assert there[by]["at"] == pytest.approx(back[by]["at"])
        assert there[by]["step_a"] == pytest.approx(back[by]["step_b"])
        for kind in A:
            mean, low, high = there[by]["kinds"][kind]["difference"]
            flipped = [-mean, -high, -low]
            assert back[by]["kinds"][kind]["difference"] == pytest.approx(flipped)


def test_the_json_has_the_numbers_that_the_sentences_say(runs, capsys):
    assert main(["compare", *map(str, runs[:2]), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    (pair,) = told["comparisons"]
    assert told["page"] is None
    for by in ("updates", "margin", "gap"):
        found = pair["by"][by]
        assert found["reason"] is None
        mean, low, high = found["kinds"]["chosen"]["difference"]
        assert low < mean < high
        (said,) = [s for s in pair["sentences"] if _about(by) in s]
        assert f"+{mean:.1f} [+{low:.1f}, +{high:.1f}]" in said
        assert (found["off_target"] is None) == (by == "gap")
    margin = pair["by"]["margin"]
    curves = pair["curves"]
    ends = [curves[side]["margin"][-1] for side in ("a", "b")]
    assert margin["at"] == pytest.approx(0.8 * min(ends))
    for side, step in (("a", margin["step_a"]), ("b", margin["step_b"])):
        seen = curves[side]
        assert np.interp(step, seen["steps"], seen["margin"]) == pytest.approx(
            margin["at"]
        )
        path = np.interp(step, seen["steps"], seen["change"]["chosen"])
        assert margin["kinds"]["chosen"][side] == pytest.approx(path)


def _about(by):
    return {
        "updates": "equal updates",
        "margin": "matched DPO margin",
        "gap": "matched absolute gap",
    }[by]


def test_resamples_that_never_reach_the_point_are_counted_and_told(tmp_path):
    runs = [
        write_run(tmp_path / "a", drift=A, noise=0.1, prompts=6),
        write_run(tmp_path / "b", drift=B, noise=1.2, prompts=6, seed=3),
    ]
    loaded = [Trajectory.load(run) for run in runs]
    found = compare_runs(*runs).to_dict()["comparisons"][0]
    lost = found["by"]["margin"]["lost_share"]
    assert lost == compare(*loaded, "margin").lost_share > 0
    assert any(f"{100 * lost:.1f} % of resamples" in s for s in found["sentences"])


def test_two_sft_runs_are_compared_at_equal_updates_alone(tmp_path):
    runs = [
        write_run(tmp_path / name, drift={"chosen": rise}, info={"method": "sft"})
        for name, rise in (("short", 5.0), ("long", 9.0))
    ]
    (pair,) = compare_runs(*runs).pairs
    assert list(pair.results) == ["updates"]


def test_without_a_margin_nothing_is_drawn_along_one(tmp_path):
    drift, info = {"chosen": 9.0}, {"step_unit": "evaluation", "method": "sft"}
    paths = [
        write_run(tmp_path / name, drift=drift, info=info, seed=seed)
        for seed, name in enumerate(("one", "two"))
    ]
    charts = [
        comparison_figure(*map(Trajectory.load, paths), width=width)
        for width in (WIDE, NARROW)
    ]
    for chart in charts:
        assert [axes.get_xlabel() for axes in chart.figure.axes] == ["evaluations"]
    told = compare_runs(*paths).to_dict()["comparisons"][0]
    assert told["by"]["updates"]["title"] == "At equal evaluations"
    assert told["sentences"][1].startswith("At equal evaluations (100)")
    assert " after as many evaluations" in told["sentences"][0]


def test_where_no_point_is_shared_the_reason_is_told(tmp_path):
    runs = [
        write_run(tmp_path / "a", drift=A),
        write_run(tmp_path / "b", drift={k: -v for k, v in A.items()}),
    ]
    told = compare_runs(*runs).to_dict()["comparisons"][0]["by"]["margin"]
    assert told["at"] is None
    assert told["kinds"] == {}
    assert "no margin that both runs pass through" in told["reason"]


def test_the_page_holds_sentences_curves_and_tables(runs, tmp_path, capsys):
    out = tmp_path / "new" / "compared"
    assert main(["compare", *map(str, runs), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert str(out / "compare.html") in printed
    page = (out / "compare.html").read_text(encoding="utf-8")
    assert page.count("<section>") == 2
    assert page.count("<figure>") == 2
    assert page.count("At matched DPO margin:") == 2
    assert "<script" not in page
    assert "http" not in re.sub("http-equiv", "", page)
    names = sorted(path.name for path in (out / "figures").iterdir())
    assert names == [f"comparison_{i}.{end}" for i in (2, 3) for end in ("png", "svg")]
    before = page
    compare_runs(*runs, out=out)  # a page of ours is replaced, and is the same
    assert (out / "compare.html").read_text(encoding="utf-8") == before


def test_a_page_of_another_program_is_left_alone(runs, tmp_path):
    (tmp_path / "compare.html").write_text("mine")
    with pytest.raises(BadInput, match="was not written by learndyn"):
        compare_runs(*runs[:2], out=tmp_path)
    assert (tmp_path / "compare.html").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["compare.html"]
    compare_runs(*runs[:2], out=tmp_path, overwrite=True)
    assert (tmp_path / "compare.html").read_text(encoding="utf-8") != "mine"


def test_what_cannot_be_compared_is_named_and_nothing_written(runs, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(BadInput, match="1 run given: a comparison needs"):
        compare_runs(*runs[:1], out=out)
    with pytest.raises(BadInput, match="is given twice"):
        compare_runs(runs[0], runs[1], runs[0], out=out)
    other = write_run(tmp_path / "other", info={"probe_fingerprint": "e" * 64})
    with pytest.raises(BadInput, match="watched other answers"):
        compare_runs(*runs, other, out=out)
    single = write_run(tmp_path / "single", steps=(0,))
    with pytest.raises(BadInput, match="has one observation, at update 0"):
        compare_runs(runs[0], single, out=out)
    assert not out.exists()


def test_names_from_outside_reach_the_page_escaped(runs, tmp_path):
    evil = write_run(tmp_path / "<img src=x onerror=alert(1)>", drift=B)
    found = compare_runs(runs[0], evil, out=tmp_path / "out")
    page = found.page.read_text(encoding="utf-8")
    assert "<img src=x" not in page
    assert "&lt;img src=x" in page


def test_the_browser_finds_no_fault_with_the_page(runs, tmp_path):
    found = compare_runs(*runs[:2], out=tmp_path)
    assert faults_in(found.page, tmp_path / "profile") == []


def faults_in(page, profile):
    """What headless Chromium writes of a page to its console; skips without one."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("there is no Chromium to open the page with")
    found = subprocess.run(
        [
            browser,
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
            *("--no-first-run", "--disable-background-networking"),
            *("--disable-component-update", "--disable-sync"),
            *("--enable-logging=stderr", "--v=0", f"--user-data-dir={profile}"),
            *("--dump-dom", page.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "</footer>" in found.stdout, found.stderr
    return [line for line in found.stderr.splitlines() if "CONSOLE" in line]
