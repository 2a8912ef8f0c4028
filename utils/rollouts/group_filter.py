"""`FiltersGroups`: a trainer on rollouts that learns from groups with signal alone, others being replaced.

Dynamic sampling (DAPO, Yu et al. 2025, arXiv 2503.14476, section 3.2): a group that is all right or all wrong
has no advantages, so prompts are drawn until the rollout is full of others. Prompts come in the run's order,
whatever is discarded, and every completion counts: the run draws those that it would draw without a filter,
and makes fewer updates on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from typing import Any, NamedTuple

import torch
from torch import Tensor
from trl import GRPOTrainer

from utils.frame.processes import gather_items
from utils.models.prefix.shared_prefix import CompletionBatch
from utils.rewards.reward_pipeline import RewardPipeline
from utils.rollouts.batches import updates_per_rollout
from utils.rollouts.prompt_order import prompts_from
from utils.rollouts.settings import RewardedAlgo

SPREAD = 1e-6  # rewards of a group that differ by less are the same to rounding


class Group(NamedTuple):
    """The completions of one prompt: its place in the data set, their token ids, and where vLLM samples its
    log-probabilities of these (else None for each)."""

    place: int
    completions: list[list[int]]
    log_probs: list[list[float] | None]


class FiltersGroups:
    """Trainer mixin: where `group_filter` is not "none", a rollout is filled with groups that have signal.

    Put it before `SharedPrefix` among the base classes. A rollout draws as many groups as it lacks until it
    is full, at most `group_filter_limit` rollouts' worth of them, and no more than the budget of the run has
    left. Places that stay empty hold groups without signal, which are kept out of the loss and of statistics
    of rewards. All processes know all groups drawn, and train on their share of the rollout.

    The learning rate's schedule goes by the completions drawn, and training ends with the last of them.
    """

    pipeline: RewardPipeline
    group_filter: str = "none"
    group_filter_limit: int = 1
    _handed: list[tuple[list[int], list[float] | None]] | None = None  # this process's part of the rollout
    _left_out: Tensor | None = None  # bool [B], rows of the rollout that only fill it
    _all_left_out: bool = False  # whether that is all rows of all processes

    def filter_groups(self, algo: RewardedAlgo) -> None:
        """Filter as the settings say."""
        self.group_filter, self.group_filter_limit = algo.group_filter, algo.group_filter_limit

    def _next_rollout(self, generation_batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The rollout on groups with signal, in place of the given rows of the data set."""
        if self.group_filter == "none":
            return super()._next_rollout(generation_batch)
        size, rows = self.num_generations, len(generation_batch)
        wanted = rows * self.accelerator.num_processes // size
        updates = updates_per_rollout(self.args)
        budget = self.args.max_steps // updates * wanted
        done = self.cost.sampled_completions // size
        self._follow_schedule(self.args.max_steps * done // budget)
        limit = min(self.group_filter_limit * wanted, budget - done)
        drawn: list[Group] = []
        right: list[bool] = []
        signal: list[bool] = []
        while sum(signal) < wanted and len(drawn) < limit:
            missing = min(wanted - sum(signal), limit - len(drawn))
            groups = self._draw(self._prompts(done + len(drawn), missing, wanted))
            of_groups, of_completions = self._judge(groups)
            drawn, signal, right = drawn + groups, signal + of_groups, right + of_completions
        if done + len(drawn) == budget:
            self.state.max_steps = self.state.global_step + updates
        kept, others = (
            [g for g, has in zip(drawn, signal, strict=True) if has == which] for which in (True, False)
        )
        whole = [*kept, *islice(cycle(others or kept), wanted - len(kept))]
        first = self.accelerator.process_index * (rows // size)
        mine = range(first, first + rows // size)
        left_out = [place >= len(kept) for place in mine for _ in range(size)]
        self._left_out = torch.tensor(left_out, device=self.accelerator.device)
        self._all_left_out = not kept
        self._handed = [
            row for at in mine for row in zip(whole[at].completions, whole[at].log_probs, strict=True)
        ]
        rollout = super()._next_rollout(
            [self.train_dataset[whole[at].place] for at in mine for _ in range(size)]
        )
        metrics = self._metrics["train"]
        metrics["train_accuracy"][-1] = sum(right) / len(right)  # of all that was drawn, not of what is left
        metrics["groups_discarded"].append(1 - len(kept) / len(drawn))
        return rollout

    def _follow_schedule(self, step: int) -> None:
        """Bring the schedule of learning rates to an optimizer step of a run without a filter."""
        while self.lr_scheduler.last_epoch < step:
            self.lr_scheduler.step()

    def _prompts(self, first: int, count: int, per_rollout: int) -> list[int]:
        """Places in the data set of ``count`` prompts from the run's ``first`` on."""
        return prompts_from(first, count, len(self.train_dataset), per_rollout, self.args.seed)

    def _draw(self, places: Sequence[int]) -> list[Group]:
        """A sampled group for each prompt, in every process; each samples its share of them."""
        size, share = self.num_generations, len(places) / self.accelerator.num_processes
        index = self.accelerator.process_index
        mine = places[round(share * index) : round(share * (index + 1))]
        prompts = self._tokenize_prompts([self.train_dataset[place]["prompt"] for place in mine])[0]
        asked = [ids for ids in prompts for _ in range(size)]
        more = (size,) if isinstance(self, GRPOTrainer) else ()
        sampled = super()._generate_single_turn(asked, None, {}, *more)
        completions, log_probs = sampled if isinstance(sampled, tuple) else (sampled, None)
        rows = gather_items(list(zip(completions, log_probs or [None] * len(completions), strict=True)))
        return [
            Group(place, *map(list, zip(*rows[number * size : (number + 1) * size], strict=True)))
            for number, place in enumerate(places)
        ]

    def _judge(self, groups: Sequence[Group]) -> tuple[list[bool], list[bool]]:
        """Whether each group has signal, and whether each of their completions is right."""
        size = self.num_generations
        rows = [self.train_dataset[group.place] for group in groups for _ in range(size)]
        record = [row["record"] for row in rows]
        ids = [completion for group in groups for completion in group.completions]
        texts = self.processing_class.batch_decode(ids, skip_special_tokens=True)
        if self.group_filter == "outcome":
            right = self.pipeline.correct(record, texts)
            told_apart = torch.tensor(right, dtype=torch.float64)
        else:
            prompts = self._tokenize_prompts([row["prompt"] for row in rows])[0]
            batch = CompletionBatch.of(prompts, ids, self.accelerator.device)
            cut = torch.tensor([not row or row[-1] not in self.eos_token_ids for row in ids])
            rewards = self.pipeline.score_outcomes(record, batch, texts, cut, update=False)
            right, told_apart = rewards.correct.tolist(), rewards.total.double()
        values = told_apart.view(-1, size)
        return (values.amax(1) - values.amin(1) > SPREAD).tolist(), right

    def _generate_single_turn(self, prompt_ids, *args: Any, **kwargs: Any):
        """The completions of the rollout under way where they have been drawn already, else new ones."""
        if self._handed is None:
            return super()._generate_single_turn(prompt_ids, *args, **kwargs)
        completions, log_probs = map(list, zip(*self._handed, strict=True))
        self._handed = None
        if not isinstance(self, GRPOTrainer):
            return completions
        return completions, None if log_probs[0] is None else log_probs

    def _with_signal(self, values: Tensor) -> Tensor:
        """Values of a rollout, [B, ...], 0 in the rows that only fill it."""
        if self._left_out is None:
            return values
        return values.masked_fill(self._left_out.view(-1, *[1] * (values.ndim - 1)), 0)

    def _counted(self, values: Tensor) -> Tensor:
        """`_with_signal` for statistics, which are of all rows where none has signal."""
        return values if self._all_left_out else self._with_signal(values)

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        """The rewards, [B of all processes, functions], as TRL takes statistics of them: of rows that only
        fill the rollout NaN, which it leaves out.
        """
        rewards = super()._calculate_rewards(*args, **kwargs)
        return rewards.masked_fill(~self._counted_of_all(len(rewards))[:, None], torch.nan)

    def _counted_of_all(self, rows: int) -> Tensor:
        """Bool [rows of all processes]: of which statistics are."""
        own = rows // self.accelerator.num_processes
        every = torch.ones(own, dtype=torch.bool, device=self.accelerator.device)
        return self.accelerator.gather(self._counted(every))

    def _leave_out(self, rollout: dict[str, Tensor]) -> None:
        """Keep the rows that only fill a rollout out of its loss: no advantages, no tokens, and no
        log-probability of the whole completion, against which RLOO would hold that of no tokens.
        """
        if self._left_out is not None:
            for name in {"advantages", "completion_mask", "old_logps"} & rollout.keys():
                rollout[name] = self._with_signal(rollout[name])
            if "num_items_in_batch" in rollout:  # the tokens that TRL divides by
                rollout["num_items_in_batch"] = self._total(rollout["completion_mask"].sum())
