"""Every checkpoint of a folder evaluated: a folder for each, a table and a curve over the steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.data.prompts import template_facts
from utils.documents.figures import PALETTE, drawing
from utils.evaluation.metrics import headline
from utils.evaluation.policy import Questions, evaluate_policy
from utils.evaluation.policy_names import METRICS, Checkpoint
from utils.frame.files import read_json, sha256_of, write_csv
from utils.frame.manifest import RESUME
from utils.frame.processes import from_main, is_main_process
from utils.frame.stage import StageContext
from utils.models.loading import load_tokenizer
from utils.training.resume_points import bring_back, keep


def evaluate_checkpoints(
    ctx: StageContext, questions: Questions, policy: str, checkpoints: Sequence[Checkpoint]
) -> dict[str, Any]:
    """Evaluate each checkpoint into ``ctx.out/<name>``; write checkpoints.csv and checkpoints.png above.

    Checkpoints of equal content ("best" is a copy of a step) are evaluated once, in the folder of the first.
    Those that a stopped evaluation has finished are not evaluated again, as long as their files are whole.
    Returns the manifest's headline numbers, "<checkpoint>/<name>" -> value; {} in all processes but the
    first, which is the one that writes.
    """
    first: dict[str, str] = {}
    folder_of = {each.name: first.setdefault(sha256_of(each.path), each.name) for each in checkpoints}
    found: dict[str, dict[str, Any]] = {}
    runtime = {}
    for number, each in enumerate(checkpoints, start=1):
        if folder_of[each.name] != each.name:
            continue
        out, finished = ctx.out / each.name, ctx.out / RESUME / each.name
        if from_main(is_main_process() and bring_back(finished, out, ctx.warn)):
            ctx.metrics |= template_facts(load_tokenizer(each.path, ctx.config.model.model))
        else:
            ctx.log(f"checkpoint {number} of {len(checkpoints)}")
            evaluate_policy(ctx, questions, f"{policy}/{each.name}", each.path, out)
            runtime[each.name] = dict(ctx.runtime)
            ctx.runtime.clear()
            if is_main_process():
                keep(out, finished)
        if is_main_process():
            # As it stands in the file, whichever session wrote it: its keys' order is that of the table.
            found[each.name] = read_json(out / METRICS)
    if not is_main_process():
        return {}
    ctx.runtime["checkpoints"] = runtime
    rows = [_row(each, folder_of[each.name], found[folder_of[each.name]]) for each in checkpoints]
    # Every row's keys: where nothing of one is generated it lacks the rates of what was.
    write_csv(ctx.out / "checkpoints.csv", rows, list(dict.fromkeys(name for row in rows for name in row)))
    plot_checkpoints(rows, ctx.out / "checkpoints.png")
    for row in rows:
        same = f", the same weights as {row['folder']}" if row["folder"] != row["checkpoint"] else ""
        ctx.log(
            f"  {row['checkpoint']:<12} accuracy {100 * row['accuracy']:5.1f} % "
            f"({100 * row['accuracy_low']:.1f} to {100 * row['accuracy_high']:.1f}, n = {row['n']}){same}"
        )
    return {
        f"{name}/{key}": value for name, metrics in found.items() for key, value in headline(metrics).items()
    }


def _row(checkpoint: Checkpoint, folder: str, metrics: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint's row of checkpoints.csv: every rate with its interval, then those of samples."""
    row = {
        "checkpoint": checkpoint.name,
        "step": "" if checkpoint.step is None else checkpoint.step,
        "folder": folder,
        "n": metrics["n"],
        "mean_tokens": (metrics["response_tokens"] or {}).get("mean", ""),
    }
    rates = {"accuracy": metrics["accuracy"]}
    rates |= {name: value for name, value in metrics.items() if isinstance(value, dict) and "ci95" in value}
    for kind in ("pass_at", "majority_at"):
        rates |= {f"{kind}_{k}": rate for k, rate in metrics.get("samples", {}).get(f"{kind}_k", {}).items()}
    for name, rate in rates.items():
        row |= {name: rate["value"], f"{name}_low": rate["ci95"][0], f"{name}_high": rate["ci95"][1]}
    return row


def plot_checkpoints(rows: Sequence[dict[str, Any]], path: str | Path) -> None:
    """Accuracy over steps with a band of Wilson 95 % intervals; a dashed line where there is no step.

    Equal numbers give equal bytes.
    """
    curve = [row for row in rows if row["step"] != ""]
    others = [row for row in rows if row["step"] == "" and row["folder"] == row["checkpoint"]]
    with drawing(path, (6.5, 4), (1,)) as (_, (axis,)):
        if curve:
            steps = [row["step"] for row in curve]
            low, middle, high = (
                [100 * row[f"accuracy{end}"] for row in curve] for end in ("_low", "", "_high")
            )
            axis.fill_between(steps, low, high, color=PALETTE[4], alpha=0.2, linewidth=0)
            axis.plot(steps, middle, color=PALETTE[4], marker="o", label="accuracy, Wilson 95 %")
            for row in curve:
                copies = (each for each in rows if each["step"] == "" and each["folder"] == row["checkpoint"])
                same, place = (each["checkpoint"] for each in copies), (row["step"], 100 * row["accuracy"])
                axis.annotate(", ".join(same), place, xytext=(0, 8), textcoords="offset points", ha="center")
        for number, row in enumerate(others):
            colour = PALETTE[(5 + number) % len(PALETTE)]
            axis.axhline(100 * row["accuracy"], color=colour, linestyle="--", label=row["checkpoint"])
        axis.set_xlabel("optimizer step")
        axis.set_ylabel("accuracy, %")
        axis.set_title(f"{len({row['folder'] for row in rows})} checkpoints, {rows[0]['n']} items each")
        axis.grid(axis="y")
        axis.legend(frameon=False)
