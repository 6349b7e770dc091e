"""A run's observations, read and checked against its probe table."""

import warnings

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from learndyn.errors import BadInput
from learndyn.record.clock import began_before, step_unit
from learndyn.record.run_directory import RunDirectory
from learndyn.record.sums import Sums


def read_observations(
    run: RunDirectory,
    steps: list[int],
    probes: pa.Table,
    panel: Int[np.ndarray, " row"] | None,
) -> tuple[list[Sums], tuple[str, ...]]:
    """All observations that can be read, and what to say of the others.

    Each is of all probes or of those of the `panel`.

    Raises:
        BadInput: if the first one is missing, cannot be read, or is of other probes.
    """
    first, unit = steps[0], step_unit(run.info)
    if first > 0 and began_before(run.info, first, run.read_log()):
        raise BadInput(
            f"the first observation of {run.path} is missing: its earliest file is of "
            f"{unit} {first}, and the run began before that. All changes are measured "
            "from the first observation. Restore the file, or train again."
        )
    read, unreadable = [], []
    for step in steps:
        try:
            one = run.read_sums(step)
            _check_rows(one, probes, panel, run)
            read.append(one)
        except BadInput as error:
            if not read:
                raise BadInput(
                    f"{error}\nIt is the first observation of {run.path}, which all "
                    "others are compared with. Restore the file, or train again."
                ) from error
            unreadable.append(f"The observation at {unit} {step} is left out: {error}")
    if unreadable:
        more = f" And {len(unreadable) - 1} more." if unreadable[1:] else ""
        warnings.warn(unreadable[0] + more, stacklevel=3)
    return read, tuple(unreadable)


def check_lengths(first: Sums, probes: pa.Table, path: str) -> None:
    """The probe table is of this run only if its answers have as many tokens.

    Imported runs do not know the number: it is 0.

    Raises:
        BadInput: if it is of another run.
    """
    if "n_tokens" not in probes.column_names:
        return
    wanted = probes["n_tokens"].to_numpy()
    differ = (wanted != first.n_tokens) & (wanted > 0) & (first.n_tokens > 0)
    if differ.any():
        row = int(np.argmax(differ))
        raise BadInput(
            f"probes.parquet of {path} is of another run: {differ.sum()} of "
            f"{len(probes)} answers have another number of tokens than was scored at "
            f"update {first.step} (row {row}: {wanted[row]} and "
            f"{first.n_tokens[row]}). Restore this run's own file."
        )


def _check_rows(
    observation: Sums,
    probes: pa.Table,
    panel: Int[np.ndarray, " row"] | None,
    run: RunDirectory,
) -> None:
    """An observation is of all probes or of the panel's, never of others."""
    ids, known = observation.ids, len(probes)
    if np.array_equal(ids, np.arange(known)):
        return
    if panel is not None and np.array_equal(ids, panel):
        return
    path = run.observation_path(observation.step)
    wanted = np.arange(known) if panel is None or len(ids) == known else panel
    if len(ids) == len(wanted):
        row = int(np.argmax(ids != wanted))
        raise BadInput(
            f"the probe ids in {path} differ from those of probes.parquet at "
            f"{np.sum(ids != wanted)} of {len(ids)} rows (row {row}: {ids[row]}, not "
            f"{wanted[row]}). The file is damaged."
        )
    foreign = np.setdiff1d(ids, np.arange(known))
    lacks = f" and lacks {len(foreign)} of those" if len(foreign) else ""
    panels = "is no panel" if panel is None else f"is a panel of {len(panel)} probes"
    raise BadInput(
        f"{path} has {len(ids)} probes, "
        f"probes.parquet has {known}{lacks}; in run.json there {panels}. An "
        "observation is of all probes or of the panel's, the same ones throughout."
    )
