"""SFT and GRPO on tiny models: what is taught, what is logged, what is refused, and what the seed decides."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, Trainer, TrainerCallback, TrainerControl

from tests.support.records import RECORDS
from tests.support.training_stages import (
    GRPO,
    SFT,
    SPEC,
    model_config,
    run_script,
    stage_context,
    stage_inputs,
    train,
    varied_rewards,
)
from utils.data.prompts import PromptTokens, completion_ids, render_prompt
from utils.documents.training_curves import plot_curves
from utils.frame.config import StageConfig
from utils.frame.files import UserError, read_json, read_jsonl
from utils.frame.stage import StageContext
from utils.methods.grpo.settings import GrpoAlgo
from utils.methods.grpo.trainer import OutcomeRewards, build_grpo_trainer
from utils.methods.sft.settings import SftAlgo
from utils.methods.sft.trainer import build_sft_trainer, tokenize_demonstrations
from utils.models import cpu
from utils.models.loading import add_lora, load_policy, save_policy
from utils.models.settings import (
    GenerationSection,
    LoraSection,
    ModelSection,
    TrainingSection,
    ValidationSection,
)
from utils.rewards.spec import IntrinsicSection
from utils.rewards.task_reward import COMPONENTS, task_reward
from utils.rollouts.prompt_order import prompt_order
from utils.rollouts.reward_state import open_pipeline
from utils.training.resume_points import SEAL, resume_point, seal
from utils.training.run import RefuseNonFinite, stable, train_stage
from utils.training.validation import GenerationValidation, best_row


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


def test_a_configured_adapter_is_trained_further(context, tiny_models, tmp_path):
    """An adapter below a second one would be left out of what is saved: its base is the first one's."""
    ctx = context()
    section = ctx.config.model.model
    model, tokenizer = load_policy(section.name_or_path, section)
    save_policy(add_lora(model, LoraSection(target_modules=["q_proj"]), 5), tokenizer, tmp_path / "adapter")
    ctx.config.model.model = replace(section, name_or_path=str(tmp_path / "adapter"))
    trainer, _ = build_sft_trainer(ctx, RECORDS)
    trained = {name for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    held = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert trained == {name.replace(".weight", ".default.weight") for name in held}
    trainer.train()
    save_policy(trainer.model, tokenizer, tmp_path / "further")
    before, after = (load_policy(tmp_path / name, section)[0] for name in ("adapter", "further"))
    moved = [
        name for name, weight in after.state_dict().items() if not weight.equal(before.state_dict()[name])
    ]
    assert moved and all("q_proj" in name for name in moved)


@pytest.mark.parametrize(("work", "micro_batch"), [(cpu.ENOUGH_WORK, len(RECORDS)), (1, 1)])
def test_the_loss_is_the_cross_entropy_of_completion_tokens(
    context, tiny_models, tokenizer, monkeypatch, work, micro_batch
):
    """The first logged loss, against log-probabilities of each demonstration on its own, without padding; a
    model may be so large that on a CPU each row is a micro-batch.
    """
    monkeypatch.setattr(cpu, "ENOUGH_WORK", work)
    algo = SftAlgo(max_steps=1, per_device_train_batch_size=len(RECORDS))
    ctx = context(algo=algo, training=TrainingSection(logging_steps=1))
    train_stage(ctx, "sft", lambda records, spec: build_sft_trainer(ctx, records), {"loss": ["loss"]})
    logged = next(row["loss"] for row in read_jsonl(ctx.out / "logs" / "metrics.jsonl") if "loss" in row)
    assert ctx.runtime["micro_batch"] == micro_batch

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
    functions = OutcomeRewards(pipeline, PromptTokens(tokenizer), {tokenizer.eos_token_id}).functions()
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


def test_the_latest_whole_resume_point_counts(tmp_path):
    """By number and not by name; unfinished ones are removed on the way, damaged ones set aside."""
    said = []
    assert resume_point(tmp_path, said.append) is None
    for step in (2, 9, 10, 20, 30, 40):
        folder = tmp_path / f"checkpoint-{step}"
        (folder / "optimizer").mkdir(parents=True)
        (folder / "adapter_model.safetensors").write_bytes(b"x")
        (folder / "optimizer" / "state.pt").write_bytes(b"y")
        if step < 40:
            seal(folder)
    (tmp_path / "checkpoint-30" / "optimizer" / "state.pt").write_bytes(b"z")
    (tmp_path / "checkpoint-20" / "planted").touch()
    assert resume_point(tmp_path, said.append) == tmp_path / "checkpoint-10"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("checkpoint-10", "checkpoint-2", "checkpoint-9"),
        *("damaged-checkpoint-20", "damaged-checkpoint-30"),
    ]
    assert [line.split(": ", 1)[1].split(";")[0] for line in said] == [
        "optimizer/state.pt has changed",
        "planted was not part of it",
    ]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"adapter_model.safetensors": 1}', "[" * 5000, "null"])
def test_a_damaged_seal_is_a_damaged_resume_point(tmp_path, text):
    folder = tmp_path / "checkpoint-4"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"x")
    (folder / SEAL).write_text(text)
    assert resume_point(tmp_path, lambda line: None) is None and not folder.exists()


def test_the_best_step_is_the_earliest_of_equals():
    rewards = {0: 0.1, 20: 0.5, 40: 0.4, 60: 0.5, 80: -0.2}
    history = [{"step": step, "val_reward": reward} for step, reward in rewards.items()]
    assert best_row([{"step": 10, "loss": 1.0}, *history, {"step": 90, "reward": 2.0}])["step"] == 20
    assert best_row(history[:1])["step"] == 0


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
    assert resume_point(ctx.out / "resume", lambda damage: None) is None


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
    monkeypatch.setattr(
        "utils.rewards.task_reward.reward_of", lambda *_: {"total": rewards[state.global_step]}
    )
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
    assert best_row(state.log_history)["step"] == 3
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


# --------------------------------------------------------------------------------------------- costs


def test_grpo_counts_what_it_samples_and_trains_on(context, monkeypatch):
    """Four rollouts of 8 completions, each passed over twice; validations do not count."""
    lengths = []
    trainer_class = build_grpo_trainer.__globals__["SharedPrefixGRPOTrainer"]
    sample = trainer_class._sample_turn

    def noted(self, *args, **kwargs):
        sampled = sample(self, *args, **kwargs)
        lengths.extend(len(ids) for ids in sampled[0])
        return sampled

    monkeypatch.setattr(trainer_class, "_sample_turn", noted)
    ctx = context(algo=GRPO)
    train(ctx)
    assert len(lengths) == 32
    assert ctx.metrics["cost"] == {
        "sampled_completions": 32,
        "generated_tokens": sum(lengths),
        "trained_tokens": 2 * sum(lengths),
    }
    assert set(ctx.runtime["seconds_by_phase"]) == {"sampling", "scoring", "updating"}
    assert all(seconds > 0 for seconds in ctx.runtime["seconds_by_phase"].values())
    rows = read_jsonl(ctx.out / "logs" / "metrics.jsonl")
    assert [row["sampled_completions"] for row in rows] == [8 * -(-row["step"] // 2) for row in rows]


def test_sft_counts_the_tokens_it_teaches(context):
    ctx = context(algo=replace(SFT, max_steps=-1, num_train_epochs=2))
    train(ctx)
    tokenizer = build_grpo_trainer(context(algo=GRPO), RECORDS, SPEC)[1]
    rows, _ = tokenize_demonstrations(RECORDS, tokenizer, ctx.config.model)
    taught = sum(sum(row["completion_mask"]) for row in rows)
    assert ctx.metrics["cost"] == {
        "sampled_completions": 0,
        "generated_tokens": 0,
        "trained_tokens": 2 * taught,
    }
    rows = read_jsonl(ctx.out / "logs" / "metrics.jsonl")
    assert not any("sampled_completions" in row for row in rows)


@pytest.mark.parametrize("seed", [3, 4])
def test_prompts_come_in_the_order_of_the_trainers_sampler(context, seed):
    trainer, _ = build_grpo_trainer(context(algo=GRPO, seed=seed), RECORDS, SPEC)
    drawn = list(dict.fromkeys(trainer._get_train_sampler()))
    assert drawn == prompt_order(len(RECORDS), seed)
    assert drawn != list(range(len(RECORDS)))


# --------------------------------------------------------------------------------- process supervision


PROCESS = replace(GRPO, supervision="process")


@pytest.fixture
def supervised(tiny_models, tmp_path, unrendered):
    """A factory of contexts of 06 that write below tmp_path/<name>; the model is its own teacher."""
    model, folder = tiny_models("llama"), tmp_path / "inputs"
    folder.mkdir()
    inputs = stage_inputs(folder, model)
    return lambda name, algo=PROCESS, **options: stage_context(
        tmp_path / name, inputs, model, algo, **options
    )


def test_process_supervision_is_logged_and_trains_other_weights(supervised):
    contexts = {"process": supervised("process"), "outcome": supervised("outcome", GRPO)}
    for ctx in contexts.values():
        run_script("06", ctx)
    process, outcome = (
        (ctx.out / "ckpt_grpo" / "final" / "adapter_model.safetensors").read_bytes()
        for ctx in contexts.values()
    )
    assert process != outcome
    rows = read_jsonl(contexts["process"].out / "logs" / "metrics.jsonl")
    rows = [row for row in rows if "advantages/abs_mean" in row]
    assert rows and all(row["advantages/abs_mean"] > 0 and row["rewards/intrinsic/mean"] < 0 for row in rows)
    for row in rows:  # the total, although advantages are made of its parts
        parts = sum(row[key] for key in row if key.startswith("rewards/") and key.endswith("/mean"))
        assert row["reward"] == pytest.approx(parts, abs=1e-5)


def test_process_supervision_needs_a_teacher(supervised):
    with pytest.raises(
        UserError, match=r"^algo.supervision process needs .* no weight under --reward task"
    ) as caught:
        run_script("06", supervised("out", reward="task"))
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------ seeds and logs


def tree(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "stage.log"
    }


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
