"""The curves of a training, from its log."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def plot_curves(history: Sequence[dict[str, Any]], panels: dict[str, Sequence[str]], path: Path) -> None:
    """A PNG with one panel per title, each drawing the named log keys over optimizer steps.

    Panels without any logged value are left out; the bytes depend on the numbers alone.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn = {
        title: [key for key in keys if any(key in row for row in history)] for title, keys in panels.items()
    }
    drawn = {title: keys for title, keys in drawn.items() if keys}
    columns = min(3, len(drawn))
    rows = -(-len(drawn) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(4.2 * columns, 3 * rows), squeeze=False)
    for axis, (title, keys) in zip(axes.flat, drawn.items(), strict=False):
        for key in keys:
            points = [(row["step"], row[key]) for row in history if key in row]
            axis.plot(
                *zip(*points, strict=True), marker="o" if len(points) < 15 else None, markersize=3, label=key
            )
        axis.set_title(title)
        axis.set_xlabel("optimizer step")
        axis.grid(alpha=0.3)
        if len(keys) > 1:
            axis.legend(fontsize=7)
    for axis in axes.flat[len(drawn) :]:
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)
