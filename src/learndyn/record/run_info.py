"""`run.json`: what a run is, with a type for every entry that is read.

A file that this learndyn cannot use is refused when it is read. An entry of another
type than its attribute's is taken as absent, since anybody may have edited the file;
entries without an attribute (versions, hashes, settings) are kept and written back.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from learndyn.errors import BadInput
from learndyn.probes.panel import Panel
from learndyn.probes.trained import Trained
from learndyn.record.method import FAMILIES, Family, Method, as_losses


SCHEMA_VERSION = 1
"""Version of the run directory's layout. A reader refuses any other."""


@dataclass(frozen=True, eq=False)
class RunInfo(Mapping[str, Any]):
    """What `run.json` says of a run. Make it by `RunInfo.of`.

    As a mapping it holds the file's own entries, in their order.
    """

    entries: Mapping[str, Any] = field(repr=False)
    """The file's entries: what is written back."""
    method: str = ""
    """Such as "dpo", "ipo", "simpo", "kto", "grpo", "sft" or "extend-sft", whatever the
    trainer calls it; empty where not known. `family` asks what the loss does."""
    family: Family = "unknown"
    """What the loss does with the answers: raise them ("sft"), raise chosen over
    rejected ("preference"), tell desirable from undesirable ("unpaired"), weigh the
    model's own samples ("online"). "unknown": say nothing that holds for one alone."""
    has_reference: bool | None = None
    """Whether the loss compares the policy with a reference model: true of DPO and KTO,
    false of SFT, SimPO, CPO and ORPO; None where not known."""
    trained: Trained | None = None
    """What the run trained on, and which probes are among it; None of older runs."""
    train_rows: int | None = None
    """Training examples of one epoch; None where not known."""
    model: str = ""
    """Folder or hub id that training started from; empty where not known."""
    dtype: str = "float32"
    """Of the model's weights, as they were loaded."""
    extend: bool = False
    """Whether the run is the DPO of extend, after SFT on chosen and rejected."""
    finished: bool | None = None
    """None where the file does not say."""
    final_step: int | None = None
    """Updates at the end of a finished run."""
    every: int | str | None = None
    """Updates between observations, or "log"; None where no one schedule holds."""
    step_unit: str = "update"
    """What steps count, such as "evaluation" of an imported run."""
    probe_fingerprint: str | None = None
    tokenizer_sha256: str | None = None
    data_sha256: str | None = None
    """Of the content of the training data."""
    data_sample: Mapping[str, Any] | None = None
    """Which rows of them were drawn (--limit); None where all were taken."""
    max_length: int | None = None
    """Tokens of prompt and response together."""
    max_prompt_length: int | None = None
    beta: float | None = None
    """Of DPO: the run's own, or the trainer's."""
    learning_rate: float | None = None
    """The trainer's, at its highest."""
    reference_gap: float | None = None
    """Largest |log pi - log pi_ref| over the training responses before the first
    update, in nats."""
    route: Mapping[str, Any] | None = None
    """How the probes are scored; None of a run from before there were routes."""
    approximate: str | None = None
    """The precision that a run was scored in; None where its numbers are exact."""
    vocabulary: int | None = None
    """Number of logits."""
    parameters: int | None = None
    """Weights of the model, adapters among them."""
    trainable_parameters: int | None = None
    """Those that train; may be 0."""
    trainer: Mapping[str, Any] = field(default_factory=dict)
    """The trainer's settings."""
    imported: Mapping[str, Any] = field(default_factory=dict)
    """What an import knows of the files that it was made of; empty of other runs."""
    defects: Sequence[Any] = ()
    """Columns and kinds that are not what their names say, with `column` and `what`."""
    means_only: Sequence[str] = ()
    """Kinds of which a mean over prompts is all that was recorded."""

    @classmethod
    def of(cls, entries: Mapping[str, Any]) -> "RunInfo":
        """Read the entries of a `run.json`, or of one that is to be written."""
        read = _Entries(entries)
        trainer, imported = read.group("trainer"), read.group("imported")
        method = _method(read, trainer)
        trained = Trained.of_info(entries.get("trained"))
        rows = None if trained is None else trained.rows
        return cls(
            entries.entries if isinstance(entries, RunInfo) else entries,
            method=method.name,
            family=method.family,
            has_reference=method.has_reference,
            trained=trained,
            train_rows=rows or read.count("train_rows"),
            model=read.text("model") or "",
            dtype=read.text("dtype") or "float32",
            extend=bool(entries.get("extend")),
            finished=None if (end := entries.get("finished")) is None else bool(end),
            final_step=read.count("final_step"),
            every=read.count("every") or read.text("every"),
            step_unit=read.text("step_unit") or "update",
            probe_fingerprint=read.text("probe_fingerprint"),
            tokenizer_sha256=read.text("tokenizer_sha256"),
            data_sha256=read.group("data").text("sha256"),
            data_sample=read.group("data").group("sample").entries or None,
            max_length=read.count("max_length"),
            max_prompt_length=read.count("max_prompt_length"),
            beta=read.number("beta") or trainer.number("beta"),
            learning_rate=trainer.number("learning_rate"),
            reference_gap=read.number("reference_gap"),
            route=read.group("route").entries or None,
            approximate=read.group("route").text("approximate"),
            vocabulary=(imported if imported.entries else read).count("vocabulary"),
            parameters=read.count("parameters"),
            trainable_parameters=read.count("trainable_parameters", least=0),
            trainer=trainer.entries,
            imported=imported.entries,
            defects=read.list("defects"),
            means_only=read.list("means_only"),
        )

    def __getitem__(self, name: str) -> Any:
        return self.entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def sft(self) -> bool:
        """Whether the run only pushes answers up."""
        return self.family == "sft"

    @property
    def reward_beta(self) -> float | None:
        """beta where rewards/chosen is beta times the change since the start; None
        where the loss has no reference, or beta is not known."""
        if not self.has_reference or self.family == "online" or not self.beta:
            return None
        return self.beta

    @property
    def trains_adapter(self) -> bool:
        """Whether less than half of the weights train, as with LoRA."""
        some, every = self.trainable_parameters, self.parameters
        return bool(some and every and some < every / 2)

    @property
    def pushes_rejected(self) -> bool | None:
        """Whether the loss lowers the rejected answer of a pair; None where not known.

        False of KTO, whose undesirable answers have no pair, and of online methods,
        which lower samples of the model.
        """
        return Method(family=self.family).pushes_rejected

    def told_by(self, log: Sequence[Mapping[str, Any]]) -> "RunInfo":
        """The same, with the method that the rows of `train.jsonl` tell, where
        `run.json` does not."""
        if self.family != "unknown" or self.method:
            return self
        method = Method.of_log(log)
        return replace(
            self,
            method=method.name,
            family=method.family,
            has_reference=method.has_reference,
        )

    @property
    def panel(self) -> Panel | None:
        """The prompts that are scored at every observation; None: all are."""
        return Panel.of_run(self.entries)

    def began_before(self, first: int, log: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the run was trained before `first`, the step of its earliest
        observation.

        Every run is observed before its first update. That is update 0, or a later one
        where a trainer resumed a checkpoint into a new run; then the log has no loss up
        to there. Imported runs begin at evaluation 0.
        """
        if first <= 0:
            return False
        if self.step_unit == "evaluation":
            return True
        losses = (row.get("step", 0) for row in log if "loss" in row)
        return any(_is_count(step) and step <= first for step in losses)

    def missing_steps(self, steps: Sequence[int]) -> tuple[int, ...]:
        """Where the schedule has an observation and `steps` has none.

        Between the first of `steps` and the last, or the run's end once it is finished:
        all multiples of `every`, and of the panel's `full_every`. Of a schedule that is
        not so regular ("log"), was changed or is not known, none is missed.
        """
        if not isinstance(self.every, int) or not steps:
            return ()
        last = max(steps)
        if self.finished and self.final_step is not None:
            last = max(last, self.final_step)
        panel = self.panel
        periods = [self.every, None if panel is None else panel.full_every]
        due = {s for k in periods if k for s in range(0, last + 1, k) if s > min(steps)}
        return tuple(sorted(due - set(steps)))


def _method(read: "_Entries", trainer: "_Entries") -> Method:
    """The method by its name and the trainer's loss, then by what was recorded."""
    losses = as_losses(trainer.entries.get("loss_type"))
    method = Method.named(read.text("method") or "", losses, trainer.number("beta"))
    if method.family != "unknown":
        return method
    known: dict[str, Family] = {family: family for family in FAMILIES}
    family = known.get(read.text("family") or "", method.family)
    reference = read.entries.get("has_reference")
    reference = reference if isinstance(reference, bool) else None
    return Method(method.name, family, reference)


@dataclass(frozen=True)
class _Entries:
    """Entries of a JSON object, each as the type that is asked for, or as absent."""

    entries: Mapping[str, Any]

    def text(self, name: str) -> str | None:
        value = self.entries.get(name)
        return value if isinstance(value, str) else None

    def count(self, name: str, least: int = 1) -> int | None:
        value = self.entries.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            return None
        return value

    def number(self, name: str) -> float | None:
        value = self.entries.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool):
            return None
        return float(value) if math.isfinite(value) else None

    def group(self, name: str) -> "_Entries":
        value = self.entries.get(name)
        return _Entries(value if isinstance(value, Mapping) else {})

    def list(self, name: str) -> Sequence[Any]:
        value = self.entries.get(name)
        return value if isinstance(value, list | tuple) else ()


def read_run_json(folder: Path) -> RunInfo:
    """What the `run.json` of a run directory holds."""
    path = folder / "run.json"
    if folder.is_file():
        raise BadInput(
            f"{folder} is a file. Give its folder, the run directory: {folder.parent}."
        )
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadInput(
            f"{folder} is not a run directory: it has no run.json. A run directory is "
            "what `learndyn run --out` or LearningDynamicsCallback(out=) made."
        ) from error
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot read {path}: {error}") from error
    if not isinstance(entries, dict):
        raise BadInput(
            f"cannot read {path}: it is not an object, {{...}}, but "
            f"{str(entries)[:40]!r}. Restore this run's own file."
        )
    version = entries.get("schema_version")
    if type(version) is not int:  # true would pass for 1
        raise BadInput(
            f"cannot read {path}: its schema_version is not a whole number but "
            f"{version!r}. Restore this run's own file."
        )
    if version != SCHEMA_VERSION:
        raise BadInput(
            f"{folder} has schema version {version}; this learndyn reads version "
            f"{SCHEMA_VERSION}. Use the learndyn that wrote it "
            f"({_version_of(entries)})."
        )
    return RunInfo.of(entries)


def _version_of(entries: dict[str, Any]) -> str:
    versions = entries.get("versions")
    known = versions.get("learndyn") if isinstance(versions, dict) else None
    return f"learndyn {known or 'of unknown version'}"


def _is_count(value: Any) -> bool:
    """Whether it is a whole number above zero, and not true."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
