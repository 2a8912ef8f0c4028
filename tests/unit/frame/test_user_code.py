"""A data set and a reward component of the user's own: what they may do, and what goes wrong."""

import re
from dataclasses import replace

import pytest
import yaml

from utils.data.readers import all_readers
from utils.data.records import Record
from utils.data.settings import DatasetConfig
from utils.data.sources import read_splits
from utils.data.user_reader import read_own
from utils.evaluation.reward_components import components
from utils.frame.config import load_tier
from utils.frame.files import UserError
from utils.frame.user_code import load_function
from utils.grading.grade import grade
from utils.grading.tasks import task_of
from utils.models.sampling import Completion
from utils.rewards.spec import (
    RewardSpec,
    load_reward_spec,
    own_weights,
    paid_weights,
    verified,
    write_reward_spec,
)
from utils.rewards.user_components import check_own, own_rewards, with_sources

# ------------------------------------------------------------------------------------------- the reader


def rows_of(tmp_path, code: str, form: str = "gsm8k", required=()):
    """(rows, problems) of a reader with this code."""
    (tmp_path / "reader.py").write_text(code)
    (tmp_path / "train.txt").write_text("3\n")
    return read_own(tmp_path / "train.txt", "train", tmp_path / "reader.py", all_readers()[form], required)


def yielding(*rows: dict) -> str:
    return f"from math import nan\n\n\ndef read(path, split):\n    return {list(rows)!r}\n"


GOOD = {"question": "1+1?", "answer": 2}


def test_a_row_gets_its_closing_line_and_its_name(tmp_path):
    rows, problems = rows_of(
        tmp_path, yielding(GOOD, GOOD | {"id": 7, "answer": "1,200", "solution": "x\n#### 1,200"})
    )
    assert problems == []
    assert [row.id for row in rows] == ["train-0", "7"]
    assert [row.answer for row in rows] == ["2", "1200"]
    assert [row.solution for row in rows] == ["#### 2", "x\n#### 1,200"]
    assert rows[0].source == "train.txt#0"
    (row,), _ = rows_of(tmp_path, yielding(GOOD | {"answer": "\\frac{1}{2}", "solution": "Half."}), "math")
    assert row.solution == "Half.\n\\boxed{\\frac{1}{2}}"


def test_finqa_rows_are_checked_as_finqas_own(tmp_path):
    row = {
        "question": "growth?",
        "program": "subtract(5, 3)",
        "answer": 2,
        "table": [["", "2001"], ["a", "5"]],
        "report": "X/1.pdf",
    }
    rows, problems = rows_of(tmp_path, yielding(row, row | {"program": "nothing"}), "finqa")
    assert [(each.answer, each.level, each.report) for each in rows] == [("2", 1, "X/1.pdf")]
    assert [(p.place, p.code) for p in problems] == [("row 1", "unparsable_gold")]
    (tmp_path / "reader.py").write_text(yielding(row | {"answer": 3}))
    config = DatasetConfig(
        dataset="finqa", name="x", reader=str(tmp_path / "reader.py"), data_root=str(tmp_path)
    )
    splits = read_splits(config, {"train": tmp_path / "train.txt"}, task_of("finqa").gold_fault)
    assert [p.code for p in splits["train"].problems] == ["gold_program"]


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        ({"answr": 2}, "unknown_key", 'did you mean "answer"'),
        ({"question": None}, "missing_key", "'question' is missing"),
        ({"question": 3}, "wrong_type", "'question' must be text"),
        ({"answer": "two"}, "unparsable_gold", "must be a number"),
        ({"answer": "12,34"}, "unparsable_gold", "must be a number"),
        ({"answer": float("nan")}, "not_finite", "not a finite number"),
        ({"answer": None}, "missing_key", "'answer' is missing"),
        ({"solution": "#### 3"}, "two_answers", "'answer' is 2"),
        ({"solution": ["a"]}, "wrong_type", "'solution' must be text"),
        ({"level": "hard"}, "wrong_type", "'level' must be a whole number"),
        ({"level": True}, "wrong_type", "'level' must be a whole number"),
        ({"type": 3}, "wrong_type", "'type' must be text"),
        ({"question": "\ud800"}, "not_unicode", "surrogate"),
    ],
)
def test_a_bad_row_is_a_problem_and_the_others_stay(tmp_path, change, code, says):
    rows, problems = rows_of(tmp_path, yielding(GOOD | change, GOOD))
    assert [row.id for row in rows] == ["train-1"]
    assert (problems[0].place, problems[0].severity, problems[0].code) == ("row 0", "error", code)
    assert says in problems[0].message


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("def read(path, split):\n    yield {}\n    1 / 0\n", "reader.py:3: read() raised ZeroDivisionError"),
        ("def read(path, split):\n    open(path + 'x')\n", "reader.py:2: read() raised TypeError"),
        ("def read(path, split):\n    raise SystemExit('no')\n", "reader.py:2: read() raised SystemExit: no"),
        ("def read(path, split):\n    return 7\n", "must yield a mapping per row, found a number 7"),
        ("def read(path, split):\n    return ['x']\n", "must yield a mapping per row, found text 'x'"),
        ("def read(path):\n    return []\n", "read(path) cannot be called as read(path, split)"),
        ("def load(path, split):\n    return []\n", 'has no function "read"; valid: load'),
        ("import nosuchmodule\n", "reader.py:1: loading the file raised ModuleNotFoundError"),
        ("def read(:\n", "reader.py:1: not valid Python"),
        ("x = '\0'", "not valid Python"),
    ],
)
def test_a_reader_that_fails_is_one_line_with_its_place(tmp_path, code, says):
    with pytest.raises(UserError) as raised:
        rows_of(tmp_path, code)
    assert says in str(raised.value) and "\n" not in str(raised.value)
    assert "reader.py" in str(raised.value)


def test_a_reader_without_rows_is_an_error_of_the_file(tmp_path):
    rows, problems = rows_of(tmp_path, yielding())
    assert rows == [] and [(p.place, p.code) for p in problems] == [("file", "no_rows")]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("dataset: gsm8k\nreader: r.py\n", "reader needs a name"),
        ("dataset: sample\nname: x\n", "must be finqa, gsm8k or math"),
        ("dataset: gsm8k\nname: a/b\n", "name must be letters"),
        ("dataset: gsm8k\nname: x\nfiles: {dev: a}\n", 'found "dev"'),
    ],
)
def test_a_dataset_tier_that_cannot_be_is_refused(tmp_path, text, says):
    (tmp_path / "d.yaml").write_text(text)
    with pytest.raises(UserError, match=re.escape(says)):
        load_tier(DatasetConfig, tmp_path / "d.yaml")


# ---------------------------------------------------------------------------------- the reward component


def spec_with(tmp_path, code: str, name: str = "mine", weight: float = 0.5, **other) -> RewardSpec:
    """A specification as 02 writes it, with one component that has this code."""
    (tmp_path / "rewards.py").write_text(code)
    own = {name: {"file": str(tmp_path / "rewards.py"), "weight": weight, **other}}
    (tmp_path / "reward.yaml").write_text(yaml.safe_dump({"own": own}))
    return with_sources(load_tier(RewardSpec, tmp_path / "reward.yaml"))


@pytest.fixture
def record() -> Record:
    return Record("shop-test-0", "gsm8k", "4 times 9?", "4 times 9?", "It is 36.\n#### 36", "36")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("return float('nan')", "must return a number of at most 1e+06 in size, found nan"),
        ("return float('-inf')", "found -inf"),
        ("return 1e7", "found 10000000.0"),
        ("return None", "found None"),
        ("return '0.5'", "found '0.5'"),
        ("return [0.5]", "found [0.5]"),
        ("return 1 / len(completion)", "rewards.py:2: mine() raised ZeroDivisionError"),
        ("raise SystemExit", "rewards.py:2: mine() raised SystemExit"),
        ("return mine(record, completion)", "rewards.py:2: mine() raised RecursionError"),
        ("record.level = 9", "rewards.py:2: mine() raised FrozenInstanceError"),
        ("import random; return random.random()", "of the same completion; it must depend on nothing else"),
    ],
)
def test_a_function_that_fails_names_file_component_and_record(tmp_path, record, body, says):
    spec = spec_with(tmp_path, f"def mine(record, completion):\n    {body}\n")
    with pytest.raises(UserError) as raised:
        check_own(own_rewards(spec), [(record, "#### 36")])
    line = str(raised.value)
    assert says in line and "\n" not in line
    assert line.startswith("rewards.py") and f"(own reward mine, record {record.id})" in line


def test_a_function_cannot_change_what_is_graded(tmp_path, record):
    record = replace(record, table=[["a", "1"]])
    spec = spec_with(tmp_path, "def mine(record, completion):\n    record.table.clear()\n    return 1\n")
    assert own_rewards(spec)[0].score(record, "x") == 1.0
    assert record.table == [["a", "1"]]


def test_the_specification_keeps_the_text_and_its_bytes(tmp_path):
    code = "def other(record, completion):\n\n    return 1  # 'ä' \t\n"
    spec = spec_with(tmp_path, code, function="other")
    write_reward_spec(tmp_path / "reward_spec.yaml", spec)
    (tmp_path / "rewards.py").unlink()
    kept = load_reward_spec(tmp_path / "reward_spec.yaml")
    assert kept == spec and kept.own["mine"].source == code and kept.own["mine"].file == "rewards.py"
    assert own_rewards(kept)[0].function("record", "completion") == 1
    write_reward_spec(tmp_path / "plain.yaml", RewardSpec())
    assert "own" not in yaml.safe_load((tmp_path / "plain.yaml").read_text())


def test_it_is_paid_like_the_task_and_never_validates(tmp_path):
    spec = spec_with(tmp_path, "def mine(record, completion):\n    return 1\n")
    paid = {reward: own_weights(spec, reward) for reward in ("combined", "task", "intrinsic")}
    assert paid == {"combined": {"mine": 0.5}, "task": {"mine": 0.5}, "intrinsic": {"mine": 0.0}}
    assert verified(spec).own == {}
    nothing = replace(spec.weights, intrinsic=0.0, correctness=0.0, format=0.0)
    assert paid_weights(replace(spec, weights=nothing), "task") == nothing


def test_an_evaluations_total_has_the_weighted_component(tmp_path, record):
    spec = spec_with(tmp_path, "def mine(record, completion):\n    return 2\n")
    spec = replace(spec, weights=replace(spec.weights, intrinsic=0.0))
    found = components(record, Completion("#### 36", (1,), False), None, grade(record, "#### 36"), spec)
    assert found["mine"] == 2.0 and found["total"] == 1.0 + 0.5 * 2.0


@pytest.mark.parametrize(
    ("own", "says"),
    [
        ({"total": {"file": "a.py"}}, "own.total: the name must be small letters"),
        ({"Mine": {"file": "a.py"}}, "own.Mine: the name must be small letters"),
        ({"mine": {}}, "own.mine.file must name the Python file"),
        ({"mine": {"file": "a.py", "weight": -1}}, "own.mine.weight must be at least 0"),
        ({"mine": {"file": "a.py", "wieght": 1}}, 'unknown key "own.mine.wieght"; did you mean "weight"?'),
    ],
)
def test_a_reward_tier_that_cannot_be_is_refused(tmp_path, own, says):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"own": own}))
    with pytest.raises(UserError, match=re.escape(says)):
        load_tier(RewardSpec, tmp_path / "r.yaml")


def test_a_file_with_a_token_is_not_copied(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "planted-0123456789")
    with pytest.raises(UserError, match="holds an access token") as raised:
        spec_with(tmp_path, "KEY = 'planted-0123456789'\n")
    assert "planted" not in str(raised.value).replace(str(tmp_path), "")


def test_a_dataclass_in_a_file_works(tmp_path):
    code = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n\n"
        "@dataclass\nclass Pair:\n    a: int\n\n\ndef f(x):\n    return Pair(x).a\n"
    )
    assert load_function(code, "f.py", "f", ("x",))(3) == 3
