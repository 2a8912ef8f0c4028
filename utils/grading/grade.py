"""One grade for a completion of any data set, used by rewards, training, candidates and evaluation alike."""

from collections.abc import Sequence

from utils.data.records import Record
from utils.grading.task import Grade
from utils.grading.tasks import task_of


def grade(
    record: Record,
    completion: str,
    required_fields: Sequence[str] = (),
    program_accuracy: bool = True,
) -> Grade:
    """Grade a decoded completion (no special tokens) against ``record``'s gold.

    required_fields: JSON fields that a program completion must fill; empty for the data set's own
    (``Task.response_fields``). program_accuracy: also compute FinQA's, which may need SymPy. Whatever the
    completion holds, it never raises for it; an unusable gold raises UserError naming the record.
    """
    return task_of(record.dataset).grade(record, completion, tuple(required_fields), program_accuracy)
