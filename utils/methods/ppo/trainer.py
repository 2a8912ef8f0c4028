"""PPO on tokens: every token has its own reward, value and advantage.

TRL no longer has a PPO trainer. This one is TRL's GRPOTrainer (sampling, rollout buffer, logging, resuming)
with the two steps that make it PPO replaced; the rest of the method is `losses.py` and `values.py`:

    rollout   sample completions; log-probabilities and values from one pass of the policy, log-probabilities
              of the frozen reference; token rewards from the reward pipeline, less kl_coef * k1 and
              entropy_reward_coef * log pi; GAE
    update    num_ppo_epochs passes of num_mini_batches optimizer steps on the clipped losses

Log-probabilities are those at the sampling temperature, dropout is off, a completion's end-of-sequence token
belongs to it, and what follows is masked. Means are over unmasked tokens, of the mini-batch in losses and of
the rollout in statistics, on all processes together. Runs in one process or under DDP.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from trl.trainer.utils import disable_dropout_in_model, split_tensor_dict, use_adapter

from utils.frame.files import UserError, read_json, write_json
from utils.methods.grpo.trainer import SharedPrefixGRPOTrainer
from utils.methods.ppo.losses import (
    KLController,
    k1,
    k3,
    policy_loss,
    value_loss,
    whiten,
)
from utils.methods.ppo.ppo_config import PPOConfig
from utils.methods.ppo.rollout_numbers import REMEDY, LogsRollouts
from utils.methods.ppo.values import EstimatesValues
from utils.models.prefix.prefix_scoring import TokenScores, accept_shared_prefix
from utils.models.prefix.shared_prefix import BATCH, CompletionBatch, evaluating, head_obstacle, obstacle
from utils.models.value_head import TrainsCritic
from utils.rewards.reward_pipeline import RewardPipeline
from utils.rollouts.sampler_correction import CorrectsSampler, corrected
from utils.rollouts.shared_prefix_trainer import refuse_sharding

STATE_FILE = "ppo_state.json"


class PPOTrainer(EstimatesValues, LogsRollouts, CorrectsSampler, TrainsCritic, SharedPrefixGRPOTrainer):
    """PPO with a value head on the policy, with a critic of its own where `value_model` is given, or, with
    `siblings`, with none: values are then those of `siblings.py`.

    `pipeline` rewards the completions; the data set's `record` column indexes its records. Raises UserError
    for a model without a plain language-model head, and under FSDP or DeepSpeed.
    """

    args: PPOConfig

    def __init__(
        self,
        model: nn.Module,
        pipeline: RewardPipeline,
        args: PPOConfig,
        train_dataset: Dataset,
        processing_class: PreTrainedTokenizerBase,
        value_model: nn.Module | None = None,
        siblings: bool = False,
        **kwargs: Any,
    ):
        super().__init__(
            model=model,
            reward_funcs=[_paid_by_the_pipeline],
            args=args,
            train_dataset=train_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        self.pipeline = pipeline
        refuse_sharding(self, "PPO")
        policy = self.accelerator.unwrap_model(self.model)
        for used in (policy, self.ref_model, value_model):
            if used is not None:
                _make_ready(self.accelerator.unwrap_model(used))
        self._attach_critic(policy, value_model, siblings)
        self.kl = KLController(args.kl_coef, args.kl_target if args.adaptive_kl else None, args.kl_horizon)
        self._micro_batches = args.steps_per_generation * args.num_ppo_epochs  # per rollout
        self._rollout: dict[str, Tensor] = {}
        self._updates: list[dict[str, float]] = []  # of this rollout
        self._sums: Tensor | float = 0.0  # of this update
        self._skipping = False
        self._rollout_began = 0.0
        self._rollout_tokens = 0

    # -------------------------------------------------------------------------------------------- scoring

    def _score(
        self, model: nn.Module, batch: CompletionBatch, *, entropy: bool = False, value: bool = False
    ) -> TokenScores:
        """Log-probabilities at the sampling temperature, and entropy and value where wanted, float32 [N]."""
        shared = not self._stock("scoring", self._scoring_obstacle(self.model, False, {}))
        own_head = value and self.value_model is None and self.critic is not None
        with self.accelerator.autocast():
            scores = model(
                shared_prefix=batch,
                shared=shared,
                temperature=self.temperature,
                entropy=entropy,
                value=own_head,
                value_trunk=self.args.critic_gradient == "trunk",
            )
            if value and self.value_model is not None:
                scores.value = self.value_model(batch, shared)
        return scores

    def _score_rollout(self, model: nn.Module, batch: CompletionBatch, **wanted: bool) -> list[Tensor]:
        """Log-probabilities, then entropies and values where wanted, [B, C] each, a micro-batch at a time."""
        found = []
        with evaluating(model, self.value_model):
            for part in batch.split(self.args.per_device_train_batch_size):
                scores = self._score(model, part, **wanted)
                parts = [scores.log_prob, scores.entropy, scores.value]
                found.append([part.scatter(values) for values in parts if values is not None])
        return [torch.cat(pieces) for pieces in zip(*found, strict=True)]

    def _reference_log_probs(self, batch: CompletionBatch) -> Tensor:
        """Log-probabilities of the start policy: a model of its own, a frozen adapter, or none at all."""
        if self.ref_model is not None:
            return self._score_rollout(self.ref_model, batch)[0]
        policy = self.accelerator.unwrap_model(self.model)
        with use_adapter(policy, "ref" if "ref" in policy.peft_config else None):
            return self._score_rollout(self.model, batch)[0]

    # -------------------------------------------------------------------------------------------- rollout

    @torch.no_grad()
    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Sample a completion for every row; return what the updates learn from, first dimension B."""
        self._rollout_began = time.perf_counter()
        args = self.args
        record = [row["record"] for row in inputs]
        batch, texts, truncated, sampler_log_probs = self._sample([row["prompt"] for row in inputs])
        mask = batch.completion_mask.bool()

        log_probs, entropies, *learned = self._score_rollout(self.model, batch, entropy=True, value=True)
        log_ratio = log_probs - (self._reference_log_probs(batch) if args.kl_coef else log_probs)
        rewards = self.pipeline.score_tokens(record, batch, texts, truncated)
        token_rewards = rewards.token_rewards - self.kl.coef * k1(log_ratio)
        token_rewards = token_rewards - args.entropy_reward_coef * log_probs
        if args.whiten_rewards:
            token_rewards = whiten(token_rewards, mask, shift_mean=False, total=self._total)
        values, known, returns, advantages = self._values(token_rewards, batch, *learned)
        for name, found in (("log-probabilities", log_ratio), ("values", values), ("rewards", returns)):
            self._check_finite(name, found, record)

        self._count_tokens(batch)
        self._log_rollout(rewards, mask, truncated, values, returns, entropies, log_ratio)
        if args.whiten_advantages:
            advantages = whiten(advantages, self._with_signal(mask), total=self._total)
        rollout = {
            **{name: getattr(batch, name) for name in BATCH},
            "old_log_probs": log_probs,
            "known_values": known,
            "old_values": values,
            "advantages": advantages,
            "returns": returns,
            "record": torch.tensor(record, device=mask.device),
            "correct": rewards.correct,
            **self._correction(log_probs, sampler_log_probs, mask),
        }
        self._leave_out(rollout)
        if self.num_generations > 1:
            self._log_phantom(rollout["advantages"].abs().sum(1), rewards.correct)
        return rollout

    def _sample(self, prompts: list[str]) -> tuple[CompletionBatch, list[str], Tensor, list | None]:
        """Completions of rendered prompts: token ids, decoded texts, and bool [B], cut before their end.

        Last, where vLLM samples, its log-probabilities of their tokens, in lists; None where it has none.
        """
        prompt_ids, _, _ = self._tokenize_prompts(prompts)
        completion_ids, log_probs = self._generate_single_turn(prompt_ids, None, {}, self.num_generations)
        texts = self.processing_class.batch_decode(completion_ids, skip_special_tokens=True)
        truncated = [not ids or ids[-1] not in self.eos_token_ids for ids in completion_ids]
        device = self.accelerator.device
        batch = CompletionBatch.of(prompt_ids, completion_ids, device)
        return batch, texts, torch.tensor(truncated, device=device), log_probs

    # -------------------------------------------------------------------------------------------- updates

    def _prepare_inputs(self, generation_batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The next micro-batch. A new rollout is sampled when the last is used up; epochs shuffle it anew."""
        place = self._step % self.args.steps_per_generation
        if self._step % self._micro_batches == 0:
            with self.cost.phase("scoring"):
                rollout = self._next_rollout(generation_batch)
                self._rollout = {name: self._whole(name, value) for name, value in rollout.items()}
        if place == 0:
            self._buffered_inputs = self._shuffled_micro_batches()
        return self._buffered_inputs[place]

    def _shuffled_micro_batches(self) -> list[dict[str, Tensor]]:
        """The rollout in random order, completions of a prompt together, with each mini-batch's `tokens`, and
        where `positive_nll_coef` is not 0 the weights of its term, `positive` [B, C]."""
        order = self._shuffled_groups(self._rollout["prompt_ids"], self._rollout["prompt_mask"])
        order = self._own_rows(order)
        shuffled = {name: value[order] for name, value in self._rollout.items()}
        parts = split_tensor_dict(shuffled, self.args.steps_per_generation)
        size = self.args.gradient_accumulation_steps
        for mini_batch in (parts[start : start + size] for start in range(0, len(parts), size)):
            tokens = self._total(sum(part["completion_mask"].sum() for part in mini_batch)).clamp(min=1)
            for part in mini_batch:
                part["tokens"] = tokens
            if not self.args.positive_nll_coef:
                continue
            right = [part["completion_mask"] * part["correct"][:, None] for part in mini_batch]
            share = self._total(sum(map(torch.sum, right))).clamp(min=1) / tokens
            for part, tokens_of_right in zip(mini_batch, right, strict=True):
                part["positive"] = tokens_of_right / share
        return parts

    def training_step(self, model: nn.Module, inputs: list, num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward of a micro-batch; nothing at all once the policy has moved past `target_kl`.

        Without a gradient the optimizer leaves weights and moments alone, so skipped updates leave no trace
        but the schedule of learning rates.
        """
        place = self._step % self._micro_batches
        if place == 0:
            self._updates = []
        if place % self.args.gradient_accumulation_steps == 0:
            self._skipping = self._moved_too_far()
            if self.value_model is not None:
                self.value_model.zero_grad()
        if self._skipping:
            self._step += 1
            loss = torch.zeros((), device=self.accelerator.device)
        else:
            loss = super().training_step(model, inputs, num_items_in_batch)
            if self._warming_up():
                self._hold_policy(model)
        if place + 1 == self._micro_batches:
            self._log_updates()
        return loss

    def _moved_too_far(self) -> bool:
        """Whether this rollout's done updates exceed `target_kl` on average; the same in all processes."""
        limit = self.args.target_kl
        if limit is None or not self._updates:
            return False
        return sum(update["approx_kl"] for update in self._updates) / len(self._updates) > limit

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """The micro-batch's share of the mini-batch's mean loss per token."""
        args = self.args
        self._count_trained(inputs)
        batch = CompletionBatch.within(inputs)
        mask = batch.completion_mask.bool()
        old_log_probs, known, old_values, advantages, returns = (
            inputs[name][mask]
            for name in ("old_log_probs", "known_values", "old_values", "advantages", "returns")
        )
        scores = self._score(model, batch, entropy=args.entropy_coef != 0, value=True)
        policy, policy_clipped = policy_loss(
            scores.log_prob,
            old_log_probs,
            advantages,
            args.cliprange,
            cliprange_high=args.cliprange_high,
            dual_clip=args.dual_clip,
        )
        loss = policy = corrected(policy, inputs, mask)
        measured = {"loss/policy": policy, "clip_ratio/policy": policy_clipped}
        if self.critic is not None:
            estimate = known + scores.value
            value, value_clipped = value_loss(estimate, old_values, returns, args.cliprange_value)
            loss = loss + args.vf_coef * value
            measured |= {"loss/value": value, "clip_ratio/value": value_clipped}
        # VAPO, arXiv 2504.05118, eq. 11: a mean over the tokens of right completions.
        if args.positive_nll_coef:
            loss = loss - args.positive_nll_coef * inputs["positive"][mask] * scores.log_prob
        if args.entropy_coef:
            loss = loss - args.entropy_coef * scores.entropy
        self._check_finite("losses", batch.scatter(loss.detach()), inputs["record"].tolist())

        measured |= {"loss": loss, "approx_kl": k3(old_log_probs - scores.log_prob.detach())}
        sums = torch.stack([numbers.detach().double().sum() for numbers in measured.values()])
        self._sums = self._sums + sums / inputs["tokens"]
        if self.accelerator.sync_gradients:  # the update's last micro-batch
            means = self._total(self._sums).tolist()
            self._updates.append(dict(zip(measured, means, strict=True)))
            self._sums = 0.0
        # DDP averages gradients over processes, the mean is over the tokens of all.
        return loss.sum() / inputs["tokens"] * self.accelerator.num_processes

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | None = None) -> Tensor | float:
        """Norm of the policy's gradient, after clipping that of a critic of its own; recorded per update."""
        grad_norm = super()._get_grad_norm(model, grad_norm)
        if not self._skipping:
            norms = {"grad_norm": float(grad_norm)}
            if self.value_model is not None:
                limit = self.args.max_grad_norm or math.inf
                norms["grad_norm/value"] = float(
                    self.accelerator.clip_grad_norm_(self.value_model.parameters(), limit)
                )
            for name, norm in norms.items():
                if not math.isfinite(norm):
                    raise UserError(f"{name} is {norm} at step {self.state.global_step}: {REMEDY}")
            self._record(norms)
        return grad_norm

    # ---------------------------------------------------------------------------------------------- state

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            write_json(Path(output_dir) / STATE_FILE, {"kl_coef": self.kl.coef})

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.kl.coef = read_json(Path(checkpoint) / STATE_FILE)["kl_coef"]


def _make_ready(model: nn.Module) -> None:
    """Let the model's forward score completions, and switch its dropout off."""
    if reason := head_obstacle(model):
        raise UserError(f"PPO cannot score this model: {reason}")
    if obstacle(model) is not None:  # the mixin has seen to the others
        accept_shared_prefix(model)
    disable_dropout_in_model(model)
    for module in model.modules():  # the dropout of attention kernels is a number, not a module
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0


def _paid_by_the_pipeline(completions: list[str], **_: Any) -> list[float]:
    """GRPOTrainer asks for a reward function; PPOTrainer never calls it."""
    raise NotImplementedError
