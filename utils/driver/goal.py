"""What the driver is asked for: methods, the steps that each takes, and options for the steps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import get_args, get_type_hints

from utils.frame.files import UserError
from utils.frame.pipeline import CURRICULA, DEFAULT_CURRICULUM
from utils.frame.stage_plan import Stage, load_script
from utils.frame.typed_settings import suggestion

TIERS = ("model", "dataset", "reward")
FLAG_OF_TIER = {"model": "--config", "dataset": "--dataset_config", "reward": "--reward_config"}


@dataclass(frozen=True)
class Step:
    """One execution of a numbered script in a run.

    ``name`` owns the step's options (``--NAME.KEY``), for all its variants; ``needs`` are the ids of the
    steps whose results it reads; ``policy`` is what an evaluation evaluates; ``variant`` tells a method's
    trainings apart, "" for the plain one.
    """

    name: str
    script: str
    arguments: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    policy: str = ""
    variant: str = ""

    @property
    def id(self) -> str:
        """The step's name within its run, with its variant or, of an evaluation, its policy."""
        return " ".join(word for word in (self.name, self.variant, self.policy) if word)

    @property
    def stage(self) -> Stage:
        """The stage that the script is with these arguments."""
        return load_script(self.script).STAGE.chosen(self.arguments)[0]

    @property
    def rewards(self) -> tuple[str, ...]:
        """What ``--reward`` of the stage can be; () where it pays none."""
        return get_args(get_type_hints(self.stage.options).get("reward"))

    @property
    def follows_curricula(self) -> bool:
        """Whether the stage has ``--curriculum``."""
        return "curriculum" in get_type_hints(self.stage.options)


DATA = (
    Step("check", "00_check_data.py"),
    Step("prepare", "01_prepare_dataset.py", needs=("check",)),
    Step("rewards", "02_build_rewards.py", needs=("prepare",)),
)
SFT = Step("sft", "03_sft_train.py", needs=("rewards",))
DISTILL = Step("distill", "03_sft_train.py", ("--objective", "distill"), needs=("sft",))
CANDIDATES = Step("candidates", "04_generate_candidates.py", needs=("sft",))
# What a method takes after the data, methods in the order of the pipeline; the last step trains its policy.
METHODS: dict[str, tuple[Step, ...]] = {
    "sft": (SFT,),
    "distill": (SFT, DISTILL),
    "ppo": (SFT, CANDIDATES, Step("ppo", "05_train_ppo.py", needs=("sft",))),
    "grpo": (SFT, CANDIDATES, Step("grpo", "06_train_grpo.py", needs=("sft",))),
    "rloo": (SFT, CANDIDATES, Step("rloo", "07_train_rloo.py", needs=("sft",))),
    "dpo": (
        SFT,
        CANDIDATES,
        Step("preferences", "08_build_prefs.py", needs=("candidates",)),
        Step("dpo", "09_train_dpo.py", needs=("preferences",)),
    ),
}
COMPARE = Step("compare", "11_compare_runs.py")


def parse_methods(words: Iterable[str]) -> tuple[str, ...]:
    """Method names, separated by spaces or commas, in the pipeline's order; "all" is every method.

    Raises UserError for another name, or none.
    """
    return _named("method", words, METHODS)


def parse_curricula(words: Iterable[str]) -> tuple[str, ...]:
    """Names of curricula, separated by spaces or commas, in their own order; "all" is every one.

    Raises UserError for another name, or none.
    """
    return _named("curriculum", words, CURRICULA)


def listed(words: Iterable[str]) -> list[str]:
    """The entries of an option that takes several, separated by spaces or commas."""
    return [entry for word in words for entry in word.split(",") if entry]


def _named(option: str, words: Iterable[str], known: Iterable[str]) -> tuple[str, ...]:
    names, known = listed(words), tuple(known)
    for name in names:
        if name not in (*known, "all"):
            raise UserError(f'--{option}: there is no "{name}"{suggestion(name, (*known, "all"))}')
    if not names:
        raise UserError(f"--{option} needs one or several of {', '.join(known)}, or all")
    return tuple(name for name in known if name in names or "all" in names)


@dataclass(frozen=True)
class Goal:
    """What the driver is asked for: methods, and what they are trained on and by.

    ``reward`` is one for all of them (None: each stage's default). Every method that follows curricula is
    trained under each of ``curricula`` (none: each stage's default), the others once. ``teacher``: it is
    evaluated too.
    """

    methods: tuple[str, ...]
    reward: str | None = None
    curricula: tuple[str, ...] = ()
    teacher: bool = False

    def variants(self, method: str) -> dict[str, Step]:
        """Policy -> the step that trains it.

        Policies are <method>[_<reward>][_<curriculum>], each part where it is not the default.
        """
        step, policy = self._paid(METHODS[method][-1]), method
        if self.reward is not None and step.rewards and self.reward != step.stage.options().reward:
            policy += f"_{self.reward}"
        if not self.curricula or not step.follows_curricula:
            return {policy: step}
        return {
            policy if name == DEFAULT_CURRICULUM else f"{policy}_{name}": replace(
                step,
                arguments=(*step.arguments, "--curriculum", name),
                variant="" if name == DEFAULT_CURRICULUM else name,
            )
            for name in self.curricula
        }

    def trained(self) -> list[str]:
        """The policies that are trained on the way, SFT first."""
        return list(self._trained_by())

    def unordered(self) -> list[str]:
        """Methods that follow no curriculum and run once, whichever curricula are asked for."""
        if not self.curricula:
            return []
        return [method for method in self.methods if not METHODS[method][-1].follows_curricula]

    def steps(self) -> list[Step]:
        """Everything that a run takes from raw data to the last evaluation, each after what it needs.

        Raises UserError where no method, or not every method that pays a reward, can be paid ``reward``, and
        where no method follows the curricula.
        """
        self._check_reward()
        self._check_curricula()
        steps = dict.fromkeys(DATA)
        for method in self.methods:
            steps |= dict.fromkeys(self._paid(step) for step in METHODS[method][:-1])
            steps |= dict.fromkeys(self.variants(method).values())
        return [*steps, *self.evaluations()]

    def evaluations(self) -> list[Step]:
        """Stage 10 for every policy of the comparison; its options are ``--evaluate.KEY``."""
        policies = {"base": "rewards"} | self._trained_by() | ({"teacher": "rewards"} if self.teacher else {})
        return [
            Step("evaluate", "10_evaluate.py", ("--policy", policy), (need,), policy)
            for policy, need in policies.items()
        ]

    def owners(self) -> list[str]:
        """What an option can belong to: tiers and steps."""
        return [*TIERS, *dict.fromkeys(step.name for step in self.steps()), COMPARE.name]

    def _trained_by(self) -> dict[str, str]:
        """Policy -> id of the step that trains it, SFT first."""
        variants = [self.variants(method) for method in self.methods]
        return {"sft": SFT.id} | {policy: step.id for each in variants for policy, step in each.items()}

    def _check_reward(self) -> None:
        if self.reward is None:
            return
        choices = {method: METHODS[method][-1].rewards for method in self.methods}
        paying = {method: names for method, names in choices.items() if names}
        for method, names in (paying or choices).items():
            if self.reward not in names:
                script = METHODS[method][-1].script
                remedy = f"choose from {', '.join(names)}" if names else f"{script} pays no reward"
                raise UserError(f"--reward {self.reward} does not go with --method {method}: {remedy}")

    def _check_curricula(self) -> None:
        asked = [name for name in self.curricula if name != DEFAULT_CURRICULUM]
        if asked and self.unordered() == list(self.methods):
            follow = ", ".join(method for method, steps in METHODS.items() if steps[-1].follows_curricula)
            raise UserError(
                f"--curriculum {' '.join(asked)} does not go with --method {' '.join(self.methods)}: "
                f"curricula are followed by {follow}"
            )

    def _paid(self, step: Step) -> Step:
        """The step with the reward as its argument, where it trains or pairs by one.

        Candidates keep their own: they are sampled once, and carry every component for all methods.
        """
        if self.reward is None or step == CANDIDATES or not step.rewards:
            return step
        return replace(step, arguments=(*step.arguments, "--reward", self.reward))


# What the driver itself decides for a training, and where that is said.
OWN_OPTIONS = {
    "reward": "policies are named after their reward, so give --reward to the driver, for all methods alike; "
    "for rewards that differ run the driver once for each",
    "curriculum": "policies are named after their curriculum, so give --curriculum to the driver",
    "objective": "name what to train as --method sft or --method distill",
}


@dataclass
class Overrides:
    """Options of the stages, as the driver was given them.

    ``shared`` go to every stage (output_dir …); ``tiers`` ("model", "dataset", "reward") to the stages that
    have the tier; ``steps`` to all variants of the step they name, and ``budget`` before them
    (--completions).
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
        if rest in OWN_OPTIONS and owner not in (*TIERS, CANDIDATES.name):
            raise UserError(f"--{key}: {OWN_OPTIONS[rest]}")
        if owner in TIERS:
            self.tiers.setdefault(owner, []).extend([f"--{key}", *values])
        else:
            self.steps.setdefault(owner, []).extend([f"--{rest}", *values])

    def argv(self, step: Step, run_id: str, seed: int) -> list[str]:
        """The step's command line."""
        tiers = step.stage.tiers
        owned = [word for tier, words in self.tiers.items() if tier in tiers for word in words]
        words = [*step.arguments, "--run_id", run_id, "--seed", str(seed), *self.shared, *owned]
        return [*words, *self.budget.get(step.name, []), *self.steps.get(step.name, [])]
