"""Watch, explain and diagnose the learning dynamics of LLM finetuning.

These are the public names of the wing that reads; importing them loads no torch. What
measures is imported from where it lives: `learndyn.train.callback`,
`learndyn.measure.score`.
"""

from learndyn.errors import BadInput
from learndyn.probes.kinds import PAPER_KINDS
from learndyn.probes.probe import Probe, ProbeSet
from learndyn.record.observation import Observation
from learndyn.record.run_directory import RunDirectory
from learndyn.record.trajectory import Trajectory


__all__ = [
    "PAPER_KINDS",
    "BadInput",
    "Observation",
    "Probe",
    "ProbeSet",
    "RunDirectory",
    "Trajectory",
]
