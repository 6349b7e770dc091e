"""A trainer's data set, in whatever columns its method left it, against the probes.

Columns are those of TRL (raw texts beside token ids), LLaMA-Factory
(`chosen_input_ids`, `kto_tags`) and of any trainer with `input_ids`. Nothing is used up
that training would miss: a stream, or a data set that is only code, stays unread.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from learndyn.probes.token_rows import JoinedRows, TokenRows
from learndyn.probes.tokenize import TokenizedProbes
from learndyn.probes.trained import (
    LOWERED,
    RAISED,
    Trained,
    trained_on_ids,
    trained_on_texts,
)


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_BATCH = 5_000
"""Rows that are looked at together."""

_MOST_RENDERED = 200_000
"""Most chat prompts that are written by their template: about 50 microseconds each."""

_TEXTS: dict[str, dict[str, str]] = {
    "preference": {RAISED: "chosen", LOWERED: "rejected"},
    "unpaired": {RAISED: "completion", LOWERED: "completion"},
    "sft": {RAISED: "completion"},
    "online": {},
}
"""TRL's columns of texts, by the family of the method."""

_JOINED = (
    {"prompt": "prompt_ids", RAISED: "chosen_ids", LOWERED: "rejected_ids"},
    {
        "prompt": "prompt_input_ids",
        RAISED: "chosen_input_ids",
        LOWERED: "rejected_input_ids",
    },
    {"prompt": "prompt_ids", RAISED: "completion_ids", LOWERED: "completion_ids"},
)
"""Columns of token ids where the prompt has its own."""

_WHOLE = (
    {RAISED: "chosen_input_ids", LOWERED: "rejected_input_ids"},
    {RAISED: "completion_input_ids", LOWERED: "completion_input_ids"},
    {RAISED: "input_ids", LOWERED: "input_ids"},
)
"""Columns of token ids where prompt and response stand together."""

_DESIRABLE = ("label", "kto_tags")
_FIRST_READ = (("labels", -100), ("completion_mask", 0), ("assistant_masks", 0))
"""Columns that say which tokens the loss reads, and their sign for the others."""


def trained_on(
    dataset: Any,
    probes: TokenizedProbes,
    family: str,
    tokenizer: "PreTrainedTokenizerBase",
) -> Trained:
    """Match the rows of a trainer's data set with the probes.

    `dataset` is a `datasets.Dataset` or a list of mappings; of others nothing is known.
    """
    schema = _schema(dataset)
    if schema is None:
        return Trained(why_unknown=f"a {type(dataset).__name__} is not read beforehand")
    texts = _text_columns(schema, family)
    if texts is not None:
        eos = tokenizer.eos_token if isinstance(tokenizer.eos_token, str) else ""
        batches = _text_batches(dataset, texts, schema)
        return trained_on_texts(probes.probes, batches, eos)
    if family == "online" and "prompt" in schema.names:
        return _on_chat_prompts(dataset, probes, tokenizer)
    plan = _id_columns(schema)
    if plan is None:
        why = f"its columns are {', '.join(schema.names)}"
        return Trained(len(dataset), why_unknown=why)
    columns = sorted({*plan.values(), *_extra(schema, plan)})
    head = next(_tables(dataset, columns, 1000))
    if "input_ids" in plan.values() and _are_blocks(head):
        why = "its rows are blocks of one length, wherever the examples in them end"
        return Trained(len(dataset), why_unknown=why)
    special = (_one(tokenizer.bos_token_id), _one(tokenizer.eos_token_id))
    return trained_on_ids(probes, _id_batches(dataset, plan, columns), special)


def _schema(dataset: Any) -> pa.Schema | None:
    """Names and types of the columns, if rows can be read without being used up."""
    if isinstance(dataset, list | tuple):
        if not dataset or not isinstance(dataset[0], Mapping):
            return None
        return next(_tables(dataset, list(dataset[0]), 1)).schema
    features = getattr(dataset, "features", None)
    if features is None or not hasattr(dataset, "with_format"):
        return None
    # a stream has no length; a transform makes other rows than the ones that are there
    if not hasattr(dataset, "__len__") or dataset.format["type"] == "custom":
        return None
    return features.arrow_schema


def _tables(dataset: Any, columns: Sequence[str], size: int) -> Iterator[pa.Table]:
    if not isinstance(dataset, list | tuple):
        table, chosen = dataset.data.table.select(columns), dataset._indices
        if chosen is not None:
            # in the order of the file: all that matters is which rows there are
            chosen = np.sort(chosen.column(0).to_numpy())
        for start in range(0, len(dataset), size):
            part = slice(start, start + size)
            if chosen is None:
                yield table[part]
            else:
                yield table.take(chosen[part])
        return
    for start in range(0, len(dataset), size):
        rows = dataset[start : start + size]
        table = {name: [_plain(row.get(name)) for row in rows] for name in columns}
        yield pa.table(table)


def _plain(value: Any) -> Any:
    """Tensors and arrays as lists, which Arrow reads."""
    return value.tolist() if hasattr(value, "tolist") else value


def _text_columns(schema: pa.Schema, family: str) -> dict[str, str] | None:
    answers = _TEXTS.get(family)
    if answers is None or not all(
        name in schema.names and _is_text(schema.field(name).type)
        for name in ("prompt", *answers.values())
    ):
        return None
    if family == "unpaired" and _desirable(schema.names) is None:
        return None
    return answers


def _text_batches(
    dataset: Any, answers: Mapping[str, str], schema: pa.Schema
) -> Iterator[dict[str, Any]]:
    by = _desirable(schema.names) if _is_unpaired(answers) else None
    columns = sorted({"prompt", *answers.values()} | ({by} if by else set()))
    for table in _tables(dataset, columns, _BATCH):
        for part, roles in _by_role(table, answers, by):
            texts = {role: part[name] for role, name in roles.items()}
            yield {"prompt": part["prompt"], **texts}


def _id_columns(schema: pa.Schema) -> dict[str, str] | None:
    names = {field.name for field in schema if _is_ids(field.type)}
    # TRL's CPO and ORPO: chosen_input_ids hold the prompt too, and its labels say so
    joined = () if "chosen_labels" in names else _JOINED
    for plan in (*joined, *_WHOLE):
        if set(plan.values()) <= names:
            if _is_unpaired(plan) and _desirable(schema.names) is None:
                return {k: v for k, v in plan.items() if k != LOWERED}
            return plan
    return None


def _extra(schema: pa.Schema, plan: Mapping[str, str]) -> list[str]:
    """Columns that say more of the rows than their tokens."""
    labels = [name.replace("input_ids", "labels") for name in plan.values()]
    others = (name for name, _ in _FIRST_READ)
    extra = (*labels, *others, *_DESIRABLE, "seq_lengths", "attention_mask")
    return [name for name in extra if name in schema.names]


def _id_batches(
    dataset: Any, plan: Mapping[str, str], columns: Sequence[str]
) -> Iterator[dict[str, TokenRows | JoinedRows]]:
    roles = {role: name for role, name in plan.items() if role != "prompt"}
    by = _desirable(columns) if _is_unpaired(roles) else None
    for table in _tables(dataset, columns, _BATCH):
        for part, answers in _by_role(table, roles, by):
            if "prompt" not in plan:
                yield {role: _token_rows(part, name) for role, name in answers.items()}
                continue
            prompts = TokenRows.of(part[plan["prompt"]])
            yield {
                role: JoinedRows(prompts, TokenRows.of(part[name]))
                for role, name in answers.items()
            }


def _token_rows(table: pa.Table, name: str) -> TokenRows:
    lengths = table["seq_lengths"] if "seq_lengths" in table.column_names else None
    own = name.replace("input_ids", "labels")  # chosen_labels; labels
    for column, ignored in ((own, -100), *_FIRST_READ):
        if column in table.column_names:
            return TokenRows.of(table[name], table[column], lengths, ignored)
    return TokenRows.of(table[name], None, lengths)


def _are_blocks(table: pa.Table) -> bool:
    if "seq_lengths" in table.column_names:
        return False
    if "attention_mask" in table.column_names:
        mask = TokenRows.of(table["attention_mask"]).ids
        if not mask.all():  # padded to one length
            return False
    return _token_rows(table, "input_ids").are_blocks


def _on_chat_prompts(
    dataset: Any, probes: TokenizedProbes, tokenizer: "PreTrainedTokenizerBase"
) -> Trained:
    """Match prompts that are messages, as their chat template writes them."""
    if not tokenizer.chat_template or len(dataset) > _MOST_RENDERED:
        why = "its prompts are messages, not texts"
        return Trained(len(dataset), why_unknown=why)
    batches = (
        {
            "prompt": [
                tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True
                )
                for messages in table["prompt"].to_pylist()
            ]
        }
        for table in _tables(dataset, ["prompt"], _BATCH)
    )
    return trained_on_texts(probes.probes, batches)


def _by_role(
    table: pa.Table, roles: Mapping[str, str], by: str | None
) -> Iterator[tuple[pa.Table, Mapping[str, str]]]:
    """The table with its columns by role; of an unpaired one the desirable rows and
    the others."""
    if by is None:
        yield table, roles
        return
    desirable = table[by].to_numpy().astype(bool)
    yield table.filter(pa.array(desirable)), {RAISED: roles[RAISED]}
    yield table.filter(pa.array(~desirable)), {LOWERED: roles[LOWERED]}


def _is_unpaired(roles: Mapping[str, str]) -> bool:
    return LOWERED in roles and roles[LOWERED] == roles[RAISED]


def _desirable(names: Sequence[str]) -> str | None:
    return next((name for name in _DESIRABLE if name in names), None)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_ids(kind: pa.DataType) -> bool:
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return listed and pa.types.is_integer(kind.value_type)


def _one(token: Any) -> int | None:
    return token if isinstance(token, int) else None
