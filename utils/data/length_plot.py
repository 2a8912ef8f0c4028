"""The picture of the prepared data: how long inputs and targets are."""

from itertools import product
from pathlib import Path

from utils.data.records import Record
from utils.documents.figures import drawing


def plot_lengths(path: Path, records: dict[str, list[Record]]) -> None:
    """Histograms of input and target lengths, in characters and in words, one line per split (PNG)."""
    units = {"characters": len, "words": lambda text: len(text.split())}
    with drawing(path, (9, 6), (1, 1), rows=2) as (_, axes):
        for axis, (name, unit) in zip(axes, product(("input_text", "target_text"), units), strict=True):
            lengths = {
                s: [units[unit](getattr(r, name)) for r in found] for s, found in records.items() if found
            }
            longest = max((max(values) for values in lengths.values()), default=1)
            bins = [longest * i / 40 for i in range(41)] if longest else [0, 1]
            for split, values in lengths.items():
                label = f"{split} ({len(values)})"
                weights = [100 / len(values)] * len(values)
                axis.hist(values, bins=bins, weights=weights, histtype="step", label=label)
            axis.set(xlabel=f"{name.replace('_', ' ')}, {unit}", ylabel="% of items")
        if records:
            axes[0].legend(frameon=False)
