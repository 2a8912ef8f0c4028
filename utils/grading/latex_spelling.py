r"""One spelling for what LaTeX, and models that write it, spell in many ways.

``plain_latex`` changes how an answer is written, never what it says: unicode becomes LaTeX, styles and sizes
go, synonyms of a command become one of them (``\dfrac`` is ``\frac``), blanks become one of three (a space, a
thin space ``~``, a wide one ``~~``), and words stand in double quotes, so that ``\text{ cm}``, ``"cm"`` and
the product ``c m`` differ.
"""

import re

from utils.grading.quantity_units import is_known_word, is_long_unit

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_FRACTIONS = dict(zip("½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞", str.split(
    "1/2 1/3 2/3 1/4 3/4 1/5 2/5 3/5 4/5 1/6 5/6 1/8 3/8 5/8 7/8"), strict=True))  # fmt: skip
_GREEK = dict(zip("αβγδεζηθκλμνξρστφχψωΔΘΛΣΦΨΩ", str.split(
    "alpha beta gamma delta epsilon zeta eta theta kappa lambda mu nu xi rho sigma tau phi chi psi omega"
    " Delta Theta Lambda Sigma Phi Psi Omega"), strict=True))  # fmt: skip
_SIGNS = dict(zip("×·⋅∙∞≤⩽≥⩾≠≈±∓°º∪∩∖∈∅ℝ∧∨‰…⟨⟩∠π", str.split(
    "times cdot cdot cdot infty le le ge ge neq approx pm mp degree degree cup cap setminus in emptyset reals"
    " land lor permil ldots langle rangle angle pi"), strict=True))  # fmt: skip
_UNICODE = str.maketrans(
    {sign: rf"\{name} " for sign, name in (_SIGNS | _GREEK).items()}
    | dict.fromkeys("−–—‐‑", "-") | dict.fromkeys("÷⁄∕", "/") | dict.fromkeys("′’", "'")
    | dict.fromkeys("\u00a0\u2009\u202f", "~") | dict.fromkeys("“”\"", " ") | {"\u200b": ""}
    | {"√": r"\sqrt@", "∛": r"\sqrt[3]@", "∜": r"\sqrt[4]@"}
    | {"¢": r"\text{cents}", "€": r"\text{euros}", "£": r"\text{pounds-sterling}", "¥": r"\text{yen}"}
    | {chr(0xFF01 + place): chr(0x21 + place) for place in range(94) if place != 1}  # full-width ASCII
)  # fmt: skip

# Commands that mean another one, or nothing.
_SYNONYMS = {
    "frac": "dfrac tfrac cfrac nicefrac sfrac", "binom": "dbinom tbinom", "le": "leq leqslant leqq",
    "ge": "geq geqslant geqq", "neq": "ne", "cdot": "ast bullet", "emptyset": "varnothing", "lor": "vee",
    "land": "wedge", "setminus": "backslash smallsetminus", "overline": "bar dot", "phi": "varphi",
    "approx": "simeq doteq thickapprox", "epsilon": "varepsilon", "ldots": "dots cdots dotsc dotsb",
    "reals": "R Reals", "infty": "infin",
}  # fmt: skip
_STYLES = str.split(
    """left right middle big Big bigg Bigg bigl Bigl biggl Biggl bigr Bigr biggr Biggr bigm Bigm displaystyle
    textstyle scriptstyle scriptscriptstyle tiny small footnotesize scriptsize normalsize large Large
    LARGE huge Huge bf it rm sf tt bfseries itshape rmfamily boldmath limits nolimits boldsymbol bm
    underline mathbf mathit mathsf mathtt mathnormal mathcal mathscr mathfrak ensuremath mathopen
    mathclose mathrel mathord mathbin strut mathstrut null relax centering operatorname fbox boxed
    allowbreak nobreak hfill"""
)
_SPELLED = {
    "<": "lt", ">": "gt", "[": "lbrack", "]": "rbrack", "(": "lparen", ")": "rparen", r"\{": "lbrace",
    r"\}": "rbrace", "|": "vert lvert rvert", "/": "div slash", "~~": "quad qquad", ":": "colon",
    "~": "thinspace enspace medspace thickspace space", "°": "degree degrees textdegree", "%": "percent",
    "$": "dollar textdollar", '"permil"': "permil textperthousand", '"euros"': "euro", '"yen"': "yen",
    '"pounds-sterling"': "pounds", '"cents"': "cents", "'": "prime",
}  # fmt: skip
_COMMANDS = (
    dict.fromkeys(_STYLES, " ")
    | {name: rf"\{main} " for main, names in _SYNONYMS.items() for name in names.split()}
    | {name: text for text, names in _SPELLED.items() for name in names.split()}
)

# What models write without the backslash.
_PLAIN = {"**": "^", "<=": r"\le ", ">=": r"\ge ", "!=": r"\neq ", "==": "=", "+/-": r"\pm ", "+-": r"\pm "}
_PLAIN_SIGN = re.compile("|".join(map(re.escape, _PLAIN)) + r"|\.\.\.+")
_FUNCTIONS = str.split("sin cos tan cot sec csc log ln exp arcsin arccos arctan gcd lcm max")
_BARE = {name: rf"\{name} " for name in (*_FUNCTIONS, *str.split("pi infty alpha beta gamma theta lambda"))}
_BARE |= {"Pi": r"\pi ", "PI": r"\pi ", "sqrt": r"\sqrt@"} | dict.fromkeys(
    ("infinity", "inf", "oo"), r"\infty "
)
_ROMAN_LETTERS = ("e", "i", "d")  # constants and the differential in roman type, not units

_TEXT = re.compile(
    r"\\(text(?:bf|it|rm|sf|tt|up|sc|md|normal)?|emph|mbox|hbox|mathrm|mathbf|operatorname\*?)\s*\{([^{}]*)\}"
)
_INVISIBLE = re.compile(r"\\[hv]?phantom\s*(?:\{[^{}]*\}|\\[a-zA-Z]+|[^\\{}])|\\hspace\*?\s*\{[^{}]*\}")
_DELETED = re.compile(
    r"\\(?:text)?color\s*\{[^{}]*\}|\\(?:left|right)\s*\.|\\!|\{\}|\\(?:label|tag)\s*\{[^{}]*\}"
)
_WORD = re.compile(r"\"[^\"]*\"|\\[a-zA-Z]+|[A-Za-z][A-Za-z.'-]*")
_BARE_WORD = re.compile(
    r'"[^"]*"|\\(?:begin|end)\s*\{[^{}]*\}|\\[a-zA-Z]+|(?<![A-Za-z])[A-Za-z]+(?:\.[a-z]\.)?'
)
_SHORT_UNITS = ("cm", "mm", "km", "kg", "ft", "lb", "mi", "hr", "oz", "yd", "mL", "ml")


def undelimited(text: str) -> str:
    r"""The text without blanks and one pair of ``$``, ``$$``, ``\(`` or ``\[`` around it."""
    text = text.strip()
    for opening, closing in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
        inside = text[len(opening) : -len(closing)]
        if len(text) > 2 * len(opening) - 1 and text.startswith(opening) and text.endswith(closing):
            return text if inside.endswith("\\") else inside.strip()
    return text


def plain_latex(text: str) -> str:
    """The text in one spelling, words in double quotes; never raises, linear in its length."""
    text = _unicode_as_latex(undelimited(text))
    text = re.sub(r"\\\\(?:\s*\[-?[\d.]+\s*[a-z]+\])?", "¶", text)  # the end of a row
    text = re.sub(r"(?<!\\)\$|\\[()\[\]]", " ", text)  # mathematics inside mathematics
    text = re.sub(_INVISIBLE, "~~", text)
    text = _DELETED.sub("", re.sub(r",\s*\\!\s*(?=\d)", "{,}", text))
    text = re.sub(r"\\math(?:rm|it|bf)\s+([A-Za-z])(?![A-Za-z])", r"{\1}", text)
    text = re.sub(r"\\(?:mathbb|Bbb)\s*\{?\s*([A-Z])\s*\}?", r"\\\1 ", text)
    for _ in range(3):  # texts in texts
        text = _TEXT.sub(_quoted, text)
    text = text.replace(r"\$", "$").replace(r"\%", "%").replace("\n", " ")
    text = re.sub(r"\\([a-zA-Z]+)", lambda match: _COMMANDS.get(match[1], match[0]), text)
    text = re.sub(r"\\[,;:> ]", "~", text)
    text = _PLAIN_SIGN.sub(lambda match: _PLAIN.get(match[0], r"\ldots "), text)
    text = re.sub(r"\(([0-9A-Z]+)\)\s*_", r"\1_", text)
    text = re.sub(r'([0-9A-Z]+)[ ~]*\(?"base"[ ~]*(\d+|"\w+")\)?', r"\1_{\2}", text)
    text = re.sub(r"\^\s*(?:\{\s*(?:\\circ|°)\s*\}|\\circ(?![a-zA-Z])|°)", "°", text)
    return re.sub(r" +", " ", _BARE_WORD.sub(_classified, text)).strip(" ~")


def _unicode_as_latex(text: str) -> str:
    if text.isascii():
        return text.replace('"', " ")
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ]+", lambda match: "^{" + match[0].translate(_SUPERSCRIPTS) + "}", text)
    text = re.sub("[₀₁₂₃₄₅₆₇₈₉]+", lambda match: "_{" + match[0].translate(_SUBSCRIPTS) + "}", text)
    text = re.sub("[" + "".join(_FRACTIONS) + "]", lambda match: " " + _FRACTIONS[match[0]], text)
    return text.translate(_UNICODE)


def _quoted(match: re.Match) -> str:
    """The content of ``\\text{…}`` with its words in quotes; roman e, i and d are letters."""
    command, content = match.groups()
    if content.strip() in _ROMAN_LETTERS or (command == "mathbf" and len(content.strip()) == 1):
        return f"{{{content}}}"
    if content in _FUNCTIONS:
        return f"\\{content} "
    if re.fullmatch(r"[0-9A-Z]*\d[0-9A-Z]*", content):  # digits of a number in some base
        return content
    return _WORD.sub(lambda word: word[0] if word[0][0] in '"\\' else f'"{word[0].rstrip("-")}"', content)


def _classified(match: re.Match) -> str:
    """A run of letters outside ``\\text``: a function, a word in quotes, or letters to be multiplied."""
    run = match[0]
    if run[0] in '"\\':
        return run
    if run in _BARE:
        return _BARE[run]
    before = match.string[max(0, match.start() - 2) : match.start()]
    if run in _SHORT_UNITS:
        return f'"{run}"' if re.search(r"\d[ ~]$", before) else run
    if re.fullmatch(r"[ap]\.m\.|[ap]m|[AP]M|th|st|nd|rd", run):
        return f'"{run}"' if re.search(r"\d[ ~]?$", before) else run
    if run.lower() in ("or", "and", "not") or is_long_unit(run):
        return f'"{run}"'
    in_order = list(run) == sorted(run)  # "abcd" is a product, "east" a word
    is_word = len(run) > 3 and not in_order and not run.isupper()
    return f'"{run}"' if is_word or (len(run) > 2 and is_known_word(run)) else run
