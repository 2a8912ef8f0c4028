"""TAT-QA (Zhu et al. 2021, arXiv 2105.07624): a JSON object with an answer and its scale, by the rules of the
released evaluator (docs/grading.md)."""

from __future__ import annotations

import json
import re
from typing import Any

from utils.data.readers.tatqa import SCALES
from utils.frame.files import UserError
from utils.grading.task import Grade, Task, place_of, relative_error

MAX_JSON_CHARS = 20_000
MAX_ANSWERS, MAX_ANSWER_CHARS = 64, 1000
_FACTORS = {"hundred": 1e2, "thousand": 1e3, "million": 1e6, "billion": 1e9, "percent": 1e-2}
_AROUND = str.maketrans("", "", "'\"\\$€£¥%(),[]")
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d+)?|\.\d+)", re.ASCII)
_PUNCTUATION = re.compile(r"[!-/:-@\[-`{-~]")
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")


class TatqaTask(Task):
    """Exact match of answer and scale taken together, as the released evaluator counts it."""

    name = "tatqa"
    measures = {
        "exact_accuracy": "exact_match",
        "scale_accuracy": "scale_match",
        "tolerant_accuracy": "tolerant",
    }
    response_fields = ("answer",)

    def grade(self, record, completion, required_fields=(), program_accuracy=True) -> Grade:
        gold, gold_scale = _gold(record)
        answers, scale, format_error = parse_completion(completion)
        exact = bool(answers) and exact_match(answers, scale, gold, gold_scale)
        value, target = _value(answers, scale), _value(gold, gold_scale)
        error = relative_error(value, target)
        return Grade(
            correct=exact,
            tolerant=exact or (error is not None and error <= 1e-3),
            value=value if value is not None else "; ".join(answers) or None,
            relative_error=error,
            format_error=format_error,
            failure="" if exact else format_error or "wrong_value",
            answer=" ".join(filter(None, ("; ".join(answers), scale))),
            official={"exact_match": exact, "scale_match": bool(answers) and scale == gold_scale},
        )

    def unit_cases(self, record, required_fields, tolerance):
        gold, scale = _gold(record)
        said: Any = gold if len(gold) > 1 else gold[0]
        return [
            ("bare", str(said), {"format_penalty": 1}),
            ("no_answer", json.dumps({"scale": scale}), {"format_penalty": 1}),
            ("listed", json.dumps({"answer": gold, "scale": scale}), {"exact_match": 1}),
        ]


TASK = TatqaTask()


def parse_completion(completion: str) -> tuple[list[str], str, str]:
    """The answers, the scale ("" where none is stated), and what is wrong with the form: "" (nothing),
    "too_long", "not_json", "missing_field:answer" or "bad_scale"; without an answer there is no scale."""
    if len(completion) > MAX_JSON_CHARS:
        return [], "", "too_long"
    try:
        found = json.loads(completion.strip())
    except (ValueError, RecursionError):
        return [], "", "not_json"
    if not isinstance(found, dict):
        return [], "", "not_json"
    said = found.get("answer")
    values = said if isinstance(said, list) else [said]
    answers = [
        str(each).strip()[:MAX_ANSWER_CHARS]
        for each in values[:MAX_ANSWERS]
        if isinstance(each, str | int | float) and not isinstance(each, bool) and str(each).strip()
    ]
    if not answers:
        return [], "", "missing_field:answer"
    scale = found.get("scale") or ""
    if scale not in SCALES:
        return answers, "", "bad_scale"
    return answers, scale, ""


def exact_match(answers: list[str], scale: str, gold: list[str], gold_scale: str) -> bool:
    """Whether the answers with their scale are the gold's, as normalised texts: numbers in units and to four
    decimals, words without case, punctuation and articles. A fraction without scale is also read as percent.
    """
    wanted = _normalised(_with_scale(gold, gold_scale))
    said = [_with_scale(answers, scale)]
    if len(answers) == 1 and not scale and "%" not in answers[0] and is_number(answers[0]):
        number = to_number(answers[0])
        said += [] if number is None else [f"{number:.4f}"]
    return any(_normalised(text) == wanted for text in said)


def _with_scale(answers: list[str], scale: str) -> str:
    parts = []
    for text in sorted(answers):
        number = to_number(text) if is_number(text) else None
        if number is None:
            parts.append(f"{text} {scale}" if scale else text)
        elif "%" in text:
            parts.append(f"{number:.4f}")
        else:
            parts.append(f"{round(number, 2) * _FACTORS.get(scale, 1.0):.4f}")
    return " ".join(parts)


def _normalised(text: str) -> str:
    words = []
    for token in text.split(" "):
        word = token.lower()
        number = to_number(word) if is_number(word) else None
        word = str(number) if number is not None else _PUNCTUATION.sub("", word)
        words += _ARTICLE.sub(" ", word).split()
    return " ".join(words)


def is_number(text: str) -> bool:
    """Whether a text is a number, perhaps with a word of scale after it: "1,023", "$(12)", "1.5 million"."""
    words = " ".join(word.translate(_AROUND) for word in text.split()).split()
    if not words or not _NUMBER.fullmatch(words[0]):
        return False
    return len(words) == 1 or _word_factor(words[1]) != 1


def to_number(text: str) -> float | None:
    """The first number of a text to four decimals, with its word of scale, brackets for minus, and %."""
    found = _NUMBER.search(text.translate(_AROUND))
    if found is None:
        return None
    worded = re.search(r"[\d.]+\s?[a-z]+", text.lower(), re.ASCII)
    factor = _word_factor(worded[0]) if worded else 1.0
    factor *= -1 if re.search(r"\([\d.\s]+\)", text) else 1
    factor *= 0.01 if re.search(r"[\d.]\s*%", text) else 1
    return round(float(found[0]) * factor, 4)


def _word_factor(text: str) -> float:
    return next((factor for name, factor in _FACTORS.items() if name in text.lower()), 1.0)


def _value(answers: list[str], scale: str) -> float | None:
    """The value of a single answer that is a number; None for any other."""
    if len(answers) != 1 or not is_number(answers[0]):
        return None
    number = to_number(answers[0])
    return None if number is None else number * (1.0 if "%" in answers[0] else _FACTORS.get(scale, 1.0))


def _gold(record) -> tuple[list[str], str]:
    try:
        gold = json.loads(record.target_answer)
        return gold["answer"], gold["scale"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{place_of(record)}: the gold answer is no answer with its scale") from None
