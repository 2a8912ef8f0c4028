"""Budgets: every method of a comparison learns from the same number of completions, of the same prompts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from utils.driver.goal import CANDIDATES, Goal, Overrides, Step
from utils.frame.files import UserError
from utils.frame.manifest import read_manifest
from utils.frame.stage_plan import Plan, load_script, make_plan

# Which step draws a method's completions, and the option that says how many of each prompt.
SAMPLED_IN = {"distill": "distill", "ppo": "ppo", "grpo": "grpo", "rloo": "rloo", "dpo": CANDIDATES.name}
GROUP_OPTION = {
    "distill": "--distill.num_generations",
    "ppo": "--ppo.num_generations",
    "grpo": "--grpo.num_generations",
    "rloo": "--rloo.num_samples",
    "dpo": "--candidates.num_candidates",
}


@dataclass(frozen=True)
class Budget:
    """The completions that a method learns from in one run.

    Attributes:
        prompts: prompts drawn; None for all of a split that is not prepared yet.
        per_prompt: completions of each.
        split: where the prompts are from.
        unit: completions that cannot be divided: a rollout's, or a prompt's.
        gold: how many of the completions are not sampled but the data set's own (distillation).
    """

    prompts: int | None
    per_prompt: int
    split: str
    unit: int
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
    return {
        method: _budget(_planned(steps[SAMPLED_IN[method]], overrides, run_id, seed))
        for method in goal.methods
        if method in SAMPLED_IN
    }


def set_completions(completions: int, goal: Goal, overrides: Overrides, run_id: str, seed: int) -> None:
    """Let every sampling step draw ``completions``, by its number of rollouts or of prompts.

    Gold text counts as a completion where it takes the place of a sample. Candidates are set for every method
    that makes them, so that adding DPO to a run finds them up to date. Raises UserError where a rollout's or
    a prompt's completions do not divide the number, naming the nearest that does, or where another option
    stands against it.
    """
    steps = {step.name: step for step in goal.steps() if step.name in SAMPLED_IN.values()}
    if not steps:
        raise UserError(f"--completions goes with a method that samples: {', '.join(SAMPLED_IN)}")
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
        key = "--max_items" if name == CANDIDATES.name else "--algo.num_rollouts"
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
    if "dpo" in budgets:
        candidates = next(step for step in goal.steps() if step.id == CANDIDATES.id)
        run_dir = _planned(candidates, overrides, run_id, seed).run_dir
        budgets["dpo"] = _limited(budgets["dpo"], run_dir)
    if len(budgets) < 2:
        return budgets
    dpo = budgets.get("dpo")
    if dpo and dpo.split != "train":
        raise UserError(
            f"the methods would not see the same prompts: --candidates.split is {dpo.split}, which dpo "
            "learns from, and the others draw from train; leave it out"
        )
    groups = {method: budget.per_prompt for method, budget in budgets.items() if not budget.gold}
    if len(set(groups.values())) > 1:
        options = ", ".join(GROUP_OPTION[method] for method in groups)
        raise UserError(
            f"the methods would sample different numbers of completions per prompt ({_listed(groups)}), and "
            f"so not see the same prompts: make {options} equal"
        )
    if dpo and dpo.prompts is None:
        raise UserError(
            "dpo would sample candidates of every prompt of the train split (--candidates.max_items null), "
            "and how many that are is known only when 01 has run: give --completions N for all methods"
        )
    completions = {method: budget.completions for method, budget in budgets.items()}
    if len(set(completions.values())) > 1:
        few = _split_size(run_dir, "train") if dpo else None
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
    if plan.stage.folder == "04_candidates":
        options = plan.config.options
        return Budget(options.max_items, options.num_candidates, options.split, options.num_candidates)
    algo = plan.config.algo
    per_prompt = algo.num_samples if hasattr(algo, "num_samples") else algo.num_generations
    completions = algo.num_prompts * per_prompt
    unit, gold = completions // algo.num_rollouts, completions - algo.sampled_completions
    return Budget(algo.num_prompts, per_prompt, "train", unit, gold)


def _limited(budget: Budget, run_dir: Path) -> Budget:
    """Candidates are of each prompt once: no more prompts than the prepared split has."""
    available = _split_size(run_dir, budget.split)
    if available is None:
        return budget
    prompts = available if budget.prompts is None else min(budget.prompts, available)
    return Budget(prompts, budget.per_prompt, budget.split, budget.unit)


def _split_size(run_dir: Path, split: str) -> int | None:
    """How many prompts a split of the run has, None before 01 has run."""
    manifest = read_manifest(run_dir / "01_preprocessing")
    name = f"01_preprocessing/{split}.jsonl"
    return manifest["outputs"][name]["rows"] if manifest and name in manifest["outputs"] else None


def _listed(numbers: dict[str, int | None]) -> str:
    return ", ".join(f"{method} {number}" for method, number in numbers.items())
