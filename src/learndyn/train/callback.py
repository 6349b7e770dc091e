"""Watch a run: one callback for any transformers or TRL trainer.

    trainer = DPOTrainer(..., callbacks=[
        LearningDynamicsCallback(probes, out="runs/dpo", every=25)])

It observes the model before the first update, every k updates and after the last one;
with `panel=N`, between full observations, on a fixed sample of N prompts. Training is
bit-identical with and without it.
"""

import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from transformers import (
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from learndyn.measure.score import ScoreSettings
from learndyn.probes.panel import Panel
from learndyn.probes.probe import ProbeSet
from learndyn.probes.tokenize import TokenizedProbes
from learndyn.record.observation import Observation
from learndyn.record.run_directory import RunDirectory, is_run
from learndyn.train.presets import MAX_LENGTH
from learndyn.train.progress import progress_bar
from learndyn.train.provenance import (
    describe_run,
    method_of,
    rows_trained_on,
    running_trainer,
)
from learndyn.train.recorder import ForceRecorder
from learndyn.train.resume import Attempt, reopen
from learndyn.train.schedule import Subset, is_full
from learndyn.train.scoring import (
    Scoring,
    tokenize_for,
    wait_for_all,
    warn_if_unsound,
)
from learndyn.train.settings import WatchConfig
from learndyn.train.trackers import send, tracked


# eq=False as in WatchConfig: `trainer.remove_callback` compares with ==
@dataclass(eq=False, repr=False)
class LearningDynamicsCallback(WatchConfig, TrainerCallback):
    """Observe `probes` while a trainer runs, into the run directory `out`.

    `WatchConfig` has its other settings, which are flags of `learndyn run` too.

    `every` is in optimizer updates (HF's `global_step`), whatever the gradient
    accumulation; "log" spaces observations evenly in log(step). Step 0 and the final
    step are always observed. All processes of a distributed run must have the callback:
    they score together, the first one writes.

    With `panel`, only that many prompts are scored where an observation is due: the
    same ones throughout, drawn with `panel_seed`. All prompts are scored first, last
    and, with `full_every`, at multiples of that many updates.

    `exactness`, `precision` and `score_batch_size` are those of `Scorer.attach`: what
    to do about a way of scoring that is wrong, and whether to score approximately.
    `max_length` and `max_prompt_length` are in tokens; without them 1024 and half.

    `forces=k` explains the update before every k-th observation: which part of it moved
    which probes, on `forces_prompts` prompts, into `out`/forces. `ForceSettings` says
    more.

    Everything goes to `out`. To send the means to the trainer's own trackers as well,
    use `attach(trainer)` instead of `callbacks=[...]`. `info` goes to run.json, and
    `config` to config.yaml.

    Raises:
        BadInput: as `WatchConfig`; when training begins, if `out` holds a run already
            (and neither `resume` nor `overwrite` is set, nor does the trainer resume),
            if a resumed run has another panel or was scored in another precision, or if
            the probes were tokenized for another tokenizer. Also as `Scorer.attach`.
    """

    probes: ProbeSet | TokenizedProbes | str | Path
    out: str | Path = field(kw_only=True)
    tokenizer: PreTrainedTokenizerBase | None = field(default=None, kw_only=True)
    info: dict[str, Any] | None = field(default=None, kw_only=True)
    config: dict[str, Any] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._probes = (
            self.probes
            if isinstance(self.probes, TokenizedProbes)
            else ProbeSet.of(self.probes)
        )
        self._path = Path(self.out)
        self._plan = self.schedule
        # No preset here: a user's own trainer has TRL's lengths.
        self._limits = {
            "max_length": MAX_LENGTH["trl"][0]
            if self.max_length is None
            else self.max_length,
            "max_prompt_length": self.max_prompt_length,
        }
        self._trainer: Trainer | None = None
        self._trained = False  # whether weights may have moved since
        self._attempt: Attempt | None = None  # the training that has not ended
        self._recorder: ForceRecorder | None = None
        self._forget()

    def _forget(self) -> None:
        """Reset all that belongs to one training: the next one is another run."""
        self.run: RunDirectory | None = None
        self._begun = False
        self._tokenized: TokenizedProbes | None = None
        self._panel: Panel | None = None
        self._subset: Subset | None = None
        self._scoring: Scoring | None = None
        if self._recorder is not None:  # its hooks, should training have failed
            self._recorder.end()
        self._recorder = None
        self._first: Observation | None = None
        self._last: int | None = None
        self._last_full = True

    def attach(self, trainer: Trainer) -> "LearningDynamicsCallback":
        """Add this callback to `trainer`, and send means to its trackers.

        A panel also sends its paired changes with their standard error.
        """
        self._trainer = trainer
        trainer.add_callback(self)
        return self

    def begin(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        args: TrainingArguments,
        step: int = 0,
        *,
        again: bool = False,
    ) -> RunDirectory | None:
        """Open the run directory: a new one, or the one that a resumed run continues.

        Done when training begins; a recipe calls it earlier, so that checkpoints can
        live in the run directory. `again` says that this very training made it and
        starts over. Returns None on all but the first process.
        """
        self._forget()
        tokenizer = self.tokenizer or tokenizer
        self._tokenized = tokenize_for(self._probes, tokenizer, self._limits)
        self._panel = self._plan.draw(self._tokenized.probes)
        # On every process: the forwards of a sharded model (FSDP, ZeRO-3) are
        # collective and would wait forever for the others.
        trainer = self._trainer or running_trainer()
        method = method_of(args, trainer)
        asked = (method, self._attach(model), self._plan, self._panel, self._limits)
        described = {**describe_run(model, args, *asked), **(self.info or {})}
        continues = is_run(self._path) and (self.resume or step > 0 or again)
        # Until all have looked: once the first one has created the directory, a process
        # that comes late would take the new run for one to continue.
        wait_for_all(args)
        if args.process_index == 0:
            if continues:
                same = (self._limits, self._plan, self.precision)
                self.run = reopen(self._path, self._tokenized, *same)
                # trained since: the weights have left update 0, so it goes as well
                self.run.rewind(-1 if step == 0 and self._trained else step)
                self.run.update_info(finished=False)
            else:
                if "trained" not in described:  # a recipe knows it better
                    rows = rows_trained_on(
                        trainer, method.family, self._tokenized, tokenizer
                    )
                    described["trained"] = rows.to_info()
                self.run = RunDirectory.create(
                    self._path,
                    self._tokenized.to_table(),
                    described,
                    config=self.config or {},
                    overwrite=self.overwrite,
                )
        wait_for_all(args)  # until it is there, or rewound: all of them read it now
        if continues:
            self._adopt(RunDirectory.open(self._path))
            # Attached again, to the run's own token ids in their order: row i must mean
            # what it meant before the stop, also if the probes' file was sorted since.
            self._attach(model)
        self._begun = True
        return self.run

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Observe the model as it stands before its first update."""
        model, step = kwargs["model"], state.global_step
        if not self._begun:  # the first training, or one after another
            again = bool(self._attempt and self._attempt.begins_again(args, state))
            self.begin(model, kwargs["processing_class"], args, step, again=again)
        elif step > 0:
            # A recipe began the run before the trainer loaded its checkpoint into this
            # model: the self-test looked at other weights.
            self._attach(model)
        # From here on weights move: a later `begin` at step 0 has others than step 0.
        self._begun, self._trained = False, True
        self._attempt = Attempt(args, state.train_batch_size)
        forces = self.force_settings
        if forces is not None and self._scoring is not None:
            tokenizer = self.tokenizer or kwargs["processing_class"]
            self._recorder = self._scoring.recorder(forces, tokenizer, args)
        if self._recorder is not None and self.run is not None:
            self._recorder.begin(step, self.run)
        # a run that is continued where it was last observed has this one already
        if self._last != state.global_step:
            self._observe(model, args, state, control)

    def on_step_begin(
        self, args: Any, state: TrainerState, control: Any, **_: Any
    ) -> None:
        """Watch the update that comes, if its forces are to be recorded."""
        if self._recorder is not None:
            self._recorder.watch(state.global_step + 1, self._plan, self._panel)

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, **kwargs: Any
    ) -> None:
        """Gradients are whole: note where the parameters stand, if it is watched."""
        # transformers calls this after clipping; by on_step_end gradients are zeroed
        if self._recorder is not None:
            self._recorder.before_step(kwargs["optimizer"])

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Observe if this update is due. Runs once per update, after the optimizer."""
        # First: its copy of the parameters is gone when scoring needs the memory.
        if self._recorder is not None and self.run is not None:
            self._recorder.after_step(state.global_step, args, self.run)
        # Not in on_train_end alone: with load_best_model_at_end the trainer has put
        # another model in place by then.
        last = state.global_step >= state.max_steps or control.should_training_stop
        if last or self._plan.is_due(state.global_step, self._panel):
            self._observe(kwargs["model"], args, state, control, full=last)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Observe the final model in full, unless on_step_end did."""
        observed = self._last == state.global_step
        if not (observed and self._last_full) and args.load_best_model_at_end:
            warnings.warn(
                f"the model of update {state.global_step} was not observed"
                f"{' in full, only its panel was' if observed else ''}: the trainer "
                "has put the best checkpoint in its place already "
                "(load_best_model_at_end).",
                stacklevel=2,
            )
        elif not (observed and self._last_full):
            self._observe(kwargs["model"], args, state, control, full=True)
        if self.run is not None:
            self.run.update_info(finished=True, final_step=state.global_step)
        self._attempt = None
        self._forget()

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

    def _attach(self, model: nn.Module) -> Scoring:
        """Lay the probes out for `model`, and test how it may be scored."""
        assert self._tokenized is not None
        self._subset = Subset.of(self._tokenized, self._panel)
        settings: ScoreSettings = {
            "batch_size": self.score_batch_size,
            "exactness": self.exactness,
            "precision": self.precision,
        }
        self._scoring = Scoring(model, self._tokenized, self._subset, settings)
        if self.run is not None:
            self.run.update_info(route=asdict(self._scoring.route))
        return self._scoring

    def _adopt(self, run: RunDirectory) -> None:
        """Go on with the run's own token ids and order, first observation and panel."""
        expected = str(run.info.tokenizer_sha256)
        self._tokenized = TokenizedProbes.from_table(run.read_probes(), expected)
        self._panel = run.info.panel
        if run.steps:
            self._first = run.read_observation(run.steps[0])
            self._last = run.steps[-1]
            count = len(run.read_observation(self._last).ids)
            self._last_full = count == len(self._tokenized)

    def _observe(
        self,
        model: nn.Module,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        full: bool = False,
    ) -> None:
        assert self._tokenized is not None
        step = state.global_step
        # changes are measured from the first observation, so it must hold every probe
        full = full or self._first is None or is_full(step, self._panel)
        scoring = self._scoring
        if scoring is None or not scoring.is_for(model):
            scoring = self._attach(model)
        bar = progress_bar(f"probing at step {step}", args)
        observation = scoring.observe(step, self._first, full=full, progress=bar)
        if self._first is None:
            self._first = observation
        self._last, self._last_full = step, full
        # Only here may the others leave: up to this line all processes score together.
        if self.run is None:
            return
        warn_if_unsound(observation)
        self.run.write_observation(observation)
        if self._trainer is not None:
            probes, first = self._tokenized.probes, self._first
            values = tracked(probes, observation, first, self._subset)
            send(self._trainer, values, args, state, control)
