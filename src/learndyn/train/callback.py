"""Watch a run: one callback for any transformers or TRL trainer.

    trainer = DPOTrainer(..., callbacks=[
        LearningDynamicsCallback(probes, out="runs/dpo", every=25)])

It observes the model before the first update, every k updates and after the last one.
Training is bit-identical with and without it.
"""

import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import nn
from transformers import (
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from learndyn.errors import BadInput
from learndyn.measure.score import find_route, score
from learndyn.probes.probe import ProbeSet
from learndyn.probes.tokenize import TokenizedProbes, tokenize, tokenizer_hash
from learndyn.record.run_directory import RunDirectory, is_run
from learndyn.train.progress import progress_bar
from learndyn.train.provenance import describe
from learndyn.train.trackers import send_means


Every = int | Literal["log"]

LOG_STEPS = frozenset(round(10 ** (i / 8)) for i in range(0, 80))
"""Steps of `every="log"`: eight per decade (1, 2, 3, 4, 6, 7, 10, 13, 18, ...)."""


class LearningDynamicsCallback(TrainerCallback):
    """Observe `probes` while a trainer runs, into the run directory `out`.

    `every` is in optimizer updates (HF's `global_step`), whatever the gradient
    accumulation; "log" spaces observations evenly in log(step). Step 0 and the final
    step are always observed. All processes of a distributed run must have the callback:
    they score together, the first one writes.

    Everything goes to `out`. To send the means to the trainer's own trackers as well,
    use `attach(trainer)` instead of `callbacks=[...]`.

    Raises:
        BadInput: when training begins, if `out` holds a run already (and neither
            `resume` nor `overwrite` is set, nor does the trainer resume), or if the
            probes were tokenized for another tokenizer.
    """

    def __init__(
        self,
        probes: ProbeSet | TokenizedProbes,
        *,
        out: str | Path,
        every: Every = 25,
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_length: int = 1024,
        max_prompt_length: int | None = None,
        batch_size: int = 8,
        resume: bool = False,
        overwrite: bool = False,
        info: dict[str, Any] | None = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        if every != "log" and every < 1:
            raise BadInput(f"every={every}: give a number of updates >= 1, or 'log'.")
        if resume and overwrite:
            raise BadInput("resume continues a run, overwrite replaces it: choose one.")
        self.probes = probes
        self.out = Path(out)
        self.every: Every = every
        self.tokenizer = tokenizer
        self.limits = {
            "max_length": max_length,
            "max_prompt_length": max_prompt_length,
        }
        self.batch_size = batch_size
        self.resume = resume
        self.overwrite = overwrite
        self.info = info or {}
        self.config = config or {}
        self.run: RunDirectory | None = None
        self._tokenized: TokenizedProbes | None = None
        self._start_ids: np.ndarray | None = None
        self._last: int | None = None
        self._trainer: Trainer | None = None

    def attach(self, trainer: Trainer) -> "LearningDynamicsCallback":
        """Add this callback to `trainer`, and report means through its trackers."""
        self._trainer = trainer
        trainer.add_callback(self)
        return self

    def begin(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        args: TrainingArguments,
        step: int = 0,
    ) -> RunDirectory | None:
        """Open the run directory: a new one, or the one that a resumed run continues.

        Done when training begins; a recipe calls it earlier, so that checkpoints can
        live in the run directory. Returns None on all but the first process.
        """
        self._tokenized = self._tokenize(tokenizer)
        # On every process: the forwards of a sharded model are collective.
        described = self._describe(model, args)
        continues = is_run(self.out) and (self.resume or step > 0)
        _wait(args)  # until all have looked: the first one creates the directory
        if args.process_index == 0:
            if continues:
                self.run = self._continue(step)
            else:
                self.run = RunDirectory.create(
                    self.out,
                    self._tokenized.to_table(),
                    described,
                    config=self.config,
                    overwrite=self.overwrite,
                )
        _wait(args)
        if continues:
            self._adopt(RunDirectory.open(self.out))
        return self.run

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Observe the model as it stands before its first update."""
        model = kwargs["model"]
        if self._tokenized is None:
            self.begin(model, kwargs["processing_class"], args, state.global_step)
        if self._last != state.global_step:
            self._observe(model, args, state, control)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Observe if this update is due. Runs once per update, after the optimizer."""
        last = state.global_step >= state.max_steps or control.should_training_stop
        if last or self.is_due(state.global_step):
            self._observe(kwargs["model"], args, state, control)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Observe the final model, unless its step was observed already."""
        if self._last != state.global_step and args.load_best_model_at_end:
            warnings.warn(
                f"the model of update {state.global_step} was not observed: the "
                "trainer has put the best checkpoint in its place already "
                "(load_best_model_at_end).",
                stacklevel=2,
            )
        elif self._last != state.global_step:
            self._observe(kwargs["model"], args, state, control)
        if self.run is not None:
            self.run.update_info(finished=True, final_step=state.global_step)
        # A second training with this callback is a second run: it begins anew.
        self.run = self._tokenized = self._start_ids = self._last = None

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Keep what the trainer logs, under its own keys."""
        if self.run is not None and logs:
            self.run.append_log({"step": state.global_step, **logs})

    def is_due(self, step: int) -> bool:
        """Whether the schedule asks for an observation after update `step`."""
        if self.every == "log":
            return step in LOG_STEPS
        return step % self.every == 0

    def _tokenize(self, tokenizer: PreTrainedTokenizerBase) -> TokenizedProbes:
        tokenizer = self.tokenizer or tokenizer
        if isinstance(self.probes, ProbeSet):
            if not isinstance(tokenizer, PreTrainedTokenizerBase):
                raise BadInput(
                    "the trainer has no tokenizer to tokenize the probes with. Pass "
                    "tokenizer= to LearningDynamicsCallback."
                )
            return tokenize(self.probes, tokenizer, **self.limits)
        if isinstance(tokenizer, PreTrainedTokenizerBase):
            _same_tokenizer(self.probes.tokenizer_hash, tokenizer_hash(tokenizer))
        return self.probes

    def _describe(self, model: nn.Module, args: TrainingArguments) -> dict[str, Any]:
        assert self._tokenized is not None
        route = find_route(model, self._tokenized)
        return {
            **describe(model, args),
            "probe_fingerprint": self._tokenized.probes.fingerprint,
            "probe_manifest": self._tokenized.probes.manifest,
            "tokenizer_sha256": self._tokenized.tokenizer_hash,
            "every": self.every,
            **self.limits,
            "route": {"name": route.name, "head": route.head, "error": route.error},
            "finished": False,
            **self.info,
        }

    def _continue(self, step: int) -> RunDirectory:
        assert self._tokenized is not None
        run = RunDirectory.open(self.out)
        watched = run.info.get("probe_fingerprint")
        if watched != self._tokenized.probes.fingerprint:
            raise BadInput(
                f"cannot continue {self.out}: it watched other probes (fingerprint "
                f"{str(watched)[:12]}, these have "
                f"{self._tokenized.probes.fingerprint[:12]}). Give the same probes, or "
                "choose another --out."
            )
        _same_tokenizer(run.info["tokenizer_sha256"], self._tokenized.tokenizer_hash)
        if sorted(run.read_probes()["n_tokens"].to_pylist()) != sorted(
            self._tokenized.n_tokens
        ):
            raise BadInput(
                f"cannot continue {self.out}: its probes were cut to max_length "
                f"{run.info.get('max_length')}, max_prompt_length "
                f"{run.info.get('max_prompt_length')}; now they are cut to "
                f"{self.limits['max_length']}, {self.limits['max_prompt_length']}. "
                "Give the same limits, or choose another --out."
            )
        run.rewind(step)
        run.update_info(finished=False)
        return run

    def _adopt(self, run: RunDirectory) -> None:
        """Go on with the run's own token ids, in their order, and its first argmax."""
        expected = run.info["tokenizer_sha256"]
        self._tokenized = TokenizedProbes.from_table(run.read_probes(), expected)
        if run.steps:
            first = run.read_observation(run.steps[0])
            self._start_ids = first.token_argmax_id
            self._last = run.steps[-1]

    def _observe(
        self,
        model: nn.Module,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
    ) -> None:
        assert self._tokenized is not None
        step = state.global_step
        observation = score(
            model,
            self._tokenized,
            step=step,
            start_ids=self._start_ids,
            batch_size=self.batch_size,
            progress=progress_bar(f"probing at step {step}", args),
        )
        if self._start_ids is None:
            self._start_ids = observation.token_argmax_id
        self._last = step
        if self.run is None:
            return
        problems = observation.violations()
        if problems:
            warnings.warn(
                f"observation at step {step} is not sound: {'; '.join(problems)}. The "
                "model may have diverged; the observation is kept as it is.",
                stacklevel=2,
            )
        self.run.write_observation(observation)
        if self._trainer is not None:
            send_means(
                self._trainer, self._tokenized.probes, observation, args, state, control
            )


def _wait(args: TrainingArguments) -> None:
    """Let all processes come to this point."""
    if args.world_size > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


def _same_tokenizer(watched: str, present: str) -> None:
    if watched != present:
        raise BadInput(
            "the probes were tokenized by another tokenizer (SHA-256 "
            f"{watched[:12]}, this one has {present[:12]}), so their token ids mean "
            "other texts here. Pass the ProbeSet itself, not TokenizedProbes, or use "
            "the tokenizer they were made with."
        )
