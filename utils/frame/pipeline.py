"""The one table of the pipeline: the stages of a run, and of every method all that others ask about it.

A new method is a folder utils/methods/<name>/, a file configs/algorithms/<name>.yaml and a row here; nothing
else lists methods. The table is checked when it is imported: a row without its files, or a method without a
row, ends every script.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from utils.frame.files import REPO_ROOT

RewardName = Literal["combined", "task", "intrinsic"]
CurriculumName = Literal["random", "easy_to_hard", "hard_to_easy", "sec", "pass_rate"]
REWARDS, CURRICULA = get_args(RewardName), get_args(CurriculumName)
DEFAULT_REWARD, DEFAULT_CURRICULUM = REWARDS[0], CURRICULA[0]

# What --quick_test sets where completions are rolled out in groups, and what it sets in every training.
_TRAIN = {"training.save_steps": 2, "validation.eval_steps": 2, "validation.num_items": 8}
_QUICK = {f"model.{name}": value for name, value in _TRAIN.items()}
_QUICK_ROLLOUTS = {"algo.num_rollouts": 4, "algo.per_device_train_batch_size": 8, **_QUICK}


@dataclass(frozen=True)
class StageRow:
    """A stage of a run.

    Attributes:
        name: what the driver calls the step (``--NAME.KEY``); a method's is also that of its policy.
        folder: what it writes; a variant's folder is this and "_<variant>".
        script: what writes it.
        option: what makes the script this stage, where it is one of several: ("--objective", "distill").
        needs: rows whose results it reads.
        beside: rows that the driver runs with it although it does not read them.
        samples: whether it draws completions to learn from, and so has a budget.
        rewarded: whether it goes by a reward of its choice (``--reward``), each another variant.
        nested: whether it holds a folder for each variant, in place of a folder beside it.
    """

    name: str
    folder: str
    script: str
    _: KW_ONLY
    option: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    samples: bool = False
    rewarded: bool = False
    nested: bool = False


@dataclass(frozen=True)
class Method(StageRow):
    """A stage that trains a policy: unless its row says otherwise, the SFT policy by rewards of its samples.

    Attributes:
        summary: what it does, a sentence of ``--help``.
        starts: what it can train, "sft" or "base"; the first is the default.
        teacher: whether it learns from the teacher whichever reward is paid.
        ordered: whether it follows a curriculum (``--curriculum``).
        logs: the files in its folder logs/.
        quick: what ``--quick_test`` sets.
        preset: whether it varies another method: ``--method presets`` names it, ``--method all`` does not.
        code: its folder in utils/methods, where that is another method's: a preset that is settings alone,
            those of its own YAML file. settings.py there holds <Code>Algo,
            the class of its algorithm tier; of one that samples, a RolloutAlgo, which says how much
            (utils/rollouts/settings.py).
        builder: the module there with build_<code>_trainer(context, training records, reward specification)
            and PANELS, the curves that are drawn.
    """

    summary: str
    _: KW_ONLY
    needs: tuple[str, ...] = ("sft",)
    beside: tuple[str, ...] = ("candidates",)  # an audit of the rewards
    samples: bool = True
    rewarded: bool = True
    starts: tuple[Literal["sft", "base"], ...] = ("sft",)
    teacher: bool = False
    ordered: bool = True
    logs: str = "metrics.jsonl,curves.png"
    quick: Mapping[str, Any] = field(default_factory=_QUICK_ROLLOUTS.copy, hash=False)
    preset: bool = False
    code: str = ""
    builder: str = "trainer"

    @property
    def package(self) -> str:
        """Its folder in utils/methods."""
        return self.code or self.name

    @property
    def defaults(self) -> str:
        """The YAML file of its algorithm tier."""
        return f"configs/algorithms/{self.name}.yaml"

    @property
    def from_pairs(self) -> bool:
        """Whether it learns from preference pairs, in place of the training split."""
        return "preferences" in self.needs

    @property
    def from_candidates(self) -> bool:
        """Whether it learns from candidates, in place of the training split."""
        return "candidates" in self.needs


def _preset(method: Method, name: str, summary: str, **quick: Any) -> Method:
    """A method by the settings of configs/algorithms/<name>.yaml alone (``--preset <name>``).

    ``quick``: algorithm settings of ``--quick_test`` beside the method's.
    """
    return replace(
        method,
        name=name,
        folder=f"{method.folder.partition('_')[0]}_{name}",
        summary=summary,
        option=("--preset", name),
        preset=True,
        code=method.package,
        quick={**method.quick, **{f"algo.{key}": value for key, value in quick.items()}},
    )


_DISTILL = Method(
    "distill",
    "03_distill",
    "03_sft_train.py",
    "Distil the teacher into the SFT policy or the base model.",
    option=("--objective", "distill"),
    beside=(),
    starts=("sft", "base"),
    teacher=True,
    rewarded=False,
    builder="build",
)


def _distillation(name: str, summary: str) -> Method:
    """A preset of distillation, which 03 calls an objective."""
    return replace(_preset(_DISTILL, name, summary), option=("--objective", name))


_PPO = Method(
    "ppo",
    "05_ppo",
    "05_train_ppo.py",
    "Improve the SFT policy by PPO, with token rewards read from the teacher's logits.",
    quick={"algo.num_rollouts": 4, "algo.rollout_batch_size": 16, **_QUICK},
    builder="build",
)
_GRPO = Method("grpo", "06_grpo", "06_train_grpo.py", "Improve the SFT policy by GRPO.")
_RLOO = Method(
    "rloo",
    "07_rloo",
    "07_train_rloo.py",
    "Improve the SFT policy by RLOO.",
    logs="metrics.jsonl,rollouts.jsonl,curves.png",
)

# In the order in which a run takes them; docs/methods.md has a paragraph and a source for each preset.
PIPELINE: tuple[StageRow, ...] = (
    StageRow("check", "00_data_validation", "00_check_data.py"),
    StageRow("prepare", "01_preprocessing", "01_prepare_dataset.py", needs=("check",)),
    StageRow("rewards", "02_rewards", "02_build_rewards.py", needs=("prepare",)),
    Method(
        "sft",
        "03_sft",
        "03_sft_train.py",
        "Fine-tune the base model on the training demonstrations.",
        needs=("rewards",),
        beside=(),
        starts=("base",),
        samples=False,
        rewarded=False,
        ordered=False,
        quick={"algo.max_steps": 4, "model.validation.eval_steps": 2, "model.validation.num_items": 8},
    ),
    _DISTILL,
    _distillation("opd", "On-policy distillation by policy gradient: the sampled tokens alone."),
    _distillation("exopd", "ExOPD: on-policy distillation beyond the teacher."),
    _distillation("vopd", "vOPD: on-policy distillation with the exact KL as baseline."),
    _distillation("reopold", "REOPOLD: on-policy distillation with bounded rewards, on some of the tokens."),
    StageRow("candidates", "04_candidates", "04_generate_candidates.py", needs=("sft",), samples=True),
    Method(
        "rft",
        "03_rft",
        "03_sft_train.py",
        "Fine-tune the SFT policy on the right ones of its candidates (rejection sampling).",
        option=("--objective", "rft"),
        preset=True,
        needs=("candidates",),
        beside=(),
        samples=False,
        rewarded=False,
        ordered=False,
        quick={"algo.max_steps": 4, "model.validation.eval_steps": 2, "model.validation.num_items": 8},
    ),
    _PPO,
    _preset(
        _PPO,
        "vapo",
        "VAPO: a critic warmed up first, lambda by length, clip-higher.",
        critic_warmup_rollouts=1,
    ),
    _GRPO,
    _preset(_GRPO, "dr_grpo", "Dr. GRPO: no division by deviation or length."),
    _preset(_GRPO, "dapo", "DAPO: clip-higher, groups without signal replaced, long completions punished."),
    _preset(_GRPO, "gspo", "GSPO: the ratio of the whole completion, clipped closely."),
    _preset(_GRPO, "cispo", "CISPO: the ratio's weight capped, every token keeps its gradient."),
    _preset(_GRPO, "lite_ppo", "Lite PPO: less the group's mean, by the rollout's deviation."),
    _preset(_GRPO, "maxrl", "MaxRL: advantages divided by the group's mean reward."),
    _preset(_GRPO, "gdpo", "GDPO: every part of the reward normalised by itself, then added up."),
    _RLOO,
    _preset(_RLOO, "reinforce", "REINFORCE: no baseline, advantages normalised over the rollout."),
    StageRow("preferences", "08_preferences", "08_build_prefs.py", needs=("candidates",), rewarded=True),
    Method(
        "dpo",
        "09_dpo",
        "09_train_dpo.py",
        "Improve the SFT policy by DPO on preference pairs.",
        needs=("preferences",),
        beside=(),
        samples=False,
        ordered=False,
        quick={"algo.max_steps": 4, "algo.per_device_train_batch_size": 8, **_QUICK},
        builder="build",
    ),
    StageRow("evaluate", "10_evaluation", "10_evaluate.py", nested=True),
    StageRow("compare", "11_comparison", "11_compare_runs.py"),
)

ROWS = {row.name: row for row in PIPELINE}
METHODS = {row.name: row for row in PIPELINE if isinstance(row, Method)}
PRESETS = tuple(name for name, row in METHODS.items() if row.preset)
FAMILIES = tuple(name for name in METHODS if name not in PRESETS)
NESTED = frozenset(row.folder for row in PIPELINE if row.nested)
UNTRAINED = ("base", "teacher")  # policies that no stage trains
POLICIES = ("base", "sft", "teacher", *(name for name in METHODS if name != "sft"))

# The option that makes a stage write its folder "<stage>_<variant>"; a reward comes before a curriculum.
VARIANTS = {
    "audit": ("--audit",),
    **{name: ("--reward", name) for name in REWARDS},
    **{name: ("--curriculum", name) for name in CURRICULA},
}


def run_of_seed(run_id: str, seed: int) -> str:
    """The name of the run that the driver makes for a seed."""
    return f"{run_id}_seed_{seed}"


def row_of(folder: str) -> StageRow | None:
    """The row of a stage folder, a variant's included; None for a folder that no stage writes."""
    folders = {row.folder: row for row in PIPELINE}
    return folders.get(_named_in(folder, folders))


def options_of(folder: str) -> list[str]:
    """The options that make a script write a stage folder, e.g. of its reward and its curriculum."""
    row = row_of(folder)
    if row is None:
        raise ValueError(f"no stage writes {folder}")
    words, suffix = list(row.option), folder.removeprefix(row.folder)
    while name := next((name for name in VARIANTS if f"{suffix}_".startswith(f"_{name}_")), None):
        words += VARIANTS[name]
        suffix = suffix.removeprefix(f"_{name}")
    return words


def requires(*names: str, beside: bool = False) -> list[str]:
    """These rows and all that they rest on, in their order; ``beside``: and what is run beside them."""
    wanted = set(names)
    for row in reversed(PIPELINE):
        if row.name in wanted:
            wanted |= {*row.needs, *(row.beside if beside else ())}
    return [name for name in ROWS if name in wanted]


def after_sft(folder: str) -> bool:
    """Whether a stage rests on SFT, and so is part of what a method costs."""
    row = row_of(folder)
    return row is not None and "sft" in requires(*row.needs)


def counts_cost(folder: str) -> bool:
    """Whether a stage samples or trains, and so counts what it costs; others work on what these left."""
    row = row_of(folder)
    return row is not None and (isinstance(row, Method) or row.samples)


def samples_while_training(folder: str) -> bool:
    """Whether a stage trains on samples that it draws itself, and its log says how far these have come."""
    row = row_of(folder)
    return isinstance(row, Method) and row.samples


def sampled_in(method: str) -> StageRow | None:
    """The row that samples what a method learns from: itself, or one that it rests on; None for none."""
    rows = [ROWS[method], *(ROWS[name] for name in requires(method) if name not in METHODS)]
    return next((row for row in rows if row.samples), None)


def method_of(policy: str) -> tuple[Method, str] | None:
    """The method that trains a policy, and its variant: "grpo_task" -> (GRPO, "task"); None for others."""
    name = _named_in(policy, METHODS)
    return (METHODS[name], policy.removeprefix(name).removeprefix("_")) if name else None


def best_checkpoint(method: Method, variant: str = "") -> str:
    """Where a run keeps a method's best checkpoint: "06_grpo_task/ckpt_grpo/best"."""
    return f"{method.folder}{'_' if variant else ''}{variant}/ckpt_{method.name}/best"


class Origin(NamedTuple):
    """The training that a checkpoint is of: the stage's folder, the method, and which of its checkpoints this
    is ("best"; "" for the folder of all)."""

    stage: Path
    method: Method
    checkpoint: str

    @property
    def policy(self) -> str:
        """The policy that was trained, "grpo_task" of 06_grpo_task."""
        return self.method.name + self.stage.name.removeprefix(self.method.folder)


def origin_of(checkpoint: Path | str | None) -> Origin | None:
    """The training that wrote `<stage>/ckpt_<method>[/<name>]`; None for other paths and what is no path."""
    if isinstance(checkpoint, Path):
        for holder, name in ((checkpoint, ""), (checkpoint.parent, checkpoint.name)):
            row = row_of(holder.parent.name)
            if holder.name.startswith("ckpt_") and isinstance(row, Method):
                return Origin(holder.parent, row, name)
    return None


def policy_order(name: str) -> tuple[int, str]:
    """Sort key: the policies in the order of the pipeline, each before its variants, then other names."""
    policy = _named_in(name.rsplit("/", 1)[-1], POLICIES)
    return (POLICIES.index(policy) if policy else len(POLICIES)), name


def _named_in(name: str, known: Iterable[str]) -> str:
    """The longest of ``known`` that the name is, or is a variant of ("<known>_<variant>"); "" for none."""
    return max((each for each in known if f"{name}_".startswith(f"{each}_")), key=len, default="")


def check(table: Sequence[StageRow]) -> None:
    """Raise ValueError, naming row and reason, for a table that others could not rely on."""
    packages = {path.parent.name for path in REPO_ROOT.glob("utils/methods/*/settings.py")}
    for place, row in enumerate(table):
        before = table[:place]
        names, alike = (
            [other.name for other in before],
            [other for other in before if other.script == row.script],
        )
        files, wrong = [row.script], ""
        if isinstance(row, Method):
            code = f"utils/methods/{row.package}"
            files += [f"{code}/settings.py", f"{code}/{row.builder}.py", row.defaults]
            packages.discard(row.package)
        if row.name in (*names, *UNTRAINED) or row.folder in (other.folder for other in before):
            wrong = f"its name or its folder {row.folder} is another's"
        elif row.folder[:3] != row.script[:3]:
            wrong = f"{row.folder} has another number than {row.script}"
        elif unknown := [name for name in (*row.needs, *row.beside) if name not in names]:
            wrong = f"no earlier row is {unknown[0]}"
        elif bool(row.option) != bool(alike):
            wrong = f"an option tells it from the first row of {row.script}, and that has none"
        elif any(row.option[0] != other.option[0] or row.option == other.option for other in alike[1:]):
            wrong = f"the rows of {row.script} are told apart by the values of one option"
        elif missing := [name for name in files if not (REPO_ROOT / name).is_file()]:
            wrong = f"there is no {missing[0]}"
        if wrong:
            raise ValueError(f"utils/frame/pipeline.py: {row.name}: {wrong}")
    if packages:
        raise ValueError(f"utils/frame/pipeline.py: no row has utils/methods/{min(packages)}")


check(PIPELINE)
