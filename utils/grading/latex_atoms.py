"""The smallest parts of an answer: numbers, letters, brackets, and commands with their arguments."""

import re
from fractions import Fraction

from utils.grading.quantity_units import number_word

Node = tuple
MAX_DEPTH = 50

_FUNCTION = re.compile(
    r"\\(arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|log|ln|lg|exp|max|min|gcd|lcm)(?![a-zA-Z])"
)
_SYMBOL = re.compile(
    r"\\(alpha|beta|gamma|delta|epsilon|zeta|eta|theta|kappa|lambda|mu|nu|xi|rho|sigma|tau|phi|chi|psi|omega"
    r"|Gamma|Delta|Theta|Lambda|Sigma|Phi|Psi|Omega|ell|Z|N|Q|C|(?:triangle|angle)(?:\s*\{\s*[A-Z]+\s*\}|\s*[A-Z]+)?)(?![a-zA-Z])"
)
_SUBSCRIPT = re.compile(r"\s*_\s*(?:\{([\w ,]*)\}|(\d+|\w))", re.ASCII)
_BASED = re.compile(
    r"([0-9A-Z]+(?:\.[0-9A-Z]+)?|[0-9]+[a-z]+)\s*_\s*"
    r'(?:\{\s*(?:"base"[ ~]*)?\(?(\d+)\)?\s*\}|(\d+)|\{?\s*"?([a-z]+)"?\s*\}?)',
    re.ASCII,
)
_CONTINUED = re.compile(r"(\d{0,12})\.(\d{0,12}?)(\d{1,12}?)\3+[ ~]*\\ldots", re.ASCII)
_REPEATING = re.compile(r"(\d*)\.(\d*)(?:\\overline\s*(?:\{\s*(\d+)\s*\}|(\d))|(?<=\.)\((\d+)\))", re.ASCII)
_SCIENTIFIC = re.compile(r"(\d+(?:\.\d+)?)[eE](\d{1,3})(?![\d.])", re.ASCII)
_TAIL = r"(?![\d{])(?:\.\d+)?"
_GROUPED = re.compile(
    r"[1-9]\d{0,2}(?:(?:\{,\} ?\d{3})+|(?:,\d{3})+(?!,\d)|(?: ?~ ?\d{3})+|(?: \d{3})+(?![ ~]*/))" + _TAIL,
    re.ASCII,
)
_GROUPED_IN_BRACKETS = re.compile(
    r"[1-9]\d{0,2}(?:(?:\{,\}\d{3})+|(?:,0\d\d)+|(?:~\d{3})+)" + _TAIL, re.ASCII
)
_PLAIN = re.compile(r"\d+\.\d+|\.\d+|\d+(?:\.(?=\s*(?:[,)}\]&¶+*/-]|\\|$)))?", re.ASCII)
_FRACTION = re.compile(r"(\d+)\s*/\s*(\d+)(?!\d)", re.ASCII)
_DEFINED = re.compile(r"([A-Za-z])(?:\^\{-1\})?\s*\(\s*[a-z](?:\s*,\s*[a-z])*\s*\)(?=\s*(?:=|\\le|\\ge|<|>))")
_LETTER_SET = re.compile(r"\s*[a-z](?:\s*\\in\s*\\reals)?\s*(?:\\mid|\||:)")
_NAME = re.compile(r"\\overline\s*(?:\{\s*(?:([A-Z]{2,4})|([A-Za-z]))\s*\}|([A-Za-z]))")
_MATRIX = re.compile(r"\\begin\s*\{([pbB]?matrix|smallmatrix|array)\}(?:\s*\{[clr| ]*\})?")
_QUOTED_LETTER = re.compile(r'"([A-Za-z])"')
_ORDINAL = re.compile(r'\{?\s*"?(?:st|nd|rd|th)"?\s*\}?')
_TRIGONOMETRIC = ("sin", "cos", "tan", "cot", "sec", "csc")
_OF_SEVERAL = ("max", "min", "gcd", "lcm")


class Unreadable(ValueError):
    """The text is not an answer that the grammar knows."""


class Scanner:
    """Recursive descent over one text; each method reads from ``at`` on and leaves it behind what it read."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.depth = 0
        self.brackets = 0  # open ones: in them a comma separates, "(1,234)" is a pair
        self.bars = 0  # open absolute values

    def items(self) -> Node:
        raise NotImplementedError

    def sum(self) -> Node:
        raise NotImplementedError

    def factor_ahead(self) -> bool:
        raise NotImplementedError

    # ------------------------------------------------------------------------------------- characters

    def blanks(self) -> None:
        while self.text[self.at : self.at + 1] in (" ", "~", "\t"):
            self.at += 1

    def take(self, *options: str) -> str:
        """The first of the options that comes next, commands only as a whole; "" if none does."""
        self.blanks()
        for option in options:
            if self.text.startswith(option, self.at):
                end = self.at + len(option)
                if option[0] == "\\" and option[-1].isalpha() and self.text[end : end + 1].isalpha():
                    continue
                self.at = end
                return option
        return ""

    def match(self, pattern: re.Pattern) -> re.Match | None:
        self.blanks()
        found = pattern.match(self.text, self.at)
        if found:
            self.at = found.end()
        return found

    def expect(self, *options: str) -> str:
        found = self.take(*options)
        if not found:
            raise Unreadable(f"expected {' or '.join(options)} before {self.text[self.at :][:20]!r}")
        return found

    def ahead(self, *options: str) -> bool:
        start = self.at
        found = self.take(*options)
        self.at = start
        return bool(found)

    # ------------------------------------------------------------------------------------------ atoms

    def power(self) -> Node:
        """An atom with what stands behind or above it: !, °, a prime, an exponent."""
        base = self.atom()
        while True:
            if self.take("!"):
                base = ("factorial", base)
            elif self.take("°"):
                base = ("degrees", base)
            elif self.take("^"):
                if base[0] == "power" or self.ahead("*"):
                    raise Unreadable("two exponents")
                if base[0] == "number" and self.match(_ORDINAL):
                    continue
                base = ("power", base, self.exponent())
            elif base[0] == "symbol" and self.take("'"):
                base = ("symbol", base[1] + "'")
            else:
                return base

    def exponent(self) -> Node:
        negative = self.take("-")
        self.blanks()
        digits = re.compile("[0-9]+").match(self.text, self.at)
        if digits:
            self.at = digits.end()
            node: Node = ("number", Fraction(int(digits[0])))
        else:
            node = self.bracket() if self.ahead("(") else self.argument()
        return ("negate", node) if negative else node

    def argument(self) -> Node:
        """What TeX takes as a command's argument: a group, a digit, a letter, or a command with its own."""
        self.blanks()
        char = self.text[self.at : self.at + 1]
        if char in ("{", "\\", '"'):
            return self.atom()
        if not (char.isascii() and char.isalnum()):
            raise Unreadable("no argument")
        self.at += 1
        return ("number", Fraction(int(char))) if char.isdigit() else _letter(char)

    def atom(self) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable("too deep")
        node = self.bare_atom()
        self.depth -= 1
        return node

    def bare_atom(self) -> Node:
        self.blanks()
        char = self.text[self.at : self.at + 1]
        if char and char in "0123456789.":
            return self.number()
        if char.isascii() and char.isalpha():
            return self.letters()
        if char == '"' and (letter := self.match(_QUOTED_LETTER)):
            return self.subscripted(letter[1])
        if char and char in "([":
            return self.bracket()
        if char == "{":
            return self.group()
        if self.take("|"):
            self.bars += 1
            inside = self.sum()
            self.bars -= 1
            self.expect("|")
            return ("call", "abs", (inside,))
        if char == "\\":
            return self.command()
        raise Unreadable(f"no term: {self.text[self.at :][:20]!r}")

    def number(self) -> Node:
        if digits := self.match(_REPEATING):
            return ("number", _repeating(digits[1], digits[2], digits[3] or digits[4] or digits[5]))
        if digits := self.match(_CONTINUED):
            return ("number", _repeating(digits[1], digits[2], digits[3]))
        if based := self.based():
            return based
        if digits := self.match(_SCIENTIFIC):
            return ("number", Fraction(digits[1]) * 10 ** int(digits[2]))
        digits = self.match(_GROUPED_IN_BRACKETS if self.brackets else _GROUPED) or self.match(_PLAIN)
        if digits is None:
            raise Unreadable("a point without digits")
        number = Fraction(re.sub(r"[{,} ~]", "", digits[0]))
        if self.text[self.at :].lstrip(" ~").startswith(("\\overline", "_")):
            raise Unreadable("a bar or a base on part of a number")
        return ("number", number) if "." in digits[0] else self.mixed(number)

    def based(self) -> Node | None:
        """Digits with a subscript: 2516_8, 1A_{16}."""
        start = self.at
        found = self.match(_BASED)
        if found:
            base = int(found[2] or found[3] or number_word(found[4]) or 0)
            digits = found[1].replace(".", "")
            letter = len(digits) == 1 and digits.isalpha()  # A_{11} is a symbol
            if 2 <= base <= 36 and not letter and all(int(digit, 36) < base for digit in digits):
                return ("based", found[1].upper().lstrip("0") or "0", base)
        self.at = start
        return None

    def mixed(self, whole: Fraction) -> Node:
        """A whole number with a proper fraction behind it is their sum: 2 1/2. Any other fraction of numbers
        there is refused: 3\\frac{8}{2} may be a sum or a product."""
        start = self.at
        if plain := self.match(_FRACTION):
            part = Fraction(int(plain[1]), int(plain[2]) or 1)
        elif self.take("\\frac"):
            above, below = self.argument(), self.argument()
            if not (above[0] == below[0] == "number" and below[1]):
                self.at = start
                return ("number", whole)
            part = above[1] / below[1]
        else:
            return ("number", whole)
        if not 0 < part < 1:
            raise Unreadable("a whole number before an improper fraction")
        return ("number", whole + part)

    def letters(self) -> Node:
        """One letter; several capitals are one name ("AB" is a segment, "xy" a product)."""
        if defined := self.match(_DEFINED):
            return ("symbol", re.sub(r"[ ~]", "", defined[0]))
        found = re.compile(r"[A-Z]{2,}(?![a-z])|[A-Za-z]").match(self.text, self.at)
        assert found is not None  # a letter stands here
        name = found[0]
        if name.isupper() and (based := self.based()):
            return based
        self.at += len(name)
        if re.compile(r"[0-9]").match(self.text, self.at):
            raise Unreadable("a number after a letter")
        if name in ("f", "g") and self.text.startswith("(", self.at):
            argument = self.bracket()
            return ("call", name, argument[3] if argument[0] == "tuple" else (argument,))
        return self.subscripted(name)

    def subscripted(self, name: str) -> Node:
        subscript = _SUBSCRIPT.match(self.text, self.at)
        if subscript is None:
            return _letter(name)
        self.at = subscript.end()
        return ("symbol", f"{name}_{(subscript[1] or subscript[2] or '').replace(' ', '')}")

    def bracket(self) -> Node:
        opening = self.expect("(", "[")
        bars, self.bars = self.bars, 0
        self.brackets += 1
        inside = self.items()
        self.brackets -= 1
        self.bars = bars
        closing = self.expect(")", "]")
        if inside[0] == "list":
            return ("tuple", opening, closing, inside[1])
        if opening + closing not in ("()", "[]"):
            raise Unreadable("an interval with one end")
        return inside

    def group(self) -> Node:
        self.expect("{")
        state = self.brackets, self.bars
        self.brackets = self.bars = 0
        inside = self.items()
        self.brackets, self.bars = state
        self.expect("}")
        return inside

    # --------------------------------------------------------------------------------------- commands

    def command(self) -> Node:
        if self.take("\\frac"):
            return ("divide", self.argument(), self.argument())
        if self.take("\\sqrt"):
            return self.root()
        if function := self.match(_FUNCTION):
            return self.function(function[1])
        if self.take("\\pi"):
            return ("constant", "pi")
        if self.take("\\infty"):
            return ("constant", "infinity")
        if symbol := self.match(_SYMBOL):
            return self.subscripted(re.sub(r"[\s{}]+", " ", symbol[1]).strip())
        if self.take("\\{"):
            return self.set()
        if matrix := self.match(_MATRIX):
            return self.matrix(matrix[1])
        if name := self.match(_NAME):
            return ("symbol", name[1] or f"overline {name[2] or name[3]}")
        if self.take("\\binom"):
            return ("call", "binom", (self.argument(), self.argument()))
        if self.take("\\langle"):
            inside = self.items()
            self.expect("\\rangle")
            return ("tuple", "(", ")", inside[1] if inside[0] == "list" else (inside,))
        for opening, closing, call in (("\\lfloor", "\\rfloor", "floor"), ("\\lceil", "\\rceil", "ceil")):
            if self.take(opening):
                inside = self.sum()
                self.expect(closing)
                return ("call", call, (inside,))
        for spelling, node in (
            ("\\emptyset", ("set", ())),
            ("\\reals", ("reals",)),
            ("\\ldots", ("ellipsis",)),
        ):
            if self.take(spelling):
                return node
        raise Unreadable(f"unknown command: {self.text[self.at :][:20]!r}")

    def root(self) -> Node:
        degree: Node = ("number", Fraction(2))
        if self.take("["):
            degree = self.sum()
            self.expect("]")
        plain = self.take("@")  # without TeX's rule that the argument is one digit
        inside = self.atom() if plain or self.ahead("(") else self.argument()
        return ("root", degree, inside)

    def function(self, name: str) -> Node:
        """A function with its exponent, its base and its argument: \\sin^2 2x, \\log_2 8, \\max(2, 3)."""
        exponent = base = None
        if self.take("^"):
            exponent = self.exponent()
            if exponent == ("negate", ("number", Fraction(1))) and name in _TRIGONOMETRIC[:3]:
                name, exponent = "arc" + name, None
        if name == "log" and self.take("_"):
            base = self.exponent()
        if self.ahead("("):
            inside = self.bracket()
        else:
            inside = self.power()
            while self.factor_ahead() and not re.compile(r"[(\[|{]").match(self.text, self.at):
                if _FUNCTION.match(self.text, self.at):
                    break
                inside = ("multiply", inside, self.power())
        several = inside[-1] if inside[0] in ("tuple", "set") else (inside,)
        if (len(several) > 1) != (name in _OF_SEVERAL):
            raise Unreadable(f"arguments of {name}")
        node = ("call", name, several if base is None else (*several, base))
        return node if exponent is None else ("power", node, exponent)

    def set(self) -> Node:
        if self.match(_LETTER_SET):
            condition = self.items()
            self.expect("\\}")
            return condition
        if self.take("\\}"):
            return ("set", ())
        self.brackets += 1
        inside = self.items()
        self.brackets -= 1
        self.expect("\\}")
        return ("set", inside[1] if inside[0] in ("list", "and") else (inside,))

    def matrix(self, environment: str) -> Node:
        rows: list[list[Node]] = [[self.sum()]]
        while not self.take("\\end"):
            if self.take("&"):
                rows[-1].append(self.sum())
            else:
                self.expect("¶")
                if not self.ahead("\\end"):
                    rows.append([self.sum()])
        self.expect("{" + environment + "}")
        if len({len(row) for row in rows}) > 1:
            raise Unreadable("rows of different lengths")
        return ("matrix", tuple(tuple(row) for row in rows))


def is_symbol_or_function(text: str, at: int) -> bool:
    """Whether a command that is a symbol ("\\alpha") or a function ("\\sin") stands there."""
    return bool(_SYMBOL.match(text, at) or _FUNCTION.match(text, at))


def _letter(name: str) -> Node:
    return ("constant", name) if name in ("e", "i") else ("symbol", name)


def _repeating(whole: str, fixed: str, repeated: str) -> Fraction:
    scale = 10 ** len(fixed)
    period = Fraction(int(repeated), (10 ** len(repeated) - 1) * scale)
    return Fraction(int(whole or 0)) + Fraction(int(fixed or 0), scale) + period
