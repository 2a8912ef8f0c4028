"""SFT and GRPO on tiny models: what is taught, what is logged, what is refused, and resuming after a kill."""

import json
import math
import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer, Trainer, TrainerCallback, TrainerControl

from tests.support.group_stub import KillAt, Killed
from utils.data.prompts import completion_ids, render_prompt
from utils.data.records import Record
from utils.documents.training_curves import plot_curves
from utils.frame.config import StageConfig
from utils.frame.files import UserError, read_json, read_jsonl, write_jsonl
from utils.frame.stage import StageContext, _clear
from utils.methods.grpo.settings import GrpoAlgo
from utils.methods.grpo.trainer import OutcomeRewards, build_grpo_trainer
from utils.methods.sft.settings import SftAlgo
from utils.methods.sft.trainer import build_sft_trainer, tokenize_demonstrations
from utils.models.loading import add_lora, load_policy, save_policy
from utils.models.settings import (
    GenerationSection,
    LoraSection,
    ModelConfig,
    ModelSection,
    TrainingSection,
    ValidationSection,
)
from utils.rewards.spec import IntrinsicSection, RewardSpec, write_reward_spec
from utils.rewards.task import COMPONENTS, task_reward
from utils.rollouts.reward_state import open_pipeline
from utils.training import run as running
from utils.training.run import RefuseNonFinite, resume_point, stable, train_stage
from utils.training.validation import GenerationValidation, best_step

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def record(number: int, question: str = "the change ?") -> Record:
    a, b = 10 + number, 30 + 2 * number
    program = f"subtract({b}, {a})"
    return Record(
        id=f"train-{number}",
        dataset="sample",
        question=question,
        input_text=f"cash 2001 {a} 2002 {b}\n{question}",
        target_text=json.dumps({"program": program}),
        target_answer=str(b - a),
        target_program=program,
        level=1,
        table=[["", "2001", "2002"], ["cash", str(a), str(b)]],
    )


RECORDS = [record(number, "the change ?" * (1 + number % 3)) for number in range(8)]
SPEC = RewardSpec(required_fields=["program"])


def model_config(folder, **sections) -> ModelConfig:
    """Settings for the tiny models (one token per byte) that let validations, saves and logs fall apart."""
    defaults = {
        "lora": LoraSection(r=4),
        "training": TrainingSection(save_steps=2, logging_steps=3),
        "validation": ValidationSection(eval_steps=3, num_items=3),
        "generation": GenerationSection(max_new_tokens=40, batch_size=8),
    }
    return ModelConfig(
        model=ModelSection(name_or_path=str(folder), max_prompt_length=200), **{**defaults, **sections}
    )


SFT = SftAlgo(max_steps=7, learning_rate=2e-2, warmup_steps=1, per_device_train_batch_size=3)
# A rollout of 8 completions serves two optimizer steps; rewards come from the texts' lengths (see below).
GRPO = GrpoAlgo(
    num_rollouts=4,
    learning_rate=2e-2,
    warmup_steps=0,
    per_device_train_batch_size=8,
    steps_per_generation=1,
    num_generations=4,
    num_iterations=2,
    beta=0.05,
)


@pytest.fixture(scope="module")
def files(tmp_path_factory, tiny_models):
    """Inputs of a training stage by name; the checkpoint is a random adapter on the tiny Llama."""
    folder = tmp_path_factory.mktemp("inputs")
    write_jsonl(folder / "train.jsonl", [row.to_json() for row in RECORDS])
    write_jsonl(folder / "val.jsonl", [row.to_json() for row in RECORDS])
    write_reward_spec(folder / "reward_spec.yaml", SPEC)
    model, tokenizer = load_policy(tiny_models("llama"), ModelSection(), trainable=True)
    save_policy(add_lora(model, LoraSection(r=4), 0), tokenizer, folder / "checkpoint")
    return {
        "train": folder / "train.jsonl",
        "val": folder / "val.jsonl",
        "reward_spec": folder / "reward_spec.yaml",
        "checkpoint": folder / "checkpoint",
    }


@pytest.fixture
def context(tiny_models, files, tmp_path, unrendered):
    """A factory of stage contexts that write below tmp_path/<name>."""

    def make(name="out", algo=SFT, resuming=False, seed=3, **sections) -> StageContext:
        if isinstance(algo, GrpoAlgo):
            sections["generation"] = GenerationSection(max_new_tokens=10)
            sections["training"] = TrainingSection(save_steps=1, logging_steps=3)
            sections["validation"] = ValidationSection(eval_steps=2, num_items=3)
        config = StageConfig(
            model=model_config(tiny_models("llama"), **sections),
            algo=algo,
            options=SimpleNamespace(reward="task"),
            seed=seed,
        )
        out = tmp_path / name
        out.mkdir(exist_ok=True)
        return StageContext(config, "run", tmp_path, out, resuming, files)

    return make


@pytest.fixture(scope="module")
def tokenizer(tiny_models):
    return AutoTokenizer.from_pretrained(tiny_models("llama"))


# ------------------------------------------------------------------------------------- demonstrations


def test_demonstrations_are_prompt_then_completion_taught_to_its_end(tokenizer):
    rows, left_out = tokenize_demonstrations(RECORDS, tokenizer, model_config("-"))
    assert left_out == [] and len(rows) == len(RECORDS)
    for row, demonstration in zip(rows, RECORDS, strict=True):
        taught = [token for token, on in zip(row["input_ids"], row["completion_mask"], strict=True) if on]
        prompt = row["input_ids"][: -len(taught)]
        assert row["completion_mask"] == [0] * len(prompt) + [1] * len(taught)
        assert tokenizer.decode(prompt) == demonstration.input_text
        assert tokenizer.decode(taught) == demonstration.target_text + tokenizer.eos_token


def test_too_long_demonstrations_are_left_out(tokenizer):
    """A token per byte; the limits include the end-of-sequence token, and are reached exactly."""
    longest = max(len(row.input_text) for row in RECORDS)
    completion = max(len(row.target_text) for row in RECORDS) + 1

    def left_out(prompt_limit, completion_limit):
        config = model_config("-", generation=GenerationSection(max_new_tokens=completion_limit))
        config.model.max_prompt_length = prompt_limit
        return tokenize_demonstrations(RECORDS, tokenizer, config)[1]

    assert left_out(longest, completion) == []
    assert left_out(longest - 1, completion) == ["train-2", "train-5"]
    with pytest.raises(UserError, match=f"8 of 8 demonstrations exceed .* \\({longest}\\)") as caught:
        left_out(longest, completion - 1)
    assert "\n" not in str(caught.value)


def test_the_loss_is_the_cross_entropy_of_completion_tokens(context, files, tiny_models, tokenizer):
    """The first logged loss, against log-probabilities of each demonstration on its own, without padding."""
    algo = SftAlgo(max_steps=1, per_device_train_batch_size=len(RECORDS))
    ctx = context(algo=algo, training=TrainingSection(logging_steps=1))
    train_stage(ctx, "sft", lambda records, spec: build_sft_trainer(ctx, records), {"loss": ["loss"]})
    logged = next(row["loss"] for row in read_jsonl(ctx.out / "logs" / "metrics.jsonl") if "loss" in row)

    base, _ = load_policy(tiny_models("llama"), ModelSection())
    total, count = 0.0, 0
    for demonstration in RECORDS:
        rendered = render_prompt(tokenizer, demonstration.input_text)
        prompt = tokenizer(rendered, add_special_tokens=False)["input_ids"]
        completion = completion_ids(tokenizer, [demonstration.target_text])[0]
        with torch.no_grad():
            log_probs = base(torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
        for place, token in enumerate(completion, start=len(prompt)):
            total, count = total - log_probs[place - 1, token].item(), count + 1
    assert logged == pytest.approx(total / count, rel=1e-4)


# -------------------------------------------------------------------------------------------- rewards


@pytest.mark.parametrize("reward", ["task", "combined", "intrinsic"])
def test_reward_functions_sum_to_the_pipelines_total(tokenizer, tiny_models, reward):
    """TRL adds up what the functions return; the texts are right, near, partly right, broken and right."""
    completions = [
        RECORDS[0].target_text,
        '{"program": "subtract(30, 11)"}',
        '{"program": "add(30, 10)"}',
        "no json at all",
        json.dumps({"program": RECORDS[1].target_program}),
    ]
    numbers = [0, 0, 0, 0, 1]
    prompts = [RECORDS[number].input_text for number in numbers]
    ids = [tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] for text in completions]
    ids[3].pop()  # cut at the limit
    model = model_config(tiny_models("llama"))
    model.model.teacher_name_or_path = str(tiny_models("llama"))
    spec = replace(SPEC, intrinsic=IntrinsicSection(missing_eos_penalty=0.5))
    pipeline = open_pipeline(RECORDS, spec, reward, model, tokenizer)
    functions = OutcomeRewards(pipeline, tokenizer, {tokenizer.eos_token_id}).functions()
    logged = {}
    paid = [
        function(
            prompts=prompts,
            completions=completions,
            completion_ids=ids,
            record=numbers,
            log_metric=logged.__setitem__,
        )
        for function in functions
    ]
    names = [function.__name__ for function in functions]
    assert names == [*COMPONENTS] + ["intrinsic"] * (reward != "task")
    wanted = [task_reward(RECORDS[n], text, SPEC) for n, text in zip(numbers, completions, strict=True)]
    total = torch.tensor(paid).sum(0)
    if reward == "task":
        torch.testing.assert_close(total, torch.tensor([row["total"] for row in wanted]))
    for name, values in zip(names, paid, strict=True):
        if name != "intrinsic":
            share = 0.0 if reward == "intrinsic" else 1.0
            assert values == pytest.approx([share * row[name] for row in wanted]), name
    assert logged == {"train_accuracy": pytest.approx(2 / 5)}
    if reward != "task":
        # The teacher's log-probability by a plain forward of each sequence; the cut one pays the penalty.
        teacher, _ = load_policy(tiny_models("llama"), ModelSection())
        for index, (prompt, answer) in enumerate(zip(prompts, ids, strict=True)):
            before = tokenizer(prompt)["input_ids"]
            with torch.no_grad():
                logits = teacher(torch.tensor([before + answer])).logits[0, len(before) - 1 : -1]
            log_prob = logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum().item()
            penalty = 0.5 if index == 3 else 0.0
            assert paid[-1][index] == pytest.approx(SPEC.weights.intrinsic * (log_prob - penalty), rel=1e-4)


def test_grpo_refuses_a_prompt_that_is_too_long(context):
    ctx = context(algo=GRPO)
    ctx.config.model.model.max_prompt_length = 40
    longest = max(RECORDS, key=lambda row: len(row.input_text))
    message = rf"the prompt of {longest.id} has {len(longest.input_text)} tokens, .* is 40"
    with pytest.raises(UserError, match=message) as caught:
        build_grpo_trainer(ctx, RECORDS, SPEC)
    assert "\n" not in str(caught.value)


# --------------------------------------------------------------------------------- logs and checkpoints


def test_the_latest_complete_resume_point_counts(tmp_path):
    """By number and not by name; unfinished ones are removed on the way, older ones are left."""
    assert resume_point(tmp_path) is None
    for step in (2, 9, 10, 20, 30):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_bytes(b"x")
        if step < 20:
            (folder / "trainer_state.json").write_text('{"global_step": 1}')
    (tmp_path / "checkpoint-30" / "trainer_state.json").write_text('{"global_st')
    assert resume_point(tmp_path) == tmp_path / "checkpoint-10"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-10",
        "checkpoint-2",
        "checkpoint-9",
    ]


def test_the_best_step_is_the_earliest_of_equals():
    rewards = {0: 0.1, 20: 0.5, 40: 0.4, 60: 0.5, 80: -0.2}
    history = [{"step": step, "val_reward": reward} for step, reward in rewards.items()]
    assert best_step([{"step": 10, "loss": 1.0}, *history, {"step": 90, "reward": 2.0}]) == 20
    assert best_step(history[:1]) == 0


def test_what_varies_between_executions_is_not_kept():
    row = {"step": 4, "loss": 0.5, "kl": 0.1, "completions/mean_length": 3.0}
    varying = {
        "train_runtime": 1.0,
        "train_samples_per_second": 1.0,
        "train_steps_per_second": 1.0,
        "step_time": 1.0,
        "profiling/Time taken: reward_time": 1.0,
        "total_flos": 1.0,
        "train_loss": 0.4,
    }
    assert stable({**varying, **row}) == row
    assert list(stable(row)) == list(stable(dict(reversed(row.items())))) == sorted(row)


@pytest.mark.parametrize("key", ["loss", "grad_norm", "reward", "kl"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_non_finite_numbers_stop_the_run_in_one_line(key, value):
    state = SimpleNamespace(global_step=12)
    RefuseNonFinite().on_log(None, state, None, logs={key: 0.5, "completions/max": math.nan})
    with pytest.raises(UserError, match=f"{key} is {value} at step 12") as caught:
        RefuseNonFinite().on_log(None, state, None, logs={"step": 1, key: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("clip", "key"), [(1.0, "grad_norm|loss"), (0.0, "loss")])
def test_a_broken_policy_stops_sft_before_a_resume_point_is_written(context, clip, key):
    """NaN in the weights from step 2 on, logs every 10 steps: the resume point of step 4 must not be made.

    Without clipping no gradient norm is known, and the loss alone has to tell.
    """

    class Break(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 2:
                with torch.no_grad():
                    next(p for p in model.parameters() if p.requires_grad).fill_(math.nan)

    def build(records, spec):
        trainer, tokenizer = build_sft_trainer(ctx, records)
        trainer.add_callback(Break())
        return trainer, tokenizer

    ctx = context(
        training=TrainingSection(save_steps=4, logging_steps=10, max_grad_norm=clip),
        validation=ValidationSection(eval_steps=50),
    )
    with pytest.raises(UserError, match=f"({key}) is nan at step 4"):
        train_stage(ctx, "sft", build, {})
    assert resume_point(ctx.out / "resume") is None


def test_validation_keeps_the_best_and_every_step(context, tokenizer, tiny_models, monkeypatch):
    """Rewards made up by step: best is the earliest of the highest, and the samples are written."""
    from utils.training import validation as module

    config = context().config.model
    config.validation.num_saved_samples = 2
    model, _ = load_policy(tiny_models("llama"), ModelSection())
    rewards = {0: 0.1, 3: 0.4, 6: 0.4, 9: 0.2}
    state = SimpleNamespace(global_step=0, max_steps=9, log_history=[])
    trainer = SimpleNamespace(
        state=state,
        model=model,
        accelerator=SimpleNamespace(unwrap_model=lambda model: model),
        is_fsdp_enabled=False,
    )
    monkeypatch.setattr("utils.rewards.task.reward_of", lambda *_: {"total": rewards[state.global_step]})
    monkeypatch.setattr(
        module.Trainer,
        "log",
        lambda self, logs: self.state.log_history.append({**logs, "step": self.state.global_step}),
    )
    out = context().out
    callback = GenerationValidation(RECORDS[:3], SPEC, config, tokenizer, out, "sft")
    callback.trainer = trainer
    callback.on_train_begin(None, state, None)
    saved = {}
    for step in range(1, 10):
        state.global_step = step
        with torch.no_grad():
            model.model.norm.weight.fill_(1 + step)
        control = TrainerControl(should_log=step % 2 == 0)
        callback.on_step_end(None, state, control)
        assert control.should_log == (step % 2 == 0)
        weights = out / "ckpt_sft" / f"step_{step}" / "model.safetensors"
        if weights.exists():
            saved[step] = weights.read_bytes()
    assert sorted(saved) == [3, 6, 9]
    assert (out / "ckpt_sft" / "best" / "model.safetensors").read_bytes() == saved[3]
    assert best_step(state.log_history) == 3
    samples = read_json(out / "valid_samples" / "step_6.json")
    assert [row["id"] for row in samples] == ["train-0", "train-1"]
    assert {path.name for path in (out / "valid_samples").iterdir()} == {
        f"step_{step}.json" for step in rewards
    }


def test_curves_are_the_numbers_alone(tmp_path):
    history = [{"step": step, "loss": 1 / (1 + step), "kl": 0.1} for step in range(20)]
    panels = {"loss": ["loss"], "both": ["loss", "kl"], "never logged": ["entropy"]}
    for name in ("a", "b"):
        plot_curves(history, panels, tmp_path / f"{name}.png")
    first, second = ((tmp_path / f"{name}.png").read_bytes() for name in ("a", "b"))
    assert first == second and first.startswith(b"\x89PNG")


# ------------------------------------------------------------------------------------------- resuming


def varied_rewards(self):
    """Rewards that differ within the groups of a tiny random model."""

    def exact_match(completions, **_):
        return [len(set(text)) / 40 for text in completions]

    return [exact_match]


def train(ctx, *callbacks):
    """The whole of a training stage, below ``ctx.out``."""

    def build(records, spec):
        if isinstance(ctx.config.algo, SftAlgo):
            trainer, tokenizer = build_sft_trainer(ctx, records)
        else:
            trainer, tokenizer = build_grpo_trainer(ctx, records, spec)
        for callback in callbacks:
            trainer.add_callback(callback)
        return trainer, tokenizer

    unit = 2 if isinstance(ctx.config.algo, GrpoAlgo) else 1
    train_stage(ctx, "x", build, {"loss": ["loss"], "validation": ["val_reward"]}, unit)


def tree(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "stage.log"
    }


KILLS = [
    ("on_step_end", 1),  # before the first resume point
    ("on_step_begin", 2),  # right after it
    ("on_step_end", 3),  # between two, before the validation of this step
    ("on_step_begin", 3),  # and after it
    ("on_step_end", 4),
    ("on_step_begin", 5),
    ("on_step_end", 7),  # SFT's last step, unsaved
]


@pytest.mark.parametrize("algo", [SFT, GRPO], ids=["sft", "grpo"])
def test_killed_at_every_turn_the_outputs_are_the_same(context, monkeypatch, algo):
    """Every file, bit by bit: weights, log, samples, curves. The run is killed nine times on its way."""
    monkeypatch.setattr("utils.methods.grpo.trainer.OutcomeRewards.functions", varied_rewards)
    dropout = LoraSection(r=4, lora_dropout=0.1)  # so that a lost random state would show
    whole = context("whole", algo, lora=dropout)
    train(whole)

    def resumed(*callbacks):
        ctx = context("killed", algo, resuming=True, lora=dropout)
        _clear(ctx.out, keep_files=True)  # as the frame does
        torch.manual_seed(int.from_bytes(os.urandom(4), "big"))  # a new process has its own random state
        train(ctx, *callbacks)
        return ctx

    for event, step in KILLS:
        with pytest.raises(Killed):
            resumed(KillAt(event, step))
    for moment in ("save_final", "rmtree"):  # all steps done; resume points about to be deleted
        with monkeypatch.context() as patch:
            owner = GenerationValidation if moment == "save_final" else running.shutil
            patch.setattr(owner, moment, kill)
            with pytest.raises(Killed):
                resumed()
    ctx = resumed()
    assert not (ctx.out / "resume").exists()
    assert tree(ctx.out) == tree(whole.out)
    assert ctx.metrics == whole.metrics
    assert (ctx.out / "stage.log").read_text().count("resuming from step") >= 6
    if algo is GRPO:
        rows = read_jsonl(whole.out / "logs" / "metrics.jsonl")
        assert max(row.get("reward_std", 0) for row in rows) > 0.01
        assert any(row.get("kl", 0) > 0 for row in rows)


def kill(*args, **kwargs):
    raise Killed


@pytest.mark.parametrize(
    "algo", [replace(SFT, max_steps=2), replace(GRPO, num_rollouts=1)], ids=["sft", "grpo"]
)
def test_the_seed_decides(context, monkeypatch, algo):
    """The same seed gives the same files, whatever the global random state; another gives others."""
    monkeypatch.setattr("utils.methods.grpo.trainer.OutcomeRewards.functions", varied_rewards)
    trees = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        ctx = context(name, algo, seed=seed)
        torch.manual_seed(ord(name))
        train(ctx)
        trees.append(tree(ctx.out))
    assert trees[0] == trees[1]
    weights = "ckpt_x/final/adapter_model.safetensors"
    assert trees[0][weights] != trees[2][weights]


def test_the_seed_decides_the_order_of_demonstrations(context, monkeypatch):
    """Apart from what LoRA starts from, which the seed decides as well."""
    taken: list[list] = []
    step = Trainer.training_step

    def spy(self, model, inputs, *args, **kwargs):
        taken[-1].append(inputs["input_ids"].tolist())
        return step(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", spy)
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        taken.append([])
        train(context(name, replace(SFT, max_steps=2), seed=seed))
    assert taken[0] == taken[1] != taken[2] and all(taken)


def test_the_log_has_every_step_that_is_due(context, monkeypatch):
    """At resume points and both ends besides the steps that are asked for; GRPO counts rollouts of two."""
    monkeypatch.setattr("utils.methods.grpo.trainer.OutcomeRewards.functions", varied_rewards)
    due = {"sft": (SFT, [2, 3, 4, 6, 7], [0, 3, 6, 7]), "grpo": (GRPO, [2, 4, 6, 8], [0, 4, 8])}
    for name, (algo, logged, validated) in due.items():
        ctx = context(name, algo)
        train(ctx)
        rows = read_jsonl(ctx.out / "logs" / "metrics.jsonl")
        assert [row["step"] for row in rows if "loss" in row] == logged
        assert [row["step"] for row in rows if "val_reward" in row] == validated
        assert len(rows) == len(logged) + len(validated)
        words = ("time", "per_second", "flos", "train_loss")
        assert not [key for row in rows for key in row if any(word in key for word in words)]
        assert ctx.metrics["steps"] == logged[-1]
        steps = {f"step_{step}" for step in validated if step}
        assert {path.name for path in (ctx.out / "ckpt_x").iterdir()} == {"best", "final"} | steps
