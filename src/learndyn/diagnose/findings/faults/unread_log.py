"""Lines of the training log that are lost."""

from learndyn.diagnose.facts import Facts
from learndyn.diagnose.findings.finding import CAUTION, Finding, Place
from learndyn.record.run_directory import TrainLog


class UnreadLog(Finding):
    """Lines of train.jsonl in which nothing was looked for."""

    name = "train_log"
    section = "data"

    @classmethod
    def detect(cls, facts: Facts) -> Finding | None:
        """None where all of it was read, and for runs that no trainer logged."""
        run = facts.trajectory.run
        path = run.path / "train.jsonl"
        if facts.unit != "update" or run.info.method == "explain":
            return None
        log = TrainLog.read(path)
        unlooked = "so loss and gradient norm were not checked for jumps"
        if log.unread:
            lines = f"{log.unread} line{'s' if log.unread > 1 else ''} of train.jsonl"
            there = " there" if log.rows else ""
            says = f"{lines} cannot be read, {unlooked}{there}."
            return cls("watch", says, {"unread": log.unread})
        if log.rows:
            return None
        lacks = "holds nothing that can be read" if path.exists() else "is absent"
        return cls("fine", f"train.jsonl {lacks}, {unlooked}.")

    @property
    def place(self) -> Place | None:
        """Among what a reader must know before believing the numbers."""
        return CAUTION if self.severity == "watch" else None
