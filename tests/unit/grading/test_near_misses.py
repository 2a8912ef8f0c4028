"""GSM8K and MATH answers that are nearly right, for every published gold; answers that hang a grader."""

import json
import re

import pytest

from utils.data.records import Record
from utils.grading.grade import grade
from utils.grading.tasks import gsm8k, hendrycks_math
from utils.grading.tasks.hendrycks_math import plain_decimal


def rows_of(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def record(dataset: str, answer: str) -> Record:
    return Record("r", dataset, "", "", "", answer)


# ------------------------------------------------------------------------------------------------- GSM8K


def scanned(text: str) -> str | None:
    """The official extraction, read character by character: no pattern, no code of the grader's."""
    for start in range(len(text)):
        if text[start : start + 5] != "#### ":
            continue
        end = start + 5 + (text[start + 5 : start + 6] == "-")
        first = end
        while end < len(text) and text[end] in "0123456789.,":
            end += 1
        if end > first:
            return text[start + 5 : end].replace(",", "")
    return None


# How the gold number n is written, and what the strict and the flexible rule must say of it.
SPELLINGS = {
    "#### {n}": (True, True),
    "so {n}\n#### {n}\n": (True, True),
    "#### {n} apples": (True, True),
    "#### {n:,}": (True, True),
    "#### {n} and that is all.": (True, True),
    "#### {n}.": (False, True),
    "#### {n}.0": (False, True),
    "#### ${n}": (False, True),
    "####{n}": (False, True),
    "###{n}": (False, True),
    "####  {n}": (False, True),
    "**#### {n}**": (True, True),
    "#### **{n}**": (False, True),
    "#### +{n}": (False, True),
    "The answer is ${n:,}.": (False, True),
    r"\boxed{{{n}}}": (False, True),
    "#### {n} 19999": (True, False),
    "#### 19999 {n}": (False, True),
    "#### 19999\n#### {n}": (False, True),
    "#### {n}\n#### 19999": (True, False),
    "#### {n}19999": (False, False),
    "#### {n}.5": (False, False),
    "#### {n}%, no: 19999": (True, False),
    "####": (False, False),
    "": (False, False),
}


@pytest.mark.parametrize(("split", "rows"), [("train", 7473), ("test", 1319)])
def test_every_gsm8k_gold_in_every_spelling(shared_data, split, rows):
    cases = 0
    for row in rows_of(shared_data / "gsm8k" / f"{split}.jsonl"):
        gold = gsm8k.parse_gold(row["answer"])
        number = int(gold)
        for spelling, (strict, flexible) in SPELLINGS.items():
            text = spelling.format(n=number)
            found = gsm8k.extract_strict(text)
            assert found == scanned(text), text
            assert (found == gold, gsm8k.flexible_match(text, gold)) == (strict, flexible), (text, gold)
            cases += 1
        # The official rule drops every comma: "1,8" is 18.
        assert gsm8k.strict_match("#### " + ",".join(gold), gold)
        assert scanned(row["answer"]) == gold
    assert cases == rows * len(SPELLINGS)


# -------------------------------------------------------------------------------------------------- MATH

# Answers to a whole number n that are decided by the last box, its braces and its spelling, ...
SPELLED = {
    r"\boxed{{{n}}}": True,
    r"\boxed{{ {n} }}.": True,
    r"\boxed{{{n}.}}": True,
    r"\boxed{{${n}$}}": True,
    r"\boxed{{\boxed{{{n}}}}}": True,
    r"\fbox{{{n}}}": True,
    r"\boxed {n}": True,
    r"\boxed{{19999}}, no: \boxed{{{n}}}": True,
    r"\boxed{{{n}}}}}}}": True,
    r"{{{{\boxed{{{n}}}": True,
    r"\boxed{{{n}}}, or \boxed{{": True,
    r"\boxed{{\text{{{n}}}}}": True,
    r"\boxed{{{n}": False,
    r"\boxed{{{{{n}}}": False,
    r"\boxed{n}}}": None,  # the first character of what is not in braces
    r"\boxed{{}}": False,
    r"\boxed": False,
    "{n}": False,
    "#### {n}": False,
    r"\boxed{{{n}}}, \boxed{{}}": True,  # an empty box says nothing
    r"\boxed{{{n} 19999}}": False,
    r"\boxed{{${n}$ or $19999$}}": False,
}
# ... and by value.
ALGEBRA = {
    r"\boxed{{{n}.0}}": True,
    r"\boxed{{\frac{{{n}}}{{1}}}}": True,
    r"\boxed{{x = {n}}}": True,
    r"\boxed{{{n} + 1}}": False,
    r"\boxed{{{n}.01}}": False,
    r"\boxed{{-19999 - {n}}}": False,
    r"\boxed{{{n}, 19999}}": False,
    r"\boxed{{({n}, 19999)}}": False,
    r"\boxed{{\frac{{{n}}}{{19999}}": False,
    r"\boxed{{\frac{{{n}}}{{0}}}}": False,
}


def whole_numbers(shared_data) -> list[str]:
    rows = [row for split in ("train", "test") for row in rows_of(shared_data / "math" / f"{split}.jsonl")]
    golds = [row["answer"] for row in rows if re.fullmatch(r"-?[0-9]+", row["answer"])]
    assert len(golds) > 7000
    return sorted(set(golds))  # grading depends on nothing else


def check(answers: list[str], cases: dict[str, bool | None]) -> int:
    checked = 0
    for answer in answers:
        for text, right in cases.items():
            if right is not None:
                response = text.format(n=answer)
                assert grade(record("math", answer), response).correct is right, (answer, response)
                checked += 1
    return checked


def test_every_whole_math_gold_in_every_spelling(shared_data):
    answers = whole_numbers(shared_data)
    assert check(answers, SPELLED) == len(answers) * (len(SPELLED) - 1)


def test_every_whole_math_gold_nearly_right_by_value(shared_data):
    nonzero = [answer for answer in whole_numbers(shared_data) if int(answer)]  # 0/19999 is 0
    assert check(nonzero, ALGEBRA) == len(nonzero) * len(ALGEBRA)


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("18", 18),
        ("18.", 18),
        ("$18$", 18),
        (r"\$18", 18),
        ("-1,234.5", -1234.5),
        ("12,345,678", 12345678),
        (".5", 0.5),
        ("1,8", None),  # a list
        ("4,6,14,15", None),
        ("1,2345", None),
        ("1234,567", None),
        ("18 19", None),
        (r"\frac{1}{2}", None),
        ("1.2.3", None),
        ("٣", None),
        ("9" * 2000, None),
        ("", None),
    ],
)
def test_plain_decimals(answer, value):
    number = plain_decimal(answer)
    assert number is None if value is None else float(number) == value


def test_a_list_is_not_near_the_number_that_its_digits_make():
    """ "1,2" is no 12: nothing is paid for a near miss, and the failure is no slip of scale."""
    for answer in ("1,2", "(1,2)", "1, 2"):
        assert grade(record("math", "12"), rf"\boxed{{{answer}}}").relative_error is None
    assert grade(record("math", "1200"), r"\boxed{1,212}").relative_error == pytest.approx(0.01)


# ----------------------------------------------------------------------------------------------- hostile

LENGTH = 100_000
LONG = {
    "digits in a box": r"\boxed{" + "9" * LENGTH + "}",
    "letters in a box": r"\boxed{" + "x" * LENGTH + "}",
    "digits after the mark": "#### " + "9" * LENGTH,
    "commas": "#### " + "," * LENGTH,
    "full stops": "#### " + "." * LENGTH,
    "dollars": "$" * LENGTH,
    "minus signs": "-" * LENGTH,
    "marks": "#### " * (LENGTH // 5),
    "open boxes": r"\boxed{" * (LENGTH // 7),
    "open braces": "{" * LENGTH,
    "closed braces": "}" * LENGTH,
    "backslashes": "\\" * LENGTH,
    "blanks": " " * LENGTH,
    "equals signs": "=" * LENGTH,
    "fractions": r"\boxed{" + r"\frac{1}{" * (LENGTH // 9) + "2" + "}" * (LENGTH // 9 + 1),
    "unclosed fractions": r"\boxed{" + r"\frac{" * (LENGTH // 6),
    "control characters": r"\boxed{" + "\x00\u202e" * (LENGTH // 2) + "}",
}
# Short and costly: each keeps SymPy or its parser busy, some for ever.
COSTLY = {
    "fraction tower": r"\frac{1}{1+" * 60 + "1" + "}" * 60,
    "numerator tower": r"\frac{" * 80 + "1" + "}{2}" * 80,
    "bare fractions": r"\frac" * 150 + "12",
    "unclosed fractions": r"\frac{1}{" * 90 + "2" + "}" * 89,
    "roots": r"\sqrt{" * 100 + "2" + "}" * 100,
    "powers": "9^{9^{9^{9}}}",
    "power chain": "9^" * 300 + "9",
    "factorial": "99999999!",
    "binomial": r"\binom{10^9}{5\cdot10^8}",
    "product": r"\prod_{k=1}^{10^{7}} k",
    "integral": r"\int_0^1 e^{x^{x^x}} dx",
    "expansion": "(a+b+c+d+e+f+g)^{500}",
    "parentheses": "(" * 450 + "1" + ")" * 450,
    "terms": "+".join(f"x^{{{i}}}" for i in range(120)),
    "intervals": r"(1,2)\cup" * 100 + "(3,4)",
}


@pytest.mark.parametrize("dataset", ["gsm8k", "math"])
@pytest.mark.parametrize("name", LONG)
def test_long_answers_are_wrong_and_need_no_algebra(dataset, name, monkeypatch):
    monkeypatch.setattr(hendrycks_math, "answers_equal", lambda *_: pytest.fail("compared by value"))
    graded = grade(record(dataset, "5"), LONG[name])
    assert not graded.correct and graded.failure


@pytest.mark.parametrize("name", COSTLY)
@pytest.mark.parametrize("gold", ["5", r"\frac{1}{2}", r"\sqrt{2}", "(1,2)"])
def test_costly_answers_are_wrong(name, gold):
    graded = grade(record("math", gold), rf"\boxed{{{COSTLY[name]}}}")
    assert not graded.correct
    assert graded.failure in ("not_comparable", "wrong_value", "no_box")
