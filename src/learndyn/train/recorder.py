"""Forces on record while a trainer runs: the update before an observation, explained.

The trainer is not changed. Its forwards are watched during one update (`batch_watch`),
its optimizer's step is recorded (`forces.step`), and when the update is done both are
followed to the watched probes. With each record the kernel of a few probes is compared
with the one at the start. A record that cannot be made is left out with a warning;
probing goes on.
"""

import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerBase, TrainingArguments

from learndyn.errors import BadInput
from learndyn.forces.direction import placed
from learndyn.forces.explain import ExplainSettings, explain_update
from learndyn.forces.gradients import TokenLogps
from learndyn.forces.kernel.stability import KernelWatch, Sketches, drift
from learndyn.forces.predict import Predictor
from learndyn.forces.step import StepRecording
from learndyn.measure.score import Scorer
from learndyn.measure.selftest import coarsest
from learndyn.probes.panel import Panel
from learndyn.probes.tokenize import TokenizedProbes
from learndyn.record.files import StorageFull, read_table, write_whole
from learndyn.record.forces import Forces
from learndyn.record.method import as_losses
from learndyn.record.run_directory import RunDirectory
from learndyn.train.batch_watch import BatchWatch
from learndyn.train.schedule import Schedule
from learndyn.train.settings import ForceSettings


_PROBES = 32
"""Probes whose gradients are sketched: one backward pass each."""

_SIZE = 4096
"""Length of a sketch; a cosine is then right to about 1/64."""

_STEP = "learndyn_step"


class KernelCheck:
    """The kernel of a few probes at the start of a run, and later ones against it.

    The first sketches are kept in the run's forces folder, so that a resumed run goes
    on from the same.
    """

    def __init__(self, reader: TokenLogps, folder: Path) -> None:
        self._reader = reader.select(range(min(_PROBES, len(reader.plan.pairs))))
        self._path = folder / "kernel-start.parquet"
        self._watch = KernelWatch(size=_SIZE)
        self._first: Sketches | None = None
        self._since = 0

    def begin(self, step: int) -> None:
        """Look at the model as training begins, or read what an earlier look found."""
        if step > 0 and self._path.exists():
            try:
                table = read_table(self._path)
                since = int((table.schema.metadata or {})[_STEP.encode()])
                # a later one belongs to updates that resuming took back
                if since <= step:
                    self._first, self._since = Sketches.from_table(table), since
                    return
            except (OSError, pa.ArrowInvalid, KeyError, ValueError):
                pass  # unreadable: the comparison starts here, and says so
        self._first, self._since = self._look(), step
        table = self._first.to_table()
        label = {**(table.schema.metadata or {}), _STEP: str(step)}
        table = table.replace_schema_metadata(label)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self._path, lambda path: pq.write_table(table, path))

    def compare(self) -> tuple[dict[str, Any] | None, str]:
        """The kernel as the model stands against the first one, or why it cannot be
        compared: other probes or parameters than the first ones, too few probes."""
        if self._first is None:
            return None, ""
        try:
            change = drift(self._first, self._look())
        except BadInput as error:
            return None, f"the kernel was not compared: {error}"
        return {**asdict(change), "since": self._since}, ""

    def _look(self) -> Sketches:
        return self._watch.look(self._reader, self._reader.plan.pairs)


_AGREES = {False: 1e-3, True: 5e-2}
"""Most nats per token by which training may read its tokens differently: in float32,
and in half precision."""


class ForceRecorder:
    """Explains single updates of one training run."""

    def __init__(
        self,
        settings: ForceSettings,
        scorer: Scorer,
        probes: TokenizedProbes,
        tokenizer: PreTrainedTokenizerBase | None,
    ) -> None:
        """`scorer` is attached to the pairs of `probes`."""
        self._watch = BatchWatch(scorer.model)
        self._recording: StepRecording | None = None
        self._watching = False
        self._updates = self._due = 0
        # Drawn from the probes and not from the run's panel: the same prompts in every
        # record and every run on these probes, so that records can be compared.
        panel = Panel.draw(probes.probes, settings.prompts)
        chosen = [
            i
            for i, probe in enumerate(probes.probes)
            if panel.prompts is None or probe.prompt_id in panel.prompts
        ]
        self.settings = settings
        self.rows = np.array(chosen, dtype=np.int32)
        self._probes = probes.select(chosen)
        self._scorer = scorer.select(chosen)
        self._predictor: Predictor | None = None
        self._kernel: KernelCheck | None = None
        self._tokenizer = tokenizer

    def begin(self, step: int, run: RunDirectory) -> None:
        """Training begins: look at the kernel that later ones are compared with."""
        try:
            self._predictor = Predictor.of(self._scorer)
            self._kernel = KernelCheck(self._predictor.logps, run.path / "forces")
            self._kernel.begin(step)
        except StorageFull:
            raise
        except Exception as error:
            self._kernel = None
            _left_out(error, "kernel: ")

    def watch(self, step: int, schedule: Schedule, panel: Panel | None) -> None:
        """Before the first forward of the update to `step`: watch it, if it is due."""
        self.forget()  # of an update without an end, such as one that raised an error
        self._watching = schedule.is_kth(step, panel, self.settings.every)
        self._updates += 1
        if self._watching:
            self._due += 1
            self._watch.begin()

    def before_step(self, optimizer: Any) -> None:
        """Before the optimizer's step: gradients are whole and clipped."""
        if not self._watching:
            return
        # Hooks off before anything else runs: forwards of the record and of the
        # observation do not belong to the batch.
        self._watch.end()
        try:
            # the step gets unscaled gradients; the loss passed back scaled ones (fp16)
            self._watch.unscale(_loss_scale(optimizer))
            self._recording = StepRecording.begin(optimizer, self._watch.model)
        except Exception as error:
            self.forget()
            _left_out(error)

    def after_step(self, step: int, args: TrainingArguments, run: RunDirectory) -> None:
        """Explain the update that led to `step`, if it was watched, into `run`."""
        recording, self._recording = self._recording, None
        if recording is None:
            return
        try:
            method = run.info.method
            run.write_forces(self._explained(recording, step, args, method))
        except StorageFull:
            raise  # as for an observation: without room the run cannot go on
        except Exception as error:  # also of memory: training is worth more than this
            _left_out(error, f"update {step}: ")
        finally:
            recording.abandon()
            self.forget()

    def end(self) -> None:
        """Training has ended: say so if no update was due."""
        self.forget()
        if self._updates and not self._due:
            warnings.warn(
                f"forces={self.settings.every} explains the update before observation "
                f"number {self.settings.every} after update 0, then every "
                f"{self.settings.every} observations. This run of {self._updates} "
                "updates ended before the first. Give a smaller number, or observe "
                "more often with every=.",
                stacklevel=4,
            )
        self._updates = 0

    def forget(self) -> None:
        """Drop what is known of an update, and stop watching."""
        self._watch.end()
        self._watch.forwards = []  # they hold the batch, and graphs if backward failed
        self._watching = False
        if self._recording is not None:
            self._recording.abandon()
            self._recording = None

    def __del__(self) -> None:
        """Training that failed left hooks on its model; they go with their recorder."""
        self.forget()

    def _explained(
        self, recording: StepRecording, step: int, args: TrainingArguments, method: str
    ) -> Forces:
        # First of all: it reads what the step did from the parameters as they stand.
        made = recording.finish()
        if self._predictor is None:
            self._predictor = Predictor.of(self._scorer)
        rough = args.bf16 or args.fp16 or coarsest(self._watch.model).bits < 32
        gradients, notes = None, []
        # The batch's gradient is the one at the parameters before the step. `placed`
        # copies values in and back, to the bit, so that training goes on as it would.
        with placed(self._watch.model, made.before):
            try:
                gradients = self._watch.gradients(
                    self._predictor.logps, method, _AGREES[bool(rough)]
                )
            except BadInput as error:
                # the optimizer's step is known all the same, so it is explained whole
                notes = [str(error)]
            # within the block: the whole record describes the model before the step
            kernel, why = (None, "") if self._kernel is None else self._kernel.compare()
            notes += [why] if why else []
        asked = ExplainSettings(
            step,
            loss=_loss(args, method),
            layers=self.settings.layers,
            influence=self.settings.influence,
        )
        forces = explain_update(
            self._predictor, self._probes, made, gradients, asked, self._decode
        )
        info = forces.info | {"notes": notes + forces.info["notes"], "kernel": kernel}
        # rows of the run's own probes: the recorder numbered its selection from 0
        return replace(forces, probe_ids=self.rows, info=info)

    def _decode(self, tokens: Sequence[int]) -> str:
        if self._tokenizer is None:
            return "".join(f"<{token}>" for token in tokens)
        return str(self._tokenizer.decode(list(tokens)))


def _loss_scale(optimizer: Any) -> float:
    """What a gradient scaler multiplied the loss by (fp16); 1 without one."""
    scaler = getattr(optimizer, "scaler", None)  # accelerate's wrapper has it
    return 1.0 if scaler is None else float(scaler.get_scale())


def _left_out(error: Exception, where: str = "") -> None:
    kind = "" if isinstance(error, BadInput) else f"{type(error).__name__}: "
    warnings.warn(f"forces were not recorded: {where}{kind}{error}", stacklevel=4)


def _loss(args: TrainingArguments, method: str) -> str:
    """The trainer's own name of its loss, behind its method's: "dpo sigmoid"."""
    kinds = as_losses(getattr(args, "loss_type", None))
    return " ".join(k for k in (method, *(k for k in kinds if k != method)) if k)


def why_no_forces(args: TrainingArguments) -> str | None:
    """Why a run's forces cannot be recorded; None if they can."""
    if getattr(args, "deepspeed", None) or getattr(args, "deepspeed_plugin", None):
        return (
            "DeepSpeed takes its step within the backward pass and has dropped the "
            "gradients by the time a callback is asked. Probing goes on; record forces "
            "in a short run without DeepSpeed, or explain a checkpoint with "
            "`learndyn explain --model`."
        )
    if args.n_gpu > 1:
        return (
            f"this run copies its model to {args.n_gpu} GPUs (nn.DataParallel), and "
            "each copy sees its own part of the batch. Probing goes on; give it one "
            "GPU (CUDA_VISIBLE_DEVICES=0)."
        )
    if args.world_size > 1:
        return (
            f"this run has {args.world_size} processes, and each sees its own part of "
            "the batch. Probing goes on; record forces in a run on one process, or "
            "explain a checkpoint with `learndyn explain --model`."
        )
    return None
