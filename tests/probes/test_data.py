"""Reading data: every format, and every way in which input can be wrong."""

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict
from small_tokenizers import byte_level, chatml, message
from trl.data_utils import extract_prompt

from learndyn.errors import BadInput
from learndyn.probes.data import Sample, read_data
from learndyn.probes.kinds import AUTHORS_KINDS


WIDE = [
    {"prompt": "one?", "chosen": " yes", "rejected": " no"},
    {"prompt": "two?", "chosen": " two", "rejected": " 2\u2028three"},
]


def jsonl(folder: Path, rows: list[Any], name: str = "data.jsonl") -> Path:
    path = folder / name
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write(folder: Path, ending: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / f"data.{ending}"
    table = pa.Table.from_pylist(rows)
    if ending == "jsonl":
        return jsonl(folder, rows)
    if ending == "json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif ending == "parquet":
        pq.write_table(table, path)
    else:
        table.to_pandas().to_csv(path, index=False)
    return path


def refused(source: str | Path, **settings: Any) -> str:
    with pytest.raises(BadInput) as caught:
        read_data(source, **settings)
    return str(caught.value)


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet", "csv"])
def test_wide_rows_are_the_same_from_every_file_type(tmp_path, ending):
    data = read_data(write(tmp_path, ending, WIDE))
    assert [row.prompt for row in data.rows] == ["one?", "two?"]
    assert data.rows[1].responses == {"chosen": " two", "rejected": " 2\u2028three"}
    assert [row.row_id for row in data.rows] == ["train-000000", "train-000001"]
    assert not data.rows[0].rendered
    assert data.dropped == ()
    assert len(data.sha256) == 64


def test_json_may_hold_its_rows_under_data(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"about": 1, "data": WIDE}))
    assert len(read_data(path).rows) == 2


def test_csv_texts_may_hold_line_ends_and_quotes(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('prompt,chosen\n"a\n\nb?"," say ""yes"",\nor no"\n')
    (row,) = read_data(path).rows
    assert row.prompt == "a\n\nb?"
    assert row.responses == {"chosen": ' say "yes",\nor no'}


def test_a_byte_order_mark_and_blank_lines_are_no_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(WIDE[0]).encode() + b"\r\n\r\n")
    assert len(read_data(path).rows) == 1


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "csv"])
def test_a_null_is_an_absent_response_and_is_counted(tmp_path, ending):
    rows = [*WIDE, {"prompt": "three?", "chosen": " ok", "rejected": None}]
    data = read_data(write(tmp_path, ending, rows))
    assert data.rows[2].responses == {"chosen": " ok"}
    (dropped,) = data.dropped
    assert (dropped.what, dropped.reason) == ("response", "rejected is absent")
    assert dropped.names == ("train-000002",)


@pytest.mark.parametrize("column", ["row_id", "prompt_id", "id"])
def test_a_rows_own_id_is_kept(tmp_path, column):
    rows = [{column: 7, **WIDE[0]}, {column: "x", **WIDE[1]}]
    data = read_data(jsonl(tmp_path, rows))
    assert [row.row_id for row in data.rows] == ["7", "x"]
    assert data.kinds == ["chosen", "rejected"]


def test_a_split_column_selects_rows_and_positions_stay_those_of_the_source(tmp_path):
    rows = [{**WIDE[0], "split": "train"}, {**WIDE[1], "split": "test"}]
    data = read_data(jsonl(tmp_path, rows), split="test")
    assert [row.row_id for row in data.rows] == ["test-000001"]


def test_foreign_columns_are_renamed(tmp_path):
    path = jsonl(tmp_path, [{"instruction": "a?", "output": " b", "id": 1}])
    data = read_data(path, rename={"instruction": "prompt", "output": "chosen"})
    assert data.rows[0].prompt == "a?"
    assert data.kinds == ["chosen"]


def test_columns_without_text_are_no_kinds_and_are_named(tmp_path):
    rows = [{**row, "margin": 0.5, "score_chosen": 3.0} for row in WIDE]
    data = read_data(jsonl(tmp_path, rows))
    assert data.kinds == ["chosen", "rejected"]
    assert [d.names for d in data.dropped if d.what == "column"] == [("margin",)]


def test_limit_draws_rows_by_the_seed_and_keeps_which(tmp_path):
    rows = [{**WIDE[0], "prompt": f"ask {i}"} for i in range(60)]
    path = jsonl(tmp_path, rows)
    data = read_data(path, limit=20, seed=3)
    drawn = [int(row.prompt.removeprefix("ask ")) for row in data.rows]
    assert len(set(drawn)) == 20
    assert drawn == sorted(drawn) != list(range(20))
    assert data.sample == Sample(20, 3, 60, tuple(drawn))
    assert read_data(path, limit=20, seed=3) == data
    assert read_data(path, limit=20, seed=4).sample != data.sample
    assert read_data(path, limit=60).sample is None


def test_the_rows_of_a_sample_are_kept_as_ranges():
    info = Sample(6, 0, 50, (3, 17, 20, 21, 22, 40)).to_info()
    assert info == {"limit": 6, "seed": 0, "of": 50, "rows": "3, 17, 20-22, 40"}


def test_a_limit_below_one_is_refused(tmp_path):
    assert len(read_data(jsonl(tmp_path, WIDE), limit=1).rows) == 1
    assert "limit is 0" in refused(jsonl(tmp_path, WIDE), limit=0)


def test_the_hash_is_that_of_the_files_bytes(tmp_path):
    path = jsonl(tmp_path, WIDE)
    first = read_data(path).sha256
    assert read_data(path, limit=1).sha256 == first
    jsonl(tmp_path, WIDE[::-1])
    assert read_data(path).sha256 != first


def dialogue(*turns: str) -> str:
    names = ("\n\nHuman: ", "\n\nAssistant: ")
    return "".join(names[i % 2] + turn for i, turn in enumerate(turns))


def test_hh_dialogues_are_cut_after_the_last_assistant(tmp_path):
    rows = [
        {
            "chosen": dialogue("Hi", "Hello", "Why?", "Because."),
            "rejected": dialogue("Hi", "Hello", "Why?", "Be"),
        }
    ]
    (row,) = read_data(jsonl(tmp_path, rows)).rows
    assert row.prompt == dialogue("Hi", "Hello", "Why?") + "\n\nAssistant:"
    assert row.responses == {"chosen": " Because.", "rejected": " Be"}


def test_hh_rows_with_two_prompts_are_named_or_left_out(tmp_path):
    good = {"chosen": dialogue("Hi", "A"), "rejected": dialogue("Hi", "B")}
    bad = {"chosen": dialogue("Hi", "A"), "rejected": dialogue("Ho", "B")}
    path = jsonl(tmp_path, [good, bad, good, bad])
    message = refused(path)
    assert "data.jsonl:2, " in message
    assert "data.jsonl:4, " in message
    assert "data.jsonl:1, " not in message
    assert "part at character 10" in message
    assert "Rows without one common prompt: 2" in message
    assert 'mismatched="drop"' in message
    data = read_data(path, mismatched="drop")
    assert len(data.rows) == 2
    assert data.dropped[0].names == ("train-000001", "train-000003")


def test_an_hh_dialogue_without_an_answer_is_refused(tmp_path):
    rows = [{"chosen": "\n\nHuman: Hi", "rejected": dialogue("Hi", "B")}]
    assert "field 'chosen': no '\\n\\nAssistant:'" in refused(jsonl(tmp_path, rows))


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ("The sky is blue.", "The sky is green."),
        ("Q: sky? A: blue", "Q: sky? A: red"),
        ("Q: sky? A: be", "Q: sky? A: bet"),
    ],
)
def test_an_implicit_prompt_is_the_one_that_trl_extracts(tmp_path, chosen, rejected):
    row = {"chosen": chosen, "rejected": rejected}
    (ours,) = read_data(jsonl(tmp_path, [row])).rows
    assert {"prompt": ours.prompt, **ours.responses} == extract_prompt(row)


def test_an_implicit_prompt_must_be_there(tmp_path):
    path = jsonl(tmp_path, [{"chosen": "yes", "rejected": "no"}])
    assert "do not begin alike" in refused(path)
    path = jsonl(tmp_path, [{"chosen": "yes", "rejected": "yes"}])
    assert "are the same" in refused(path)


ASK = [message("user", "sky?")]
CHAT = {
    "prompt": ASK,
    "chosen": [message("assistant", "blue")],
    "rejected": [message("assistant", "green")],
}


def test_messages_are_rendered_with_the_chat_template(tmp_path):
    (row,) = read_data(jsonl(tmp_path, [CHAT]), tokenizer=chatml()).rows
    assert row.rendered
    assert row.prompt == "<|im_start|>user\nsky?<|im_end|>\n<|im_start|>assistant\n"
    assert row.responses["chosen"] == "blue<|im_end|>\n"
    assert row.frame == ("", "<|im_end|>\n")


def test_further_message_columns_and_paper_kinds_are_kinds_other_texts_are_not(
    tmp_path,
):
    row = {
        **CHAT,
        "chosen_semantic": "azure",
        "mine": [message("assistant", "b")],
        "origin": "somewhere",
    }
    data = read_data(jsonl(tmp_path, [row]), tokenizer=chatml())
    assert data.kinds == ["chosen", "rejected", "chosen_semantic", "mine"]
    assert data.rows[0].responses["chosen_semantic"] == "azure<|im_end|>\n"
    assert data.dropped[-1].names == ("origin",)


@pytest.mark.parametrize("tokenizer", [None, byte_level()], ids=["none", "no template"])
def test_messages_need_a_tokenizer_with_a_chat_template(tmp_path, tokenizer):
    message = refused(jsonl(tmp_path, [CHAT]), tokenizer=tokenizer)
    assert "needs a tokenizer with a chat template" in message
    assert "AutoTokenizer" in message


def test_messages_that_share_no_start_have_no_prompt(tmp_path):
    row = {
        "chosen": [message("user", "a"), message("assistant", "b")],
        "rejected": [message("user", "c"), message("assistant", "b")],
    }
    assert "no common prompt" in refused(jsonl(tmp_path, [row]), tokenizer=chatml())


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"chosen": [message("assistant", " ")]}, "field 'chosen': the response is em"),
        ({"prompt": [message("user", "")]}, "field 'prompt': the prompt is empty"),
        ({"rejected": []}, "field 'rejected': an empty list where messages"),
        ({"rejected": [{"role": "assistant", "content": 3}]}, "content is int"),
        ({"rejected": [{"role": "assistant", "content": []}, {}]}, "content is list"),
        ({"tools": "{"}, "field 'tools': not a JSON list"),
    ],
)
def test_messages_that_cannot_be_used_are_named(tmp_path, change, expected):
    path = jsonl(tmp_path, [CHAT, {**CHAT, **change}])
    text = refused(path, tokenizer=chatml())
    assert "data.jsonl:2, " in text
    assert expected in text


def test_a_template_that_refuses_is_quoted(tmp_path):
    tokenizer = chatml()
    tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    text = refused(jsonl(tmp_path, [CHAT]), tokenizer=tokenizer)
    assert "the chat template refuses the messages: no system role" in text


ULTRAFEEDBACK = {
    "prompt": "sky?",
    "prompt_id": "ab12",
    "chosen": [*ASK, message("assistant", "blue")],
    "rejected": [*ASK, message("assistant", "green")],
    "messages": [*ASK, message("assistant", "blue")],
    "score_chosen": 8.0,
    "score_rejected": 3.0,
}


def test_ultrafeedback_without_a_template_has_the_authors_prompt(tmp_path):
    (row,) = read_data(jsonl(tmp_path, [ULTRAFEEDBACK])).rows
    assert row.row_id == "ab12"
    assert row.prompt == "Human: sky?\nAssistant:"
    assert row.responses == {"chosen": "blue", "rejected": "green"}
    assert not row.rendered


def test_ultrafeedback_with_a_template_equals_plain_conversations(tmp_path):
    (row,) = read_data(jsonl(tmp_path, [ULTRAFEEDBACK]), tokenizer=chatml()).rows
    (plain,) = read_data(jsonl(tmp_path, [CHAT]), tokenizer=chatml()).rows
    assert (row.prompt, row.responses) == (plain.prompt, plain.responses)


def test_ultrafeedback_whose_messages_do_not_repeat_the_prompt_is_refused(tmp_path):
    assert "not the prompt alone" in refused(
        jsonl(tmp_path, [{**ULTRAFEEDBACK, "prompt": "sea?"}])
    )


def test_a_saved_dataset_has_selectable_splits(tmp_path):
    both = {"train": Dataset.from_list(WIDE), "test": Dataset.from_list(WIDE[:1])}
    DatasetDict(both).save_to_disk(tmp_path / "set")
    data = read_data(tmp_path / "set", split="test")
    assert [row.row_id for row in data.rows] == ["test-000000"]
    text = refused(tmp_path / "set", split="valid")
    assert "no split 'valid'; it has train, test" in text


def test_a_folder_of_files_is_a_dataset(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "files"
    folder.mkdir()
    jsonl(folder, WIDE, "train.jsonl")
    assert len(read_data(folder).rows) == 2


def test_a_missing_file_is_named(tmp_path):
    assert "is neither a file nor a folder" in refused(tmp_path / "none.jsonl")
    assert "none.jsonl is neither a file nor a folder" in refused("none.jsonl")
    assert "a/b/c is neither a file nor a folder" in refused("a/b/c")


def test_a_hub_id_that_cannot_be_loaded_says_so(monkeypatch):
    def offline(name: str, split: str) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("datasets.load_dataset", offline)
    text = refused("owner/name", split="train_prefs")
    assert "cannot load split 'train_prefs' of owner/name: ConnectionError" in text
    assert "Offline, give a local file" in text


def test_a_missing_datasets_package_is_told_with_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install 'learndyn[train]'" in refused("owner/name")


def test_an_unknown_ending_lists_the_known_ones(tmp_path):
    path = tmp_path / "rows.txt"
    path.write_text("x")
    text = refused(path)
    assert "'.txt'" in text
    assert ".jsonl, .json, .parquet, .csv" in text


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv"])
def test_another_encoding_is_told_with_its_byte_offset(tmp_path, ending):
    path = tmp_path / f"rows.{ending}"
    path.write_bytes(b'{"prompt": "a"}\n{"prompt": "caf\xe9"}\n')
    text = refused(path)
    assert "not UTF-8: byte 0xe9 at byte offset 31 (line 2)" in text
    assert "iconv" in text


def test_all_malformed_lines_are_counted_and_twenty_are_shown(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(WIDE[0]) + "\n" + '{"prompt": \n' * 24 + "[1]\n")
    text = refused(path)
    assert "25 lines that are not JSON objects" in text
    assert "rows.jsonl:2, column 12: Expecting value" in text
    assert "rows.jsonl:21" in text
    assert "rows.jsonl:22" not in text
    assert "and 5 more" in text


def test_json_that_is_malformed_or_holds_no_rows_is_refused(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    assert "rows.json:2, column 1: Extra data" in refused(path)
    assert "name it .jsonl" in refused(path)
    path.write_text('{"rows": []}')
    assert '{"data": [...]}' in refused(path)
    path.write_text("[1, {}]")
    assert "row 0: int where an object is expected" in refused(path)


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_a_broken_table_is_refused(tmp_path, ending):
    path = tmp_path / f"rows.{ending}"
    path.write_bytes(b"prompt,chosen\na,b,c\n")
    assert "is not a readable" in refused(path)


@pytest.mark.parametrize(("name", "text"), [("a.jsonl", "\n"), ("a.json", "[]")])
def test_a_file_without_rows_is_refused(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert "has no rows" in refused(tmp_path / name)


@pytest.mark.parametrize("text", ["", "prompt,chosen\n"])
def test_a_csv_file_without_rows_is_refused(tmp_path, text):
    (tmp_path / "a.csv").write_text(text)
    assert "has no rows" in refused(tmp_path / "a.csv")


def test_missing_columns_are_told_with_those_that_are_there(tmp_path):
    text = refused(jsonl(tmp_path, [{"instruction": "a", "output": "b"}]))
    assert "has the columns instruction, output" in text
    assert "Needed: prompt and at least one response" in text
    assert 'rename={"instruction": "prompt"' in text
    text = refused(jsonl(tmp_path, [{"prompt": "a", "id": "b"}]))
    assert "has a prompt but no response" in text


def test_a_rename_that_fits_no_column_or_makes_two_is_refused(tmp_path):
    path = jsonl(tmp_path, WIDE)
    assert "the columns prompt, chosen, rejected" in refused(path, rename={"x": "y"})
    text = refused(path, rename={"rejected": "chosen"})
    assert "two columns named chosen" in text


@pytest.mark.parametrize("prompt", ["", " \n", None])
def test_an_empty_prompt_is_refused(tmp_path, prompt):
    text = refused(jsonl(tmp_path, [*WIDE, {"prompt": prompt, "chosen": "a"}]))
    assert "data.jsonl:3, field 'prompt':" in text


def test_empty_responses_are_counted_by_kind_kept_or_left_out(tmp_path):
    rows = [*WIDE, {"prompt": "a", "chosen": " ", "rejected": ""}]
    rows.append({"prompt": "b", "chosen": " c", "rejected": ""})
    path = jsonl(tmp_path, rows)
    text = refused(path)
    assert "data.jsonl:3, field 'chosen': the response is empty" in text
    assert "Empty responses: 2 rejected, 1 chosen." in text
    assert 'empty="keep" scores their end-of-text token alone' in text
    assert 'empty="drop" leaves them out' in text
    kept = read_data(path, empty="keep")
    assert kept.rows[2].responses == {"chosen": " ", "rejected": ""}
    left = read_data(path, empty="drop")
    assert [row.row_id for row in left.rows][2:] == ["train-000003"]
    assert left.rows[2].responses == {"chosen": " c"}
    reasons = {d.reason: d.names for d in left.dropped}
    assert reasons["rejected is empty"] == ("train-000002", "train-000003")
    assert reasons["no response is left"] == ("train-000002",)


@pytest.mark.parametrize(
    ("value", "name"), [(3, "int"), (["a"], "list"), ({"a": 1}, "dict"), (True, "bool")]
)
def test_other_types_than_text_are_refused(tmp_path, value, name):
    rows = [*WIDE, {**WIDE[0], "chosen": value}, {**WIDE[1], "prompt": value}]
    text = refused(jsonl(tmp_path, rows))
    assert f"data.jsonl:3, field 'chosen': {name} where text is expected" in text
    assert f"data.jsonl:4, field 'prompt': {name} where text is expected" in text
    assert "2 entries of 4 rows" in text


def test_half_a_surrogate_pair_is_no_text(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "chosen": "\\ud83d"}\n')
    assert "half of a surrogate pair" in refused(path)


def test_repeated_and_missing_ids_are_named(tmp_path):
    rows = [{"id": i, "prompt": "a", "chosen": "b"} for i in (1, 2, 1, None)]
    path = jsonl(tmp_path, rows)
    text = refused(path)
    assert "2 of 4 rows lack an id of their own" in text
    assert "data.jsonl:3, field 'id': '1' is the id of" in text
    assert "data.jsonl:4, field 'id': None is not an id" in text
    data = read_data(path, rename={"id": "source"})  # as the message advises
    assert data.rows[3].row_id == "train-000003"


def test_a_split_that_no_row_has_is_refused_with_those_there_are(tmp_path):
    path = jsonl(tmp_path, [{**WIDE[0], "split": "a"}, {**WIDE[1], "split": "b"}])
    assert "whose split is 'train'; its split column holds a, b" in refused(path)
    assert len(read_data(path, rename={"split": "source"}).rows) == 2


def test_when_all_rows_are_left_out_there_is_no_data(tmp_path):
    path = jsonl(tmp_path, [{"prompt": "a", "chosen": ""}])
    text = refused(path, empty="drop")
    assert "no usable rows" in text
    assert "chosen is empty" in text


@pytest.mark.parametrize(
    ("split", "initial", "rejected"), [("train", 21, 1), ("test", 29, None)]
)
def test_the_authors_empty_responses_are_all_found(
    shared_data, split, initial, rejected
):
    path = shared_data / "hh" / f"probes_{split}.jsonl"
    text = refused(path, rename=AUTHORS_KINDS)
    assert f"{initial} chosen_initial" in text
    if rejected:
        assert "probes_train.jsonl:248, field 'rejected': the response is empty" in text
    data = read_data(path, rename=AUTHORS_KINDS, empty="drop")
    assert len(data.rows) == 500
    assert len(data.kinds) == 13


def test_the_authors_ultrafeedback_prompts_are_read(shared_data):
    data = read_data(shared_data / "ultrafeedback" / "prompts_chosen_train.jsonl")
    assert len(data.rows) == 500
    assert all(row.prompt.endswith("\nAssistant:") for row in data.rows)
