"""What the driver is asked for: methods, the steps that each takes, and options for the steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from utils.frame.files import UserError
from utils.frame.pipeline import (
    DEFAULT_CURRICULUM,
    DEFAULT_REWARD,
    FAMILIES,
    METHODS,
    PIPELINE,
    REWARDS,
    ROWS,
    StageRow,
    requires,
)
from utils.frame.stage_plan import Stage, load_script
from utils.frame.typed_settings import leaf_keys, suggestion

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

    @classmethod
    def of(cls, row: StageRow) -> Step:
        """The step that runs a row of the pipeline as it is."""
        return cls(row.name, row.script, row.option, row.needs)

    @property
    def id(self) -> str:
        """The step's name within its run, with its variant or, of an evaluation, its policy."""
        return " ".join(word for word in (self.name, self.variant, self.policy) if word)

    @property
    def stage(self) -> Stage:
        """The stage that the script is with these arguments."""
        return load_script(self.script).STAGE.chosen(self.arguments)[0]


CANDIDATES = ROWS["candidates"].name
EVALUATE, COMPARE = Step.of(ROWS["evaluate"]), Step.of(ROWS["compare"])


def listed(words: Iterable[str]) -> list[str]:
    """The entries of an option that takes several, separated by spaces or commas."""
    return [entry for word in words for entry in word.split(",") if entry]


def named(
    option: str, words: Iterable[str], known: Iterable[str], groups: Mapping[str, Iterable[str]] | None = None
) -> tuple[str, ...]:
    """Names of methods or curricula, separated by spaces or commas, in the order of ``known``.

    ``groups`` are words for several of them; by default "all" is all.

    Raises UserError for another name, or none.
    """
    names, known = listed(words), tuple(known)
    groups = groups or {"all": known}
    for name in names:
        if name not in (*known, *groups):
            raise UserError(f'--{option}: there is no "{name}"{suggestion(name, (*known, *groups))}')
    if not names:
        raise UserError(f"--{option} needs one or several of {', '.join(known)}, or {' or '.join(groups)}")
    chosen = {member for name in names for member in groups.get(name, (name,))}
    return tuple(name for name in known if name in chosen)


@dataclass(frozen=True)
class Goal:
    """What the driver is asked for: methods, and what they are trained on and by.

    ``reward`` is one for all of them (None: each stage's default). Every method that follows curricula is
    trained under each of ``curricula`` (none: each stage's default), the others once. ``teacher``: it is
    evaluated too. ``start``: the policy that all start from, "base" or where it is; "" is SFT, which is then
    a step of the run.
    """

    methods: tuple[str, ...]
    reward: str | None = None
    curricula: tuple[str, ...] = ()
    teacher: bool = False
    start: str = ""

    def variants(self, method: str) -> dict[str, Step]:
        """Policy -> the step that trains it.

        Policies are <method>[_<reward>][_<curriculum>], each part where it is not the default.
        """
        step, policy = self._paid(Step.of(METHODS[method])), method
        if METHODS[method].rewarded and self.reward not in (None, DEFAULT_REWARD):
            policy += f"_{self.reward}"
        if not self.curricula or not METHODS[method].ordered:
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
        return [method for method in self.methods if not METHODS[method].ordered]

    def steps(self) -> list[Step]:
        """Everything that a run takes from raw data to the last evaluation, each after what it needs.

        Raises UserError where no method, or not every method that pays a reward, can be paid ``reward``, and
        where no method follows the curricula.
        """
        self._check_reward()
        self._check_curricula()
        steps: list[Step] = []
        for name in requires(*self.methods, beside=True):
            trained = name in self.methods
            if trained or name != "sft" or not self.start:
                steps += self.variants(name).values() if trained else [self._paid(Step.of(ROWS[name]))]
        return [*map(self._started, steps), *self.evaluations()]

    def evaluations(self) -> list[Step]:
        """Stage 10 for every policy of the comparison; its options are ``--evaluate.KEY``."""
        policies = {"base": "rewards"} | self._trained_by() | ({"teacher": "rewards"} if self.teacher else {})
        if self.start not in ("", "base"):
            policies = {"start": "rewards"} | policies
        places = {"start": ("--policy_ckpt", self.start)}
        return [
            replace(
                EVALUATE,
                arguments=("--policy", policy, *places.get(policy, ())),
                needs=(need,),
                policy=policy,
            )
            for policy, need in policies.items()
        ]

    def owners(self) -> list[str]:
        """What an option can belong to: tiers and steps."""
        return [*TIERS, *dict.fromkeys(step.name for step in self.steps()), COMPARE.name]

    def _trained_by(self) -> dict[str, str]:
        """Policy -> id of the step that trains it, SFT first."""
        variants = [self.variants(method) for method in self.methods]
        first = {} if self.start else {"sft": "sft"}
        return first | {policy: step.id for each in variants for policy, step in each.items()}

    def _started(self, step: Step) -> Step:
        """The step with the policy that it starts from, where that is not the run's own SFT policy."""
        if not self.start or "policy_ckpt" not in leaf_keys(step.stage.options):
            return step
        needs = [each for need in step.needs for each in (ROWS["sft"].needs if need == "sft" else (need,))]
        return replace(
            step,
            arguments=(*step.arguments, "--policy_ckpt", self.start),
            needs=tuple(dict.fromkeys(needs)),
        )

    def _check_reward(self) -> None:
        if self.reward is None:
            return
        rewarded = [method for method in self.methods if METHODS[method].rewarded]
        method = (rewarded or self.methods)[0]
        if not rewarded:
            remedy = f"{METHODS[method].script} pays no reward"
        elif self.reward not in REWARDS:
            remedy = f"choose from {', '.join(REWARDS)}"
        else:
            return
        raise UserError(f"--reward {self.reward} does not go with --method {method}: {remedy}")

    def _check_curricula(self) -> None:
        asked = [name for name in self.curricula if name != DEFAULT_CURRICULUM]
        if asked and self.unordered() == list(self.methods):
            follow = ", ".join(name for name in FAMILIES if METHODS[name].ordered)
            raise UserError(
                f"--curriculum {' '.join(asked)} does not go with --method {' '.join(self.methods)}: "
                f"curricula are followed by {follow}"
            )

    def _paid(self, step: Step) -> Step:
        """The step with the reward as its argument, where it trains or pairs by one.

        Candidates keep their own: they are sampled once, and carry every component for all methods.
        """
        if self.reward is None or not ROWS[step.name].rewarded:
            return step
        return replace(step, arguments=(*step.arguments, "--reward", self.reward))


def _told_apart_by(option: str) -> str:
    """The methods of the scripts that train several by this option, by name."""
    scripts = {row.script for row in PIPELINE if row.option[:1] == (option,)}
    return ", ".join(row.name for row in PIPELINE if row.script in scripts)


# What the driver itself decides for a training, and where that is said.
OWN_OPTIONS = {
    "reward": "policies are named after their reward, so give --reward to the driver, for all methods alike; "
    "for rewards that differ run the driver once for each",
    "curriculum": "policies are named after their curriculum, so give --curriculum to the driver",
    **{
        option.removeprefix("--"): "name what to train by --method: " + _told_apart_by(option)
        for option in dict.fromkeys(row.option[0] for row in PIPELINE if row.option)
    },
}


@dataclass
class Overrides:
    """Options of the stages, as the driver was given them.

    ``shared`` go to every stage (outputs_root …); ``tiers`` ("model", "dataset", "reward") to the stages that
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
        if rest in OWN_OPTIONS and owner not in (*TIERS, CANDIDATES):
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
