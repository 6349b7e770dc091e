"""What the trainer refuses: one line, before data or model are read, no folder."""

import pytest
from transformers import Trainer

from learndyn.cli import main
from learndyn.errors import BadInput
from learndyn.train.recipes import check_trainer
from learndyn.train.session import refusals
from learndyn.train.settings import ForceSettings, RunConfig, WatchConfig


REFUSED = {
    "bf16 where there is none": (["--bf16", "true"], "bf16"),
    "optimizer": (["--optim", "adamm"], "adamm"),
    "schedule": (["--lr_scheduler_type", "cosin"], "cosin"),
    "schedule without its setting": (
        ["--lr_scheduler_type", "cosine_with_min_lr"],
        "min_lr",
    ),
    "loss": (["--loss_type", "sigmoyd"], "Did you mean sigmoid"),
    "tracker": (["--report_to", "wandbb"], "wandbb"),
    "best model that is not saved": (["--load_best_model_at_end", "true"], "strategy"),
    "save strategy": (["--save_strategy", "sometimes"], "sometimes"),
    "losses and weights": (["--loss_weights", "[1.0, 2.0]"], "loss_weights"),
    "number": (["--beta", "-1"], "beta is -1: give a finite number"),
    "no forces": (["--forces", "0"], "--forces 0: give 1 or more"),
    "forces on no prompts": (
        ["--forces", "1", "--forces-prompts", "0"],
        "--forces-prompts 0: give 1 or more",
    ),
    "no tokens": (["--max-length", "0"], "--max-length 0: give 1 token or more"),
    "stage that there is not": (
        ["--sft.optim", "sgd"],
        "this run is dpo: write --optim",
    ),
    "kinds of another method": (["--kinds", "chosen"], "--kinds chosen says what sft"),
}


def run(tmp_path, *words: str, method: str = "dpo") -> list[str]:
    """A run of files that do not exist: what is refused, is refused before them."""
    where = ["--model", "no-model", "--data", "no-data.jsonl"]
    return ["run", method, *where, "--out", str(tmp_path / "r"), *words]


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_trainer_refuses_is_one_line_and_leaves_nothing(
    tmp_path, capsys, case
):
    words, message = REFUSED[case]
    cpu = [] if "bf16" in words[0] else ["--use_cpu", "true"]
    assert main(run(tmp_path, *words, *cpu)) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert "Traceback" not in printed.err
    assert list(tmp_path.iterdir()) == []


def test_a_tracker_that_is_not_installed_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "transformers.integrations.integration_utils.is_wandb_available", lambda: False
    )
    assert main(run(tmp_path, "--report_to", "wandb", "--use_cpu", "true")) == 2
    message = capsys.readouterr().err
    assert "wandb" in message
    assert "pip install wandb" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_both_stages_of_extend_are_tried_before_the_first(tmp_path, capsys, stage):
    prefix = "sft." if stage == "sft" else ""
    words = ["--use_cpu", "true", "--sft.use_cpu", "true", f"--{prefix}optim", "adamm"]
    assert main(run(tmp_path, *words, method="extend")) == 2
    name = {"sft": "SFTConfig", "dpo": "DPOConfig"}[stage]
    assert f"{name} refuses its settings" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["none", "None", "[]", ["none"], []])
def test_no_tracker_may_be_asked_for(tmp_path, text):
    fields = {"report_to": text, "use_cpu": True}
    config = RunConfig(method="dpo", out=tmp_path / "r", trainer=fields)
    assert check_trainer(config).report_to == []


def test_a_loss_of_sft_is_none_of_dpo(tmp_path):
    fields = {"loss_type": "dft", "use_cpu": True}
    assert check_trainer(RunConfig(method="sft", out=tmp_path, trainer=fields))
    with pytest.raises(BadInput, match="DPOConfig has no loss_type 'dft'"):
        check_trainer(RunConfig(method="dpo", out=tmp_path, trainer=fields))


def test_an_optimizer_that_looks_at_the_model_is_left_to_the_trainer(
    tmp_path, monkeypatch
):
    def needs_model(args, model=None):
        raise ValueError("You need to pass a `model` to initialize a GaLore optimizer.")

    monkeypatch.setattr(Trainer, "get_optimizer_cls_and_kwargs", needs_model)
    config = RunConfig(method="dpo", out=tmp_path / "r", trainer={"use_cpu": True})
    assert check_trainer(config).use_cpu


def test_an_error_of_the_machine_is_no_refusal():
    with pytest.raises(RuntimeError, match="out of memory"), refusals("DPOTrainer"):
        raise RuntimeError("out of memory")
    told = pytest.raises(BadInput, match="DPOTrainer refuses its settings: no such")
    with told, refusals("DPOTrainer"):
        raise ValueError("no such loss")


def test_forces_and_their_prompts_are_said_in_one_place():
    forces = ForceSettings(2, prompts=4)
    assert WatchConfig(forces=forces).force_settings == forces
    with pytest.raises(BadInput, match=r"give ForceSettings\(prompts=\)"):
        WatchConfig(forces=forces, forces_prompts=8)
