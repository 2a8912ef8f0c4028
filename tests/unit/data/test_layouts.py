"""The layouts that people have data in: each is read alike, or named with what was found and what to do."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.support.raw_rows import finqa_item, gsm8k_item, math_item
from utils.data import layouts
from utils.data.boxed import all_boxed
from utils.data.readers import all_readers
from utils.data.readers.finqa import in_steps
from utils.data.settings import DatasetConfig
from utils.data.sources import gold_records, raw_files, raw_inputs, read_splits
from utils.frame.config import load_tier
from utils.frame.files import REPO_ROOT, UserError, read_json
from utils.grading.tasks import task_of

ROWS = {
    "gsm8k": [gsm8k_item(n) for n in range(1, 6)],
    "math": [math_item(problem=f"{n} ?") for n in range(5)],
    "finqa": [finqa_item(n) for n in range(5)],
}


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def splits_of(root, dataset, **more):
    config = DatasetConfig(dataset=dataset, data_root=str(root), **more)
    return read_splits(config, raw_inputs(config), task_of(dataset).gold_fault)


def flat(item):
    """A row as the hub's copies of FinQA have it."""
    qa = item["qa"]
    row = {key: item[key] for key in ("id", "pre_text", "post_text", "table")}
    row |= {"question": qa["question"], "answer": "2.0", "final_result": str(qa["exe_ans"])}
    return row | {"program_re": qa["program"], "gold_inds": ["cash is 5"]}


# --------------------------------------------------------------------------------------- what is read


@pytest.mark.parametrize("dataset", ROWS)
@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("main/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet", "test.parquet"),
        ("train.jsonl", "valid.json", "test.json"),
        ("data/train.json", "dev.jsonl", "data/test.jsonl"),
        ("train.parquet", "validation.jsonl", "default/test-00000-of-00001.parquet"),
    ],
)
def test_every_layout_gives_the_same_rows(tmp_path, dataset, train, val, test):
    rows = ROWS[dataset]
    for name, of_split in ((train, rows[:3]), (val, rows[3:4]), (test, rows[4:])):
        write(tmp_path / name, of_split)
    splits = splits_of(tmp_path, dataset)
    assert {split: len(raw.rows) for split, raw in splits.items()} == {"train": 3, "val": 1, "test": 1}
    assert not any(raw.problems for raw in splits.values())
    write(tmp_path / "plain" / "train.jsonl", rows[:3])
    write(tmp_path / "plain" / "test.jsonl", rows[4:])
    plain = splits_of(tmp_path / "plain", dataset)
    for split in ("train", "test"):
        for found, expected in zip(splits[split].rows, plain[split].rows, strict=True):
            for name in ("id", "question", "answer", "solution", "program", "table", "pre_text", "level"):
                assert getattr(found, name) == getattr(expected, name), name


def test_the_published_name_comes_first_and_a_named_file_before_it(tmp_path):
    for name, count in (("train.jsonl", 1), ("train.json", 2), ("main/train-00000-of-00001.parquet", 3)):
        write(tmp_path / name, ROWS["gsm8k"][:count])
    write(tmp_path / "test.jsonl", ROWS["gsm8k"][4:])
    assert len(splits_of(tmp_path, "gsm8k")["train"].rows) == 1
    named = {"train": "main/train-00000-of-00001.parquet"}
    assert len(splits_of(tmp_path, "gsm8k", files=named)["train"].rows) == 3


def test_content_and_not_the_ending_says_how_a_file_is_read(tmp_path):
    (tmp_path / "train.jsonl").write_text(json.dumps(ROWS["gsm8k"][:3], indent=1))
    (tmp_path / "test.json").write_text("".join(json.dumps(row) + "\n" for row in ROWS["gsm8k"][3:]))
    splits = splits_of(tmp_path, "gsm8k")
    assert [len(splits[name].rows) for name in ("train", "test")] == [3, 2]
    assert not splits["train"].problems and not splits["test"].problems


def test_parquet_in_parts_is_one_split(tmp_path):
    for part in range(2):
        write(tmp_path / "data" / f"train-{part:05}-of-00002.parquet", ROWS["gsm8k"][2 * part : 2 * part + 2])
    write(tmp_path / "test.jsonl", ROWS["gsm8k"][4:])
    config = DatasetConfig(dataset="gsm8k", data_root=str(tmp_path))
    assert sorted(raw_inputs(config)) == ["test", "train", "train_2"]
    raw = splits_of(tmp_path, "gsm8k")["train"]
    assert [row.id for row in raw.rows] == ["train-0", "train-1", "train-2", "train-3"]
    assert raw.rows[2].source == "train-00001-of-00002.parquet#2" and not raw.problems
    (tmp_path / "data" / "train-00001-of-00002.parquet").unlink()
    [problem] = splits_of(tmp_path, "gsm8k")["train"].problems
    assert (problem.place, problem.message) == ("file", "1 of 2 parts are there; fetch the others")


def test_the_hubs_math_has_a_folder_per_type(tmp_path):
    types = ("algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory")
    for number, name in enumerate((*types, "prealgebra", "precalculus")):
        for split in ("train", "test"):
            row = math_item(problem=f"{split} {name} ?")
            write(tmp_path / name / f"{split}-00000-of-00001.parquet", [row] * (1 + (number == 0)))
    splits = splits_of(tmp_path, "math")
    assert [row.id for row in splits["train"].rows] == [f"train-{n}" for n in range(8)]
    assert splits["test"].rows[-1].file == "precalculus/test-00000-of-00001.parquet"
    (tmp_path / "geometry" / "test-00000-of-00001.parquet").unlink()
    [problem] = splits_of_files(tmp_path, "math")["test"].problems
    assert problem.file == "geometry/test-00000-of-00001.parquet" and "cannot be read" in problem.message


def splits_of_files(root, dataset):
    config = DatasetConfig(dataset=dataset, data_root=str(root))
    return read_splits(config, raw_files(config), task_of(dataset).gold_fault)


# ---------------------------------------------------------------------------------------------- FinQA


@pytest.mark.parametrize("name", ["train.jsonl", "train.json", "data/train-00000-of-00001.parquet"])
def test_flat_rows_of_finqa_are_the_published_ones(tmp_path, name):
    items = [finqa_item(n) for n in range(3)]
    write(tmp_path / name, [flat(item) for item in items])
    write(tmp_path / "test.json", [finqa_item(9)])
    write(tmp_path / "plain" / "train.json", items)
    write(tmp_path / "plain" / "test.json", [finqa_item(9)])
    splits, plain = (splits_of(root, "finqa")["train"] for root in (tmp_path, tmp_path / "plain"))
    assert not splits.problems
    for found, expected in zip(splits.rows, plain.rows, strict=True):
        for key in ("id", "question", "answer", "program", "table", "pre_text", "report", "level"):
            assert getattr(found, key) == getattr(expected, key), key


def test_a_damaged_array_of_flat_rows_keeps_its_whole_rows(tmp_path):
    text = json.dumps([flat(finqa_item(n)) for n in range(3)])
    (tmp_path / "train.json").write_text(text[:-40])
    rows, problems = all_readers()["finqa"].read(tmp_path / "train.json", "train")
    assert len(rows) == 2 and {problem.code for problem in problems} == {"bad_json", "truncated_file"}


@pytest.mark.parametrize(
    ("nested", "steps"),
    [
        ("subtract(5, 3)", "subtract(5, 3)"),
        ("divide(subtract(5, 3), 3)", "subtract(5, 3), divide(#0, 3)"),
        (
            "divide(subtract(5, 3), subtract(5, 3))",
            "subtract(5, 3), divide(#0, #0)",
        ),
        ("table_sum(cash ( in millions ), none)", "table_sum(cash ( in millions ), none)"),
        (
            "divide(table_max(a, none), add(1, 2))",
            "table_max(a, none), add(1, 2), divide(#0, #1)",
        ),
        ("five", "five"),
        ("divide(1", "divide(1"),
        ("divide(" * 5000 + "1", None),
        ("divide(" * 5000 + "1" + ", 2)" * 5000, None),
    ],
)
def test_nested_programs_become_steps(nested, steps):
    assert in_steps(nested) == (nested if steps is None else steps)


def test_published_nested_programs_are_the_published_steps(shared_data):
    from utils.grading.execute import execute
    from utils.grading.program import tokenize_program

    rows = [
        row
        for name in ("train", "dev", "test")
        for row in read_json(shared_data / f"finqa/dataset/{name}.json")
    ]
    both = [
        (row["qa"]["program"], in_steps(row["qa"]["program_re"]), row)
        for row in rows
        if "program_re" in row["qa"]
    ]
    assert len(both) == 300 and sum(steps == found for steps, found, _ in both) == 293
    for steps, found, row in both:  # the others say the same in another order
        values = [execute(tokenize_program(each), row["table"]).value for each in (steps, found)]
        assert values[0] == values[1] is not None


# --------------------------------------------------------------------------------- MATH's several boxes


ASKED = "Find all solutions, separated by commas."
BOTH = r"so $x=\boxed{-2}$ and $x=\boxed{1}$."


def test_golds_of_several_boxes_are_named_and_a_list(tmp_path):
    write(tmp_path / "train.jsonl", [math_item(problem=ASKED, solution=BOTH), math_item(solution=BOTH)])
    rows, problems = all_readers()["math"].read(tmp_path / "train.jsonl", "train")
    assert [row.answer for row in rows] == ["-2, 1", "1"]
    assert [(problem.code, problem.place) for problem in problems] == [("several_boxes", "line 1")]
    assert "the gold is '-2, 1'" in problems[0].message
    assert [row.traits for row in rows] == [(), ("several boxes, of which the last counts",)]


@pytest.mark.parametrize(
    ("response", "right"),
    [
        (BOTH, True),
        (r"\boxed{1} or \boxed{-2}", True),
        (r"\boxed{-2, 1}", True),
        (r"\boxed{x = 1 \text{ or } x = -2}", True),
        (r"\boxed{1}", False),
        (r"\boxed{-2} \boxed{1} \boxed{3}", False),
        (r"\boxed{-2} \boxed{2}", False),
        (r"\boxed{-2, 1}. That is, \boxed{-2, 1}", True),
        ("-2, 1", False),
    ],
)
def test_golds_of_several_boxes_are_graded_as_a_list(tmp_path, response, right):
    write(tmp_path / "test.jsonl", [math_item(problem=ASKED, solution=BOTH)])
    [record] = gold_records(DatasetConfig(dataset="math", data_root=str(tmp_path)), "test")
    assert task_of("math").grade(record, response).correct is right


def test_of_other_golds_the_last_box_counts(tmp_path):
    write(tmp_path / "test.jsonl", [math_item(solution=BOTH)])
    [record] = gold_records(DatasetConfig(dataset="math", data_root=str(tmp_path)), "test")
    assert task_of("math").grade(record, r"\boxed{-2} and \boxed{1}").correct
    assert not task_of("math").grade(record, r"\boxed{-2, 1}").correct


def test_boxes_in_boxes_are_one():
    assert all_boxed(r"\boxed{a} \boxed{\boxed{b}} \boxed{} \boxed{a} \fbox{c} \boxed 5") == list("a") + [
        r"\boxed{b}",
        "c",
        "5",
    ]


# ------------------------------------------------------------------------------------- shipped layouts


def tier(name, **more):
    return load_tier(DatasetConfig, REPO_ROOT / "configs" / "datasets" / f"{name}.yaml", more)


def test_math_500_is_a_test_split_alone_with_maths_train(tmp_path):
    row = {"problem": "2 ?", "solution": r"\boxed{4}", "answer": 4, "subject": "Algebra", "level": 2}
    write(tmp_path / "math-500" / "test.jsonl", [row | {"unique_id": "test/algebra/7.json"}])
    write(tmp_path / "math" / "train.jsonl", ROWS["math"])
    config = tier("math-500", data_root=str(tmp_path / "math-500"))
    splits = read_splits(config, raw_inputs(config), task_of("math").gold_fault)
    [test] = splits["test"].rows
    assert (test.id, test.answer, test.type, test.level) == ("test/algebra/7.json", "4", "Algebra", 2)
    assert len(splits["train"].rows) == 5 and config.label == "math:500"


def test_gsm8k_platinum_has_gsm8ks_columns_and_train(tmp_path):
    rows = [row | {"cleaning_status": "verified"} for row in ROWS["gsm8k"][:2]]
    write(tmp_path / "gsm8k-platinum" / "main" / "test-00000-of-00001.parquet", rows)
    write(tmp_path / "gsm8k" / "train.jsonl", ROWS["gsm8k"])
    config = tier("gsm8k-platinum", data_root=str(tmp_path / "gsm8k-platinum"))
    splits = read_splits(config, raw_inputs(config), task_of("gsm8k").gold_fault)
    assert [row.answer for row in splits["test"].rows] == ["2", "4"]
    assert len(splits["train"].rows) == 5 and config.label == "gsm8k:platinum"


# -------------------------------------------------------------------------------- what cannot be read


def test_a_missing_split_is_named_with_what_is_there(tmp_path):
    write(tmp_path / "test.jsonl", ROWS["math"])
    with pytest.raises(UserError) as error:
        raw_inputs(DatasetConfig(dataset="math", data_root=str(tmp_path)))
    message = str(error.value)
    assert "holds no train split of math, such as train.jsonl: found test.jsonl; name the file" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.parquet", b"PAR1 damaged", "no parquet file that can be read"),
        ("train.parquet", b"", "no parquet file that can be read"),
        ("train.jsonl", b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer in place of"),
        ("train.json", b'{"data": [{"question": "q"}]}', "expected an array of objects"),
    ],
)
def test_what_is_no_data_file_is_said_to_be_none(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    rows, problems = all_readers()["gsm8k"].read(tmp_path / name, "train")
    assert message in problems[0].message and problems[0].severity == "error"


def test_a_parquet_file_without_rows_is_an_error(tmp_path):
    table = pa.table({"question": pa.array([], pa.string()), "answer": pa.array([], pa.string())})
    parquet.write_table(table, tmp_path / "train.parquet")
    _, [problem] = all_readers()["gsm8k"].read(tmp_path / "train.parquet", "train")
    assert (problem.place, problem.code) == ("file", "no_rows")


def test_of_a_large_folder_not_all_files_are_looked_at(tmp_path, monkeypatch):
    """Someone's home, for example: there it would take minutes."""
    monkeypatch.setattr(layouts, "_LOOKED_AT", 9)
    for number in range(9):
        (tmp_path / f"{number}.txt").touch()
    assert layouts.files_below(tmp_path).endswith(", 7.txt and 1 more")
    for number in range(9, 30):
        (tmp_path / f"{number}.txt").touch()
    walk, seen = Path.rglob, []

    def counted(folder, pattern):
        for path in walk(folder, pattern):
            seen.append(path)
            yield path

    monkeypatch.setattr(Path, "rglob", counted)
    assert layouts.files_below(tmp_path).endswith(" and many more") and len(seen) == 10
