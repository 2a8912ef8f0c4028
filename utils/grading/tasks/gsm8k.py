"""GSM8K answers: the official strict extraction, and a flexible one in the style of lm-evaluation-harness."""

import re
from decimal import Decimal, InvalidOperation

from utils.data.readers.gsm8k import gold_number, strip_marks
from utils.frame.files import UserError
from utils.grading.task import Grade, Task, UnitCase, place_of, relative_error

_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_FLEXIBLE = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")
# Thousands separators of LaTeX and typography: 9{,}500, 9,\!500, 9\,500, 9~500, and thin or fixed blanks.
_SEPARATOR = re.compile(
    r"(?<=[0-9])(?:\{,\}|\\text\{,\}|,\\!|\\[,;:! ]|~|[\u00a0\u2009\u202f])(?=[0-9]{3}(?![0-9]))"
)
parse_gold = gold_number  # of a whole solution or the number alone; ValueError where it is read in part
MAX_NUMBER_CHARS = 64  # a longer run of digits is no answer, and costs quadratic time to convert


def extract_strict(text: str) -> str | None:
    """The official extraction (Cobbe et al. 2021, arXiv 2110.14168, released code): the first match of
    ``#### number``, commas removed. "#### $18" has none; "#### 18." gives "18."."""
    match = _STRICT.search(text)
    return match[1].replace(",", "") if match else None


def extract_flexible(text: str) -> str | None:
    """The last number anywhere in the text, without "$", commas and a closing period.

    lm-evaluation-harness's flexible pattern, except that a run of punctuation alone ("...") is no number.
    A minus sign, "-" or U+2212, directly before the digits belongs to the number, also in "16-3" (gives
    "-3"). Thousands may be separated as LaTeX does ("9{,}500").
    """
    text = _SEPARATOR.sub(",", text.replace("\u2212", "-"))
    numbers = [match for match in _FLEXIBLE.findall(text) if any(char.isdigit() for char in match)]
    return re.sub(r"[$,]", "", numbers[-1]).rstrip(".") if numbers else None


def normalize_number(text: str | None) -> Decimal | None:
    """A number's value: "$", commas and blanks around it dropped; None where it is not a plain decimal."""
    if text is None or len(text) > MAX_NUMBER_CHARS:
        return None
    text = re.sub(r"[$,]", "", text.strip())
    if not re.fullmatch(r"-?([0-9]+\.?[0-9]*|\.[0-9]+)", text):
        return None
    try:
        return Decimal(text)
    except InvalidOperation:
        return None


def strict_match(text: str, gold: str) -> bool:
    """Official accuracy of one item: the extracted string equals the gold string ("18." is not "18")."""
    return extract_strict(text) == gold


def flexible_match(text: str, gold: str) -> bool:
    """The last number in the text has the gold's value ("$1,000.00" is "1000")."""
    value = normalize_number(extract_flexible(text))
    return value is not None and value == normalize_number(gold)


class Gsm8kTask(Task):
    """GSM8K (Cobbe et al. 2021, arXiv 2110.14168): a worked solution that ends in ``#### number``."""

    name = "gsm8k"
    measures = {"strict_accuracy": "strict_match", "flexible_accuracy": "flexible_match"}
    whole_numbers = True
    states_calculations = True

    def grade(self, record, completion, required_fields=(), program_accuracy=True) -> Grade:
        try:
            gold = parse_gold(record.target_answer)
        except ValueError as error:
            raise UserError(f"{place_of(record)}: {error}") from None
        marked, number = extract_strict(completion), normalize_number(extract_flexible(completion))
        strict, flexible = strict_match(completion, gold), flexible_match(completion, gold)
        failure = "wrong_value"
        if strict:
            failure = ""
        elif flexible:
            failure = "wrong_form"
        elif number is None:
            failure = "no_number"
        return Grade(
            correct=strict,
            tolerant=flexible,
            value=None if number is None else float(number),
            relative_error=relative_error(number, normalize_number(gold)),
            format_error="no_answer_mark" if marked is None else "",
            failure=failure,
            answer=marked or "",
            official={"strict_match": strict, "flexible_match": flexible},
        )

    def solution_fault(self, row) -> str:
        """The last line before ``####`` states no number of the answer's size."""
        working = strip_marks(row.solution).partition("####")[0].split("\n")
        last = next((line.strip() for line in reversed(working) if line.strip()), "")
        stated = [normalize_number(number.rstrip(".")) for number in _FLEXIBLE.findall(last)]
        gold = normalize_number(row.answer)
        if not last or gold is None or abs(gold) in {abs(number) for number in stated if number is not None}:
            return ""
        return f"the worked solution ends in {last[-60:]!r}, and the answer is {row.answer}"

    def number(self, answer) -> Decimal | None:
        return normalize_number(answer.rstrip("."))

    def vote(self, answer) -> str:
        number = normalize_number(answer)
        return answer.removesuffix(".") if number is None else str(number.normalize())

    def unit_cases(self, record, required_fields, tolerance) -> list[UnitCase]:
        gold = record.target_answer.replace(",", "")
        other = str(3 * int(float(gold)) + 7)
        near, broken = {"numeric_match": 1}, {"format_penalty": 1}
        return [
            ("bare_mark", f"#### {gold}", {"exact_match": 1}),
            ("dollar", f"#### ${gold}", near | broken),
            ("no_mark", f"The answer is {gold}.", near | broken),
            ("closing_period", f"#### {gold}.", near),
            ("two_numbers", f"#### {other} {gold}", near),
            ("wrong", f"#### {other}", {}),
            ("nothing_marked", "#### ", broken),
        ]


TASK = Gsm8kTask()
