"""README.md of a run: its goal, configuration and results, and how to continue; once edited, left alone."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from utils.driver.graph import ComparisonNode, Node
from utils.frame.credentials import redact
from utils.frame.files import read_csv, write_text
from utils.frame.pipeline import METHODS, ROWS

README = "README.md"
NO_GOAL = "(none noted: `--note` says it)"
_SIGNED = "<!-- written by 12_driver.py, which leaves it alone once it is edited: {} -->"
_MARK = re.compile("\n" + _SIGNED.format(r"(\w+)") + "\n\\Z")
_GOAL = re.compile(r"^Goal: (.*)$", re.MULTILINE)
# What differs between two executions of the same work.
_LEFT_OUT = ("--outputs_root", "--jobs", "--note")
_SWITCHES_LEFT_OUT = ("--compare_only",)


def write_readmes(
    nodes: Sequence[Node], run_dirs: dict[str, Path], note: str | None, argv: Sequence[str]
) -> None:
    """Write the README of every run that has begun, unless someone has edited it."""
    for run_id, run_dir in run_dirs.items():
        path = run_dir / README
        before = path.read_text(encoding="utf-8") if path.is_file() else ""
        if not run_dir.is_dir() or (before and not _is_own(before)):
            continue
        goal = _GOAL.search(before)
        goal = note or (goal[1] if goal else NO_GOAL)
        of_run = [node for node in nodes if node.run_id == run_id]
        text = redact(_readme(run_id, run_dir, " ".join(goal.split()), of_run, argv))
        whole = f"{text}\n{_SIGNED.format(_hash(text))}\n"
        if whole != before:
            write_text(path, whole)


def _is_own(text: str) -> bool:
    mark = _MARK.search(text)
    return mark is not None and _hash(text[: mark.start()]) == mark[1]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _readme(run_id: str, run_dir: Path, goal: str, nodes: Sequence[Node], argv: Sequence[str]) -> str:
    comparison = ROWS["compare"].folder
    lines = [f"# {run_id}", "", f"Goal: {goal}", "", "## Configuration", "", *_configuration(nodes), ""]
    lines += ["## Results", "", *(_results(run_dir / comparison / "summary.csv") or ["None yet."])]
    report = f"`{comparison}/report.html` has everything: every answer, figure and test."
    lines += ["", report, "", "## To continue", "", f"    python 12_driver.py {_command(argv)}", ""]
    lines += [
        "The same command again runs what is missing and skips what is up to date. A policy answers a",
        f'question of your own with `python 10_evaluate.py --run_id {run_id} --policy sft --ask "…"`.',
    ]
    return "\n".join(lines)


def _configuration(nodes: Sequence[Node]) -> list[str]:
    """Five lines at most: data, models, reward, what is trained, seed."""
    plans = {node.step.id: node.plan for node in nodes if not isinstance(node, ComparisonNode)}
    trained = [node for node in nodes if node.step.name in METHODS]
    found = []
    if "prepare" in plans:
        dataset = plans["prepare"].config.dataset
        sizes = {name: getattr(dataset, f"max_{name}") for name in ("train", "val", "test")}
        limits = ", ".join(f"{name} at most {size}" for name, size in sizes.items() if size is not None)
        found.append(f"- data: {dataset.label}{f' ({limits})' if limits else ''}")
    if trained:
        model = trained[0].plan.config.model.model
        names = [Path(name).name for name in (model.name_or_path, model.teacher_name_or_path)]
        found.append(f"- policy: {names[0]}, teacher: {names[1]}")
        rewards = {getattr(node.plan.config.options, "reward", "") for node in trained} - {""}
        found += [f"- reward: {', '.join(sorted(rewards))}"] if rewards else []
        found.append(f"- trained: {', '.join(node.plan.name for node in trained)}")
        quick = ", --quick_test: too small for conclusions" if trained[0].plan.config.quick_test else ""
        found.append(f"- seed: {trained[0].plan.config.seed}{quick}")
    return found or ["The runs of several seeds, compared."]


def _results(summary: Path) -> list[str]:
    if not summary.is_file():
        return []
    lines = ["| policy | accuracy | 95 % interval |", "|---|---|---|"]
    for row in read_csv(summary):
        if row["accuracy"]:
            value, low, high = (
                100 * float(row[key]) for key in ("accuracy", "accuracy_low", "accuracy_high")
            )
            lines.append(f"| {row['policy']} | {value:.1f} % | {low:.1f} to {high:.1f} % |")
        else:
            lines.append(f"| {row['policy']} | failed | {row['reason']} |")
    return lines


def _command(argv: Sequence[str]) -> str:
    words, rest = [], list(argv)
    while rest:
        word = rest.pop(0)
        if word in _SWITCHES_LEFT_OUT:
            continue
        if word == "--overwrite":
            while rest and not rest[0].startswith("--"):
                rest.pop(0)
            continue
        if word.partition("=")[0] not in _LEFT_OUT:
            words.append(word)
        elif "=" not in word and rest:
            rest.pop(0)
    return shlex.join(words)
