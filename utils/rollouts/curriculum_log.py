"""What a curriculum did in a training: numbers for the manifest, and a figure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.curricula.bandit import in_order
from utils.documents.figures import drawing
from utils.frame.files import read_jsonl
from utils.frame.stage import StageContext

LOG_FILE = "curriculum.jsonl"


def report_curriculum(ctx: StageContext) -> None:
    """Of a training that has ended: ``logs/curriculum.png``, and the numbers for the stage's manifest."""
    rows = read_jsonl(ctx.out / "logs" / LOG_FILE)
    ctx.metrics["curriculum"] |= summary(rows)
    plot_curriculum(rows, ctx.out / "logs" / "curriculum.png")


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of the rows of ``logs/curriculum.jsonl``: prompts drawn in all, different ones, and by arm."""
    by_arm: Counter[str] = Counter()
    for row in rows:
        by_arm.update({arm: numbers["count"] for arm, numbers in row["arms"].items()})
    ids = [name for row in rows for name in row["ids"]]
    return {"prompts": len(ids), "distinct_prompts": len(set(ids)), "prompts_by_arm": dict(by_arm)}


def plot_curriculum(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """A PNG over rollouts: what share of the prompts each arm has (sec: and its probability and Q), and the
    size of the pool.
    """
    arms = in_order(rows[0]["arms"])
    rollouts = [row["rollout"] for row in rows]
    bandit = "q" in rows[0]["arms"][arms[0]]

    def series(key: str, arm: str) -> list[float]:
        return [row["arms"][arm][key] for row in rows]

    drawn = np.array([series("count", arm) for arm in arms])
    with drawing(path, (13, 3.4), (1, 1, 1)) as (_, axes):
        axes[0].stackplot(rollouts, drawn / drawn.sum(0), labels=arms)
        axes[0].set(title="share of the prompts drawn", ylim=(0, 1))
        key, title = (
            ("probability", "probability of an arm") if bandit else ("available", "prompts in the pool")
        )
        for arm in arms:
            axes[1].plot(rollouts, series(key, arm))
        axes[1].set_title(title)
        axes[1].set_ylim(bottom=0)
        if bandit:
            for arm in arms:
                axes[2].plot(rollouts, series("q", arm))
            axes[2].set_title("Q of an arm")
        else:
            axes[2].plot(rollouts, [row["pool"] for row in rows])
            axes[2].set_title("size of the pool (prompts)")
            axes[2].set_ylim(bottom=0)
        for axis in axes:
            axis.set_xlabel("rollout")
            axis.grid()
        if len(arms) <= 12:
            axes[0].legend(fontsize=7, loc="lower left", title="arm", title_fontsize=7)
