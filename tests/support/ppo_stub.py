"""What PPO's tests share: a reward pipeline of made-up numbers, and trainers on tiny models."""

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback

from tests.support.group_stub import TINY_TRAINING
from utils.methods.ppo.build import PPOTrainer
from utils.methods.ppo.ppo_config import PPOConfig
from utils.models.prefix.shared_prefix import CompletionBatch
from utils.rewards.reward_pipeline import RolloutRewards

PROMPTS = ["2+2=", "a longer prompt: 7*6=", "x", "why?", "one more"]


class Paid:
    """The interface of RewardPipeline: `pay` maps a completion's token ids to a reward for each."""

    teacher = None
    combiner = SimpleNamespace(adapted=())

    def __init__(self, pay: Callable[[list[int]], list[float]]):
        self.pay = pay
        self.records = [SimpleNamespace(id=f"train-{number}") for number in range(8)]

    def score_tokens(self, record, batch: CompletionBatch, texts, truncated, update=True) -> RolloutRewards:
        mask = batch.completion_mask.bool()
        rewards = torch.zeros(mask.shape)
        for row, ids in enumerate(batch.completion_ids):
            kept = ids[mask[row]].tolist()
            rewards[row, : len(kept)] = torch.tensor(self.pay(kept), dtype=torch.float32)
        total = rewards.sum(1)
        assert len(record) == len(texts) == len(truncated) == len(total)
        return RolloutRewards(rewards, {"exact_match": total}, {}, total > 0, total > 0, {})

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        assert state == {}


def token_values(ids: list[int]) -> list[float]:
    """A reward for every token, of mixed sign."""
    return [(token % 7 - 3) / 6 for token in ids]


def tiny_model(folder: Path, lora: bool = False):
    """A tiny model, with a random adapter if asked, in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    if lora:
        with torch.random.fork_rng():
            torch.manual_seed(11)
            config = LoraConfig(
                r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"
            )
            model = get_peft_model(model, config)
    return model


def ppo_trainer(
    folder: Path,
    out: Path,
    *,
    pay: Callable[[list[int]], list[float]] = token_values,
    lora: bool = False,
    separate: bool = False,
    siblings: bool = False,
    prompts: list[str] = PROMPTS,
    **changes,
) -> PPOTrainer:
    """A trainer on the tiny model in `folder`: rollouts of 8 completions in 2 mini-batches, 2 epochs."""
    settings = {
        **TINY_TRAINING,
        "output_dir": str(out),
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "num_mini_batches": 2,
        "num_ppo_epochs": 2,
        "max_steps": 8,
        "logging_steps": 4,
        "kl_coef": 0.1,
        "temperature": 0.9,
        **changes,
    }
    trainer = PPOTrainer(
        model=tiny_model(folder, lora),
        pipeline=Paid(pay),
        args=PPOConfig(**settings),
        train_dataset=Dataset.from_dict({"prompt": prompts, "record": list(range(len(prompts)))}),
        processing_class=AutoTokenizer.from_pretrained(folder),
        value_model=tiny_model(folder, lora) if separate else None,
        siblings=siblings,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def feed_by_prompt(trainer: PPOTrainer) -> None:
    """Replace sampling by completions of 1, 2 or 6 tokens that depend on the step, the prompt and the place
    in its group, and not on the process.
    """

    def sample(prompt_ids, *_):
        rows = []
        for place, ids in enumerate(prompt_ids):
            draw = random.Random(f"{trainer.state.global_step} {ids} {place % 4}")
            rows.append([draw.randrange(2, 90) for _ in range(draw.choice([1, 2, 6]))])
        return rows, None

    trainer._generate_single_turn = sample


def trained_weights(trainer: PPOTrainer) -> dict[str, torch.Tensor]:
    """Copies of everything that is trained, the critic's included."""
    found = dict(trainer.model.named_parameters())
    if trainer.critic is not None:
        found |= {f"critic.{name}": value for name, value in trainer.critic.named_parameters()}
    return {name: value.detach().clone() for name, value in found.items() if value.requires_grad}


def logged(trainer: PPOTrainer) -> list[dict]:
    """The log's rows without what differs between executions."""
    skipped = ("time", "per_second", "total_flos", "profiling", "runtime")
    return [
        {name: value for name, value in row.items() if not any(part in name for part in skipped)}
        for row in trainer.state.log_history
    ]
