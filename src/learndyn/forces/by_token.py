"""Training tokens, and what each did to every kind of probe, with their texts."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from learndyn.forces.batch import Batch
from learndyn.forces.predict import Predictor
from learndyn.forces.split import Descend, influence
from learndyn.probes.tokenize import TokenizedProbes
from learndyn.record.forces import Influence


LETTER = 4
"""Most tokens of one letter: UTF-8 has at most four bytes."""

Decode = Callable[[Sequence[int]], str]
"""The text of token ids."""


def _kind_weights(
    probes: TokenizedProbes, offsets: Any
) -> dict[str, Float[np.ndarray, " token"]]:
    """For each kind, what makes the mean over its probes of their summed logp."""
    kind_of = np.repeat([probe.kind for probe in probes.probes], np.diff(offsets))
    counts = {k: sum(p.kind == k for p in probes.probes) for k in probes.probes.kinds}
    return {kind: (kind_of == kind) / count for kind, count in counts.items()}


def influence_on_kinds(
    predictor: Predictor,
    probes: TokenizedProbes,
    batch: Batch,
    descend: Descend,
    decode: Decode,
) -> Influence:
    """What each training token did to the mean log-probability of each kind of probe.

    `descend` makes the update of a part of the gradient, clipping included. Two passes
    for each kind.
    """
    weights = _kind_weights(probes, predictor.reader.offsets)
    rows = np.stack(list(weights.values()))
    change = influence(predictor, batch, descend, rows)
    return Influence(
        kinds=tuple(weights),
        example=batch.example.astype(np.int32),
        position=batch.position.astype(np.int32),
        role=tuple(batch.roles[i] for i in batch.example),
        token=tuple(
            text for p in batch.pairs for text in texts_of(p.response_ids, decode)
        ),
        push=batch.push,
        change=change.T,
        example_text={
            i: _shown(pair.prompt_ids, pair.response_ids, decode)
            for i, pair in enumerate(batch.pairs)
        },
    )


def _shown(prompt: Sequence[int], response: Sequence[int], decode: Decode) -> str:
    """The end of a prompt and the start of its response."""
    return decode([*prompt[-24:], *response[:24]])


def texts_of(ids: Sequence[int], decode: Decode) -> list[str]:
    """The text of each token. A letter of several tokens stands at the last of them,
    and the ones before it have none."""
    texts: list[str] = []
    open_ids: list[int] = []
    for token in ids:
        open_ids.append(int(token))
        text = decode(open_ids)
        if text.endswith("\N{REPLACEMENT CHARACTER}") and len(open_ids) < LETTER:
            texts.append("")
            continue
        texts.append(text)
        open_ids = []
    return texts
