"""What was watched in a published run: the texts where they are given, else names."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from learndyn.errors import BadInput
from learndyn.paper.authors.layout import Layout
from learndyn.paper.authors.runs import FolderRun
from learndyn.probes.build import load_probes
from learndyn.probes.kinds import AUTHORS_KINDS, in_paper_order
from learndyn.probes.probe import COLUMNS, Probe, ProbeSet
from learndyn.record.observation import PROBE_COLUMNS, Observation


_UNKNOWN = "(not recorded)"
"""Text of a prompt or response that the result files do not hold."""

_MEAN = "mean"
"""Prompt id of a probe that stands for the mean over all prompts."""

_VOCABULARIES = {"pythia": 50304, "qwen": 151936}
"""Rows of the output layer of the authors' models: the V of ||A||."""


def probes_of(run: FolderRun, given: Path | None) -> ProbeSet:
    """The probes that a run's numbers are of, prompt after prompt.

    Without texts there is one probe a prompt and kind, p0000 and so on in the file's
    order; or, where only means are known, one a kind, whose prompt is "mean".

    Raises:
        BadInput: if the given probes have another number of prompts, or lack a kind.
    """
    kinds, split = in_paper_order(run.layout.kinds), run.layout.split
    if given is not None and not run.means_only:
        return _given(run, given, kinds)
    prompts = run.values.shape[2]
    digits = max(4, len(str(prompts - 1)))
    ids = [_MEAN] if run.means_only else [f"p{i:0{digits}d}" for i in range(prompts)]
    return ProbeSet(
        tuple(Probe(i, kind, _UNKNOWN, _UNKNOWN, split) for i in ids for kind in kinds)
    )


def table_of(probes: ProbeSet) -> pa.Table:
    """The run directory's probe table. Token ids and counts are not known: empty, 0."""
    n = len(probes)
    lists = pa.array([[]] * n, pa.list_(pa.int64()))
    texts = {name: [getattr(probe, name) for probe in probes] for name in COLUMNS}
    return pa.table(
        {
            "probe_id": pa.array(range(n), pa.int64()),
            **texts,
            "n_tokens": pa.array([0] * n, pa.int64()),
            "prompt_ids": lists,
            "response_ids": lists,
        }
    )


def vocabulary(run: FolderRun, folder: str) -> int | None:
    """The V of ||A||, from the folder's name or from the values alone; None if neither
    can tell, or they contradict each other.

    ||A||^2 = V - 2 + V ||pi||^2 with ||pi||^2 between 1 / V and 1, so that every value
    lies between the roots of V - 1 and 2 V - 2.
    """
    norms = [
        run.values[:, index]
        for index, column in enumerate(run.layout.columns)
        if column.quantity == "a_norm"
    ]
    known = np.concatenate([v[np.isfinite(v)] for v in norms]) if norms else np.empty(0)
    if not len(known):
        return None
    low, high = float(known.min()) ** 2, float(known.max()) ** 2
    slack = 1e-4 * high  # the norms were taken in float32
    fits = [
        size
        for size in _VOCABULARIES.values()
        if low >= size - 1 - slack and high <= 2 * size - 2 + slack
    ]
    named = [size for name, size in _VOCABULARIES.items() if name in folder.lower()]
    both = [size for size in fits if not named or size in named]
    return both[0] if len(both) == 1 else None


def observation_of(
    run: FolderRun, step: int, probes: ProbeSet, size: int | None
) -> Observation:
    """One evaluation as an observation; NaN for what the file does not hold.

    Columns without a kind belong to the probes of the kind that they are of. Where that
    is not chosen, the greedy path is kept along chosen too: see `defects_of`.
    """
    layout, values = run.layout, run.values[step]
    kinds = in_paper_order(layout.kinds)
    shape = (values.shape[1], len(kinds))
    columns = {name: np.full(shape, np.nan) for name in PROBE_COLUMNS}
    for place, kind in enumerate(kinds):
        places = {"logp": layout.place("logp", kind)}
        if kind == layout.along:
            names = ("argmax_logp", "rest_logp", "p_gap", "energy")
            places |= {name: layout.place(name) for name in names}
        elif kind == "chosen":
            places["argmax_logp"] = layout.place("argmax_logp")
        for name, index in places.items():
            if index is not None:
                columns[name][:, place] = _finite(values[index])
        norm = _norm_place(layout, kind)
        if norm is not None and size is not None:
            columns["p_norm2"][:, place] = _mean_square(values[norm], size)
    none, flat = np.empty(0, np.float32), _flat(columns)
    return Observation(
        step,
        np.zeros(len(probes), np.int32),
        logp=flat["logp"],
        argmax_logp=flat["argmax_logp"],
        rest_logp=flat["rest_logp"],
        entropy=flat["entropy"],
        p_norm2=flat["p_norm2"],
        p_gap=flat["p_gap"],
        energy=flat["energy"],
        top1=flat["top1"],
        token_logp=none,
        token_argmax_logp=none,
        token_start_logp=none,
        token_argmax_id=np.empty(0, np.int32),
    )


def _mean_square(
    norm: Float[np.ndarray, "*shape"], size: int
) -> Float[np.ndarray, "*shape"]:
    """||pi||^2 from ||A||: (||A||^2 - V + 2) / V (paper, Appendix C.2)."""
    return np.asarray((np.asarray(norm, np.float64) ** 2 - size + 2) / size)


def norms_of_others(run: FolderRun) -> dict[str, list[float]]:
    """Mean ||A|| at each evaluation of the kinds whose log-probability is not known."""
    kinds, means = set(run.layout.kinds), run.means
    return {
        column.kind: means[:, index].tolist()
        for index, column in enumerate(run.layout.columns)
        if column.quantity == "a_norm" and column.kind and column.kind not in kinds
    }


def _flat(
    columns: dict[str, Float[np.ndarray, "prompt kind"]],
) -> dict[str, Float[np.ndarray, " probe"]]:
    return {name: column.reshape(-1) for name, column in columns.items()}


def _norm_place(layout: Layout, kind: str) -> int | None:
    own = layout.place("a_norm", kind)
    if own is None and kind == layout.along:
        return layout.place("a_norm")
    return own


def _finite(values: Float[np.ndarray, " prompt"]) -> Float[np.ndarray, " prompt"]:
    return np.where(np.isfinite(values), values, np.nan)


def _given(run: FolderRun, path: Path, kinds: list[str]) -> ProbeSet:
    split, prompts = run.layout.split, run.values.shape[2]
    whole = load_probes(path, aliases=AUTHORS_KINDS, empty="keep", split=split)
    texts = whole.select(kinds=[kind for kind in kinds if kind in whole.kinds])
    ids, count = whole.prompt_ids, len(whole.prompt_ids)
    if count != prompts:
        raise BadInput(
            f"{path} has {count} prompts, and {run.array} has numbers for {prompts}. "
            "Give the probe file that this run watched, or leave probes= out."
        )
    of = {(probe.prompt_id, probe.kind): probe for probe in texts}
    keys = [(i, kind) for i in ids for kind in kinds]
    lacking = [f"{kind} of {i}" for i, kind in keys if (i, kind) not in of]
    if lacking:
        raise BadInput(
            f"{path} lacks {len(lacking)} responses that {run.array} has numbers for "
            f"({', '.join(lacking[:3])}). Give the probe file that this run watched."
        )
    return ProbeSet(tuple(of[key] for key in keys), whole.manifest)
