"""Every training stage, killed at many moments and resumed, ends in the bytes of one that ran through.

Killed means SIGKILL: nothing is cleaned up, flushed or finished. The moments are those of the training loop
(before and after a validation, a resume point, the last step) and those within what the stage writes.
"""

import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import Trainer, TrainerCallback

from tests.support.training_stages import run_script, stage_context, stage_inputs, tree, write_pairs
from utils.curricula.settings import CurriculumSettings, SignalWeights
from utils.frame.files import read_jsonl
from utils.frame.stage import StageContext
from utils.methods.distill.settings import DistillAlgo
from utils.methods.dpo.settings import DpoAlgo
from utils.methods.grpo.settings import GrpoAlgo
from utils.methods.ppo import trainer as ppo_trainer
from utils.methods.ppo.settings import PpoAlgo
from utils.methods.rloo.settings import RlooAlgo
from utils.methods.sft.settings import SftAlgo
from utils.models.settings import TrainingSection, ValidationSection
from utils.rewards.reward_pipeline import RewardPipeline
from utils.rewards.spec import AdaptiveSection, IntrinsicSection, RewardSpec, RewardWeights, write_reward_spec
from utils.training import run
from utils.training.validation import GenerationValidation

# --------------------------------------------------------------------------------------- moments of death
# Each is a function that is called in the process that is to die, and arranges its death there.

Arm = Callable[[], None]


def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


def at(event: str, step: int) -> Arm:
    """At an event of a step: "on_step_begin", "on_step_end" (before its validation), "on_train_end"."""

    class Dies(TrainerCallback):
        pass

    def killing(self, args, state, control, **kwargs):
        if state.global_step == step:
            die()

    setattr(Dies, event, killing)
    return lambda: add_callback(Dies())


def add_callback(callback: TrainerCallback) -> None:
    """Let every trainer have it."""
    init = Trainer.__init__

    def with_callback(self, *args, **kwargs):
        init(self, *args, **kwargs)
        self.add_callback(callback)

    Trainer.__init__ = with_callback


def before(owner, name: str) -> Arm:
    """Instead of calling a function."""
    return lambda: setattr(owner, name, die)


def after(owner, name: str, calls: int) -> Arm:
    """After so many calls of a function, whose work is then done."""

    def arm():
        original, left = getattr(owner, name), [calls]

        def fatal(*args, **kwargs):
            result = original(*args, **kwargs)
            left[0] -= 1
            if not left[0]:
                die()
            return result

        setattr(owner, name, fatal)

    return arm


EVERY_TURN = [
    at("on_step_end", 1),  # before the first resume point
    at("on_step_begin", 2),  # right after it
    at("on_step_end", 3),  # between two, before the validation of this step
    at("on_step_begin", 3),  # and after it
    at("on_step_end", 4),  # as a resume point is due
    at("on_step_begin", 5),
    at("on_step_end", 7),  # the last step, unsaved
    before(GenerationValidation, "save_final"),  # all steps done
    before(run, "plot_curves"),  # and all files of the training written
]
# Of rollouts of two optimizer steps each, saved every second step and validated every fourth.
ROLLOUTS = [
    at("on_step_end", 1),  # within the first rollout
    at("on_step_begin", 2),  # right after the first resume point
    at("on_step_end", 4),  # before the resume point and the validation of this step
    at("on_step_begin", 4),  # and after both
    at("on_step_end", 9),  # within the second epoch
    at("on_train_end", 10),
    before(GenerationValidation, "save_final"),
]
PPO_TURNS = [
    at("on_step_end", 1),  # before the first resume point, between updates
    after(RewardPipeline, "score_tokens", 2),  # in the second rollout, rewards there
    at("on_step_end", 6),  # between updates of the second rollout
    before(ppo_trainer.PPOTrainer, "save_critic"),
    before(ppo_trainer, "write_json"),  # before the coefficient is in the resume point
    before(ppo_trainer.PPOTrainer, "_save_rng_state"),  # before the trainer's state is in it
    after(RewardPipeline, "score_tokens", 2),  # in the last rollout
    at("on_step_end", 12),  # after the last update
]

# ------------------------------------------------------------------------------------------------- cases

# Everything that has a state: running statistics, adaptive weights.
SPEC = RewardSpec(
    weights=RewardWeights(intrinsic=0.5, reasoning=0.1),
    intrinsic=IntrinsicSection(form="bellman", normaliser="z_score", scope="running"),
    adaptive=AdaptiveSection(enabled=True),
    required_fields=["program"],
)
RATES = {"learning_rate": 2e-2, "warmup_steps": 0}
GROUPS = {
    **RATES,
    "num_rollouts": 5,
    "per_device_train_batch_size": 8,
    "steps_per_generation": 1,
    "num_iterations": 2,
    "beta": 0.05,
}
# An adaptive coefficient and a critic besides.
PPO = PpoAlgo(
    **RATES,
    num_rollouts=3,
    rollout_batch_size=8,
    num_generations=4,
    num_ppo_epochs=2,
    num_mini_batches=2,
    kl_coef=0.05,
    adaptive_kl=True,
    kl_target=0.5,
    kl_horizon=50,
    value_model="shared",
)
DISTILL = DistillAlgo(
    **RATES,
    num_rollouts=3,
    per_device_train_batch_size=4,
    steps_per_generation=2,
    num_generations=4,
    num_iterations=2,
)
MIXED = {"num_generations": 1, "on_policy_fraction": 0.5, "ce_weight": 0.2, "top_k": 5}
SIGNALS = SignalWeights(confidence_gap=1, probe_kl_drop=1)


@dataclass
class Case:
    """A stage, how it trains, when it dies, and whether it had a state that would show if it was lost."""

    script: str
    algo: object
    kills: list[Arm]
    shows: Callable[[SimpleNamespace], bool]
    options: dict = field(default_factory=dict)
    four_bits: bool = False
    lora: bool = True
    right: Callable[[str], bool] | None = None  # a made-up verdict on texts, of which no random one is right


CASES = {
    "sft": Case(
        "03",
        SftAlgo(max_steps=7, learning_rate=2e-2, warmup_steps=1, per_device_train_batch_size=3),
        EVERY_TURN,
        lambda found: found.logged("loss")[0] > found.logged("loss")[-1],
    ),
    "sft_four_bits": Case(
        "03",
        SftAlgo(max_steps=7, learning_rate=2e-2, warmup_steps=1, per_device_train_batch_size=3),
        EVERY_TURN[:2],
        lambda found: found.logged("loss")[0] > found.logged("loss")[-1],
        four_bits=True,
    ),
    "distill_mixed": Case(
        "03",
        replace(DISTILL, **MIXED, divergence="jsd", temperature=2.0),
        [at("on_step_end", 2), at("on_step_begin", 4), at("on_step_end", 7), at("on_train_end", 12)],
        lambda found: max(found.logged("divergence")) > 0,
        {"start": "sft"},
    ),
    "distill_sec": Case(
        "03",
        replace(DISTILL, curriculum=CurriculumSettings(weights=SIGNALS, probe_size=2)),
        [at("on_step_end", 4), at("on_step_end", 7)],
        lambda found: len(found.choices()) == 3,
        {"start": "sft", "curriculum": "sec"},
    ),
    "distill_sampled_tokens": Case(
        "03",
        replace(
            DISTILL,
            divergence="sampled_kl",
            reward_scale=1.25,
            reward_mixture=0.4,
            exploration_fraction=0.4,
            top_entropy_quantile=0.5,
        ),
        [at("on_step_end", 5), at("on_step_end", 9)],
        lambda found: min(found.logged("divergence")) > 0,
        {"start": "sft"},
    ),
    "ppo_pass_rate": Case(
        "05",
        replace(PPO, curriculum=CurriculumSettings(exploration=0.3)),
        PPO_TURNS,
        lambda found: len(set(found.logged("kl_coef"))) == 3 == len(found.choices()),
        {"curriculum": "pass_rate"},
    ),
    "ppo_separate_critic": Case(
        "05",
        replace(PPO, value_model="separate"),
        [PPO_TURNS[1], PPO_TURNS[-1]],
        lambda found: len(set(found.logged("kl_coef"))) == 3,
    ),
    "ppo_residual_critic_warmed_up": Case(
        "05",
        replace(PPO, critic_warmup_rollouts=1, critic_target="residual", lam_value=1.0),
        [PPO_TURNS[1]],
        lambda found: min(found.logged("loss/value")) > 0,
    ),
    "ppo_siblings": Case(
        "05",
        replace(PPO, value_model="siblings", lam=1.0, cliprange_high=0.3, dual_clip=3.0),
        [PPO_TURNS[1], PPO_TURNS[-1]],
        lambda found: len(set(found.logged("explained_variance/lambda_1/siblings"))) > 1,
    ),
    "grpo_sec": Case(
        "06",
        GrpoAlgo(num_generations=4, curriculum=CurriculumSettings(tau=0.2), **GROUPS),
        ROLLOUTS,
        lambda found: max(found.logged("reward_std")) > 0.01 and max(found.logged("kl")) > 0,
        {"curriculum": "sec"},
    ),
    "grpo_filtered": Case(
        "06",
        GrpoAlgo(num_generations=4, group_filter="outcome", **GROUPS),
        [at("on_step_end", 1), at("on_step_begin", 2), at("on_step_end", 5), at("on_train_end", 8)],
        lambda found: max(found.logged("groups_discarded")) > 0 and found.logged("step")[-1] == 8,
        right=lambda text: sum(map(ord, text)) % 4 == 0,
    ),
    "grpo_process_all_weights": Case(
        "06",
        GrpoAlgo(num_generations=4, supervision="process", **GROUPS),
        ROLLOUTS[4:5],
        lambda found: min(found.logged("advantages/abs_mean")) > 0,
        lora=False,
    ),
    "rloo_hard_to_easy": Case(
        "07",
        RlooAlgo(num_samples=4, curriculum=CurriculumSettings(start_fraction=0.3), **GROUPS),
        ROLLOUTS,
        lambda found: min(found.logged("advantages/abs_mean")) > 0 and len(found.rollouts()) == 5,
        {"curriculum": "hard_to_easy"},
    ),
    "dpo": Case(
        "09",
        DpoAlgo(max_steps=7, learning_rate=2e-2, warmup_steps=1, per_device_train_batch_size=3, beta=0.3),
        EVERY_TURN,
        lambda found: found.logged("val_kl")[-1] > 1e-3,
    ),
}


@pytest.fixture(scope="module")
def inputs(tiny_models, tmp_path_factory) -> dict[str, Path]:
    """Those of every training stage, of levels 1 to 4; with pairs."""
    folder = tmp_path_factory.mktemp("inputs")
    files = stage_inputs(folder, tiny_models("llama"))
    rows = [row | {"level": 1 + place % 4} for place, row in enumerate(read_jsonl(files["train"]))]
    files["train"].write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_reward_spec(files["reward_spec"], SPEC)
    return files | write_pairs(folder, rows)


@pytest.fixture
def context(inputs, tiny_models, tmp_path, unrendered):
    """A factory of the contexts of a case; the teacher is a tiny Qwen2 with the student's tokenizer."""

    def make(case: Case, name: str, resuming: bool = False) -> StageContext:
        options = {"curriculum": "random", **case.options}
        files = inputs if case.lora else inputs | {"checkpoint": tiny_models("llama")}
        llama, out = tiny_models("llama"), tmp_path / name
        ctx = stage_context(out, files, llama, case.algo, resuming=resuming, **options)
        config = ctx.config.model
        if case.script in ("03", "09") and not isinstance(case.algo, DistillAlgo):
            config = replace(
                config,
                training=TrainingSection(save_steps=2, logging_steps=3),
                validation=ValidationSection(eval_steps=3, num_items=3),
            )
        config = replace(
            config,
            model=replace(
                config.model,
                load_in_4bit=case.four_bits,
                teacher_name_or_path=str(tiny_models("qwen2")),
            ),
            lora=replace(config.lora, enabled=case.lora, r=4, lora_dropout=0.1),
        )
        ctx.config = replace(ctx.config, model=config)
        return ctx

    return make


def train(number: str, ctx: StageContext) -> dict:
    """The whole of the stage; returns the state that is not in its files."""
    trainers = []
    with pytest.MonkeyPatch.context() as patch:
        init = Trainer.__init__

        def noted(self, *args, **kwargs):
            init(self, *args, **kwargs)
            trainers.append(self)

        patch.setattr(Trainer, "__init__", noted)
        run_script(number, ctx)
    trainer, pipeline = trainers[0], getattr(trainers[0], "pipeline", None)
    state = {"cost": trainer.cost.counts(), "kl_coef": getattr(getattr(trainer, "kl", None), "coef", None)}
    if pipeline is not None:
        cache = pipeline.teacher and pipeline.teacher.cache
        state |= {"rewards": pipeline.state_dict()}
        state |= {"cache": (cache.stats, [key for key, _ in cache._listed()])} if cache else {}
    return state


def run_and_die(number: str, ctx: StageContext, arm: Arm) -> None:
    """Train in a process of its own, which is to kill itself."""
    child = os.fork()
    if child == 0:
        try:
            arm()
            run_script(number, ctx)
        finally:
            os._exit(1)  # it should not have come to this
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status


@pytest.mark.parametrize("name", CASES)
def test_killed_and_resumed_the_end_is_the_same(context, name, monkeypatch):
    """Every file, bit by bit: weights, critic, log, samples, curves; and what the files do not hold."""
    case = CASES[name]
    if case.right:
        monkeypatch.setattr(RewardPipeline, "correct", lambda _, __, texts: list(map(case.right, texts)))
    whole = context(case, "whole")
    expected = train(case.script, whole)
    logs = whole.out / "logs"
    rows = read_jsonl(logs / "metrics.jsonl")
    assert case.shows(
        SimpleNamespace(
            logged=lambda key: [row[key] for row in rows if key in row],
            choices=lambda: read_jsonl(logs / "curriculum.jsonl"),
            rollouts=lambda: read_jsonl(logs / "rollouts.jsonl"),
        )
    )
    for arm in case.kills:  # each process goes on where the last one died
        torch.manual_seed(int.from_bytes(os.urandom(4), "big"))  # a new process has its own random state
        run_and_die(case.script, context(case, "killed", resuming=True), arm)
    ctx = context(case, "killed", resuming=True)
    found = train(case.script, ctx)
    assert tree(ctx.out) == tree(whole.out)
    assert ctx.metrics == whole.metrics
    assert found == expected
    # Those that died before the first resume point began anew.
    resumed = (ctx.out / "stage.log").read_text().count("resuming from step")
    assert len(case.kills) - 1 <= resumed <= len(case.kills)


# ------------------------------------------------------------------------------------------------ damage


def flip(path: Path, rng: random.Random) -> None:
    """One bit of a file that has any."""
    data = bytearray(path.read_bytes() or b"\0")
    place = rng.randrange(8 * len(data))
    data[place // 8] ^= 1 << place % 8
    path.write_bytes(data)


def truncate(path: Path, rng: random.Random) -> None:
    """The end of a file is lost."""
    path.write_bytes(path.read_bytes()[: rng.randrange(max(1, path.stat().st_size))])


def plant(path: Path, rng: random.Random) -> None:
    """A file beside it that does not belong there."""
    path.with_name("scaler.pt").write_bytes(b"planted")


DAMAGES = [flip, truncate, plant, lambda path, rng: path.unlink()]
# Where two resume points are whole: after how many steps, and the names of the cases.
DAMAGED = {"sft": 5, "dpo": 5, "distill_sec": 9, "ppo_separate_critic": 10, "grpo_sec": 6}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_resume_point_never_becomes_a_result(context, name, tmp_path):
    """The one before is gone on from, and where that is damaged too, training begins anew: the same bytes."""
    case, rng = CASES[name], random.Random(name)
    whole = context(case, "whole")
    train(case.script, whole)
    run_and_die(case.script, context(case, "killed"), at("on_step_end", DAMAGED[name]))
    points = sorted((tmp_path / "killed" / "resume").glob("checkpoint-*"), key=lambda p: int(p.name[11:]))
    assert len(points) == 2
    for number, damage in enumerate(DAMAGES):
        copy = f"copy_{number}"
        shutil.copytree(tmp_path / "killed", tmp_path / copy)
        both = number == 0  # of one kind, in the first resume point as well
        for point in points[: 2 if both else 3][-2 if both else -1 :]:
            files = sorted(
                path for path in (tmp_path / copy / "resume" / point.name).rglob("*") if path.is_file()
            )
            damage(rng.choice(files), rng)
        ctx = context(case, copy, resuming=True)
        train(case.script, ctx)
        said = (ctx.out / "stage.log").read_text()
        assert said.count("set aside as damaged-checkpoint-") == 1 + both
        assert ("resuming from step" in said.split("set aside")[-1]) == (not both)
        assert tree(ctx.out) == tree(whole.out)


@pytest.mark.parametrize("damage", DAMAGES, ids=["flip", "truncate", "plant", "delete"])
def test_damage_to_checkpoints_of_an_interrupted_stage_never_becomes_a_result(context, tmp_path, damage):
    """They are those of the resume point again; where a flipped bit is in both, training begins anew."""
    case, rng = CASES["sft"], random.Random(1)
    whole = context(case, "whole")
    train(case.script, whole)
    run_and_die(case.script, context(case, "killed"), at("on_step_end", DAMAGED["sft"]))
    folder = tmp_path / "killed"
    best, samples = (sorted((folder / name).iterdir())[0] for name in ("ckpt_sft/best", "valid_samples"))
    damage(best, rng)
    damage(samples, rng)
    ctx = context(case, "killed", resuming=True)
    train(case.script, ctx)
    assert tree(ctx.out) == tree(whole.out)
    in_place = damage in DAMAGES[:2]  # and a resume point's file is the same one
    assert ("resuming from step" in (ctx.out / "stage.log").read_text()) is not in_place
