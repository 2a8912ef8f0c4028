"""What the driver is asked for: methods, the steps that each takes, and options for the steps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import get_args, get_type_hints

from utils.common import UserError
from utils.plan import load_script
from utils.typed import suggestion

TIERS = ("model", "dataset", "reward")
FLAG_OF_TIER = {"model": "--config", "dataset": "--dataset_config", "reward": "--reward_config"}


@dataclass(frozen=True)
class Step:
    """One execution of a numbered script in a run.

    ``name`` owns the step's options (``--NAME.KEY``); ``needs`` are the ids of the steps whose results it
    reads; ``policy`` is what an evaluation evaluates.
    """

    name: str
    script: str
    arguments: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    policy: str = ""

    @property
    def id(self) -> str:
        """The step's name within its run; evaluations are told apart by their policy."""
        return f"{self.name} {self.policy}" if self.policy else self.name


DATA = (
    Step("check", "00_check_data.py"),
    Step("prepare", "01_prepare.py", needs=("check",)),
    Step("rewards", "02_build_rewards.py", needs=("prepare",)),
)
SFT = Step("sft", "03_sft_train.py", needs=("rewards",))
CANDIDATES = Step("candidates", "04_generate_candidates.py", needs=("sft",))
METHODS: dict[str, tuple[Step, ...]] = {
    "sft": (SFT,),
    "ppo": (SFT, CANDIDATES, Step("ppo", "05_train_ppo.py", needs=("sft",))),
    "grpo": (SFT, CANDIDATES, Step("grpo", "06_train_grpo.py", needs=("sft",))),
    "rloo": (SFT, CANDIDATES, Step("rloo", "07_train_rloo.py", needs=("sft",))),
    "dpo": (
        SFT,
        CANDIDATES,
        Step("preferences", "08_build_preferences.py", needs=("candidates",)),
        Step("dpo", "09_train_dpo.py", needs=("preferences",)),
    ),
}
COMPARE = Step("compare", "11_compare_runs.py")


def parse_methods(words: Iterable[str]) -> tuple[str, ...]:
    """Method names, separated by spaces or commas, in the pipeline's order; "all" is every method.

    Raises UserError for another name, or none.
    """
    names = [name for word in words for name in word.split(",") if name]
    for name in names:
        if name not in (*METHODS, "all"):
            raise UserError(f'--method: there is no "{name}"{suggestion(name, (*METHODS, "all"))}')
    if not names:
        raise UserError(f"--method needs one or several of {', '.join(METHODS)}, or all")
    return tuple(method for method in METHODS if method in names or "all" in names)


def reward_choices(script: str) -> tuple[str, ...]:
    """What ``--reward`` of a stage can be; () where the stage has no such option."""
    return get_args(get_type_hints(load_script(script).STAGE.options).get("reward"))


@dataclass(frozen=True)
class Goal:
    """What the driver is asked for: methods, and which reward they train on (None: each stage's default)."""

    methods: tuple[str, ...]
    reward: str | None = None

    def policy(self, method: str) -> str:
        """The trained policy's name: the method's, with the reward where that is not the default."""
        script = METHODS[method][-1].script
        if self.reward is None or not reward_choices(script):
            return method
        default = load_script(script).STAGE.options().reward
        return method if self.reward == default else f"{method}_{self.reward}"

    def trained(self) -> list[str]:
        """The policies that are trained on the way, SFT first."""
        return list(dict.fromkeys(["sft", *map(self.policy, self.methods)]))

    def steps(self) -> list[Step]:
        """Everything that a run takes from raw data to the last evaluation, each after what it needs.

        Raises UserError where no method, or not every method that pays a reward, can be paid ``reward``.
        """
        self._check_reward()
        steps = dict.fromkeys(DATA)
        # All methods' common steps first, then each method's own.
        for step in dict.fromkeys(step for method in self.methods for step in METHODS[method][:2]):
            steps[self._paid(step)] = None
        for step in (step for method in self.methods for step in METHODS[method][2:]):
            steps[self._paid(step)] = None
        return [*steps, *self.evaluations()]

    def evaluations(self) -> list[Step]:
        """Stage 10 for the base model and every trained policy; its options are ``--evaluate.KEY``."""
        trained_by = {self.policy(method): METHODS[method][-1].id for method in self.methods}
        needed = {"base": "rewards", "sft": "sft"} | trained_by
        return [
            Step("evaluate", "10_evaluate.py", ("--policy", policy), (needed[policy],), policy)
            for policy in ("base", *self.trained())
        ]

    def owners(self) -> list[str]:
        """What an option can belong to: tiers and steps."""
        return [*TIERS, *dict.fromkeys(step.name for step in self.steps()), COMPARE.name]

    def _check_reward(self) -> None:
        if self.reward is None:
            return
        choices = {method: reward_choices(METHODS[method][-1].script) for method in self.methods}
        paying = {method: names for method, names in choices.items() if names}
        for method, names in (paying or choices).items():
            if self.reward not in names:
                script = METHODS[method][-1].script
                remedy = f"choose from {', '.join(names)}" if names else f"{script} pays no reward"
                raise UserError(f"--reward {self.reward} does not go with --method {method}: {remedy}")

    def _paid(self, step: Step) -> Step:
        """The step with the reward as its argument, where it trains or pairs by one.

        Candidates keep their own: they are sampled once, and carry every component for all methods.
        """
        if self.reward is None or step == CANDIDATES or not reward_choices(step.script):
            return step
        return replace(step, arguments=("--reward", self.reward))


@dataclass
class Overrides:
    """Options of the stages, as the driver was given them.

    ``shared`` go to every stage (output_dir …); ``tiers`` ("model", "dataset", "reward") to the stages that
    have the tier; ``steps`` to the step they name, and ``budget`` before them (--completions).
    """

    shared: list[str] = field(default_factory=list)
    tiers: dict[str, list[str]] = field(default_factory=dict)
    steps: dict[str, list[str]] = field(default_factory=dict)
    budget: dict[str, list[str]] = field(default_factory=dict)

    def add(self, key: str, values: list[str], goal: Goal) -> None:
        """File ``--owner.key values``. Raises UserError where the owner is neither a tier nor a step."""
        owner, _, rest = key.partition(".")
        owners = goal.owners()
        if not rest or owner not in owners:
            raise UserError(
                f"unknown option --{key}{suggestion(owner, owners)}: the driver passes on --OWNER.KEY VALUE, "
                f"with OWNER one of {', '.join(owners)}"
            )
        if rest == "reward" and owner not in (*TIERS, CANDIDATES.name):
            raise UserError(
                f"--{key}: policies are named after their reward, so give --reward to the driver, for all "
                "methods alike; for rewards that differ run the driver once for each"
            )
        if owner in TIERS:
            self.tiers.setdefault(owner, []).extend([f"--{key}", *values])
        else:
            self.steps.setdefault(owner, []).extend([f"--{rest}", *values])

    def argv(self, step: Step, run_id: str, seed: int) -> list[str]:
        """The step's command line."""
        tiers = load_script(step.script).STAGE.tiers
        owned = [word for tier, words in self.tiers.items() if tier in tiers for word in words]
        words = [*step.arguments, "--run_id", run_id, "--seed", str(seed), *self.shared, *owned]
        return [*words, *self.budget.get(step.name, []), *self.steps.get(step.name, [])]
