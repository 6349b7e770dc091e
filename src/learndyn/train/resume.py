"""Continuing a run: where it stopped, and whether this is the same run."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from transformers import TrainerState, TrainingArguments

from learndyn.errors import BadInput, listed
from learndyn.probes.data import Data
from learndyn.probes.probe import ProbeSet
from learndyn.probes.tokenize import TokenizedProbes
from learndyn.record.run_directory import RunDirectory, is_run
from learndyn.train.schedule import Schedule
from learndyn.train.settings import RunConfig, with_defaults


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint in `folder` with updates still to come, or None.

    The trainer writes `trainer_state.json` last, so a checkpoint cut by a crash has
    none, or half of one. From one of the last update transformers (5.23) goes on for
    one update more, if that is not the end of an epoch.
    """
    # by number: as text checkpoint-900 comes after checkpoint-1000
    for path in sorted(folder.glob("checkpoint-*"), key=step_of, reverse=True):
        try:
            state = json.loads((path / "trainer_state.json").read_text())
        except (OSError, ValueError):
            continue
        if state["global_step"] < state["max_steps"]:
            return path
    return None


def is_finished(out: Path) -> bool:
    """Whether a recipe ran to its end here and saved its model."""
    if not is_run(out):
        return False
    # Both: `finished` is written when training ends, the model is saved after that, and
    # `extend` starts its DPO from the saved model.
    return bool(RunDirectory.open(out).info.finished) and (out / "model").is_dir()


def refuse_other_settings(config: RunConfig, data: Data, probes: ProbeSet) -> None:
    """A run is continued with the settings and the data that it began with.

    Raises:
        BadInput: naming every setting that differs. How many sequences are scored at
            once may differ: it decides no number.
    """
    out = config.out
    path = out / "config.yaml"
    if not path.exists():
        raise BadInput(
            f"cannot continue {out}: it has no config.yaml, so no recipe made it. "
            "Continue it with the script that did."
        )
    # Both through YAML: a path or a tuple must compare as a file gives it back.
    began = _flat(yaml.safe_load(path.read_text(encoding="utf-8")))
    now = _flat(yaml.safe_load(yaml.safe_dump(config.as_config())))
    differ = [
        f"{name}: began with {began.get(name)!r}, now {now.get(name)!r}"
        for name in sorted(set(began) | set(now))
        if began.get(name) != now.get(name) and not _decides_nothing(name)
    ]
    info = RunDirectory.open(out).info
    if info.probe_fingerprint != probes.fingerprint:
        differ.append(
            f"probes: it watched others (fingerprint "
            f"{str(info.probe_fingerprint)[:12]}, these have "
            f"{probes.fingerprint[:12]})"
        )
    content = info.data_sha256
    if content != data.sha256:
        differ.append(
            f"data: their content began as SHA-256 {str(content)[:12]}, now "
            f"{data.sha256[:12]}"
        )
    if info.data_sample != (data.sample and data.sample.to_info()):
        differ.append(
            f"data: it began on other rows than the {len(data.rows)} that --limit and "
            "--seed draw now"
        )
    if differ:
        raise BadInput(
            f"cannot continue {out} with other settings:\n{listed(differ)}\n"
            f"Repeat them (`learndyn run --config {path} --resume`), or choose another "
            "out=."
        )


@dataclass(frozen=True, slots=True)
class Attempt:
    """A training that has begun and not ended."""

    args: TrainingArguments
    batch_size: int | None

    def begins_again(self, args: TrainingArguments, state: TrainerState) -> bool:
        """Whether what begins now is this training once more, in a smaller batch.

        `auto_find_batch_size` does this within one `trainer.train()` when memory runs
        out. A second call of `train` begins with the batch size that the first one
        ended with.
        """
        now, before = state.train_batch_size, self.batch_size
        if args is not self.args or not args.auto_find_batch_size:
            return False
        return now is not None and before is not None and now < before


def reopen(
    out: Path,
    probes: TokenizedProbes,
    limits: dict[str, Any],
    schedule: Schedule,
    precision: str | None = None,
) -> RunDirectory:
    """The run at `out`, to be continued with these probes.

    Raises:
        BadInput: if it watched other probes, tokenized or cut them otherwise, has
            another panel, or was scored in another precision.
    """
    run = RunDirectory.open(out)
    watched = run.info.probe_fingerprint
    if watched != probes.probes.fingerprint:
        raise BadInput(
            f"cannot continue {out}: it watched other probes (fingerprint "
            f"{str(watched)[:12]}, these have {probes.probes.fingerprint[:12]}). Give "
            "the same probes, or choose another out=."
        )
    same_tokenizer(str(run.info.tokenizer_sha256), probes.tokenizer_hash)
    # sorted: the run keeps its own order, and goes on in it whatever the file has now
    if sorted(run.read_probes()["n_tokens"].to_pylist()) != sorted(probes.n_tokens):
        raise BadInput(
            f"cannot continue {out}: its probes were cut to max_length "
            f"{run.info.max_length}, max_prompt_length "
            f"{run.info.max_prompt_length}; now they are cut to "
            f"{limits['max_length']}, {limits['max_prompt_length']}. "
            "Give the same limits, or choose another out=."
        )
    schedule.check_same(run.info.panel, str(out))
    _same_precision(run, precision)
    # all later observations are read as changes since the first, probe by probe
    if run.steps and len(run.read_observation(run.steps[0]).ids) != len(probes):
        raise BadInput(
            f"cannot continue {out}: its first observation, at update {run.steps[0]}, "
            "holds only its panel, so the full one before it was removed. Restore it, "
            "or choose another out=."
        )
    if run.info.every not in (None, schedule.every):
        run.update_info(every=None)  # the whole run has no single schedule any more
    return run


def _same_precision(run: RunDirectory, precision: str | None) -> None:
    """One run is scored in one precision, so that its changes are the model's."""
    # runs of older versions have no such entry: they were scored exactly
    began = run.info.approximate
    if began == precision:
        return
    known = f"precision={precision!r}, so {_scored_in(precision)}"
    advice = "Leave precision= out" if began is None else f"Give precision={began!r}"
    raise BadInput(
        f"cannot continue {run.path} with {known}: its observations so far "
        f"({len(run.steps)}) were scored {_scored_in(began)}, and the rounding between "
        f"the two would look like a change of the model. {advice}, or choose another "
        "out=."
    )


def _scored_in(precision: str | None) -> str:
    return "exactly" if precision is None else f"approximately, in {precision}"


def same_tokenizer(watched: str, present: str) -> None:
    """Token ids mean their texts under one tokenizer alone.

    Raises:
        BadInput: if the hashes differ.
    """
    if watched != present:
        raise BadInput(
            "the probes were tokenized by another tokenizer (SHA-256 "
            f"{watched[:12]}, this one has {present[:12]}), so their token ids mean "
            "other texts here. Pass the ProbeSet itself, not TokenizedProbes, or use "
            "the tokenizer they were made with."
        )


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """TRL's fields beside ours, as trainer.NAME; their values as text.

    As text because YAML reads 5e-7 as text and Python gives a number.
    """
    flat = {}
    for name, value in with_defaults(config).items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": str(item) for key, item in value.items()}
        else:
            flat[name] = value
    return flat


def _decides_nothing(name: str) -> bool:
    """Settings that change no number of a run, so may change when it is resumed."""
    field_name = name.rsplit(".", 1)[-1]
    if field_name in ("score_batch_size", "exactness", "disable_tqdm"):
        return True
    return field_name.startswith(("save_", "logging_", "report_to"))


def step_of(checkpoint: Path) -> int:
    """Updates taken at a checkpoint, from its folder's name."""
    match = re.search(r"-(\d+)$", checkpoint.name)
    return int(match.group(1)) if match else -1


def remove_empty_folders(out: Path) -> None:
    """What a trainer's `__init__` makes, also in a run that was killed before its
    directory was written."""
    for folder in (out / "checkpoints", out):  # the inner one first: it fills the outer
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
