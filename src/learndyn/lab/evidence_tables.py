"""Tables of `learndyn.lab.evidence`, with what is claimed and whether it held."""

from collections.abc import Callable, Sequence
from typing import Any


Cell = dict[str, Any]


def to_markdown(cells: Sequence[Cell]) -> str:
    """All tables and the list of claims, as Markdown."""
    if not cells:
        return "Nothing is measured yet.\n"
    parts = [
        "### DPO after SFT, at a probe margin of 25 nats\n",
        "Small steps (lr 1e-5, 400 updates):\n",
        _table(_main("dpo"), cells),
        "The demo's steps (lr 3e-5, 200 updates):\n",
        _table(_main("demo"), cells),
        "### Controls\n",
        "Change of the argmax along chosen, small steps, at a margin of 25 nats, or at "
        "the last update where it is marked *.\n",
        _table(_CONTROLS, cells),
        "### Who moved the argmax: the first update, per nat of margin\n",
        _table(_SPLIT, cells),
        "### Extend against DPO, three ways to compare\n",
        "The demo's steps. Differences, extend minus DPO, of chosen and of the argmax "
        "along it: of their changes at equal updates and at matched margin, of their "
        "levels at matched gap.\n",
        _table(_EXTEND, cells),
        "### Claims\n",
        _claims(cells),
    ]
    return "\n".join(parts)


def _table(columns: dict[str, Callable[[Cell], str]], cells: Sequence[Cell]) -> str:
    lines = [
        "| " + " | ".join(columns) + " |",
        "|---" * len(columns) + "|",
    ]
    lines += [
        "| " + " | ".join(column(cell) for column in columns.values()) + " |"
        for cell in cells
    ]
    return "\n".join(lines) + "\n"


def _interval(value: list[float] | None, scale: float = 1.0, digits: int = 2) -> str:
    if value is None:
        return "not reached"
    mean, low, high = (scale * number for number in value)
    text = f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
    return text.replace("-", "−")


def _percent(value: list[float] | None) -> str:
    return _interval(value, 100, 1)


def _control(name: str) -> Callable[[Cell], str]:
    def show(cell: Cell) -> str:
        return _percent(cell[name]["argmax_relative"]) + _star(cell[name])

    return show


def _star(run: dict[str, Any]) -> str:
    """Marks a run that never came to the margin, with the margin it came to."""
    return "" if run["reached"] else f" * margin {run['margin'][0]:.1f}"


def _rate(optimizer: str, part: str, what: str) -> Callable[[Cell], str]:
    def show(cell: Cell) -> str:
        return f"{cell['split'][optimizer][part][what]:+.3f}".replace("-", "−")

    return show


def _extended(by: str, what: str) -> Callable[[Cell], str]:
    return lambda cell: _interval(cell["extend"][by][what])


_NAMES: dict[str, Callable[[Cell], str]] = {
    "model": lambda cell: str(cell["model"]).removeprefix("seed-"),
    "data": lambda cell: str(cell["seed"]),
}


def _main(run: str) -> dict[str, Callable[[Cell], str]]:
    return {
        **_NAMES,
        "update": lambda cell: f"{cell[run]['step']:.0f}{_star(cell[run])}",
        "chosen, nats": lambda cell: _interval(cell[run]["chosen"]),
        "argmax along chosen, %": lambda cell: _percent(cell[run]["argmax_relative"]),
        "off-target, nats/token": lambda cell: _interval(cell[run]["off_target"]),
        "kinds down (surely)": lambda cell: (
            f"{cell[run]['down']} ({cell[run]['surely_down']}) of "
            f"{len(cell[run]['kinds'])}"
        ),
        "right after SFT / last update": lambda cell: (
            f"{cell['strict_after_sft']:.0%} / {cell[f'strict_after_{run}']:.0%}"
        ),
    }


_CONTROLS: dict[str, Callable[[Cell], str]] = {
    **_NAMES,
    "curt (the default), %": _control("dpo"),
    "flat wordings, %": _control("flat"),
    "word salad, %": _control("salad"),
    "on-policy, %": _control("on-policy"),
}

_SPLIT: dict[str, Callable[[Cell], str]] = {
    **_NAMES,
    "argmax by y+, RMSprop": _rate("rmsprop", "pull", "argmax"),
    "argmax by y−, RMSprop": _rate("rmsprop", "push", "argmax"),
    "argmax by y+, SGD": _rate("sgd", "pull", "argmax"),
    "argmax by y−, SGD": _rate("sgd", "push", "argmax"),
    "chosen by y+, RMSprop": _rate("rmsprop", "pull", "chosen"),
    "chosen by y−, RMSprop": _rate("rmsprop", "push", "chosen"),
    "rejected by y−, RMSprop": _rate("rmsprop", "push", "rejected"),
}

_EXTEND: dict[str, Callable[[Cell], str]] = {
    **_NAMES,
    "chosen, equal updates": _extended("updates", "chosen"),
    "chosen, matched margin": _extended("margin", "chosen"),
    "chosen, matched gap": _extended("gap", "chosen"),
    "argmax, equal updates": _extended("updates", "argmax"),
    "argmax, matched margin": _extended("margin", "argmax"),
    "argmax, matched gap": _extended("gap", "argmax"),
    "right after extend": lambda cell: f"{cell['strict_after_extend']:.0%}",
}


def _fell(run: str) -> Callable[[Cell], bool]:
    return lambda cell: cell[run]["reached"] and cell[run]["chosen"][2] < 0


def _rose(run: str) -> Callable[[Cell], bool]:
    def holds(cell: Cell) -> bool:
        mean, low, _ = cell[run]["argmax_relative"]
        return cell[run]["reached"] and mean > 0.02 and low > 0

    return holds


def _off_target_rose(run: str) -> Callable[[Cell], bool]:
    return lambda cell: cell[run]["reached"] and cell[run]["off_target"][0] > 0


def _kinds_fell(run: str) -> Callable[[Cell], bool]:
    def holds(cell: Cell) -> bool:
        seen = cell[run]
        return seen["reached"] and seen["down"] >= 0.8 * len(seen["kinds"])

    return holds


def _by_push(optimizer: str) -> Callable[[Cell], bool]:
    def holds(cell: Cell) -> bool:
        parts = cell["split"][optimizer]
        return parts["push"]["argmax"] > max(0.0, parts["pull"]["argmax"])

    return holds


def _small(cell: Cell, name: str) -> bool:
    return abs(cell[name]["argmax_relative"][0]) < 0.02


_SQUEEZE: dict[str, Callable[[str], Callable[[Cell], bool]]] = {
    "chosen is below its start, interval excluding 0": _fell,
    "the argmax along chosen rose by > 2 %, interval excluding 0": _rose,
    "the off-target argmax rose": _off_target_rose,
    "at least 80 % of the kinds are down": _kinds_fell,
}

_CLAIMS: dict[str, Callable[[Cell], bool]] = {
    "Greedy answers to held-out prompts are right in every respect for >= 80 % after "
    "SFT": lambda c: c["strict_after_sft"] >= 0.8,
    **{f"Demo's steps, margin 25: {what}": of("demo") for what, of in _SQUEEZE.items()},
    **{f"Small steps, margin 25: {what}": of("dpo") for what, of in _SQUEEZE.items()},
    "Flat wordings: the argmax is not up (interval not above 0)": lambda c: (
        c["flat"]["argmax_relative"][1] <= 0
    ),
    "Word salad: the argmax moved by < 2 %": lambda c: _small(c, "salad"),
    "On-policy: the argmax moved by < 2 %": lambda c: _small(c, "on-policy"),
    "The y− part of the first update carries the argmax's rise, SGD": _by_push("sgd"),
    "The y− part of the first update carries the argmax's rise, RMSprop": _by_push(
        "rmsprop"
    ),
}
"""A claim about margin 25 counts as failed where the run did not come so far."""


def _claims(cells: Sequence[Cell]) -> str:
    lines = ["| claim | held in | failed in (model, data) |", "|---|---|---|"]
    for claim, holds in _CLAIMS.items():
        failed = [f"({_NAMES['model'](c)}, {c['seed']})" for c in cells if not holds(c)]
        lines.append(
            f"| {claim} | {len(cells) - len(failed)} of {len(cells)} | "
            f"{' '.join(failed) or '—'} |"
        )
    return "\n".join(lines) + "\n"
