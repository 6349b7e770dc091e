"""Which probes were trained on: a trainer's rows against a probe set.

Rows are compared as texts where the data set still has them, and otherwise as the token
ids that the trainer made of them. Prompt and response are compared joined as well: TRL
and learndyn do not always cut a dialogue at the same place.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from learndyn.probes.probe import ProbeSet
from learndyn.probes.token_rows import IdIndex, JoinedRows, TokenRows
from learndyn.probes.tokenize import TokenizedProbes


RAISED, LOWERED = "raised", "lowered"

_ARROW: Any = pc  # it makes its functions at run time, where no type checker looks


@dataclass(frozen=True, slots=True)
class Trained:
    """What is known of the rows that a run trained on."""

    rows: int | None = None
    """Training examples of one epoch, after the trainer's own filters."""
    matched_by: str | None = None
    """ "text" or "ids"; None where it is not known which probes were trained on."""
    prompts: frozenset[str] = frozenset()
    """Prompt ids of the probes whose prompt was trained on."""
    raised: frozenset[int] = frozenset()
    """Rows of `probes.parquet` that were trained on as an answer to raise: chosen,
    desirable, or what SFT imitates."""
    lowered: frozenset[int] = frozenset()
    """Rows that were trained on as an answer to lower: rejected or undesirable."""
    why_unknown: str = ""
    """Why nothing is known, in words."""

    def to_info(self) -> dict[str, Any]:
        """The entry `trained` of `run.json`."""
        if self.matched_by is None:
            unknown = {"matched_by": None, "why_unknown": self.why_unknown}
            return {"rows": self.rows, **unknown}
        return {
            "rows": self.rows,
            "matched_by": self.matched_by,
            "prompts": sorted(self.prompts),
            "raised": sorted(self.raised),
            "lowered": sorted(self.lowered),
        }

    @classmethod
    def of_info(cls, entry: Any) -> "Trained | None":
        """Inverse of `to_info`; None if it is anything else."""
        if not isinstance(entry, Mapping):
            return None
        rows, by = entry.get("rows"), entry.get("matched_by")
        rows = rows if isinstance(rows, int) else None
        if by is None:
            return cls(rows, why_unknown=str(entry.get("why_unknown") or ""))
        lists = [entry.get(name) for name in ("prompts", RAISED, LOWERED)]
        prompts, raised, lowered = (v if isinstance(v, list) else [] for v in lists)
        return cls(
            rows,
            str(by),
            frozenset(p for p in prompts if isinstance(p, str)),
            frozenset(i for i in raised if isinstance(i, int)),
            frozenset(i for i in lowered if isinstance(i, int)),
        )


@dataclass
class _Findings:
    """Probes that were met among the rows so far."""

    prompts: set[str] = field(default_factory=set)
    raised: set[int] = field(default_factory=set)
    lowered: set[int] = field(default_factory=set)

    def add(self, rows: Iterable[int], role: str) -> None:
        (self.raised if role == RAISED else self.lowered).update(rows)


def trained_on_texts(
    probes: ProbeSet, batches: Iterable[Mapping[str, Any]], eos: str = ""
) -> Trained:
    """Match rows that are texts.

    Each batch has a column `prompt` and any of `raised` and `lowered`, each a list or
    Arrow array of texts. White space at the ends and `eos`, the tokenizer's
    end-of-text, do not count. Where no probe is met although some are of split
    "train", the rows may as well be written otherwise (by another chat template, say),
    so it is not known.
    """
    index = _TextIndex.of(probes, eos)
    findings, count = _Findings(), 0
    for batch in batches:
        prompts = _texts(batch["prompt"])
        count += len(prompts)
        findings.prompts |= index.prompts_in(prompts)
        for role in (RAISED, LOWERED):
            if role in batch:
                rows = index.pairs_in(prompts, _texts(batch[role]))
                findings.add(rows, role)
                findings.prompts.update(probes[i].prompt_id for i in rows)
    return _result(findings, probes, count, "text")


def trained_on_ids(
    probes: TokenizedProbes,
    batches: Iterable[Mapping[str, TokenRows | JoinedRows]],
    special: tuple[int | None, int | None],
) -> Trained:
    """Match rows that are token ids.

    Each batch has any of `raised` and `lowered`, whose rows hold prompt and response
    together or apart. `special` are the ids of the tokenizer's beginning and end of
    text: a row may have either where the probes have not.
    """
    index = IdIndex(probes.pairs, *special)
    findings, count = _Findings(), 0
    for batch in batches:
        count += max(len(rows) for rows in batch.values())
        for role, rows in batch.items():
            prompts, answers = index.find(rows)
            findings.add(answers, role)
            met = prompts | answers
            findings.prompts.update(probes.probes[i].prompt_id for i in met)
    return _result(findings, probes.probes, count, "ids")


def _result(findings: _Findings, probes: ProbeSet, count: int, by: str) -> Trained:
    prompts = frozenset(findings.prompts)
    of_train = any(probe.split == "train" for probe in probes)
    if not prompts and (of_train or by == "ids"):
        why = "no probe is among the rows, or they are written otherwise"
        return Trained(count, why_unknown=why)
    raised, lowered = frozenset(findings.raised), frozenset(findings.lowered)
    return Trained(count, by, prompts, raised, lowered)


@dataclass(frozen=True)
class _TextIndex:
    """The probes' texts: their prompts, and prompt and response joined."""

    prompts: pa.Array
    ids_of_prompt: Sequence[set[str]]
    pairs: pa.Array
    rows_of_pair: Sequence[set[int]]

    @classmethod
    def of(cls, probes: ProbeSet, eos: str) -> "_TextIndex":
        prompts: dict[str, set[str]] = {}
        pairs: dict[str, set[int]] = {}
        for i, probe in enumerate(probes):
            prompts.setdefault(probe.prompt.strip(), set()).add(probe.prompt_id)
            text = (probe.prompt + probe.response).strip().removesuffix(eos).strip()
            for form in {text, text + eos}:
                pairs.setdefault(form, set()).add(i)
        return cls(
            pa.array(prompts, pa.large_string()),
            list(prompts.values()),
            pa.array(pairs, pa.large_string()),
            list(pairs.values()),
        )

    def prompts_in(self, prompts: pa.Array) -> set[str]:
        hits = _hits(prompts, self.prompts)
        return {name for hit in hits for name in self.ids_of_prompt[hit]}

    def pairs_in(self, prompts: pa.Array, responses: pa.Array) -> set[int]:
        nothing = pa.scalar("", pa.large_string())
        joined = _ARROW.binary_join_element_wise(prompts, responses, nothing)
        return {
            row for hit in _hits(joined, self.pairs) for row in self.rows_of_pair[hit]
        }


def _hits(texts: pa.Array, among: pa.Array) -> list[int]:
    """Positions in `among` of the texts that are there."""
    index = _ARROW.index_in(_ARROW.utf8_trim_whitespace(texts), value_set=among)
    return index.unique().drop_null().to_pylist()


def _texts(values: Any) -> pa.Array:
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if isinstance(values, pa.Array):
        return values.cast(pa.large_string())
    return pa.array([str(v) for v in values], pa.large_string())
