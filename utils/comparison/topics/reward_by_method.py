"""What each policy's greedy answers are worth under the run's reward specification, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from utils.comparison.estimates import Estimate
from utils.comparison.topic import Comparison, Topic
from utils.comparison.topics.measures import TOTAL, measures_of
from utils.documents.document import Figure, Section
from utils.documents.figures import drawing

REWARDS = "plots/reward_vs_method.png"


def topic(comparison: Comparison) -> Topic:
    """The mean total reward of each policy, with its interval; nothing where fewer than two have one."""
    found = measures_of(comparison.results).get("rewards", {})
    totals = {name: of[TOTAL] for name, of in found.items() if TOTAL in of}
    if len(totals) < 2:
        return Topic()
    section = Section("Reward by method", [Figure(REWARDS, "Mean total reward of each policy")])
    return Topic([section], files={REWARDS: partial(plot_rewards, comparison, totals)})


def plot_rewards(comparison: Comparison, totals: Mapping[str, Estimate], path: Path) -> None:
    """A bar for each policy: its mean total reward, with a 95 % interval."""
    with drawing(path, (max(4.0, 1.1 * len(totals)), 4.2), (1,)) as (_, (axis,)):
        for place, (name, total) in enumerate(totals.items()):
            whiskers = {"yerr": total.whiskers(), "capsize": 3}
            axis.bar(place, total.value, color=comparison.styles[name].colour, **whiskers)
        axis.set_xticks(range(len(totals)), list(totals), rotation=20)
        axis.axhline(0, color="#444444", linewidth=0.8)
        axis.set(ylabel="mean total reward, 95 % interval", title="Reward of greedy answers")
        axis.grid(axis="y")
