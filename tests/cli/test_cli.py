"""The command line: exit statuses, what goes where, and every bad input named."""

import errno
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from models import byte_tokenizer, save_tiny
from runs import data
from small_tokenizers import CHATML
from synthetic import write_run

from learndyn.cli import main
from learndyn.probes.probe import ProbeSet
from learndyn.record.run_directory import RunDirectory
from learndyn.record.trajectory import Trajectory


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tiny models are quickest on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


QUICK = ["--max_steps", "2", "--use_cpu", "true", "--disable_tqdm", "true"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a model, a data file, a probe file and one finished DPO run."""
    folder = tmp_path_factory.mktemp("cli")
    save_tiny(folder / "model")
    write_rows(folder / "data.jsonl", rows())
    source = str(folder / "data.jsonl")
    probes = ["--prompts", "2", "--out", str(folder / "probes.parquet")]
    assert main(["probes", "build", source, *probes]) == 0
    assert main([*dpo(folder, folder / "run"), "--learning_rate", "1e-3"]) == 0
    return folder


def rows() -> list[dict[str, str]]:
    """Six rows in the wide format."""
    return [{"prompt": row.prompt, **row.responses} for row in data(6).rows]


def write_rows(path: Path, records: list[dict]) -> str:
    """Write JSONL; returns the path as text."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def dpo(world: Path, out: Path, **changes: str) -> list[str]:
    """Arguments of a small DPO run; a change replaces a flag's value."""
    flags = {
        "--model": str(world / "model"),
        "--data": str(world / "data.jsonl"),
        "--prompts": "2",
        "--every": "1",
        "--out": str(out),
    } | {f"--{name}": value for name, value in changes.items()}
    return ["run", "dpo", *(word for flag in flags.items() for word in flag), *QUICK]


def answer(capsys, arguments: list[str]) -> dict:
    """The one JSON object that a command prints, and nothing else."""
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert isinstance(value, dict)
    return value


def refused(capsys, arguments: list[str]) -> str:
    """The message of a command that ends with status 2 and prints no answer."""
    capsys.readouterr()
    try:
        status = main(arguments)
    except SystemExit as end:  # argparse's own errors
        status = end.code
    printed = capsys.readouterr()
    assert (status, printed.out) == (2, "")
    assert "Traceback" not in printed.err
    return printed.err


def test_probes_are_built_then_checked(tmp_path, world, capsys):
    out = tmp_path / "new" / "p.parquet"
    build = ["probes", "build", str(world / "data.jsonl"), "--out", str(out)]
    built = answer(capsys, [*build, "--prompts", "3", "--kinds", "chosen", "rejected"])
    assert (built["prompts"], built["probes"]) == (3, 6)
    assert built["kinds"] == ["chosen", "rejected"]
    assert "exists. Choose another --out" in refused(capsys, build)
    assert main([*build, "--overwrite"]) == 0
    checked = answer(capsys, ["probes", "check", str(out)])
    assert checked
    counted = ["probes", "check", str(out), "--tokenizer", str(world / "model")]
    assert answer(capsys, counted) != checked
    assert main(counted) == 0
    assert "chosen" in capsys.readouterr().out


def test_a_run_trains_on_the_rows_that_a_probe_set_was_drawn_from(
    tmp_path, world, capsys
):
    """`--limit` draws rows at random, by `--seed`, and both manifests keep which."""
    out, drawn = tmp_path / "p.parquet", ["--limit", "5", "--seed", "1"]
    build = ["probes", "build", str(world / "data.jsonl"), "--out", str(out)]
    answer(capsys, [*build, *drawn])
    (source,) = ProbeSet.load(out).manifest["sources"]
    assert (source["rows"], source["sample"]["limit"]) == (5, 5)
    flags = [*dpo(world, tmp_path / "r", probes=str(out)), *drawn]
    answer(capsys, flags)
    run = Trajectory.load(tmp_path / "r")
    assert run.run.info.data_sample == source["sample"]
    assert run.training.rows == 5
    assert run.training.prompts.all()
    (tmp_path / "r" / "model").rename(tmp_path / "gone")  # as of a run that was killed
    message = refused(capsys, [*flags[:-1], "2", "--resume"])
    assert "other rows than the 5" in message


def test_a_run_answers_with_its_folder_steps_and_report(tmp_path, world, capsys):
    told = answer(capsys, dpo(world, tmp_path / "r"))
    (run,) = told["runs"]
    assert run["run"] == str(tmp_path / "r")
    assert run["steps"] == [0, 1, 2]
    assert Path(run["report"]).is_file()


@pytest.mark.usefixtures("no_page")
def test_a_config_replays_the_run_and_the_command_line_overrides_it(
    tmp_path, world, capsys
):
    config = ["run", "--config", str(world / "run" / "config.yaml")]
    answer(capsys, [*config, "--out", str(tmp_path / "again")])
    first, again = (
        RunDirectory.open(world / "run"),
        RunDirectory.open(tmp_path / "again"),
    )
    for step in (0, 1, 2):
        a, b = first.read_observation(step), again.read_observation(step)
        np.testing.assert_array_equal(a.logp, b.logp)
    # Also where a flag of TRL's comes last: its value is no method.
    other = [*config, "--out", str(tmp_path / "other"), "--learning_rate", "0.0"]
    answer(capsys, other)
    still = RunDirectory.open(tmp_path / "other")
    np.testing.assert_allclose(
        still.read_observation(0).logp, still.read_observation(2).logp, atol=1e-6
    )


@pytest.mark.usefixtures("no_page")
def test_the_method_may_stand_anywhere(tmp_path, world, capsys):
    _, method, *flags = dpo(world, tmp_path / "r")
    (run,) = answer(capsys, ["run", *flags, method])["runs"]
    assert RunDirectory.open(run["run"]).info["method"] == "dpo"


@pytest.mark.usefixtures("no_page")
def test_sft_trains_on_the_kinds_asked_for(tmp_path, world, capsys):
    _, _, *flags = dpo(world, tmp_path / "r")
    answer(capsys, ["run", "sft", *flags, "--kinds", "rejected", "chosen_semantic"])
    info = RunDirectory.open(tmp_path / "r").info
    assert (info["method"], info["kinds"]) == ("sft", ["rejected", "chosen_semantic"])


@pytest.mark.usefixtures("no_page")
def test_extend_gives_each_stage_its_own_settings(tmp_path, world, capsys):
    _, _, *flags = dpo(world, tmp_path / "x")
    stage_one = ["--sft.max_steps", "3", "--sft.use_cpu=true"]
    told = answer(capsys, ["run", "extend", *flags, *stage_one])
    assert [run["steps"] for run in told["runs"]] == [[0, 1, 2, 3], [0, 1, 2]]
    assert [Path(run["run"]).name for run in told["runs"]] == ["sft", "dpo"]


@pytest.mark.usefixtures("no_page")
def test_extend_does_its_first_stage_again_if_its_model_was_not_saved(
    tmp_path, world, capsys
):
    import shutil

    _, _, *flags = dpo(world, tmp_path / "x")
    extend = ["run", "extend", *flags, "--sft.max_steps", "1", "--sft.use_cpu=true"]
    answer(capsys, extend)
    shutil.rmtree(tmp_path / "x" / "sft" / "model")
    shutil.rmtree(tmp_path / "x" / "dpo")
    answer(capsys, [*extend, "--resume"])
    assert (tmp_path / "x" / "sft" / "model" / "config.json").is_file()


@pytest.mark.usefixtures("no_page")
def test_the_authors_spellings_are_read_and_renamed(tmp_path, world, capsys):
    wide = [
        {
            "prompt": row["prompt"],
            "chosen": row["chosen"],
            "chosen_gptsemantic": row["chosen_semantic"],
            "reject_gptsemantic": row["rejected"] + " Really.",
            "rejected": row["rejected"],
            "irr_train": " Some other thing.",
        }
        for row in rows()[:4]
    ]
    source = write_rows(tmp_path / "wide.jsonl", wide)
    answer(capsys, dpo(world, tmp_path / "r", data=source))
    table = RunDirectory.open(tmp_path / "r").read_probes()
    kinds = set(table["kind"].to_pylist())
    assert {"chosen_semantic", "rejected_semantic", "irrelevant_train"} <= kinds
    assert not any("gpt" in kind or kind.startswith("irr_") for kind in kinds)


@pytest.mark.usefixtures("no_page")
def test_a_taken_folder_is_continued_or_replaced_only_if_asked(tmp_path, world, capsys):
    out = tmp_path / "r"
    answer(capsys, dpo(world, out))
    assert "holds a run already" in refused(capsys, dpo(world, out))
    longer = [*dpo(world, out), "--max_steps", "4", "--resume"]
    assert "max_steps: began with '2', now '4'" in refused(capsys, longer)
    (run,) = answer(capsys, [*dpo(world, out), "--resume"])["runs"]
    assert run["steps"] == [0, 1, 2]
    (run,) = answer(capsys, [*dpo(world, out), "--overwrite"])["runs"]
    assert run["steps"] == [0, 1, 2]
    assert [f.name for f in tmp_path.iterdir()] == ["r"]


def test_a_saved_model_scored_offline_equals_the_online_observation(
    tmp_path, world, capsys
):
    online = RunDirectory.open(world / "run").read_observation(2)
    out = tmp_path / "scores.parquet"
    model = str(world / "run" / "model")
    score = ["score", model, "--run", str(world / "run"), "--out", str(out)]
    told = answer(capsys, score)
    offline = pq.read_table(out)
    gap = np.abs(offline["logp"].to_numpy() - online.logp) / online.n_tokens
    assert gap.max() < 2e-5
    start = np.concatenate(offline["token_start_logp"].to_pylist())
    np.testing.assert_allclose(start, online.token_start_logp, atol=2e-4)
    assert "exists. Choose another --out" in refused(capsys, score)
    by_text = answer(
        capsys, ["score", model, "--probes", str(world / "probes.parquet")]
    )
    assert by_text["kinds"].keys() == told["kinds"].keys()
    for kind, means in told["kinds"].items():
        assert by_text["kinds"][kind]["logp_mean"] == pytest.approx(
            means["logp_mean"], abs=1e-3
        )


def test_scores_for_people_are_a_table(world, capsys):
    files = ["--probes", str(world / "probes.parquet")]
    assert main(["score", str(world / "model"), *files]) == 0
    assert "mean nats per response" in capsys.readouterr().out


def test_reports_of_one_and_of_two_runs(tmp_path, world, capsys):
    one = answer(capsys, ["report", str(world / "run")])
    assert Path(one["report"]) == world / "run" / "report.html"
    other = write_run(tmp_path / "other")
    both = ["report", str(world / "run"), str(other), "--out", str(tmp_path / "page")]
    page = Path(answer(capsys, both)["report"])
    assert page.parent == tmp_path / "page"
    assert page.stat().st_size > 1000
    refused(capsys, both[:-2])  # of two runs, neither folder is the page's own


def test_as_a_program_the_answer_alone_is_on_standard_output(tmp_path, world):
    command = [sys.executable, "-m", "learndyn", *dpo(world, tmp_path / "r"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["runs"][0]["steps"] == [0, 1, 2]
    bad = [sys.executable, "-m", "learndyn", "report", str(tmp_path), "--json"]
    wrong = subprocess.run(bad, capture_output=True, text=True, timeout=300)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("learndyn: ")
    assert "Traceback" not in wrong.stderr


def change(index: int, **fields: object) -> list[dict]:
    """The rows with one of them changed; None removes a field."""
    changed = [dict(row) for row in rows()]
    changed[index].update(fields)
    return changed


BAD_ROWS = {
    "empty prompt": (change(1, prompt=" "), "bad.jsonl:2, field 'prompt'"),
    "empty response": (change(2, rejected=""), "bad.jsonl:3, field 'rejected'"),
    "wrong type": (change(0, chosen=5), "bad.jsonl:1, field 'chosen': int where text"),
    "missing column": (
        [{"question": "a", "reply": "b"}],
        "has the columns question, reply. Needed: prompt",
    ),
    "no rejected": (
        [{"prompt": f"a{i}", "chosen": f"b{i}"} for i in range(4)],
        "have no 'rejected' to train on",
    ),
    "repeated ids": (
        [{**row, "prompt_id": "same"} for row in rows()],
        "'same' is the id of",
    ),
    "two prompts": (
        [
            {
                "chosen": f"\n\nHuman: {a}\n\nAssistant: yes",
                "rejected": f"\n\nHuman: {b}\n\nAssistant: no",
            }
            for a, b in (("one", "one"), ("two", "three"))
        ],
        "bad.jsonl:2, chosen and rejected answer different prompts",
    ),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_rows_are_named_and_nothing_is_written(tmp_path, world, capsys, case):
    records, words = BAD_ROWS[case]
    source = write_rows(tmp_path / "bad.jsonl", records)
    message = refused(capsys, dpo(world, tmp_path / "r", data=source))
    assert words in message
    assert "bad.jsonl" in message
    assert not (tmp_path / "r").exists()


def test_an_unreadable_file_and_another_encoding_are_named(tmp_path, world, capsys):
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes(
        '{"prompt": "é", "chosen": "a", "rejected": "b"}'.encode("latin1")
    )
    for source, words in (
        (latin, "is not UTF-8: byte 0xe9"),
        (tmp_path / "absent.jsonl", "is neither a file nor a folder"),
    ):
        for command in (
            dpo(world, tmp_path / "r", data=str(source)),
            ["probes", "build", str(source), "--out", str(tmp_path / "p.parquet")],
            ["probes", "check", str(source)],
            ["score", str(world / "model"), "--probes", str(source)],
        ):
            assert words in refused(capsys, command)
    assert [file.name for file in tmp_path.iterdir()] == ["latin.jsonl"]


@pytest.mark.usefixtures("no_page")
def test_a_response_that_does_not_fit_is_cut_and_counted_or_refused(
    tmp_path, world, capsys
):
    long = write_rows(tmp_path / "long.jsonl", change(0, chosen=" word" * 600))
    cut = ["--max-length", "64", "--max-prompt-length", "32"]
    with pytest.warns(UserWarning, match="1 of 6 chosen training texts are cut"):
        answer(capsys, [*dpo(world, tmp_path / "r", data=long, prompts="6"), *cut])
    table = RunDirectory.open(tmp_path / "r").read_probes()
    assert sum(table["truncated"].to_pylist()) >= 1
    whole = ["score", str(world / "model"), "--probes", long, "--max-length", "9999"]
    assert "512" in refused(capsys, whole)  # the model's context
    assert "leaves no token for the" in refused(
        capsys, [*dpo(world, tmp_path / "s"), *cut[:2], "--max-prompt-length", "64"]
    )


def test_a_run_of_another_tokenizer_is_not_scored(tmp_path, world, capsys):
    save_tiny(tmp_path / "m")
    byte_tokenizer(262).save_pretrained(tmp_path / "m")
    score = ["score", str(tmp_path / "m"), "--run", str(world / "run")]
    assert "tokenized by another tokenizer" in refused(capsys, score)
    for file in tmp_path.glob("m/token*"):
        file.unlink()
    assert answer(capsys, score)  # weights alone are taken at their word


@pytest.mark.usefixtures("no_page")
def test_a_model_without_padding_token_trains_and_scores(tmp_path, world, capsys):
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = None
    save_tiny(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    answer(capsys, dpo(world, tmp_path / "r", model=str(tmp_path / "m")))
    model = str(tmp_path / "r" / "model")
    assert answer(capsys, ["score", model, "--run", str(tmp_path / "r")])


def test_what_is_no_causal_language_model_is_named(tmp_path, world, capsys):
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 8, "d_ff": 8, "num_layers": 1, "num_heads": 1, "d_kv": 8}
    T5ForConditionalGeneration(T5Config(vocab_size=320, **sizes)).save_pretrained(
        tmp_path / "t5"
    )
    byte_tokenizer().save_pretrained(tmp_path / "t5")
    probes = ["--probes", str(world / "probes.parquet")]
    for command in (
        ["score", str(tmp_path / "t5"), *probes],
        dpo(world, tmp_path / "r", model=str(tmp_path / "t5")),
    ):
        assert "is not a causal language model" in refused(capsys, command)
    assert "cannot load" in refused(capsys, ["score", str(tmp_path / "no"), *probes])


BAD_SETTINGS = {
    "unknown field": (["--learning_rat", "1"], "Did you mean --learning_rate"),
    "abbreviation": (["--lr", "1e-5"], "no flag --lr. Did you mean --learning_rate?"),
    "abbreviation of ours": (["--promp", "3"], "no flag --promp. Did you mean --prom"),
    "typing error of ours": (["--loara-rank", "2"], "Did you mean --lora-rank"),
    "unlike anything": (["--zzzz", "2"], "has no flag --zzzz. See `learndyn run"),
    "one of two batches": (
        ["--batch-size", "2"],
        "Did you mean --per_device_train_batch_size (training) or --score-batch-size",
    ),
    "of the first stage": (["--sft.beat", "1"], "no flag --beat. Did you mean --beta"),
    "no value": (["--beta"], "--beta needs a value"),
    "no value before a flag": (["--beta", "--lora"], "--beta needs a value"),
    "a word": (["soon"], "'soon' is neither a setting nor a method"),
    "two methods": (["sft"], "'sft' is neither a setting"),
    "wrong number": (["--beta", "much"], "beta needs a number, not 'much'"),
    "fixed field": (["--output_dir", "x"], "output_dir cannot be set"),
    "unknown kind": (["--kinds", "nicest"], ""),
    "no schedule": (["--every", "0"], "give a number of updates >= 1"),
    "no word of a schedule": (
        ["--every", "often"],
        "is neither a number of updates nor log",
    ),
    "no batch": (["--score-batch-size", "0"], "give 1 or more, the number of seq"),
    "too many prompts": (["--prompts", "7"], "7 prompts were asked for"),
    "unknown preset": (["--preset", "best"], "invalid choice"),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_a_bad_setting_is_named_and_nothing_is_written(tmp_path, world, capsys, case):
    words, message = BAD_SETTINGS[case]
    command = [*dpo(world, tmp_path / "r"), *words]
    if case == "unknown kind":
        command[1], message = "sft", "have no 'nicest' to train on"
    if case == "no value before a flag":
        command[2:2] = command[-2:]
        del command[-2:]
    assert message in refused(capsys, command)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("left_out", ["--model", "--data", "--out"])
def test_a_run_says_what_it_still_needs(tmp_path, world, capsys, left_out):
    command = dpo(world, tmp_path / "r")
    at = command.index(left_out)
    del command[at : at + 2]
    message = refused(capsys, command)
    assert f"a run needs {left_out[2:]}" in message


def test_a_run_without_a_method_says_so(tmp_path, world, capsys):
    command = dpo(world, tmp_path / "r")
    del command[1]
    assert "a run needs method" in refused(capsys, command)


BAD_CONFIGS = {
    "learning_rate: 1": "unknown key 'learning_rate'",
    "modle: x": "Did you mean model",
    "1: x": "unknown key '1'",
    "- a": "must hold keys and values",
    "a: [": "cannot read the config",
    "prompts: many": "prompts must be int | None, not 'many'",
    "seed: true": "seed must be int, not True",
    "lora: 'yes'": "lora must be bool",
    "kinds: chosen": "kinds must be list[str] | None, not 'chosen'",
    "empty: maybe": "empty must be",
    "trainer: 5": "trainer must be",
    "trainer: {beta: much}": "beta needs a number",
    "method: ppo": "method 'ppo' is unknown",
}


@pytest.mark.parametrize("text", BAD_CONFIGS)
def test_a_bad_config_is_named_with_its_key(tmp_path, world, capsys, text):
    config = tmp_path / "c.yaml"
    config.write_text(text)
    command = [*dpo(world, tmp_path / "r"), "--config", str(config)]
    if text.startswith("method"):
        del command[1]
    if text.startswith("prompts"):
        at = command.index("--prompts")
        del command[at : at + 2]
    assert BAD_CONFIGS[text] in refused(capsys, command)
    assert not (tmp_path / "r").exists()


def test_what_a_config_keeps_is_yaml_of_plain_settings(world):
    kept = yaml.safe_load((world / "run" / "config.yaml").read_text())
    assert kept["method"] == "dpo"
    assert kept["trainer"]["learning_rate"] in ("1e-3", 1e-3)


@pytest.mark.parametrize(
    "command",
    [
        ["report", "x", "--jsno"],
        ["report", "x", "--no"],
        ["score", "m", "--prob", "p"],
        ["probes", "build", "d", "--out", "o", "--promp", "3"],
        ["probes", "check", "f", "--tok", "t"],
        ["demo", "--over"],
        ["--vers"],
        ["nonsense"],
        [],
        ["probes"],
    ],
    ids=" ".join,
)
def test_unknown_and_abbreviated_arguments_end_with_status_2(capsys, command):
    refused(capsys, command)


def test_which_probes_to_score_must_be_told_once(world, capsys):
    both = ["--run", str(world / "run"), "--probes", str(world / "probes.parquet")]
    for some in ([], both):
        message = refused(capsys, ["score", str(world / "model"), *some])
        assert "give --probes FILE or --run RUN, not both" in message


def test_what_is_no_run_is_named(tmp_path, world, capsys):
    for command in (
        ["report", str(tmp_path)],
        ["score", str(world / "model"), "--run", str(tmp_path)],
    ):
        assert "has no run.json" in refused(capsys, command)


def test_a_full_disk_ends_with_status_1_and_what_to_do(
    tmp_path, world, capsys, monkeypatch
):
    def fill(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq, "write_table", fill)
    assert main(dpo(world, tmp_path / "r")) == 1
    message = capsys.readouterr().err
    assert "no space left on the disk" in message
    assert "--resume" in message
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_ends_with_status_1_and_how_to_go_on(
    tmp_path, world, capsys, monkeypatch
):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("learndyn.train.launch.sft", interrupt)
        patch.setattr("learndyn.train.launch.dpo", interrupt)
        assert main(dpo(world, tmp_path / "r")) == 1
        assert "continue this run with --resume" in capsys.readouterr().err
        patch.setattr("learndyn.show.report.report.write_report", interrupt)
        assert main(["report", str(world / "run")]) == 1
        assert capsys.readouterr().err == "learndyn: stopped\n"


def test_help_shows_the_methods(capsys):
    with pytest.raises(SystemExit) as end:
        main(["run", "--help"])
    assert end.value.code == 0
    assert "run {sft,dpo,extend}" in capsys.readouterr().out


def test_a_folder_without_tokenizer_is_named_and_none_is_made_up(
    tmp_path, world, capsys
):
    save_tiny(tmp_path / "m")
    for file in tmp_path.glob("m/token*"):
        file.unlink()
    command = dpo(world, tmp_path / "r", model=str(tmp_path / "m"))
    assert "holds no tokenizer" in refused(capsys, command)


SECRET = "hf_a1b2c3d4e5f6"


@pytest.mark.parametrize("given", [["--hub_token", SECRET], [f"--hub-token={SECRET}"]])
def test_a_secret_is_used_and_never_written(tmp_path, world, monkeypatch, given):
    from learndyn.train import launch

    seen = []
    real = launch.dpo

    def watched(*args, **more):
        seen.append(os.environ.get("HF_TOKEN"))
        return real(*args, **more)

    monkeypatch.setattr(launch, "dpo", watched)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    out = tmp_path / "r"
    command = [*dpo(world, out), "--save_steps", "1", *given]
    monkeypatch.setattr(sys, "argv", ["learndyn", *command])
    assert main(command) == 0
    assert seen == [SECRET]
    assert "HF_TOKEN" not in os.environ
    files = [file for file in out.rglob("*") if file.is_file()]
    assert {"config.yaml", "run.json", "report.html"} <= {file.name for file in files}
    # Every file also as a zip's members: training_args.bin may be compressed.
    for file in files:
        assert SECRET.encode() not in file.read_bytes(), file
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as whole:
                for name in whole.namelist():
                    assert SECRET.encode() not in whole.read(name), (file, name)
    assert "(hidden)" in " ".join(RunDirectory.open(out).info["command"])


def test_a_hidden_secret_must_be_given_again(tmp_path, world, capsys):
    config = tmp_path / "c.yaml"
    config.write_text("trainer: {hub_token: (hidden), eos_token: x}\n")
    command = [*dpo(world, tmp_path / "r"), "--config", str(config)]
    assert "Give it again with --hub_token VALUE" in refused(capsys, command)


def test_what_a_name_says_decides_what_is_hidden():
    from learndyn.train.settings import _is_secret, _without_secrets, redacted

    for name in ("hub_token", "api-key", "sft.hub_token", "password", "client_secret"):
        assert _is_secret(name)
    for name in ("eos_token", "sft.pad_token", "max_new_tokens_per_step", "keys_of"):
        assert not _is_secret(name)
    nested = {"a": {"wandb_key": "s", "lr": 1}, "token": None}
    assert _without_secrets(nested) == {
        "a": {"wandb_key": "(hidden)", "lr": 1},
        "token": None,
    }
    words = ["run", "--token", "s", "--x", "y", "--api_key=s", "--sft.hub-token", "s"]
    assert "s" not in redacted(words)
    assert "--api_key=s" not in redacted(words)
    assert redacted(words)[3:5] == ["--x", "y"]


@pytest.mark.usefixtures("no_page")
def test_a_bfloat16_run_is_scored_offline_in_its_own_precision(tmp_path, world, capsys):
    out = tmp_path / "r"
    answer(capsys, [*dpo(world, out), "--dtype", "bfloat16"])
    run = RunDirectory.open(out)
    assert run.info["dtype"] == "bfloat16"
    online = run.read_observation(2).logp
    score = ["score", str(out / "model"), "--run", str(out)]
    answer(capsys, [*score, "--out", str(tmp_path / "own.parquet")])
    answer(
        capsys, [*score, "--dtype", "float32", "--out", str(tmp_path / "wide.parquet")]
    )
    own, wide = (
        pq.read_table(tmp_path / f"{name}.parquet")["logp"].to_numpy()
        for name in ("own", "wide")
    )
    np.testing.assert_allclose(own, online, rtol=0, atol=1e-4)
    assert np.abs(wide - online).max() > 1e-3


@pytest.mark.usefixtures("no_page")
def test_a_finished_run_from_before_there_were_routes_is_told_of(
    tmp_path, world, capsys, monkeypatch
):
    old = RunDirectory.open(world / "run")
    info = {k: v for k, v in old.info.items() if k != "route"}
    old = RunDirectory(old.path, info)
    monkeypatch.setattr("learndyn.train.launch.launch", lambda *_, **__: [old])
    (run,) = answer(capsys, dpo(world, tmp_path / "r"))["runs"]
    assert run["steps"] == old.steps
    assert run["route"] is None


@pytest.mark.parametrize("job", ["run", "score"])
def test_help_tells_the_dtype_of_weights_from_the_precision_of_scoring(job, capsys):
    with pytest.raises(SystemExit):
        main([job, "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "precision in which the weights are loaded; bfloat16 rounds the" in told
    assert "score approximately, computing in bfloat16" in told


def test_frozen_token_ids_are_not_cut_anew(world, capsys):
    score = ["score", str(world / "model"), "--run", str(world / "run")]
    message = refused(capsys, [*score, "--max-length", "32"])
    assert "--max-length 32 cannot be used with --run" in message


def test_score_refuses_before_it_scores(tmp_path, world, capsys, monkeypatch):
    monkeypatch.setattr("learndyn.measure.checkpoint.load_model", None)
    score = ["score", str(world / "model"), "--run", str(world / "run")]
    folder = [*score, "--out", str(tmp_path), "--overwrite"]
    assert "is a folder. Name the Parquet file" in refused(capsys, folder)
    assert "it must be at least 1" in refused(
        capsys, [*score, "--score-batch-size", "0"]
    )


def test_numbers_that_json_cannot_hold_are_null(tmp_path, world, capsys):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(world / "model")
    with torch.no_grad():
        model.transformer.ln_f.weight.fill_(torch.nan)
    model.save_pretrained(tmp_path / "m")
    byte_tokenizer().save_pretrained(tmp_path / "m")
    capsys.readouterr()
    probes = ["--probes", str(world / "probes.parquet"), "--json"]
    assert main(["score", str(tmp_path / "m"), *probes]) == 0
    printed = capsys.readouterr().out
    assert "NaN" not in printed
    assert json.loads(printed)["kinds"]["chosen"]["logp_mean"] is None


def test_a_page_that_is_not_ours_is_replaced_only_if_asked(tmp_path, world, capsys):
    page = tmp_path / "report.html"
    page.write_text("<html>mine</html>")
    report = ["report", str(world / "run"), "--out", str(tmp_path)]
    assert "was not written by learndyn" in refused(capsys, report)
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    assert page.read_text() == "<html>mine</html>"
    answer(capsys, [*report, "--overwrite"])
    answer(capsys, report)  # ours is replaced unasked


@pytest.mark.usefixtures("no_page")
def test_the_default_number_of_prompts_is_as_many_as_there_are(tmp_path, world, capsys):
    test = [{k: f"{v} (held out)" for k, v in row.items()} for row in rows()[:2]]
    source = write_rows(tmp_path / "test.jsonl", test)
    command = dpo(world, tmp_path / "r", **{"test-data": source})
    at = command.index("--prompts")
    answer(capsys, [*command[:at], *command[at + 2 :]])
    counts = RunDirectory.open(tmp_path / "r").info["probe_manifest"]["prompts"]
    assert counts == {"train": 6, "test": 2}


def chat_rows() -> list[dict]:
    """Preference rows as chat messages."""
    return [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "chosen": [{"role": "assistant", "content": row["chosen"]}],
            "rejected": [{"role": "assistant", "content": row["rejected"]}],
        }
        for row in rows()
    ]


@pytest.mark.usefixtures("no_page")
def test_chat_probes_are_read_with_the_models_template(tmp_path, world, capsys):
    source = write_rows(tmp_path / "c.jsonl", chat_rows())
    model = save_tiny(tmp_path / "m")
    check = ["probes", "check", source]
    assert "--tokenizer MODEL" in refused(capsys, check)
    assert "the one given has none" in refused(
        capsys, ["score", model, "--probes", source]
    )
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(model)
    assert answer(capsys, [*check, "--tokenizer", model])
    assert answer(capsys, ["score", model, "--probes", source])["probes"] == 12
    run = dpo(world, tmp_path / "r", model=model, data=source, probes=source)
    answer(capsys, run)
    table = RunDirectory.open(tmp_path / "r").read_probes()
    assert all(table["rendered"].to_pylist())


@pytest.mark.usefixtures("no_page")
def test_the_probes_of_a_run_serve_another_run_and_score(tmp_path, world, capsys):
    one = RunDirectory.open(world / "run").info["probe_fingerprint"]
    answer(capsys, dpo(world, tmp_path / "r", probes=str(world / "run")))
    assert RunDirectory.open(tmp_path / "r").info["probe_fingerprint"] == one
    told = answer(
        capsys, ["score", str(world / "model"), "--probes", str(world / "run")]
    )
    assert told["fingerprint"] == one
