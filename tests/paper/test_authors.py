"""The authors' published folders become run directories, and theirs alone."""

import json
import math
import time
from pathlib import Path

import numpy as np
import pytest

from learndyn.cli import main
from learndyn.diagnose.squeeze_index import squeeze_index
from learndyn.diagnose.state import state_of
from learndyn.errors import BadInput
from learndyn.paper.authors.import_folder import import_folder
from learndyn.paper.authors.layout import layout_of_names, layout_of_values
from learndyn.paper.authors.rows import match_rows, split_runs
from learndyn.probes.build import load_probes
from learndyn.probes.kinds import AUTHORS_KINDS, PROBED
from learndyn.record.trajectory import Trajectory


PYTHIA = {
    "chosen": -151.982,
    "chosen_initial": -151.659,
    "chosen_semantic": -155.893,
    "chosen_format": -136.009,
    "rejected": -121.351,
    "rejected_semantic": -135.302,
    "rejected_format": -121.821,
    "irrelevant_train": -193.407,
    "irrelevant_test": -161.160,
    "irrelevant_human": -187.900,
    "random_permuted": -401.350,
    "random_words": -361.761,
}
QWEN18 = {
    "chosen": -122.781,
    "chosen_initial": -138.673,
    "chosen_semantic": -128.320,
    "chosen_format": -110.738,
    "rejected": -97.141,
    "rejected_semantic": -112.159,
    "rejected_format": -99.733,
    "irrelevant_train": -164.466,
    "irrelevant_test": -136.158,
    "irrelevant_human": -128.794,
    "random_permuted": -361.791,
    "random_words": -331.231,
}
"""Mean log pi of each kind before training, as the authors published it."""

V = {"pythia": 50304, "qwen": 151936}


@pytest.fixture(scope="module")
def published(shared_data, tmp_path_factory):
    """All shared folders, imported once: name -> (what was found, main run)."""
    out = tmp_path_factory.mktemp("authors")
    made = {}
    for folder in sorted((shared_data / "authors").iterdir()):
        found = import_folder(folder, out / folder.name)
        made[folder.name] = (found, Trajectory.load(found.runs[0].run))
    return made


def mean(run: Trajectory, column: str, kind: str) -> np.ndarray:
    """Path of a column's mean over prompts."""
    return run.values(column, kind).mean(axis=1)


@pytest.mark.parametrize(
    ("folder", "anchors"),
    [("prob_pythia410m_dpo", PYTHIA), ("extend_sft_qwen18_observe", QWEN18)],
    ids=["pythia-410m", "qwen-1.8b"],
)
def test_every_kind_begins_where_the_authors_say(published, folder, anchors):
    run = published[folder][1]
    assert set(run.kinds) == set(anchors)
    for kind, value in anchors.items():
        assert mean(run, "logp", kind)[0] == pytest.approx(value, abs=1e-3)


@pytest.mark.parametrize(
    ("folder", "kind", "at", "value"),
    [
        ("prob_pythia410m_dpo", "chosen", 25, -140.23),
        ("prob_pythia410m_dpo", "chosen", 49, -146.34),
        ("prob_pythia410m_dpo", "rejected", 49, -197.64),
        ("prob_pythia410m_dpo", "irrelevant_test", 49, -210.1),
        ("prob_pythia410m_dpo", "random_permuted", 49, -491.0),
        ("extend_sft_qwen18_observe", "chosen", 39, -79.20),
        ("extend_sft_qwen18_observe", "rejected", 39, -60.58),
        ("extend_sft_qwen18_observe", "irrelevant_train", 39, -141.6),
        ("extend_sft_qwen18_observe", "irrelevant_human", 39, -145.6),
        ("extend_sft_qwen18_observe", "chosen_semantic", 39, -131.3),
        ("pythia410_baseline_sft_verify_argmax_bug", "chosen", 0, -151.982),
        ("pythia410_baseline_sft_verify_argmax_bug", "chosen", 39, -92.42),
        ("pythia410_baseline_dpo_checkbug", "chosen", 0, -151.982),
        ("qwen05_baseline_sft_checkbug", "chosen", 0, -132.666),
        ("qwen05_baseline_sft_checkbug", "chosen", 39, -87.38),
    ],
)
def test_trajectories_pass_the_published_points(published, folder, kind, at, value):
    digits = len(str(value).partition(".")[2])
    off = 0.5 if digits == 1 and value == -491.0 else 0.51 * 10.0**-digits
    assert mean(published[folder][1], "logp", kind)[at] == pytest.approx(value, abs=off)


def test_chosen_peaks_at_the_published_observation(published):
    path = mean(published["prob_pythia410m_dpo"][1], "logp", "chosen")
    assert path.argmax() == 25
    assert len(path) == 50


@pytest.mark.parametrize(
    ("folder", "first", "last", "norm"),
    [
        ("pythia410_baseline_sft_verify_argmax_bug", -61.56, -44.47, 251.657),
        ("pythia410_baseline_dpo_checkbug", -61.56, -61.53, 251.657),
        ("qwen05_baseline_sft_checkbug", -51.58, -41.34, 448.541),
    ],
    ids=["pythia-sft", "pythia-dpo", "qwen-sft"],
)
def test_a_mended_greedy_path_is_along_chosen(published, folder, first, last, norm):
    found, run = published[folder]
    greedy = mean(run, "argmax_logp", "chosen")
    assert greedy[[0, -1]] == pytest.approx([first, last], abs=5.1e-3)
    assert np.all(run.values("argmax_logp", "chosen") >= run.values("logp", "chosen"))
    assert [d for d in found.runs[0].defects if d["column"] == "argmax_logp"] == []
    size = V["pythia" if "pythia" in folder else "qwen"]
    square = run.values("p_norm2", "chosen")[0]
    assert np.sqrt(size - 2 + size * square).mean() == pytest.approx(norm, abs=1e-3)
    assert np.all((square > 1 / size) & (square < 1))


def test_the_other_scalars_are_those_of_chosen(published):
    run = published["pythia410_baseline_sft_verify_argmax_bug"][1]
    assert mean(run, "p_gap", "chosen")[[0, -1]] == pytest.approx(
        [0.748, 0.59], abs=5e-3
    )
    assert mean(run, "energy", "chosen")[0] == pytest.approx(0.68756, abs=1e-5)
    assert np.isnan(run.columns["rest_logp"]).all()
    others = run.run.info["a_norm"]
    assert others["rejected"][0] == pytest.approx(251.435, abs=1e-3)
    assert set(others) == set(PYTHIA) - {"chosen"}


def test_an_overwritten_greedy_path_is_marked_with_its_evidence(published):
    found, run = published["prob_pythia410m_dpo"]
    defect = found.runs[0].defects[0]
    assert defect["column"] == "argmax_logp"
    assert "random_words" in defect["what"]
    share = defect["evidence"]["below_chosen"] / defect["evidence"]["compared"]
    assert share == pytest.approx(0.296, abs=1e-3)
    assert run.run.info["defects"][0] == defect
    # kept as the greedy path, and right along the kind that it is of
    along = mean(run, "argmax_logp", "random_words")
    assert along == pytest.approx(mean(run, "argmax_logp", "chosen"), abs=1e-12)
    assert along[0] == pytest.approx(-113.54, abs=1e-3)
    assert np.all(
        run.values("argmax_logp", "random_words") >= run.values("logp", "random_words")
    )
    assert np.isnan(run.values("energy", "chosen")).all()
    assert mean(run, "energy", "random_words")[0] == pytest.approx(0.95068, abs=1e-4)
    size = V["pythia"]
    norm = np.sqrt(size - 2 + size * run.values("p_norm2", "random_words")[0])
    assert norm.mean() == pytest.approx(231.698, abs=1e-3)
    assert np.isnan(run.values("p_norm2", "chosen")).all()


def test_interleaved_runs_are_told_apart_by_the_array(published):
    found = published["pythia410_baseline_dpo_checkbug"][0]
    whole, second = found.runs
    assert whole.lines == [*range(32), 33, 35, 37, 39, *range(41, 45)]
    assert second.lines == [32, 34, 36, 38, 40]
    assert second.run == f"{whole.run}-2"
    assert (whole.prompts, second.prompts) == (500, None)
    again = mean(Trajectory.load(second.run), "logp", "chosen")
    first = mean(Trajectory.load(whole.run), "logp", "chosen")
    assert again == pytest.approx(first[:5], abs=1e-6)


def test_an_aborted_start_is_a_run_of_its_own(published):
    whole, second = published["qwen05_baseline_sft_checkbug"][0].runs
    assert (whole.lines, second.lines) == ([*range(2, 42)], [0, 1])


def test_no_array_is_needed_to_tell_these_runs_apart(shared_data, tmp_path):
    source = shared_data / "authors" / "pythia410_baseline_dpo_checkbug"
    folder = tmp_path / "lines_alone"
    folder.mkdir()
    name = "prob_train_metrics.json"
    (folder / name).write_bytes((source / name).read_bytes())
    whole, second = import_folder(folder, tmp_path / "run").runs
    assert whole.lines == [*range(32), 33, 35, 37, 39, *range(41, 45)]
    assert second.lines == [32, 34, 36, 38, 40]
    assert any("told apart" in note for note in second.notes)


@pytest.mark.parametrize(
    ("folder", "state", "sure", "sq", "index"),
    [
        ("prob_pythia410m_dpo", "SQUEEZE", True, 34.5, 0.316),
        ("pythia410_baseline_dpo_checkbug", "SQUEEZE", True, 27.8, 0.1978),
        ("qwen05_baseline_sft_checkbug", "FIT", True, -32.2, -0.128),
        ("pythia410_baseline_sft_verify_argmax_bug", "FIT", True, -39.8, -0.101),
        ("extend_sft_qwen18_observe", "FIT", False, -14.9, -0.153),  # means alone
    ],
    ids=["dpo-probes", "dpo-large-lr", "qwen-sft", "pythia-sft", "extend"],
)
def test_runs_have_the_name_that_their_numbers_bear(
    published, folder, state, sure, sq, index
):
    run = published[folder][1]
    report = state_of(run)
    assert (report.state, report.sure) == (state, sure)
    assert report.sq.nats.mean == pytest.approx(sq, abs=0.05)
    assert squeeze_index(run).end.mean == pytest.approx(index, abs=2e-3)


def test_texts_and_ids_come_from_the_probe_file(shared_data, tmp_path):
    file = shared_data / "hh" / "probes_train.jsonl"
    folder = shared_data / "authors" / "prob_pythia410m_dpo"
    found = import_folder(folder, tmp_path / "run", probes=file)
    run = Trajectory.load(found.runs[0].run)
    texts = load_probes(file, aliases=AUTHORS_KINDS, empty="keep")
    texts = texts.select(kinds=[k for k in texts.kinds if k != "chosen_selfr"])
    assert run.run.info["probe_fingerprint"] == texts.fingerprint
    values = np.load(folder / "logp_npy_all_chosen.npy")
    assert run.values("logp", "rejected") == pytest.approx(values[:, 9], abs=1e-12)
    assert run.probes["prompt_id"][0].as_py() == texts.prompt_ids[0]
    # what an answer's length does to its log-probability shows that rows fit texts
    of = {(p.prompt_id, p.kind): len(p.response) for p in texts}
    ids = sorted({p.prompt_id for p in texts})
    lengths = [of[i, "irrelevant_human"] for i in ids]
    logp = run.values("logp", "irrelevant_human")[0]
    assert np.corrcoef(lengths, logp)[0, 1] < -0.9


@pytest.mark.parametrize(
    ("command", "run"),
    [
        ("diagnose", "prob_pythia410m_dpo"),
        ("diagnose", "extend_sft_qwen18_observe"),
        ("report", "extend_sft_qwen18_observe"),
    ],
)
def test_imported_runs_can_be_read(published, command, run, capsys):
    path = published[run][0].runs[0].run
    assert main([command, path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)


# folders that are made up, of layouts and with faults that the shared ones lack


COUNT = 6
"""Prompts of a made-up folder."""


def names_of(letter: str, kinds: tuple[str, ...] = PROBED) -> list[str]:
    """Columns of a layout, in its order, under the authors' names."""
    first, *others = kinds
    logp = {kind: f"logps_eval_prob_train/{kind}" for kind in kinds}
    norm = {kind: f"{kind}_A_o" for kind in kinds}
    middle = ["argmax_prob_logits", "except_argmax_prob_logits"]
    ends = ["p_e", "energy"]
    pairs = {
        "a": [logp[first], *middle, "A_o", *ends, *(logp[k] for k in others)],
        "b": [logp[first], *middle, norm[first], *ends],
        "c": [norm[first], logp[first], *middle, *ends, *(norm[k] for k in others)],
        "d": [norm[first], logp[first], *middle, *ends],
        "e": [logp[first], middle[0], *(logp[k] for k in others)],
    }
    pairs["b"] += [name for k in others for name in (logp[k], norm[k])]
    pairs["d"] += [name for k in others for name in (norm[k], logp[k])]
    return pairs[letter]


def values_of(names, steps, *, seed=0, prompts=COUNT, drift=1.0):
    """A run's numbers, axes evaluation, column, prompt; every run of a seed begins
    with the same row."""
    start = np.random.default_rng(7)
    walk = np.random.default_rng(seed)
    out = np.empty((steps, len(names), prompts))
    for column, name in enumerate(names):
        level, size = -120.0, 1.5
        if name.endswith("A_o"):
            level, size = 245.0, 0.4
        elif name in ("p_e", "energy"):
            level, size = 0.6, 0.005
        elif "argmax" in name:
            level, size = -55.0, 0.6
        begin = level + 2 * size * start.standard_normal(prompts)
        moves = size * walk.standard_normal((steps, 1)) * drift
        moves[0] = 0
        out[:, column] = begin + np.cumsum(moves, axis=0)
    if "except_argmax_prob_logits" in names:
        out[:, names.index("except_argmax_prob_logits")] = np.nan
    return out


def lines_of(names, values) -> list[str]:
    """The JSON lines that the authors' trainer would write."""
    return [
        json.dumps({n: float(np.mean(v)) for n, v in zip(names, step, strict=True)})
        for step in values
    ]


def folder_of(path: Path, lines=None, array=None, *, column="chosen", end="\n") -> Path:
    """A result folder."""
    path.mkdir(parents=True)
    if lines is not None:
        text = "".join(f"{line}{end}" for line in lines)
        (path / "prob_train_metrics.json").write_bytes(text.encode())
    if array is not None:
        np.save(path / f"logp_npy_all_{column}.npy", array)
    return path


@pytest.mark.parametrize("letter", ["a", "b", "c", "d", "e"])
@pytest.mark.parametrize("given", ["both", "lines", "array"])
def test_every_layout_is_known_by_names_and_by_values(tmp_path, letter, given):
    names = names_of(letter)
    values = values_of(names, 5)
    lines = lines_of(names, values) if given != "array" else None
    array = values if given != "lines" else None
    folder = folder_of(tmp_path / "pythia_dpo", lines, array)
    found = import_folder(folder, tmp_path / "run")
    (told,) = found.runs
    assert told.layout == letter
    run = Trajectory.load(told.run)
    assert set(run.kinds) == ({"chosen"} if letter == "c" else set(PYTHIA))
    assert run.run.info.get("means_only", []) == (
        told.kinds if given == "lines" else []
    )
    for name, kind in [("chosen", "chosen"), ("random_permute", "random_permuted")]:
        if kind in run.kinds:
            column = values[:, names.index(f"logps_eval_prob_train/{name}")]
            kept = run.values("logp", kind)
            truth = column if given != "lines" else column.mean(axis=1, keepdims=True)
            assert kept == pytest.approx(truth, abs=1e-9)
    right = letter in ("c", "d")
    assert any(d["column"] == "argmax_logp" for d in told.defects) is not right
    assert np.isfinite(run.values("argmax_logp", "chosen")).all()
    if letter != "e":
        assert np.isfinite(run.values("energy", "chosen")).all() == right


def test_both_tellings_of_a_layout_agree():
    for letter in "abcde":
        names = names_of(letter)
        means = values_of(names, 4).mean(axis=2)
        by_names = layout_of_names(names, "file")
        by_values = layout_of_values(means, "file")
        assert [(c.quantity, c.kind) for c in by_names.columns] == [
            (c.quantity, c.kind) for c in by_values.columns
        ]


def test_an_array_that_fits_no_layout_or_two_is_refused(tmp_path):
    odd = values_of(names_of("a"), 3)[:, :9]
    with pytest.raises(BadInput, match="9 columns without names"):
        import_folder(folder_of(tmp_path / "a", None, odd), tmp_path / "run")
    unknown = np.full((3, 17, COUNT), np.nan)  # may be a or c
    with pytest.raises(BadInput, match="2 of the known layouts"):
        import_folder(folder_of(tmp_path / "b", None, unknown), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_open_kinds_unknown_columns_and_other_counts_of_prompts(tmp_path):
    kinds = ("chosen", "rejected", "irr_hum", "haiku")
    names = [*names_of("d", kinds), "entropy_of_nothing"]
    values = values_of(names, 4, prompts=13)
    folder = folder_of(tmp_path / "some_run", lines_of(names, values), values)
    (told,) = import_folder(folder, tmp_path / "run").runs
    assert told.columns_left_out == ["entropy_of_nothing"]
    assert told.kinds == ["chosen", "rejected", "irrelevant_human", "haiku"]
    assert (told.method, told.model, told.prompts) == (None, None, 13)
    run = Trajectory.load(told.run)
    at = names.index("logps_eval_prob_train/haiku")
    assert run.values("logp", "haiku") == pytest.approx(values[:, at], abs=1e-9)


@pytest.mark.parametrize("column", ["rejected", "irr_hum"])
def test_what_was_trained_on_is_in_the_name_of_the_array(tmp_path, column):
    names = names_of("b")
    values = values_of(names, 3)
    folder = folder_of(tmp_path / "x", lines_of(names, values), values, column=column)
    (told,) = import_folder(folder, tmp_path / "run").runs
    info = Trajectory.load(told.run).run.info
    assert info["imported"]["trained_on"] == column


def test_two_arrays_take_the_lines_of_their_own_runs(tmp_path):
    names = names_of("b")
    one, other = values_of(names, 6), values_of(names, 5, seed=1)
    lines = lines_of(names, one) + lines_of(names, other)
    folder = folder_of(tmp_path / "x", lines, one, column="rejected")
    np.save(folder / "logp_npy_all_chosen.npy", other)
    first, second = import_folder(folder, tmp_path / "run").runs
    assert (first.array, first.lines) == ("logp_npy_all_chosen.npy", [*range(6, 11)])
    assert second.lines[1:] == [*range(1, 6)]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"], ids=["lf", "crlf", "blank"])
def test_a_cut_line_is_left_out_and_named(tmp_path, end):
    names = names_of("b")
    lines = lines_of(names, values_of(names, 5))
    lines[-1] = lines[-1][:200]
    assert "NaN" in lines[0]
    found = import_folder(folder_of(tmp_path / "x", lines, end=end), tmp_path / "run")
    assert found.runs[0].lines == [0, 1, 2, 3]
    assert "line 4: cut short" in found.left_out[0]


def test_an_array_keeps_the_evaluation_whose_line_was_cut(tmp_path):
    names = names_of("d")
    values = values_of(names, 5)
    lines = lines_of(names, values)
    lines[-1] = lines[-1][:99]
    found = import_folder(folder_of(tmp_path / "x", lines, values), tmp_path / "run")
    assert found.runs[0].lines == [0, 1, 2, 3, None]
    assert found.runs[0].observations == 5
    assert any("1 of its 5" in note for note in found.runs[0].notes)


def test_an_array_of_another_run_does_not_take_these_lines(tmp_path):
    names = names_of("c")
    lines = lines_of(names, values_of(names, 5))
    other = values_of(names, 5, seed=3) + 1e-3
    found = import_folder(folder_of(tmp_path / "x", lines, other), tmp_path / "run")
    assert [run.lines for run in found.runs] == [[None] * 5, [0, 1, 2, 3, 4]]


def rows_of(seed: int, steps: int = 45) -> np.ndarray:
    """Means of a made-up run of layout c."""
    names = [name for name in names_of("c") if "except" not in name]
    return values_of(names, steps, seed=seed).mean(axis=2)


def near(rows: np.ndarray, seed: int, size: float) -> np.ndarray:
    """The same run by another process: rounding that grows to about `size` steps."""
    generator = np.random.default_rng(seed)
    scale = np.median(np.abs(np.diff(rows, axis=0)), axis=0)
    grown = np.linspace(0, 1, len(rows))[:, None] * scale * size
    noise = np.cumsum(generator.standard_normal(rows.shape), axis=0)
    return rows + grown * noise / np.sqrt(len(rows))


def told(*runs_and_order) -> tuple[np.ndarray, list[list[int]]]:
    """Rows as they were written, and which of them each run wrote."""
    *runs, order = runs_and_order
    place = [0] * len(runs)
    rows, owners = [], [[] for _ in runs]
    for index, who in enumerate(order):
        rows.append(runs[who][place[who]])
        owners[who].append(index)
        place[who] += 1
    return np.array(rows), [owner for owner in owners if owner]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("size", [0.0, 1e-4, 1.0], ids=["exact", "tiny", "drifting"])
def test_processes_that_take_turns_are_told_apart(seed, size):
    one = rows_of(seed)
    other = near(one, seed, size)
    rows, owners = told(one, other, [0, 1] * 30)
    assert split_runs(rows, rows[0]) == owners


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    "order",
    [
        [0] * 40,
        [0, *[1] * 40],
        [0, 0, *[1] * 40],
        [0] * 20 + [1] * 45,
        [0] * 32 + [1, 0] * 5 + [0] * 4,
        [0, 1] * 15 + [0] * 25,
    ],
    ids=["one", "stray", "aborted", "restart", "second-in-between", "one-ends-early"],
)
def test_restarts_and_strays_are_told_apart(seed, order):
    one = rows_of(seed)
    rows, owners = told(one, near(one, seed, 1e-4), order)
    assert split_runs(rows, rows[0]) == owners


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_restart_with_other_settings_is_told_apart(seed):
    rows, owners = told(rows_of(seed), rows_of(seed + 50), [0] * 20 + [1] * 30)
    assert split_runs(rows, rows[0]) == owners


def test_four_equal_rows_are_one_observation(tmp_path):
    names = names_of("b")
    (line,) = lines_of(names, values_of(names, 1))
    found = import_folder(folder_of(tmp_path / "x", [line] * 4), tmp_path / "run")
    assert [run.lines for run in found.runs] == [[0]]
    assert "lines 1-3" in found.left_out[0]


def test_a_stray_first_row_makes_no_run(tmp_path):
    names = names_of("c")
    values = values_of(names, 40)
    lines = lines_of(names, values)
    folder = folder_of(tmp_path / "x", [lines[0], *lines], values)
    found = import_folder(folder, tmp_path / "run")
    assert [run.lines for run in found.runs] == [[*range(1, 41)]]
    assert "line 0" in found.left_out[0]


def test_a_line_that_was_written_twice_counts_once(tmp_path):
    names = names_of("e")
    lines = lines_of(names, values_of(names, 6))
    lines.insert(3, lines[3])
    found = import_folder(folder_of(tmp_path / "x", lines), tmp_path / "run")
    assert found.runs[0].lines == [0, 1, 2, 3, 5, 6]
    assert "line 4" in found.left_out[0]


def test_columns_that_change_in_the_middle_are_two_runs(tmp_path):
    old, new = names_of("e"), names_of("b")
    lines = lines_of(old, values_of(old, 3)) + lines_of(new, values_of(new, 5))
    found = import_folder(folder_of(tmp_path / "x", lines), tmp_path / "run")
    assert [(r.layout, r.lines) for r in found.runs] == [
        ("b", [3, 4, 5, 6, 7]),
        ("e", [0, 1, 2]),
    ]


def test_rows_are_matched_in_order_and_equal_ones_without_gaps():
    rows = np.array([[0.0], [1.0], [0.0], [1.0], [2.0]])
    assert match_rows(rows, np.array([[0.0], [1.0], [2.0]])) == [2, 3, 4]
    assert match_rows(rows, np.array([[1.0], [0.0]])) == [1, 2]
    assert match_rows(rows, np.array([[5.0], [2.0]])) == [None, 4]
    assert match_rows(rows, rows + 1e-5) == [None] * 5
    assert match_rows(rows, rows + 5e-7) == [0, 1, 2, 3, 4]


def test_many_equal_rows_are_matched_in_time():
    rows = np.ones((800, 17))
    begin = time.process_time()
    assert match_rows(rows, rows) == list(range(800))
    assert time.process_time() - begin < 2


def test_no_pickle_is_ever_loaded(tmp_path):
    names = names_of("b")
    lines = lines_of(names, values_of(names, 3))
    folder = folder_of(tmp_path / "x", lines)
    touched = tmp_path / "touched"

    class Trap:
        def __reduce__(self):
            return (Path.touch, (touched,))

    trap = np.array([Trap()], dtype=object)
    for name in ("argmax_token_all_chosen", "logp_npy_all_chosen"):
        np.save(folder / f"{name}.npy", trap, allow_pickle=True)
    found = import_folder(folder, tmp_path / "run")
    assert not touched.exists()
    assert len(found.left_out) == 2
    assert all("pickle" in reason for reason in found.left_out)
    assert found.runs[0].observations == 3


@pytest.mark.parametrize(
    "fault", ["short", "huge", "header", "ints", "flat", "text", "archive"]
)
def test_arrays_that_are_not_what_they_claim_are_left_out(tmp_path, fault):
    names = names_of("b")
    values = values_of(names, 3)
    folder = folder_of(tmp_path / "x", lines_of(names, values), values)
    path = folder / "logp_npy_all_chosen.npy"
    whole = path.read_bytes()
    if fault == "short":
        path.write_bytes(whole[:-8])
    elif fault == "huge":
        short, long = b"(3, 28, 6), }        ", b"(300000000, 28, 6), }"
        assert short in whole
        path.write_bytes(whole.replace(short, long))
    elif fault == "header":
        path.write_bytes(whole.replace(b"(3, 28, 6), }", b"(9**9, 28, 6)"))
    elif fault == "ints":
        np.save(path, np.ones((3, 28, 6), int))
    elif fault == "flat":
        np.save(path, np.ones((3, 28)))
    elif fault == "text":
        path.write_bytes(b"not an array")
    else:
        with path.open("wb") as handle:
            np.savez(handle, values)
    found = import_folder(folder, tmp_path / "run")
    assert "logp_npy_all_chosen.npy is not read" in found.left_out[0]
    assert (found.runs[0].array, found.runs[0].observations) == (None, 3)


def test_folders_without_results_are_refused(tmp_path):
    with pytest.raises(BadInput, match="is not a folder"):
        import_folder(tmp_path / "absent", tmp_path / "run")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="nothing"):
        import_folder(tmp_path / "empty", tmp_path / "run")
    other = folder_of(tmp_path / "other", ['{"loss": 1.0}'])
    with pytest.raises(BadInput, match="logps_eval_SET/KIND"):
        import_folder(other, tmp_path / "run")
    with pytest.raises(BadInput, match="no line that is a JSON object"):
        import_folder(folder_of(tmp_path / "bad", ["[1]", "{"]), tmp_path / "run")


def test_nothing_is_written_over_another_run(tmp_path):
    names = names_of("c")
    one = values_of(names, 8)
    lines = lines_of(names, one)
    folder = folder_of(tmp_path / "x", lines[:4] + lines)
    import_folder(folder, tmp_path / "other")
    (tmp_path / "run-2").mkdir()
    (tmp_path / "run-2" / "mine.txt").write_text("mine")
    with pytest.raises(BadInput, match="run-2"):
        import_folder(folder, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    again = import_folder(folder, tmp_path / "other", overwrite=True)
    assert [run.lines for run in again.runs] == [[*range(4, 12)], [0, 1, 2, 3]]
    alone = folder_of(tmp_path / "y", lines)
    over = import_folder(alone, tmp_path / "other", overwrite=True)
    assert len(over.runs) == 1
    assert over.left_out == ["other-2 was there before: not of this import."]


def test_no_run_is_replaced_where_another_cannot_be(tmp_path):
    names = names_of("c")
    lines = lines_of(names, values_of(names, 8))
    folder = folder_of(tmp_path / "x", lines[:4] + lines)
    import_folder(folder, tmp_path / "run")
    (tmp_path / "run-2" / "mine.txt").write_text("mine")
    before = (tmp_path / "run").stat().st_ino
    with pytest.raises(BadInput, match=r"mine\.txt"):
        import_folder(folder, tmp_path / "run", overwrite=True)
    assert (tmp_path / "run").stat().st_ino == before


def test_a_run_can_be_made_where_one_stands(tmp_path, monkeypatch):
    names = names_of("c")
    folder = folder_of(tmp_path / "x", lines_of(names, values_of(names, 3)))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (found,) = import_folder(folder, ".").runs
    assert found.run == str(tmp_path / "here")
    assert len(Trajectory.load(tmp_path / "here").steps) == 3
    with pytest.raises(BadInput, match="cannot name a run directory"):
        import_folder(folder, "/")


def test_names_from_a_file_cannot_steer_a_terminal(tmp_path):
    names = [*names_of("e"), "loss\x1b]0;owned\x07\u202e"]
    folder = folder_of(tmp_path / "x", lines_of(names, values_of(names, 3)))
    said = import_folder(folder, tmp_path / "run").to_text()
    assert "loss\ufffd]0;owned" in said
    assert not {"\x1b", "\x07", "\u202e"} & set(said)


@pytest.mark.parametrize(
    ("column", "value", "ours"),
    [
        ("logps_eval_prob_train/chosen", 5.0, {"logp", "chosen"}),
        ("logps_eval_prob_train/rejected", 5.0, {"logp", "rejected"}),
        ("chosen_A_o", 0.5, {"p_norm2", "chosen"}),
        ("rejected_A_o", 0.5, {"a_norm of rejected"}),
        ("argmax_prob_logits", 1.0, {"argmax_logp"}),
        ("energy", 3.0, {"energy"}),
    ],
)
def test_values_that_cannot_be_are_told_in_our_words(tmp_path, column, value, ours):
    names = names_of("d")
    values = values_of(names, 3)
    values[:, names.index(column)] = value
    folder = folder_of(tmp_path / "x", lines_of(names, values))
    import_folder(folder, tmp_path / "run")
    found = Trajectory.load(tmp_path / "run").defects
    assert ours <= set(found)
    assert column in found[min(ours)]


def test_a_probe_file_must_be_what_was_watched(shared_data, tmp_path):
    names = names_of("a")
    values = values_of(names, 3, prompts=499)
    folder = folder_of(tmp_path / "x", lines_of(names, values), values)
    file = shared_data / "hh" / "probes_train.jsonl"
    with pytest.raises(BadInput, match=r"500 prompts, and .* 499"):
        import_folder(folder, tmp_path / "run", probes=file)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "method", "model"),
    [
        ("prob_pythia410m_dpo", "dpo", "pythia-410m"),
        ("verifyargmax_pythia1b_dpo_ep10_chosen", "dpo", "pythia-1b"),
        ("extend_sft_qwen18_observe", "extend-sft", "Qwen1.5-1.8B"),
        ("baseline_sft_qwen05_ep8", "sft", "Qwen1.5-0.5B"),
        ("test", None, None),
    ],
)
def test_guesses_from_a_name_are_marked(tmp_path, name, method, model):
    names = names_of("e")
    folder = folder_of(tmp_path / name, lines_of(names, values_of(names, 3)))
    (run,) = import_folder(folder, tmp_path / "run").runs
    assert (run.method, run.model) == (method, model)
    info = Trajectory.load(run.run).run.info
    assert info["guessed"] == [] if method is None else ["method", "model"]
    assert info["step_unit"] == "evaluation"


@pytest.mark.parametrize("size", [50304, 151936])
def test_the_vocabulary_is_found_by_the_size_of_the_norms(tmp_path, size):
    names = names_of("d")
    values = values_of(names, 3)
    at = names.index("chosen_A_o")
    square = np.random.default_rng(0).uniform(0.1, 0.5, (3, COUNT))
    for index, name in enumerate(names):
        if name.endswith("_A_o"):
            values[:, index] = np.sqrt(size - 2 + size * square)
    folder = folder_of(tmp_path / "unnamed", lines_of(names, values), values)
    (told_run,) = import_folder(folder, tmp_path / "run").runs
    run = Trajectory.load(told_run.run)
    assert run.values("p_norm2", "chosen") == pytest.approx(square, abs=1e-9)
    assert np.allclose(values[:, at], np.sqrt(size - 2 + size * square))
    wrong = folder_of(tmp_path / "pythia_or_qwen", lines_of(names, values), values)
    wrong = wrong.rename(tmp_path / ("qwen" if size == 50304 else "pythia"))
    (told_run,) = import_folder(wrong, tmp_path / "wrong").runs
    assert np.isnan(Trajectory.load(told_run.run).columns["p_norm2"]).all()


def test_the_command_tells_what_it_found(tmp_path, capsys):
    names = names_of("b")
    values = values_of(names, 4)
    folder = folder_of(tmp_path / "pythia1b_dpo", lines_of(names, values), values)
    out = tmp_path / "runs" / "one"
    assert main(["import", str(folder), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "layout b: 4 observations, 6 prompts, 12 kinds" in said
    ours = [line for line in said.splitlines() if str(tmp_path) not in line]
    assert max(len(line) for line in ours) <= 88
    words = ["import", str(folder), "--out", str(out), "--json"]
    assert main(words) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["runs"][0]["lines"] == [0, 1, 2, 3]
    assert not math.isnan(found["runs"][0]["observations"])
