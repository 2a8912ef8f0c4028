"""The embedded set: FinQA's rules, with a program alone as the answer."""

from utils.grading.tasks.finqa import FinqaTask


class SampleTask(FinqaTask):
    """FinQA's task under the embedded set's name and fields."""

    name = "sample"
    response_fields = ("program",)


TASK = SampleTask()
