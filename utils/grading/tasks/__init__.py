"""All that a form of data set knows about its answers, one file a form. Nobody else asks which form a data
set has."""

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from utils.frame.files import UserError
from utils.grading.task import Task


@cache
def all_tasks() -> dict[str, Task]:
    """The ``TASK`` of each file of this folder, by its name."""
    found = [import_module(f"{__name__}.{module.name}").TASK for module in iter_modules(__path__)]
    return {task.name: task for task in found}


def task_of(dataset: str) -> Task:
    """The task of a data set: gsm8k's of "gsm8k:riddles". Raises UserError where no file here has it."""
    name = dataset.partition(":")[0]
    if name not in all_tasks():
        known = ", ".join(all_tasks())
        raise UserError(f"no grader for data set '{dataset}'; utils/grading/tasks/ has {known}")
    return all_tasks()[name]
