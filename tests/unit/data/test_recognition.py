"""A data folder that is named without its form: recognised, or one line; the embedded set stays at home."""

import json
from pathlib import Path

import pytest

from tests.support.raw_rows import finqa_item, math_item
from tests.support.scripts import execute_stage
from utils.data.readers import sample
from utils.data.recognition import form_of, tier_for
from utils.frame.files import UserError, write_json, write_jsonl

GSM8K = [{"question": "q", "answer": "a\n#### 1"}]


def files(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def check(tmp_path: Path, root: Path, *more: str) -> int:
    return execute_stage(
        "00_check_data.py", ["--data_root", root, "--outputs_root", tmp_path / "outputs", *more]
    )


@pytest.mark.parametrize(
    ("form", "write"),
    [
        ("finqa", lambda root: write_json(root / "test.json", [finqa_item()])),
        ("finqa", lambda root: write_json(root / "dataset" / "train.json", [finqa_item()])),
        ("convfinqa", lambda root: write_json(root / "dev.json", [finqa_item() | {"annotation": {}}])),
        ("tatqa", lambda root: write_json(root / "dev.json", [{"questions": [], "paragraphs": []}])),
        ("gsm8k", lambda root: write_jsonl(root / "main" / "test.jsonl", GSM8K)),
        ("math", lambda root: write_jsonl(root / "train.jsonl", [math_item()])),
        ("math", lambda root: write_json(root / "MATH" / "test" / "algebra" / "1.json", math_item())),
        ("sample", lambda root: sample.READER.ensure(root)),
        (None, lambda root: write_jsonl(root / "test.jsonl", [{"prompt": "p"}])),
        (None, lambda root: write_jsonl(root / "notes.jsonl", GSM8K)),
        (None, lambda root: (root / "test.json").write_text("[{")),
    ],
)
def test_the_form_is_recognised_by_the_first_row(tmp_path, form, write):
    root = tmp_path / "data"
    root.mkdir()
    write(root)
    assert form_of(root) == form
    if form:
        assert tier_for(root) == f"configs/datasets/{form}.yaml"
    else:
        with pytest.raises(UserError, match="name its form by --dataset_config"):
            tier_for(root)


def test_real_data_are_recognised(shared_data):
    assert [form_of(shared_data / name) for name in ("finqa", "gsm8k", "math")] == ["finqa", "gsm8k", "math"]


def test_nothing_downloaded_is_said_and_nothing_written(tmp_path, capsys):
    """Once the embedded set was written there, and then taken for FinQA."""
    root = tmp_path / "datasets" / "finqa"
    assert check(tmp_path, root) == 2
    assert "train.json" in capsys.readouterr().err and not root.exists()
    assert check(tmp_path, tmp_path / "elsewhere") == 2
    assert "--dataset_config" in capsys.readouterr().err and not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    "more", [(), ("--dataset", "sample"), ("--dataset_config", "configs/datasets/sample.yaml")]
)
def test_real_files_stay_alone(tmp_path, capsys, more):
    root = tmp_path / "mine"
    write_jsonl(root / "train.jsonl", GSM8K * 20)
    write_jsonl(root / "test.jsonl", GSM8K * 20)
    before = files(root)
    code = check(tmp_path, root, *more)
    assert code == (2 if more else 0) and files(root) == before
    if more:
        assert "the embedded data set has a folder of its own" in capsys.readouterr().err


def test_the_embedded_set_in_anothers_place_is_not_taken_for_it(tmp_path, capsys):
    root = tmp_path / "finqa"
    with pytest.raises(UserError, match="is named for finqa"):
        sample.READER.ensure(root)
    assert not root.exists()
    for split, rows in sample.generate().items():
        write_json(root / f"{split}.json", json.loads(json.dumps(rows[:5])))
    assert check(tmp_path, root) == 2
    assert "is the embedded synthetic data set, not finqa" in capsys.readouterr().err
