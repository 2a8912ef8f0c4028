"""The policy that a checkpoint's training started from, by where the checkpoint lies (light to import)."""

from __future__ import annotations

from pathlib import Path

from utils.frame.manifest import read_manifest
from utils.frame.pipeline import TRAINED_IN
from utils.training.inputs import sft_policy

STAGES = tuple(f"{stage}_" for stage in TRAINED_IN.values())


def trained_by(checkpoint: Path | str) -> Path | None:
    """The stage folder that wrote a checkpoint, ``<run>/<stage>/ckpt_<method>[/<name>]``; None for others."""
    if isinstance(checkpoint, str):
        return None
    for folder in (checkpoint, checkpoint.parent):
        stage = folder.parent
        if folder.name.startswith("ckpt_") and f"{stage.name}_".startswith(STAGES):
            return stage
    return None


def reference_inputs(checkpoint: Path | str) -> dict[str, Path]:
    """The folders of the reference: the best SFT policy of the run that the checkpoint is of.

    {} for policies that did not start from it: models from elsewhere, the base model, the teacher, and what
    was distilled from the base model. An SFT policy's reference is the best one of its own training.
    """
    stage = trained_by(checkpoint)
    if stage is None:
        return {}
    folders = sft_policy(stage.parent)
    # Before the stage has run, when only a plan is made, its name has to do.
    recorded = None if stage.name == TRAINED_IN["sft"] else read_manifest(stage)
    start = folders["checkpoint"].relative_to(stage.parent).as_posix()
    if recorded is not None and start not in recorded.get("inputs", ()):
        return {}
    names = {"checkpoint": "reference", "base_model": "reference_base"}
    return {names[name]: folder for name, folder in folders.items()}
