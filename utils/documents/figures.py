"""The style of all figures, drawn to the same bytes for the same numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from utils.frame.files import atomic_path
from utils.frame.pipeline import POLICIES, policy_order

# Okabe and Ito's palette, told apart by colour-blind readers; black is left for text and axes. In the order
# of POLICIES: SFT, where the others start, is grey.
PALETTE = ("#8C6D31", "#5B5B5B", "#56B4E9", "#E69F00", "#0072B2", "#D55E00", "#009E73", "#CC79A7")


MARKERS = "Xov<sD^P"


DPI = 150


class Style(NamedTuple):
    """How a policy is drawn in every figure."""

    colour: str
    marker: str


def styles_of(policies: Sequence[str]) -> dict[str, Style]:
    """The style of every policy: a method's own, whichever others are drawn with it.

    Variants of a method and policies of other names take what is left, each another pair of colour and
    marker.
    """
    count = len(PALETTE)
    pairs = [(i % count, (i + i // count) % count) for i in range(count * count)]
    taken = {name: pairs[POLICIES.index(name)] for name in policies if name in POLICIES}
    free = (pair for pair in pairs if pair not in taken.values())
    for name in policies:
        # A "<run>/<policy>" or a variant looks like its method where nothing else does.
        position = policy_order(name)[0]
        if name not in taken and position < len(POLICIES) and pairs[position] not in taken.values():
            taken[name] = pairs[position]
    for name in policies:
        if name not in taken:
            taken[name] = next(free)
    return {name: Style(PALETTE[colour], MARKERS[marker]) for name, (colour, marker) in taken.items()}


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

    with plt.rc_context(_STYLE):
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


_STYLE = {
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
