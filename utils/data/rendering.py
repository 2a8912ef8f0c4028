"""A report, or a part of it, and a question on it as one input, cut to a length.

A context longer than the limit loses the sentences and table rows least related to the question, and a
retrieved one is made of those most related to it. Related is lexical: the sum of the inverse document
frequencies, within this context, of the words shared with the question, plus a bonus for rows, over the
number of words. The gold answer and the gold evidence have no part in the choice, so that training and test
inputs are made in the same way; they only serve to count what was lost. Only ``context: gold`` shows them.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from utils.data.reading import RawRow

# Three quarters of FinQA's evidence is in tables (arXiv 2109.00122, section 3), so rows are kept longer than
# sentences. The values keep all the evidence of the most train and dev items, over limits of 256 to 1024.
ROW_BONUS = 4.0
LENGTH_OFFSET = 5  # words; keeps very short pieces from ranking first on a single common word

_SENTENCE_END = re.compile(r"(?<=\s[.?!])\s+(?=\S)")
_WORD = re.compile(r"[^\W\d_]+|\d+(?:[.,]\d+)*")
_TOKEN = re.compile(r"\d|[^\W\d_]{1,6}|[^\w\s]|_")


@dataclass(frozen=True)
class Cut:
    """What was left out of one input, in pieces and tokens.

    ``evidence_lost`` counts the gold sentences and rows among the pieces; ``still_over`` says that question
    and header alone exceed the limit.
    """

    sentences: int
    rows: int
    tokens_before: int
    tokens_after: int
    evidence_lost: int
    still_over: bool


@dataclass(frozen=True)
class _Piece:
    place: str  # "text_3", "table_2" as in FinQA's gold_inds; "header" and "" are never left out
    text: str
    distance: int  # sentences between it and the table


@lru_cache(maxsize=1 << 16)
def approximate_tokens(text: str) -> int:
    """A tokenizer-free token count: digits and symbols one each, words one per six letters begun.

    It errs on the high side for byte-pair vocabularies of 32k and more (no count of spaces or merges).
    """
    return len(_TOKEN.findall(text))


def split_sentences(text: str) -> list[str]:
    """The sentences of a text in FinQA's tokenised form, where a full stop stands between spaces."""
    return [part for part in _SENTENCE_END.split(" ".join(text.split())) if re.search(r"\w", part)]


def table_lines(table: tuple[tuple[str, ...], ...], style: str) -> list[tuple[str, str]]:
    """The table as (place, text) pairs, header first: ``table_0`` is the header row.

    "rows": cells joined by " | ". "facts": one line "<row name> <column> <value>" per non-empty cell, and no
    header line, because each line names its column.
    """
    if not table:
        return []
    clean = [[" ".join(cell.split()) for cell in cells] for cells in table]
    if style == "rows":
        return [(f"table_{i}", " | ".join(cells)) for i, cells in enumerate(clean) if any(cells)]
    header, lines = clean[0], []
    for index, cells in enumerate(clean[1:], start=1):
        name = cells[0] if cells else ""
        columns = header[1:] + [""] * (len(cells) - len(header))
        facts = [
            " ".join(filter(None, (name, *pair))) for pair in zip(columns, cells[1:], strict=False) if pair[1]
        ]
        if facts or name:
            lines.append((f"table_{index}", "\n".join(facts) or name))
    return lines


def render_report(row: RawRow, config: Any, count: Callable[[str], int]) -> tuple[str, Cut | None]:
    """Instruction, context and question of a row, and what was left out of its report (None: nothing).

    config: the dataset tier. Its ``context`` is the whole report ("full"), what is most related to the
    question within ``context_tokens`` ("retrieved"; the table's header counts, and is always there), or the
    header and the row's ``gold_places`` ("gold"). ``max_input_tokens`` holds for the whole input, whichever
    it is. count: the tokens of a text.
    """
    pieces = _pieces(row, config)
    limit = config.max_input_tokens
    if config.context == "full" and limit is None:
        return "\n".join(piece.text for piece in pieces), None
    sizes = [count(piece.text + "\n") for piece in pieces[:-1]] + [count(pieces[-1].text)]
    dropped: set[int] = set()

    def tokens() -> int:
        """Of what is kept. Where those of lines may not add up to those of the whole, the whole decides."""
        lines = list(_kept(pieces, dropped))
        if not _lines_add_up(count) or any(line.endswith(" ") for line in lines):
            return count("\n".join(lines))
        return sum(size for i, size in enumerate(sizes) if i not in dropped)

    total = length = tokens()
    order = _least_related_first(pieces, row.question)
    if config.context == "retrieved":
        header = sum(size for piece, size in zip(pieces, sizes, strict=True) if piece.place == "header")
        dropped.update(_beyond(order, sizes, config.context_tokens - header))
    elif config.context == "gold":
        dropped.update(i for i in order if pieces[i].place not in row.gold_places)
    if dropped:
        length = tokens()
    for index in order:
        if limit is None or length <= limit:
            break
        if index in dropped:
            continue
        dropped.add(index)
        length -= sizes[index]
        if length <= limit or index == order[-1]:
            length = tokens()
    text = "\n".join(_kept(pieces, dropped))
    still_over = limit is not None and length > limit
    if not dropped and not still_over:
        return text, None
    places = [pieces[index].place for index in dropped]
    cut = Cut(
        sentences=sum(place.startswith("text") for place in places),
        rows=sum(place.startswith("table") for place in places),
        tokens_before=total,
        tokens_after=length,
        evidence_lost=len(set(places) & set(row.gold_places)),
        still_over=still_over,
    )
    return text, cut


def _pieces(row: RawRow, config: Any) -> list[_Piece]:
    """What an input is made of, in its order: instruction, texts, table, texts, question."""
    before = _sentence_pieces(row.pre_text, first=0, towards_table=True)
    after = _sentence_pieces(row.post_text, first=len(row.pre_text), towards_table=False)
    table = [_Piece(place, text, 0) for place, text in table_lines(row.table, config.table_style)]
    if table and table[0].place == "table_0":
        table[0] = _Piece("header", table[0].text, 0)
    fixed = [_Piece("", " ".join(config.instruction.split()), 0)] if config.instruction else []
    question = _Piece("", f"question: {' '.join(row.question.split())}", 0)
    return [*fixed, *before, *table, *after, question]


def _kept(pieces: list[_Piece], dropped: set[int]) -> Iterator[str]:
    return (piece.text for i, piece in enumerate(pieces) if i not in dropped)


def _beyond(order: list[int], sizes: list[int], budget: int) -> Iterator[int]:
    """The pieces that are left out of a budget in tokens, the most related taken first.

    One that does not fit is passed over, and smaller ones after it may still be taken.
    """
    for index in reversed(order):
        if sizes[index] > budget:
            yield index
        else:
            budget -= sizes[index]


@lru_cache(maxsize=8)
def _lines_add_up(count: Callable[[str], int]) -> bool:
    """Whether the tokens of lines, each with its break, add up to those of the whole.

    They do where a tokenizer splits text at line breaks first (GPT-2's, Llama 3's and Qwen's, but for a blank
    before the break), and not where it marks the beginning of a text (Llama 2's). Tried on what lines of a
    report end and begin with.
    """
    return all(
        count(f"{a}\n{b}") == count(f"{a}\n") + count(b)
        for a in ("cash", "2009", "5.9% ( 5.9 % )", "rose .", "$ 7", "cash |")
        for b in ("the", "2010", "$ 3", "( 4 )", " | 5", "- 6")
    )


def _sentence_pieces(texts: tuple[str, ...], first: int, towards_table: bool) -> list[_Piece]:
    sentences = [
        (f"text_{first + i}", part) for i, text in enumerate(texts) for part in split_sentences(text)
    ]
    last = len(sentences) - 1
    return [
        _Piece(place, part, last - i if towards_table else i) for i, (place, part) in enumerate(sentences)
    ]


def _least_related_first(pieces: list[_Piece], question: str) -> list[int]:
    """Indices of the pieces that may be cut, the least related to the question first.

    Among equals the farthest from the table goes first.
    """
    words = [related_words(piece.text) for piece in pieces]
    optional = [i for i, piece in enumerate(pieces) if piece.place.startswith(("text", "table"))]
    frequency = Counter(word for i in optional for word in words[i])
    asked = related_words(question)

    def relatedness(index: int) -> float:
        shared = sorted(words[index] & asked)  # sorted: the sum must not depend on the set's order
        score = sum(math.log((1 + len(optional)) / frequency[word]) for word in shared)
        score += ROW_BONUS if pieces[index].place.startswith("table") else 0.0
        return score / (len(words[index]) + LENGTH_OFFSET)

    return sorted(optional, key=lambda i: (relatedness(i), -pieces[i].distance, -i))


@lru_cache(maxsize=1 << 16)  # a page's sentences come back with each of its questions
def related_words(text: str) -> frozenset[str]:
    """Lower-case words without plural s, and numbers."""
    found = (word.lower() for word in _WORD.findall(text))
    return frozenset(word[:-1] if len(word) > 3 and word.endswith("s") else word for word in found)
