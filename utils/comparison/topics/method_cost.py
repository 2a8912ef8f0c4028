"""What methods cost in completions and tokens, by the counts in the manifests of their stages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from utils.comparison.estimates import Estimate, mean_known
from utils.comparison.lineage import Trained
from utils.comparison.topic import Comparison, Topic
from utils.documents.document import Figure, Number, Paragraph, Section, Span, Table, strong
from utils.documents.figures import Style, drawing, legend, mark
from utils.documents.text import listed
from utils.frame.pipeline import counts_cost

COUNTS = ("sampled_completions", "generated_tokens", "trained_tokens")
TRIALS = "tuning_trials"
EFFICIENCY, TIMING = "plots/efficiency_vs_quality.png", "timing.md"
WIDTH = 1.16  # of a panel, in the largest cost
SIDE_BY_SIDE = 0.028  # of a panel's width: the least distance of two markers


class MethodCost(NamedTuple):
    """What one policy of one run took, over the stages that it rests on; None where it is not known.

    Completions sampled to learn from, their tokens, completion tokens that went through a gradient (each pass
    counted), and why nothing is known ("" where it is).
    """

    sampled_completions: int | None = None
    generated_tokens: int | None = None
    trained_tokens: int | None = None
    problem: str = ""


Costs = Mapping[str, Sequence[MethodCost]]


def topic(comparison: Comparison) -> Topic:
    """One budget or not, counts, and accuracy against tokens."""
    costs = costs_of(comparison.trained)
    ids = {name: of_runs[0].items.index for name, of_runs in comparison.results.items()}
    sft = [name for name, of_policy in comparison.trained.items() if of_policy[0].is_sft]
    drawn = any(mean_count(costs[name], "trained_tokens") is not None for name in costs if name not in sft)
    return Topic(
        sections=[cost_section(comparison.trained, costs, ids, drawn)],
        columns={
            name: _means(of_policy) | {TRIALS: tuning_trials(comparison.trained[name])}
            for name, of_policy in costs.items()
        },
        by_run={
            name: [dict(zip(COUNTS, cost, strict=False)) for cost in of_policy]
            for name, of_policy in costs.items()
        },
        files={EFFICIENCY: partial(plot_efficiency, comparison, costs, sft)} if drawn else {},
    )


def costs_of(trained: Mapping[str, Sequence[Trained]]) -> dict[str, list[MethodCost]]:
    """Name -> cost in each run."""
    return {name: [cost_of(each) for each in of_policy] for name, of_policy in trained.items()}


def cost_of(trained: Trained) -> MethodCost:
    """Sum the counts of a policy's stages (``metrics.cost`` of their manifests)."""
    if not trained.stages:
        return MethodCost(problem="not trained in its run")
    total = dict.fromkeys(COUNTS, 0)
    for stage, manifest in trained.stages.items():
        counts = manifest.get("metrics", {}).get("cost")
        if counts is None and not counts_cost(stage):
            continue
        if not isinstance(counts, dict) or not all(_is_count(counts.get(name)) for name in COUNTS):
            return MethodCost(problem=f"{stage} was run by code that did not count; --overwrite redoes it")
        for name in COUNTS:
            total[name] += counts[name]
    return MethodCost(**total)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def tuning_trials(of_policy: Sequence[Trained]) -> int | None:
    """How many settings of the method were tried before these, as its configuration says; None where it does
    not, or the runs differ."""
    said = {
        each.stages[each.training].get("config", {}).get("algo", {}).get("tuning", {}).get("trials")
        for each in of_policy
        if each.training
    }
    return said.pop() if len(said) == 1 else None


def mean_count(costs: Sequence[MethodCost], name: str) -> float | None:
    """Mean of one count over the runs, None where any of them does not know it."""
    return mean_known([getattr(cost, name) for cost in costs])


def _means(costs: Sequence[MethodCost]) -> dict[str, float | int | None]:
    """The counts' means over the runs, whole numbers where they are."""
    means = {name: mean_count(costs, name) for name in COUNTS}
    return {name: mean if mean is None or mean % 1 else int(mean) for name, mean in means.items()}


# --------------------------------------------------------------------------------------------- text


def cost_section(
    trained: Mapping[str, Sequence[Trained]], costs: Costs, ids: Mapping[str, Iterable[str]], drawn: bool
) -> Section:
    """The section of the report; ``ids`` are the items that policies answered, ``drawn``: with a figure."""
    seconds = "Seconds, which alone differ between two executions of the same work, stand apart in "
    blocks = [
        Paragraph([*_budget(trained, costs), *_items(ids)]),
        _table(trained, costs),
        Paragraph(_note(trained, costs)),
        Paragraph([seconds, Span("link", TIMING), ", outside the manifest."]),
    ]
    if drawn:
        note = (
            "Test accuracy with its 95 % interval against the tokens that a method took after SFT, which "
            "itself stands at 0. Up and to the left is better. Markers that would lie on each other stand "
            "side by side."
        )
        blocks += [Figure(EFFICIENCY, "Accuracy against tokens"), Paragraph(note)]
    return Section("What it cost", blocks)


def _budget(trained: Mapping[str, Sequence[Trained]], costs: Costs) -> list[str | Span]:
    """Whether the methods that sample had the same number of completions."""
    unknown = [
        name
        for name, of_policy in trained.items()
        if any(cost.problem for cost in costs[name])
        and any(each.stages and not each.is_sft for each in of_policy)
    ]
    sampled = {
        name: [cost.sampled_completions for cost in of_policy]
        for name, of_policy in costs.items()
        if name not in unknown and any(cost.sampled_completions for cost in of_policy)
    }
    but = f" How many {listed(unknown)} sampled is not known." if unknown else ""
    if not sampled:
        return [but.strip() or "No method that is compared samples completions to learn from."]
    if len(sampled) == 1:
        name, counts = next(iter(sampled.items()))
        return [f"Of the methods that are compared, {name} samples completions: {_by_run(counts)}.{but}"]
    if len({count for counts in sampled.values() for count in counts}) == 1:
        count = next(iter(sampled.values()))[0]
        seeds = " with every seed" if max(map(len, sampled.values())) > 1 else ""
        alike = f": {listed(list(sampled))} sampled {count:,} completions each{seeds}.{but}"
        return [strong("One budget"), alike]
    different = "; ".join(f"{name} {_by_run(counts)}" for name, counts in sampled.items())
    said = f": the methods sampled different numbers of completions ({different}).{but}"
    return [strong("Not one budget"), said]


def _items(ids: Mapping[str, Iterable[str]]) -> list[str | Span]:
    """Whether all policies answered the same items, after a space; nothing for a single one."""
    ids = {name: frozenset(of_policy) for name, of_policy in ids.items()}
    if len(ids) < 2:
        return []
    sets = set(ids.values())
    if len(sets) == 1:
        return [f" All {len(ids)} policies answered the same {len(sets.pop()):,} test items."]
    counts = "; ".join(f"{name} {len(of_policy):,}" for name, of_policy in ids.items())
    return [" ", strong("Not the same test items"), f": the policies answered different ones ({counts})."]


def _table(trained: Mapping[str, Sequence[Trained]], costs: Costs) -> Table:
    rows = []
    for name, of_policy in costs.items():
        stages = list(dict.fromkeys(stage for each in trained[name] for stage in each.stages))
        cells = [_cell([getattr(cost, count) for cost in of_policy]) for count in COUNTS]
        trials = tuning_trials(trained[name])
        cells.append(Number("–") if trials is None else Number(f"{trials:,}", trials))
        rows.append([name, " + ".join(stages) or "–", *cells])
    heads = ["method", "stages", *(count.replace("_", " ") for count in COUNTS), "settings tried"]
    return Table(heads, rows)


def _cell(counts: Sequence[int | None]) -> Number:
    """One count for all runs, or their mean and each; a dash where any is not known."""
    if None in counts:
        return Number("–")
    mean = sum(counts) / len(counts)
    return Number(f"{mean:,.0f}" + (f" ({_by_run(counts)})" if len(set(counts)) > 1 else ""), mean)


def _by_run(counts: Sequence[int | None]) -> str:
    return " / ".join(f"{count:,}" for count in (counts if len(set(counts)) > 1 else counts[:1]))


def _note(trained: Mapping[str, Sequence[Trained]], costs: Costs) -> str:
    lines = [
        "A method's row counts the stages after SFT that it rests on; SFT's row is its own training, which "
        "the methods that start from it have behind them as well. Completions are those sampled to learn "
        "from, not those of validation; trained tokens are completion tokens that went through a gradient, "
        "each pass counted. Settings tried: of the method, before these, as its configuration says "
        "(tuning.trials; –: not recorded)."
    ]
    if any(len(of_policy) > 1 for of_policy in costs.values()):
        lines.append("Where seeds differ: mean (each seed's).")
    problems: dict[str, list[str]] = {}
    for name, of_policy in costs.items():
        for problem in dict.fromkeys(cost.problem for cost in of_policy if cost.problem):
            problems.setdefault(problem, []).append(name)
    part = [name for name, of_policy in trained.items() if of_policy[0].checkpoint.startswith("step_")]
    if part:
        lines.append(f"Of {listed(part)}, one checkpoint of a training, the whole training is counted.")
    firsts = {name: first for name, (first, *_) in trained.items() if first.training}
    alone = [name for name, first in firsts.items() if not (first.is_sft or first.after_sft)]
    if alone:
        lines.append(f"Training of {listed(alone)} started from the base model, with no SFT behind it.")
    lines += [f"No counts (–) for {listed(names)}: {problem}." for problem, names in problems.items()]
    return " ".join(lines)


# ------------------------------------------------------------------------------------------- figure


def plot_efficiency(comparison: Comparison, costs: Costs, sft: Sequence[str], path: Path) -> None:
    """Test accuracy against generated and against trained tokens; policies without known cost are left out.

    ``sft`` names those that stand at 0 tokens, because the others start there.
    """
    panels = (("generated_tokens", "generated tokens"), ("trained_tokens", "trained tokens"))
    with drawing(path, (11, 4.6), (1, 1)) as (figure, axes):
        for axis, (key, label) in zip(axes, panels, strict=True):
            means = {name: 0.0 if name in sft else mean_count(costs[name], key) for name in costs}
            means = {name: mean for name, mean in means.items() if mean is not None}
            unit, word = _unit(max(means.values()))
            means = {name: x / unit for name, x in means.items()}
            draw_accuracies(axis, means, comparison.accuracies, comparison.styles)
            axis.set(xlabel=f"{label} after SFT{word}", title=f"Accuracy against {label}")
        legend(figure, *axes[0].get_legend_handles_labels())


def _unit(largest: float) -> tuple[int, str]:
    """What to count tokens in, and how the axis says so."""
    if largest >= 10**7:
        return 10**6, " (millions)"
    return (1000, " (thousands)") if largest >= 10**4 else (1, "")


def draw_accuracies(
    axis, means: Mapping[str, float], accuracies: Mapping[str, Estimate], styles: Mapping[str, Style]
) -> None:
    """One marker with its interval per policy, at its mean cost."""
    for name, x in apart(means).items():
        share = accuracies[name]
        mark(axis, x, 100 * share.value, styles[name], yerr=share.whiskers(100), label=name)
    largest = max(means.values(), default=0.0) or 1.0
    axis.set(xlim=(-0.06 * largest, (WIDTH - 0.06) * largest), ylabel="test accuracy (%), 95 % interval")
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.grid()


def apart(means: Mapping[str, float]) -> dict[str, float]:
    """Where to draw markers: at their means, moved as little as keeps each its distance from the next.

    By the pool-adjacent-violators algorithm: the places of least squared shift, in the order of the means.
    """
    gap = SIDE_BY_SIDE * WIDTH * max(means.values(), default=0.0)
    names = sorted(means, key=lambda name: (means[name], list(means).index(name)))
    pools: list[list[float]] = []
    for position, name in enumerate(names):
        pools.append([means[name] - position * gap])
        while len(pools) > 1 and fmean(pools[-2]) > fmean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    level = [fmean(pool) for pool in pools for _ in pool]
    places = {name: level[position] + position * gap for position, name in enumerate(names)}
    return {name: places[name] for name in means}
