"""The reproduction as a whole: small runs, recorded runs, stopping and continuing."""

import json
import re
from pathlib import Path

import pytest

from learndyn.errors import BadInput
from learndyn.lab import paper_runs
from learndyn.lab.claims import Claim, Measured
from learndyn.lab.paper_jobs import Job, run_jobs
from learndyn.lab.recorded import Recorded
from learndyn.lab.reproduce import ReproduceSettings, reproduce
from learndyn.show.canvas import NARROW, WIDE
from learndyn.show.paper_figures import paper_plates
from learndyn.show.paper_heatmap import influence
from learndyn.show.reproduction import write_page
from models import save_tiny
from paper_world import GOOD, RIGHT, VOCABULARY, write
from runs import data


@pytest.mark.parametrize("processes", [1, 2])
def test_a_job_waits_for_those_it_needs(tmp_path, capsys, processes):
    jobs = [
        Job("second", Path.touch, (tmp_path / "a" / "b",), ("first", "done long ago")),
        Job("first", Path.mkdir, (tmp_path / "a",)),
    ]
    took = run_jobs(jobs, processes, tmp_path / "logs")
    assert list(took) == ["first", "second"]
    assert (tmp_path / "a" / "b").exists()
    assert "[2/2] second" in capsys.readouterr().err


@pytest.mark.parametrize("processes", [1, 2])
def test_what_a_job_raises_reaches_the_caller(tmp_path, processes):
    with pytest.raises(FileNotFoundError):
        run_jobs([Job("a", Path.rmdir, (tmp_path / "none",))], processes, tmp_path)


def test_no_process_is_no_way_to_work(tmp_path):
    with pytest.raises(BadInput, match="--jobs 0"):
        run_jobs([], 0, tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seeds": ()}, "one seed or more"),
        ({"seeds": (1, 1)}, "each once"),
        ({"probes": "p.jsonl"}, "no --data are given"),
        ({"authors": Path("x"), "model": "y"}, "takes no --model"),
        ({"parts": ("theory",)}, "needs the part runs"),
        ({"parts": ("runes",)}, "no part runes"),
    ],
    ids=["no seed", "twice", "probes alone", "authors", "theory", "unknown"],
)
def test_settings_that_contradict_each_other(tmp_path, changes, said):
    with pytest.raises(BadInput, match=said):
        reproduce(ReproduceSettings(out=tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(BadInput, match="left alone"):
            reproduce(ReproduceSettings(out=tmp_path, parts=()), overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A tiny model, six rows, one seed: all runs there are, in one process."""
    folder = tmp_path_factory.mktemp("small")
    source = folder / "data.jsonl"
    rows = [{"prompt": row.prompt, **row.responses} for row in data(8).rows]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = ReproduceSettings(
        out=folder / "out",
        seeds=(0,),
        model=str(save_tiny(folder / "model")),
        data=str(source),
        jobs=1,
        parts=("runs",),
    )
    return settings, reproduce(settings)


def test_a_small_reproduction_has_every_run_and_a_page(small):
    settings, found = small
    stages = {path.name for path in (settings.out / "seeds" / "0").iterdir()}
    assert stages >= {*paper_runs.AFTER, "learn-chosen", "learn-random_words"}
    counts = found.counts
    assert sum(counts.values()) == len(found.claims)
    assert min(counts.values()) > 0  # some of each
    kept = json.loads((settings.out / "claims.json").read_text())["claims"]
    assert [one["outcome"] for one in kept] == [c.outcome for c in found.claims]
    page = found.page.read_text()
    assert f"{counts['PASS']} of {len(found.claims)} claims reproduced" in page
    assert "<script" not in page
    assert "default-src 'none'" in page
    assert len(list((settings.out / "figures").glob("*.svg"))) == found.figures >= 12
    outcomes = {claim.name: claim for claim in found.claims}
    assert outcomes["extend-answers-better"].outcome == "N-A"
    assert "embedded world" in outcomes["extend-answers-better"].note
    assert outcomes["dpo-step-zero"].outcome == "PASS"
    assert found.to_text().endswith(f"Page: {found.page}")
    assert found.to_dict()["counts"] == counts


def test_what_is_finished_is_not_done_again(small, monkeypatch):
    settings, found = small
    monkeypatch.setattr(paper_runs, "sft", None)  # to train would be an error
    monkeypatch.setattr(paper_runs, "dpo", None)
    again = reproduce(settings)
    assert [c.to_dict() for c in again.claims] == [c.to_dict() for c in found.claims]


def test_other_settings_do_not_continue_it(small):
    settings, _ = small
    other = ReproduceSettings(out=settings.out, seeds=(0,), parts=())
    with pytest.raises(BadInput, match="other settings"):
        reproduce(other)


def test_the_authors_folders_are_drawn_and_judged(tmp_path, shared_data):
    settings = ReproduceSettings(
        out=tmp_path / "out", authors=shared_data / "authors", parts=()
    )
    found = reproduce(settings)
    outcomes = {claim.name: claim for claim in found.claims}
    assert outcomes["anchors-start"].outcome == "PASS"
    assert outcomes["dpo-squeezes"].measured
    assert outcomes["extend-sft-rejected-rises"].outcome == "PASS"
    assert outcomes["dpo-less-on-policy"].note == "there is no on-policy run"
    apart = [c for c in found.claims if c.name.startswith("softmax")]
    assert {c.outcome for c in apart} <= {"N-A"}
    page = found.page.read_text()
    assert "prob_pythia410m_dpo" in page
    assert "evaluations" in (settings.out / "figures" / "dpo_rephrases.svg").read_text()


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """Two seeds in which all is as the paper says."""
    folder = tmp_path_factory.mktemp("seeds")
    runs = {role: write(folder, role, changes) for role, changes in GOOD.items()}
    return [Recorded(seed, runs, RIGHT, VOCABULARY) for seed in (0, 1)]


def test_every_figure_is_drawn_at_both_widths(seeds):
    plates = paper_plates(seeds)
    assert len({plate.name for plate in plates}) == len(plates) >= 18
    for plate in plates:
        for sheet, width in ((plate.wide, WIDE), (plate.narrow, NARROW)):
            assert sheet.width == width, plate.name
            assert sheet.title, plate.name
            box = sheet.figure.get_tightbbox()
            assert box.x1 <= width / 96 + 0.05, f"{plate.name} at {width}"
            assert box.x0 >= -0.05, f"{plate.name} at {width}"


def test_titles_say_what_the_runs_did(seeds):
    titles = {plate.name: plate.wide.title for plate in paper_plates(seeds)}
    assert "In 7 of 7 SFT runs the trained kind gains most" in titles["heat_map"]
    assert re.match(r"DPO: 5 of 5 irrelevant", titles["dpo_irrelevant_and_random"])
    assert "40% of the answers are right, with extend 85%" in titles["table_1"]
    assert "LBK is largest for chosen" in titles["lbk"]


def test_the_heat_maps_columns_have_the_range_one(seeds):
    rows, columns, values = influence(seeds, normalised=True)
    assert columns[-1] == "dpo"
    assert values.max(axis=0) - values.min(axis=0) == pytest.approx(1.0)
    _, _, nats = influence(seeds, normalised=False)
    place = rows.index("chosen"), columns.index("learn-chosen")
    assert nats[place] == pytest.approx(20, abs=1.5)


def test_a_page_escapes_what_is_not_ours(tmp_path):
    evil = "<img src=x onerror=alert(1)>"
    claim = Claim(evil, evil, evil, evil, evil, (Measured(evil, 1.0, False),), "", evil)
    page = write_page(tmp_path, [claim], [], [(evil, evil)]).read_text()
    assert "<img" not in page
    assert "0 of 1 claims reproduced, 1 failed, 0 not applicable" in page
