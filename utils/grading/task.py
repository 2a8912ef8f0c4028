"""What is asked of every form of data set: `Task`, which each file of ``tasks/`` fills in, and `Grade`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import ClassVar

from utils.data.reading import RawRow
from utils.data.records import Record
from utils.frame.files import UserError
from utils.grading.equations import equation_keys, stated_equations, true_equations
from utils.grading.failure_reasons import answer_failure, working_failure
from utils.grading.reasoning_quality import step_coverage, step_order, support_in_text

Value = float | str  # a number, or an answer as text
# Name, completion, and by reward component the share of its reward that must be given.
UnitCase = tuple[str, str, Mapping[str, int | Fraction]]


@dataclass(frozen=True)
class Grade:
    """What a completion is worth.

    correct: the data set's official accuracy (FinQA execution, GSM8K strict, MATH equality).
    tolerant: a more lenient score, reported apart (FinQA: relative 1e-3 and percent scale; GSM8K: flexible
    extraction; MATH: the same as ``correct``). value: what was graded, None where there is nothing; answer:
    the same as text, "" likewise. relative_error: |value - gold| / |gold| of two numbers, None for anything
    else. format_error: "" where the format is valid. failure: why it is not correct, "" where it is.
    parsed: the text fields of a JSON completion. program: the tokens that were executed, None where there
    are none. official: the official measures by name, and the flag ``program_match_only`` (programs are the
    same but the prediction does not execute to the gold answer, where the official evaluator aborts).
    """

    correct: bool
    tolerant: bool
    value: Value | None
    relative_error: float | None
    format_error: str
    failure: str
    answer: str = ""
    parsed: dict[str, str] = field(default_factory=dict)
    program: tuple[str, ...] | None = None
    official: dict[str, bool] = field(default_factory=dict)

    @property
    def format_valid(self) -> bool:
        """The completion has the form that was asked for, whatever it says."""
        return not self.format_error


class Task:
    """What a form of data set knows about its answers. A file of ``tasks/`` holds a subclass, and an
    instance of it as ``TASK``.

    Only `name`, `measures` and `grade` have no default. The defaults are for answers that state their
    calculations in words, as GSM8K's and MATH's do.

    name: what data sets of this form are called, before any ":". measures: the accuracies in metrics.json,
    the official one first, each with its name among ``Grade.official`` (or "tolerant").
    reasoning_measures: what `reasoning` gives. response_fields: the JSON fields that an answer must fill
    where they are taught.
    whole_numbers: golds are whole numbers, to which an answer may have to be rounded. states_calculations:
    an answer that states no equation is not supported by any; else nothing is said of its support.
    """

    name: ClassVar[str]
    measures: ClassVar[Mapping[str, str]]
    reasoning_measures: ClassVar[tuple[str, ...]] = (
        "step_coverage",
        "step_order",
        "arithmetic_consistency",
        "answer_support",
    )
    response_fields: ClassVar[tuple[str, ...]] = ()
    whole_numbers: ClassVar[bool] = False
    states_calculations: ClassVar[bool] = False

    def grade(
        self,
        record: Record,
        completion: str,
        required_fields: tuple[str, ...] = (),
        program_accuracy: bool = True,
    ) -> Grade:
        """Grade a decoded completion; as `utils.grading.grade.grade`."""
        raise NotImplementedError

    def required_fields(self, record: Record) -> tuple[str, ...]:
        """The JSON fields that an answer must fill: those of `response_fields` that SFT teaches."""
        return self.response_fields

    def grade_program(self, record: Record, tokens: list[str]) -> Grade:
        """Grade a prediction in FinQA's official format. Raises UserError where answers are no programs."""
        raise UserError(
            f"{place_of(record)}: predicted as a program, but answers of '{record.dataset}' are no programs; "
            "give a 'response'"
        )

    def number(self, answer: str) -> Decimal | None:
        """The value of a graded answer that is one number; None for any other."""
        return None

    def vote(self, answer: str) -> str:
        """What a graded answer counts as in a majority vote: equal texts are one vote."""
        return answer

    def gold_fault(self, row: RawRow) -> str:
        """Why a row's gold cannot be graded against; "" where it can."""
        return ""

    def solution_fault(self, row: RawRow) -> str:
        """Why a row's worked solution does not lead to its answer; "" where it does, or nothing is known."""
        return ""

    def evidence(self, row: RawRow) -> tuple[str, ...]:
        """The places of a row's evidence, as `RawRow.gold_places`, found by its gold; () for none."""
        return ()

    def gold_completion(self, record: Record) -> str:
        """The completion that must grade as right: what SFT teaches, with the gold in place of a slip."""
        return record.target_text

    def partial_credit(self, record: Record, graded: Grade) -> float:
        """Share in [0, 1] of the gold's program that a wrong answer has."""
        return 0.0

    def unit_cases(self, record: Record, required_fields: list[str], tolerance: float) -> list[UnitCase]:
        """Completions with known rewards, besides those that every form has (utils/rewards/unit_cases.py).

        tolerance: relative error up to which a wrong number earns ``numeric_match``.
        """
        return []

    def reason(self, record: Record, graded: Grade, response: str, truncated: bool) -> tuple[str, str]:
        """Reason and detail of a wrong answer that is not empty (docs/evaluation.md lists them)."""
        if graded.tolerant:
            return "answer_format", graded.failure
        if not graded.format_valid:
            return "cut_off" if truncated else "no_answer", graded.format_error
        if graded.failure == "not_comparable":
            return "unreadable_answer", ""
        reason = answer_failure(graded.answer, record.target_answer, self.whole_numbers)
        return reason or working_failure(response, record.target_text), ""

    def reasoning(self, record: Record, graded: Grade | None, response: str) -> dict[str, float | None]:
        """The measures of how an answer was reached, by name; None where one does not apply.

        ``graded`` is None where there is no answer, which has no steps.
        """
        stated = stated_equations(response)
        own, gold = equation_keys(stated), equation_keys(stated_equations(record.target_text))
        number, support = None if graded is None else self.number(graded.answer), None
        if number is not None:
            support = support_in_text(float(number), response, stated, self.states_calculations)
        values = (
            step_coverage(own, gold),
            step_order(own, gold),
            sum(equation.holds for equation in stated) / len(stated) if stated else None,
            support,
        )
        return dict(zip(self.reasoning_measures, values, strict=True))

    def reasoning_score(self, record: Record, completion: str) -> float:
        """A score in [0, 1] made without the gold, as a reward; never raises for what a completion holds."""
        return true_equations(completion)


def place_of(record: Record) -> str:
    """The record's place in the raw data and its id, for messages."""
    return f"{record.source} ({record.id})" if record.source else record.id


def relative_error(value: object, gold: object) -> float | None:
    """|value - gold| / |gold| of two numbers (float or Decimal), None for anything else; of a zero gold it is
    0 where met and undefined otherwise."""
    if not isinstance(value, float | Decimal) or not isinstance(gold, float | Decimal):
        return None
    value, gold = float(value), float(gold)
    if value == gold:
        return 0.0
    error = abs(value - gold) / abs(gold) if gold else float("inf")
    return error if error < float("inf") else None
