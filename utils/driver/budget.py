"""Budgets: every method of a comparison learns from the same number of completions, of the same prompts."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from utils.driver.goal import CANDIDATES, Goal, Overrides, Step
from utils.frame.files import UserError
from utils.frame.manifest import read_manifest
from utils.frame.pipeline import METHODS, ROWS, row_of, sampled_in
from utils.frame.stage_plan import Plan, load_script, make_plan


@dataclass(frozen=True)
class Budget:
    """The completions that a method learns from in one run.

    Attributes:
        prompts: prompts drawn; None for all of a split that is not prepared yet.
        per_prompt: completions of each.
        split: where the prompts are from.
        unit: completions that cannot be divided: a rollout's, or a prompt's.
        option: the driver's option that sets ``per_prompt``.
        gold: how many of the completions are not sampled but the data set's own (distillation).
    """

    prompts: int | None
    per_prompt: int
    split: str
    unit: int
    option: str
    gold: int = 0

    @property
    def completions(self) -> int | None:
        return None if self.prompts is None else self.prompts * self.per_prompt

    def __str__(self) -> str:
        if self.prompts is None:
            return f"{self.per_prompt} completions of every prompt of the {self.split} split"
        gold = f", {self.gold} of them gold" if self.gold else ""
        return f"{self.completions} completions of {self.prompts} prompts{gold}"


def read_budgets(goal: Goal, overrides: Overrides, run_id: str, seed: int) -> dict[str, Budget]:
    """Method -> budget, for the methods that sample, as their steps are configured now.

    Variants of a step have the same options, and so one budget.
    """
    steps = {step.name: step for step in goal.steps()}
    rows = {method: row for method in goal.methods if (row := sampled_in(method))}
    return {
        method: _budget(_planned(steps[row.name], overrides, run_id, seed)) for method, row in rows.items()
    }


def set_completions(completions: int, goal: Goal, overrides: Overrides, run_id: str, seed: int) -> None:
    """Let every sampling step draw ``completions``, by its number of rollouts or of prompts.

    Gold text counts as a completion where it takes the place of a sample. Candidates are set for every method
    that makes them, so that adding DPO to a run finds them up to date. Raises UserError where a rollout's or
    a prompt's completions do not divide the number, naming the nearest that does, or where another option
    stands against it.
    """
    steps = {step.name: step for step in goal.steps() if ROWS[step.name].samples}
    if not steps:
        sampling = ", ".join(filter(sampled_in, METHODS))
        raise UserError(f"--completions goes with a method that samples: {sampling}")
    units = {name: _budget(_planned(step, overrides, run_id, seed)).unit for name, step in steps.items()}
    common = math.lcm(*units.values())
    if completions < 1 or completions % common:
        nearest = max(common, (completions + common // 2) // common * common)
        at_once = ", ".join(f"{name} {unit}" for name, unit in units.items())
        raise UserError(
            f"--completions {completions} does not divide into what is sampled at once ({at_once}); the "
            f"nearest that does is {nearest}"
        )
    for name, step in steps.items():
        key = "--max_items" if name == CANDIDATES else "--algo.num_rollouts"
        overrides.budget[name] = [key, str(completions // units[name])]
        budget = _budget(_planned(step, overrides, run_id, seed))
        if budget.prompts is None or budget.prompts * budget.per_prompt != completions:
            raise UserError(
                f"--completions {completions} sets {key[2:]} of {name}, which is set to something else "
                f"by --{name}.…: leave one of the two out"
            )


def check_budgets(goal: Goal, overrides: Overrides, run_id: str, seed: int) -> dict[str, Budget]:
    """The budgets, which are equal where there are several; a method alone may do as it likes.

    Once 01 has run, candidates are counted by the prompts that there are. Raises UserError where the methods
    would not learn from equally many completions of equally many prompts of the training split. (With gold
    text, of which a prompt has one, they are as many completions of more prompts.)
    """
    budgets = read_budgets(goal, overrides, run_id, seed)
    learners = [method for method in budgets if sampled_in(method).name == CANDIDATES]
    of_candidates = None
    if learners:
        candidates = next(step for step in goal.steps() if step.name == CANDIDATES)
        run_dir = _planned(candidates, overrides, run_id, seed).run_dir
        of_candidates = _limited(budgets[learners[0]], run_dir)
        budgets |= dict.fromkeys(learners, of_candidates)
    if len(budgets) < 2:
        return budgets
    who = ", ".join(learners)
    if of_candidates and of_candidates.split != "train":
        raise UserError(
            f"the methods would not see the same prompts: --candidates.split is {of_candidates.split}, which "
            f"{who} learns from, and the others draw from train; leave it out"
        )
    groups = {method: budget.per_prompt for method, budget in budgets.items() if not budget.gold}
    if len(set(groups.values())) > 1:
        options = ", ".join(budgets[method].option for method in groups)
        raise UserError(
            f"the methods would sample different numbers of completions per prompt ({_listed(groups)}), and "
            f"so not see the same prompts: make {options} equal"
        )
    if of_candidates and of_candidates.prompts is None:
        raise UserError(
            f"{who} would sample candidates of every prompt of the train split (--candidates.max_items "
            "null), and how many that are is known only when 01 has run: give --completions N for all methods"
        )
    completions = {method: budget.completions for method, budget in budgets.items()}
    if len(set(completions.values())) > 1:
        few = _split_size(run_dir, "train") if learners else None
        note = f"; the train split has {few} prompts, candidates are of each once" if few else ""
        raise UserError(
            f"the methods would sample different numbers of completions ({_listed(completions)}{note}): give "
            "--completions N for all, or run them one at a time"
        )
    return budgets


def _planned(step: Step, overrides: Overrides, run_id: str, seed: int) -> Plan:
    return make_plan(load_script(step.script).STAGE, overrides.argv(step, run_id, seed))


def _budget(plan: Plan) -> Budget:
    """The budget of a sampling step; that of 04 without regard to how many prompts there are."""
    step, options, algo = row_of(plan.stage.folder).name, plan.config.options, plan.config.algo
    if step == CANDIDATES:
        group, option = options.num_candidates, f"--{step}.num_candidates"
        return Budget(options.max_items, group, options.split, group, option)
    completions = algo.num_prompts * algo.group_size
    unit, gold = completions // algo.num_rollouts, completions - algo.sampled_completions
    return Budget(algo.num_prompts, algo.group_size, "train", unit, f"--{step}.{algo.group_option}", gold)


def _limited(budget: Budget, run_dir: Path) -> Budget:
    """Candidates are of each prompt once: no more prompts than the prepared split has."""
    available = _split_size(run_dir, budget.split)
    if available is None:
        return budget
    prompts = available if budget.prompts is None else min(budget.prompts, available)
    return replace(budget, prompts=prompts)


def _split_size(run_dir: Path, split: str) -> int | None:
    """How many prompts a split of the run has, None before 01 has run."""
    folder = ROWS["prepare"].folder
    manifest, name = read_manifest(run_dir / folder), f"{folder}/{split}.jsonl"
    return manifest["outputs"][name]["rows"] if manifest and name in manifest["outputs"] else None


def _listed(numbers: dict[str, int | None]) -> str:
    return ", ".join(f"{method} {number}" for method, number in numbers.items())
