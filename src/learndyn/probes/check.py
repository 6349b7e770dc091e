"""What a probe set's kinds differ in besides their meaning.

Two kinds are compared by their log-probabilities. A kind that is longer, lacks the
leading space, or repeats another kind differs for that reason too. `check` lists all
such confounds.
"""

import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from learndyn.probes.kinds import in_paper_order
from learndyn.probes.probe import Probe, ProbeSet
from learndyn.probes.tokenize import tokenize


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_LENGTH_RATIO = 1.5
"""Mean lengths further apart than this factor are reported."""

Severity = Literal["problem", "warning", "note"]


class Confound(NamedTuple):
    """One thing besides meaning in which kinds differ."""

    severity: Severity
    """"problem": numbers would mislead; "warning": mind it when comparing kinds;
    "note": worth knowing."""
    title: str
    detail: str


@dataclass(frozen=True, slots=True)
class KindSummary:
    """One kind in numbers."""

    kind: str
    n: int
    empty: int
    distinct: int
    """Different texts among the n."""
    leading_space: float
    """Share of the non-empty responses that begin with white space."""
    words: float
    """Mean words of a response."""
    words_ratio: float | None
    """To chosen's mean."""
    tokens: float | None
    """Mean scored tokens, end-of-text included; None without a tokenizer."""
    tokens_ratio: float | None


@dataclass(frozen=True)
class CheckReport:
    """The confounds of a probe set."""

    n_probes: int
    n_prompts: dict[str, int]
    """split -> number of prompts."""
    fingerprint: str
    kinds: tuple[KindSummary, ...]
    findings: tuple[Confound, ...]
    """Problems first."""

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        return {
            "n_probes": self.n_probes,
            "n_prompts": self.n_prompts,
            "fingerprint": self.fingerprint,
            "kinds": [asdict(kind) for kind in self.kinds],
            "findings": [finding._asdict() for finding in self.findings],
        }

    def to_text(self) -> str:
        """The report for a terminal, at most 88 columns wide."""
        prompts = sum(self.n_prompts.values())
        splits = ", ".join(f"{n} {split}" for split, n in self.n_prompts.items())
        head = (
            f"{self.n_probes} probes: {prompts} prompts ({splits}), "
            f"{len(self.kinds)} kinds, fingerprint {self.fingerprint[:12]}"
        )
        parts = [head, "", *_table(self.kinds), "", self._tally()]
        for finding in self.findings:
            parts += ["", f"{finding.severity.upper():<8} {finding.title}"]
            indent = " " * 9
            parts += textwrap.wrap(
                finding.detail,
                88,
                initial_indent=indent,
                subsequent_indent=indent,
                break_on_hyphens=False,
            )
        return "\n".join(parts)

    def _tally(self) -> str:
        counts = Counter(finding.severity for finding in self.findings)
        return ", ".join(
            f"{counts[name]} {name}{'' if counts[name] == 1 else 's'}"
            for name in get_args(Severity)
        )


def check_probes(
    probes: ProbeSet | str | Path,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    *,
    max_length: int = 1024,
    max_prompt_length: int | None = None,
) -> CheckReport:
    """List what could mislead a reader of the numbers of these probes.

    With a tokenizer, lengths are counted in tokens too, and cuts at `max_length` and
    special tokens in the texts are found.
    """
    probes = ProbeSet.of(probes)
    by_kind = {k: [p for p in probes if p.kind == k] for k in probes.kinds}
    tokens: dict[str, float] = {}
    findings: list[Confound] = []
    if tokenizer is not None:
        ids = tokenize(
            probes,
            tokenizer,
            max_length=max_length,
            max_prompt_length=max_prompt_length,
        )
        counts: dict[str, list[int]] = {}
        for probe, n in zip(probes, ids.n_tokens, strict=True):
            counts.setdefault(probe.kind, []).append(n)
        tokens = {kind: fmean(numbers) for kind, numbers in counts.items()}
        cut = [p for p, pair in zip(probes, ids.pairs, strict=True) if pair.truncated]
        findings += _cut(cut, max_length, len(probes))
        findings += _special_tokens(probes, list(tokenizer.all_special_tokens))
    kinds = _summaries(by_kind, tokens)
    findings += [*_lengths(kinds), *_leading_spaces(kinds)]
    for rule in (_empties, _leaks, _equal_to_chosen, _identical, _same_prompts):
        findings += rule(probes)
    findings += [*_missing(probes), *_repeats(kinds)]
    findings.sort(key=lambda finding: get_args(Severity).index(finding.severity))
    prompts = {probe.prompt_id: probe.split for probe in probes}
    return CheckReport(
        len(probes),
        dict(Counter(prompts.values())),
        probes.fingerprint,
        kinds,
        tuple(findings),
    )


def _summaries(
    by_kind: dict[str, list[Probe]], tokens: dict[str, float]
) -> tuple[KindSummary, ...]:
    words = {k: fmean(len(p.response.split()) for p in ps) for k, ps in by_kind.items()}

    def to_chosen(means: dict[str, float], kind: str) -> float | None:
        chosen = means.get("chosen", 0)
        return means[kind] / chosen if kind in means and chosen else None

    rows: list[KindSummary] = []
    for kind, group in by_kind.items():
        texts = [probe.response for probe in group]
        filled = [text for text in texts if text.strip()]
        rows.append(
            KindSummary(
                kind,
                n=len(texts),
                empty=len(texts) - len(filled),
                distinct=len(set(texts)),
                leading_space=_share([text[0].isspace() for text in filled]),
                words=words[kind],
                words_ratio=to_chosen(words, kind),
                tokens=tokens.get(kind),
                tokens_ratio=to_chosen(tokens, kind),
            )
        )
    return tuple(rows)


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags) if flags else 0.0


def _table(kinds: Sequence[KindSummary]) -> list[str]:
    width = max(len("kind"), *(len(row.kind) for row in kinds))
    with_tokens = any(row.tokens is not None for row in kinds)
    heads = ["n", "distinct", "empty", "lead space", "words", "x chosen"]
    heads += ["tokens", "x chosen"] if with_tokens else []
    lines = ["  ".join([f"{'kind':<{width}}", *(f"{h:>6}" for h in heads)])]
    for row in kinds:
        cells = [f"{row.n}", f"{row.distinct}", f"{row.empty or '-'}"]
        cells += [
            f"{row.leading_space:.0%}",
            f"{row.words:.1f}",
            _times(row.words_ratio),
        ]
        if with_tokens:
            tokens = "-" if row.tokens is None else f"{row.tokens:.1f}"
            cells += [tokens, _times(row.tokens_ratio)]
        padded = [f"{c:>{max(6, len(h))}}" for c, h in zip(cells, heads, strict=True)]
        lines.append("  ".join([f"{row.kind:<{width}}", *padded]))
    return lines


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"


def _names(names: Sequence[str], limit: int = 6) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _lengths(kinds: Sequence[KindSummary]) -> Iterator[Confound]:
    far: list[str] = []
    for row in kinds:
        by_tokens = row.tokens_ratio is not None
        ratio = row.tokens_ratio if by_tokens else row.words_ratio
        if ratio is None or 1 / _LENGTH_RATIO <= ratio <= _LENGTH_RATIO:
            continue
        mean, unit = (row.tokens, "tokens") if by_tokens else (row.words, "words")
        far.append(f"{row.kind} {mean:.1f} {unit} (x {ratio:.2f})")
    if far:
        yield Confound(
            "warning",
            f"mean length is over {_LENGTH_RATIO:g} times off chosen's in "
            f"{len(far)} of {len(kinds)} kinds",
            f"{_names(far, 20)}. A sum of log-probabilities grows with the length; "
            "compare means per token, or changes since step 0.",
        )


def _leading_spaces(kinds: Sequence[KindSummary]) -> Iterator[Confound]:
    filled = {row.kind: row for row in kinds if row.n > row.empty}
    chosen = filled.get("chosen")
    if chosen is None:
        return
    common = chosen.leading_space
    far = [r for r in filled.values() if abs(r.leading_space - common) > 0.1]
    if far:
        listed = [f"{row.kind} {_spaced(row)}" for row in far]
        yield Confound(
            "problem",
            f"{len(far)} of {len(kinds)} kinds do not begin as chosen does",
            f"Responses that begin with white space: chosen {_spaced(chosen)}; "
            f"{_names(listed, 20)}. The first token is then of another sort, and its "
            "log-probability moves for that reason. Give all kinds chosen's space.",
        )


def _spaced(row: KindSummary) -> str:
    n = row.n - row.empty
    return f"{round(row.leading_space * n)}/{n}"


def _empties(probes: ProbeSet) -> Iterator[Confound]:
    empty = [probe for probe in probes if not probe.response.strip()]
    if empty:
        counts = Counter(probe.kind for probe in empty)
        # the rarest kind first: its few rows are not lost among the many of another
        rare = sorted(empty, key=lambda probe: counts[probe.kind])
        where = _names([f"{p.prompt_id} ({p.kind})" for p in rare])
        yield Confound(
            "problem",
            f"empty responses: {_counted(empty)}",
            f"{where}. Only end-of-text is scored there, which is not an answer. Read "
            'the data with empty="drop", or fill them in.',
        )


def _leaks(probes: ProbeSet) -> Iterator[Confound]:
    train = [probe for probe in probes if probe.split == "train"]
    prompts = {probe.prompt.strip() for probe in train}
    chosen = {p.response.strip() for p in train if p.kind == "chosen"} - {""}
    others = [p for p in probes if p.split != "train" and p.prompt.strip() in prompts]
    asked = list(dict.fromkeys(p.prompt_id for p in others))
    if asked:
        yield Confound(
            "problem",
            f"test prompts that are training prompts too: {len(asked)}",
            f"{_names(asked)}. They are not held out. Leave them out.",
        )
    tests = [p for p in probes if p.kind == "irrelevant_test"]
    lent = [p.prompt_id for p in tests if p.response.strip() in chosen]
    if lent:
        yield Confound(
            "problem",
            f"irrelevant_test responses that are a training chosen: {len(lent)}",
            f"Of the prompts {_names(lent)}. The run trains on them, so they "
            "show memory and not generalisation. Draw them from held-out rows.",
        )


def _equal_to_chosen(probes: ProbeSet) -> Iterator[Confound]:
    chosen = {p.prompt_id: p.response.strip() for p in probes if p.kind == "chosen"}
    same: dict[str, list[str]] = {}
    for probe in probes:
        made = probe.kind.startswith(("random_", "irrelevant_"))
        text = probe.response.strip()
        if made and text and text == chosen.get(probe.prompt_id):
            same.setdefault(probe.kind, []).append(probe.prompt_id)
    for kind in in_paper_order(list(same)):
        yield Confound(
            "problem",
            f"{kind} responses equal to the prompt's own chosen: {len(same[kind])}",
            f"Of the prompts {_names(same[kind])}. They cannot serve as a contrast. "
            "Leave them out or draw others.",
        )


def _identical(probes: ProbeSet) -> Iterator[Confound]:
    """Pairs of kinds with the same text for one prompt."""
    pairs: Counter[tuple[str, str]] = Counter()
    texts: dict[str, dict[str, list[str]]] = {}
    for probe in probes:
        if probe.response.strip():
            of_prompt = texts.setdefault(probe.prompt_id, {})
            of_prompt.setdefault(probe.response.strip(), []).append(probe.kind)
    prompts: dict[str, None] = {}
    for prompt_id, of_prompt in texts.items():
        for same in of_prompt.values():
            pairs.update(combinations(in_paper_order(same), 2))
            prompts |= {prompt_id: None} if len(same) > 1 else {}
    if pairs:
        listed = [f"{a} = {b} ({n})" for (a, b), n in pairs.most_common()]
        yield Confound(
            "warning",
            f"prompts with one text under two kinds: {len(prompts)}",
            f"{_names(listed, 12)}. Of the prompts {_names(list(prompts))}.",
        )


def _same_prompts(probes: ProbeSet) -> Iterator[Confound]:
    ids: dict[str, dict[str, None]] = {}
    for probe in probes:
        ids.setdefault(probe.prompt.strip(), {})[probe.prompt_id] = None
    twice = [" = ".join(names) for names in ids.values() if len(names) > 1]
    if twice:
        yield Confound(
            "warning",
            f"prompts under more than one id: {len(twice)}",
            f"{_names(twice)}. They count more than once in every mean, and intervals "
            "over prompts come out too narrow.",
        )


def _missing(probes: ProbeSet) -> Iterator[Confound]:
    gaps: list[str] = []
    for split in dict.fromkeys(probe.split for probe in probes):
        here = [probe for probe in probes if probe.split == split]
        n = len({probe.prompt_id for probe in here})
        counts = Counter(probe.kind for probe in here)
        gaps += [
            f"{kind} for {n - counts[kind]} of {n} {split} prompts"
            for kind in probes.kinds
            if counts[kind] < n
        ]
    if gaps:
        yield Confound(
            "note",
            "some prompts lack some kinds",
            f"Missing: {_names(gaps, 12)}. Compare two kinds over the prompts "
            "that have both.",
        )


def _repeats(kinds: Sequence[KindSummary]) -> Iterator[Confound]:
    few = [row for row in kinds if row.distinct < row.n - max(0, row.empty - 1)]
    if few:
        listed = [f"{row.kind} {row.distinct} of {row.n}" for row in few]
        yield Confound(
            "note",
            f"kinds that repeat texts under different prompts: {len(few)}",
            f"Different texts: {_names(listed, 20)}.",
        )


def _cut(cut: Sequence[Probe], max_length: int, n: int) -> Iterator[Confound]:
    if cut:
        yield Confound(
            "warning",
            f"{len(cut)} of {n} probes are cut to fit {max_length} tokens",
            f"{_counted(cut)}. A prompt loses its start, a response its end and "
            "end-of-text. Raise max_length or max_prompt_length.",
        )


def _counted(probes: Sequence[Probe]) -> str:
    """How many are of each kind, the commonest first."""
    counts = Counter(probe.kind for probe in probes)
    return ", ".join(f"{count} {kind}" for kind, count in counts.most_common())


def _special_tokens(probes: ProbeSet, tokens: Sequence[str]) -> Iterator[Confound]:
    where: dict[str, list[str]] = {}
    for probe in probes:
        # in a rendered text the template wrote them
        for token in [] if probe.rendered else tokens:
            if token in probe.response:
                where.setdefault(token, []).append(f"{probe.prompt_id} ({probe.kind})")
    for token, names in where.items():
        yield Confound(
            "warning",
            f"responses with the special token {token!r} in their text: {len(names)}",
            f"{_names(names)}. It is encoded as ordinary text, save at the very end, "
            "where end-of-text stands anyway. If a template left it, remove it.",
        )
