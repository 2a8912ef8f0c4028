"""Stages 00 and 01: what is reported, what is left out, no leakage, same bytes for the same work."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.scripts import execute_stage
from tests.support.tiny_models import make_tiny_tokenizer
from utils.data import checks
from utils.data.preparation import hold_out, prepare
from utils.data.reading import RawRow
from utils.data.records import load_records
from utils.data.settings import DatasetConfig
from utils.data.sources import RawSplit, raw_files, read_splits
from utils.frame.config import load_tier
from utils.frame.files import REPO_ROOT, UserError, read_json, read_jsonl
from utils.grading.tasks import task_of

CHECK, PREPARE = "00_check_data.py", "01_prepare_dataset.py"


def finqa_item(page: int, question: int = 1, program: str = "subtract(5, 3)", answer=2.0) -> dict:
    return {
        "id": f"ABC/2010/page_{page}.pdf-{question}",
        "filename": f"ABC/2010/page_{page}.pdf",
        "pre_text": [f"text of page {page} ."],
        "post_text": ["."],
        "table": [["", "2010", "2009"], ["cash", "5", "3"]],
        "qa": {"question": f"question {question} ?", "program": program, "exe_ans": answer},
    }


def write_finqa(root: Path, **splits) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for split, items in splits.items():
        content = items if isinstance(items, str) else json.dumps(items)
        (root / f"{split}.json").write_text(content)
    return root


def run(script: str, dataset: str, root: Path, out: Path, *more: str) -> int:
    argv = ["--dataset_config", str(REPO_ROOT / f"configs/datasets/{dataset}.yaml"), "--data_root", str(root)]
    return execute_stage(script, [*argv, "--outputs_root", str(out), *more])


def row_of(problem: dict) -> str:
    """Where a problem is, without the line."""
    return problem["place"].partition(" (")[0]


@pytest.fixture()
def finqa_root(tmp_path) -> Path:
    train = [finqa_item(page, question) for page in range(10) for question in (1, 2)]
    train[3]["qa"]["exe_ans"] = 7.0
    return write_finqa(
        tmp_path / "raw",
        train=[*train, finqa_item(30), finqa_item(0)],
        dev=[finqa_item(20), finqa_item(21)],
        test=[finqa_item(30), finqa_item(31)],
    )


@pytest.mark.parametrize("script", [CHECK, PREPARE])
def test_reading_and_rendering_have_bars(script, finqa_root, tmp_path, bars):
    assert run(script, "finqa", finqa_root, tmp_path / "out", "--error_threshold", "0.1") == 0
    assert bars == ["reading", "rendering train", "rendering val", "rendering test"]


def test_check_reports_and_prepare_leaves_out(finqa_root, tmp_path, capsys):
    train = json.loads((finqa_root / "train.json").read_text())
    lines = ["[", *(json.dumps(item) + "," for item in train[:-1]), json.dumps(train[-1]), "]"]
    (finqa_root / "train.json").write_text("\n".join(lines))
    assert run(CHECK, "finqa", finqa_root, tmp_path / "out", "--error_threshold", "0.1") == 0
    folder = tmp_path / "out" / "run_001" / "00_data_validation"
    said = capsys.readouterr().out
    assert "train: 20 of 22 rows usable, 2 errors, 2 warnings\n" in said  # as many as are listed
    # Row 3 stands on the fifth line, as an editor counts.
    assert (
        f"  error: {finqa_root}/train.json:5: " in said and f"  error: {finqa_root}/train.json:23: " in said
    )
    assert f"  warning: duplicate_across_splits in 1 row, first {finqa_root}/train.json:22: " in said
    assert f"every problem: {folder / 'problems.jsonl'}" in said
    assert "01_prepare_dataset.py will leave out 3 rows: 1 duplicate_id, 1 gold_program, 1 leak" in said
    problems = {
        (p["code"], p["file"], row_of(p), p["severity"]) for p in read_jsonl(folder / "problems.jsonl")
    }
    assert problems == {
        ("gold_program", "train.json", "row 3", "error"),
        ("duplicate_id", "train.json", "row 21", "error"),
        ("duplicate_across_splits", "train.json", "row 20", "warning"),
        ("page_across_splits", "train.json", "row 20", "warning"),
    }
    report = read_json(folder / "report.json")
    assert (report["splits"]["train"]["rows"], report["splits"]["train"]["usable"]) == (22, 20)
    assert report["overlap"]["train/test"] == {"pages": 1, "reports": 1}
    assert report["splits"]["val"]["answer_types"] == {"integer": 2}
    assert "passed" in (folder / "report.md").read_text()
    assert {e["split"] for e in read_jsonl(folder / "examples.jsonl")} == {"train", "val", "test"}

    assert run(PREPARE, "finqa", finqa_root, tmp_path / "out", "--error_threshold", "0.1") == 0
    folder = tmp_path / "out" / "run_001" / "01_preprocessing"
    dropped = [(row["split"], row["code"], row_of(row)) for row in read_jsonl(folder / "dropped.jsonl")]
    assert sorted(dropped) == [
        ("train", "duplicate_id", "row 21"),
        ("train", "gold_program", "row 3"),
        ("train", "leak", "row 20"),
    ]
    records = {split: load_records(folder / f"{split}.jsonl") for split in ("train", "val", "test")}
    assert {split: len(found) for split, found in records.items()} == {"train": 19, "val": 2, "test": 2}
    assert (folder / "length.png").read_bytes().startswith(b"\x89PNG")
    metrics = read_json(folder / "manifest.json")["metrics"]
    assert metrics["dropped"] == {"duplicate_id": 1, "gold_program": 1, "leak": 1}
    assert "WARNING: 1 rows left out: gold_program" in capsys.readouterr().out


def test_errors_beyond_the_threshold_fail_both_stages_in_one_line(finqa_root, tmp_path, capsys):
    assert run(CHECK, "finqa", finqa_root, tmp_path / "out") == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "2 of 26 rows have an error (7.7%, at most 5.0% allowed)" in lines[0]
    folder = tmp_path / "out" / "run_001" / "00_data_validation"
    assert "FAILED" in (folder / "report.md").read_text() and not (folder / "manifest.json").exists()
    assert run(PREPARE, "finqa", finqa_root, tmp_path / "out") == 2
    assert not list((tmp_path / "out").rglob("train.jsonl"))


@pytest.mark.parametrize("damage", ["", "{}", '[{"qa": 1}', None])
def test_a_damaged_file_always_fails_and_the_others_are_still_checked(finqa_root, tmp_path, damage, capsys):
    text = (finqa_root / "dev.json").read_text()
    (finqa_root / "dev.json").write_text(text[:-30] if damage is None else damage)
    assert run(CHECK, "finqa", finqa_root, tmp_path / "out", "--error_threshold", "1") == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "dev.json" in lines[0]
    report = read_json(tmp_path / "out" / "run_001" / "00_data_validation" / "report.json")
    assert report["splits"]["train"]["rows"] == 22 and report["splits"]["test"]["rows"] == 2


def test_missing_files_are_one_line(tmp_path, capsys):
    assert run(CHECK, "gsm8k", tmp_path / "nowhere", tmp_path / "out") == 2
    assert "train.jsonl" in capsys.readouterr().err.strip()


def test_same_work_gives_the_same_bytes(finqa_root, tmp_path):
    contents = []
    for name in ("one", "two"):
        for module in (CHECK, PREPARE):
            assert run(module, "finqa", finqa_root, tmp_path / name, "--error_threshold", "0.1") == 0
        run_dir = tmp_path / name / "run_001"
        files = [
            f
            for f in sorted(run_dir.rglob("*"))
            if f.is_file() and f.name not in ("runtime.json", "stage.log")
        ]
        contents.append({str(file.relative_to(run_dir)): file.read_bytes() for file in files})
    assert contents[0] == contents[1] and "01_preprocessing/length.png" in contents[0]


def test_a_given_tokenizer_counts_the_limit(finqa_root, tmp_path, capsys):
    make_tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    kept = " | 2010 | 2009\ncash | 5 | 3\nquestion: question 1 ?"  # 50 characters, each a token of its own
    options = ["--error_threshold", "0.1", "--instruction", "", "--max_input_tokens", str(len(kept))]
    counting = [*options, "--tokenizer", str(tmp_path / "tokenizer")]
    assert run(PREPARE, "finqa", finqa_root, tmp_path / "out", *counting) == 0
    records = load_records(tmp_path / "out" / "run_001" / "01_preprocessing" / "test.jsonl")
    assert [record.input_text for record in records] == [kept, kept]
    missing = [*options, "--tokenizer", str(tmp_path / "raw"), "--run_id", "other"]
    assert run(PREPARE, "finqa", finqa_root, tmp_path / "out", *missing) == 2
    assert capsys.readouterr().err.strip().startswith("error: dataset.tokenizer: cannot load")


def gsm8k_row(number: int, report: str = "", question: str = "") -> RawRow:
    question = question or f"q {number} ?"
    return RawRow(
        "train.jsonl", number, f"line {number + 1}", f"train-{number}", question, "1", report=report
    )


def test_a_gold_context_leaves_out_rows_without_evidence_or_derives_it(finqa_root, tmp_path, capsys):
    for split in ("train", "dev", "test"):
        items = json.loads((finqa_root / f"{split}.json").read_text())
        for item in items[::2]:
            item["qa"]["gold_inds"] = {"table_1": "the cash of 2010 is 5 ;"}
        write_finqa(finqa_root, **{split: items})
    options = ("--context", "gold", "--error_threshold", "0.5")
    assert run(PREPARE, "finqa", finqa_root, tmp_path / "a", *options) == 0
    metrics = read_json(tmp_path / "a" / "run_001" / "01_preprocessing" / "manifest.json")["metrics"]
    assert metrics["test"]["records"] == 1 and metrics["dropped"]["no_evidence"] > 5
    assert metrics["test"]["evidence"] == {
        "annotated": 1,
        "derived": 0,
        "unknown": 0,
        "keep_all": 1,
        "share_that_keeps_all": 1.0,
    }
    out = tmp_path / "b" / "run_001" / "01_preprocessing"
    assert run(PREPARE, "finqa", finqa_root, tmp_path / "b", *options, "--derive_evidence", "true") == 0
    assert [record.evidence for record in load_records(out / "test.jsonl")] == ["annotated", "derived"]
    assert "no_evidence" not in read_json(out / "manifest.json")["metrics"]["dropped"]
    capsys.readouterr()


def test_the_manifest_says_how_many_inputs_keep_their_evidence(finqa_root, tmp_path, capsys):
    out = tmp_path / "run_001" / "01_preprocessing"
    options = ("--context", "retrieved", "--derive_evidence", "true", "--error_threshold", "0.5")
    for budget, share in (("15", 1.0), ("1", 0.0)):  # with the row of cash, and with nothing but the header
        more = (*options, "--context_tokens", budget, "--overwrite")
        assert run(PREPARE, "finqa", finqa_root, tmp_path, *more) == 0
        evidence = read_json(out / "manifest.json")["metrics"]["test"]["evidence"]
        assert (evidence["derived"], evidence["share_that_keeps_all"]) == (2, share)
        assert (
            f"test: evidence of records: 0 annotated, 2 derived, 0 unknown; {share:.1%}"
            in capsys.readouterr().out
        )


def test_texts_of_special_tokens_are_counted(finqa_root, tmp_path, capsys):
    """Those of most vocabularies, and with a tokenizer its own; the rows are used all the same."""
    items = json.loads((finqa_root / "test.json").read_text())
    items[0]["qa"]["question"] += " <|im_end|> really ?"
    items[1]["table"][1][0] = "cash \u2581END"
    items[1]["qa"]["question"] = "is 1 < 2 , and a <= b | c > d ?"
    write_finqa(finqa_root, test=items)
    tokenizer = make_tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["\u2581END"]})
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    for name, more, count in (("a", [], 1), ("b", ["--tokenizer", str(tmp_path / "tokenizer")], 2)):
        options = ("--error_threshold", "0.5", *more)
        assert run(CHECK, "finqa", finqa_root, tmp_path / name, *options) == 0
        out = tmp_path / name / "run_001" / "00_data_validation"
        found = [p for p in read_jsonl(out / "problems.jsonl") if p["code"] == "special_token"]
        assert len(found) == count and all(p["severity"] == "warning" for p in found)
        assert read_json(out / "report.json")["splits"]["test"]["warnings"]["special_token"] == count
    assert "'<|im_end|>' is a special token" in found[0]["message"]


def test_hold_out_is_seeded_and_keeps_groups_together():
    rows = [gsm8k_row(n, report=f"page {n // 4}") for n in range(100)]
    train, val = hold_out(rows, 0.1, seed=3)
    assert len(val) == 12 and sorted([*train, *val], key=lambda row: row.row) == rows
    assert not {row.report for row in train} & {row.report for row in val}
    assert hold_out(rows, 0.1, seed=3) == (train, val) != hold_out(rows, 0.1, seed=4)
    twins = [gsm8k_row(n, question="Same  question ?" if n % 2 else "same question ?") for n in range(10)]
    assert sorted(map(len, hold_out(twins, 0.3, seed=0))) == [0, 10]


def test_val_is_part_of_train_and_never_of_test():
    raw = {
        "train": RawSplit([gsm8k_row(n) for n in range(50)], []),
        "test": RawSplit([gsm8k_row(n, question=f"q {n} ?") for n in range(45, 60)], []),
    }
    prepared = prepare(raw, DatasetConfig(dataset="gsm8k", val_fraction=0.2, max_train=30, max_test=5))
    sizes = {split: len(records) for split, records in prepared.records.items()}
    assert sizes == {"train": 30, "val": 9, "test": 5}
    questions = {split: {r.question for r in records} for split, records in prepared.records.items()}
    everything = {f"q {n} ?" for n in range(45, 60)}
    assert not (questions["train"] | questions["val"]) & everything and questions["test"] < everything
    assert not questions["train"] & questions["val"]
    assert [entry["code"] for entry in prepared.dropped] == ["leak"] * 5


def levelled(levels, split="train", start=0):
    return [
        replace(gsm8k_row(start + n, question=f"{split} {n} ?"), id=f"{split}-{n}", level=level)
        for n, level in enumerate(levels)
    ]


def test_held_out_levels_leave_train_and_val_and_stay_in_test():
    raw = {
        "train": RawSplit(levelled([1, 2, 3, None] * 10), []),
        "test": RawSplit(levelled([1, 2, 3, None] * 2, "test"), []),
    }
    config = DatasetConfig(dataset="gsm8k", val_fraction=0.2)
    whole, held = prepare(raw, config), prepare(raw, replace(config, hold_out_levels=[3, 1]))
    for split in ("train", "val"):
        # The others are split as without it.
        expected = [record for record in whole.records[split] if record.level not in (1, 3)]
        assert held.records[split] == expected and {2, None} == {record.level for record in expected}
        assert held.held_out[split] == len(whole.records[split]) - len(expected)
    assert held.records["test"] == whole.records["test"] and held.held_out["test"] == 4
    assert held.held_out["train"] + held.held_out["val"] == 20 and whole.held_out == {}


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ([4], "level 4 does not occur in train, which has levels 1, 2"),
        ([2], "level 2 does not occur in test, which has levels 1"),
        ([1], "nothing is left in val"),
    ],
)
def test_levels_that_cannot_be_held_out(levels, message):
    raw = {
        "train": RawSplit(levelled([1, 2, 2]), []),
        "val": RawSplit(levelled([1, 1], "val"), []),
        "test": RawSplit(levelled([1], "test"), []),
    }
    with pytest.raises(UserError, match=message):
        prepare(raw, DatasetConfig(dataset="gsm8k", hold_out_levels=levels))
    with pytest.raises(UserError, match="no level twice"):
        load_tier(DatasetConfig, None, {"hold_out_levels": [1, 1]})


def test_inputs_of_which_nothing_can_be_cut_leave_train_and_stay_in_test():
    long = "a very long question indeed ?"
    raw = {
        "train": RawSplit([gsm8k_row(0), gsm8k_row(1, question=long), gsm8k_row(2)], []),
        "val": RawSplit([gsm8k_row(3, question="val ?"), gsm8k_row(4, question=long + " val")], []),
        "test": RawSplit([gsm8k_row(5, question=long + " test")], []),
    }
    prepared = prepare(raw, DatasetConfig(dataset="gsm8k", max_input_tokens=6))
    assert {split: len(records) for split, records in prepared.records.items()} == {
        "train": 2,
        "val": 1,
        "test": 1,
    }
    dropped = [(entry["split"], entry["code"], entry["id"]) for entry in prepared.dropped]
    assert dropped == [("train", "too_long", "train-1"), ("val", "too_long", "train-4")]
    assert prepared.cuts["test"][0].still_over


@pytest.mark.parametrize("dataset", ["finqa", "gsm8k", "math"])
def test_published_data_passes_and_does_not_leak(shared_data, dataset):
    changes = {"data_root": str(shared_data / dataset), "max_train": 200, "max_val": 50, "max_test": 50}
    config = load_tier(DatasetConfig, REPO_ROOT / f"configs/datasets/{dataset}.yaml", changes)
    raw = read_splits(config, raw_files(config), task_of(dataset).gold_fault)
    assert checks.verdict(raw, config.error_threshold) == ""
    assert not [p for part in raw.values() for p in part.problems if p.code == "gold_program"]
    across = checks.duplicate_problems(raw) + checks.page_problems(raw)
    leaks = [p.id for p in across if "across" in p.code]
    assert leaks == (["train-2948"] if dataset == "math" else [])
    prepared = prepare(raw, config)
    assert [entry["id"] for entry in prepared.dropped if entry["code"] == "leak"] == leaks
    assert {split: len(found) for split, found in prepared.records.items()} == {
        "train": 200,
        "val": 50,
        "test": 50,
    }
    ids = [record.id for records in prepared.records.values() for record in records]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("yes", "yes/no"),
        ("-1,250", "integer"),
        ("0.34719", "decimal"),
        ("1e-05", "decimal"),
        (r"\frac{1}{2}", "fraction"),
        ("(1,2]", "tuple or interval"),
        (r"\text{east}", "text"),
        (r"2\sqrt{3}", "expression"),
    ],
)
def test_answer_types(answer, kind):
    assert checks.answer_type(answer) == kind
