"""10_evaluate.py --ask: a policy's answer to a question of one's own, and what it is read as."""

import json

import pytest

from utils.data.records import Record
from utils.evaluation.ask import ask_command, asked_records, read_as
from utils.frame.files import UserError, write_jsonl
from utils.frame.stage_plan import load_script, make_plan

STAGE = load_script("10_evaluate.py").STAGE
GSM8K = ("--dataset_config", "configs/datasets/gsm8k.yaml")


def asked(tmp_path, what, *more):
    return asked_records(str(what), make_plan(STAGE, ["--outputs_root", str(tmp_path), *more]))


def test_a_question_gets_the_data_sets_instruction(tmp_path):
    [record] = asked(tmp_path, "1 + 1 ?", *GSM8K)
    assert record.dataset == "gsm8k" and record.input_text.startswith("1 + 1 ?\nLet's think step by step")
    assert asked(tmp_path, "a report\nits question ?")[0].input_text == "a report\nits question ?"


def test_a_file_holds_a_prompt_or_questions_or_records(tmp_path):
    (tmp_path / "prompt.txt").write_text("a report\nits question ?\n")
    assert asked(tmp_path, tmp_path / "prompt.txt")[0].question == "a report\nits question ?"
    record = Record("x", "gsm8k", "q", "q and more", "#### 1", "1")
    write_jsonl(tmp_path / "q.jsonl", [{"question": "one ?"}, record.to_json()])
    first, second = asked(tmp_path, tmp_path / "q.jsonl", *GSM8K)
    assert first.question == "one ?" and second == record
    write_jsonl(tmp_path / "q.jsonl", [{"prompt": "one ?"}])
    with pytest.raises(UserError, match="q.jsonl:1: a row needs a question"):
        asked(tmp_path, tmp_path / "q.jsonl")


def test_what_an_answer_is_read_as():
    finqa = Record("asked", "sample", "q", "q", "", "0")
    text = read_as(finqa, json.dumps({"evidence": "e", "program": "subtract(30, 10)"}))
    assert text == "  read as: program subtract(30, 10), answer 20.0"
    assert "not of the form asked for" in read_as(finqa, "I do not know")
    known = Record("x", "gsm8k", "q", "q", "so\n#### 4", "4")
    assert read_as(known, "so\n#### 4") == "  read as: answer 4, right"
    assert read_as(known, "so\n#### 5").endswith("wrong (gold 4)")


def test_mistakes_are_one_line_and_nothing_is_written(tmp_path, capsys):
    root = ["--outputs_root", str(tmp_path)]
    assert ask_command(STAGE, ["--ask", *root]) == 2
    assert ask_command(STAGE, ["--ask", "1 + 1 ?", *root]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "no such checkpoint" in lines[1] and list(tmp_path.iterdir()) == []


def test_a_policy_answers(tmp_path, tiny_models, capsys):
    model = str(tiny_models("llama"))
    argv = ["--ask", "1 + 1 ?", "--policy_ckpt", model, "--max_new_tokens", "4", *GSM8K]
    assert ask_command(STAGE, [*argv, "--outputs_root", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("llama") and "read as:" in out and list(tmp_path.iterdir()) == []
