"""GRPO: TRL's GRPOTrainer with shared prefixes, on verified and intrinsic outcome rewards.

Departures from stock TRL: prompts are encoded once per group for sampling, scoring and the gradient
(``SharedPrefix``); prompts are tokenised as everywhere else in this project, without special
tokens beyond the rendered ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import GRPOConfig, GRPOTrainer

from utils.common import UserError
from utils.config import ModelConfig
from utils.data.prompts import render_prompt
from utils.data.records import Record
from utils.models.loading import device, load_policy
from utils.models.sampling import eos_token_ids
from utils.models.shared_prefix import CompletionBatch
from utils.rewards.rollout import ALL_COMPONENTS, RewardPipeline
from utils.rewards.spec import RewardSpec
from utils.rewards.task import COMPONENTS
from utils.stage import StageContext
from utils.training.reward_state import KeepsRewardState, open_pipeline
from utils.training.running import trainer_arguments
from utils.training.settings import GrpoAlgo
from utils.training.shared_prefix_mixin import SharedPrefix, updates_per_rollout


class SharedPrefixGRPOTrainer(KeepsRewardState, SharedPrefix, GRPOTrainer):
    """TRL's GRPOTrainer, every prompt encoded once per group, on a reward pipeline (``pipeline``)."""

    def _tokenize_prompts(self, prompts: list[str]):
        """Token ids of rendered prompts, and TRL's two empty multimodal fields."""
        return self.processing_class(text=prompts, add_special_tokens=False)["input_ids"], None, {}


class OutcomeRewards:
    """The rewards of a rollout as TRL asks for them: a function per component, so that it logs each by name.

    Their sum is the total. The data set's ``record`` column indexes the pipeline's records. TRL calls the
    functions one after the other on the same completions: the first scores them, and logs
    ``train_accuracy``, the share of right answers in the rollout.
    """

    def __init__(self, pipeline: RewardPipeline, tokenizer: PreTrainedTokenizerBase, eos: set[int]):
        self.pipeline, self.tokenizer, self.eos = pipeline, tokenizer, eos
        weights = pipeline.combiner.base
        self.names = [name for name in ALL_COMPONENTS if name in COMPONENTS or weights[name] > 0]

    def functions(self) -> list[Callable]:
        """One reward function per component that can be paid."""
        return [self._function(name) for name in self.names]

    def _function(self, name: str) -> Callable:
        def reward(prompts, completions, completion_ids, record, log_metric, **_) -> list[float]:
            if name == self.names[0]:
                self._score(prompts, completions, completion_ids, record, log_metric)
            return self.paid[name].tolist()

        reward.__name__ = name
        return reward

    def _score(self, prompts, completions, completion_ids, record, log_metric) -> None:
        prompt_ids = self.tokenizer(prompts, add_special_tokens=False)["input_ids"]
        truncated = torch.tensor([not ids or ids[-1] not in self.eos for ids in completion_ids])
        batch = CompletionBatch.of(prompt_ids, completion_ids, device())
        rewards = self.pipeline.score_outcomes(record, batch, completions, truncated)
        self.paid = rewards.components
        log_metric("train_accuracy", rewards.correct.float().mean().item())
        for name in self.pipeline.combiner.adapted:
            log_metric(f"weights/{name}", rewards.weights[name])


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
    check_prompts(prompts, records, tokenizer, model_config.model.max_prompt_length)
    pipeline = open_pipeline(records, spec, ctx.config.options.reward, model_config, tokenizer)
    updates = updates_per_rollout(algo)
    arguments = GRPOConfig(
        **trainer_arguments(ctx, updates),
        learning_rate=algo.learning_rate,
        lr_scheduler_type=algo.lr_scheduler_type,
        warmup_steps=algo.warmup_steps,
        max_steps=algo.num_rollouts * updates,
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
        reward_funcs=OutcomeRewards(pipeline, tokenizer, eos_token_ids(model, tokenizer)).functions(),
        args=arguments,
        train_dataset=dataset,
        processing_class=tokenizer,
    )
    trainer.pipeline = pipeline
    return trainer, tokenizer


def check_prompts(
    prompts: Sequence[str], records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, limit: int
) -> None:
    lengths = [len(ids) for ids in tokenizer(list(prompts), add_special_tokens=False)["input_ids"]]
    longest = max(range(len(lengths)), key=lengths.__getitem__)
    if lengths[longest] > limit:
        raise UserError(
            f"the prompt of {records[longest].id} has {lengths[longest]} tokens, model.max_prompt_length is "
            f"{limit}: raise it, or lower dataset.max_input_tokens and prepare again with 01_prepare.py"
        )
