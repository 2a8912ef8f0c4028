"""ConvFinQA and TAT-QA from samples in their published form: rows, damage, and what is right."""

import json

import pytest

from tests.support.scripts import execute_stage
from utils.data.readers import all_readers
from utils.data.settings import DatasetConfig
from utils.data.sources import gold_records, raw_files
from utils.frame.files import REPO_ROOT, read_json, read_jsonl
from utils.grading.tasks import task_of
from utils.grading.tasks.tatqa import exact_match, is_number, parse_completion, to_number

DIALOGUE = ("what was the cash in 2010 ?", "and in 2009 ?", "what was the change ?", "is it positive ?")
PROGRAMS = ("5.0", "3", "subtract(5, 3)", "subtract(5, 3), greater(#0, const_1)")
ANSWERS = (5.0, 3.0, 2.0, "yes")


def conversation(number=1, **changes):
    """A conversation of ConvFinQA's train.json."""
    page = f"ABC/2010/page_{number}.pdf"
    annotation = {
        "original_program": PROGRAMS[2],
        "dialogue_break": list(DIALOGUE),
        "turn_program": list(PROGRAMS),
        "exe_ans_list": list(ANSWERS),
    }
    return {
        "pre_text": [f"page {number} ."],
        "post_text": ["after it ."],
        "filename": page,
        "table_ori": [["", "2010", "2009"], ["Cash", "5", "3"]],
        "table": [["", "2010", "2009"], ["cash", "5", "3"]],
        "qa": {"question": "what is the change ?", "program": PROGRAMS[2], "exe_ans": 2.0},
        "id": f"Single_{page}-1",
        "annotation": annotation | changes,
    }


def turn(number=1, place=2):
    """A turn of ConvFinQA's train_turn.json."""
    whole = conversation(number)
    whole["id"] += f"_{place}"
    whole["annotation"] |= {
        "cur_program": PROGRAMS[place],
        "cur_dial": list(DIALOGUE[: place + 1]),
        "exe_ans": ANSWERS[place],
        "turn_ind": place,
        "gold_ind": {"table_1": "the cash of 2010 is 5"},
    }
    return whole


def context(number=1):
    """A context of TAT-QA's files."""
    asked = (
        ("span", "which year has more ?", ["2010"], "", ""),
        ("arithmetic", "what is the change ?", 2, "5 - 3", "million"),
        ("arithmetic", "and in percent ?", 66.67, "(5 - 3) / 3", "percent"),
        ("multi-span", "which years are shown ?", ["2009", "2010"], "", ""),
        ("count", "how many years are shown ?", 2, "2010##2009", ""),
    )
    return {
        "table": {"uid": f"table-{number}", "table": [["", "2010", "2009"], ["cash", "5", "3"]]},
        "paragraphs": [
            {"uid": "p2", "order": 2, "text": "second ."},
            {"uid": "p1", "order": 1, "text": f"first of {number} ."},
        ],
        "questions": [
            {
                "uid": f"q{number}-{place}",
                "order": place,
                "question": question,
                "answer": answer,
                "derivation": derivation,
                "answer_type": kind,
                "answer_from": "table",
                "rel_paragraphs": [],
                "req_comparison": False,
                "scale": scale,
            }
            for place, (kind, question, answer, derivation, scale) in enumerate(asked)
        ],
    }


def read(tmp_path, form, rows, name="train.json"):
    (tmp_path / name).write_text(json.dumps(rows))
    return all_readers()[form].read(tmp_path / name, "train")


# ------------------------------------------------------------------------------------------ ConvFinQA


def test_a_conversation_is_a_row_per_turn(tmp_path):
    rows, problems = read(tmp_path, "convfinqa", [conversation(1), conversation(2)])
    assert problems == [] and len(rows) == 8
    first, second, third, fourth = rows[:4]
    assert (third.id, third.report) == ("Single_ABC/2010/page_1.pdf-1_2", "ABC/2010/page_1.pdf")
    assert third.question == "\n".join(DIALOGUE[:3])
    assert (first.program, first.demonstration, first.level, first.type) == (
        "add(5.0, 0)",
        "5.0",
        0,
        "number",
    )
    assert (third.program, third.level, third.type) == (PROGRAMS[2], 1, "program")
    assert [row.answer for row in rows[:4]] == ["5", "3", "2", "yes"]
    assert [row.source for row in rows[3:5]] == ["train.json#3", "train.json#4"]
    assert second.place == "row 0 (line 1) turn 1" and rows[4].place == "row 1 (line 1) turn 0"


def test_turns_of_their_own_are_the_same_rows(tmp_path):
    turns, problems = read(tmp_path, "convfinqa", [turn(1, place) for place in range(4)])
    whole, _ = read(tmp_path, "convfinqa", [conversation(1)])
    assert problems == []
    for found, expected in zip(turns, whole, strict=True):
        for name in ("id", "question", "program", "answer", "level", "type", "table", "report"):
            assert getattr(found, name) == getattr(expected, name), name
    assert turns[2].gold_places == ("table_1",)


@pytest.mark.parametrize(
    ("changes", "code", "left"),
    [
        ({"turn_program": ["5"]}, "wrong_type", 0),
        ({"dialogue_break": None}, "wrong_type", 0),
        ({"exe_ans_list": [5.0, 3.0, "many", "yes"]}, "unparsable_gold", 3),
        ({"turn_program": ["5.0", 3, *PROGRAMS[2:]]}, "wrong_type", 3),
        ({"turn_program": ["5.0", " ", *PROGRAMS[2:]]}, "empty_value", 3),
    ],
)
def test_damage_to_a_conversation_costs_its_turns_alone(tmp_path, changes, code, left):
    rows, problems = read(tmp_path, "convfinqa", [conversation(1, **changes), conversation(2)])
    assert len(rows) == left + 4
    assert [(problem.severity, problem.code) for problem in problems] == [("error", code)]


def test_a_row_without_annotation_is_an_error(tmp_path):
    rows, [problem] = read(tmp_path, "convfinqa", [{"id": "x"}, conversation(2)])
    assert len(rows) == 4 and (problem.place, problem.code) == ("row 0 (line 1)", "missing_key")


def test_dev_is_the_test_split_and_val_is_cut_from_train(tmp_path):
    for name in ("train.json", "dev.json", "valid.json"):
        (tmp_path / name).write_text(json.dumps([conversation()]))
    files = raw_files(DatasetConfig(dataset="convfinqa", data_root=str(tmp_path)))
    assert {split: path.name for split, path in files.items()} == {"train": "train.json", "test": "dev.json"}


@pytest.mark.parametrize(
    ("place", "program", "right"),
    [
        (0, "5", True),
        (0, "5.0", True),
        (0, "add(5, 0)", True),
        (0, "3", False),
        (0, "$5", False),
        (0, "five", False),
        (2, "subtract(5, 3)", True),
        (2, "2", True),  # the value counts, and says nothing of the program
        (2, "subtract(3, 5)", False),
        (3, "greater(5, 3)", True),
    ],
)
def test_a_program_may_be_a_number(tmp_path, place, program, right):
    (tmp_path / "dev.json").write_text(json.dumps([conversation()]))
    record = gold_records(DatasetConfig(dataset="convfinqa", data_root=str(tmp_path)), "test")[place]
    graded = task_of("convfinqa").grade(record, json.dumps({"program": program, "answer": "x"}))
    assert graded.correct is right and graded.format_valid
    assert graded.official["program_match"] is (
        program == PROGRAMS[place] or (place, program) == (0, "add(5.0, 0)")
    )


# --------------------------------------------------------------------------------------------- TAT-QA


def test_a_context_is_a_row_per_question(tmp_path):
    rows, problems = read(tmp_path, "tatqa", [context(1), context(2)], "tatqa_dataset_train.json")
    assert problems == [] and len(rows) == 10
    span, change, percent, several, count = rows[:5]
    assert (span.id, span.report, span.type, span.level) == ("q1-0", "table-1", "span", None)
    assert span.post_text == ("first of 1 .", "second .") and span.table[1] == ("cash", "5", "3")
    assert json.loads(change.answer) == {"answer": ["2"], "scale": "million"}
    assert json.loads(percent.solution) == {
        "derivation": "(5 - 3) / 3",
        "answer": "66.67",
        "scale": "percent",
    }
    assert json.loads(several.solution)["answer"] == ["2009", "2010"]
    assert (change.level, percent.level, count.level) == (1, 2, None)
    assert rows[5].source == "tatqa_dataset_train.json#5" and rows[5].place == "row 1 (line 1) question 0"


@pytest.mark.parametrize(
    ("change", "code", "left"),
    [
        (lambda row: row.pop("table"), "wrong_type", 0),
        (lambda row: row.update(paragraphs=["text"]), "wrong_type", 0),
        (lambda row: row.update(questions=None), "wrong_type", 0),
        (lambda row: row["questions"][1].update(scale="trillion"), "unparsable_gold", 4),
        (lambda row: row["questions"][1].update(answer=[]), "unparsable_gold", 4),
        (lambda row: row["questions"][1].update(answer={"a": 1}), "unparsable_gold", 4),
        (lambda row: row["questions"][1].pop("uid"), "missing_key", 4),
        (lambda row: row["questions"].__setitem__(1, "text"), "not_an_object", 4),
    ],
)
def test_damage_to_a_context_costs_its_questions_alone(tmp_path, change, code, left):
    damaged = context(1)
    change(damaged)
    rows, problems = read(tmp_path, "tatqa", [damaged, context(2)])
    assert len(rows) == left + 5
    assert {(problem.severity, problem.code) for problem in problems} == {("error", code)}


@pytest.mark.parametrize(
    ("gold", "said", "right"),
    [
        ((["2"], "million"), (["2"], "million"), True),
        ((["2"], "million"), (["2.0"], "million"), True),
        ((["2"], "million"), (["2,000"], "thousand"), True),  # the same amount
        ((["2"], "million"), (["2000000"], ""), True),
        ((["2"], "million"), (["2"], ""), False),
        ((["2"], "million"), (["-2"], "million"), False),
        ((["(2)"], ""), (["-2"], ""), True),
        ((["66.67"], "percent"), (["66.67%"], ""), True),
        ((["66.67"], "percent"), (["0.6667"], ""), True),  # without scale it is also read as it stands
        ((["66.67"], "percent"), (["66.67"], ""), False),
        ((["66.67"], "percent"), (["66.7"], "percent"), False),
        ((["$1,023"], ""), (["1023"], ""), True),
        ((["1.5 million"], ""), (["1500000"], ""), True),
        ((["The fiscal year"], ""), (["fiscal year."], ""), True),
        ((["fiscal year"], ""), (["fiscal years"], ""), False),
        ((["2009", "2010"], ""), (["2010", "2009"], ""), True),
        ((["2009", "2010"], ""), (["2010"], ""), False),
        ((["cash"], ""), (["cash"], "million"), False),
    ],
)
def test_answers_are_compared_as_the_released_evaluator_does(gold, said, right):
    assert exact_match(*said, *gold) is right


def test_numbers_are_read_as_the_released_evaluator_does():
    numbers = {"1,023": 1023.0, "$ (12.5)": -12.5, "12 %": 0.12, "1.5 million": 1.5e6, "-3": -3.0, ".5": 0.5}
    assert {text: to_number(text) for text in numbers} == numbers
    assert all(map(is_number, numbers)) and not any(map(is_number, ("", "cash", "12 years", "nan", "inf")))


@pytest.mark.parametrize(
    ("completion", "error"),
    [
        ('{"answer": "2", "scale": "million"}', ""),
        ('{"answer": 2}', ""),
        ('{"answer": ["a", 3], "scale": null}', ""),
        ('{"answer": "2", "scale": "millions"}', "bad_scale"),
        ('{"answer": ""}', "missing_field:answer"),
        ('{"answer": true}', "missing_field:answer"),
        ('{"answer": []}', "missing_field:answer"),
        ('{"answer": "2"', "not_json"),
        ("2", "not_json"),
        ("[" * 10_000, "not_json"),
        ("x" * 30_000, "too_long"),
        ('{"answer": ' + "9" * 15_000 + "}", "not_json"),
        ('{"answer": "2", "scale": ["million"]}', "bad_scale"),
    ],
)
def test_whatever_is_written_has_a_form_or_a_reason(completion, error):
    assert parse_completion(completion)[2] == error


def test_a_grade_says_what_was_right(tmp_path):
    (tmp_path / "tatqa_dataset_test_gold.json").write_text(json.dumps([context()]))
    _, change, *_ = gold_records(DatasetConfig(dataset="tatqa", data_root=str(tmp_path)), "test")
    task = task_of("tatqa")
    exact = task.grade(change, '{"answer": "2", "scale": "million"}')
    assert exact.correct and exact.official == {"exact_match": True, "scale_match": True}
    near = task.grade(change, '{"answer": "2.001", "scale": "million"}')
    assert near.tolerant and near.relative_error == pytest.approx(5e-4)
    wrong = task.grade(change, '{"answer": "2"}')
    assert (wrong.failure, wrong.official["scale_match"], wrong.answer) == ("wrong_value", False, "2")
    assert task.grade(change, "two").failure == "not_json"


# --------------------------------------------------------------------------------------------- stages


@pytest.mark.parametrize("form", ["convfinqa", "tatqa"])
def test_stages_take_the_form_as_any_other(tmp_path, form):
    make = conversation if form == "convfinqa" else context
    reader, root = all_readers()[form], tmp_path / "raw"
    root.mkdir()
    for split in ("train", "val", "test"):
        first = {"train": 1, "val": 20, "test": 30}[split]
        if reader.files[split]:
            rows = [make(number) for number in range(first, first + 8)]
            (root / reader.files[split][0]).write_text(json.dumps(rows))
    data = ["--dataset_config", REPO_ROOT / f"configs/datasets/{form}.yaml", "--data_root", root]
    out = tmp_path / "out"
    for script in ("00_check_data.py", "01_prepare_dataset.py", "02_build_rewards.py"):
        words = [] if script.startswith("02") else data
        assert execute_stage(script, [*words, "--outputs_root", out]) == 0
    run = out / "run_001"
    files = {split: run / "01_preprocessing" / f"{split}.jsonl" for split in ("train", "val", "test")}
    records = {split: read_jsonl(file) for split, file in files.items()}
    first = records["train"][0]
    assert first["dataset"] == form and first["report"] and "cash | 5 | 3" in first["input_text"]
    assert first["input_text"].endswith(first["question"])
    assert not {row["report"] for row in records["train"]} & {row["report"] for row in records["val"]}
    results = read_json(run / "02_rewards" / "unit_tests" / "test_results.json")
    assert results["failed"] == results["gold_failures"] == []
    gold = [{"id": row["id"], "response": row["target_text"]} for row in records["test"]]
    (tmp_path / "gold.jsonl").write_text("\n".join(map(json.dumps, gold)))
    words = [*data, "--predictions", tmp_path / "gold.jsonl", "--policy", "gold", "--outputs_root", out]
    assert execute_stage("10_evaluate.py", words) == 0
    metrics = read_json(run / "10_evaluation" / "gold" / "metrics.json")
    assert metrics["accuracy"]["value"] == 1 and metrics["accuracy"]["clusters"] == 8
