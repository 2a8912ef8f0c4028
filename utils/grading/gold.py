"""Whether a row's gold can be graded against: the check that the data stages run on every row."""

from utils.data.reading import RawRow
from utils.grading.execute import execute, execution_match, parse_gold_value
from utils.grading.program import tokenize_program


def gold_program_fault(row: RawRow) -> str:
    """Why a FinQA row's gold program does not execute to its ``exe_ans``; "" where it does."""
    table = [list(cells) for cells in row.table]
    execution = execute(tokenize_program(row.program), table)
    if execution_match(execution, parse_gold_value(row.answer)):
        return ""
    if execution.error is not None:
        return f"the gold program cannot be executed ({execution.error.value}): {row.program[:80]!r}"
    return f"the gold program gives {execution.value}, but exe_ans is {row.answer}: {row.program[:80]!r}"
