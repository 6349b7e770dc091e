r"""From a record's columns to one prompt and its responses.

The format is decided by the first row that has a prompt or a chosen answer:

1. *messages*: `prompt`, `chosen` or `rejected` is a list of {"role", "content"}.
   The chat template is applied as TRL's DPOTrainer applies it. If `prompt` is no such
   list, the prompt is the leading messages that chosen and rejected share.
2. *dialogues*: there is no `prompt`, and `chosen` and `rejected` are texts that begin
   with "\n\nHuman:" (Anthropic HH). Each is cut after its last "\n\nAssistant:".
3. *shared start*: there is no `prompt`, and `chosen` and `rejected` are other texts.
   The prompt is the start that they share, as TRL does it.
4. *wide*: `prompt` is text, and every other text column is a kind of response.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from learndyn.errors import BadInput
from learndyn.probes.kinds import PAPER_KINDS
from learndyn.probes.sources import Record, Records


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


ID_COLUMNS = ("row_id", "prompt_id", "id")
"""Columns that may name a row; the first that a source has is used."""

_RESERVED = frozenset(
    {*ID_COLUMNS, "split", "source", "rendered"}
    | {"messages", "tools", "chat_template_kwargs"}
)
"""Columns that are never kinds; nor are those whose names begin `score_`."""

Format = Literal["messages", "dialogues", "shared start", "wide"]

_ASSISTANT = "\n\nAssistant:"
_MARK = "learndyn-marks-the-answer"


class Unusable(Exception):
    """One row that cannot be used; the message says why."""


class Mismatched(Unusable):
    """One row whose chosen and rejected answer two different prompts."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """One row's texts."""

    prompt: str
    responses: dict[str, str]
    empty: frozenset[str] = frozenset()
    """Kinds whose answer has no text; with a chat template, apart from its marks."""
    rendered: bool = False
    frame: tuple[str, str] | None = ("", "")
    """What the chat template writes before and after the chosen answer's own text."""


@dataclass(frozen=True, slots=True)
class SourceColumns:
    """What the columns of a source mean."""

    format: Format
    kinds: tuple[str, ...]
    left_out: tuple[str, ...]
    """Columns that hold no text and are neither reserved nor kinds."""


def _is_messages(value: Any) -> bool:
    """Whether a value is a list of chat messages."""
    return (
        isinstance(value, list)
        and bool(value)
        and isinstance(value[0], dict)
        and "role" in value[0]
    )


def read_columns(records: Records) -> SourceColumns:
    """Decide the format of a source, and which of its columns are kinds."""
    names = records.column_names
    layout = _format(records, names)
    if layout is None:
        raise BadInput(
            f"{records.source} has the columns {', '.join(names) or '(none)'}. Needed: "
            "prompt and at least one response such as chosen; or chosen and rejected "
            "that share their prompt. If they have other names, give "
            'rename={"instruction": "prompt", "output": "chosen"}.'
        )
    left_out: list[str] = []
    kinds: list[str] = []
    for name in names:
        if name == "prompt" or _is_reserved(name):
            continue
        is_kind = _is_kind(layout, name, records.rows)
        (kinds if is_kind else left_out).append(name)
    if not kinds:
        raise BadInput(
            f"{records.source} has a prompt but no response: none of its columns "
            f"{', '.join(names)} holds an answer's text. Needed: at least one, such as "
            'chosen. If it has another name, give rename={"output": "chosen"}.'
        )
    return SourceColumns(layout, tuple(kinds), tuple(left_out))


def _is_reserved(name: str) -> bool:
    """Whether a column of this name is never a kind."""
    return name in _RESERVED or name.startswith("score_")


def _format(records: Records, names: Sequence[str]) -> Format | None:
    first: Mapping[str, Any] = next(
        (
            row.columns
            for row in records.rows
            if any(row.columns.get(name) for name in ("prompt", "chosen"))
        ),
        {},
    )
    if any(_is_messages(first.get(name)) for name in ("prompt", "chosen", "rejected")):
        return "messages"
    if "prompt" in names:
        return "wide"
    pair = [first.get("chosen"), first.get("rejected")]
    if not all(isinstance(text, str) for text in pair):
        return None
    if all(str(text).lstrip().startswith("Human:") for text in pair):
        return "dialogues"
    return "shared start"


def _is_kind(layout: Format, name: str, rows: Sequence[Record]) -> bool:
    """Whether a column is a kind.

    One that never holds text is not. In chat data a text column is a kind only under
    one of the paper's names: there, other texts say where a row is from.
    """
    if name in PAPER_KINDS:
        return True
    values = (row.columns.get(name) for row in rows)
    if layout == "messages":
        return any(_is_messages(value) for value in values)
    return any(isinstance(value, str) for value in values)


def parser(
    columns: SourceColumns, tokenizer: "PreTrainedTokenizerBase | None", source: str
) -> Callable[[Mapping[str, Any]], Parsed]:
    """The function that reads one row of this format."""
    if columns.format == "wide":
        return lambda row: _wide(row, columns.kinds)
    if columns.format == "dialogues":
        return lambda row: _dialogues(row, columns.kinds)
    if columns.format == "shared start":
        return lambda row: _shared_start(row, columns.kinds)
    template = tokenizer if tokenizer is not None and tokenizer.chat_template else None

    def messages(row: Mapping[str, Any]) -> Parsed:
        if template is not None:
            return _messages(row, columns.kinds, template)
        if isinstance(row.get("prompt"), str):
            return _human_assistant(row, columns.kinds)
        given = "none was given" if tokenizer is None else "the one given has none"
        raise BadInput(
            f"{source} holds chat messages, so it needs a tokenizer with a chat "
            f"template, and {given}. Give the tokenizer of the model to observe: "
            "tokenizer=MODEL (in Python: AutoTokenizer.from_pretrained(MODEL))."
        )

    return messages


def _is_text(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _texts(row: Mapping[str, Any], names: Sequence[str]) -> dict[str, str]:
    """The texts of `names`; a null or a missing column is an absent response."""
    texts = {name: row[name] for name in names if row.get(name) is not None}
    wrong = [
        f"field {name!r}: {type(value).__name__} where text is expected"
        if not isinstance(value, str)
        else f"field {name!r}: half of a surrogate pair, which is not text"
        for name, value in texts.items()
        if not _is_text(value)
    ]
    if wrong:
        raise Unusable("; ".join(wrong))
    return texts


def _parsed(prompt: str, responses: dict[str, str], where: str = "prompt") -> Parsed:
    if not prompt.strip():
        raise Unusable(f"field {where!r}: the prompt is empty")
    empty = frozenset(kind for kind, text in responses.items() if not text.strip())
    return Parsed(prompt, responses, empty)


def _wide(row: Mapping[str, Any], kinds: Sequence[str]) -> Parsed:
    texts = _texts(row, ("prompt", *kinds))
    if "prompt" not in texts:
        raise Unusable("field 'prompt': missing")
    return _parsed(texts.pop("prompt"), texts)


def _pair(row: Mapping[str, Any], kinds: Sequence[str]) -> dict[str, str]:
    texts = _texts(row, kinds)
    missing = [name for name in ("chosen", "rejected") if name not in texts]
    if missing:
        raise Unusable(f"field {missing[0]!r}: missing, so the prompt is unknown")
    return texts


def _dialogues(row: Mapping[str, Any], kinds: Sequence[str]) -> Parsed:
    texts = _pair(row, kinds)
    prompts: dict[str, str] = {}
    for name in ("chosen", "rejected"):
        head, mark, answer = texts[name].rpartition(_ASSISTANT)
        if not mark:
            raise Unusable(f"field {name!r}: no '\\n\\nAssistant:' before an answer")
        prompts[name], texts[name] = head + mark, answer
    chosen, rejected = prompts["chosen"], prompts["rejected"]
    if chosen != rejected:
        same = _shared(chosen, rejected)
        raise Mismatched(
            f"chosen and rejected answer different prompts, of {len(chosen)} and "
            f"{len(rejected)} characters, which part at character {same}"
        )
    return _parsed(chosen, texts, "chosen")


def _shared_start(row: Mapping[str, Any], kinds: Sequence[str]) -> Parsed:
    texts = _pair(row, kinds)
    chosen, rejected = texts["chosen"], texts["rejected"]
    if chosen == rejected:
        raise Unusable(
            "chosen and rejected are the same, so the prompt's end is unknown"
        )
    shared = _shared(chosen, rejected)
    # As trl.extract_prompt: each side keeps one character, and a space before it.
    cut = max(0, min(shared, len(chosen) - 1, len(rejected) - 1))
    if cut == shared and chosen[:cut].endswith(" "):
        cut -= 1
    prompt = chosen[:cut]
    if not prompt.strip():
        raise Mismatched(
            "chosen and rejected do not begin alike, so the prompt is unknown"
        )
    texts.update(chosen=chosen[cut:], rejected=rejected[cut:])
    return _parsed(prompt, texts, "chosen")


def _shared(*texts: str) -> int:
    """Number of leading characters that all texts have in common."""
    pairs = enumerate(zip(*texts, strict=False))
    shortest = min(len(text) for text in texts)
    return next((i for i, letters in pairs if len(set(letters)) > 1), shortest)


_Messages = list[dict[str, Any]]


def _conversation(
    row: Mapping[str, Any], kinds: Sequence[str]
) -> tuple[_Messages, dict[str, _Messages]]:
    """Prompt and answers as messages; an answer that is text is the assistant's."""
    answers: dict[str, _Messages] = {}
    with_prompt: list[str] = []  # kinds whose messages begin with the prompt's
    for kind in kinds:
        value = row.get(kind)
        if isinstance(value, str):
            answers[kind] = [{"role": "assistant", "content": value}]
        elif _is_messages(value):
            answers[kind] = _checked(kind, value)
            with_prompt.append(kind)
        elif value is not None:
            what = "an empty list" if value == [] else type(value).__name__
            raise Unusable(f"field {kind!r}: {what} where messages are expected")
    if _is_messages(row.get("prompt")):
        return _checked("prompt", row["prompt"]), answers
    pair = [answers[kind] for kind in ("chosen", "rejected") if kind in with_prompt]
    if not pair:
        raise Unusable("field 'chosen': no messages, so no prompt to share")
    # As trl.extract_prompt: each side keeps at least its last message.
    cut = min(len(side) for side in pair) - 1
    for index in range(cut):
        if any(side[index] != pair[0][index] for side in pair):
            cut = index
            break
    prompt = pair[0][:cut]
    strange = [kind for kind in with_prompt if answers[kind][:cut] != prompt]
    if not prompt or strange:
        raise Mismatched("the answers begin with different messages: no common prompt")
    return prompt, answers | {kind: answers[kind][cut:] for kind in with_prompt}


def _checked(name: str, messages: Any) -> _Messages:
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise Unusable(f"field {name!r}, message {index}: no role")
        content = message.get("content")
        if content is not None and not _is_text(content):
            raise Unusable(
                f"field {name!r}, message {index}: the content is "
                f"{type(content).__name__} where text is expected"
            )
    return messages


def _content(messages: _Messages) -> str:
    return "".join(message.get("content") or "" for message in messages)


def _messages(
    row: Mapping[str, Any],
    kinds: Sequence[str],
    tokenizer: "PreTrainedTokenizerBase",
) -> Parsed:
    """The calls of `tokenize_fn` in TRL 1.16's DPOTrainer, made on text."""
    prompt, answers = _conversation(row, kinds)
    if not _content(prompt).strip():
        raise Unusable("field 'prompt': the prompt is empty")
    tools = _tools(row.get("tools"))
    settings = row.get("chat_template_kwargs") or {}

    def render(messages: _Messages, **more: bool) -> str:
        text = tokenizer.apply_chat_template(
            messages, tools=tools, tokenize=False, **more, **settings
        )
        assert isinstance(text, str)
        return text

    try:
        asked = render(prompt, add_generation_prompt=True)
        whole = {kind: render(prompt + answer) for kind, answer in answers.items()}
        answer = answers.get("chosen", [])
        mark = [{"role": "assistant", "content": _MARK}]
        marked = render(prompt + mark) if len(answer) == 1 else ""
    # A template raises whatever its Jinja code does.
    except Exception as error:
        raise Unusable(f"the chat template refuses the messages: {error}") from error
    # Some templates write the prompt otherwise once an answer follows.
    cut = _shared(asked, *whole.values())
    if not asked[:cut].strip():
        raise Unusable("the chat template writes nothing before the answer")
    responses = {kind: text[cut:] for kind, text in whole.items()}
    empty = frozenset(kind for kind, a in answers.items() if _is_empty(a))
    frame = _frame(whole.get("chosen", ""), marked, _content(answer), cut)
    return Parsed(asked[:cut], responses, empty, rendered=True, frame=frame)


def _tools(value: Any) -> Any:
    """TRL's `tools` column: a list, or the same as JSON text."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError as error:
        raise Unusable(f"field 'tools': not a JSON list: {error}") from error


def _is_empty(answer: _Messages) -> bool:
    called = any(message.get("tool_calls") for message in answer)
    return not called and not _content(answer).strip()


def _frame(whole: str, marked: str, content: str, cut: int) -> tuple[str, str] | None:
    """What surrounds the answer, learnt from a rendering of a known one."""
    before, mark, after = marked.partition(_MARK)
    if not mark or len(before) < cut:
        return None
    for text in (content, content.strip()):
        if whole == before + text + after:
            return before[cut:], after
    return None


def _human_assistant(row: Mapping[str, Any], kinds: Sequence[str]) -> Parsed:
    """UltraFeedback without a chat template: the authors' prompt format."""
    question = row["prompt"]
    prompt, answers = _conversation(row, kinds)
    if len(prompt) != 1 or _content(prompt).strip() != question.strip():
        raise Mismatched(
            f"the {len(prompt)} messages before the answers are not the prompt alone; "
            "a tokenizer with a chat template can render them"
        )
    _texts(row, ("prompt",))
    if not question.strip():
        raise Unusable("field 'prompt': the prompt is empty")
    responses = {
        kind: answer[-1].get("content") or "" for kind, answer in answers.items()
    }
    return _parsed(f"Human: {question}\nAssistant:", responses)
