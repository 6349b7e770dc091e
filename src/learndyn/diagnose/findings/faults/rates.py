"""Learning rates that are usual for a method: a hint beside what a run shows, never a
proof, since small models bear far larger ones."""

from typing import NamedTuple

from learndyn.diagnose.findings.faults.log import short
from learndyn.record.run_info import RunInfo


class _Usual(NamedTuple):
    """The range of a method's learning rates with Adam, and who uses it."""

    low: float
    high: float
    source: str


_FULL = {
    "sft": _Usual(1e-5, 5e-5, "TRL's default and Alpaca 2e-5"),
    "dpo": _Usual(1e-7, 5e-6, "TRL's default and the DPO paper 1e-6, Zephyr 5e-7"),
    "kto": _Usual(1e-7, 5e-6, "TRL's default 1e-6, its example 5e-7"),
    "orpo": _Usual(1e-6, 1e-5, "TRL's default 1e-6, its example 8e-6"),
    "cpo": _Usual(1e-7, 5e-6, "TRL's default 1e-6, SimPO paper 3e-7 to 1e-6"),
    "grpo": _Usual(1e-7, 5e-6, "TRL's default and DeepSeekMath 1e-6"),
}
_ADAPTER = {
    "sft": _Usual(1e-4, 5e-4, "LoRA and QLoRA papers 2e-4"),
    "dpo": _Usual(5e-6, 2e-4, "Zephyr's QLoRA recipe 5e-6; adapters bear more"),
}
_SAME = {"ipo": "dpo", "simpo": "cpo", "bco": "kto", "rloo": "grpo", "dapo": "grpo"}
"""Methods with the range of another."""

_SMALL_MODEL = 1e8
"""Parameters below which the range is stretched upwards, by the root of the ratio."""

_FAR = 10.0


def _usual_rates(info: RunInfo) -> _Usual | None:
    """The usual range for the method and what trains; None of a method or an optimizer
    that is not known here."""
    if "adam" not in str(info.trainer.get("optim", "adam")).lower():
        return None
    name = "sft" if info.sft else _SAME.get(info.method, info.method)
    if info.trains_adapter and name in _FULL:
        return _ADAPTER["sft" if info.sft else "dpo"]
    return _FULL.get(name)


def above(info: RunInfo, rate: float) -> bool:
    """Whether a rate is above the range, after the allowance for small models: the root
    of 1e8 / parameters."""
    usual = _usual_rates(info)
    return usual is not None and rate > usual.high * _allowance(info)


def far_above(info: RunInfo, rate: float) -> bool:
    """Whether it is so 10 times over."""
    return above(info, rate / _FAR)


def far_below(info: RunInfo, rate: float) -> bool:
    """Whether a rate is 10 times below the range."""
    usual = _usual_rates(info)
    return usual is not None and 0 < rate < usual.low / _FAR


def in_words(info: RunInfo) -> str:
    """The usual range as a sentence; empty where it is not known."""
    usual = _usual_rates(info)
    if usual is None:
        return ""
    trains = "an adapter" if info.trains_adapter else "all weights"
    small = _allowance(info) > 1
    more = f"; a model of {info.parameters:,} parameters bears more" if small else ""
    name = info.method.upper() if len(info.method) <= 4 else info.method
    return (
        f" For {name} of {trains} {short(usual.low)} to {short(usual.high)} is usual "
        f"({usual.source}){more}."
    )


def _allowance(info: RunInfo) -> float:
    if info.parameters is None:
        return 1.0
    return max(1.0, (_SMALL_MODEL / info.parameters) ** 0.5)
