"""Which preference pairs are likely to squeeze: asked of the model before training.

Two questions for each pair: what would a push on its rejected answer do to the softmax
(`learndyn.forces.foresight.tau`), and how alike are both answers to the model
(`learndyn.forces.foresight.ches`)? Nothing is trained, and the model is left as it was.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float, Int

from learndyn.diagnose.numbers import figures, nats
from learndyn.errors import BadInput
from learndyn.forces.foresight.ches import Eos, ches_with
from learndyn.forces.foresight.tau import PushDown, push_down_all
from learndyn.forces.gradients import TokenLogps
from learndyn.measure.forward import context_of
from learndyn.measure.load import load_model, load_tokenizer
from learndyn.measure.score import Scorer
from learndyn.probes.data import Data, Row, read_data
from learndyn.probes.kinds import AUTHORS_KINDS
from learndyn.probes.tokenize import PairTokenizer
from learndyn.record.files import refuse_taken_file, write_whole


_LISTED = 5
"""Pairs that the text names."""

_FEW_PAIRS = 20
"""Below this a rank says little; the text says so."""


def _median(values: np.ndarray) -> float:
    """Median of the numbers that there are; NaN where there is none."""
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else float("nan")


@dataclass(frozen=True)
class Foreseen:
    """Which pairs to look at, with which model.

    Raises:
        BadInput: if `pairs` is below 1 or `dtype` unknown.
    """

    model: str
    data: str
    split: str = "train"
    pairs: int = 100
    """How many; the first ones that have chosen and rejected."""
    empty: Literal["error", "keep", "drop"] = "error"
    mismatched: Literal["error", "drop"] = "error"
    max_length: int | None = None
    """Cut prompt + response to so many tokens; by default what the model reads, and at
    most 1024."""
    max_prompt_length: int | None = None
    dtype: str = "float32"
    out: Path | None = None
    """Parquet file with one row per pair."""
    eos: Eos = "include"
    """Whether the state that predicts EOS counts in CHES."""
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.pairs < 1:
            raise BadInput(f"pairs is {self.pairs}: give 1 or more.")
        if self.dtype not in ("float32", "float64", "bfloat16"):
            raise BadInput(
                f"dtype is {self.dtype!r}: give float32, float64 or bfloat16."
            )


@dataclass(frozen=True, eq=False)
class Foresight:
    """Every pair's numbers before training. Sums and shares are over the answer's
    tokens, its EOS included."""

    settings: Foreseen
    row_ids: tuple[str, ...]
    columns: dict[str, np.ndarray]
    """Name -> one number per pair, see `_COLUMNS`."""
    vocabulary: int
    left_out: int
    """Rows that lack chosen or rejected, among those that were gone through."""
    truncated: int
    """Pairs with an answer or prompt that was cut."""

    def __len__(self) -> int:
        return len(self.row_ids)

    @cached_property
    def worst(self) -> Int[np.ndarray, " pair"]:
        """Positions of all pairs, the highest LN-CHES first."""
        return np.argsort(-self.columns["ln_ches"], kind="stable")

    def to_table(self) -> pa.Table:
        """One row per pair, in the data's order; each column says what it holds."""
        about = {"row_id": "as in the data", **_COLUMNS}
        columns = {"row_id": list(self.row_ids), **self.columns}
        fields = [
            pa.field(name, pa.array(values).type, metadata={"about": about[name]})
            for name, values in columns.items()
        ]
        return pa.table(list(columns.values()), schema=pa.schema(fields))

    def to_dict(self) -> dict[str, Any]:
        """For `--json`: what was looked at, medians, and the pairs in order of rank."""
        return {
            "model": self.settings.model,
            "data": self.settings.data,
            "split": self.settings.split,
            "dtype": self.settings.dtype,
            "eos": self.settings.eos,
            "vocabulary": self.vocabulary,
            "left_out": self.left_out,
            "truncated": self.truncated,
            "out": None if self.settings.out is None else str(self.settings.out),
            "median": {name: _median(v) for name, v in self.columns.items()},
            "pairs": [
                {"row_id": self.row_ids[i]}
                | {name: values[i].item() for name, values in self.columns.items()}
                for i in self.worst
            ],
        }

    def to_text(self) -> str:
        """For people."""
        lines = [
            f"Before any training: {len(self)} pairs of {self.settings.data}, as "
            f"{self.settings.model} stands.",
            "",
            *_sentences(self),
            "",
            *_ranking(self),
        ]
        if self.settings.out is not None:
            lines += ["", f"every pair: {self.settings.out}"]
        return "\n".join(lines)


_COLUMNS: dict[str, str] = {
    "ches": "<S+, S-> - ||S+||^2, S the sum of an answer's last hidden states",
    "ln_ches": "the same of the means of the states",
    "inner": "<S+, S->",
    "chosen_norm2": "||S+||^2",
    "n_chosen": "states of chosen that are summed",
    "n_rejected": "states of rejected that are summed",
    "chosen_logp": "log pi(chosen | prompt), nats",
    "rejected_logp": "log pi(rejected | prompt), nats",
    "rejected_tokens": "tokens of rejected, EOS included",
    "off_target": "share of these tokens where the model's argmax is another token",
    "tau": "mean over these tokens of ||pi||^2 - pi(y)",
    "peakiness": "mean over these tokens of ||pi||^2",
    "label_rate": "mean over these tokens of d log pi(y), nats per unit of push down",
    "winners": "median over off-target tokens of how many tokens rise under a push "
    "down; NaN, like the two below, where no token is off-target",
    "favourite_rate": "mean over off-target tokens of d log pi(argmax), nats per unit "
    "of push, as softmax theory predicts it",
    "favourite_gain": "mean over off-target tokens of d pi(argmax), per unit of push",
}
"""Columns with one number per pair, and what each holds."""


def foresee(settings: Foreseen, *, overwrite: bool = False) -> Foresight:
    """Look at preference pairs with a model before training; writes `settings.out`.

    Raises:
        BadInput: if something cannot be read or does not fit, if no row has chosen and
            rejected, or `out` exists and `overwrite` is false.
    """
    refuse_taken_file(settings.out, overwrite)
    trust = {"trust_remote_code": settings.trust_remote_code}
    tokenizer = load_tokenizer(settings.model, **trust)
    data = read_data(
        settings.data,
        split=settings.split,
        aliases=AUTHORS_KINDS,
        empty=settings.empty,
        mismatched=settings.mismatched,
        tokenizer=tokenizer,
    )
    rows, left_out = _preferences(data, settings.pairs)
    model = load_model(settings.model, dtype=getattr(torch, settings.dtype), **trust)
    length = settings.max_length or context_of(model)
    encode = PairTokenizer(tokenizer, length, settings.max_prompt_length)
    chosen, rejected = (
        [encode(row.prompt, row.responses[kind], row.rendered) for row in rows]
        for kind in ("chosen", "rejected")
    )
    scorer = Scorer.attach(model, (*chosen, *rejected))
    end: Any = tokenizer.eos_token_id
    foresight = Foresight(
        settings,
        tuple(row.row_id for row in rows),
        _columns_of(scorer, settings.eos, end),
        TokenLogps.of(scorer).vocabulary,
        left_out,
        sum(a.truncated or b.truncated for a, b in zip(chosen, rejected, strict=True)),
    )
    if settings.out is not None:
        settings.out.parent.mkdir(parents=True, exist_ok=True)
        table = foresight.to_table()
        write_whole(
            settings.out, lambda path: pq.write_table(table, path, compression="zstd")
        )
    return foresight


def _columns_of(
    scorer: Scorer, eos: Eos = "include", eos_id: int | None = None
) -> dict[str, np.ndarray]:
    """All `_COLUMNS`, from a scorer of all chosen and then all rejected answers."""
    half = len(scorer.plan.pairs) // 2
    similar = ches_with(scorer, eos, eos_id)
    both = TokenLogps.of(scorer)
    chosen, logps = both.select(range(half)), both.select(range(half, 2 * half))
    pushed = push_down_all(logps)
    columns = {
        "ches": similar.ches,
        "ln_ches": similar.ln_ches,
        "inner": similar.inner,
        "chosen_norm2": similar.chosen_norm2,
        "n_chosen": similar.n_chosen,
        "n_rejected": similar.n_rejected,
        "chosen_logp": chosen.summed(chosen.values()),
        **_of_rejected(logps, pushed),
    }
    return {name: columns[name] for name in _COLUMNS}


def _of_rejected(logps: TokenLogps, pushed: PushDown) -> dict[str, np.ndarray]:
    """Each answer's means over its tokens, and over its off-target tokens."""
    tokens = np.diff(logps.offsets)
    off = pushed.off_target.double().numpy()
    count = logps.summed(off)

    def summed(name: str) -> Float[np.ndarray, " pair"]:
        return logps.summed(getattr(pushed, name).double().numpy())

    def off_target(name: str) -> Float[np.ndarray, " pair"]:
        total = logps.summed(off * getattr(pushed, name).numpy())
        return np.where(count == 0, np.nan, total / np.maximum(count, 1))

    # At off-target tokens alone: where the label is the favourite itself, a push down
    # lifts the runner-up, and that is not the squeezing effect.
    counts = np.where(off > 0, pushed.winners.double().numpy(), np.nan)
    rising = np.split(counts, logps.offsets[1:-1])
    return {
        "rejected_logp": summed("logp"),
        "rejected_tokens": tokens,
        "off_target": count / tokens,
        "tau": summed("tau") / tokens,
        "peakiness": summed("p_norm2") / tokens,
        "label_rate": summed("label_rate") / tokens,
        "winners": np.array([_median(one) for one in rising]),
        "favourite_rate": off_target("favourite_rate"),
        "favourite_gain": off_target("favourite_gain"),
    }


def _preferences(data: Data, most: int) -> tuple[list[Row], int]:
    """The first rows with chosen and rejected, and how many before them lack one."""
    rows: list[Row] = []
    left_out = 0
    for row in data.rows:
        if len(rows) == most:
            break
        if {"chosen", "rejected"} <= row.responses.keys():
            rows.append(row)
        else:
            left_out += 1
    if not rows:
        have = sorted({kind for row in data.rows for kind in row.responses})
        raise BadInput(
            f"no row of {data.source} has chosen and rejected; the rows have "
            f"{', '.join(have)}. Name the columns so, or give preference data."
        )
    return rows, left_out


def _sentences(foresight: Foresight) -> list[str]:
    """What the numbers mean, each in a plain sentence."""
    columns = foresight.columns
    per_token = columns["rejected_logp"] / columns["rejected_tokens"]
    off, winners, rate = (
        _median(columns[name]) for name in ("off_target", "winners", "favourite_rate")
    )
    score = columns["ln_ches"]
    lines = [
        f"Rejected has a log-probability of {nats(_median(per_token), 2)} nats per "
        f"token, and at {off:.0%} of its tokens the model prefers another one "
        "(medians over pairs, here and below).",
    ]
    if np.isfinite(winners):
        lines.append(
            "There a push down takes probability from the token and gives it to the "
            f"favourite and to whatever else is above tau: to {winners:g} of "
            f"{foresight.vocabulary} tokens. Softmax theory has the favourite gain "
            f"{nats(rate, 2)} nats per unit of push; its direction is more reliable "
            "than its size."
        )
    lines.append(
        "LN-CHES, how alike both answers are to the model, goes from "
        f"{figures(score.min())} to {figures(score.max())}, around "
        f"{figures(_median(score))}. It has no calibrated zero: it ranks pairs of one "
        "model."
    )
    if foresight.left_out:
        lines.append(f"{foresight.left_out} rows lack chosen or rejected: left out.")
    if foresight.truncated:
        lines.append(
            f"{foresight.truncated} of {len(foresight)} pairs are longer than the "
            "limit and were cut: a cut answer has no EOS."
        )
    if len(foresight) < _FEW_PAIRS:
        pairs = "1 pair" if len(foresight) == 1 else f"{len(foresight)} pairs"
        lines.append(f"Only {pairs}: a rank among so few says little.")
    return lines


def _ranking(foresight: Foresight) -> list[str]:
    """The pairs to look at first, and what may be done about them."""
    first: list[int] = foresight.worst[:_LISTED].tolist()
    wide = max(6, *(len(foresight.row_ids[i]) for i in first))
    lines = [
        "To look at first, or to leave out: the pairs of the highest LN-CHES.",
        f"{'row':{wide}} {'LN-CHES':>10} {'CHES':>12} {'off-target':>10} "
        f"{'winners':>8} {'nats/token':>10}",
    ]
    for i in first:
        at = {name: float(values[i]) for name, values in foresight.columns.items()}
        lines.append(
            f"{foresight.row_ids[i]:{wide}} {figures(at['ln_ches'], 4):>10} "
            f"{figures(at['ches'], 5):>12} {at['off_target']:10.0%} "
            f"{at['winners']:8g} "
            f"{nats(at['rejected_logp'] / at['rejected_tokens'], 2):>10}"
        )
    return [
        *lines,
        "To leave such pairs out is the remedy of Razin et al. (arXiv 2410.08847), who "
        "on refusal data trained on the 5 % of pairs with the lowest LN-CHES. That is "
        "literature. In learndyn's embedded world LN-CHES ranked pairs by the later "
        "drop of chosen, but weakly (rank correlation 0.1 to 0.2), the tau test did "
        "not, and chosen's own log-probability did better than both (0.7): "
        "docs/foresight.md.",
    ]
