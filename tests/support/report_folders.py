"""Evaluation folders made up from a seed, with every file and key that the HTML report reads."""

import json
from pathlib import Path

import numpy as np

from tests.support.comparisons import comparison_of
from utils.comparison.experiment_facts import ExperimentFacts
from utils.comparison.page.page import write_page
from utils.comparison.paired import load_result
from utils.comparison.report import summary_table
from utils.comparison.topics import accuracy
from utils.documents.document import Bullets, Document, Finding, Line, Section
from utils.evaluation.policy_names import evaluation_files
from utils.frame.files import write_csv, write_json, write_jsonl

POLICIES = ("sft", "ppo", "grpo")
REASONS = ("operand_order", "wrong_operand", "cut_off")
WORDS = ["revenue", "cash", "debt", "in", "2018", "31", "98", ",", "and", "the", "change", "(", "is"]
MEASURES = ("log_prob", "intrinsic", "kl_teacher", "kl_reference", "log_ratio")
EOS = "<|im_end|>"
COLUMNS = ["id", "correct", "level", "type", "failure_reason", "failure_detail", "value", "gold", "tokens"]


def make_run(
    run: Path, items=60, policies=POLICIES, tokens=12, seed=0, edit=None, bare=False, prompt_words=40
) -> dict[str, Path]:
    """Write a run's evaluations and test records; returns policy -> its folder.

    Args:
        tokens: of an answer, its end of sequence included.
        edit: (policy, row of predictions.jsonl, row of tokens.jsonl) -> None, changes an answer in place.
        bare: leave out what early evaluations lacked: rewards, reasoning, samples, token values, records.
        prompt_words: of a prompt.
    """
    rng = np.random.default_rng(seed)
    records = [
        {
            "id": f"test-{i}",
            "question": f"what was the {WORDS[i % 3]} of item number {i} ?",
            "input_text": "report: " + " ".join(rng.choice(WORDS, prompt_words)),
            "target_text": f'{{"program": "add({i}, 1)"}}',
            "level": int(1 + i % 4),
            "type": ("sum", "ratio")[i % 2],
        }
        for i in range(items)
    ]
    if not bare:
        write_jsonl(run / "01_preprocessing" / "test.jsonl", records)
    folders = {}
    for place, policy in enumerate(policies):
        rows, values = [], []
        for i, record in enumerate(records):
            row, of_tokens = _answer(record, i, bool(rng.random() < 0.5 + 0.08 * place), tokens, policy, rng)
            if edit:
                edit(policy, row, of_tokens)
            rows.append(row)
            values.append(of_tokens)
        folders[policy] = run / "10_evaluation" / policy
        _write(folders[policy], policy, rows, values, bare, run)
    return folders


def _answer(record, i, right, length, policy, rng):
    pieces = [" " + word for word in rng.choice(WORDS, length - 1)] + [EOS]
    pieces[length // 2] = "\n"
    scale = {"log_prob": -0.4, "intrinsic": 1.0, "kl_teacher": 0.5, "kl_reference": 0.2, "log_ratio": 0.3}
    values = {}
    for name in MEASURES:
        drawn = rng.standard_normal(length) ** 3
        drawn = drawn if name in ("intrinsic", "log_ratio") else np.abs(drawn)
        values[name] = [round(float(v), 4) for v in scale[name] * drawn]
    values["intrinsic"][-1] = None
    if policy == "ppo":
        values["advantage"] = [round(float(v), 4) for v in rng.standard_normal(length)]
    exact = float(right)
    row = {
        "id": record["id"],
        "question": record["question"],
        "response": "".join(pieces[:-1]),
        "program": f"add({i}, 1)" if right else f"add(1, {i})",
        "value": str(i + 1 if right else i),
        "correct": right,
        "gold": str(i + 1),
        "gold_program": f"add({i}, 1)",
        "level": record["level"],
        "type": record["type"],
        "measures": {"execution_accuracy": right, "tolerant_accuracy": True},
        "format_valid": True,
        "failure_reason": "" if right else str(rng.choice(REASONS)),
        "failure_detail": "",
        "tokens": length,
        "truncated": False,
        "rewards": {"exact_match": exact, "format": 0.0, "intrinsic": -1.234, "total": exact - 0.1},
        "reasoning": {"step_coverage": 0.5, "final_answer_support": None},
        "samples": [
            {"response": f"sample {k}", "value": str(k), "correct": k == 1, "tokens": 3, "truncated": False}
            for k in range(2)
        ],
    }
    return row, {"id": record["id"], "tokens": pieces, "values": values}


def _write(folder, policy, rows, values, bare, run):
    right, n = sum(row["correct"] for row in rows), len(rows)
    reasons = [row["failure_reason"] for row in rows if row["failure_reason"]]
    write_json(
        folder / "metrics.json",
        {
            "dataset": "sample",
            "split": "test",
            "n": n,
            "accuracy": {"value": right / n, "ci95": [right / n - 0.01, right / n + 0.01], "n": n},
            "missing": {"count": 0, "ids": []},
            "failure_reasons": {reason: reasons.count(reason) for reason in sorted(set(reasons))},
            "response_tokens": {"mean": 12.0},
        },
    )
    cells = [{key: row[key] for key in COLUMNS} | {"correct": int(row["correct"])} for row in rows]
    write_csv(folder / "breakdown.csv", cells, COLUMNS)
    inputs = {} if bare else {"01_preprocessing/test.jsonl": {"sha256": "0" * 64}}
    environment = {"git_commit": "c" * 40, "git_dirty": False, "python": "3.11", "packages": {"torch": "2"}}
    write_json(
        folder / "manifest.json",
        {"seed": 0, "config": {"options": {"policy": policy}}, "inputs": inputs, "outputs": {}}
        | {"environment": environment},
    )
    if bare:
        for row in rows:
            for key in ("rewards", "reasoning", "samples"):
                row.pop(key)
    (folder / "samples").mkdir(exist_ok=True)
    # As json.dumps writes it by default, so that a lone surrogate gets into the file.
    (folder / "samples" / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if not bare:
        text = "".join(json.dumps(row) + "\n" for row in values)
        (folder / "samples" / "tokens.jsonl").write_text(text)


FACTS = ExperimentFacts({"model": "student (0.96 million parameters)"}, ["quick test: too small"])


def make_page(folders: dict[str, Path], path: Path, *sections: Section, claim: Line = "ppo leads") -> Path:
    """Compare the evaluations of one run and write the page, with a finding and these sections."""
    results = [load_result(name, *evaluation_files(folder)) for name, folder in folders.items()]
    each = {result.name: [result] for result in results}
    comparison = comparison_of(each, folders={name: [folder] for name, folder in folders.items()})
    report = Document("Comparison", [Bullets([Finding(claim, "by a lot.")])], sections)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_page(path, report, comparison, FACTS, summary_table({"accuracy": accuracy.topic(comparison)}))
    return path
