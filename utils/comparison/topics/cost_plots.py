"""Figures of training and cost: validation against completions, accuracy against tokens and seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from utils.comparison.topics.cost import Costs, mean_count
from utils.comparison.topics.curves import Curve, Point
from utils.comparison.topics.timing import PHASES, Times, mean_seconds
from utils.documents.figures import Style, drawing, legend, styles_of

# Light to dark by how much of the method it is; white is what the stages do besides.
SHADES = {"sampling": "#9FB6C3", "scoring": "#5F7F92", "updating": "#22404F", "other": "#FFFFFF"}
WIDTH = 1.16  # of a panel, in the largest cost
SIDE_BY_SIDE = 0.028  # of a panel's width: the least distance of two markers

_WORDS = {"level": " (best checkpoint)", "bar": " (all sampled before; bar: during training)"}

Accuracies = Mapping[str, tuple[float, tuple[float, float]]]


def plot_curves(curves: Sequence[Curve], policies: Sequence[str], path: str | Path) -> None:
    """Validation accuracy and reward against sampled completions; bands from lowest to highest seed.

    ``policies`` are all that the comparison draws elsewhere, so that each has one style.
    """
    styles = styles_of(policies)
    with drawing(path, (11, 4.6), (1, 1)) as (figure, axes):
        panels = (("val_accuracy", 100, "Validation accuracy (%)"), ("val_reward", 1, "Validation reward"))
        for axis, (key, scale, label) in zip(axes, panels, strict=True):
            for curve in sorted(curves, key=lambda curve: curve.kind == "bar"):
                draw_curve(axis, curve, key, scale, styles[curve.policy])
            axis.set_xlabel("sampled completions")
            axis.xaxis.set_major_formatter("{x:,.0f}")
            axis.set_xlim(left=0)
            runs = max(len(curve.by_run) for curve in curves)
            axis.set_title(label + (f", mean and range of {runs} seeds" if runs > 1 else ""))
            axis.grid()
        handles, names = axes[0].get_legend_handles_labels()
        shown = dict(zip(names, handles, strict=True))
        words = {curve.policy: _WORDS.get(curve.kind, "") for curve in curves}
        names = [name for name in policies if name in shown]
        legend(figure, [shown[name] for name in names], [name + words[name] for name in names])


def draw_curve(axis, curve: Curve, key: str, scale: float, style: Style) -> None:
    """Draw one method's validations, labelled with its name; ``key`` is a field of Point, times ``scale``."""

    def value(point: Point) -> float:
        return scale * getattr(point, key)

    line = {"color": style.colour, "label": curve.policy}
    if curve.kind == "level":
        axis.axhline(
            fmean(value(points[0]) for points in curve.by_run), linestyle="--", linewidth=1.5, **line
        )
    elif curve.kind == "bar":
        every = [value(point) for points in curve.by_run for point in points]
        last = fmean(value(points[-1]) for points in curve.by_run)
        x = fmean(points[-1].sampled_completions for points in curve.by_run)
        axis.errorbar(
            x,
            last,
            yerr=[[max(0.0, last - min(every))], [max(0.0, max(every) - last)]],
            fmt=style.marker,
            markersize=10,
            capsize=4,
            linewidth=2,
            **line,
        )
    else:
        shared = curve.shared()
        x = [points[0].sampled_completions for points in shared]
        values = [[value(point) for point in points] for points in shared]
        if len(curve.by_run) > 1:
            axis.fill_between(
                x,
                [min(v) for v in values],
                [max(v) for v in values],
                color=style.colour,
                alpha=0.15,
                linewidth=0,
            )
        axis.plot(x, [fmean(v) for v in values], marker=style.marker, markersize=5, linewidth=2, **line)


def plot_efficiency(accuracies: Accuracies, costs: Costs, sft: Sequence[str], path: str | Path) -> None:
    """Test accuracy against generated and against trained tokens.

    Args:
        accuracies: policy -> accuracy and its 95 % interval, in the order of the pipeline.
        costs: policy -> cost in each run; policies whose cost is not known are left out.
        sft: policies that stand at 0 tokens, because the others start there.
    """
    styles = styles_of(list(accuracies))
    panels = (("generated_tokens", "generated tokens"), ("trained_tokens", "trained tokens"))
    with drawing(path, (11, 4.6), (1, 1)) as (figure, axes):
        for axis, (key, label) in zip(axes, panels, strict=True):
            means = {name: 0.0 if name in sft else mean_count(costs[name], key) for name in accuracies}
            means = {name: mean for name, mean in means.items() if mean is not None}
            unit, word = _unit(max(means.values()))
            _draw_accuracies(axis, {name: x / unit for name, x in means.items()}, accuracies, styles)
            axis.set_xlabel(f"{label} after SFT{word}")
            axis.set_title(f"Accuracy against {label}")
        legend(figure, *axes[0].get_legend_handles_labels())


def plot_timing(accuracies: Accuracies, times: Times, sft: Sequence[str], path: str | Path) -> None:
    """Test accuracy against seconds, and what the seconds went into; both over the stages after SFT."""
    styles = styles_of(list(accuracies))
    totals = {name: 0.0 if name in sft else mean_seconds(times[name], "total") for name in accuracies}
    totals = {name: total for name, total in totals.items() if total is not None}
    split = [name for name in totals if mean_seconds(times[name], "other") is not None]
    with drawing(path, (11, 4.6), (1, 1)) as (figure, axes):
        _draw_accuracies(axes[0], totals, accuracies, styles)
        axes[0].set_xlabel("seconds after SFT")
        axes[0].set_title("Accuracy against seconds")
        left = [0.0] * len(split)
        for part in (*PHASES, "other"):
            means = [mean_seconds(times[name], part) for name in split]
            axes[1].barh(
                split,
                means,
                left=left,
                height=0.6,
                color=SHADES[part],
                edgecolor="#22404F",
                linewidth=0.8,
                label=part,
            )
            left = [start + mean for start, mean in zip(left, means, strict=True)]
        for row, total in enumerate(left):
            axes[1].annotate(
                f"{total:,.0f} s", (total, row), (4, 0), textcoords="offset points", va="center", fontsize=9
            )
        axes[1].invert_yaxis()
        axes[1].margins(x=0.12)
        axes[1].set_xlim(left=0)
        axes[1].set_xlabel("seconds (sft: its own training)" if set(sft) & set(split) else "seconds")
        axes[1].set_title("Where they went")
        axes[1].grid(axis="x")
        for axis in axes:
            axis.xaxis.set_major_formatter("{x:,.0f}")
            axis.legend(frameon=False, ncols=5, loc="upper center", bbox_to_anchor=(0.5, -0.13))


def _unit(largest: float) -> tuple[int, str]:
    """What to count tokens in, and how the axis says so."""
    if largest >= 10**7:
        return 10**6, " (millions)"
    return (1000, " (thousands)") if largest >= 10**4 else (1, "")


def _draw_accuracies(
    axis, means: Mapping[str, float], accuracies: Accuracies, styles: Mapping[str, Style]
) -> None:
    """One marker with its interval per policy, at its mean cost."""
    for name, x in _apart(means).items():
        value, (low, high) = accuracies[name]
        axis.errorbar(
            x,
            100 * value,
            yerr=[[100 * max(0.0, value - low)], [100 * max(0.0, high - value)]],
            fmt=styles[name].marker,
            color=styles[name].colour,
            markersize=8,
            capsize=4,
            linewidth=2,
            label=name,
        )
    largest = max(means.values(), default=0.0) or 1.0
    axis.set_xlim(-0.06 * largest, (WIDTH - 0.06) * largest)
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.set_ylabel("test accuracy (%), 95 % interval")
    axis.grid()


def _apart(means: Mapping[str, float]) -> dict[str, float]:
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
