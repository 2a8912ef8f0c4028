"""How the rewards ranked candidates before training: the audits of the compared runs, drawn anew."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from utils.comparison.topic import Comparison, Topic
from utils.documents.document import Bullets, Figure, Paragraph, Section
from utils.documents.figures import PALETTE, drawing, legend
from utils.frame.files import read_json
from utils.rewards.audit.audit_plot import plot_audit

AUDIT = "reward_audit.png"


def topic(comparison: Comparison) -> Topic:
    """One run's audit as its stage drew it, of several one mark each; nothing without an audit."""
    audits = {run: read_json(path) for run, path in comparison.audits.items()}
    if not audits:
        return Topic()
    several = f" A mark is a run, a line their mean ({len(audits)} runs)." if len(audits) > 1 else ""
    note = (
        "Before training: whether each component of the reward ranks right candidates above wrong ones for "
        f"the same prompt (0.5 is chance), and whether it merely tracks their length.{several}"
    )
    found = [_warning(each) for audit in audits.values() for each in audit.get("warnings", [])]
    blocks = [Paragraph(note), Bullets(list(dict.fromkeys(found))), Figure(AUDIT, "Reward audit")]
    draw = partial(plot_audits, audits) if len(audits) > 1 else partial(plot_audit, *audits.values())
    return Topic([Section("Reward audit", blocks)], files={AUDIT: draw})


def _warning(warning: Any) -> str:
    text = warning.get("message", warning) if isinstance(warning, dict) else warning
    return " ".join(str(text).split())


def plot_audits(audits: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Reward audits of several runs: do components rank right above wrong, and do they track length?

    Args:
        audits: run -> reward_audit.json. A mark is a run, a bar the mean of the runs that have the number.
    """
    names = list(dict.fromkeys(name for audit in audits.values() for name in audit["components"]))
    looks = [
        {"color": PALETTE[(place + 4) % len(PALETTE)], "marker": "osD^vXP"[place % 7], "linestyle": ""}
        for place in range(len(audits))
    ]
    panels = (
        ("Ranks right above wrong?", "pairs of the same prompt, right one above (0.5: chance)", 0.5, (0, 1)),
        ("Tracks length?", "Spearman's correlation with tokens, wrong ones alone", 0.0, (-1, 1)),
    )
    with drawing(path, (11, 1.9 + 0.36 * len(names)), (1, 1)) as (figure, axes):
        for panel, (axis, (title, label, chance, (low, high))) in enumerate(zip(axes, panels, strict=True)):
            for row, name in enumerate(names):
                values = _audited(audits, name, panel)
                shifts = np.linspace(-0.2, 0.2, len(audits)) if len(audits) > 1 else [0.0]
                for value, shift, look in zip(values, shifts, looks, strict=True):
                    if value is not None:
                        axis.plot(value, row + shift, markersize=5, **look)
                known = [value for value in values if value is not None]
                if known:
                    axis.plot([np.mean(known)] * 2, [row - 0.32, row + 0.32], color="#222222", linewidth=1.5)
                else:
                    axis.text(chance, row, "not defined", ha="center", va="center", fontsize=8)
            axis.axvline(chance, color="#5B5B5B", linewidth=1, linestyle="--", zorder=0)
            axis.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
            axis.set(xlim=(low - 0.04, high + 0.04), ylim=(len(names) - 0.4, -0.6), xlabel=label)
            axis.set_title(title)
            axis.grid(axis="x")
        from matplotlib.lines import Line2D

        legend(figure, [Line2D([], [], **look) for look in looks], list(audits))


def _audited(audits: Mapping[str, Mapping[str, Any]], name: str, panel: int) -> list[float | None]:
    found = [audit["components"].get(name) for audit in audits.values()]
    if panel == 0:
        return [each["pair_accuracy"]["value"] if each else None for each in found]
    return [each["length"]["wrong"]["value"] if each else None for each in found]
