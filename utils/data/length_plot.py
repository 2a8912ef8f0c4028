"""The picture of the prepared data: how long inputs and targets are."""

from pathlib import Path

from utils.data.records import Record
from utils.frame.files import atomic_path


def plot_lengths(path: Path, records: dict[str, list[Record]]) -> None:
    """Histograms of input and target lengths, in characters and in words, one line per split (PNG).

    The file's bytes depend on the records alone: no date or version is stored in it.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots(2, 2)
    for row, name in enumerate(("input_text", "target_text")):
        for column, (unit, length) in enumerate((("characters", len), ("words", lambda t: len(t.split())))):
            lengths = {s: [length(getattr(r, name)) for r in found] for s, found in records.items() if found}
            longest = max((max(values) for values in lengths.values()), default=1)
            bins = [longest * i / 40 for i in range(41)] if longest else [0, 1]
            for split, values in lengths.items():
                label = f"{split} ({len(values)})"
                weights = [100 / len(values)] * len(values)
                axes[row, column].hist(values, bins=bins, weights=weights, histtype="step", label=label)
            axes[row, column].set(xlabel=f"{name.replace('_', ' ')}, {unit}", ylabel="% of items")
    if records:
        axes[0, 0].legend(frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
