"""One document, two renderings: Markdown and HTML say the same, and text is never markup."""

import base64
import re
from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from utils.documents.document import (
    Bullets,
    Document,
    Figure,
    Finding,
    Heading,
    Number,
    Paragraph,
    Section,
    Span,
    Table,
    block_html,
    block_markdown,
    code,
    emphasis,
    line_html,
    line_markdown,
    plain,
    section_html,
    sentence,
    strong,
)
from utils.documents.text import p_cell, p_text, plural, points, points_interval

PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + (1500).to_bytes(4, "big") + (300).to_bytes(4, "big")

SPANS = st.one_of(
    st.text(max_size=20), st.builds(Span, st.sampled_from(["strong", "code", "link"]), st.text())
)


class Text(HTMLParser):
    """The tags of some HTML, and its text as a reader sees it."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(str(html))
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data


def report():
    table = Table(["x", "y | z"], [["a", Number("1.0 % (0–2)", 0.0104)], [code("b"), "–"]])
    one = Section(
        "One",
        [
            None,
            table,
            Bullets([]),
            Paragraph(""),
            Figure("plot.png", "A plot"),
            Figure("gone.png", "None"),
            Heading("Sub"),
            Paragraph(["see ", Span("link", "timing.md"), " & ", emphasis("more")]),
        ],
    )
    lead = Bullets([Finding([strong("a"), " wins"], ["by ", code("1|2"), " ", emphasis("much"), "."])])
    return Document("Title", [lead], [one, Section("Two", [Bullets(["x", ["y ", strong("z")]])])])


def test_a_document_in_markdown():
    assert report().markdown() == (
        "# Title\n\n- **a** wins: by `1|2` *much*.\n\n## One\n\n"
        "| x | y \\| z |\n| --- | --- |\n| a | 1.0 % (0–2) |\n| `b` | – |\n\n"
        "![A plot](plot.png)\n\n![None](gone.png)\n\n### Sub\n\n"
        "see [timing.md](timing.md) & *more*\n\n## Two\n\n- x\n- y **z**\n"
    )


def test_its_sections_in_html(tmp_path):
    (tmp_path / "plot.png").write_bytes(PNG)  # 1500 pixels at 150 to the inch: ten inches
    document = report()
    lead = "<ul><li><strong>a</strong> wins: by <code>1|2</code> <em>much</em>.</li></ul>"
    assert block_html(document.lead[0], tmp_path) == lead
    table, plot, gone, sub, text = section_html(document.sections[0], tmp_path).split("\n")
    assert table == (
        '<div class="scroll"><table class="sortable"><thead><tr><th scope="col">x</th>'
        '<th scope="col">y | z</th></tr></thead><tbody>'
        '<tr><th scope="row">a</th><td data-key="0.0104">1.0 % (0–2)</td></tr>'
        '<tr><th scope="row"><code>b</code></th><td>–</td></tr></tbody></table></div>'
    )
    data = base64.b64encode(PNG).decode()
    assert plot == f'<figure><img src="data:image/png;base64,{data}" width="960" alt="A plot"></figure>'
    assert gone == '<p class="missing">The figure gone.png is not there.</p>'
    assert sub == "<h4>Sub</h4>"
    assert text == '<p>see <a href="timing.md">timing.md</a> &amp; <em>more</em></p>'


@given(st.lists(SPANS, max_size=5))
def test_text_never_opens_a_tag_and_loses_no_sign(line):
    found = Text(line_html(line))
    spans = [part for part in line if isinstance(part, Span)]
    tags = {"strong": "strong", "code": "code", "link": "a"}
    assert found.tags == [tags[span.kind] for span in spans]
    normal = str.maketrans({"\r": "\n", "\x00": "\ufffd"})  # as HTML reads them
    assert found.text.translate(normal) == plain(line).translate(normal)


def test_signs_of_markdown_in_text_are_text_on_a_page():
    text = "**a** `b` [c](javascript:d) 1 * 2 * 3 | {x} {0}"
    assert line_markdown(text) == plain(text) == text and line_html(text) == text
    assert block_markdown(Table(["h"], [[text]])).endswith(
        "| **a** `b` [c](javascript:d) 1 * 2 * 3 \\| {x} {0} |"
    )


def test_empty_blocks_are_left_out():
    empty = [None, Paragraph(""), Bullets([])]
    assert Document("T", empty, [Section("S", empty)]).markdown() == "# T\n\n## S\n"


def test_a_sentence_has_its_parts_in_the_places_of_its_braces():
    line = sentence("{} beats {} by {}.", strong("a"), strong("b"), "3 {points}")
    assert (
        line_markdown(line) == "**a** beats **b** by 3 {points}."
        and plain(line) == "a beats b by 3 {points}."
    )


def test_the_name_of_a_section_on_a_page_is_letters_and_digits():
    assert Section("KL against reward: why?", []).slug == "report-kl-against-reward-why"
    assert re.fullmatch(r"[a-z0-9-]+", Section('"><script>', []).slug)


def test_numbers_for_print():
    assert (points(-0.0004), points(0.0437), points_interval((-0.01, 0.0))) == (
        "+0.0",
        "+4.4",
        "-1.0 to +0.0",
    )
    assert (p_text(0.0312), p_cell(0.0312), p_cell(1e-9)) == ("= 0.031", "0.031", "< 0.0001")
    assert (plural(1, "pair"), plural(0, "pair")) == ("1 pair", "0 pairs")
