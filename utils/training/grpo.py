"""GRPO: TRL's GRPOTrainer with shared prefixes, on the task reward.

Departures from stock TRL: prompts are encoded once per group for sampling, scoring and the gradient
(``SharedPrefix``); prompts are tokenised as everywhere else in this project, without special
tokens beyond the rendered ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import GRPOConfig, GRPOTrainer

from utils.common import UserError
from utils.config import ModelConfig
from utils.data.prompts import render_prompt
from utils.data.records import Record
from utils.models.loading import load_policy
from utils.rewards.spec import RewardSpec
from utils.rewards.task import COMPONENTS, task_reward
from utils.stage import StageContext
from utils.training.running import trainer_arguments
from utils.training.settings import GrpoAlgo
from utils.training.shared_prefix_mixin import SharedPrefix


class SharedPrefixGRPOTrainer(SharedPrefix, GRPOTrainer):
    """TRL's GRPOTrainer, every prompt encoded once per group."""

    def _tokenize_prompts(self, prompts: list[str]):
        """Token ids of rendered prompts, and TRL's two empty multimodal fields."""
        return self.processing_class(text=prompts, add_special_tokens=False)["input_ids"], None, {}


def reward_functions(records: Sequence[Record], spec: RewardSpec) -> list[Callable]:
    """One TRL reward function per component of the task reward, so that TRL logs each by its name.

    Their sum is the total. The data set's ``record`` column indexes ``records``. The first also logs
    ``train_accuracy``, the share of right answers in the rollout.
    """

    @lru_cache(maxsize=1 << 14)
    def components(record: int, completion: str) -> dict[str, float]:
        return task_reward(records[record], completion, spec)

    def function(name: str) -> Callable:
        def reward(completions: list[str], record: list[int], log_metric: Callable, **_) -> list[float]:
            paid = [components(index, text)[name] for index, text in zip(record, completions, strict=True)]
            if name == "exact_match":
                log_metric("train_accuracy", sum(value > 0 for value in paid) / len(paid))
            return paid

        reward.__name__ = name
        return reward

    return [function(name) for name in COMPONENTS]


def build_grpo_trainer(
    ctx: StageContext, records: Sequence[Record], spec: RewardSpec
) -> tuple[SharedPrefixGRPOTrainer, PreTrainedTokenizerBase]:
    """The trainer for ``ctx``'s configuration, starting from the SFT policy, which is also the reference.

    Raises UserError where a prompt is longer than ``model.max_prompt_length``.
    """
    model_config: ModelConfig = ctx.config.model
    algo: GrpoAlgo = ctx.config.algo
    model, tokenizer = load_policy(ctx.inputs["checkpoint"], model_config.model, trainable=True)
    prompts = [render_prompt(tokenizer, record.input_text) for record in records]
    _check_prompts(prompts, records, tokenizer, model_config.model.max_prompt_length)
    arguments = GRPOConfig(
        **trainer_arguments(ctx),
        learning_rate=algo.learning_rate,
        lr_scheduler_type=algo.lr_scheduler_type,
        warmup_steps=algo.warmup_steps,
        max_steps=algo.max_steps,
        per_device_train_batch_size=algo.per_device_train_batch_size,
        gradient_accumulation_steps=algo.gradient_accumulation_steps,
        steps_per_generation=algo.steps_per_generation,
        num_generations=algo.num_generations,
        num_iterations=algo.num_iterations,
        beta=algo.beta,
        epsilon=algo.epsilon,
        epsilon_high=algo.epsilon_high,
        loss_type=algo.loss_type,
        scale_rewards=algo.scale_rewards,
        importance_sampling_level=algo.importance_sampling_level,
        mask_truncated_completions=algo.mask_truncated_completions,
        weight_decay=algo.weight_decay,
        max_completion_length=model_config.generation.max_new_tokens,
        temperature=model_config.generation.temperature,
        top_p=model_config.generation.top_p,
        top_k=model_config.generation.top_k,
    )
    dataset = Dataset.from_dict({"prompt": prompts, "record": list(range(len(records)))})
    trainer = SharedPrefixGRPOTrainer(
        model=model,
        reward_funcs=reward_functions(records, spec),
        args=arguments,
        train_dataset=dataset,
        processing_class=tokenizer,
    )
    return trainer, tokenizer


def _check_prompts(
    prompts: Sequence[str], records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, limit: int
) -> None:
    lengths = [len(ids) for ids in tokenizer(list(prompts), add_special_tokens=False)["input_ids"]]
    longest = max(range(len(lengths)), key=lengths.__getitem__)
    if lengths[longest] > limit:
        raise UserError(
            f"the prompt of {records[longest].id} has {lengths[longest]} tokens, model.max_prompt_length is "
            f"{limit}: raise it, or lower dataset.max_input_tokens and prepare again with 01_prepare.py"
        )
