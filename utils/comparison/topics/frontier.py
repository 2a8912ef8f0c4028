"""Reward and accuracy against how far training moved a policy from its reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from utils.comparison.estimates import Estimate, number_cell
from utils.comparison.evaluations import evaluated_in
from utils.comparison.topic import Comparison, Topic
from utils.comparison.topics.measures import KL_RESPONSE, KL_TOKEN, TOTAL, measures_of
from utils.documents.document import Figure, Number, Paragraph, Section, Table
from utils.documents.figures import drawing, legend, mark
from utils.documents.text import listed, percent
from utils.frame.manifest import read_manifest

FRONTIER = "frontier.png"


def topic(comparison: Comparison) -> Topic:
    """KL to the reference against reward and accuracy; nothing where fewer than two policies have a KL."""
    measures, accuracies = measures_of(comparison.results), comparison.accuracies
    reference, rewards = measures.get("reference", {}), measures.get("rewards", {})
    kl = {name: found[KL_RESPONSE] for name, found in reference.items() if KL_RESPONSE in found}
    if len(kl) < 2:
        return Topic()
    total = {name: found[TOTAL] for name, found in rewards.items() if TOTAL in found}
    specifications = _specifications(comparison, [name for name in kl if name in total])
    best = frontier({name: (kl[name].value, accuracies[name].value) for name in kl})
    lines = [
        "KL(policy | reference) is how far training moved a policy from where it started, on its own greedy "
        "answers: nats per token, exact over the vocabulary, and summed over the tokens of an answer (over "
        "sampled answers it would differ). The dotted line joins the policies of which no other reaches as "
        "much with less distance. By the "
        f"accuracies as measured, without regard to their uncertainty, these are {listed(best)}."
    ]
    if specifications > 1:
        lines.append("Total rewards follow different specifications and are not comparable: not drawn.")
    if lacking := [name for name in accuracies if name not in kl]:
        lines.append(f"Not measured in the evaluation of {listed(lacking)}.")
    rows = [
        [name, *map(number_cell, (reference[name].get(KL_TOKEN), kl[name], total.get(name)))]
        + [Number(percent(accuracies[name].value), accuracies[name].value)]
        for name in kl
    ]
    table = Table(["policy", "KL per token", "KL per response", "total reward", "accuracy"], rows)
    figure = Figure(FRONTIER, "Reward and accuracy against the KL to the reference")
    draw = partial(plot_frontier, comparison, kl, total if specifications < 2 else {})
    section = Section("KL against reward", [Paragraph(" ".join(lines)), table, figure])
    return Topic([section], files={FRONTIER: draw})


def _specifications(comparison: Comparison, policies: list[str]) -> int:
    """How many different reward specifications the evaluations of these policies have read."""
    places = [evaluated_in(folder) for name in policies for folder in comparison.folders[name]]
    inputs = [(read_manifest(run / stage) or {}).get("inputs", {}) for run, stage in filter(None, places)]
    return len(
        {
            facts["sha256"]
            for each in inputs
            for path, facts in each.items()
            if path.endswith("/reward_spec.yaml")
        }
    )


def frontier(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The policies that no other one beats (as much reward for less KL, or more for no more), by rising KL.

    Args:
        points: policy -> (KL, reward).
    """
    best = [
        name
        for name, (kl, reward) in points.items()
        if not any(
            other_kl <= kl and other >= reward and (other_kl, other) != (kl, reward)
            for other_kl, other in points.values()
        )
    ]
    return sorted(best, key=lambda name: points[name])


def plot_frontier(
    comparison: Comparison, kl: Mapping[str, Estimate], rewards: Mapping[str, Estimate], path: Path
) -> None:
    """Mean total reward (where there is any) and accuracy against the KL to the reference, nats per response.

    A line joins the policies that no other beats in both. All with 95 % intervals.
    """
    shares = {name: comparison.accuracies[name] for name in kl}
    scaled = {
        name: replace(share, value=100 * share.value, ci95=tuple(100 * end for end in share.ci95))
        for name, share in shares.items()
    }
    drawn = {name: rewards[name] for name in kl if name in rewards}
    panels = [("mean total reward", drawn), ("test accuracy (%)", scaled)]
    panels = panels if drawn else panels[1:]
    with drawing(path, (5.5 * len(panels), 4.6), (1,) * len(panels)) as (figure, axes):
        for axis, (label, values) in zip(axes, panels, strict=True):
            for name, estimate in values.items():
                bars = {"xerr": kl[name].whiskers(), "yerr": estimate.whiskers()}
                looks = {"capsize": 3, "linewidth": 1.6, "label": name}
                mark(axis, kl[name].value, estimate.value, comparison.styles[name], **bars, **looks)
            at = {name: (kl[name].value, estimate.value) for name, estimate in values.items()}
            on = [at[name] for name in frontier(at)]
            axis.plot(*zip(*on, strict=True), color="#444444", linewidth=1, linestyle=":", zorder=0)
            axis.set(xlabel="KL(policy | reference), nats per response", ylabel=f"{label}, 95 % interval")
            axis.set_title(f"{label.partition(' (')[0].capitalize()} against KL")
            axis.grid()
        legend(figure, *axes[-1].get_legend_handles_labels())
