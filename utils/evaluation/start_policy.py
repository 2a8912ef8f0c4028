"""The policy that a checkpoint's training started from, by where the checkpoint lies (light to import)."""

from __future__ import annotations

from pathlib import Path

from utils.frame.manifest import read_manifest
from utils.frame.pipeline import METHODS, origin_of
from utils.training.inputs import sft_policy


def reference_inputs(checkpoint: Path | str) -> dict[str, Path]:
    """The folders of the reference: the best SFT policy of the run that the checkpoint is of.

    {} for policies that did not start from it: models from elsewhere, the base model, the teacher, and what
    was distilled from the base model. An SFT policy's reference is the best one of its own training.
    """
    origin = origin_of(checkpoint)
    if origin is None:
        return {}
    stage = origin.stage
    folders = sft_policy(stage.parent)
    # Before the stage has run, when only a plan is made, its name has to do.
    recorded = None if stage.name == METHODS["sft"].folder else read_manifest(stage)
    start = folders["checkpoint"].relative_to(stage.parent).as_posix()
    if recorded is not None and start not in recorded.get("inputs", ()):
        return {}
    names = {"checkpoint": "reference", "base_model": "reference_base"}
    return {names[name]: folder for name, folder in folders.items()}
