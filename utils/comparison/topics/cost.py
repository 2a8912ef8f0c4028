"""What methods cost in completions and tokens: counts in the manifests of their stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from utils.comparison.lineage import Trained

COUNTS = ("sampled_completions", "generated_tokens", "trained_tokens")
# Stages that work on what others sampled: they neither generate nor train, and so count nothing.
WITHOUT_COST = ("08_",)


@dataclass(frozen=True)
class Cost:
    """What one policy of one run took, over the stages that it rests on; None where it is not known.

    Attributes:
        sampled_completions: completions sampled to learn from.
        generated_tokens: their tokens.
        trained_tokens: completion tokens that went through a gradient, each pass counted.
        problem: why nothing is known, "" where it is.
    """

    sampled_completions: int | None = None
    generated_tokens: int | None = None
    trained_tokens: int | None = None
    problem: str = ""


Costs = Mapping[str, Sequence[Cost]]


def cost_of(trained: Trained) -> Cost:
    """Sum the counts of a policy's stages (``metrics.cost`` of their manifests)."""
    if not trained.stages:
        return Cost(problem="not trained in its run")
    total = dict.fromkeys(COUNTS, 0)
    for stage, manifest in trained.stages.items():
        counts = manifest.get("metrics", {}).get("cost")
        if counts is None and stage.startswith(WITHOUT_COST):
            continue
        if not isinstance(counts, dict) or not all(_is_count(counts.get(name)) for name in COUNTS):
            return Cost(problem=f"{stage} was run by code that did not count; --overwrite redoes it")
        for name in COUNTS:
            total[name] += counts[name]
    return Cost(**total)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def costs_of(trained: Mapping[str, Sequence[Trained]]) -> dict[str, list[Cost]]:
    """Name -> cost in each run."""
    return {name: [cost_of(each) for each in of_policy] for name, of_policy in trained.items()}


def mean_count(costs: Sequence[Cost], name: str) -> float | None:
    """Mean of one count over the runs, None where any of them does not know it."""
    values = [getattr(cost, name) for cost in costs]
    return None if None in values else fmean(values)


def with_costs(rows: Sequence[dict[str, Any]], columns: Sequence[str], costs: Costs) -> tuple[list, list]:
    """Rows of summary.csv with the counts, means over the runs where there are several; blank if unknown."""
    filled = []
    for row in rows:
        means = {name: mean_count(costs[row["policy"]], name) for name in COUNTS}
        whole = {
            name: int(mean) if mean == int(mean) else mean for name, mean in means.items() if mean is not None
        }
        filled.append(row | dict.fromkeys(COUNTS, "") | whole)
    return filled, [*columns, *COUNTS]


def with_costs_by_run(
    rows: Sequence[dict[str, Any]], columns: Sequence[str], costs: Costs
) -> tuple[list, list]:
    """Rows of by_seed.csv, policy by policy and run by run, with the counts of each; blank if unknown."""
    counts = [
        {name: asdict(cost)[name] for name in COUNTS} for of_policy in costs.values() for cost in of_policy
    ]
    return [row | of_run for row, of_run in zip(rows, counts, strict=True)], [*columns, *COUNTS]
