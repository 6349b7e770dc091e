"""Forces on disk: they come back as they were, whole or not at all."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic import information, make_forces, probe_table, write_run

from learndyn.errors import BadInput
from learndyn.record.forces import _METADATA, Forces, Influence
from learndyn.record.run_directory import RunDirectory


HOSTILE = "../../etc </td><script>$\\frac{ \u202e\x00 \n日本 '\""


@pytest.fixture
def run(tmp_path):
    return RunDirectory.open(write_run(tmp_path / "run", prompts=4))


def assert_equal(one, other):
    """Two records (or influences) have equal fields, NaN counted as equal to NaN."""
    for field in dataclasses.fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if dataclasses.is_dataclass(a):
            assert_equal(a, b)
        elif isinstance(a, dict) and field.name != "info":
            assert list(a) == list(b), field.name
            for key, value in a.items():
                np.testing.assert_array_equal(value, b[key])
        elif isinstance(a, np.ndarray):
            assert a.dtype == b.dtype, field.name
            np.testing.assert_array_equal(a, b)
        else:
            assert a == b, field.name


def test_forces_and_their_influence_come_back_exactly(run):
    forces = make_forces(run.read_probes())
    run.write_forces(forces)
    assert_equal(run.read_forces(25), forces)
    without = dataclasses.replace(forces, influence=None)
    assert_equal(run.read_forces(25, influence=False), without)


def test_any_name_and_any_text_come_back_as_they_were(run):
    forces = make_forces(run.read_probes())
    influence = dataclasses.replace(
        forces.influence,
        kinds=(HOSTILE, *forces.influence.kinds[1:]),
        token=(HOSTILE, *forces.influence.token[1:]),
        role=(HOSTILE, *forces.influence.role[1:]),
        example_text={3: HOSTILE},
    )
    forces = dataclasses.replace(
        forces,
        parts={HOSTILE: forces.predicted, "": 0 * forces.predicted},
        token_parts={HOSTILE: forces.token_predicted},
        groups={HOSTILE: forces.predicted, "group_": forces.actual},
        token_text=(HOSTILE, *forces.token_text[1:]),
        info={"loss": HOSTILE, "notes": [HOSTILE]},
        influence=influence,
    )
    run.write_forces(forces)
    assert_equal(run.read_forces(25), forces)
    files = sorted(p.name for p in (run.path / "forces").iterdir())
    assert files == ["influence-00000025.parquet", "step-00000025.parquet"]


def test_a_lone_surrogate_in_a_token_does_not_stop_the_record(run):
    forces = make_forces(run.read_probes())
    tokens = ("a\ud800b", *forces.token_text[1:])
    run.write_forces(dataclasses.replace(forces, token_text=tokens))
    assert run.read_forces(25).token_text[0] == "a\ufffdb"


def test_values_that_are_not_finite_come_back_and_become_null_in_info(run):
    forces = make_forces(run.read_probes())
    lost = np.full_like(forces.actual, np.nan)
    lost[0] = np.inf
    run.write_forces(
        dataclasses.replace(forces, actual=lost, info={"r2": float("nan")})
    )
    found = run.read_forces(25)
    np.testing.assert_array_equal(found.actual, lost)
    assert found.info == {"r2": None}


def test_the_file_has_the_columns_that_the_docs_name(run):
    run.write_forces(make_forces(run.read_probes(), layers=1))
    table = pq.read_table(run.path / "forces" / "step-00000025.parquet")
    assert table.column_names == [
        *("probe_id", "n_tokens", "actual", "predicted", "noise"),
        *("part_pull", "part_push", "part_other", "part_history", "part_decay"),
        *("group_embedding", "group_layer 0", "group_head"),
        *("token_actual", "token_predicted", "token_part_pull", "token_part_push"),
        *("token_part_other", "token_part_history", "token_part_decay", "token_text"),
    ]
    assert _METADATA.encode() in table.schema.metadata
    influence = pq.read_table(run.path / "forces" / "influence-00000025.parquet")
    assert influence.column_names == [
        *("example", "position", "role", "token", "push", "change")
    ]


def test_a_record_is_of_the_probes_it_names(run):
    forces = make_forces(run.read_probes())
    some = np.array([1, 5], np.int32)
    span = np.concatenate([np.arange(8, 16), np.arange(40, 48)])
    part = dataclasses.replace(
        forces,
        probe_ids=some,
        n_tokens=forces.n_tokens[some],
        **{k: getattr(forces, k)[some] for k in ("actual", "predicted", "noise")},
        **{k: getattr(forces, k)[span] for k in ("token_actual", "token_predicted")},
        token_text=tuple(forces.token_text[i] for i in span),
        parts={k: v[some] for k, v in forces.parts.items()},
        groups={k: v[some] for k, v in forces.groups.items()},
        token_parts={k: v[span] for k, v in forces.token_parts.items()},
    )
    run.write_forces(part)
    assert_equal(run.read_forces(25), part)


def test_steps_are_those_of_complete_records(run):
    assert run.forces_steps == []
    for step in (75, 25):
        run.write_forces(make_forces(run.read_probes(), step))
    (run.path / "forces" / ".step-00000050.parquet.tmp").write_bytes(b"half")
    (run.path / "forces" / "influence-00000050.parquet").write_bytes(b"half")
    assert run.forces_steps == [25, 75]


@pytest.mark.parametrize("file", ["step", "influence"])
def test_a_crash_in_either_file_leaves_no_record(run, monkeypatch, file):
    forces = make_forces(run.read_probes())
    run.write_forces(forces)
    written = pq.write_table

    def crash(table, path, **options):
        if file in path.name:
            raise KeyboardInterrupt
        written(table, path, **options)

    monkeypatch.setattr(pq, "write_table", crash)
    with pytest.raises(KeyboardInterrupt):
        run.write_forces(forces)
    assert run.forces_steps == []  # never an old step file beside a new influence


def test_a_record_without_influence_replaces_one_with(run):
    forces = make_forces(run.read_probes())
    run.write_forces(forces)
    run.write_forces(dataclasses.replace(forces, influence=None))
    assert run.read_forces(25).influence is None
    assert len(list((run.path / "forces").iterdir())) == 1


def test_rewind_forgets_the_forces_of_later_updates(run):
    for step in (25, 50, 75):
        run.write_forces(make_forces(run.read_probes(), step))
    orphan = run.path / "forces" / "influence-00000090.parquet"
    orphan.write_bytes(b"of a crash")
    run.rewind(50)
    assert run.forces_steps == [25, 50]
    assert len(list((run.path / "forces").iterdir())) == 4
    assert run.read_forces(50).step == 50


def test_an_absent_or_corrupt_record_is_named(run):
    with pytest.raises(BadInput, match=r"step-00000025.parquet.*: \[\]"):
        run.read_forces(25)
    run.write_forces(make_forces(run.read_probes()))
    (run.path / "forces" / "step-00000025.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(BadInput, match="step-00000025"):
        run.read_forces(25)


@pytest.mark.parametrize("break_it", [lambda p: p.unlink(), lambda p: p.write_text("")])
def test_a_lost_influence_is_named_and_the_rest_can_be_read(run, break_it):
    run.write_forces(make_forces(run.read_probes()))
    break_it(run.path / "forces" / "influence-00000025.parquet")
    with pytest.raises(BadInput, match="influence-00000025"):
        run.read_forces(25)
    assert run.read_forces(25, influence=False).influence is None


def broken(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    """The table with one column exchanged."""
    return table.set_column(table.column_names.index(name), name, column)


def test_a_table_that_is_no_record_is_refused(run):
    table = make_forces(run.read_probes()).to_table()
    n = len(table)
    for wrong in (
        broken(table, "actual", pa.array(["x"] * n)),
        broken(table, "n_tokens", pa.array([None] + [8] * (n - 1))),
        broken(table, "token_actual", pa.array([[0.0]] * n)),
        broken(table, "token_text", pa.array([None] * n, pa.list_(pa.string()))),
        broken(table, "part_pull", pa.array([[1.0]] * n)),
        table.replace_schema_metadata({}),
        table.replace_schema_metadata({_METADATA: "[1]"}),
        table.replace_schema_metadata({_METADATA: "{"}),
        table.drop(["predicted"]),
    ):
        pq.write_table(wrong, run.path / "x.parquet")
        (run.path / "forces").mkdir(exist_ok=True)
        (run.path / "x.parquet").rename(run.path / "forces/step-00000025.parquet")
        with pytest.raises(BadInput, match="cannot read"):
            run.read_forces(25)


def test_an_influence_of_other_kinds_than_it_names_is_refused(run):
    influence = make_forces(run.read_probes()).influence
    table = influence.to_table().replace_schema_metadata(
        {_METADATA: '{"kinds": ["chosen"], "example_text": {}}'}
    )
    with pytest.raises(ValueError, match="change"):
        Influence.from_table(table)


def test_a_run_with_forces_and_their_page_may_be_overwritten_when_asked(run):
    run.write_forces(make_forces(run.read_probes()))
    (run.path / "explain.html").write_text("ours")
    probes = probe_table(["chosen"], 2)
    RunDirectory.create(run.path, probes, information(), overwrite=True)
    assert RunDirectory.open(run.path).forces_steps == []


def test_probes_without_tokens_are_kept(run):
    forces = make_forces(probe_table(["chosen"], 3, tokens=0))
    assert Forces.from_table(25, forces.to_table()).token_text == ()
