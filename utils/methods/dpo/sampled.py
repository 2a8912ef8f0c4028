"""04's candidates as others learn from them: known to be its own, and of prompts that are to train on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from utils.frame.files import UserError, read_jsonl, shown
from utils.frame.manifest import read_manifest
from utils.frame.repair_command import command_for
from utils.rewards.spec import RewardSpec, own_weights, paid_weights


def load_sampled(path: Path, spec: RewardSpec, reward: str) -> list[dict[str, Any]]:
    """The rows of 04's candidates.jsonl for pairs. Raises UserError as `options_of`, where ``reward`` counts
    parts that the candidates were not scored by, and as `refuse_held_out`.
    """
    rows, options = read_jsonl(path), options_of(path)
    check_components(spec, reward, options["reward"], path.parent)
    refuse_held_out(path, options)
    return rows


def check_components(spec: RewardSpec, reward: str, sampled_with: str, folder: Path) -> None:
    """Refuse a ``--reward`` of which 04, run with ``sampled_with``, did not compute every part.

    ``folder`` is where the candidates are.
    """
    wanted, there = (
        vars(paid_weights(spec, name)) | own_weights(spec, name) for name in (reward, sampled_with)
    )
    missing = [name for name, weight in wanted.items() if weight > 0 and not there[name]]
    if missing:
        raise UserError(
            f"--reward {reward} needs the {missing[0]} reward, and 04_candidates was made with "
            f"--reward {sampled_with}: run `{command_for(folder, redo=True, given={'reward': 'combined'})}`"
        )


def options_of(path: Path) -> dict[str, Any]:
    """The options that 04 made a candidates.jsonl with. Raises UserError where no manifest says so."""
    made = read_manifest(path.parent)
    if made is None:
        raise UserError(f"{shown(path)}: its folder has no manifest.json, which says how 04 made it")
    return made["config"]["options"]


def refuse_held_out(path: Path, options: dict[str, Any]) -> None:
    """Raise UserError where the candidates are of prompts that are not to train on."""
    if options["split"] != "train":
        redo = command_for(path.parent, redo=True, given={"split": "train"})
        raise UserError(
            f"{path.parent.name} holds prompts of the {options['split']} split, not to be trained on: run "
            f"`{redo}`"
        )
