"""ConvFinQA (Chen et al. 2022, arXiv 2210.03849): FinQA's rules, turn by turn. A program may also be the
number that a turn looks up, which is graded as the sum of it and 0."""

from __future__ import annotations

import json

from utils.grading.program import plain_number
from utils.grading.tasks.finqa import FinqaTask, parse_completion


class ConvfinqaTask(FinqaTask):
    """FinQA's, with numbers for programs."""

    name = "convfinqa"

    def grade(self, record, completion, required_fields=(), program_accuracy=True):
        return super().grade(record, with_operation(completion), required_fields, program_accuracy)


TASK = ConvfinqaTask()


def with_operation(completion: str) -> str:
    """The completion with a bare number for its program as ``add(number, 0)``; any other as it is."""
    fields, error = parse_completion(completion, ())
    program = fields.get("program", "").strip()
    if error or "(" in program or plain_number(program) is None:
        return completion
    return json.dumps(fields | {"program": f"add({program}, 0)"}, ensure_ascii=False)
