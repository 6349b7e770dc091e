"""Everything that is looked for in a run: the one list of findings."""

from learndyn.diagnose.findings import cautions
from learndyn.diagnose.findings.baseline import Baseline
from learndyn.diagnose.findings.consistency import Consistency
from learndyn.diagnose.findings.faults.exchanged import Exchanged
from learndyn.diagnose.findings.faults.format_mismatch import FormatMismatch
from learndyn.diagnose.findings.faults.margin_falls import MarginFalls
from learndyn.diagnose.findings.faults.not_training import NotTraining
from learndyn.diagnose.findings.faults.one_label import OneLabel
from learndyn.diagnose.findings.faults.reference import Reference
from learndyn.diagnose.findings.faults.saturated import Saturated
from learndyn.diagnose.findings.faults.steps_too_large import StepsTooLarge
from learndyn.diagnose.findings.faults.truncated import Truncated
from learndyn.diagnose.findings.faults.unread_log import UnreadLog
from learndyn.diagnose.findings.faults.unusable import (
    AboveZero,
    Diverged,
    NoStart,
    OneObservation,
)
from learndyn.diagnose.findings.finding import Finding
from learndyn.diagnose.findings.signs.chosen_peak import ChosenPeak
from learndyn.diagnose.findings.signs.eos_unlearned import EosUnlearned
from learndyn.diagnose.findings.signs.hallucination import Hallucination
from learndyn.diagnose.findings.signs.length_drift import LengthDrift
from learndyn.diagnose.findings.signs.overfit import Overfit
from learndyn.diagnose.findings.signs.peakiness import Peakiness
from learndyn.diagnose.findings.signs.per_token import PerToken
from learndyn.diagnose.findings.signs.recorded_updates import RecordedUpdates
from learndyn.diagnose.findings.signs.split_disagrees import SplitDisagrees
from learndyn.diagnose.findings.state import RunState


FINDINGS: tuple[type[Finding], ...] = (
    *(NoStart, Diverged, OneObservation),
    *(AboveZero, NotTraining, OneLabel, StepsTooLarge, Reference, Truncated),
    *(Exchanged, MarginFalls, FormatMismatch, Saturated),
    *(RunState, RecordedUpdates, PerToken, UnreadLog, ChosenPeak),
    Consistency,
    *(EosUnlearned, LengthDrift, Overfit, SplitDisagrees, Hallucination, Peakiness),
    *(cautions.Defects, cautions.Unreadable, cautions.Missing, cautions.LateStart),
    *(cautions.Approximate, cautions.MeansOnly, cautions.FewPrompts),
    *(cautions.NotFinite, cautions.PanelOnly),
    Baseline,
)
"""Everything that is looked for, in this order. The first that has a headline gives the
verdict's first sentence, the first fault that has advice the advice."""
