"""Values in PPO: where they come from, what is learnt from them, and how much they explain."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from utils.frame.files import derive_seed
from utils.methods.ppo.losses import gae, lambda_by_length
from utils.methods.ppo.ppo_config import PPOConfig
from utils.methods.ppo.siblings import explained, group_means, returns_to_go, sibling_values
from utils.models.prefix.shared_prefix import CompletionBatch
from utils.models.value_head import ValueHead, ValueModel, attach_value_head


class EstimatesValues:
    """Trainer mixin: values of states, returns and advantages of a rollout.

    ``critic`` is what is trained: a head on the policy, a model of its own (``value_model``, as prepared:
    under DDP a wrapper of the critic), or None where values are the siblings'.
    """

    args: PPOConfig
    critic: ValueHead | ValueModel | None = None
    value_model: nn.Module | None = None

    def _attach_critic(self, policy: nn.Module, value_model: nn.Module | None, siblings: bool) -> None:
        """Make the critic: on ``value_model`` where it is given, on the policy, or with ``siblings`` none."""
        args, seed = self.args, derive_seed(self.args.seed, "value_head")
        if value_model is not None:
            if args.gradient_checkpointing:
                value_model.gradient_checkpointing_enable(args.gradient_checkpointing_kwargs)
            self.critic = ValueModel(value_model, seed)
            self.value_model = self.accelerator.prepare_model(self.critic)
        elif not siblings:
            self.critic = attach_value_head(policy, seed)

    def _values(
        self, token_rewards: Tensor, batch: CompletionBatch, learned: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Values; of these, what the critic does not have to learn; the returns that it learns; advantages.

        [B, C] each. ``learned`` is what the critic says, where there is one.
        """
        args, mask = self.args, batch.completion_mask.bool()
        free = self._free_values(token_rewards, batch)
        used = self.critic is None or args.critic_target == "residual"
        known = free["siblings"] if used else torch.zeros_like(token_rewards)
        values = known if learned is None else known + learned
        lam = args.lam if args.lam_length is None else lambda_by_length(mask, args.lam_length)
        advantages = gae(token_rewards, values, mask, gamma=args.gamma, lam=lam)
        returns = advantages + values
        if args.lam_value is not None:
            returns = gae(token_rewards, values, mask, gamma=args.gamma, lam=args.lam_value) + values
        plain = returns_to_go(token_rewards, mask, args.gamma)
        self._record(explained({"": values, **free}, plain, self._counted(mask), self._total))
        return values, known, returns, advantages

    def _free_values(self, token_rewards: Tensor, batch: CompletionBatch) -> dict[str, Tensor]:
        """What the other completions of a prompt say of its values, [B, C] each; {} for groups of 1.

        Groups that only fill a filtered rollout can be copies of others: they say nothing, and get 0.
        """
        if self.num_generations < 2:
            return {}
        rows, width = token_rewards.shape
        first = self.accelerator.process_index * rows
        rewards, ids, mask = (
            self._whole(name, tensor)
            for name, tensor in (
                ("rewards", token_rewards),
                ("completion_ids", batch.completion_ids),
                ("completion_mask", batch.completion_mask),
            )
        )
        size, returns = self.num_generations, returns_to_go(rewards, mask, self.args.gamma)
        shrinkage = self.args.sibling_shrinkage, self.args.group_shrinkage
        counted = self._counted_of_all(len(mask))
        known = returns[counted], ids[counted], mask[counted]
        free = {
            "siblings": sibling_values(*known, size, *shrinkage),
            "group_mean": group_means(known[0], known[2], size),
        }
        whole = {name: torch.zeros_like(returns) for name in free}
        for name, values in free.items():
            whole[name][counted] = values
        return {name: values[first : first + rows, :width] for name, values in whole.items()}

    def _warming_up(self) -> bool:
        """Whether this rollout trains the critic alone (value pretraining: VC-PPO, arXiv 2503.01491, 4.1)."""
        updates = self._micro_batches // self.args.gradient_accumulation_steps  # per rollout
        return self.state.global_step // updates < self.args.critic_warmup_rollouts

    def _hold_policy(self, model: nn.Module) -> None:
        """Drop the gradients of all but the critic, so that neither weights nor moments move."""
        trained = {id(parameter) for parameter in self.critic.parameters()}
        for parameter in model.parameters():
            if id(parameter) not in trained:
                parameter.grad = None
