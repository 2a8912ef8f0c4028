"""The report's sections on levels, KL against reward and the rewards' audit, with their figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.comparison.evaluations import evaluated_in
from utils.comparison.topics.levels import Levels
from utils.comparison.topics.levels_frontier_audit_plots import (
    Accuracies,
    frontier,
    plot_audits,
    plot_frontier,
    plot_level_heatmap,
)
from utils.comparison.topics.measures import KL_RESPONSE, KL_TOKEN, TOTAL, Measures
from utils.comparison.topics.number import number_cell
from utils.documents.text import listed, markdown_table, percent
from utils.frame.files import read_json
from utils.rewards.audit.audit_plot import plot_audit

HEATMAP, FRONTIER, AUDIT = "level_heatmap.png", "frontier.png", "reward_audit.png"


def level_section(levels: Levels, policies: Sequence[str], out: Path) -> str:
    """Draw the heat map into the folder ``out``; "" where no item has a level."""
    if not levels.levels:
        return ""
    plot_level_heatmap(levels, policies, out / HEATMAP)
    return f"## Levels\n\n![Accuracy of every policy by level]({HEATMAP})"


def frontier_section(
    measures: Measures, accuracies: Accuracies, folders: Mapping[str, Sequence[Path]], out: Path
) -> str:
    """KL to the reference against reward and accuracy, with the figure; "" where no policy has both."""
    reference, rewards = measures.get("reference", {}), measures.get("rewards", {})
    kl = {name: found[KL_RESPONSE] for name, found in reference.items() if KL_RESPONSE in found}
    if len(kl) < 2:
        return ""
    total = {name: found[TOTAL] for name, found in rewards.items() if TOTAL in found}
    specs = _specifications([name for name in kl if name in total], folders)
    plot_frontier(kl, total if specs < 2 else {}, accuracies, out / FRONTIER)
    rows = [
        [name, *map(number_cell, (reference[name].get(KL_TOKEN), kl[name], total.get(name)))]
        + [percent(accuracies[name][0])]
        for name in kl
    ]
    best = frontier({name: (kl[name].value, accuracies[name][0]) for name in kl})
    lines = [
        "KL(policy | reference) is how far training moved a policy from where it started, on its own greedy "
        "answers: nats per token, exact over the vocabulary, and summed over the tokens of an answer (over "
        "sampled answers it would differ). The dotted line joins the policies of which no other reaches as "
        "much with less distance. By the "
        f"accuracies as measured, without regard to their uncertainty, these are {listed(best)}."
    ]
    if specs > 1:
        lines.append("Total rewards follow different specifications and are not comparable: not drawn.")
    lacking = [name for name in accuracies if name not in kl]
    if lacking:
        lines.append(f"Not measured in the evaluation of {listed(lacking)}.")
    heads = ["policy", "KL per token", "KL per response", "total reward", "accuracy"]
    parts = ["## KL against reward", " ".join(lines), markdown_table(heads, rows)]
    return "\n\n".join([*parts, f"![Reward and accuracy against the KL to the reference]({FRONTIER})"])


def _specifications(policies: Sequence[str], folders: Mapping[str, Sequence[Path]]) -> int:
    """How many different reward specifications the evaluations of these policies have read."""
    found = set()
    for name in policies:
        for folder in folders[name]:
            if place := evaluated_in(folder):
                inputs = read_json(place[0] / place[1] / "manifest.json").get("inputs", {})
                found |= {
                    facts["sha256"] for path, facts in inputs.items() if path.endswith("/reward_spec.yaml")
                }
    return len(found)


def audit_section(audits: Mapping[str, Mapping[str, Any]], out: Path) -> str:
    """The audit of the runs' rewards, drawn anew: one run's as its stage did, of several one mark each."""
    if not audits:
        return ""
    if len(audits) == 1:
        plot_audit(dict(next(iter(audits.values()))), out / AUDIT)
    else:
        plot_audits(audits, out / AUDIT)
    several = f" A mark is a run, a line their mean ({len(audits)} runs)." if len(audits) > 1 else ""
    note = (
        "Before training: whether each component of the reward ranks right candidates above wrong ones for "
        f"the same prompt (0.5 is chance), and whether it merely tracks their length.{several}"
    )
    warnings = dict.fromkeys(
        _warning(each) for audit in audits.values() for each in audit.get("warnings", [])
    )
    lines = "\n".join(f"- {warning}" for warning in warnings)
    return "\n\n".join(part for part in ("## Reward audit", note, lines, f"![Reward audit]({AUDIT})") if part)


def _warning(warning: Any) -> str:
    text = warning.get("message", warning) if isinstance(warning, dict) else warning
    return " ".join(str(text).split())
