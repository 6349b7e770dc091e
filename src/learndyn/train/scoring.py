"""The probes of one run, laid out for its model: all of them, and its panel's."""

from dataclasses import replace

from torch import nn

from learndyn.measure.route import Route
from learndyn.measure.score import Progress, Scorer, Settings
from learndyn.probes.tokenize import TokenizedProbes
from learndyn.record.observation import Observation
from learndyn.train.schedule import Subset


class Scoring:
    """All scoring of a run happens here; made anew when weights were loaded.

    Raises:
        BadInput: as `Scorer.attach`.
    """

    def __init__(
        self,
        model: nn.Module,
        probes: TokenizedProbes,
        subset: Subset | None,
        settings: Settings,
    ) -> None:
        self._given = model
        self._whole = Scorer.attach(model, probes.pairs, **settings)
        self._subset = subset
        self._part = None
        if subset is not None:
            self._part = self._whole.select(subset.rows.tolist())

    @property
    def route(self) -> Route:
        """How it scores, and how right that is."""
        return self._whole.route

    def is_for(self, model: nn.Module) -> bool:
        """Whether it scores this very model."""
        return self._given is model

    def observe(
        self, step: int, first: Observation | None, *, full: bool, progress: Progress
    ) -> Observation:
        """Score all probes, or the panel's, following the argmax of `first`."""
        starts = None if first is None else first.token_argmax_id
        if full or self._part is None or self._subset is None or starts is None:
            return self._whole.observe(step=step, start_ids=starts, progress=progress)
        seen = self._part.observe(
            step=step, start_ids=starts[self._subset.tokens], progress=progress
        )
        return replace(seen, probe_ids=self._subset.rows)
