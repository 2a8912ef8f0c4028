"""Files, hashes, seeds and secrets of utils.frame.files."""

import csv
import hashlib
import json
import math
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.frame import files as common
from utils.frame.files import UserError, as_written, atomic_path, inert, write_csv

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def encodable(value) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


@given(st.lists(st.dictionaries(st.text(), json_values, max_size=3), max_size=4).filter(encodable))
def test_jsonl_and_json_give_back_what_was_written(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("json")
    common.write_jsonl(folder / "a.jsonl", rows)
    common.write_json(folder / "a.json", rows)
    assert common.read_jsonl(folder / "a.jsonl") == rows
    assert common.read_json(folder / "a.json") == rows


def test_json_is_canonical(tmp_path):
    common.write_json(tmp_path / "a.json", {"b": 1, "a": {"d": "é", "c": None}})
    expected = '{\n  "a": {\n    "c": null,\n    "d": "é"\n  },\n  "b": 1\n}\n'
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == expected
    with pytest.raises(ValueError):
        common.write_json(tmp_path / "a.json", {"x": math.nan})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == expected
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize(
    "content, place",
    [
        (b'{"a": 1}\n{"a": \n', ":2: not valid JSON"),
        (b'{"a": 1}\n\n[1]\n', ":3: expected an object, found list"),
        (b'{"a": "\xff"}\n', ":1: not UTF-8"),
        (b"[" * 100_000, r":1: not valid JSON \(nested too deeply\)"),
        (b'{"a": ' + b"9" * 5000 + b"}", r":1: not valid JSON \(Exceeds the limit"),
    ],
)
def test_bad_jsonl_names_file_and_line(tmp_path, content, place):
    (tmp_path / "bad.jsonl").write_bytes(content)
    with pytest.raises(UserError, match="bad.jsonl" + place):
        common.read_jsonl(tmp_path / "bad.jsonl")


def test_json_with_a_byte_order_mark_is_read_and_damage_is_named(tmp_path):
    (tmp_path / "bom.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert common.read_json(tmp_path / "bom.json") == {"a": 1}
    (tmp_path / "cut.json").write_text('{"a": 1,\n "b"')
    with pytest.raises(UserError, match=r"cut\.json:2: not valid JSON"):
        common.read_json(tmp_path / "cut.json")
    with pytest.raises(UserError, match="no such file"):
        common.read_json(tmp_path / "absent.json")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "file.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        assert temporary.parent == target.parent and temporary.suffix == ".txt"
        raise RuntimeError
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_a_directory_is_replaced_as_a_whole(tmp_path):
    target = tmp_path / "ckpt"
    for name in ("one", "two"):
        with atomic_path(target) as temporary:
            temporary.mkdir()
            (temporary / name).write_text(name)
        assert os.listdir(target) == [name]
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.mkdir()
        raise RuntimeError
    assert os.listdir(target) == ["two"] and os.listdir(tmp_path) == ["ckpt"]


def test_csv_refuses_a_key_that_is_no_column(tmp_path):
    common.write_csv(tmp_path / "a.csv", [{"x": 1, "y": "a,b"}], ["y", "x"])
    assert (tmp_path / "a.csv").read_text() == 'y,x\n"a,b",1\n'
    with pytest.raises(ValueError):
        common.write_csv(tmp_path / "a.csv", [{"z": 1}], ["x"])


def test_hash_of_a_file_and_of_a_tree(tmp_path):
    data = os.urandom(3_000_000)
    (tmp_path / "f").write_bytes(data)
    assert common.sha256_of(tmp_path / "f") == hashlib.sha256(data).hexdigest()
    before = common.sha256_of(tmp_path)
    (tmp_path / ".hidden").write_text("x")
    assert common.sha256_of(tmp_path) == before
    (tmp_path / "f").rename(tmp_path / "g")
    renamed = common.sha256_of(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "g").rename(tmp_path / "sub" / "g")
    assert len({before, renamed, common.sha256_of(tmp_path)}) == 3


def test_derived_seeds_are_stable_and_distinct():
    # The first four bytes of sha256 of the text [0, "sampling"]: a change would change every run.
    assert common.derive_seed(0, "sampling") == 0xD21C7AFB >> 1
    seeds = {common.derive_seed(seed, name) for seed in range(50) for name in ("a", "b", 1, "1")}
    assert len(seeds) == 200 and all(0 <= seed < 2**31 for seed in seeds)
    assert common.derive_seed(1, "a", "b") != common.derive_seed(1, "ab")


def test_relative_paths_start_at_the_repository(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert common.resolve_path("configs/models") == common.REPO_ROOT / "configs/models"
    (tmp_path / "only_here").write_text("x")
    assert common.resolve_path("only_here") == tmp_path / "only_here"
    assert common.resolve_path(tmp_path / "x") == tmp_path / "x"


# --------------------------------------------------------------------------------- cells of spreadsheets

CELLS = [
    "=1+1",
    "+cmd",
    "-x",
    "@SUM(A1)",
    "\tx",
    "'=1",
    "''-a",
    "-3.5",
    "+2",
    "1e-3",
    "plain",
    "",
    "-",
    "-5%",
]


@pytest.mark.parametrize("cell", CELLS)
def test_no_cell_is_run_as_a_formula_and_all_are_read_back(tmp_path, cell):
    path = tmp_path / "t.csv"
    write_csv(path, [{"id": cell, "n": -2}], ["id", "n"])
    with open(path, newline="", encoding="utf-8") as file:
        [row] = csv.DictReader(file)
    number = cell in ("-3.5", "+2", "1e-3", "-5%")
    assert number or not row["id"].startswith(("=", "+", "-", "@", "\t", "\r"))
    assert as_written(row["id"]) == cell and row["n"] == "-2"


@given(st.text())
def test_every_text_is_read_back(cell):
    assert as_written(inert(cell)) == cell
