"""The reproduction as a whole: small runs, recorded runs, stopping and continuing."""

import json
import re
from pathlib import Path

import pytest
from models import save_tiny
from paper_world import GOOD, RIGHT, VOCABULARY, write
from runs import data
from test_authors import folder_of, lines_of, names_of, values_of
from test_theory import good

from learndyn.errors import BadInput
from learndyn.paper.authors.claims import imported
from learndyn.paper.claims import Claim, Measured
from learndyn.paper.finetuning.chapters import paper_figures
from learndyn.paper.finetuning.learning_one_kind import _influence
from learndyn.paper.finetuning.recorded import Recorded
from learndyn.paper.page import write_page
from learndyn.paper.reproduce import _REASON, ReproduceSettings, _theory, reproduce
from learndyn.show.chart import NARROW, WIDE, svg_of
from learndyn.train import recipes
from learndyn.world.stages import STAGES


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seeds": ()}, "one seed or more"),
        ({"seeds": (1, 1)}, "each once"),
        ({"probes": "p.jsonl"}, "probes= needs data="),
        ({"authors": Path("x"), "model": "y"}, "model= and data= cannot"),
        ({"parts": ("theory",)}, "measured on the part runs"),
        ({"parts": ("runes",)}, "parts has runes: choose from"),
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
    assert stages >= {*STAGES, "learn-chosen", "learn-random_words"}
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
    monkeypatch.setattr(recipes, "sft", None)  # to train would be an error
    monkeypatch.setattr(recipes, "dpo", None)
    # its figures were drawn when it was made
    monkeypatch.setattr("learndyn.paper.page.write_page", lambda *_: found.page)
    again = reproduce(settings)
    assert [c.to_dict() for c in again.claims] == [c.to_dict() for c in found.claims]


def test_other_settings_do_not_continue_it(small):
    settings, _ = small
    other = ReproduceSettings(out=settings.out, seeds=(0,), parts=())
    with pytest.raises(BadInput, match="other settings"):
        reproduce(other)


@pytest.mark.parametrize("inside", ["runs/source", "seeds/0/sft/model", "."])
@pytest.mark.parametrize("name", ["authors", "images", "model", "data"])
def test_to_overwrite_never_removes_an_input(tmp_path, name, inside):
    out = tmp_path / "out"
    reproduce(ReproduceSettings(out=out, seeds=(0,), parts=()))
    given = out / inside
    given.mkdir(parents=True, exist_ok=True)
    (given / "precious").touch()
    value = given if name in ("authors", "images") else str(given)
    asked = ReproduceSettings(out=out, parts=(), **{name: value})
    with pytest.raises(BadInput, match=f"which {name}= names"):
        reproduce(asked, overwrite=True)
    assert (given / "precious").exists()


@pytest.mark.parametrize("kept", ['{"settings": {"mo', "[]", "\udcff"])
def test_a_marker_that_was_cut_off_is_refused(tmp_path, kept):
    settings = ReproduceSettings(out=tmp_path / "out", parts=())
    reproduce(settings)
    marker = tmp_path / "out" / "reproduce.json"
    marker.write_bytes(kept.encode("utf-8", "surrogateescape"))
    with pytest.raises(BadInput, match="cannot be read"):
        reproduce(settings)
    assert reproduce(settings, overwrite=True).page.exists()


def test_seeds_whose_theory_was_refused_are_named(tmp_path):
    for seed, found in ((0, good(0).to_dict()), (1, {_REASON: "no tied head"})):
        path = tmp_path / "seeds" / str(seed) / "theory.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(found))
    claims, figures = _theory(tmp_path, (0, 1))
    assert figures
    left = "Not measured on 1 of 2: no tied head"
    assert all(claim.note.endswith(left) for claim in claims)
    assert {len(claim.measured) for claim in claims} == {1}
    claims, figures = _theory(tmp_path, (1,))
    assert not figures
    assert {claim.note for claim in claims} == {"no tied head"}


def result_folder(path, steps=3):
    """A result folder as the authors' trainer writes it, without an array."""
    names = names_of("c")
    return folder_of(path, lines_of(names, values_of(names, steps)))


def test_an_import_that_was_stopped_halfway_is_made_again(tmp_path):
    source = result_folder(tmp_path / "pythia410m_dpo")
    imported(source, tmp_path / "runs")
    path = tmp_path / "runs" / source.name
    kept = sorted((path / "observations").iterdir())
    first = kept[0].stat().st_mtime_ns
    imported(source, tmp_path / "runs")
    assert kept[0].stat().st_mtime_ns == first  # whole: it was read again
    kept[-1].unlink()
    (one,) = imported(source, tmp_path / "runs").seeds
    assert len(one.runs["dpo"].steps) == 3


def test_a_result_folder_may_have_folders_of_its_own(tmp_path):
    source = result_folder(tmp_path / "pythia410m_dpo")
    (source / "checkpoint-100").mkdir()
    (one,) = imported(source, tmp_path / "runs").seeds
    assert one.seed == "pythia410m_dpo"


def test_a_folder_that_cannot_be_read_is_named_on_the_page(tmp_path):
    result_folder(tmp_path / "in" / "pythia410m_dpo")
    (tmp_path / "in" / "broken<b>").mkdir()
    settings = ReproduceSettings(
        out=tmp_path / "out", authors=tmp_path / "in", parts=()
    )
    with pytest.warns(UserWarning, match="left out because it cannot be read: broken"):
        found = reproduce(settings)
    page = found.page.read_text()
    assert "broken&lt;b&gt;: " in page
    assert "left out because it cannot be read" in page


def test_the_authors_folders_are_drawn_and_judged(tmp_path, shared_data):
    settings = ReproduceSettings(
        out=tmp_path / "out", authors=shared_data / "authors", parts=()
    )
    found = reproduce(settings)
    outcomes = {claim.name: claim for claim in found.claims}
    assert outcomes["anchors-start"].outcome == "PASS"
    assert outcomes["dpo-squeezes"].measured
    assert outcomes["extend-sft-rejected-rises"].outcome == "PASS"
    assert outcomes["dpo-less-on-policy"].note.endswith("the on-policy run is missing")
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


@pytest.fixture(scope="module")
def figures(seeds):
    """All figures of these seeds; each is drawn once at its full width."""
    return paper_figures(seeds)


def test_every_figure_is_drawn_at_both_widths(figures):
    assert len({figure.name for figure in figures}) == len(figures) >= 18
    for figure in figures:
        for chart, width in ((figure.wide, WIDE), (figure.narrow, NARROW)):
            assert chart.width == width, figure.name
            assert chart.title, figure.name
            box = chart.figure.get_tightbbox()
            assert box.x1 <= width / 96 + 0.05, f"{figure.name} at {width}"
            assert box.x0 >= -0.05, f"{figure.name} at {width}"


def test_a_figure_of_kinds_that_no_run_has_is_not_drawn(tmp_path):
    result_folder(tmp_path / "in" / "pythia410m_dpo")
    found = imported(tmp_path / "in", tmp_path / "runs")
    drawn = {figure.name for figure in paper_figures(found.seeds)}
    assert "dpo_chosen_and_rejected" in drawn
    assert not drawn & {"dpo_rephrases", "dpo_irrelevant_and_random"}


def test_titles_say_what_the_runs_did(figures):
    titles = {figure.name: figure.wide.title for figure in figures}
    assert "In 7 of 7 SFT runs the trained kind gains most" in titles["heat_map"]
    assert re.match(r"DPO: 5 of 5 irrelevant", titles["dpo_irrelevant_and_random"])
    assert "40% of the answers are right, with extend 85%" in titles["table_1"]
    assert "LBK is largest for chosen" in titles["lbk"]


def test_the_heat_maps_columns_have_the_range_one(seeds):
    rows, columns, values = _influence(seeds, normalised=True)
    assert columns[-1] == "dpo"
    assert values.max(axis=0) - values.min(axis=0) == pytest.approx(1.0)
    _, _, nats = _influence(seeds, normalised=False)
    place = rows.index("chosen"), columns.index("learn-chosen")
    assert nats[place] == pytest.approx(20, abs=1.5)


def test_a_claim_stands_on_the_page_once_and_links_to_what_is_drawn(tmp_path):
    words = ("Section 1", "It rises.", "above 0", "nats")
    na = Claim("a", *words, note="no run was made")
    held = Claim("b", *words, (Measured(0, 1.0, True),), "not_drawn")
    page = write_page(tmp_path, [na, held], [], []).read_text()
    assert page.count("no run was made") == 1
    assert "href='#" not in page


def test_against_extend_the_baseline_is_plain(figures):
    charts = {figure.name: figure.wide for figure in figures}
    for name, wanted, other in (
        ("extend_dpo", "plain", "off-policy"),
        ("dpo_on_policy", "off-policy", "plain"),
    ):
        drawn = svg_of(charts[name])
        assert f">{wanted}" in drawn
        assert f">{other}" not in drawn


def test_a_page_escapes_what_is_not_ours(tmp_path):
    evil = "<img src=x onerror=alert(1)>"
    claim = Claim(evil, evil, evil, evil, evil, (Measured(evil, 1.0, False),), "", evil)
    page = write_page(tmp_path, [claim], [], [(evil, evil)]).read_text()
    assert "<img" not in page
    assert "0 of 1 claims reproduced, 1 failed, 0 not applicable" in page
