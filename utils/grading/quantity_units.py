"""Words after a number: units with their size, scale words, and nouns that are counted.

A unit is ``((name, power), …), size``: its dimensions, sorted by name, and how many of their base units it
holds. "square feet" is ``(("length", 2),), 0.3048²``; "dogs" is ``(("dog", 1),), 1``; None says nothing about
what is measured ("units", "ways").
"""

import re
from fractions import Fraction
from typing import Any

Unit = tuple[tuple[tuple[str, int], ...], Fraction]

_INCH, _POUND, _GALLON = Fraction(254, 10_000), Fraction(45_359_237, 100_000), Fraction(231 * 254**3, 10**9)
_SIZES: dict[str, Any] = {
    "length": {"m meter metre": 1, "cm centimeter centimetre": Fraction(1, 100)}
    | {"km kilometer kilometre": 1000, "mm millimeter millimetre": Fraction(1, 1000)}
    | {"in inch inche": _INCH, "ft foot feet": 12 * _INCH}
    | {"yd yard": 36 * _INCH, "mi mile": 63_360 * _INCH},
    "time": {"s sec second": 1, "min minute": 60, "h hr hour": 3600, "day": 86_400, "week": 604_800}
    | {"ms millisecond": Fraction(1, 1000)},
    "months": {"month": 1, "yr year": 12, "decade": 120, "century centurie": 1200},
    "mass": {"g gm gram": 1, "kg kilogram": 1000, "mg milligram": Fraction(1, 1000), "lb pound": _POUND}
    | {"oz ounce": _POUND / 16, "ton": 2000 * _POUND},
    "litres": {"l L liter litre": 1, "ml mL milliliter": Fraction(1, 1000), "gallon gal": _GALLON}
    | {"quart qt": _GALLON / 4, "pint": _GALLON / 8, "cup": _GALLON / 16},
    "dollars": {"$ dollar usd buck": 1, "cent": Fraction(1, 100), "penny pennie": Fraction(1, 100)}
    | {"nickel": Fraction(1, 20), "dime": Fraction(1, 10)},
    "euros": {"euro eur": 1}, "sterling": {"pounds-sterling gbp": 1}, "yen": {"yen jpy": 1},
    "degrees": {"degree deg": 1}, "percent": {"percent %": Fraction(1, 100)},
    "radians": {"radian rad": 1}, "acres": {"acre": 1},
    "unit": {"unit": 1}, "energy": {"J joule": 1}, "force": {"N newton": 1}, "power": {"W watt": 1},
}  # fmt: skip
_UNITS = {
    word: (dimension, Fraction(size))
    for dimension, sizes in _SIZES.items()
    for words, size in sizes.items()
    for word in words.split()
}
_COMPOUNDS = {"mph": "miles per hour", "kph": "km per hour", "kmh": "km per hour", "fps": "feet per second"}
SCALES = dict(hundred=10**2, thousand=10**3, million=10**6, billion=10**9, trillion=10**12, dozen=12)
_GENERIC = ("way", "value", "total", "time", "old")
_POWERS = dict.fromkeys(("square", "sq", "sq.", "squared", "^2"), 2)
_POWERS |= dict.fromkeys(("cubic", "cu", "cu.", "cubed", "^3"), 3)
_FACTOR = re.compile(r"(?:(square|sq\.?|cubic|cu\.?) )?(\S+)(?: (squared|cubed|\^2|\^3))?(?: |$)")
_PLURALS = ("people", "children", "men", "women", "vertices", "mice")
_NO_ADJECTIVES = str.split(
    """not no minus plus negative more less fewer least most than about around nearly over under above
    below half double twice other and but the all only without except percent point hundred thousand million
    billion dozen mod modulo remainder base basis for from"""
)
_NO_NOUNS = str.split(  # words in -s that change the number or its sense
    """plus minus less tens hundreds thousands millions billions trillions dozens scores halves thirds
    quarters squares cubes pairs couples percents this is was has its as us yes always others powers
    negatives inverses bps"""
)
_PARTS = re.compile(
    "(?:four|fif|six|seven|eigh|nin|ten|eleven|twelf|.+teen|.+tie|hundred|thousand|.+illion)ths"
)
_NUMBERS = str.split(
    """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen"""
)
_TENS = str.split("twenty thirty forty fifty sixty seventy eighty ninety")


def number_word(text: str) -> int | None:
    """The value of an English number word below a hundred ("four", "twenty-one"); None for any other text."""
    text = text.lower()
    if text in _NUMBERS:
        return _NUMBERS.index(text)
    tens, _, ones = text.replace(" ", "-").partition("-")
    if tens not in _TENS or (ones and ones not in _NUMBERS[1:10]):
        return None
    return 10 * (_TENS.index(tens) + 2) + (_NUMBERS.index(ones) if ones else 0)


def is_known_word(word: str) -> bool:
    """Whether the word, in any case, is a unit, a scale or a word of a unit's name."""
    key = word.lower()
    others = (*SCALES, *_POWERS, *_COMPOUNDS, "per")
    return key in others or _known(word) is not None


def is_long_unit(word: str) -> bool:
    """Whether letters outside ``\\text`` can only be meant as a unit ("degrees", not "cm" or "min")."""
    return len(word) > 3 and is_known_word(word)


def read_unit(words: list[str]) -> tuple[Unit | None, Fraction]:
    """Unit and scale of what follows a number, from words, "/" and powers such as "^2".

    ``["million", "square", "feet"]`` is the unit of square feet and 10^6. Raises ValueError for words that
    may change the number or its sense ("squared", "or more").
    """
    scale = Fraction(1)
    while words and words[0].lower() in SCALES:
        scale *= SCALES[words[0].lower()]
        words = words[1:]
    phrase = " ".join(_COMPOUNDS.get(word.lower(), word) for word in words)
    dimensions: dict[str, int] = {}
    size = Fraction(1)
    for place, side in enumerate(re.split(r" (?:per|/) ", phrase) if phrase else []):
        for name, power, factor in _factors(side):
            power = -power if place else power
            dimensions[name] = dimensions.get(name, 0) + power
            size *= factor**power
    dimensions.pop("", None)
    return ((tuple(sorted(dimensions.items())), size) if dimensions else None), scale


def _factors(side: str) -> list[tuple[str, int, Fraction]]:
    """Dimension, power and size of each unit in a product; words that are no unit are one counted noun."""
    factors: list[tuple[str, int, Fraction]] = []
    at = 0
    while at < len(side):
        match = _FACTOR.match(side, at)
        if match is None:
            raise ValueError(f"no unit: {side!r}")
        before, word, after = match.groups()
        known = _known(word)
        if known is None:
            return [*factors, (_noun(side[at:].split()), 1, Fraction(1))]
        factors.append((known[0], _POWERS.get(before or after, 1), known[1]))
        at = match.end()
    return factors


def _known(word: str) -> tuple[str, Fraction] | None:
    """Dimension and size of a unit; "" is the dimension of words that say nothing ("units")."""
    if len(word) == 1:
        return _UNITS.get(word)
    key = word.lower().replace(".", "")
    if _singular(key) in _GENERIC:
        return "", Fraction(1)
    return _UNITS.get(key) or _UNITS.get(_singular(key))


def _noun(words: list[str]) -> str:
    """A counted noun, the last of at most three words, in the singular ("right triangles": triangle)."""
    key = words[-1].lower()
    plural = key in _PLURALS or (key.endswith("s") and key not in _NO_NOUNS and not _PARTS.fullmatch(key))
    if len(words) > 3 or not plural or not all(re.fullmatch("[A-Za-z]{3,}", word) for word in words):
        raise ValueError(f"neither unit nor noun: {' '.join(words)}")
    if any(word.lower() in _NO_ADJECTIVES for word in words):
        raise ValueError(f"not just a noun: {' '.join(words)}")
    return _singular(key)


def _singular(key: str) -> str:
    return key[:-1] if len(key) > 2 and key.endswith("s") and not key.endswith("ss") else key
