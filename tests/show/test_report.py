"""The page: safe whatever the data hold, complete, and equal to what diagnose says."""

import dataclasses
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from synthetic import write_run

from learndyn.diagnose.changes import kind_table
from learndyn.diagnose.numbers import bracket, nats
from learndyn.diagnose.verdict import diagnose, what_happened
from learndyn.errors import BadInput
from learndyn.record.observation import _TOKEN_COLUMNS
from learndyn.record.run_directory import RunDirectory
from learndyn.record.trajectory import Trajectory
from learndyn.show import chart as palette
from learndyn.show.chart import _spread_labels
from learndyn.show.page import text as escaped
from learndyn.show.report.curves import curves_figure
from learndyn.show.report.report import write_report


HOSTILE = (
    "</td></section><script>alert(1)</script><img src=x onerror=alert(2)>"
    "\" ' onload=alert(3) $\\frac{ &amp; http://evil.example/x \u202e \x00 \ud800"
)
ALLOWED_TAGS = {
    *("html", "head", "meta", "title", "style", "body", "header", "main", "footer"),
    *("section", "div", "h1", "h2", "h3", "p", "ul", "li", "span", "figure", "picture"),
    *("source", "img", "table", "thead", "tbody", "tr", "th", "td", "details"),
    *("summary", "dl", "dt", "dd", "strong", "code", "a"),
}


class Reader(HTMLParser):
    """Collects tags, attributes and text of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.rows, self.words = [], [], [], []
        self.open = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "source", "img"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag  # nothing closed what it did not open

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data
        if "style" not in self.open:
            self.words.append(data)


def assert_safe(page):
    read = Reader(page)
    assert set(read.tags) <= ALLOWED_TAGS
    names = [value for name, value in read.attributes if name == "id"]
    assert len(names) == len(set(names))
    for name, value in read.attributes:
        if name == "href":
            assert value[1:] in names  # every link leads somewhere
        assert not name.startswith("on")
        assert name != "href" or value[0] == "#"
        if name in ("src", "srcset"):
            assert value.startswith("data:image/svg+xml;base64,")
    style = re.search(r"<style>(.*?)</style>", page.read_text(), re.S)[1]
    assert "url(" not in style
    assert "@import" not in style
    return read


@pytest.fixture(scope="module")
def page(tmp_path_factory, full_prints):
    with full_prints():
        return write_report([write_run(tmp_path_factory.mktemp("one") / "dpo")])


def test_the_page_of_one_run_lies_in_its_directory_with_png_and_svg(page):
    assert page.name == "report.html"
    assert (page.parent / "run.json").exists()
    for name in ("curves", "curves_per_token", "training"):
        with Image.open(page.parent / "figures" / f"{name}.png") as picture:
            assert picture.size[0] == 2 * 1104
        ElementTree.parse(page.parent / "figures" / f"{name}.svg")
    assert not list(page.parent.rglob("*.tmp"))


def test_the_page_loads_nothing_and_runs_nothing(page):
    assert_safe(page)
    html = page.read_text(encoding="utf-8")
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in html
    assert 'name="referrer" content="no-referrer"' in html
    assert "http:" not in html
    assert "https:" not in html
    assert "<script" not in html


def test_the_kinds_table_shows_the_numbers_of_diagnose(page):
    rows = {row[0]: row[1:] for row in Reader(page).rows if len(row) == 7}
    for row in kind_table(Trajectory.load(page.parent)):
        assert rows[row.kind] == [
            f"{nats(row.change.mean)} {bracket(row.change)}",
            nats(row.first),
            f"{nats(row.peak)} at {row.peak_step}",
            nats(row.last),
            f"{100 * row.fell:.0f} %",
            str(row.prompts),
        ]


def test_every_sentence_of_diagnose_is_on_the_page(page):
    words = Reader(page).words
    for sentence in what_happened(Trajectory.load(page.parent)):
        assert sentence in words


def test_the_page_begins_with_the_verdict_and_its_numbers(page):
    read, found = Reader(page), diagnose(Trajectory.load(page.parent))
    words = " ".join(read.words)
    before, after = words.split("First, peak and last of every kind")
    assert found.state.state in before
    assert found.sentences[0] in before
    assert found.advice[0].do in before
    assert f"{nats(found.facts.evidence.margin.mean)} " in before
    assert bracket(found.facts.evidence.greedy) in before
    assert "How this verdict was reached" in before
    for finding in found.findings:
        assert finding.says in before
    anchors = [value for name, value in read.attributes if name == "id"]
    sections = ("verdict", "curves", "kinds", "prompts", "training", "data")
    assert tuple(anchors) == sections
    assert "24 of 24 prompts were squeezed" in after


def test_sections_of_several_runs_have_names_of_their_own(tmp_path):
    runs = [
        write_run(tmp_path / "a"),
        write_run(tmp_path / "b", steps=(0,)),
        write_run(tmp_path / "c", drift={"chosen": -40.0, "rejected": 20.0}, log=False),
    ]
    read = assert_safe(write_report(runs, tmp_path / "both"))
    anchors = {value for name, value in read.attributes if name == "id"}
    assert {"run-1-verdict", "run-2-verdict", "run-1-prompts"} <= anchors
    links = {value[1:] for name, value in read.attributes if name == "href"}
    for index, run in enumerate(runs, start=1):
        found = diagnose(run).findings
        assert {f"run-{index}-{item.at}" for item in found} <= links
    assert links <= anchors
    assert "NO VERDICT" in " ".join(read.words)


def test_settings_versions_and_data_notes_are_on_the_page(page):
    words = " ".join(Reader(page).words)
    for expected in ("tiny-llama", "f" * 64, "float32", "beta", "2.13.0", "truncated"):
        assert expected in words


def test_text_from_outside_is_escaped_everywhere(tmp_path):
    kind = "chosen_<script>alert(1)</script>$x"
    path = write_run(
        tmp_path / "a<b>&\"'",
        drift={"chosen": -3.0, "rejected": -20.0, kind: -2.0, "$\\frac": 1.0},
        texts={"prompt": HOSTILE.replace("\ud800", ""), "response": "<b>bold</b>"},
        info={"model": HOSTILE, "method": "<i>dpo", "settings": {HOSTILE: [HOSTILE]}},
    )
    run = RunDirectory.open(path)
    run.append_log({"step": 100, "loss<script>": 1.0, "note": HOSTILE})
    read = assert_safe(write_report([path]))
    assert kind in "".join(read.words)
    assert "<b>bold</b>" in "".join(read.words)
    for svg in (path / "figures").glob("*.svg"):
        tags = {element.tag.split("}")[1] for element in ElementTree.parse(svg).iter()}
        assert "script" not in tags


def test_escaped_text_keeps_letters_and_shows_what_it_must_not_hold():
    assert escaped("<&\"'>") == "&lt;&amp;&quot;&#x27;&gt;"
    assert escaped("日本 é 👩‍👧\u00a0%\n") == "日本 é 👩‍👧\u00a0%\n"
    assert escaped("a\x00b\ud800c\u202ed") == "a�b�c�d"


def test_without_text_no_prompt_and_no_response_is_on_the_page(tmp_path):
    path = write_run(
        tmp_path / "run", texts={"prompt": "SECRETP", "response": "SECRETR"}
    )
    html = write_report([path]).read_text()
    assert "SECRETP" in html
    assert "SECRETR" in html
    assert "SECRET" not in write_report([path], text=False).read_text()


def test_one_observation_still_gives_a_page(tmp_path):
    page = write_report([write_run(tmp_path / "run", steps=(0,), log=False)])
    words = " ".join(assert_safe(page).words)
    assert "One observation so far" in words
    assert "logged nothing" in words


def test_an_unfinished_run_gives_a_page_with_a_note(tmp_path):
    path = write_run(tmp_path / "run", info={"finished": False})
    with (path / "train.jsonl").open("a") as log:
        log.write('{"step": 101, "lo')  # cut by the crash
    assert "not finished" in " ".join(assert_safe(write_report([path])).words)


def test_values_that_are_not_finite_do_not_stop_the_page(tmp_path):
    path = write_run(tmp_path / "run")
    run = RunDirectory.open(path)
    last = run.read_observation(100)
    lost = np.full_like(last.logp, np.nan)
    run.write_observation(dataclasses.replace(last, logp=lost))
    assert "not finite" in " ".join(assert_safe(write_report([path])).words)


def without_tokens(path):
    """As an imported run: no counts and no values per token."""
    run = RunDirectory.open(path)
    for step in run.steps:
        seen = run.read_observation(step)
        none = {name: getattr(seen, name)[:0] for name in _TOKEN_COLUMNS}
        counts = np.zeros_like(seen.n_tokens)
        run.write_observation(dataclasses.replace(seen, n_tokens=counts, **none))
    return path


def test_a_run_without_counts_of_tokens_is_shown_without_them(tmp_path, page):
    path = write_run(tmp_path / "run", info={"step_unit": "evaluation"}, log=False)
    words = " ".join(assert_safe(write_report([without_tokens(path)])).words)
    assert "tokens per response" not in words
    assert not re.search(r"\bupdates?\b", words)
    assert "5, evaluations 0 to 100" in words
    drawn = {picture.stem for picture in (path / "figures").iterdir()}
    assert drawn == {"curves"}
    assert "tokens per response" in " ".join(Reader(page).words)
    chart = curves_figure(Trajectory.load(path))
    said = [text.get_text() for text in chart.figure.texts]
    assert any("since evaluation 0" in text for text in said)
    assert [axes.get_xlabel() for axes in chart.figure.axes] == ["evaluations"]


def test_a_run_of_means_alone_has_no_prompts_and_no_intervals(tmp_path):
    kinds = ["chosen", "rejected"]
    info = {"means_only": kinds}
    drift = dict.fromkeys(kinds, -9.0)
    path = write_run(tmp_path / "run", drift=drift, prompts=1, info=info)
    read = assert_safe(write_report([path]))
    words = " ".join(read.words)
    assert "1 prompts" not in words
    assert "prompts were squeezed" not in words
    assert "means over prompts alone × 2 kinds" in words
    rows = {row[0]: row[1:] for row in read.rows if len(row) == 7}
    for kind in (*kinds, "greedy path"):
        assert rows[kind][-2:] == ["unknown", "mean"]
    chart = curves_figure(Trajectory.load(path))
    said = " ".join(text.get_text() for text in chart.figure.texts)
    assert "2 kinds, without intervals: chosen −9" in said
    assert "bands" not in said


def test_two_preference_runs_get_a_comparison(tmp_path):
    runs = [
        write_run(tmp_path / "dpo"),
        write_run(
            tmp_path / "extend-dpo",
            drift={"chosen": -1.0, "rejected": -30.0, "irrelevant_train": -3.0},
        ),
        write_run(tmp_path / "sft", info={"method": "sft"}),
    ]
    page = write_report(runs, tmp_path / "both")
    read = assert_safe(page)
    words = " ".join(read.words)
    for heading in ("At equal updates", "At matched DPO margin", "At matched absolute"):
        assert heading in words
    assert "extend-dpo against dpo" in words
    assert "sft against" not in words
    assert (tmp_path / "both" / "figures" / "comparison_2.svg").exists()
    assert not (tmp_path / "dpo" / "report.html").exists()


def test_runs_that_watched_other_answers_share_a_page_without_a_comparison(tmp_path):
    runs = [
        write_run(tmp_path / "a"),
        write_run(tmp_path / "b", info={"probe_fingerprint": "0" * 64}),
    ]
    words = " ".join(assert_safe(write_report(runs, tmp_path / "both")).words)
    assert "watched other answers" in words
    assert "At equal updates" not in words


def test_several_runs_need_a_folder_of_their_own(tmp_path):
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b")]
    with pytest.raises(BadInput, match="--out"):
        write_report(runs)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BadInput, match="is a file"):
        write_report(runs, tmp_path / "file")
    with pytest.raises(BadInput, match="no run"):
        write_report([])


def test_equal_runs_give_equal_bytes(tmp_path):
    path = write_run(tmp_path / "run")
    first = write_report([path]).read_bytes()
    svg = (path / "figures" / "curves.svg").read_bytes()
    assert write_report([path]).read_bytes() == first
    assert (path / "figures" / "curves.svg").read_bytes() == svg


def test_labels_are_a_gap_apart_keep_their_order_and_move_little():
    wanted = np.array([50.0, 52.0, 51.0, 200.0, 5.0])
    placed = _spread_labels(wanted, 15, 0, 300)
    assert (np.diff(np.sort(placed)) >= 15 - 1e-9).all()
    assert (np.argsort(placed) == np.argsort(wanted)).all()
    assert placed[3] == 200
    assert placed[[0, 1, 2]].mean() == pytest.approx(51)


def test_colours_can_be_read_and_lines_can_be_seen():
    for colour in (*palette.TEXT.values(), palette.INK, palette.MUTED):
        assert palette.contrast(colour) >= 4.5
    for colour in palette.LINE.values():
        assert palette.contrast(colour) >= 3


def test_an_unknown_family_is_drawn_as_other():
    style = palette.style_of("url(evil)_semantic")
    assert style.line == palette.LINE["other"]
    assert palette.style_of("chosen").dash == ()
    assert palette.style_of("chosen_semantic").dash == (6, 3)
