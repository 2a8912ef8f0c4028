"""Runs that are seeds of one experiment: which they are, and that nothing but the seed differs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.comparison.manifest_diff import ABSENT, Difference, diff_runs, left_empty, load_manifests
from utils.evaluation.policy_names import find_evaluations
from utils.frame.files import UserError
from utils.frame.pipeline import policy_order, run_of_seed

# What stages from 03 on write follows the seed; data and rewards must be the same for every seed.
UNSEEDED = ("00_", "01_", "02_")
# Which file holds the policy is the policy's own affair, as its weights are. How much of a batch a device
# takes at once changes no more than rounding.
MAY_DIFFER = ("seed", "options.policy_ckpt", "options.predictions", "model.training.max_micro_batch")


@dataclass(frozen=True)
class SeedRuns:
    """Runs in the order of their seeds, and the policies that all of them have evaluated.

    Attributes:
        runs: names of the runs' folders.
        seeds: the seed of each.
        folders: policy -> folder 10_evaluation/<policy> of each run, in the order of the pipeline.
        left_out: policy -> runs that lack it, for policies that only some runs have evaluated.
        code: what differs in the code that made the runs, e.g. "git_commit" or "packages.torch".
        failed: policy -> reason, for policies that failed in any run and so are compared in none.
    """

    runs: list[str]
    seeds: list[int]
    folders: dict[str, list[Path]]
    left_out: dict[str, list[str]]
    code: list[str]
    failed: dict[str, str] = field(default_factory=dict)

    def evaluations(self) -> dict[str, Path]:
        """All evaluations that are compared: "<run>/<policy>" -> folder."""
        return {
            f"{run}/{policy}": folder
            for policy, folders in self.folders.items()
            for run, folder in zip(self.runs, folders, strict=True)
        }


def find_seed_runs(
    run_dir: Path, runs: Sequence[str], policies: Sequence[str], failed: Mapping[str, str] | None = None
) -> SeedRuns:
    """The evaluations of several runs as seeds of one experiment.

    Args:
        run_dir: the run that compares; its folder's siblings are what run ids in ``runs`` stand for.
        runs: run ids or run folders, two or more.
        policies: which policies; empty for all that every run has evaluated.
        failed: policy -> reason, for policies to leave out.

    Raises:
        UserError: where there are fewer than two runs, a policy that was asked for has no evaluation, no
            policy is in every run, two runs have one seed, or the runs differ in more than the seed.
    """
    if len(runs) < 2:
        raise UserError("--by_seed needs two or more runs, one per seed: give them as --runs RUN,RUN,…")
    found: dict[str, dict[str, Path]] = {}
    for run in runs:
        evaluations = find_evaluations(run_dir, [run], policies, failed or {})
        name = next(iter(evaluations.values())).parents[1].name
        if name in found:
            raise UserError(f"--runs names '{name}' twice: every run is one seed")
        found[name] = evaluations
    every = sorted({policy for evaluations in found.values() for policy in evaluations}, key=policy_order)
    lacking = {policy: [run for run in found if policy not in found[run]] for policy in every}
    shared = [policy for policy in every if not lacking[policy]]
    if not shared:
        raise UserError(
            f"no policy was evaluated in all of {', '.join(found)}: evaluate one in each (10_evaluate.py)"
        )
    manifests = {run: load_manifests(folders[shared[0]].parents[1]) for run, folders in found.items()}
    order = _order_by_seed(manifests, shared)
    code = _check_same_experiment({run: manifests[run] for run in order}, shared)
    return SeedRuns(
        runs=order,
        seeds=[_seed(manifests[run], shared[0]) for run in order],
        folders={policy: [found[run][policy] for run in order] for policy in shared},
        left_out={policy: lacking[policy] for policy in every if lacking[policy]},
        code=code,
        failed=dict(failed or {}),
    )


def lineage(manifests: dict[str, dict[str, Any]], stage: str) -> dict[str, dict[str, Any]]:
    """The manifests of a stage and of all stages of its run whose outputs it rests on."""
    found: dict[str, dict[str, Any]] = {}
    waiting = [stage]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = manifests[name]
            waiting += [
                other
                for other in manifests
                if any(path.startswith(other + "/") for path in manifests[name].get("inputs", {}))
            ]
    return found


def _seed(manifests: dict[str, dict[str, Any]], policy: str) -> int:
    return manifests[f"10_evaluation/{policy}"]["seed"]


def _order_by_seed(manifests: dict[str, dict[str, dict[str, Any]]], policies: Sequence[str]) -> list[str]:
    """The runs by seed. Raises UserError where two have one seed, or the policies of a run several."""
    of_seed: dict[int, str] = {}
    for run, stages in manifests.items():
        seed = _seed(stages, policies[0])
        for policy in policies:
            if _seed(stages, policy) != seed:
                raise UserError(
                    f"{run}: '{policies[0]}' was evaluated with seed {seed}, '{policy}' with "
                    f"{_seed(stages, policy)}; give all stages of a run the same --seed"
                )
        if seed in of_seed:
            raise UserError(
                f"{of_seed[seed]} and {run} both have seed {seed}: two runs of one seed are not two samples; "
                "run one again with another --seed"
            )
        of_seed[seed] = run
    return [of_seed[seed] for seed in sorted(of_seed)]


def _check_same_experiment(
    manifests: dict[str, dict[str, dict[str, Any]]], policies: Sequence[str]
) -> list[str]:
    """Compare every run with the first; returns what differs in code.

    Only the stages count that a compared policy rests on. Raises UserError naming the first difference in
    data or configuration other than the seed, or a policy trained twice with one seed.
    """
    first, *others = manifests
    seed_of = {run: _seed(stages, policies[0]) for run, stages in manifests.items()}
    code = set()
    for policy in policies:
        stage = f"10_evaluation/{policy}"
        stages = {run: lineage(manifests[run], stage) for run in manifests}
        trained: dict[tuple, str] = {}
        for run in manifests:
            seeds = tuple(
                (name, stages[run][name]["seed"])
                for name in sorted(stages[run])
                if name != stage and not name.startswith(UNSEEDED)
            )
            if seeds and seeds in trained:
                raise UserError(
                    f"'{policy}' was trained with the same seed in {trained[seeds]} and {run} "
                    f"({seeds[-1][0]}: seed {seeds[-1][1]}); train every run with its own --seed"
                )
            trained[seeds] = run
        for run in others:
            for difference in diff_runs(stages[first], stages[run]):
                if difference.category == "code":
                    code.add(difference.key)
                elif _matters(difference, stages[first], stages[run], (seed_of[first], seed_of[run])):
                    raise UserError(
                        f"{first} and {run} differ in more than the seed: {difference.stage} "
                        f"{difference.key}{_values(difference)}; make the runs alike, or compare them "
                        "without --by_seed"
                    )
    return sorted(code)


def _matters(difference: Difference, a: dict[str, dict], b: dict[str, dict], seeds: tuple[int, int]) -> bool:
    """Whether a difference is one that seeds of one experiment may not show; a and b have these seeds."""
    if difference.category == "config":
        each_its_own = _in_own_run(difference.a, seeds[0]) == _in_own_run(difference.b, seeds[1])
        return difference.key not in MAY_DIFFER and not left_empty(difference) and not each_its_own
    if difference.category == "data":
        path = difference.key.removeprefix("input ")
        for stages in (a, b):
            options = stages.get(difference.stage, {}).get("config", {}).get("options", {})
            if path in (options.get("policy_ckpt"), options.get("predictions")):
                return False
        if any(path.startswith(stage + "/") for stage in (*a, *b)):
            return path.startswith(UNSEEDED)
        return not _lies_elsewhere(difference, path, (a, b), seeds)
    return difference.category == "stages"


def _lies_elsewhere(
    difference: Difference, path: str, stages: tuple[dict[str, dict], dict[str, dict]], seeds: tuple[int, int]
) -> bool:
    """Whether an input that one run lacks is there under another path: a file of this name and content; or,
    of a path into the driver's run of the seed, that path into the run of the other seed."""
    lacking = 0 if difference.a == ABSENT else 1
    facts = (difference.b, difference.a)[lacking]
    inputs = stages[lacking][difference.stage].get("inputs", {})
    own = _in_own_run(path, seeds[1 - lacking])
    if own != path:
        return own in [_in_own_run(other, seeds[lacking]) for other in inputs]
    return any(Path(other).name == Path(path).name and inputs[other] == facts for other in inputs)


def _in_own_run(value: Any, seed: int) -> Any:
    """A path without its own seed's number, where it leads into the driver's run of that seed."""
    own = re.escape(run_of_seed("", seed))
    return re.sub(rf"{own}(?=/|$)", "_seed", value) if isinstance(value, str) else value


def _values(difference: Difference) -> str:
    """The two values, for a configuration; of files and stages, whether one lacks them."""
    if difference.category == "config":
        a, b = (value if value == ABSENT else repr(value) for value in (difference.a, difference.b))
        return f" is {a} against {b}"
    if ABSENT in (difference.a, difference.b):
        return f" is {'absent from the first' if difference.a == ABSENT else 'absent from the second'}"
    return " is another file"
