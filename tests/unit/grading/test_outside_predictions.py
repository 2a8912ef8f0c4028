"""Reading predictions made elsewhere: both forms, and every fault with its file and line."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.data.records import Record
from utils.frame.files import UserError
from utils.grading.outside_predictions import Prediction, read_predictions

TOKENS = ["add(", "1", "2", ")", "EOF"]


def gold(count=4):
    """Items test-0, test-1, … of a file whose rows are counted from 0."""
    return [
        Record(f"test-{row}", "finqa", "question?", "input", "target", "3", source=f"test.json#{row}")
        for row in range(count)
    ]


def write(tmp_path, text, name="preds.json"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_official_list(tmp_path):
    rows = [{"id": "test-2", "predicted": TOKENS}, {"id": "test-0", "predicted": []}]
    for text in (json.dumps(rows), json.dumps(rows, indent=1), "\ufeff \n" + json.dumps(rows)):
        assert read_predictions(write(tmp_path, text), gold()) == {
            "test-2": Prediction(program_tokens=tuple(TOKENS)),
            "test-0": Prediction(program_tokens=()),
        }


def test_jsonl_by_id_and_by_index(tmp_path):
    lines = ['{"id": "test-1", "response": "#### 3", "model": "x"}', "", '{"index": 3, "response": ""}\r']
    assert read_predictions(write(tmp_path, "\n".join(lines)), gold()) == {
        "test-1": Prediction(response="#### 3"),
        "test-3": Prediction(response=""),
    }


def test_index_counts_rows_of_the_file_not_items(tmp_path):
    named = {0: "page_3-2", 2: "page_1-0"}  # row 1 of the file is damaged and left out
    records = [Record(n, "finqa", "q", "i", "t", "3", source=f"test.json#{row}") for row, n in named.items()]
    assert list(read_predictions(write(tmp_path, '{"index": 2, "response": "x"}'), records)) == ["page_1-0"]
    with pytest.raises(UserError, match="unknown index 1"):
        read_predictions(write(tmp_path, '{"index": 1, "response": "x"}'), records)


def test_number_as_id(tmp_path):
    records = [Record("17", "finqa", "q", "i", "t", "3", source="test.json#0")]
    assert list(read_predictions(write(tmp_path, '{"id": 17, "response": "x"}'), records)) == ["17"]


def test_half_of_a_surrogate_pair_becomes_the_replacement_character(tmp_path):
    path = write(tmp_path, '{"id": "test-0", "response": "a\\ud800b"}')
    assert read_predictions(path, gold())["test-0"].response == "a\ufffdb"


FAULTS = {
    "unknown id": (
        '{"id": "test-0", "response": ""}\n{"id": "dev-9", "response": ""}',
        ":2: unknown id 'dev-9'",
    ),
    "duplicate": (
        '{"id": "test-0", "response": ""}\n{"index": 0, "response": ""}',
        ":2: item 'test-0' is already predicted in line 1",
    ),
    "unknown index": ('{"index": 4, "response": ""}', ":1: unknown index 4: this split has rows 0 to 3"),
    "negative index": ('{"index": -1, "response": ""}', ":1: unknown index -1"),
    "truth value as index": ('{"index": true, "response": ""}', ":1: 'index' must be a whole number"),
    "id against index": ('{"id": "test-1", "index": 0, "response": ""}', ":1: index 0 is item 'test-0'"),
    "no id": ('{"response": "3"}', ":1: neither 'id' nor 'index'"),
    "list as id": ('{"id": ["test-0"], "response": "3"}', ":1: 'id' must be text, found a list"),
    "no answer": ('\n{"id": "test-0"}', ":2: has neither 'predicted' nor 'response'"),
    "two answers": ('{"id": "test-0", "response": "", "predicted": []}', ":1: has both"),
    "null response": ('{"id": "test-0", "response": null}', ":1: 'response' must be text, found null"),
    "number as response": ('{"id": "test-0", "response": 3}', ":1: 'response' must be text, found a number"),
    "text as program": (
        '[{"id": "test-0", "predicted": "add(1, 2)"}]',
        ": entry 1: 'predicted' must be a list",
    ),
    "number as token": (
        '[\n{"id": "test-1", "predicted": []},\n{"id": "test-0", "predicted": ["add(", 1]}]',
        ": entry 2: 'predicted' must be a list of program tokens",
    ),
    "duplicate in list": (
        '[{"id": "test-0", "predicted": []},\n {"id": "test-0", "predicted": []}]',
        ": entry 2: item 'test-0' is already predicted in entry 1",
    ),
    "truncated list": ('[{"id": "test-0", "predicted": []},\n {"id": "te', ":2: not valid JSON"),
    "list not closed": ('[{"id": "test-0", "predicted": []}\n\n', ":3: not valid JSON"),
    "missing comma": ('[{"id": "test-0", "predicted": []}\n{}]', ":2: not valid JSON"),
    "dangling comma": ('[{"id": "test-0", "predicted": []},\n]', ":2: not valid JSON"),
    "text after the list": ('[{"id": "test-0", "predicted": []}]\n{}', ":2: not valid JSON (Extra data"),
    "list of lists": ('[["test-0"]]', ": entry 1: expected an object with 'id', found a list"),
    "one object over several lines": ('{\n"id": "test-0", "response": ""}', ":1: not valid JSON"),
    "plain text": ("subtract(1, 2)", ":1: not valid JSON"),
    "broken line": ('{"id": "test-0", "response": ""}\n{"id": ', ":2: not valid JSON"),
    "two on a line": ('{"id": "test-0", "response": ""} {}', ":1: not valid JSON"),
    "deeply nested": ("[" * 100_000, ":1: not valid JSON"),
    "huge number": ('{"id": ' + "9" * 5000 + ', "response": ""}', ":1: not valid JSON"),
    "latin-1": (b'{"id": "test-0", "response": "a"}\n' + b'{"id": "\xe9"}', ":2: not UTF-8 text"),
    "empty file": ("", ":1: holds no predictions"),
    "empty list": ("[]", ":1: holds no predictions"),
}


@pytest.mark.parametrize("text,message", FAULTS.values(), ids=FAULTS.keys())
def test_faults_are_one_line_with_the_place(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(UserError) as raised:
        read_predictions(path, gold())
    assert f"preds.json{message}" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_no_file_and_a_folder(tmp_path):
    with pytest.raises(UserError, match="nothing.json: cannot be read"):
        read_predictions(tmp_path / "nothing.json", gold())
    with pytest.raises(UserError, match="is a folder"):
        read_predictions(tmp_path, gold())


@given(
    st.binary(max_size=60),
    st.sampled_from([b"", b"[", b'[{"id":"test-0","predicted":[]}', b'{"id":"test-0"']),
)
def test_any_bytes_are_predictions_or_one_clear_error(tmp_path_factory, noise, start):
    path = write(tmp_path_factory.getbasetemp(), start + noise)
    try:
        assert read_predictions(path, gold())
    except UserError as error:
        assert "preds.json:" in str(error)
