"""Candidates of which the reward specification has changed since 04: rewarded anew, from their texts.

Everything but the teacher's reward follows from record and text. The teacher's is kept where 04 asked for the
same one; else it is missing, and with it the total. Light to import.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from utils.data.records import Record
from utils.frame.files import UserError, sha256_of
from utils.frame.manifest import read_manifest
from utils.frame.pipeline import ROWS, row_of
from utils.frame.repair_command import command_for
from utils.grading.grade import grade
from utils.grading.tasks import task_of
from utils.rewards.spec import RewardSpec, load_reward_spec
from utils.rewards.task_reward import reward_of
from utils.rewards.user_components import own_rewards

SPLITS = ("train", "val")  # that candidates are of


def rewarded_otherwise(candidates: Path, spec: Path) -> bool:
    """Whether 04 rewarded the candidates by another specification than this file, or may have, where nothing
    says by which and this one has user-defined components."""
    inputs = (read_manifest(candidates.parent) or {}).get("inputs", {}).items()
    # The one YAML file that 04 reads; --reward_spec can name one of any name.
    by = next((facts["sha256"] for name, facts in inputs if Path(name).suffix == spec.suffix), None)
    return bool(load_reward_spec(spec).own) if by is None else by != sha256_of(spec)


def audit_inputs(candidates: Path, spec: Path) -> dict[str, Path]:
    """What ``02_build_rewards.py --audit`` reads: of candidates that are rewarded anew the records, too."""
    inputs = {"reward_spec": spec, "candidates": candidates}
    if candidates.is_file() and spec.is_file() and rewarded_otherwise(candidates, spec):
        run_dir = candidates.parent.parent if row_of(candidates.parent.name) else spec.parent.parent
        files = {split: run_dir / ROWS["prepare"].folder / f"{split}.jsonl" for split in SPLITS}
        inputs |= {split: path for split, path in files.items() if path.is_file()}
    return inputs


def rescored(
    rows: Sequence[dict[str, Any]], records: Mapping[str, Record], spec: RewardSpec, folder: Path
) -> list[dict[str, Any]]:
    """The rows of ``candidates.jsonl`` with the rewards that ``spec`` gives them under ``combined``.

    records: by id. folder: where the candidates are; its manifest says what the teacher was asked for.
    Raises UserError for candidates of a record that is not there.
    """
    own, kept = own_rewards(spec), _kept_of_teacher(read_manifest(folder) or {}, spec)
    found = []
    for row in rows:
        record = records.get(row["id"])
        if record is None:
            raise UserError(
                f"candidates of {row['id']}: the run has no such record, by which they could be rewarded "
                f"anew; run `{command_for(folder, redo=True)}`"
            )
        task, candidates = task_of(record.dataset), []
        for each in row["candidates"]:
            text, weights = each["text"], spec.weights
            graded = grade(record, text, spec.required_fields, program_accuracy=False)
            raw = {"reasoning": task.reasoning_score(record, text)}
            raw |= {component.name: component.score(record, text) for component in own}
            paid = reward_of(record, graded, spec) | {"reasoning": weights.reasoning * raw["reasoning"]}
            paid |= {component.name: component.weight * raw[component.name] for component in own}
            teacher = each.get("raw", {}).get("intrinsic") if kept is not None else None
            paid["intrinsic"] = each["reward"]["intrinsic"] * (kept or 0.0)
            total = sum(value for name, value in paid.items() if name != "total")
            known = kept is not None or weights.intrinsic == 0
            candidates.append(
                each
                | {"correct": graded.correct, "parsed": graded.format_valid}
                | {"reward": paid | {"total": total if known else None}, "raw": {"intrinsic": teacher} | raw}
            )
        found.append(row | {"candidates": candidates})
    return found


def _kept_of_teacher(made: Mapping[str, Any], spec: RewardSpec) -> float | None:
    """What the teacher's reward of 04 is multiplied by; None where it was asked for another one."""
    metrics = made.get("metrics", {})
    weight = metrics.get("reward_weights", {}).get("intrinsic", 0)
    same = metrics.get("intrinsic_reward") == asdict(spec.intrinsic) and not spec.adaptive.enabled
    return spec.weights.intrinsic / weight if same and weight else None
