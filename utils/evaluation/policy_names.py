"""Names of policies, where their weights lie and where their evaluations are (no heavy import here)."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from utils.frame.files import UserError, resolve_path, shown
from utils.frame.pipeline import (
    POLICIES,
    ROWS,
    Method,
    best_checkpoint,
    method_of,
    origin_of,
    policy_order,
    row_of,
)
from utils.frame.repair_command import command_for
from utils.models.settings import ModelConfig
from utils.training.inputs import checkpoint_at, is_checkpoint, model_inputs

METRICS = "metrics.json"
EVALUATION = ROWS["evaluate"].folder
OUTSIDE = "predictions"  # the policy's name where outside predictions are given none

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_STEP = re.compile(r"(?:step_|checkpoint-|global_step_?)(\d+)")


def policy_name(policy: str, outside: bool, checkpoint: str = "") -> str:
    """The policy's name, which is also its folder's.

    The one given, else "predictions" (outside), after ``checkpoint`` ("grpo_step_40"; "grpo_checkpoints" for
    a folder of several), or "sft". Raises UserError for a name that no folder should have.
    """
    name = policy or (OUTSIDE if outside else _named_after(checkpoint) if checkpoint else "sft")
    if not _NAME.fullmatch(name):
        raise UserError(f"policy '{name}' must be letters, digits, '_', '.' and '-'; name it with --policy")
    return name


def _named_after(checkpoint: str) -> str:
    folder = resolve_path(checkpoint)
    if not folder.is_dir():
        return checkpoint.rstrip("/").rsplit("/", 1)[-1]
    row = row_of(folder.name)
    if isinstance(row, Method) and not is_checkpoint(folder):  # its best checkpoint is meant
        folder = folder / f"ckpt_{row.name}" / "best"
    several = bool(checkpoints_in(folder))
    holder = folder if several else folder.parent
    if not several and not holder.name.startswith("ckpt_"):
        return folder.name
    origin = origin_of(holder)
    method = origin.policy if origin else holder.name.removeprefix("ckpt_")
    return f"{method}_checkpoints" if several else f"{method}_{folder.name}"


def checkpoint_of(policy: str, policy_ckpt: str, model: ModelConfig, run_dir: Path) -> Path | str:
    """Where the policy's weights are: a folder, or a hub name as text.

    ``policy_ckpt`` wins. Else base and teacher are the configured models, and every other policy is the best
    checkpoint of the stage of this run that trained it: "grpo" of 06_grpo, "ppo_intrinsic" of
    05_ppo_intrinsic. Raises UserError for a policy that no stage trains.
    """
    untrained = {"base": model.model.name_or_path, "teacher": model.model.teacher_name_or_path}
    if policy_ckpt and policy_ckpt not in untrained:
        return checkpoint_at(policy_ckpt, several=True)
    if given := untrained.get(policy_ckpt or policy):
        folder = resolve_path(given)
        return folder if folder.is_dir() or given.startswith((".", "/", "~")) else given
    trained = method_of(policy)
    if trained is None:
        raise UserError(
            f"policy '{policy}' is none of {', '.join(POLICIES)} (with an optional _<variant>); "
            "for any other checkpoint give its folder as --policy_ckpt"
        )
    return run_dir / best_checkpoint(*trained)


class Checkpoint(NamedTuple):
    """One checkpoint of a folder that holds several; ``step`` is None where its name tells none ("best")."""

    name: str
    step: int | None
    path: Path


def checkpoints_in(folder: Path | str) -> list[Checkpoint]:
    """The checkpoints that a folder holds, by step, then those without one by name.

    None for a hub name or a folder that is a checkpoint itself: a full model or an adapter.
    """
    if isinstance(folder, str) or not folder.is_dir() or is_checkpoint(folder):
        return []
    found = []
    for path in sorted(folder.iterdir()):
        if not path.name.startswith(".") and is_checkpoint(path):
            match = _STEP.fullmatch(path.name)
            found.append(Checkpoint(path.name, int(match[1]) if match else None, path))
    return sorted(found, key=lambda each: (each.step is None, each.step or 0))


def weights_of(checkpoint: Path | str) -> dict[str, Path]:
    """The local folders that a policy's weights, or those of several checkpoints, come from."""
    several = checkpoints_in(checkpoint)
    if not several:
        return model_inputs(checkpoint)
    bases = sorted({base for each in several if (base := model_inputs(each.path).get("base_model"))})
    names = ["base_model", *(f"base_model_{number}" for number in range(2, len(bases) + 1))]
    return {"checkpoint": checkpoint, **dict(zip(names, bases, strict=False))}


def find_evaluations(
    run_dir: Path, runs: Sequence[str], policies: Sequence[str], failures: Collection[str] = ()
) -> dict[str, Path]:
    """Finished evaluations, in the order of the pipeline: name -> folder 10_evaluation/<policy>.

    Args:
        run_dir: the run that compares; its folder's siblings are what run ids in ``runs`` stand for.
        runs: run ids or run folders; empty for ``run_dir`` alone. With several, names are "<run>/<policy>".
        policies: which policies; empty for all.
        failures: policies, or "<run>/<policy>", to leave out: an evaluation they have is of earlier work.

    Raises:
        UserError: where a run, or a policy that was asked for and did not fail, has no finished evaluation,
            or where all that was asked for failed.
    """
    found: dict[str, Path] = {}
    for run in runs or [run_dir.name]:
        folder = run_dir.parent / run if (run_dir.parent / run).is_dir() or not runs else resolve_path(run)
        done = {
            path.parent.name: path.parent
            for path in folder.glob(f"{EVALUATION}/*/manifest.json")
            if (path.parent / METRICS).is_file()  # several checkpoints of a policy have one in a folder each
        }
        wanted = [
            policy
            for policy in (list(policies) or sorted(done))
            if policy not in failures and f"{folder.name}/{policy}" not in failures
        ]
        if not wanted and (policies or done):
            failed = ", ".join(policies or sorted(done))
            raise UserError(
                f"nothing to compare in {shown(folder)}: {failed} failed; mend that, then run again"
            )
        missing = [policy for policy in wanted if policy not in done]
        if missing or not wanted:
            policy = missing[0] if missing else "sft"
            what = f"of '{missing[0]}' " if missing else ""
            raise UserError(
                f"no finished evaluation {what}in {shown(folder)}: "
                f"run `{command_for(folder / EVALUATION / policy)}` first"
            )
        prefix = f"{folder.name}/" if len(runs) > 1 else ""
        found |= {prefix + policy: done[policy] for policy in wanted}
    return {name: found[name] for name in sorted(found, key=policy_order)}


def evaluation_files(folder: Path) -> tuple[Path, Path]:
    """The two files of an evaluation that a comparison reads."""
    return folder / METRICS, folder / "breakdown.csv"
