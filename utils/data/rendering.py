"""A report and a question on it as one input, cut to a length.

A context longer than the limit loses the sentences and table rows least related to the question. Related is
lexical: the sum of the inverse document frequencies, within this context, of the words shared with the
question, plus a bonus for rows, over the number of words. The gold answer and the gold evidence have no part
in the choice, so that training and test inputs are made in the same way; they only serve to count what
cutting lost.
"""

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

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
    """What was cut from one over-long input, in pieces and tokens.

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
    place: str  # "text_3", "table_2" as in FinQA's gold_inds; "header" and "" are never cut
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


def render_report(
    row: RawRow, style: str, instruction: str, limit: int | None, count: Callable[[str], int]
) -> tuple[str, Cut | None]:
    """Instruction, context and question of a row within ``limit`` tokens, and what was cut (None: nothing).

    style: of the table, as in `table_lines`. count: the tokens of a text.
    """
    before = _sentence_pieces(row.pre_text, first=0, towards_table=True)
    after = _sentence_pieces(row.post_text, first=len(row.pre_text), towards_table=False)
    table = [_Piece(place, text, 0) for place, text in table_lines(row.table, style)]
    if table and table[0].place == "table_0":
        table[0] = _Piece("header", table[0].text, 0)
    fixed = [_Piece("", " ".join(instruction.split()), 0)] if instruction else []
    pieces = [*fixed, *before, *table, *after, _Piece("", f"question: {' '.join(row.question.split())}", 0)]
    text = "\n".join(piece.text for piece in pieces)
    if limit is None or (total := count(text)) <= limit:
        return text, None
    dropped: set[int] = set()
    length = total
    order = _least_related_first(pieces, row.question)
    for position, index in enumerate(order):
        dropped.add(index)
        length -= count(pieces[index].text + "\n")
        if length <= limit or position == len(order) - 1:
            # Tokens of the parts need not add up to those of the whole, so the whole decides.
            text = "\n".join(piece.text for i, piece in enumerate(pieces) if i not in dropped)
            length = count(text)
            if length <= limit:
                break
    places = [pieces[index].place for index in dropped]
    cut = Cut(
        sentences=sum(place.startswith("text") for place in places),
        rows=sum(place.startswith("table") for place in places),
        tokens_before=total,
        tokens_after=length,
        evidence_lost=len(set(places) & set(row.gold_places)),
        still_over=length > limit,
    )
    return text, cut


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
    words = [_words(piece.text) for piece in pieces]
    optional = [i for i, piece in enumerate(pieces) if piece.place.startswith(("text", "table"))]
    frequency = Counter(word for i in optional for word in words[i])
    asked = _words(question)

    def relatedness(index: int) -> float:
        shared = sorted(words[index] & asked)  # sorted: the sum must not depend on the set's order
        score = sum(math.log((1 + len(optional)) / frequency[word]) for word in shared)
        score += ROW_BONUS if pieces[index].place.startswith("table") else 0.0
        return score / (len(words[index]) + LENGTH_OFFSET)

    return sorted(optional, key=lambda i: (relatedness(i), -pieces[i].distance, -i))


@lru_cache(maxsize=1 << 16)  # a page's sentences come back with each of its questions
def _words(text: str) -> frozenset[str]:
    """Lower-case words without plural s, and numbers."""
    found = (word.lower() for word in _WORD.findall(text))
    return frozenset(word[:-1] if len(word) > 3 and word.endswith("s") else word for word in found)
