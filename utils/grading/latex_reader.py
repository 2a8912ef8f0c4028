r"""Reads a LaTeX answer into a tree, whole or not at all.

A node is a tuple that begins with its kind:

    ("number", Fraction)                       ("based", digits, base)
    ("constant", "pi" | "e" | "i" | "infinity")   ("symbol", name)
    ("add" | "multiply" | "divide" | "power", a, b)   ("root", degree, a)
    ("negate" | "factorial" | "degrees", a)    ("plus_minus" | "minus_plus", a, b), a None where ± is a sign
    ("call", name, arguments)                  ("quantity", a, unit)
    ("list" | "and" | "or" | "set", items)     ("tuple", opening, closing, items)
    ("matrix", rows)                           ("relation", operands, signs)
    ("union" | "intersection" | "difference", a, b)   ("reals",), ("ellipsis",)
    ("clock", hour, minute, second, "a" | "p" | "")   ("ratio", items), ("words", text)

What the grammar does not know raises Unreadable: nothing is skipped, no number is picked out of a text, and
numbers side by side are neither added nor multiplied.
"""

import re
from fractions import Fraction

from utils.grading.latex_atoms import Node, Scanner, Unreadable, is_symbol_or_function
from utils.grading.latex_spelling import plain_latex
from utils.grading.quantity_units import number_word, read_unit

_WORD = re.compile(r'"([^"]*)"')
_PHRASE = re.compile(r"""(?:"(?!(?:and|or)")[^"]*"|[-~ .'/0-9])+""")
_RELATION = re.compile(r"=|<|>|\\(le|ge|neq|approx|in)(?![a-zA-Z])")
_SIGNS = {"=": "=", "<": "<", ">": ">", "le": "<=", "ge": ">=", "neq": "!=", "approx": "~", "in": "in"}
_CLOCK = re.compile(
    r'(\d{1,2})(?:\s*:\s*(\d\d))?(?:\s*:\s*(\d\d))?(?:[\s~]*"([ap])\.?m\.?")?', re.IGNORECASE | re.ASCII
)
_CURRENCIES = ("euros", "pounds-sterling", "yen", "USD", "EUR", "GBP")
_ORDINALS = ("st", "nd", "rd", "th")
_LEAD_IN = str.split(
    """the so thus hence therefore final answer answers is are equals equal result value be we get have option
    choice either both"""
)
_BARE_LEAD_IN = re.compile(r'(?:The )?(?:"final" )?"answer" is(?![a-z])[ ~:]*', re.IGNORECASE)
_RAISED = re.compile(r"\^\s*(?:\{\s*([23])\s*\}|([23]))", re.ASCII)
_PER = re.compile(r'/(?=\s*")')
_NUMBER_AHEAD = re.compile(r"[{ ~]*[0-9.]")
_ALL_REALS = ("all real numbers", "all reals", "real numbers", "the real numbers", "set of all real numbers")
_NO_SOLUTION = ("no solution", "no solutions", "empty set", "the empty set")
_FACTOR = re.compile(
    r"[A-Za-z({\[]|\\(?:frac|sqrt|binom|pi|infty|begin|lfloor|lceil|langle|overline|ldots)(?![a-zA-Z])"
)


def read(text: str) -> Node:
    """The tree of an answer without its ``\\boxed``; raises Unreadable."""
    plain = re.sub(r"[\s~.,;:¶\\]+$", "", plain_latex(text)).lstrip(" ~:")
    plain = _without_lead_in(_BARE_LEAD_IN.sub("", plain))
    clock = _clock(plain)
    if clock is not None:
        return clock
    reader = _Reader(plain)
    try:
        node = reader.items()
    except RecursionError:
        raise Unreadable("too deep") from None
    reader.blanks()
    if reader.at < len(plain):
        raise Unreadable(f"left over: {plain[reader.at :][:20]!r}")
    return node


def phrases(text: str) -> list[str]:
    """The words or option letters of an answer, of a list in any order, without case and punctuation."""
    plain = plain_latex(text).replace("~", " ")
    parts = re.split(r'[,;]|"(?:and|or)"', plain, flags=re.IGNORECASE)
    bare = [re.sub(r"[^\w ]", "", _without_lead_in(part.strip()).casefold()) for part in parts]
    bare = [
        re.sub(r"^(?:the|an?) |(?<=\d)(?:st|nd|rd|th)\b|[ _]", "", " ".join(part.split())) for part in bare
    ]
    return sorted(filter(None, bare))


def _without_lead_in(plain: str) -> str:
    """ "The answer is" before an answer says nothing; any other words do ("not", "more than")."""
    while (match := _WORD.match(plain)) and match[1].lower().rstrip(".:") in _LEAD_IN:
        rest = plain[match.end() :].lstrip(" ~:")
        if not rest or rest[0] == "=":
            break
        plain = rest
    return plain


def _clock(plain: str) -> Node | None:
    """10:30, 8:34 "p.m.", 9 "a.m."; None for any other text, such as the ratio 3:2."""
    match = _CLOCK.fullmatch(plain)
    if match is None or (match[2] is None and match[4] is None):
        return None
    hour, minute, second = (int(part or 0) for part in match.groups()[:3])
    if hour > 24 or minute > 59 or second > 59:
        return None
    return ("clock", hour, minute, second, (match[4] or "").lower())


class _Reader(Scanner):
    """Lists, relations, sets, sums and products, in this order of binding; atoms are the Scanner's."""

    def items(self) -> Node:
        """Items between commas, semicolons, "and" and "or"; a single one is itself."""
        found, joined = [self.relation()], set()
        while separators := self.separators():
            joined |= separators
            found.append(self.relation())
        if len(found) == 1:
            return found[0]
        if _is_named(found[0]) and not any(item[0] in ("relation", "words") for item in found[1:]):
            name = found[0][1][0]  # "x = 1, -2" names both
            found[1:] = [("relation", (name, item), ("=",)) for item in found[1:]]
        return ("or" if "or" in joined else "and" if joined == {"and"} else "list", tuple(found))

    def separators(self) -> set[str]:
        joined = set()
        while True:
            start = self.at
            if self.take(",", ";", "{,}"):
                joined.add(",")
            elif self.take(r"\lor"):
                joined.add("or")
            elif self.take(r"\land"):
                joined.add("and")
            elif (word := self.match(_WORD)) and word[1].lower() in ("and", "or"):
                joined.add(word[1].lower())
            else:
                self.at = start
                return joined

    def relation(self) -> Node:
        operands, signs = [self.ratio()], []
        while sign := self.match(_RELATION):
            signs.append(_SIGNS[sign[1] or sign[0]])
            operands.append(self.ratio())
        return ("relation", tuple(operands), tuple(signs)) if signs else operands[0]

    def ratio(self) -> Node:
        parts = [self.union()]
        while self.take(":", '"to"'):
            parts.append(self.union())
        return ("ratio", tuple(parts)) if len(parts) > 1 else parts[0]

    def union(self) -> Node:
        left = self.sum()
        while sign := self.take(r"\cup", r"\cap", r"\setminus"):
            kind = {r"\cup": "union", r"\cap": "intersection", r"\setminus": "difference"}[sign]
            left = (kind, left, self.sum())
        return left

    # ------------------------------------------------------------------------------------- arithmetic

    def sum(self) -> Node:
        """Terms with signs; a currency before them, a unit behind them."""
        start = self.at
        negative = self.take("-")
        currency = ["dollar"] if self.take("$") else self.currency()
        if not currency:
            self.at, negative = start, ""
            words = self.words()
            if words is not None:
                return words
        terms = [self.signed_term()]
        while sign := self.take("+", "-", r"\pm", r"\mp"):
            right = self.signed_term()
            if sign in ("+", "-"):
                terms.append(("negate", right) if sign == "-" else right)
            else:
                terms = [("plus_minus" if sign == r"\pm" else "minus_plus", _tree("add", terms), right)]
        left = _tree("add", terms)
        if negative:
            left = ("negate", left)
        if self.take(r"\over"):
            left = ("divide", left, self.sum())
        elif self.take(r"\choose"):
            left = ("call", "binom", (left, self.sum()))
        return self.with_unit(left, currency)

    def currency(self) -> list[str]:
        start = self.at
        word = self.match(_WORD)
        if word and word[1] in _CURRENCIES:
            return [word[1]]
        self.at = start
        return []

    def words(self) -> Node | None:
        """A phrase that begins with a word; None for a single letter, which is a symbol."""
        start = self.at
        self.blanks()
        phrase = self.match(_PHRASE) if self.ahead('"') else None
        text = " ".join(re.sub(r'["~ ]+', " ", phrase[0]).split()) if phrase else ""
        if len(text) < 2:
            self.at = start
            return None
        if text.lower() in _ALL_REALS:
            return ("reals",)
        if text.lower() in _NO_SOLUTION:
            return ("set", ())
        value = number_word(text)
        return ("words", text) if value is None else ("number", Fraction(value))

    def with_unit(self, value: Node, currency: list[str]) -> Node:
        """The value with the unit, the scale or the ending ("12th") that stands behind it."""
        words: list[str] = []
        while True:
            start = self.at
            word = self.match(_WORD)
            if word and word[1].lower() not in ("and", "or", "to"):
                words.append(word[1])
                continue
            self.at = start
            if words and (raised := self.match(_RAISED)):
                words.append("^" + (raised[1] or raised[2]))
            elif words and self.match(_PER):
                words.append("/")
            elif not words and (sign := self.take("%", "$")):
                words.append("percent" if sign == "%" else "dollar")
            else:
                break
        if len(words) == 1 and words[0] in _ORDINALS and value[0] == "number":
            return value
        if value[0] == "degrees" and not words:
            value, words = value[1], ["degree"]
        try:
            unit, scale = read_unit(words or currency)
            if words and currency:
                money, _ = read_unit(currency)
                if unit not in (None, money):
                    raise ValueError("a currency and a unit")
                unit = money
        except ValueError as error:
            raise Unreadable(str(error)) from None
        if scale != 1:
            value = ("multiply", ("number", scale), value)
        return value if unit is None else ("quantity", value, unit)

    def signed_term(self) -> Node:
        sign = self.take("+", "-", r"\pm", r"\mp")
        node = self.term()
        if sign in (r"\pm", r"\mp"):
            return ("plus_minus" if sign == r"\pm" else "minus_plus", None, node)
        return ("negate", node) if sign == "-" else node

    def term(self) -> Node:
        """Factors, with signs between them or without."""
        factors = [self.power()]
        divided = False
        while True:
            if sign := self.take(r"\cdot", r"\times", "*", "/"):
                negative = self.take("-")
                right = self.power()
                right = ("negate", right) if negative else right
                if sign == "/":
                    left = _tree("multiply", factors)
                    divided = not left[0] == right[0] == "number"
                    factors = [("divide", left, right)]
                else:
                    factors.append(right)
            elif self.factor_ahead():
                if divided:
                    raise Unreadable("a/bc may be (a/b)c or a/(bc)")
                factors.append(self.power())
            else:
                return _tree("multiply", factors)

    def factor_ahead(self) -> bool:
        """Whether a factor follows without a sign. A number may only follow a bracket: "3 4", "{3}4" and
        "x 2" are no products, and raise Unreadable."""
        before = self.text[: self.at].rstrip(" ~")[-1:]
        self.blanks()
        if _NUMBER_AHEAD.match(self.text, self.at):
            if before in (")", "]") and self.text[self.at] != "{":
                return True
            raise Unreadable("numbers side by side")
        if self.text.startswith("|", self.at):
            return not self.bars
        return bool(_FACTOR.match(self.text, self.at) or is_symbol_or_function(self.text, self.at))


def _tree(kind: str, parts: list[Node]) -> Node:
    """One sum or product of the parts, as shallow as it can be."""
    if len(parts) == 1:
        return parts[0]
    half = len(parts) // 2
    return (kind, _tree(kind, parts[:half]), _tree(kind, parts[half:]))


def _is_named(node: Node) -> bool:
    return node[0] == "relation" and node[2] == ("=",)
