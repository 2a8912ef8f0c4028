"""Figures that are drawn up and not rendered."""

from pathlib import Path


def save_outline(figure, path, dpi=100, **_) -> None:
    """`Figure.savefig` but for the pixels: after the head of a PNG comes what the figure would show."""
    width, height = (round(dpi * inches).to_bytes(4, "big") for inches in figure.get_size_inches())
    shown = []
    for axis in figure.axes:
        shown.append([axis.get_title(place) for place in ("left", "center", "right")])
        shown.append([axis.get_xlabel(), axis.get_ylabel()])
        shown.append([line.get_xydata().tolist() for line in axis.lines])
        shown.append([(text.get_text(), text.get_position()) for text in axis.texts])
        shown.append(
            [p.get_patch_transform().transform(p.get_path().vertices).tolist() for p in axis.patches]
        )
        shown.append([image.get_array().tolist() for image in axis.images])
        shown.append(axis.get_legend_handles_labels()[1])
        for collection in axis.collections:
            shown.append([shape.vertices.tolist() for shape in collection.get_paths()])
            shown.append(collection.get_offsets().tolist())
    head = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + width + height
    Path(path).write_bytes(head + repr(shown).encode())
