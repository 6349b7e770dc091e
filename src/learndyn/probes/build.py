"""Probe sets from preference data: chosen prompts, all kinds that need no model.

Every random choice is drawn from a hash of the seed, the prompt's id and the kind, so a
prompt gets the same responses whatever the order of the rows.

| kind             | how it is made                                                   |
|------------------|------------------------------------------------------------------|
| irrelevant_train | chosen of another training row with another prompt               |
| irrelevant_test  | chosen of a held-out row: neither prompt nor chosen is in train   |
| random_permuted  | the words of chosen in another order; the white space stays       |
| random_words     | as many words as chosen has, from all words of the training pairs |

Borrowed texts get the white space that their prompt's chosen begins with, and what a
chat template writes around an answer stays around the words that replace it.
"""

import hashlib
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow.parquet as pq

from learndyn.errors import BadInput
from learndyn.probes.data import Data, Row, read_data
from learndyn.probes.kinds import in_paper_order
from learndyn.probes.probe import COLUMNS, Probe, ProbeSet


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def _core(row: Row) -> str:
    """The chosen text without white space around it; empty if there is none."""
    return row.responses.get("chosen", "").strip()


def _inner(row: Row, text: str) -> str:
    """A response without what the chat template writes around it."""
    before, after = row.frame or ("", "")
    return text.removeprefix(before).removesuffix(after)


def _words_of(row: Row) -> list[str]:
    """All words of the row's chosen and rejected responses."""
    if row.frame is None:
        return []
    texts = [row.responses.get(kind, "") for kind in ("chosen", "rejected")]
    return [word for text in texts for word in _inner(row, text).split()]


def _refilled(row: Row, words_for: Callable[[list[str]], list[str]]) -> str | None:
    """Chosen with other words in the places of its own; its white space stays."""
    if row.frame is None:
        return None
    text = _inner(row, row.responses["chosen"])
    new = words_for(text.split())
    if not new:
        return None
    before, after = row.frame
    parts = iter(new)
    return before + re.sub(r"\S+", lambda _: next(parts), text) + after


def _permuted(row: Row, chance: random.Random) -> str | None:
    """Chosen with its words in another order; None if there is no other."""

    def shuffled(words: list[str]) -> list[str]:
        if len(set(words)) < 2:
            return []
        order = list(words)
        while order == words:
            chance.shuffle(order)
        return order

    return _refilled(row, shuffled)


_BUILT_KINDS = (
    "irrelevant_train",
    "irrelevant_test",
    "random_permuted",
    "random_words",
)
"""Kinds that `build_probes` makes without a model."""


def build_probes(
    train: Data,
    test: Data | None = None,
    *,
    prompts: int | None = None,
    or_fewer: bool = False,
    seed: int = 0,
    kinds: Sequence[str] | None = None,
) -> ProbeSet:
    """Choose `prompts` rows at random and give each every kind that needs no model.

    Kinds that the rows hold are kept as they are; the `_BUILT_KINDS` that they do not
    hold are made. With `test`, as many of its rows (or all) are added as split "test".
    `or_fewer` takes all rows where there are fewer than `prompts`, of either split.
    A test row whose prompt or chosen text occurs in `train` is never used. `kinds`
    restricts the set. The manifest names the row of every borrowed response.

    Raises:
        BadInput: if there are fewer rows than asked for, a kind cannot be had, or no
            row can lend a response.
    """
    pools = _Pools.of(train, test, seed)
    _check_kinds(kinds, train, test)
    picked: list[tuple[str, Row]] = []
    for split, rows in (("train", train.rows), ("test", pools.test)):
        if split == "train" or test is not None:
            n = min(prompts, len(rows)) if prompts and or_fewer else prompts
            picked += [(split, row) for row in _pick(rows, n, seed, split)]
    ids = _prompt_ids(picked, train, test)
    given = {"train": train.kinds, "test": test.kinds if test is not None else []}
    probes: list[Probe] = []
    for (split, row), prompt_id in zip(picked, ids, strict=True):
        responses = dict(row.responses)
        for kind in _BUILT_KINDS:
            if (kinds is not None and kind not in kinds) or kind in given[split]:
                continue
            text = pools.build(kind, row, prompt_id)
            if text is not None:
                responses[kind] = text
        probes += _probes(prompt_id, row, responses, split, kinds)
    return ProbeSet(tuple(probes), _manifest(train, test, probes, pools))


def probes_from_rows(data: Data, split: str) -> ProbeSet:
    """Every row and every kind of `data` as it is, as probes of this split."""
    probes = [
        probe
        for row in data.rows
        for probe in _probes(row.row_id, row, row.responses, split, None)
    ]
    manifest = {
        "made_by": "learndyn.probes.probes_from_rows",
        "sources": [_source(data)],
        "counts": _counts(probes),
    }
    return ProbeSet(tuple(probes), manifest)


def load_probes(
    source: str | Path,
    *,
    rename: Mapping[str, str] | None = None,
    aliases: Mapping[str, str] | None = None,
    empty: Literal["error", "keep", "drop"] = "error",
    split: str = "train",
    tokenizer: "PreTrainedTokenizerBase | None" = None,
) -> ProbeSet:
    """Read probes: a file written by `ProbeSet.save`, a run directory or its
    probes.parquet, or whatever `read_data` reads.

    Of the last, `split` chooses the rows; their probes are of split "train" if that
    name begins so, else of split "test". `tokenizer` is for chat messages.

    Raises:
        BadInput: see `ProbeSet.load` and `read_data`.
    """
    path = Path(source)
    if (path / "run.json").is_file():
        path /= "probes.parquet"
    saved = _saved(path) if path.suffix.lower() == ".parquet" else None
    if saved is not None:
        return saved
    data = read_data(
        source,
        split=split,
        rename=rename,
        aliases=aliases,
        empty=empty,
        tokenizer=tokenizer,
    )
    return probes_from_rows(data, "train" if split.startswith("train") else "test")


def _saved(path: Path) -> ProbeSet | None:
    """Probes that we wrote: those of `ProbeSet.save`, or a run's with its token ids."""
    try:
        schema = pq.read_schema(path)
    except (OSError, ValueError):  # read_data says what is wrong with it
        return None
    if b"learndyn" in (schema.metadata or {}):
        return ProbeSet.load(path)
    if not {"probe_id", *COLUMNS} <= set(schema.names):
        return None
    with pq.ParquetFile(path) as file:  # read_table would look at the folders' names
        return ProbeSet.from_rows(file.read([*COLUMNS]).to_pylist())


def _probes(
    prompt_id: str,
    row: Row,
    responses: Mapping[str, str],
    split: str,
    kinds: Sequence[str] | None,
) -> list[Probe]:
    chosen = set(responses) if kinds is None else set(responses) & set(kinds)
    return [
        Probe(prompt_id, kind, row.prompt, responses[kind], split, row.rendered)
        for kind in in_paper_order(chosen)
    ]


def _random(seed: int, name: str, purpose: str) -> random.Random:
    digest = hashlib.sha256(f"{seed}\0{name}\0{purpose}".encode()).digest()
    return random.Random(int.from_bytes(digest, "big"))


def _pick(rows: Sequence[Row], n: int | None, seed: int, name: str) -> list[Row]:
    """`n` random rows, in the source's order."""
    if n is None:
        return list(rows)
    if not 0 < n <= len(rows):
        raise BadInput(
            f"{n} prompts were asked for, and there are {len(rows)} usable {name} "
            f"rows. Ask for 1 to {len(rows)}, or give more data."
        )
    # By a number of each row's own, not by one generator: a row that is added or left
    # out of the data changes nothing about the others.
    draw = {row.row_id: _random(seed, row.row_id, "prompt").random() for row in rows}
    picked = set(sorted(draw, key=lambda row_id: (draw[row_id], row_id))[:n])
    return [row for row in rows if row.row_id in picked]


def _prompt_ids(
    picked: list[tuple[str, Row]], train: Data, test: Data | None
) -> list[str]:
    """Row ids; where train and test use the same ones, test's begin with "test:"."""
    train_ids = {row.row_id for row in train.rows}
    clash = test is not None and any(row.row_id in train_ids for row in test.rows)
    return [
        f"test:{row.row_id}" if clash and split == "test" else row.row_id
        for split, row in picked
    ]


def _check_kinds(kinds: Sequence[str] | None, train: Data, test: Data | None) -> None:
    if kinds is None:
        return
    given = set(train.kinds) | (set(test.kinds) if test is not None else set())
    possible = in_paper_order(given | set(_BUILT_KINDS))
    unknown = [kind for kind in kinds if kind not in possible]
    if unknown:
        raise BadInput(
            f"no row has the kind {', '.join(unknown)}, and making it needs a model. "
            f"Possible here: {', '.join(possible)}."
        )
    if test is None and "irrelevant_test" in kinds and "irrelevant_test" not in given:
        raise BadInput(
            "irrelevant_test needs held-out rows, and there are none. Give held-out "
            "data (in Python: test=...), or leave that kind out."
        )
    if "chosen" not in given and set(kinds) - given:
        raise BadInput(
            f"{train.source} has no chosen responses, from which "
            f"{', '.join(sorted(set(kinds) - given))} would be made. If their column "
            "has another name, rename it to chosen (in Python: rename={...: 'chosen'})."
        )


@dataclass(frozen=True)
class _Pools:
    """What responses are made from, and what became of it."""

    train: tuple[Row, ...]
    """Training rows with a chosen response, by id."""
    test: tuple[Row, ...]
    """Held-out rows, in the source's order."""
    test_by_id: tuple[Row, ...]
    not_held_out: tuple[str, ...]
    """Ids of test rows that occur in train."""
    words: tuple[str, ...]
    """All words of the training rows' chosen and rejected responses."""
    seed: int
    borrowed: dict[str, dict[str, str]] = field(default_factory=dict)
    """kind -> prompt id -> id of the row that lent its answer."""
    left_out: dict[str, list[str]] = field(default_factory=dict)
    """kind -> ids of the prompts for which it could not be made."""

    @classmethod
    def of(cls, train: Data, test: Data | None, seed: int) -> "_Pools":
        lenders = sorted(
            (row for row in train.rows if _core(row)), key=lambda row: row.row_id
        )
        prompts = {row.prompt.strip() for row in train.rows}
        answers = {_core(row) for row in lenders}
        rows = test.rows if test is not None else ()
        known = {
            row.row_id
            for row in rows
            if row.prompt.strip() in prompts or (_core(row) and _core(row) in answers)
        }
        if rows and len(known) == len(rows):
            raise BadInput(
                f"each of the {len(rows)} test rows has a prompt or a chosen response "
                "of a training row, so nothing is held out. Give other test data."
            )
        if test is not None and train.rows[0].rendered != test.rows[0].rendered:
            raise BadInput(
                "only one of train and test was rendered with a chat template. Read "
                "both with the same tokenizer."
            )
        words = sorted({word for row in train.rows for word in _words_of(row)})
        held_out = tuple(row for row in rows if row.row_id not in known)
        by_id = tuple(sorted(held_out, key=lambda row: row.row_id))
        not_held_out = tuple(sorted(known))
        return cls(tuple(lenders), held_out, by_id, not_held_out, tuple(words), seed)

    def build(self, kind: str, row: Row, prompt_id: str) -> str | None:
        """The response, or None where it cannot be made, which is noted."""
        text: str | None = None
        if _core(row):
            chance = _random(self.seed, prompt_id, kind)
            if kind == "irrelevant_train":
                text = self._borrow(kind, self.train, row, prompt_id, chance)
            elif kind == "irrelevant_test" and self.test:
                text = self._borrow(kind, self.test_by_id, row, prompt_id, chance)
            elif kind == "random_permuted":
                text = _permuted(row, chance)
            elif kind == "random_words":
                text = _refilled(
                    row, lambda old: chance.choices(self.words, k=len(old))
                )
        if text is None and (kind != "irrelevant_test" or self.test):
            self.left_out.setdefault(kind, []).append(prompt_id)
        return text

    def _borrow(
        self,
        kind: str,
        lenders: Sequence[Row],
        row: Row,
        prompt_id: str,
        chance: random.Random,
    ) -> str:
        n = len(lenders)
        start = chance.randrange(n) if n else 0
        for index in range(start, start + n):  # the next one that may lend
            lender = lenders[index % n]
            other = lender.prompt.strip() != row.prompt.strip()
            if other and _core(lender) and _core(lender) != _core(row):
                self.borrowed.setdefault(kind, {})[prompt_id] = lender.row_id
                text, chosen = lender.responses["chosen"], row.responses["chosen"]
                space = chosen[: len(chosen) - len(chosen.lstrip())]
                return text if row.rendered else space + text.lstrip()
        raise BadInput(
            f"no row can lend {kind} to {prompt_id}: none of {n} rows has another "
            "prompt and another chosen response. Give more data, or leave that kind "
            "out of `kinds`."
        )


def _source(data: Data) -> dict[str, Any]:
    return {
        "source": data.source,
        "split": data.split,
        "sha256": data.sha256,
        "rows": len(data.rows),
        **({} if data.sample is None else {"sample": data.sample.to_info()}),
        "dropped": [
            {"what": d.what, "reason": d.reason, "names": list(d.names)}
            for d in data.dropped
        ],
    }


def _counts(probes: Sequence[Probe]) -> dict[str, dict[str, int]]:
    """split -> kind -> number of probes."""
    counts: dict[str, Counter[str]] = {}
    for probe in probes:
        counts.setdefault(probe.split, Counter())[probe.kind] += 1
    return {split: dict(kinds) for split, kinds in counts.items()}


def _manifest(
    train: Data, test: Data | None, probes: Sequence[Probe], pools: _Pools
) -> dict[str, Any]:
    return {
        "made_by": "learndyn.probes.build_probes",
        "seed": pools.seed,
        "sources": [_source(data) for data in (train, test) if data is not None],
        "prompts": {
            split: len({p.prompt_id for p in probes if p.split == split})
            for split in ("train", "test")
        },
        "counts": _counts(probes),
        "borrowed": pools.borrowed,
        "left_out": pools.left_out,
        "not_held_out": list(pools.not_held_out),
    }
