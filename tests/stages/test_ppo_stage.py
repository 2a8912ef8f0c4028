"""PPO through the stage: checkpoints, intervals, and prompts or teachers that are refused."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback

from tests.support.records import RECORDS
from tests.support.training_stages import model_config
from utils.frame.config import StageConfig
from utils.frame.files import UserError
from utils.frame.stage import StageContext
from utils.frame.typed_settings import check
from utils.methods.ppo.build import PPOTrainer, build_ppo_trainer
from utils.methods.ppo.settings import PpoAlgo
from utils.models import value_head as value
from utils.models.loading import load_policy, save_policy
from utils.models.settings import (
    GenerationSection,
    LoraSection,
    ModelConfig,
    ModelSection,
    TrainingSection,
    ValidationSection,
)
from utils.rewards.spec import AdaptiveSection, IntrinsicSection, RewardSpec, RewardWeights, write_reward_spec
from utils.rollouts.batches import updates_per_rollout
from utils.training.run import train_stage

# Everything that has a state: running statistics, adaptive weights, an adaptive KL coefficient, a critic.
SPEC = RewardSpec(
    weights=RewardWeights(intrinsic=0.5, reasoning=0.1),
    intrinsic=IntrinsicSection(form="bellman", normaliser="z_score", scope="running"),
    adaptive=AdaptiveSection(enabled=True),
    required_fields=["program"],
)
PPO = PpoAlgo(
    learning_rate=2e-2,
    warmup_steps=0,
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
UPDATES = 4  # per rollout


@pytest.fixture
def context(tiny_models, files, tmp_path, unrendered):
    """A factory of stage contexts; the teacher is a tiny Qwen2 with the student's tokenizer."""
    write_reward_spec(tmp_path / "reward_spec.yaml", SPEC)

    def make(name="out", algo=PPO, resuming=False, checkpoint=None, **model) -> StageContext:
        config: ModelConfig = model_config(
            tiny_models("llama"),
            lora=LoraSection(r=4, lora_dropout=0.1),
            training=TrainingSection(save_steps=1, logging_steps=1),
            validation=ValidationSection(eval_steps=2, num_items=3),
            generation=GenerationSection(max_new_tokens=10),
        )
        config.model = replace(config.model, teacher_name_or_path=str(tiny_models("qwen2")), **model)
        out = tmp_path / name
        out.mkdir(exist_ok=True)
        inputs = {**files, "reward_spec": tmp_path / "reward_spec.yaml"}
        if checkpoint:
            inputs["checkpoint"] = checkpoint
        stage = StageConfig(model=config, algo=algo, options=SimpleNamespace(reward="combined"), seed=3)
        return StageContext(stage, "run", tmp_path, out, resuming, inputs)

    return make


def train(ctx, *callbacks) -> PPOTrainer:
    """The whole of the stage, below `ctx.out`."""
    built = []

    def build(records, spec):
        trainer, tokenizer = build_ppo_trainer(ctx, records, spec)
        for callback in callbacks:
            trainer.add_callback(callback)
        built.append(trainer)
        return trainer, tokenizer

    train_stage(ctx, "ppo", build, {"loss": ["loss"]}, updates_per_rollout(ctx.config.algo))
    return built[0]


# ------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("value_model", ["shared", "separate"])
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_checkpoints_are_plain_policies_with_the_critic_beside_them(
    context, tiny_models, tmp_path, value_model, lora
):
    checkpoint = None
    if not lora:
        model, tokenizer = load_policy(tiny_models("llama"), ModelSection(), trainable=True)
        save_policy(model, tokenizer, checkpoint := tmp_path / "full")
    ctx = context(algo=replace(PPO, num_rollouts=1, value_model=value_model), checkpoint=checkpoint)
    trainer = train(ctx)
    folder = ctx.out / "ckpt_ppo" / "final"
    weights = folder / ("adapter_model.safetensors" if lora else "model.safetensors")
    assert not [name for name in load_file(weights) if "value" in name]
    base = AutoModelForCausalLM.from_pretrained(tiny_models("llama"))
    plain = PeftModel.from_pretrained(base, folder) if lora else AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, trainer.model(ids).logits, rtol=1e-5, atol=1e-5)
    if value_model == "shared":
        critic = load_file(folder / "value_head.safetensors")
        assert torch.equal(critic["weight"], trainer.critic.weight)
    else:
        critic = load_file(folder / "value_model.safetensors")
        assert torch.equal(critic["head.weight"], trainer.critic.head.weight)
    assert {name for name, p in trainer.critic.named_parameters() if p.requires_grad} == set(critic)
    for step in ("step_4", "best"):
        assert {path.name for path in (ctx.out / "ckpt_ppo" / step).iterdir()} == {
            path.name for path in folder.iterdir()
        }


def test_another_critics_checkpoint_is_refused(context):
    trainer, _ = build_ppo_trainer(context(), RECORDS, SPEC)
    folder = context("elsewhere").out
    with pytest.raises(UserError, match="value_head.safetensors: no such file; .* same algo.value_model"):
        value.load_critic(trainer.critic, folder)
    other = value.ValueHead(5, seed=0)
    value.save_critic(other, folder)
    with pytest.raises(UserError, match="holds the critic of another model"):
        value.load_critic(trainer.critic, folder)


def test_model_intervals_count_rollouts(context):
    """save_steps, logging_steps and eval_steps of 1, 1 and 2 rollouts of four updates."""
    trainer, _ = build_ppo_trainer(context(), RECORDS, SPEC)
    args = trainer.args
    assert (args.max_steps, args.save_steps, args.logging_steps) == (12, 4, 4)
    assert (args.per_device_train_batch_size, args.steps_per_generation, args.num_iterations) == (4, 2, 2)


# ------------------------------------------------------------------------------------------- refusals


def test_a_prompt_that_is_too_long_is_refused(context):
    ctx = context(max_prompt_length=40)
    longest = max(RECORDS, key=lambda row: len(row.input_text))
    with pytest.raises(UserError, match=rf"the prompt of {longest.id} has {len(longest.input_text)} tokens"):
        build_ppo_trainer(ctx, RECORDS, SPEC)


def test_a_teacher_that_is_too_short_says_what_to_set(context, tmp_path, tiny_models):
    """Prompt and completion exceed the teacher's positions: an error, never a silent cut."""
    folder = tmp_path / "short"
    model, tokenizer = load_policy(tiny_models("llama"), ModelSection())
    model.config.max_position_embeddings = 24
    save_policy(model, tokenizer, folder)
    ctx = context(algo=replace(PPO, num_rollouts=1))
    ctx.config.model.model.teacher_name_or_path = str(folder)
    with pytest.raises(UserError, match="teacher .* has 24 positions: lower dataset.max_input_tokens"):
        train(ctx)


def test_nan_in_the_teacher_stops_the_run(context, tmp_path, tiny_models):
    folder = tmp_path / "broken"
    model, tokenizer = load_policy(tiny_models("llama"), ModelSection())
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    save_policy(model, tokenizer, folder)
    ctx = context(algo=replace(PPO, num_rollouts=1))
    ctx.config.model.model.teacher_name_or_path = str(folder)
    with pytest.raises(UserError, match="not finite") as caught:
        train(ctx)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rollout_batch_size": 10}, "must be a multiple of num_generations"),
        ({"rollout_batch_size": 8, "num_mini_batches": 3}, "must be a multiple of num_mini_batches x"),
        (
            {"rollout_batch_size": 1, "num_generations": 1, "num_mini_batches": 1},
            "must be at least 2, found 1",
        ),
        ({"adaptive_kl": True, "kl_coef": 0.0}, "adaptive_kl multiplies kl_coef, which is 0"),
        ({"gamma": 1.1}, "gamma must be between 0 and 1"),
        ({"lam": -0.1}, "lam must be between 0 and 1"),
        ({"cliprange": 0.0}, "cliprange must be above 0"),
        ({"target_kl": 0.0}, "target_kl must be above 0"),
        ({"value_learning_rate": -1.0}, "value_learning_rate must be above 0"),
        ({"entropy_coef": -0.1}, "entropy_coef must be at least 0"),
    ],
)
def test_impossible_combinations_have_one_clear_line(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        check(replace(PPO, **changes))
    assert "\n" not in str(caught.value)
    check(PPO)


def test_the_state_is_plain_data(context):
    """JSON and safetensors: what the trainer itself keeps, beside Transformers' own files."""
    ctx = context(algo=replace(PPO, num_rollouts=2))
    seen = {}

    class Look(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            folder = ctx.out / "resume" / f"checkpoint-{state.global_step}"
            seen["kl"] = json.loads((folder / "ppo_state.json").read_text())
            seen["critic"] = load_file(folder / "value_head.safetensors")

    trainer = train(ctx, Look())
    assert set(seen["kl"]) == {"kl_coef"} and seen["kl"]["kl_coef"] > 0
    assert seen["critic"]["weight"].shape == trainer.critic.weight.shape
