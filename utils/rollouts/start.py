"""Where PPO, GRPO and RLOO start, and the rewards of completions in the latter two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments

from utils.data.prompts import PromptTokens, render_prompt
from utils.data.records import Record
from utils.frame.files import UserError
from utils.frame.stage import StageContext
from utils.frame.typed_settings import fields_of
from utils.models.loading import device
from utils.models.prefix.shared_prefix import CompletionBatch
from utils.models.sampling import eos_token_ids
from utils.models.settings import ModelConfig
from utils.models.vllm.sampler import vllm_arguments
from utils.rewards.overlong import Overlong
from utils.rewards.reward_pipeline import RewardPipeline, RolloutRewards
from utils.rewards.spec import RewardSpec
from utils.rollouts.batches import share_batches, updates_per_rollout
from utils.rollouts.follows_curriculum import follow_curriculum
from utils.rollouts.reward_state import open_pipeline
from utils.rollouts.settings import RolloutAlgo
from utils.training.load_start import load_start
from utils.training.run import trainer_arguments


class OutcomeRewards:
    """The rewards of a rollout as TRL asks for them: a function per component, so that it logs each by name.

    Their sum is the total. The data set's ``record`` column indexes the pipeline's records. TRL calls the
    functions one after the other on the same completions: the first scores them, and logs
    ``train_accuracy``, the share of right answers in the rollout. ``tokens`` asks the teacher for rewards by
    token instead of its outcome. ``paid`` and ``mask`` (int64 [B, C]) are those of the last rollout.
    """

    paid: RolloutRewards
    mask: Tensor

    def __init__(
        self,
        pipeline: RewardPipeline,
        prompt_tokens: PromptTokens,
        eos: set[int],
        tokens: bool = False,
    ):
        self.pipeline, self.prompt_tokens, self.eos = pipeline, prompt_tokens, eos
        self.score = pipeline.score_tokens if tokens else pipeline.score_outcomes
        self.names = pipeline.names

    def functions(self) -> list[Callable]:
        """One reward function per component in force."""
        return [self._function(name) for name in self.names]

    def _function(self, name: str) -> Callable:
        def reward(prompts, completions, completion_ids, record, log_metric, **_) -> list[float]:
            if name == self.names[0]:
                self._score(prompts, completions, completion_ids, record, log_metric)
            return self.paid.components[name].tolist()

        reward.__name__ = name
        return reward

    def _score(self, prompts, completions, completion_ids, record, log_metric) -> None:
        truncated = torch.tensor([not ids or ids[-1] not in self.eos for ids in completion_ids])
        batch = CompletionBatch.of(self.prompt_tokens(prompts), completion_ids, device())
        self.mask = batch.completion_mask
        self.paid = self.score(record, batch, completions, truncated)
        log_metric("train_accuracy", self.paid.correct.float().mean().item())
        for name in self.pipeline.combiner.adapted:
            log_metric(f"weights/{name}", self.paid.weights[name])


class RenderedPrompts:
    """Trainer mixin: prompts are rendered already, and tokenised as everywhere else in this project, without
    special tokens beyond the rendered ones, and each once."""

    @cached_property
    def prompt_tokens(self) -> PromptTokens:
        return PromptTokens(self.processing_class)

    def _tokenize_prompts(self, prompts: list[str]):
        """Token ids of rendered prompts, and TRL's two empty multimodal fields."""
        return self.prompt_tokens(prompts), None, {}


@dataclass(frozen=True)
class Start:
    """What a trainer on rollouts starts from: the SFT policy, the training prompts and their rewards."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    pipeline: RewardPipeline
    rewards: OutcomeRewards
    dataset: Dataset

    @classmethod
    def of(
        cls,
        ctx: StageContext,
        records: Sequence[Record],
        spec: RewardSpec,
        tokens: bool = False,
        gamma: float = 1.0,
    ) -> Start:
        """Load what ``ctx``'s configuration names; ``gamma`` is the trainer's discount.

        Raises UserError where a prompt is longer than ``model.max_prompt_length``, or rewards by ``tokens``
        are asked of a reward without a teacher.
        """
        config: ModelConfig = ctx.config.model
        reward = ctx.config.options.reward
        if tokens and not RewardPipeline.needs_teacher(spec, reward):
            raise UserError(
                f"algo.supervision process needs the teacher's token rewards, which have no weight under "
                f"--reward {reward} and 02_rewards/reward_spec.yaml: use --reward combined with a weight on "
                "intrinsic, or algo.supervision outcome"
            )
        model, tokenizer = load_start(ctx)
        prompts = [render_prompt(tokenizer, record.input_text) for record in records]
        prompt_tokens = PromptTokens(tokenizer)
        check_prompts(prompt_tokens(prompts), records, config.model.max_prompt_length)
        pipeline = open_pipeline(records, spec, reward, config, tokenizer, gamma=gamma)
        pipeline.overlong = Overlong.of(ctx.config.algo.overlong_buffer, config.generation.max_new_tokens)
        rewards = OutcomeRewards(pipeline, prompt_tokens, eos_token_ids(model, tokenizer), tokens)
        dataset = Dataset.from_dict({"prompt": prompts, "record": list(range(len(records)))})
        return cls(model, tokenizer, pipeline, rewards, dataset)

    def trainer(
        self, ctx: StageContext, kind: type[Trainer], arguments: TrainingArguments, records: Sequence[Record]
    ) -> Trainer:
        """A trainer on outcome rewards, GRPO's or RLOO's ``kind``, that follows the stage's curriculum."""
        trainer = kind(
            model=self.model,
            reward_funcs=self.rewards.functions(),
            args=arguments,
            train_dataset=self.dataset,
            processing_class=self.tokenizer,
        )
        trainer.pipeline, trainer.outcomes = self.pipeline, self.rewards
        trainer.prompt_tokens = self.rewards.prompt_tokens
        trainer.filter_groups(ctx.config.algo)
        follow_curriculum(ctx, trainer, records, ctx.config.algo.all_rollouts)
        return trainer


def rollout_arguments(
    ctx: StageContext, config: type, correction: bool = False, equal_shares: bool = True
) -> dict[str, Any]:
    """The arguments of a TRL config for rollouts: the algo tier's, by name, and the model tier's.

    Batches are this process's part; ``temperature``, ``top_p`` and ``top_k`` are those of sampling. For
    ``correction`` and ``equal_shares`` see `vllm_arguments`.
    """
    algo: RolloutAlgo = ctx.config.algo
    generation, updates = ctx.config.model.generation, updates_per_rollout(algo)
    batches = share_batches(
        algo.per_device_train_batch_size,
        algo.gradient_accumulation_steps,
        algo.steps_per_generation,
        group=algo.group_size,
        largest=ctx.config.model.training.max_micro_batch,
    )
    return {
        **trainer_arguments(ctx, updates),
        **fields_of(config, algo),
        **fields_of(config, batches),
        "num_generations": algo.group_size,
        "max_steps": algo.num_rollouts * updates,
        "max_completion_length": generation.max_new_tokens,
        "temperature": generation.temperature,
        "top_p": generation.top_p,
        "top_k": generation.top_k,
        **vllm_arguments(ctx, correction, equal_shares and getattr(algo, "group_filter", "none") == "none"),
    }


def check_prompts(prompts: Sequence[Sequence[int]], records: Sequence[Record], limit: int) -> tuple[int, str]:
    """The tokens of the longest prompt (token ids) and the id of its record.

    Raises UserError where they are more than ``limit``.
    """
    lengths = list(map(len, prompts))
    longest = max(range(len(lengths)), key=lengths.__getitem__)
    if lengths[longest] > limit:
        raise UserError(
            f"the prompt of {records[longest].id} has {lengths[longest]} tokens, model.max_prompt_length is "
            f"{limit}: raise it, or lower dataset.max_input_tokens and prepare again "
            "with 01_prepare_dataset.py"
        )
    return lengths[longest], records[longest].id
