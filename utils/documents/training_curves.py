"""The curves of a training, from its log."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.documents.figures import drawing


def plot_curves(history: Sequence[dict[str, Any]], panels: dict[str, Sequence[str]], path: Path) -> None:
    """A PNG with one panel per title, each drawing the named log keys over optimizer steps.

    Panels without any logged value are left out.
    """
    drawn = {
        title: [key for key in keys if any(key in row for row in history)] for title, keys in panels.items()
    }
    drawn = {title: keys for title, keys in drawn.items() if keys}
    columns = min(3, len(drawn))
    rows = -(-len(drawn) // columns)
    with drawing(path, (4.6 * columns, 3 * rows), (1,) * columns, rows) as (_, axes):
        for axis, (title, keys) in zip(axes, drawn.items(), strict=False):
            for key in keys:
                points = [(row["step"], row[key]) for row in history if key in row]
                marker = "o" if len(points) < 15 else None
                axis.plot(*zip(*points, strict=True), marker=marker, markersize=3, label=key)
            axis.set(title=title, xlabel="optimizer step")
            axis.grid()
            if len(keys) > 1:
                axis.legend(fontsize=7)
        for axis in axes[len(drawn) :]:
            axis.axis("off")
