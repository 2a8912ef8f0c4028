"""A log with one row per rollout that ends the same whether or not the run was interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import TrainerCallback

from utils.frame.files import read_json, write_json, write_jsonl


class RolloutLog(TrainerCallback):
    """Each rollout is a file of its own below ``folder`` (the stage's ``resume/`` folder, so that it survives
    a kill) until training ends; then ``path`` has them all, in order. A rollout that is repeated after a
    resumption overwrites its file with the same content.
    """

    def __init__(self, folder: Path, path: Path):
        self.folder, self.path = folder, path
        self._last = (-1, 0)  # optimizer step of the last rollout, and its number within the step

    def write(self, step: int, row: dict[str, Any]) -> None:
        """Keep the row of the rollout that began at an optimizer step, or the next of several within it
        (resume points are between steps).
        """
        self._last = (step, self._last[1] + 1 if self._last[0] == step else 0)
        write_json(self.folder / "{:08d}-{:04d}.json".format(*self._last), {"step": step, **row})

    def on_train_end(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            write_jsonl(self.path, map(read_json, sorted(self.folder.glob("*.json"))))


def by_group(values: Tensor, size: int) -> list[list[float]]:
    """Float32 [B] as lists of ``size`` numbers, each in the fewest digits that tell it from other float32."""
    numbers = [float(str(value)) for value in values.float().cpu().numpy()]
    return [numbers[start : start + size] for start in range(0, len(numbers), size)]
