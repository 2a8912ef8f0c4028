"""The sections of report.md as HTML: headings, paragraphs, lists, tables and figures, all text escaped."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup, escape

from utils.documents.figures import DPI

CSS_DPI = 96  # pixels of a page to the inch

_CODE = re.compile(r"(`[^`]*`)")
_BOLD, _ITALIC = re.compile(r"\*\*(.+?)\*\*"), re.compile(r"\*(?!\s)([^*]+?)(?<!\s)\*")
_LINK = re.compile(r"\[([^\]]+)\]\(([\w./-]+)\)")  # beside the page only: no scheme, so no script
_IMAGE = re.compile(r"!\[([^\]]*)\]\(([\w.-]+)\)")
_CELLS = re.compile(r"(?<!\\)\|")


@dataclass(frozen=True)
class Section:
    """A chapter of the report: its heading ("" for what comes first) and its HTML."""

    title: str
    html: Markup

    @property
    def slug(self) -> str:
        return "report-" + re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


def sections_of(text: str, figure: Callable[[str, str], Markup]) -> tuple[str, list[Section]]:
    """The report's title and its sections, the one before the first heading first.

    Args:
        text: Markdown as report.md is written: blocks between blank lines; no HTML, which is shown as text.
        figure: (file name, alternative text) -> HTML of a figure.
    """
    title, found = "", [("", [])]
    for block in re.split(r"\n{2,}", text.strip()):
        if block.startswith("# "):
            title = block[2:].strip()
        elif block.startswith("## "):
            found.append((block[3:].strip(), []))
        else:
            found[-1][1].append(_block(block, figure))
    return title, [Section(head, Markup("\n").join(blocks)) for head, blocks in found]


def figure_of(folder: Path) -> Callable[[str, str], Markup]:
    """Figures as PNG data from a folder; one that is not there is named in words."""

    def figure(name: str, alternative: str) -> Markup:
        path = folder / name
        if not path.is_file():
            return Markup('<p class="missing">The figure {} is not there.</p>').format(name)
        png = path.read_bytes()
        # A PNG's width in pixels stands in its header; at one scale, the figures' letters are of one size.
        width = round(int.from_bytes(png[16:20], "big") * CSS_DPI / DPI)
        data = base64.b64encode(png).decode()
        return Markup('<figure><img src="data:image/png;base64,{}" width="{}" alt="{}"></figure>').format(
            data, width, alternative
        )

    return figure


def inline(text: str) -> Markup:
    """Code, bold, italics and links to files beside the page; everything else is text."""
    parts = []
    for part in _CODE.split(text):
        if len(part) > 1 and part[0] == part[-1] == "`":
            parts.append(Markup("<code>{}</code>").format(part[1:-1]))
            continue
        safe = str(escape(part))
        safe = _LINK.sub(r'<a href="\2">\1</a>', safe)
        safe = _ITALIC.sub(r"<em>\1</em>", _BOLD.sub(r"<strong>\1</strong>", safe))
        parts.append(Markup(safe))
    return Markup("").join(parts)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    """A table whose cells are inline Markdown; the page's script makes its columns sortable."""
    lines = [Markup('<div class="scroll"><table class="sortable"><thead><tr>')]
    lines += [Markup('<th scope="col">{}</th>').format(inline(head)) for head in heads]
    lines.append(Markup("</tr></thead><tbody>"))
    for first, *others in rows:
        cells = [Markup("<td>{}</td>").format(inline(cell)) for cell in others]
        head = Markup('<th scope="row">{}</th>').format(inline(first))
        lines.append(Markup("<tr>{}{}</tr>").format(head, Markup("").join(cells)))
    return Markup("").join([*lines, Markup("</tbody></table></div>")])


def _block(block: str, figure: Callable[[str, str], Markup]) -> Markup:
    lines = block.split("\n")
    image = _IMAGE.fullmatch(block.strip())
    if image:
        return figure(image[2], image[1])
    if block.startswith("### "):
        return Markup("<h4>{}</h4>").format(inline(block[4:]))
    if len(lines) > 1 and all(line.startswith("|") for line in lines):
        cells = [[cell.strip().replace("\\|", "|") for cell in _CELLS.split(line)[1:-1]] for line in lines]
        return table(cells[0], [row for row in cells[2:] if row])
    if all(line.startswith("- ") for line in lines):
        items = [Markup("<li>{}</li>").format(inline(line[2:])) for line in lines]
        return Markup("<ul>{}</ul>").format(Markup("").join(items))
    return Markup("<p>{}</p>").format(inline(" ".join(lines)))
