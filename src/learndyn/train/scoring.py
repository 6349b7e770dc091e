"""The probes of one run, laid out for its model: all of them, and its panel's."""

import warnings
from dataclasses import replace
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase, TrainingArguments

from learndyn.errors import BadInput
from learndyn.measure.neutral import is_sharded
from learndyn.measure.route import Route
from learndyn.measure.score import Progress, Scorer, ScoreSettings
from learndyn.probes.probe import ProbeSet
from learndyn.probes.tokenize import (
    TokenizedProbes,
    tokenize,
    tokenizer_hash,
)
from learndyn.record.observation import Observation
from learndyn.train.recorder import ForceRecorder, why_no_forces
from learndyn.train.resume import same_tokenizer
from learndyn.train.schedule import Subset
from learndyn.train.settings import ForceSettings


class Scoring:
    """All scoring of a run happens here; made anew when weights were loaded or sharded.

    Raises:
        BadInput: as `Scorer.attach`.
    """

    def __init__(
        self,
        model: nn.Module,
        probes: TokenizedProbes,
        subset: Subset | None,
        settings: ScoreSettings,
    ) -> None:
        self.probes = probes
        self._given = model
        self._sharded = is_sharded(model)  # before a forward gathers it
        self._whole = Scorer.attach(model, probes.pairs, **settings)
        self._subset = subset
        self._part = None
        if subset is not None:
            # selected and not attached: one self-test, one way of scoring for both
            self._part = self._whole.select(subset.rows.tolist())

    @property
    def route(self) -> Route:
        """How it scores, and how right that is."""
        return self._whole.route

    def is_for(self, model: nn.Module) -> bool:
        """Whether it scores this very model, sharded or whole as it is now.

        FSDP2 shards a model in place, after which its head cannot be read by itself.
        """
        return self._given is model and (self._sharded or not is_sharded(model))

    def recorder(
        self, settings: ForceSettings, tokenizer: Any, args: TrainingArguments
    ) -> ForceRecorder | None:
        """What records forces on these probes; None, with a warning, if none can be."""
        why = why_no_forces(args)
        if why is not None:
            warnings.warn(f"forces are not recorded: {why}", stacklevel=3)
            return None
        return ForceRecorder(settings, self._whole, self.probes, tokenizer)

    def observe(
        self, step: int, first: Observation | None, *, full: bool, progress: Progress
    ) -> Observation:
        """Score all probes, or the panel's, following the argmax of `first`."""
        # Followed through the run are the tokens that were the argmax at step 0: the
        # argmax itself may change, and then its log pi is another token's.
        starts = None if first is None else first.token_argmax_id
        if full or self._part is None or self._subset is None or starts is None:
            return self._whole.observe(step=step, start_ids=starts, progress=progress)
        observation = self._part.observe(
            step=step, start_ids=starts[self._subset.tokens], progress=progress
        )
        # rows of the whole probe set: the part numbers its own from 0
        return replace(observation, probe_ids=self._subset.rows)


def tokenize_for(
    probes: ProbeSet | TokenizedProbes, tokenizer: Any, limits: dict[str, Any]
) -> TokenizedProbes:
    """The probes as token ids of the tokenizer that the trainer uses, if it has one.

    Raises:
        BadInput: if it has none and needs one, or theirs is another.
    """
    if isinstance(probes, ProbeSet):
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise BadInput(
                "the trainer has no tokenizer to tokenize the probes with. Pass "
                "tokenizer= to LearningDynamicsCallback."
            )
        return tokenize(probes, tokenizer, **limits)
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        same_tokenizer(probes.tokenizer_hash, tokenizer_hash(tokenizer))
    return probes


def warn_if_unsound(observation: Observation) -> None:
    """Warn of numbers that no model gives, such as NaN or an argmax below a token."""
    problems = observation.violations()
    if problems:
        warnings.warn(
            f"observation at step {observation.step} is not sound: "
            f"{'; '.join(problems)}. The model may have diverged; the observation is "
            "kept as it is.",
            stacklevel=3,
        )


def wait_for_all(args: TrainingArguments) -> None:
    """Return once every process has come here."""
    if args.world_size > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()
