"""What a curriculum did in a training: numbers for the manifest, and a figure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.curricula.bandit import in_order
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
    size of the pool. The bytes depend on the numbers alone.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    arms = in_order(rows[0]["arms"])
    rollouts = [row["rollout"] for row in rows]

    def series(key: str, arm: str) -> list[float]:
        return [row["arms"][arm][key] for row in rows]

    drawn = [sum(numbers["count"] for numbers in row["arms"].values()) for row in rows]
    shares = {
        arm: [count / total for count, total in zip(series("count", arm), drawn, strict=True)] for arm in arms
    }
    bandit = "q" in rows[0]["arms"][arms[0]]
    figure, axes = pyplot.subplots(1, 3, figsize=(13, 3.4))
    axes[0].stackplot(rollouts, list(shares.values()), labels=arms)
    axes[0].set_title("share of the prompts drawn")
    axes[0].set_ylim(0, 1)
    key, title = ("probability", "probability of an arm") if bandit else ("available", "prompts in the pool")
    for arm in arms:
        axes[1].plot(rollouts, series(key, arm), label=arm)
    axes[1].set_title(title)
    axes[1].set_ylim(bottom=0)
    if bandit:
        for arm in arms:
            axes[2].plot(rollouts, series("q", arm), label=arm)
        axes[2].set_title("Q of an arm")
    else:
        axes[2].plot(rollouts, [row["pool"] for row in rows])
        axes[2].set_title("size of the pool (prompts)")
        axes[2].set_ylim(bottom=0)
    for axis in axes:
        axis.set_xlabel("rollout")
        axis.grid(alpha=0.3)
    if len(arms) <= 12:
        axes[0].legend(fontsize=7, loc="lower left", title="arm", title_fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)
