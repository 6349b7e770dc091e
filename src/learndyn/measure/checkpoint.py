"""`learndyn score`: a saved model scored on a probe set, equal to what the run saw."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Unpack, cast

import numpy as np
import pyarrow.parquet as pq
import torch
from jaxtyping import Int
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from learndyn.errors import BadInput
from learndyn.measure.forward import check_batch_size
from learndyn.measure.load import load_model, load_tokenizer
from learndyn.measure.route import Route
from learndyn.measure.score import Scorer, ScoreSettings
from learndyn.probes.build import load_probes
from learndyn.probes.kinds import AUTHORS_KINDS
from learndyn.probes.probe import ProbeSet
from learndyn.probes.tokenize import (
    TokenizedProbes,
    tokenize,
    tokenizer_hash,
)
from learndyn.record.files import refuse_taken_file, write_whole
from learndyn.record.observation import Observation
from learndyn.record.run_directory import RunDirectory


@dataclass(frozen=True)
class Scored:
    """One model, all probes."""

    model: str
    tokenized: TokenizedProbes
    observation: Observation
    seconds: float
    out: Path | None
    route: Route

    def to_dict(self) -> dict[str, Any]:
        """Means per kind, in nats per response and per token."""
        return {
            "model": self.model,
            "probes": len(self.tokenized),
            "fingerprint": self.tokenized.probes.fingerprint,
            "seconds": round(self.seconds, 2),
            "out": None if self.out is None else str(self.out),
            "route": asdict(self.route),
            "truncated": self.cut,
            "kinds": {kind: self._means(kind) for kind in self.tokenized.probes.kinds},
        }

    def to_text(self) -> str:
        """The same as a table for people."""
        lines = [
            f"{self.model}: {len(self.tokenized)} probes in {self.seconds:.1f} s",
            "",
            f"{'kind':20} {'prompts':>7} {'logp':>10} {'per token':>10} "
            f"{'argmax':>10} {'top-1':>7}",
        ]
        for kind in self.tokenized.probes.kinds:
            row = self._means(kind)
            lines.append(
                f"{kind:20} {row['prompts']:7d} {row['logp_mean']:10.2f} "
                f"{row['logp_per_token']:10.4f} {row['argmax_logp_mean']:10.2f} "
                f"{row['top1_mean']:7.1%}"
            )
        lines += ["", "logp, argmax: mean nats per response, end of text included."]
        if self.cut:
            lines.append(
                f"{self.cut} of {len(self.tokenized)} probes are longer than the limit "
                "and were cut: a cut response has no end of text."
            )
        lines.append(self.route.in_words)
        if self.out is not None:
            lines.append(f"every probe and token: {self.out}")
        return "\n".join(lines)

    @property
    def cut(self) -> int:
        """Probes whose prompt or response was cut."""
        return sum(pair.truncated for pair in self.tokenized.pairs)

    def _means(self, kind: str) -> dict[str, Any]:
        mask = np.array([probe.kind == kind for probe in self.tokenized.probes])
        scores = self.observation
        return {
            "prompts": int(mask.sum()),
            "logp_mean": float(scores.logp[mask].mean()),
            "logp_per_token": float(
                scores.logp[mask].sum() / scores.n_tokens[mask].sum()
            ),
            "argmax_logp_mean": float(scores.argmax_logp[mask].mean()),
            "top1_mean": float(scores.top1[mask].mean()),
        }


def score_checkpoint(
    model: str,
    *,
    probes: ProbeSet | str | Path | None = None,
    run: RunDirectory | str | Path | None = None,
    out: str | Path | None = None,
    max_length: int | None = None,
    dtype: str | None = None,
    trust_remote_code: bool = False,
    overwrite: bool = False,
    **settings: Unpack[ScoreSettings],
) -> Scored:
    """Score a model on disk with a probe file, or with the frozen probes of a run.

    With `run`, the token ids are the run's own, and so are, unless given, `dtype` and
    `precision` (None scores exactly also what the run scored approximately);
    `token_start_logp` follows the argmax of its first observation: the result equals
    what the callback would have scores. Otherwise the model is in float32, scored
    exactly unless `precision` is given, and the probes are cut to `max_length` (1024).
    `settings` are those of `Scorer.attach`; what is approximate says so wherever it is
    shown or written.

    Raises:
        BadInput: if neither or both of `probes` and `run` are given, if `max_length`
            is given with `run`, if `out` exists or is a folder, if the run was
            tokenized for another tokenizer or has lost its first full observation, if
            strict exactness is asked for what the run scored approximately, and as
            `score`.
    """
    _check_asked(probes, run, max_length)
    check_batch_size(settings.get("batch_size", 1))
    out = None if out is None else Path(out)
    refuse_taken_file(out, overwrite)
    trust = {"trust_remote_code": trust_remote_code}
    directory = None if run is None else RunDirectory.of(run)
    run_dtype, start_ids = "float32", None
    if directory is not None:
        run_dtype = directory.info.dtype
        expected = str(directory.info.tokenizer_sha256)
        _check_tokenizer(model, directory.path, expected, trust_remote_code)
        tokenized = TokenizedProbes.from_table(directory.read_probes(), expected)
        start_ids = _first_argmax(directory, len(tokenized))
        settings = _as_the_run(directory, settings)
    else:
        tokenized = _read(probes, load_tokenizer(model, **trust), max_length)
    loaded = load_model(model, dtype=getattr(torch, dtype or run_dtype), **trust)
    began = time.perf_counter()
    scorer = Scorer.attach(loaded, tokenized.pairs, **settings)
    observation = scorer.observe(
        start_ids=start_ids,
        progress=lambda work: tqdm(work, desc="scoring", delay=2, leave=False),
    )
    seconds = time.perf_counter() - began
    if out is not None:
        _write(out, tokenized, observation, scorer.route)
    return Scored(model, tokenized, observation, seconds, out, scorer.route)


def _first_argmax(run: RunDirectory, probes: int) -> Int[np.ndarray, " token"] | None:
    """The argmax that a run's observations follow; None if it has none yet."""
    if not run.steps:
        return None
    first = run.read_observation(run.steps[0])
    if len(first.ids) != probes:
        raise BadInput(
            f"the first observation of {run.path}, at update {run.steps[0]}, holds "
            f"only {len(first.ids)} of {probes} probes (the panel): the full one "
            "before it was removed, and the others follow its argmax. Restore its "
            "file, or score the texts with probes=FILE."
        )
    return first.token_argmax_id


def _as_the_run(run: RunDirectory, settings: ScoreSettings) -> ScoreSettings:
    """With the run's own precision, unless one is given."""
    # a run from before there was an approximate way has no such entry
    approximate = run.info.approximate
    if "precision" in settings or approximate is None:
        return settings
    if settings.get("exactness") == "strict":
        raise BadInput(
            f"{run.path} was scored approximately, in {approximate}, and "
            "exactness='strict' refuses to score so again. Leave exactness= out, or "
            "give precision=None for exact numbers."
        )
    return cast(ScoreSettings, {**settings, "precision": approximate})


def _read(
    probes: ProbeSet | str | Path | None,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
) -> TokenizedProbes:
    if not isinstance(probes, ProbeSet):
        probes = load_probes(
            str(probes), aliases=AUTHORS_KINDS, empty="keep", tokenizer=tokenizer
        )
    return tokenize(probes, tokenizer, max_length=max_length or 1024)


def _write(
    out: Path, tokenized: TokenizedProbes, observation: Observation, route: Route
) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    table = observation.to_table()
    label = {"learndyn_route": json.dumps(asdict(route))}
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), **label})
    for name in ("kind", "prompt_id"):
        values = [getattr(probe, name) for probe in tokenized.probes]
        table = table.append_column(name, [values])
    write_whole(out, lambda path: pq.write_table(table, path, compression="zstd"))


def _check_asked(probes: object, run: object, max_length: int | None) -> None:
    if (probes is None) == (run is None):
        raise BadInput("give probes=FILE or run=RUN, not both: the probes to score.")
    if run is not None and max_length is not None:
        raise BadInput(
            f"max_length={max_length} cannot be used with run=: the token ids are the "
            "run's own. Leave it out, or score the texts with probes=FILE."
        )


def _check_tokenizer(model: str, run: Path, expected: str, trust: bool) -> None:
    """The run's token ids mean its texts under one tokenizer alone.

    A model without a tokenizer beside it, such as a bare checkpoint, is not checked.
    """
    try:
        present = tokenizer_hash(load_tokenizer(model, trust_remote_code=trust))
    except BadInput:
        return
    if present != expected:
        raise BadInput(
            f"the probes of {run} were tokenized by another tokenizer (SHA-256 "
            f"{expected[:12]}) than {model} has ({present[:12]}), so their token ids "
            "mean other texts here. Give a checkpoint of that run, or score the texts "
            "with probes=FILE."
        )
