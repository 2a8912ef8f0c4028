"""What a stage reads must agree with what lies behind it, and with the reward that the command line names.

A stage rests on others: 06 on 03, which rests on 01. Each manifest says what was read, so that a result whose
grounds were redone since is known by manifests alone.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from utils.frame import manifest as manifests
from utils.frame.files import UserError, sha256_of_tree, shown
from utils.frame.pipeline import NESTED, PIPELINE, ROWS, row_of
from utils.frame.repair_command import command_for, words_of


def check_chain(run_dir: Path, folders: Collection[str], strict_code: bool) -> None:
    """Raise UserError where a stage that has finished, or one that it rests on, read something else than
    there is now, naming the first to redo; with ``strict_code`` also where other code ran it.

    What has been deleted since is not missed. Args: folders: in the run, such as "10_evaluation/ppo".
    """
    stages = dict(sorted(_behind(run_dir, folders).items(), key=_in_order))
    found = {folder: changed for folder, made in stages.items() if (changed := _changed_input(stages, made))}
    if found:
        first, *others = found
        then = f", then {', '.join(others)} again" if others else ""
        raise UserError(
            f"{shown(run_dir / first)} rests on another {found[first]} than there is now: "
            f"run `{command_for(run_dir / first, redo=True)}`{then}"
        )
    if strict_code and (other := [folder for folder, made in stages.items() if by_other_code(made)]):
        raise UserError(
            f"--strict_code: the code has changed since {', '.join(other)} ran: "
            f"run `{command_for(run_dir / other[0], redo=True)}`, and what rests on it"
        )


def by_other_code(made: dict[str, Any]) -> bool:
    """Whether a manifest is of a stage that other code ran than there is now; older ones do not say."""
    code = made.get("environment", {}).get("code_sha256")
    return code is not None and code != manifests.code_sha256()


def stage_folder(name: str) -> str | None:
    """The stage folder of a path in a run, as manifests name it; None for a path in no stage."""
    parts = Path(name).parts
    if len(parts) < 2 or row_of(parts[0]) is None:
        return None
    return "/".join(parts[: 2 if parts[0] in NESTED and len(parts) > 2 else 1])


def check_reward(plan: Any) -> None:
    """Raise UserError where a stage is given another reward tier than its ``reward_spec`` was made of."""
    asked, spec = plan.arguments.shared, plan.inputs.get("reward_spec")
    named = {name: value for name, value in asked["frame"].items() if name == "reward_config"}
    named |= asked["reward"]
    made = manifests.read_manifest(spec.parent) if named and spec else None
    if made is None or "reward" not in made.get("config", {}):
        return
    from utils.frame.stage_plan import load_script, make_plan  # which checks its inputs here

    run_dir = spec.parent.parent
    rewards = make_plan(load_script(ROWS["rewards"].script).STAGE, words_of(named))
    files = rewards.stage.inputs(rewards.config, run_dir).items()
    own = {name: file for name, file in files if not file.is_relative_to(run_dir)}
    if lost := next((file for file in own.values() if not file.is_file()), None):
        raise UserError(f"missing input {shown(lost)}: no such file or folder")
    before = {name: facts for name, facts in made["inputs"].items() if stage_folder(name) is None}
    config = {"reward": rewards.config.to_dict(run_dir)["reward"]}
    changed = manifests.identity_differences(
        made | {"inputs": before, "config": {"reward": made["config"]["reward"]}},
        made | {"inputs": manifests.describe_inputs(own, run_dir), "config": config},
    )
    if changed:
        given = {name: " ".join(words_of({name: value})[1:]) for name, value in named.items()}
        raise UserError(
            f"{shown(spec)} is not the reward that is named ({changed[0]}): run "
            f"`{command_for(spec.parent, redo=True, given=given)}` first"
        )


def _behind(run_dir: Path, folders: Collection[str]) -> dict[str, dict[str, Any]]:
    """The manifests of these stages and of all that they rest on, by folder."""
    found: dict[str, dict[str, Any]] = {}
    waiting = list(folders)
    while waiting:
        folder = waiting.pop()
        made = None if folder in found else manifests.read_manifest(run_dir / folder)
        if made is not None:
            found[folder] = made
            waiting += _read_folders(made)
    return found


def _read_folders(made: dict[str, Any]) -> Iterator[str]:
    return filter(None, map(stage_folder, made.get("inputs", {})))


def _changed_input(stages: Mapping[str, dict[str, Any]], made: dict[str, Any]) -> str:
    """The first input that a stage read otherwise than ``stages`` hold it now; "" where there is none."""
    for name, facts in made.get("inputs", {}).items():
        recorded = stages.get(stage_folder(name) or "")
        now = _listed(recorded["outputs"], name) if recorded else None
        if now is not None and now != facts.get("sha256", now):
            return name
    return ""


def _listed(outputs: dict[str, dict[str, Any]], name: str) -> str | None:
    """The hash of an output, or of a folder of outputs; None for what is not listed."""
    if name in outputs:
        return outputs[name]["sha256"]
    below = {
        path.removeprefix(f"{name}/"): facts["sha256"]
        for path, facts in outputs.items()
        if path.startswith(f"{name}/")
    }
    return sha256_of_tree(below) if below else None


def _in_order(item: tuple[str, Any]) -> tuple[int, str]:
    """Sort key: stages as the pipeline has them."""
    return PIPELINE.index(row_of(Path(item[0]).parts[0])), item[0]
