"""A document as an object: sections of paragraphs, lists, tables and figures, in Markdown and in HTML.

Nothing is parsed. A word is code or strong because it is a `Span` of that kind, whatever signs it holds. In
HTML all text is escaped; in Markdown it stands as it is, but for bars in the cells of tables.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from utils.documents.figures import DPI

CSS_DPI = 96  # pixels of a page to the inch

# ------------------------------------------------------------------------------------------- a line


class Span(NamedTuple):
    """Text of one kind: "text", "strong", "emphasis", "code", or "link" to the file that it names."""

    kind: str
    text: str


class Number(NamedTuple):
    """A table's cell: a number for print, and what its column is sorted by on a page (None: by the text)."""

    text: str
    value: float | None = None


class Finding(NamedTuple):
    """A line of a list: what is claimed, and the numbers that it rests on."""

    claim: Line
    evidence: Line = ""


Line = str | Span | Number | Finding | Sequence[str | Span]

# How a span of each kind is written in Markdown and in HTML.
_FORMS = {
    "text": ("{}", "{}"),
    "strong": ("**{}**", "<strong>{}</strong>"),
    "emphasis": ("*{}*", "<em>{}</em>"),
    "code": ("`{}`", "<code>{}</code>"),
    "link": ("[{0}]({0})", '<a href="{0}">{0}</a>'),
}


# Text that stands out; text that is stressed, or a term where it is explained; a name in a file or program.
strong, emphasis, code = (partial(Span, kind) for kind in ("strong", "emphasis", "code"))


def sentence(template: str, *parts: str | Span) -> Sequence[str | Span]:
    """A line of text with the parts in the places of its {}."""
    first, *others = template.split("{}")
    return [first, *(piece for pair in zip(parts, others, strict=True) for piece in pair)]


def line_markdown(line: Line) -> str:
    """A line of text in Markdown."""
    return "".join(_FORMS[kind][0].format(text) for kind, text in _spans(line))


def line_html(line: Line) -> Markup:
    """A line of text in HTML."""
    return Markup("").join(Markup(_FORMS[kind][1]).format(text) for kind, text in _spans(line))


def plain(line: Line) -> str:
    """A line of text alone."""
    return "".join(text for _, text in _spans(line))


def _spans(line: Line) -> list[Span]:
    if isinstance(line, Finding):
        line = [*_spans(line.claim), *([": ", *_spans(line.evidence)] if line.evidence else [])]
    elif isinstance(line, Number):
        line = line.text
    parts = [line] if isinstance(line, str | Span) else line
    return [part if isinstance(part, Span) else Span("text", part) for part in parts]


# ------------------------------------------------------------------------------------------- blocks


class Paragraph(NamedTuple):
    """A paragraph of one line of text."""

    line: Line


class Heading(NamedTuple):
    """A heading within a section."""

    text: str


class Bullets(NamedTuple):
    """A list of lines."""

    lines: Sequence[Line]


class Table(NamedTuple):
    """Rows of cells below their heads; the first cell of a row names it."""

    heads: Sequence[str]
    rows: Sequence[Sequence[Line]]


class Figure(NamedTuple):
    """A PNG beside the document, which HTML holds in itself, and what is said where it cannot be seen."""

    name: str
    alternative: str


Block = Paragraph | Heading | Bullets | Table | Figure


def block_markdown(block: Block | None) -> str:
    """A block in Markdown, "" for an empty one."""
    match block:
        case Paragraph(line):
            return line_markdown(line)
        case Heading(text):
            return f"### {text}"
        case Bullets(lines):
            return "\n".join(f"- {line_markdown(line)}" for line in lines)
        case Table(heads, rows):
            cells = [[line_markdown(cell).replace("|", "\\|") for cell in row] for row in (heads, *rows)]
            cells.insert(1, ["---"] * len(heads))
            return "\n".join(f"| {' | '.join(row)} |" for row in cells)
        case Figure(name, alternative):
            return f"![{alternative}]({name})"
    return ""


def block_html(block: Block, figures: Path) -> Markup:
    """A block in HTML, with the figures of a folder; the page's script makes tables sortable."""
    match block:
        case Paragraph(line):
            return _tagged("p", line_html(line))
        case Heading(text):
            return _tagged("h4", text)
        case Bullets(lines):
            return _tagged("ul", *(_tagged("li", line_html(line)) for line in lines))
        case Table(heads, rows):
            head = _tagged("tr", *(Markup('<th scope="col">{}</th>').format(head) for head in heads))
            body = _tagged("tbody", *(_tagged("tr", *map(_cell_html, row, range(len(row)))) for row in rows))
            table = Markup('<div class="scroll"><table class="sortable">{}{}</table></div>')
            return table.format(_tagged("thead", head), body)
        case Figure(name, alternative):
            return _figure_html(figures / name, alternative)


def _tagged(tag: str, *inner: str) -> Markup:
    return Markup("<{0}>{1}</{0}>").format(tag, Markup("").join(inner))


def _cell_html(cell: Line, column: int) -> Markup:
    if column == 0:
        return Markup('<th scope="row">{}</th>').format(line_html(cell))
    key = cell.value if isinstance(cell, Number) else None
    key = "" if key is None else Markup(' data-key="{}"').format(key)
    return Markup("<td{}>{}</td>").format(key, line_html(cell))


def _figure_html(path: Path, alternative: str) -> Markup:
    if not path.is_file():
        return Markup('<p class="missing">The figure {} is not there.</p>').format(path.name)
    png = path.read_bytes()
    # A PNG's width in pixels stands in its header; at one scale, the figures' letters are of one size.
    width = round(int.from_bytes(png[16:20], "big") * CSS_DPI / DPI)
    figure = Markup('<figure><img src="data:image/png;base64,{}" width="{}" alt="{}"></figure>')
    return figure.format(base64.b64encode(png).decode(), width, alternative)


# ---------------------------------------------------------------------------------------- documents


class Section(NamedTuple):
    """A titled part of a document, in which empty blocks and None are left out.

    ``on_page`` is False for one that a page shows in a form of its own.
    """

    title: str
    blocks: Sequence[Block | None]
    on_page: bool = True

    @property
    def slug(self) -> str:
        """The section's name within a page."""
        return "report-" + re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


class Document(NamedTuple):
    """A title, what stands before the first section, and the sections."""

    title: str
    lead: Sequence[Block | None]
    sections: Sequence[Section] = ()

    def markdown(self) -> str:
        """The whole document."""
        return (
            "\n\n".join([f"# {self.title}", *_texts(self.lead), *map(section_markdown, self.sections)]) + "\n"
        )


def section_markdown(section: Section) -> str:
    """A section with its title."""
    return "\n\n".join([f"## {section.title}", *_texts(section.blocks)])


def section_html(section: Section, figures: Path) -> Markup:
    """A section without its title."""
    return Markup("\n").join(block_html(block, figures) for block in section.blocks if block_markdown(block))


def _texts(blocks: Iterable[Block | None]) -> list[str]:
    return [text for text in map(block_markdown, blocks) if text]
