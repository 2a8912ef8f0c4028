"""The style of all figures, drawn to the same bytes for the same numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from utils.frame.files import atomic_path

# Okabe and Ito's palette, told apart by colour-blind readers; black is left for text and axes.
PALETTE = ("#8C6D31", "#5B5B5B", "#56B4E9", "#E69F00", "#0072B2", "#D55E00", "#009E73", "#CC79A7")
MARKERS = "Xov<sD^P"
DPI = 150
STYLE = {
    "font.family": "DejaVu Sans",  # shipped with matplotlib, so the same everywhere
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.edgecolor": "#444444",
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
}


class Style(NamedTuple):
    """How one thing is drawn in every figure."""

    colour: str
    marker: str


@contextlib.contextmanager
def drawing(
    path: str | Path, size: tuple[float, float], widths: Sequence[float], rows: int = 1, sharey: bool = False
) -> Iterator[tuple]:
    """Yield (figure, its panels side by side, of these relative widths, row by row), then write it as PNG.

    Equal numbers give equal bytes: the file holds no date and no version of a program.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            rows,
            len(widths),
            figsize=size,
            width_ratios=widths,
            sharey=sharey,
            squeeze=False,
            layout="constrained",
        )
        yield figure, list(axes.flat)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None})
        plt.close(figure)


def legend(figure, handles: Sequence, names: Sequence[str]) -> None:
    """One legend below all panels."""
    figure.legend(handles, names, frameon=False, ncols=min(8, len(names)), loc="outside lower center")


def mark(axis, x: Any, y: Any, style: Style, **more: Any) -> None:
    """Draw a thing's values, with the error bars of ``xerr`` and ``yerr`` where these are given."""
    looks = {"fmt": style.marker, "color": style.colour, "markersize": 8, "capsize": 4, "linewidth": 2}
    axis.errorbar(x, y, **looks | more)
