"""The candidates that preference pairs are made of, checked for what pairs need of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from utils.frame.files import UserError, read_jsonl, shown
from utils.frame.manifest import read_manifest
from utils.methods.dpo.pairs import check_components
from utils.rewards.spec import RewardSpec


def load_sampled(path: Path, spec: RewardSpec, reward: str) -> list[dict[str, Any]]:
    """The rows of 04's candidates.jsonl. Raises UserError where its manifest is missing, ``reward`` counts
    parts that the candidates were not scored by, or they are of prompts that are not to train on.
    """
    rows, made = read_jsonl(path), read_manifest(path.parent)
    if made is None:
        raise UserError(f"{shown(path)}: its folder has no manifest.json, which says how 04 made it")
    options = made["config"]["options"]
    check_components(spec, reward, options["reward"])
    if options["split"] != "train":
        raise UserError(
            f"{path.parent.name} holds prompts of the {options['split']} split, not to be trained on: run "
            "04_generate_candidates.py --split train --overwrite"
        )
    return rows
