"""What is measured of one run, once, and handed to every finding."""

from dataclasses import dataclass
from functools import cached_property

from learndyn.diagnose.endings import Endings
from learndyn.diagnose.peak import Peak, chosen_peak
from learndyn.diagnose.squeeze import Evidence, squeeze_evidence
from learndyn.diagnose.squeeze_index import SqueezeIndex, squeeze_index
from learndyn.diagnose.state import StateReport, state_of
from learndyn.diagnose.two_runs.words import compare_in_words
from learndyn.diagnose.updates.why import Why, why_of
from learndyn.record.trajectory import Trajectory


@dataclass(frozen=True, eq=False)
class Facts:
    """One run, over the probes of one split or over all; measured where asked for.

    Whatever is asked for first raises BadInput if no probe is of `split`.
    """

    trajectory: Trajectory
    split: str | None = None
    baseline: Trajectory | None = None
    """The run that it is compared with."""

    @cached_property
    def evidence(self) -> Evidence:
        """Changes from the first observation to the last, nats per response."""
        return squeeze_evidence(self.trajectory, split=self.split)

    @cached_property
    def state(self) -> StateReport:
        """The state and the changes that decide it: means over the last 20 % of the
        observations. What the verdict says of a change is said of these."""
        return state_of(self.trajectory, split=self.split)

    @cached_property
    def sx(self) -> SqueezeIndex | None:
        """The squeeze index of relative changes; it decides nothing."""
        return squeeze_index(self.trajectory, self.split)

    @cached_property
    def peak(self) -> Peak | None:
        """Where chosen was highest; None without chosen or with too few numbers."""
        return chosen_peak(self.trajectory, self.split)

    @cached_property
    def why(self) -> Why | None:
        """What the recorded updates add up to; None where none is recorded."""
        return why_of(self.trajectory, self.split)

    @cached_property
    def endings(self) -> Endings | None:
        """The ends of all answers; None where the run has no values per token."""
        return Endings.of(self.trajectory)

    @cached_property
    def compared(self) -> list[str]:
        """Sentences about the difference to the baseline; none without one."""
        if self.baseline is None:
            return []
        return compare_in_words(self.baseline, self.trajectory, split=self.split)

    @property
    def sft(self) -> bool:
        """Whether the run only pushes answers up."""
        return self.trajectory.run.info.sft

    @property
    def unit(self) -> str:
        """What the run counts its steps in: updates, unless run.json differs."""
        return self.trajectory.unit
