"""Results of evaluations made elsewhere: read as they are, compared by the same tests, refused in a line."""

import json

import pytest

from tests.support.finished_runs import write_methods
from tests.support.scripts import execute_stage
from utils.comparison.evaluations import files_of_others
from utils.comparison.results_of_others import read_results
from utils.frame.files import UserError, read_csv
from utils.statistics.accuracy_tests import mcnemar


def harness_line(number, right, **changes):
    """A line of lm-evaluation-harness's samples of gsm8k."""
    row = {
        "doc_id": number,
        "doc": {"question": f"question {number}?", "answer": f"so\n#### {number}"},
        "target": f"so\n#### {number}",
        "arguments": {"gen_args_0": {"arg_0": "Question: …", "arg_1": {"until": ["Question:"]}}},
        "resps": [[f" It is #### {number}"]],
        "filtered_resps": [str(number)],
        "filter": "strict-match",
        "metrics": ["exact_match"],
        "doc_hash": "d",
        "prompt_hash": "p",
        "target_hash": "t",
        "exact_match": float(right),
    }
    return row | changes


def inspect_sample(number, value, **changes):
    """A sample in a log of Inspect."""
    scores = {"match": {"value": value, "answer": "3", "explanation": "…"}} if value else {}
    sample = {
        "id": number,
        "epoch": 1,
        "input": f"question {number}?",
        "target": "3",
        "messages": [],
        "output": {"model": "m", "completion": "ANSWER: 3"},
        "scores": scores,
    }
    return sample | changes


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_log(path, samples, task="gsm8k"):
    log = {"version": 2, "status": "success", "eval": {"task": task, "model": "m"}, "samples": samples}
    path.write_text(json.dumps(log))
    return path


def refused(path, metric=""):
    with pytest.raises(UserError) as error:
        read_results(path, metric)
    assert "\n" not in str(error.value) and path.name in str(error.value)
    return str(error.value)


# --------------------------------------------------------------------------------------------- forms


def test_samples_of_the_harness(tmp_path):
    path = tmp_path / "samples_gsm8k_2026-01-02T03-04-05.678.jsonl"
    task, rows = read_results(write_lines(path, [harness_line(n, n % 2) for n in range(3)]))
    assert task == "gsm8k"
    assert [(row["id"], row["correct"]) for row in rows] == [("0", False), ("1", True), ("2", False)]
    assert (rows[2]["question"], rows[2]["gold"]) == ("question 2?", "so\n#### 2")
    assert rows[2]["response"] == " It is #### 2"


def test_of_several_filters_one_is_chosen(tmp_path):
    lines = [
        harness_line(number, right, filter=name)
        for name, right in (("strict-match", 0), ("flexible-extract", 1))
        for number in range(2)
    ]
    path = write_lines(tmp_path / "samples_gsm8k.jsonl", lines)
    assert "--results_metric exact_match,strict-match or exact_match,flexible-extract" in refused(path)
    _, strict = read_results(path, "exact_match,strict-match")
    _, flexible = read_results(path, "exact_match,flexible-extract")
    assert [row["correct"] for row in strict + flexible] == [False, False, True, True]
    assert "no filter 'loose', but strict-match, flexible-extract" in refused(path, "exact_match,loose")


def test_of_several_metrics_one_is_chosen(tmp_path):
    line = harness_line(0, 1, filter="none", metrics=["acc", "acc_norm"], acc=1.0, acc_norm=0.0)
    path = write_lines(tmp_path / "samples_arc.jsonl", [line])
    assert "need one metric, found acc, acc_norm" in refused(path)
    assert read_results(path, "acc_norm")[1][0]["correct"] is False
    assert "no metric 'f1', but acc, acc_norm" in refused(path, "f1")
    old = {key: value for key, value in harness_line(0, 1).items() if key not in ("metrics", "filter")}
    assert read_results(write_lines(tmp_path / "old.jsonl", [old]))[1][0]["correct"] is True


def test_logs_of_inspect(tmp_path):
    samples = [
        inspect_sample(1, "C"),
        inspect_sample("two", "I"),
        inspect_sample(3, ""),
        inspect_sample(4, 1),
    ]
    task, rows = read_results(write_log(tmp_path / "log.json", samples))
    assert task == "gsm8k"
    assert [(row["id"], row["correct"]) for row in rows] == [
        ("1", True),
        ("two", False),
        ("3", False),
        ("4", True),
    ]
    assert (rows[0]["gold"], rows[0]["question"], rows[0]["response"]) == ("3", "question 1?", "ANSWER: 3")


def test_of_several_scorers_one_is_chosen(tmp_path):
    sample = inspect_sample(1, "C")
    sample["scores"]["model_graded"] = {"value": "I"}
    path = write_log(tmp_path / "log.json", [sample])
    assert "--results_metric match or model_graded" in refused(path)
    assert read_results(path, "model_graded")[1][0]["correct"] is False
    assert "no score 'f1', but match, model_graded" in refused(path, "f1")


def test_tables(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("\ufeffid,correct,report,level,gold\na,1,A/1,2,3\nb,False,A/1,,\n", encoding="utf-8")
    _, rows = read_results(path)
    assert [(row["id"], row["correct"], row["report"], row["level"], row["gold"]) for row in rows] == [
        ("a", True, "A/1", 2, "3"),
        ("b", False, "A/1", None, ""),
    ]
    lines = write_lines(tmp_path / "mine.jsonl", [{"id": 7, "correct": True}, {"id": 8, "correct": 0}])
    assert [(row["id"], row["correct"]) for row in read_results(lines)[1]] == [("7", True), ("8", False)]


@pytest.mark.parametrize(
    "name,text,message",
    [
        ("a.csv", "id,correct\n1,maybe\n", "a.csv:2: 'correct' is 'maybe', neither right (1, true, C) nor"),
        (
            "a.csv",
            "id,right\n1,1\n",
            "a.csv:2: an item needs id and correct; 'correct' is missing (there is id,",
        ),
        ("a.csv", "id,correct\n1,1\n1,0\n", "item '1' is there twice"),
        ("a.csv", "id,correct\n", "no items"),
        ("a.csv", "id,correct,level\n1,1,high\n", "'level' must be a whole number"),
        ("a.csv", b"id,correct\n\xff,1\n", "not a CSV file in UTF-8"),
        ("a.jsonl", "[1]\n", "a.jsonl:1: expected an object, found list"),
        ("a.jsonl", '{"doc_id": 1, "exact_match": 0.5}\n', "'exact_match' is '0.5', neither right"),
        ("a.json", "{}", "not a log of Inspect"),
        ("a.json", json.dumps({"eval": {}, "samples": [inspect_sample(1, "P")]}), "'score' is 'P', neither"),
        ("a.json", json.dumps({"eval": {}, "samples": [inspect_sample(1, "C", epoch=2)]}), "is of epoch 2"),
        ("a.eval", "PK", "found .eval (inspect log convert --to json makes one of it)"),
        ("a.txt", "", "results are a CSV, JSONL or JSON file, found .txt"),
    ],
)
def test_what_cannot_be_compared_is_one_line(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert message in refused(path)


def test_names_of_files(tmp_path):
    for name in ("a.csv", "b c.csv"):
        (tmp_path / name).write_text("id,correct\n1,1\n")
    a, b = (str(tmp_path / name) for name in ("a.csv", "b c.csv"))
    assert list(files_of_others([a, f"grpo={b}"])) == ["a", "grpo"]
    for entries, message in (
        ([b], 'b c" is no name for a policy'),
        ([a, f"a={b}"], "names 'a' twice"),
        (["x=none.csv"], "there is no file none.csv"),
        ([f"../x={a}"], '"../x" is no name'),
    ):
        with pytest.raises(UserError, match="^--results") as error:
            files_of_others(entries)
        assert message in str(error.value)


# ----------------------------------------------------------------------------------------- comparison


def compare(outputs, *more):
    """The folder that 11 leaves, or its exit code where it fails."""
    code = execute_stage("11_compare_runs.py", ["--outputs_root", str(outputs), "--run_id", "c", *more])
    return outputs / "c" / "11_comparison" if code == 0 else code


def test_results_of_others_are_compared_by_the_same_tests(tmp_path):
    right = {"old": [n % 2 for n in range(40)], "new": [n % 2 or n < 20 for n in range(40)]}
    for name, of in right.items():
        write_lines(tmp_path / f"{name}.jsonl", [harness_line(n, of[n]) for n in range(40)])
    entries = f"{tmp_path}/old.jsonl,grpo={tmp_path}/new.jsonl"
    out = compare(tmp_path / "outputs", "--results", entries)
    [pair] = read_csv(out / "pairs.csv")
    test = mcnemar(*([bool(value) for value in of] for of in right.values()))
    assert (pair["a"], pair["b"], pair["n"], pair["fixed"]) == ("old", "grpo", "40", "10")
    assert float(pair["p"]) == test.p_value
    text = (out / "report.md").read_text()
    assert text.startswith("# Comparison\n") and "**grpo** answers more items correctly than **old**" in text
    summary = {row["policy"]: row["correct"] for row in read_csv(out / "summary.csv")}
    assert summary == {"old": "20", "grpo": "30"}
    assert "It is #### 3" not in text and (out / "report.html").is_file()


def test_they_stand_beside_evaluations_of_ones_own(tmp_path, capsys):
    write_methods(tmp_path / "c", 0, policies=("sft",))
    lines = "id,correct\n" + "".join(f"{n},{int(n < 50)}\n" for n in range(60))
    (tmp_path / "theirs.csv").write_text(lines)
    out = compare(tmp_path, "--policies", "sft", "--results", f"{tmp_path}/theirs.csv")
    [pair] = read_csv(out / "pairs.csv")
    assert (pair["a"], pair["b"], pair["n"], pair["fixed"]) == ("sft", "theirs", "60", "30")
    assert (out / "report.md").read_text().startswith("# Comparison on sample, test split")
    (tmp_path / "theirs.csv").write_text("id,correct\nother,1\n")
    for argv, message in (
        (["--policies", "sft"], "none of its items is one of 'sft' (such as 'test-0')"),
        (["--by_seed"], "--by_seed compares runs, which have a seed: leave out --results"),
    ):
        assert compare(tmp_path, *argv, "--results", f"{tmp_path}/theirs.csv", "--overwrite") == 2
        assert message in capsys.readouterr().err
    twice = f"sft={tmp_path}/theirs.csv"
    assert compare(tmp_path, "--policies", "sft", "--results", twice, "--overwrite") == 2
    assert "there is another policy 'sft'" in capsys.readouterr().err


def test_reports_in_a_table_make_clusters(tmp_path):
    for name, share in (("a", 10), ("b", 30)):
        rows = "".join(f"{n},{int(n < share)},page {n // 4}\n" for n in range(40))
        (tmp_path / f"{name}.csv").write_text("id,correct,report\n" + rows)
    out = compare(tmp_path / "outputs", "--results", f"{tmp_path}/a.csv,{tmp_path}/b.csv")
    [pair] = read_csv(out / "pairs.csv")
    assert pair["reports"] == "10" and float(pair["p"]) > float(pair["p_plain"])
