"""Token ids of probes and training pairs, frozen once and used everywhere.

One rule for probing and for training: prompt and response are encoded apart, so that no
token ever spans the boundary; the prompt gets the tokenizer's BOS; every response that
is not cut gets EOS; special tokens written out in a text are ordinary text, unless a
chat template put them there.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from learndyn.errors import BadInput
from learndyn.probes.probe import COLUMNS, ProbeSet


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_BEFORE = ("\n", ".", "a")
"""What a text is encoded after, where a tokenizer puts a space before any text."""


@dataclass(frozen=True, slots=True)
class TokenizedPair:
    """Token ids of one prompt and one response to it."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    """All scored tokens: the response's own and its EOS."""
    truncated: bool
    """Whether the front of the prompt or the end of the response was cut."""
    has_eos: bool
    """Whether an end-of-text token is scored. It is the last token, save where a chat
    template writes something after it."""


@dataclass(frozen=True)
class TokenizedProbes:
    """A probe set with the token ids that are scored, from now on unchangeable."""

    probes: ProbeSet
    pairs: tuple[TokenizedPair, ...]
    """One per probe, in the set's order."""
    tokenizer_hash: str

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def n_tokens(self) -> list[int]:
        """Scored tokens of each response, EOS included."""
        return [len(pair.response_ids) for pair in self.pairs]

    def select(self, rows: Sequence[int]) -> "TokenizedProbes":
        """Only the probes at these positions, in the order given."""
        probes = ProbeSet(tuple(self.probes[i] for i in rows), self.probes.manifest)
        return TokenizedProbes(
            probes, tuple(self.pairs[i] for i in rows), self.tokenizer_hash
        )

    def to_table(self) -> pa.Table:
        """The run directory's probe table: texts, flags and token ids."""
        columns: dict[str, Any] = {"probe_id": list(range(len(self)))}
        for name in COLUMNS:
            columns[name] = [getattr(probe, name) for probe in self.probes]
        columns["n_tokens"] = self.n_tokens
        for name in ("truncated", "has_eos", "prompt_ids", "response_ids"):
            columns[name] = [getattr(pair, name) for pair in self.pairs]
        return pa.table(columns)

    @classmethod
    def from_table(cls, table: pa.Table, tokenizer_hash: str) -> "TokenizedProbes":
        """Inverse of `to_table`: the very ids that the run scored."""
        rows = table.to_pylist()
        pairs = tuple(
            TokenizedPair(
                tuple(row["prompt_ids"]),
                tuple(row["response_ids"]),
                row["truncated"],
                row["has_eos"],
            )
            for row in rows
        )
        return cls(ProbeSet.from_rows(rows), pairs, tokenizer_hash)


@dataclass(frozen=True, slots=True)
class PairTokenizer:
    """Turns (prompt, response) texts into `TokenizedPair`s, always the same way.

    Raises:
        BadInput: if the limits leave no room, or the tokenizer has no EOS token.
    """

    tokenizer: "PreTrainedTokenizerBase"
    max_length: int = 1024
    """Most tokens of prompt and response together."""
    max_prompt_length: int | None = None
    """Most tokens of the prompt; its end is kept. Default: half of `max_length`."""

    def __post_init__(self) -> None:
        if not 0 < self.prompt_limit < self.max_length:
            raise BadInput(
                f"max_prompt_length {self.prompt_limit} leaves no token for the "
                f"response within max_length {self.max_length}. Raise max_length or "
                "lower max_prompt_length."
            )
        if self.tokenizer.eos_token_id is None:
            raise BadInput(
                f"the tokenizer {self.tokenizer.name_or_path!r} has no EOS token, so "
                "the end of a response cannot be scored. Set tokenizer.eos_token."
            )

    @property
    def prompt_limit(self) -> int:
        """Most tokens of the prompt."""
        if self.max_prompt_length is None:
            return self.max_length // 2
        return self.max_prompt_length

    def __call__(
        self, prompt: str, response: str, rendered: bool = False
    ) -> TokenizedPair:
        """Encode one pair; cuts are flagged, never silent."""
        prompt_ids = self._prompt(prompt, rendered)
        response_ids = self._response(response, rendered)
        cut_prompt = self._keep_end(prompt_ids)
        if not response_ids:  # a chat template may write nothing after it, not even EOS
            raise BadInput(
                f"the response {response[:60]!r} to the prompt {prompt[-60:]!r} has no "
                f"token to score: prompt {len(prompt_ids)} + response 0 tokens, "
                f"max_length {self.max_length}. Leave out empty responses "
                "(empty='drop'), or use a chat template that ends an answer."
            )
        cut_response = response_ids[: self.max_length - len(cut_prompt)]
        whole = cut_prompt == prompt_ids and cut_response == response_ids
        return TokenizedPair(
            tuple(cut_prompt),
            tuple(cut_response),
            truncated=not whole,
            has_eos=self.tokenizer.eos_token_id in cut_response,
        )

    def _prompt(self, text: str, rendered: bool) -> list[int]:
        ids = self._encode(text, special=rendered)
        bos = self._bos()
        if not rendered and bos is not None:
            ids = [bos, *ids]
        if not ids:
            raise BadInput(
                f"the prompt {text[:60]!r} has no token, so nothing can follow it."
            )
        return ids

    def _bos(self) -> int | None:
        """BOS if this tokenizer puts it before a text, as Llama's does."""
        ids = self.tokenizer("a")["input_ids"]
        bos = self.tokenizer.bos_token_id
        return bos if isinstance(bos, int) and ids[:1] == [bos] else None

    def _response(self, text: str, rendered: bool) -> list[int]:
        if rendered:
            return self._continue(text, special=True)
        eos, eos_id = self.tokenizer.eos_token, self.tokenizer.eos_token_id
        assert isinstance(eos, str)
        assert isinstance(eos_id, int)
        text = text.removesuffix(eos)  # data that ends in EOS must not end in two
        return [*self._continue(text, special=False), eos_id]

    def _continue(self, text: str, special: bool) -> list[int]:
        """Encode a text that stands after another one.

        Sentencepiece-style tokenizers put a space before any text. After a newline
        they do not, so a newline is encoded in front and its ids are taken off. Where
        the newline merges with the text, another character is encoded in front.
        """
        if not text:
            return []
        if not self._adds_space():
            return self._encode(text, special)
        for before in _BEFORE:
            lead = self._encode(before, special)
            ids = self._encode(before + text, special)
            if ids[: len(lead)] == lead:
                return ids[len(lead) :]
        raise BadInput(
            f"the tokenizer {self.tokenizer.name_or_path!r} adds a space before a text "
            f"and merges each of {_BEFORE} with {text[:40]!r}, so that this cannot be "
            "encoded as the continuation of a prompt."
        )

    def _adds_space(self) -> bool:
        # By what comes out: tokenizers have no flag that says so for all of them.
        joined = self._encode("a", False) + self._encode("b", False)
        return self.tokenizer.decode(joined) != "ab"

    def _encode(self, text: str, special: bool) -> list[int]:
        ids = self.tokenizer(
            text, add_special_tokens=False, split_special_tokens=not special
        )["input_ids"]
        assert isinstance(ids, list)
        return ids

    def _keep_end(self, ids: list[int]) -> list[int]:
        """The prompt's last tokens: the question stands at its end. BOS stays."""
        if len(ids) <= self.prompt_limit:
            return ids
        bos = self._bos()
        if bos is not None and ids[0] == bos and self.prompt_limit > 1:
            return [bos, *ids[1 - self.prompt_limit :]]
        return ids[-self.prompt_limit :]


def tokenize(
    probes: ProbeSet | str | Path,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_length: int = 1024,
    max_prompt_length: int | None = None,
) -> TokenizedProbes:
    """Freeze the token ids of a probe set.

    Prompt and response are encoded apart. The end of a long prompt and the start of a
    long response are kept; a cut response has no EOS; both are flagged.

    Raises:
        BadInput: see `PairTokenizer`.
    """
    probes = ProbeSet.of(probes)
    encode = PairTokenizer(tokenizer, max_length, max_prompt_length)
    pairs = tuple(encode(p.prompt, p.response, p.rendered) for p in probes)
    return TokenizedProbes(probes, pairs, tokenizer_hash(tokenizer))


def tokenizer_hash(tokenizer: "PreTrainedTokenizerBase") -> str:
    """SHA-256 of all that decides a text's ids: vocabulary, merges, special tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        rules: Any = sorted(tokenizer.get_vocab().items())
    else:
        rules = json.loads(backend.to_str())
        # Using a tokenizer changes these two; they decide no id.
        rules.pop("padding", None)
        rules.pop("truncation", None)
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    text = json.dumps([rules, special, tokenizer.chat_template], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
