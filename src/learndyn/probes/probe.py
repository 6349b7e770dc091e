"""What is watched: prompts, each with many kinds of response (the probing dataset).

A `ProbeSet` is frozen text. It knows no tokenizer; `learndyn.probes.tokenize` turns it
into token ids once, before the first observation, and those ids never change.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from learndyn.errors import BadInput, listed
from learndyn.probes.kinds import in_paper_order
from learndyn.probes.notebook import shortened, table_html


_SCHEMA_VERSION = 1
"""Version of the columns that `ProbeSet.save` writes."""

COLUMNS = ("prompt_id", "kind", "prompt", "response", "split", "rendered")


@dataclass(frozen=True, slots=True)
class Probe:
    """One prompt with one response; what is scored."""

    prompt_id: str
    """Which prompt: shared by all kinds of response to it."""
    kind: str
    """Which kind of response (the paper's response type), see `PAPER_KINDS`."""
    prompt: str
    response: str
    """May be empty: then the end-of-text token alone is scored."""
    split: str = "train"
    """Where the prompt is from: "train" if the run trains on it, else "test"."""
    rendered: bool = False
    """True where a chat template has been applied already: its special tokens are in
    the text, and tokenisation adds neither BOS nor EOS."""


@dataclass(frozen=True)
class ProbeSet(Sequence[Probe]):
    """An immutable list of probes; a probe's id is its position.

    Raises:
        BadInput: if it is empty, if a prompt is empty, if a (prompt_id, kind) occurs
            twice, or if one prompt_id stands for different prompts.
    """

    probes: tuple[Probe, ...]
    manifest: dict[str, Any] = field(default_factory=dict, compare=False)
    """How the set was made: sources, row ids, hashes, seed. Not in the fingerprint."""

    def __post_init__(self) -> None:
        problems = _problems(self.probes)
        if problems:
            raise BadInput(
                f"the probe set has {len(problems)} unusable entries:\n"
                f"{listed(problems)}\nCorrect the source and build the set again."
            )

    def __len__(self) -> int:
        return len(self.probes)

    def __getitem__(self, index: Any) -> Any:
        return self.probes[index]

    def __iter__(self) -> Iterator[Probe]:
        return iter(self.probes)

    def __repr__(self) -> str:
        """Six lines, however many probes there are."""
        first = self.probes[0]
        lines = [
            f"ProbeSet: {self._counts}",
            f"  kinds        {', '.join(self.kinds)}",
            f"  prompt_id    {shortened(first.prompt_id)}, the first of them",
            f"  prompt       {shortened(first.prompt)}",
            f"  {first.kind:12} {shortened(first.response)}",
            f"  fingerprint  {self.fingerprint[:12]}",
        ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        example = {probe.kind: probe for probe in reversed(self.probes)}
        number = Counter(probe.kind for probe in self.probes)
        rows = [
            (kind, number[kind], shortened(example[kind].response))
            for kind in self.kinds
        ]
        about = f"ProbeSet: {self._counts}, fingerprint {self.fingerprint[:12]}"
        return table_html(about, ("kind", "probes", "the first one"), rows)

    @property
    def _counts(self) -> str:
        split_of = {probe.prompt_id: probe.split for probe in self.probes}
        splits = ", ".join(f"{n} {s}" for s, n in Counter(split_of.values()).items())
        return f"{len(self)} probes of {len(split_of)} prompts ({splits})"

    @property
    def kinds(self) -> list[str]:
        """All kinds, in the paper's order."""
        return in_paper_order({probe.kind for probe in self.probes})

    @property
    def prompt_ids(self) -> list[str]:
        """All prompt ids, in order of first appearance."""
        return list(dict.fromkeys(probe.prompt_id for probe in self.probes))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all texts, keys and splits, whatever the order of the probes.

        Two runs whose fingerprints agree watched the same answers.
        """
        digest = hashlib.sha256()
        for probe in sorted(self.probes, key=lambda p: (p.prompt_id, p.kind)):
            row = [getattr(probe, column) for column in COLUMNS]
            digest.update(json.dumps(row, ensure_ascii=True).encode() + b"\n")
        return digest.hexdigest()

    def select(
        self, *, kinds: Sequence[str] | None = None, prompts: int | None = None
    ) -> "ProbeSet":
        """Keep only `kinds`, and only the first `prompts` prompts.

        Raises:
            BadInput: if a kind does not occur in the set.
        """
        chosen = set(self.kinds if kinds is None else kinds)
        unknown = sorted(chosen - set(self.kinds))
        if unknown:
            raise BadInput(
                f"the set has no probes of kind {', '.join(unknown)}. "
                f"It has: {', '.join(self.kinds)}."
            )
        first = set(self.prompt_ids[:prompts])
        return ProbeSet(
            tuple(p for p in self.probes if p.kind in chosen and p.prompt_id in first),
            self.manifest,
        )

    def save(self, path: str | Path) -> None:
        """Write the set to one Parquet file, one row per probe."""
        rows = {name: [getattr(p, name) for p in self.probes] for name in COLUMNS}
        about = {
            "schema_version": _SCHEMA_VERSION,
            "fingerprint": self.fingerprint,
            "manifest": self.manifest,
        }
        table = pa.table(rows).replace_schema_metadata({"learndyn": json.dumps(about)})
        pq.write_table(table, path, compression="zstd")

    @classmethod
    def load(cls, path: str | Path) -> "ProbeSet":
        """Read what `save` wrote.

        Raises:
            BadInput: if the file is no such table, is of another version, or its
                texts do not match the fingerprint it was saved with.
        """
        try:
            with pq.ParquetFile(path) as file:
                table = file.read()
        except (OSError, pa.ArrowInvalid) as error:
            raise BadInput(f"cannot read probes from {path}: {error}") from error
        about = _about(table)
        if about.get("schema_version") != _SCHEMA_VERSION:
            raise BadInput(
                f"{path} is not a probe file of version {_SCHEMA_VERSION} (found "
                f"{about.get('schema_version', 'no version')}). Make one with "
                "`learndyn probes build`."
            )
        probes = cls.from_rows(table.to_pylist(), about.get("manifest", {}))
        if probes.fingerprint != about.get("fingerprint"):
            raise BadInput(
                f"{path} was changed after it was saved: its texts hash to "
                f"{probes.fingerprint[:12]}, its header says "
                f"{str(about.get('fingerprint'))[:12]}. Build it again from the source."
            )
        return probes

    @classmethod
    def of(cls, source: "ProbeSet | str | Path") -> "ProbeSet":
        """The probe set itself, or what `load_probes` reads at a path.

        All that takes a probe set takes a path by this.

        Raises:
            BadInput: see `load_probes`.
        """
        if isinstance(source, ProbeSet):
            return source
        # Later: reading other formats makes probe sets, so it stands above this module.
        from learndyn.probes.build import load_probes

        return load_probes(source)

    @classmethod
    def from_rows(
        cls, rows: Sequence[dict[str, Any]], manifest: dict[str, Any] | None = None
    ) -> "ProbeSet":
        """Build a set from long rows: one mapping per probe, `Probe`'s fields as keys.

        Raises:
            BadInput: if a row lacks a column that a probe needs.
        """
        needed = COLUMNS[:4]
        lacking = [
            f"row {i}: no {', '.join(name for name in needed if name not in row)}"
            for i, row in enumerate(rows)
            if not all(name in row for name in needed)
        ]
        if lacking:
            raise BadInput(
                f"{len(lacking)} rows are not probes:\n{listed(lacking)}\nA probe "
                f"needs {', '.join(needed)}."
            )
        known = ({key: row[key] for key in COLUMNS if key in row} for row in rows)
        return cls(tuple(Probe(**row) for row in known), manifest or {})


def _about(table: pa.Table) -> dict[str, Any]:
    """The header that `save` wrote, or an empty one."""
    try:
        about = json.loads((table.schema.metadata or {}).get(b"learndyn", b"{}"))
    except ValueError:
        return {}
    return about if isinstance(about, dict) else {}


def _problems(probes: tuple[Probe, ...]) -> list[str]:
    if not probes:
        return ["the set is empty"]
    problems: list[str] = []
    keys: set[tuple[str, str]] = set()
    prompts: dict[str, str] = {}
    for index, probe in enumerate(probes):
        where = f"probe {index} (prompt {probe.prompt_id}, {probe.kind})"
        wrong = [
            name
            for name in ("prompt_id", "kind", "prompt", "response", "split")
            if not isinstance(getattr(probe, name), str)
        ]
        if wrong:
            problems.append(f"{where}: {', '.join(wrong)} must be text")
            continue
        if not probe.prompt.strip():
            problems.append(f"{where}: the prompt is empty")
        if (probe.prompt_id, probe.kind) in keys:
            problems.append(f"{where}: this prompt already has a response of this kind")
        if prompts.setdefault(probe.prompt_id, probe.prompt) != probe.prompt:
            problems.append(f"{where}: this prompt_id stands for two different prompts")
        keys.add((probe.prompt_id, probe.kind))
    return problems
