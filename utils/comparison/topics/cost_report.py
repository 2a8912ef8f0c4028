"""What the report says of cost: one budget or not, counts, and what their figures show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from utils.comparison.lineage import Trained
from utils.comparison.topics.cost import COUNTS, Costs
from utils.comparison.topics.curves import Curve
from utils.documents.text import listed, markdown_table

Policies = Mapping[str, Sequence[Trained]]
CURVES, EFFICIENCY, TIMING = "curves.png", "efficiency.png", "timing.md"


def cost_section(
    trained: Policies,
    costs: Costs,
    items: Mapping[str, Sequence[str]],
    curves: Sequence[Curve],
    left_out: Mapping[str, str],
    figures: Sequence[str],
) -> str:
    """The report's sections on cost and on training.

    Args:
        trained, costs: name -> one per run.
        items: name -> ids of the test items that its accuracy is of.
        curves, left_out: of ``read_curves``.
        figures: which of CURVES and EFFICIENCY were drawn.
    """
    parts = [
        "## What it cost",
        f"{_budget(trained, costs)} {_items(items)}".strip(),
        _cost_table(trained, costs),
        _cost_note(trained, costs),
        "Seconds, which alone differ between two executions of the same work, stand apart in "
        f"[{TIMING}]({TIMING}), outside the manifest.",
    ]
    if EFFICIENCY in figures:
        parts += [f"![Accuracy against tokens]({EFFICIENCY})", _efficiency_note()]
    parts += ["## Training", _training_note(curves, left_out)]
    if CURVES in figures:
        parts.insert(-1, f"![Validation against sampled completions]({CURVES})")
    return "\n\n".join(part for part in parts if part)


def _budget(trained: Policies, costs: Costs) -> str:
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
        return but.strip() or "No method that is compared samples completions to learn from."
    if len(sampled) == 1:
        name, counts = next(iter(sampled.items()))
        return f"Of the methods that are compared, {name} samples completions: {_by_run(counts)}.{but}"
    if len({count for counts in sampled.values() for count in counts}) == 1:
        count = next(iter(sampled.values()))[0]
        seeds = " with every seed" if max(map(len, sampled.values())) > 1 else ""
        return f"**One budget**: {listed(list(sampled))} sampled {count:,} completions each{seeds}.{but}"
    different = "; ".join(f"{name} {_by_run(counts)}" for name, counts in sampled.items())
    return f"**Not one budget**: the methods sampled different numbers of completions ({different}).{but}"


def _items(items: Mapping[str, Sequence[str]]) -> str:
    if len(items) < 2:
        return ""
    sets = {frozenset(ids) for ids in items.values()}
    if len(sets) == 1:
        return f"All {len(items)} policies answered the same {len(sets.pop()):,} test items."
    counts = "; ".join(f"{name} {len(ids):,}" for name, ids in items.items())
    return f"**Not the same test items**: the policies answered different ones ({counts})."


def _cost_table(trained: Policies, costs: Costs) -> str:
    rows = []
    for name, of_policy in costs.items():
        stages = list(dict.fromkeys(stage for each in trained[name] for stage in each.stages))
        cells = [_cell([getattr(cost, count) for cost in of_policy]) for count in COUNTS]
        rows.append([name, " + ".join(stages) or "–", *cells])
    return markdown_table(["method", "stages", *(count.replace("_", " ") for count in COUNTS)], rows)


def _cell(counts: Sequence[int | None]) -> str:
    """One count for all runs, or their mean and each; a dash where any is not known."""
    if None in counts:
        return "–"
    if len(set(counts)) == 1:
        return f"{counts[0]:,}"
    return f"{sum(counts) / len(counts):,.0f} ({_by_run(counts)})"


def _by_run(counts: Sequence[int | None]) -> str:
    return " / ".join(f"{count:,}" for count in (counts if len(set(counts)) > 1 else counts[:1]))


def _cost_note(trained: Policies, costs: Costs) -> str:
    lines = [
        "A method's row counts the stages after SFT that it rests on; SFT's row is its own training, which "
        "the methods that start from it have behind them as well. Completions are those sampled to learn "
        "from, not those of validation; trained tokens are completion tokens that went through a gradient, "
        "each pass counted."
    ]
    if any(len(of_policy) > 1 for of_policy in costs.values()):
        lines[0] += " Where seeds differ: mean (each seed's)."
    problems: dict[str, list[str]] = {}
    for name, of_policy in costs.items():
        for problem in dict.fromkeys(cost.problem for cost in of_policy if cost.problem):
            problems.setdefault(problem, []).append(name)
    part = [name for name, of_policy in trained.items() if of_policy[0].checkpoint.startswith("step_")]
    if part:
        lines.append(f"Of {listed(part)}, one checkpoint of a training, the whole training is counted.")
    alone = [
        name
        for name, (first, *_) in trained.items()
        if first.training and not (first.is_sft or first.after_sft)
    ]
    if alone:
        lines.append(f"Training of {listed(alone)} started from the base model, with no SFT behind it.")
    lines += [f"No counts (–) for {listed(names)}: {problem}." for problem, names in problems.items()]
    return " ".join(lines)


def _efficiency_note() -> str:
    return (
        "Test accuracy with its 95 % interval against the tokens that a method took after SFT, which itself "
        "stands at 0. Up and to the left is better. Markers that would lie on each other stand side by side."
    )


def _training_note(curves: Sequence[Curve], left_out: Mapping[str, str]) -> str:
    """What the figure of the curves shows, and which policies are not in it."""
    lines = []
    kinds = {
        kind: [curve.policy for curve in curves if curve.kind == kind] for kind in ("line", "bar", "level")
    }
    if kinds["line"] or kinds["bar"]:
        runs = max(len(curve.by_run) for curve in curves)
        lines.append(
            "Greedy answers to validation items during training; the reward is the task's verified reward, "
            "whatever a method is trained on."
        )
        if runs > 1:
            lines.append(f"Mean over {runs} seeds; a band reaches from the lowest seed to the highest.")
        if kinds["bar"]:
            lines.append(
                f"{listed(kinds['bar'])} had all completions sampled before training: the marker is its last "
                "validation, the bar reaches from the lowest to the highest of its training"
                f"{', over all seeds' if runs > 1 else ''}."
            )
        partly = [curve.policy for curve in curves if curve.kind == "line" and not curve.complete]
        if partly:
            lines.append(f"Of {listed(partly)}, validations that not every seed has are not drawn.")
        if kinds["level"]:
            lines.append(f"Dashed: {listed(kinds['level'])}, best checkpoint.")
    lines += [f"Not shown: {name}, {reason}." for name, reason in left_out.items()]
    return " ".join(lines)
