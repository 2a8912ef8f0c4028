"""The driver: the stages of a method in order, each skipped, resumed or run as its folder asks."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args, get_type_hints

from utils.common import REPO_ROOT, UserError
from utils.manifest import update_run_manifest
from utils.stage import Prepared, load_script, prepare
from utils.typed import suggestion

TIERS = ("model", "dataset", "reward")
FLAG_OF_TIER = {"model": "--config", "dataset": "--dataset_config", "reward": "--reward_config"}


@dataclass(frozen=True)
class Step:
    """One execution of a numbered script. ``derived`` results are redone when their inputs change."""

    name: str
    script: str
    arguments: tuple[str, ...] = ()
    derived: bool = False


def evaluation(policy: str) -> Step:
    """Stage 10 for one policy; its options are addressed as ``--evaluate.KEY``."""
    return Step("evaluate", "10_evaluate.py", ("--policy", policy))


SFT = Step("sft", "03_sft_train.py")
CANDIDATES = Step("candidates", "04_generate_candidates.py")
METHODS: dict[str, tuple[Step, ...]] = {
    "sft": (SFT,),
    "ppo": (SFT, CANDIDATES, Step("ppo", "05_train_ppo.py")),
    "grpo": (SFT, CANDIDATES, Step("grpo", "06_train_grpo.py")),
}
DATA = (
    Step("check", "00_check_data.py"),
    Step("prepare", "01_prepare.py"),
    Step("rewards", "02_build_rewards.py"),
)


@dataclass(frozen=True)
class Goal:
    """What the driver is asked for: a method, and which reward it trains on (None: its stage's default)."""

    method: str
    reward: str | None = None

    def training(self) -> Step:
        """The step that trains the method's policy. Raises UserError where it has no reward to choose."""
        step = METHODS[self.method][-1]
        if self.reward is None:
            return step
        if self.reward not in reward_choices(step.script):
            choices = ", ".join(reward_choices(step.script))
            remedy = f"choose from {choices}" if choices else f"{step.script} pays no reward"
            raise UserError(f"--reward {self.reward} does not go with --method {self.method}: {remedy}")
        return replace(step, arguments=("--reward", self.reward))

    def policy(self) -> str:
        """The trained policy's name: the method's, with the reward where that is not the default."""
        step = self.training()
        if self.reward in (None, getattr(load_script(step.script).STAGE.options(), "reward", None)):
            return self.method
        return f"{self.method}_{self.reward}"

    def policies(self) -> list[str]:
        """What is evaluated and compared."""
        return list(dict.fromkeys(["base", "sft", self.policy()]))

    def steps(self) -> list[Step]:
        """Everything the method takes, from raw data to the comparison of base, SFT and trained policy."""
        compare = Step(
            "compare", "11_compare_runs.py", ("--policies", f"[{', '.join(self.policies())}]"), derived=True
        )
        before = METHODS[self.method][:-1]
        return [*DATA, *before, self.training(), *map(evaluation, self.policies()), compare]


def reward_choices(script: str) -> tuple[str, ...]:
    """What ``--reward`` of a stage can be; () where the stage has no such option."""
    return get_args(get_type_hints(load_script(script).STAGE.options).get("reward"))


@dataclass
class Overrides:
    """Options of the stages, as the driver was given them.

    ``shared`` go to every stage (run_id, seed …); ``tiers`` ("model", "dataset", "reward") to the stages
    that have the tier; ``steps`` to the step they name.
    """

    shared: list[str] = field(default_factory=list)
    tiers: dict[str, list[str]] = field(default_factory=dict)
    steps: dict[str, list[str]] = field(default_factory=dict)

    def add(self, key: str, values: list[str], goal: Goal) -> None:
        """File ``--owner.key values``. Raises UserError where the owner is neither a tier nor a step."""
        owner, _, rest = key.partition(".")
        owners = [*TIERS, *dict.fromkeys(step.name for step in goal.steps())]
        if not rest or owner not in owners:
            raise UserError(
                f"unknown option --{key}{suggestion(owner, owners)}: the driver passes on --OWNER.KEY VALUE, "
                f"with OWNER one of {', '.join(owners)}"
            )
        if owner in TIERS:
            self.tiers.setdefault(owner, []).extend([f"--{key}", *values])
        else:
            self.steps.setdefault(owner, []).extend([f"--{rest}", *values])

    def argv(self, step: Step) -> list[str]:
        """The step's command line."""
        tiers = load_script(step.script).STAGE.tiers
        owned = [word for tier, words in self.tiers.items() if tier in tiers for word in words]
        return [*step.arguments, *self.shared, *owned, *self.steps.get(step.name, [])]


def run_goal(goal: Goal, overrides: Overrides, overwrite: bool = False) -> Path:
    """Run what is missing, skip what is up to date, resume what broke; returns the run's folder.

    Raises UserError where a stage cannot be planned, and SystemExit with a failed stage's exit code.
    """
    steps = goal.steps()
    prepared: Prepared | None = None
    for number, step in enumerate(steps, start=1):
        argv = overrides.argv(step)
        prepared = prepare(load_script(step.script).STAGE, argv)
        name = prepared.out.relative_to(prepared.run_dir)
        status = prepared.status
        if status == "up_to_date" and not overwrite:
            print(f"[{number}/{len(steps)}] {name}: up to date", flush=True)
            continue
        print(f"[{number}/{len(steps)}] {name}: {step.script} ({status.split(':')[0]})", flush=True)
        if overwrite or (step.derived and status.startswith("stale")):
            argv = [*argv, "--overwrite"]
        code = subprocess.run([sys.executable, str(REPO_ROOT / step.script), *argv], check=False).returncode
        if code:
            print(
                f"error: {step.script} failed (exit code {code}); what is finished is kept, run the same "
                "command again to continue",
                file=sys.stderr,
            )
            raise SystemExit(code if code > 0 else 1)
    # Every stage does this; once more, for one that was killed after its manifest and before this.
    update_run_manifest(prepared.run_dir)
    return prepared.run_dir


def show_comparison(run_dir: Path, goal: Goal, seed: int) -> None:
    """Print the accuracies with their intervals, and the test of the trained policy against SFT."""
    from rich.console import Console
    from rich.table import Table

    from utils.evaluation.comparison import compare_pair, load_result
    from utils.evaluation.policies import evaluation_files, find_evaluations

    names, trained = goal.policies(), goal.policy()
    results = {
        name: load_result(name, *evaluation_files(folder))
        for name, folder in find_evaluations(run_dir, [], names).items()
    }
    table = Table(title=f"{run_dir.name}: accuracy on the test set")
    for column in ("policy", "accuracy", "95 % interval", "n"):
        table.add_column(column, justify="left" if column == "policy" else "right")
    for name, result in results.items():
        rate = result.metrics["accuracy"]
        low, high = rate["ci95"]
        table.add_row(
            name, f"{100 * rate['value']:.1f} %", f"{100 * low:.1f} to {100 * high:.1f} %", str(rate["n"])
        )
    console = Console(width=80)
    console.print(table)
    if trained != "sft":
        pair = compare_pair(results["sft"], results[trained], seed)
        low, high = pair.ci95
        console.print(
            f"{trained} - sft: {100 * pair.difference:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f}), "
            f"exact McNemar p = {pair.p_value:.2g}; report: {run_dir / '11_comparison' / 'report.md'}",
            soft_wrap=True,
        )
