"""Distillation on rollouts: TRL's DistillationTrainer with groups, shared prefixes, gold text and top-k.

TRL 1.16's trainer samples one completion per prompt, always from the student, takes one optimizer step on a
rollout and minimises the divergence over the model's whole vocabulary at the sampling temperature. Here

    rollout   of a part of the prompts the gold text, of the others `num_generations` samples; what the
              divergence needs of the teacher (hidden states, or its k likeliest tokens) is computed once
    update    `num_iterations` passes in optimizer steps of `gradient_accumulation_steps` micro-batches on
              (1 - ce_weight) * mean divergence of the rollout's tokens
              + ce_weight * mean cross-entropy of the gold tokens of the rollout's prompts

Means are over unmasked completion tokens of an optimizer step, on all processes together; prompts and padding
have no part in them. The divergence's kernel, the batching of data and the logs are TRL's. See
docs/distillation.md for the departures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from trl import DistillationConfig, DistillationTrainer

from utils.curricula.curriculum import UNKNOWN
from utils.frame.files import UserError
from utils.frame.processes import gather_items
from utils.methods.distill.gold_text import ComparesOnGold
from utils.methods.distill.policy_gradient import LearnsFromSamples
from utils.methods.distill.settings import DistillAlgo, DistillLoss, sampled_prompts
from utils.models.divergences import (
    Measure,
    TopK,
    exact_divergence,
    teacher_top_k,
    top_k_divergence,
    top_one_and_entropy,
)
from utils.models.prefix.prefix_scoring import states_before, token_scores
from utils.models.prefix.shared_prefix import CompletionBatch, head_obstacle, obstacle, output_head
from utils.models.teacher import Teacher
from utils.rewards.reward_pipeline import RewardPipeline
from utils.rollouts.follows_curriculum import FollowsCurriculum
from utils.rollouts.reward_state import KeepsRewardState
from utils.rollouts.shared_prefix_trainer import EpochSampler, SharedPrefix, refuse_sharding
from utils.rollouts.start import RenderedPrompts
from utils.training.finite import check_finite, names_of

_REMEDY = "lower algo.learning_rate, or use model.torch_dtype float32; the last resume point is kept"


@dataclass
class GroupDistillationConfig(DistillLoss, DistillationConfig):
    """DistillationConfig with rollouts as GRPOConfig has them, and our own settings of the loss.

    `temperature` and `top_k` are those of sampling; those of `DistillAlgo` have other names here.
    """

    num_generations: int = DistillAlgo.num_generations
    steps_per_generation: int = DistillAlgo.steps_per_generation
    num_iterations: int = DistillAlgo.num_iterations
    divergence_temperature: float = DistillAlgo.temperature
    teacher_top_k: int | None = DistillAlgo.top_k

    @property
    def generation_batch_size(self) -> int:
        """Completions of a rollout, over all processes."""
        return self.per_device_train_batch_size * self.steps_per_generation * self.world_size


class GroupDistillationTrainer(
    RenderedPrompts,
    ComparesOnGold,
    LearnsFromSamples,
    FollowsCurriculum,
    KeepsRewardState,
    SharedPrefix,
    DistillationTrainer,
):
    """Distils ``teacher`` into the model.

    gold: the token ids of every record's gold completion, its end included. pipeline grades the samples for
    the log alone. The data set's ``record`` column indexes both.

    Raises UserError for a model without a plain language-model head, or with an adapter on it.
    """

    args: GroupDistillationConfig
    ref_model = None  # SharedPrefix asks for one
    use_transformers_continuous_batching = False
    curriculum_knows = frozenset({"success", "confidence_gap", "probe_kl_drop"})

    def __init__(
        self,
        model: nn.Module,
        teacher: Teacher,
        pipeline: RewardPipeline,
        gold: Sequence[Sequence[int]],
        args: GroupDistillationConfig,
        train_dataset: Dataset,
        processing_class: PreTrainedTokenizerBase,
        **kwargs: Any,
    ):
        for what, used in (("student", model), ("teacher", teacher.model)):
            if reason := head_obstacle(used):
                raise UserError(f"distillation cannot read the {what}'s distribution: {reason}")
        if isinstance(output_head(model), BaseTunerLayer):
            raise UserError("distillation reads the head's weights: leave lm_head out of lora.target_modules")
        self.num_generations, self.num_iterations = args.num_generations, args.num_iterations
        # TRL would compare the sizes of the vocabularies, padding included; `Teacher` compares tokenizers.
        super().__init__(
            model=model,
            teacher_model=None,
            args=args,
            train_dataset=train_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        refuse_sharding(self, "distillation")
        self.teacher, self.pipeline, self.gold = teacher, pipeline, gold
        self.vocab_size = teacher.vocab_size
        kind = "reverse_kl" if self.learns_from_samples else args.divergence
        self.measure = Measure(kind, args.beta, args.divergence_temperature)
        self._keep_start()
        self._teacher_shares = obstacle(teacher.model) is None
        self._drawn: list[bool] = []  # the rows of the rollout under way that the student answers itself
        self._any_drawn = False  # whether there are any, in all processes
        self._gold_rows: list[Sequence[int]] = []
        self._sums: dict[str, Tensor] = {}  # of this optimizer step

    # ---------------------------------------------------------------------------------------------- data

    def get_train_dataloader(self):
        """As GRPOTrainer's: a batch is a rollout."""
        return self._get_dataloader(
            dataset=self.train_dataset,
            description="Training",
            batch_size=self._train_batch_size * self.args.steps_per_generation,
            sampler_fn=self._get_train_sampler,
            is_training=True,
        )

    def _get_train_sampler(self, dataset: Dataset | None = None) -> EpochSampler:
        """GRPOTrainer's order of prompts: each `num_generations` times in a row."""
        return EpochSampler(
            data_source=self.train_dataset if dataset is None else dataset,
            mini_repeat_count=self.num_generations,
            batch_size=self.args.generation_batch_size // self.num_generations,
            repeat_count=self.num_iterations * self.args.steps_per_generation,
            shuffle=self.shuffle_dataset,
            seed=self.args.seed,
        )

    # -------------------------------------------------------------------------------------------- rollout

    @torch.no_grad()
    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        """TRL's rollout, of gold text in part, and what the updates need besides, first dimension B."""
        record = [row["record"] for row in inputs]
        self._drawn = self._draw(len(inputs))
        self._gold_rows = [self.gold[index] for index in record]
        rollout = super()._generate_and_score_completions(inputs)
        del rollout["num_items_in_batch"]  # of the rollout: an optimizer step may be on a part of it
        device = rollout["completion_ids"].device
        rollout["record"] = torch.tensor(record, device=device)
        rollout["sampled"] = torch.tensor(self._drawn, device=device)
        batch = CompletionBatch.within(rollout)
        self._check_tokens(batch, record)
        rollout |= self._ask_teacher(batch)
        if self.learns_from_samples:
            rollout |= self._score_samples(batch, rollout["teacher_log_probs"])
        rollout["correct"] = self._grade(batch, record)
        if self.args.ce_weight:
            gold = CompletionBatch.of([[0]] * len(record), self._gold_rows, device)
            rollout |= {"gold_ids": gold.completion_ids, "gold_mask": gold.completion_mask}
        return rollout

    def _draw(self, rows: int) -> list[bool]:
        """Which of this process's rows the student answers itself: whole groups, of the whole rollout as many
        as `sampled_prompts` says.
        """
        prompts = rows * self.accelerator.num_processes // self.num_generations
        order = torch.randperm(prompts, generator=self._rollout_generator("on_policy"))
        chosen = set(order[: sampled_prompts(self.args.on_policy_fraction, prompts)].tolist())
        self._any_drawn = bool(chosen)
        first = rows * self.accelerator.process_index
        return [row // self.num_generations in chosen for row in range(first, first + rows)]

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, *args, **kwargs):
        """A sample for every drawn row, the gold completion for the others, as lists of token ids."""
        asked = [ids for ids, drawn in zip(prompt_ids, self._drawn, strict=True) if drawn]
        sampled = []
        if self._any_drawn:  # in whichever process: sampling is a matter of all
            sampled = super()._generate_single_turn(asked, images, multimodal_fields, *args, **kwargs)
        samples = iter(sampled)
        return [
            next(samples) if drawn else list(gold)
            for drawn, gold in zip(self._drawn, self._gold_rows, strict=True)
        ]

    def _check_tokens(self, batch: CompletionBatch, record: Sequence[int]) -> None:
        """Raise UserError where a sample holds a token beyond the tokenizer: the teacher may not have it."""
        beyond = ((batch.completion_ids >= self.vocab_size) & batch.completion_mask.bool()).any(1)
        if beyond.any():
            named = names_of(beyond, record, self.pipeline.records)
            raise UserError(
                f"a completion of {named} holds a token that the tokenizer lacks: the "
                "policy sampled a padding row of its vocabulary; use --start sft, or lower generation.top_p"
            )

    def _ask_teacher(self, batch: CompletionBatch) -> dict[str, Tensor]:
        """What updates compare with, [B, C, ...] with zeros where masked, a micro-batch at a time.

        teacher_states, or log-probabilities and indices of the k likeliest tokens and the tail's
        log-probability; the teacher's likeliest token and its entropy at temperature 1, for the log.
        """
        k, head = self.args.teacher_top_k, output_head(self.teacher.model)
        found: dict[str, list[Tensor]] = {}
        for part in batch.split(self.args.per_device_train_batch_size):
            states = self._teacher_states(part)
            if self.learns_from_samples and not self.args.kl_baseline:
                answer = {}
            elif k is None:
                answer = {"teacher_states": states}
            else:
                top = teacher_top_k(states, head, k, self.measure.temperature, self.vocab_size)
                answer = {"top_log_probs": top.log_probs, "top_indices": top.indices, "top_tail": top.tail}
            likeliest, entropy = top_one_and_entropy(states, head, self.vocab_size)
            answer |= {"teacher_choice": likeliest, "teacher_entropy": entropy}
            if self.learns_from_samples:
                scores = token_scores(head, states, part.tokens(), vocab_size=self.vocab_size)
                answer["teacher_log_probs"] = scores.log_prob
            for name, values in answer.items():
                found.setdefault(name, []).append(part.scatter(values))
        return {name: torch.cat(pieces) for name, pieces in found.items()}

    def _grade(self, batch: CompletionBatch, record: Sequence[int]) -> Tensor:
        """Grade the samples, for the log: 1 right, 0 wrong, `UNKNOWN` for gold text; float64 [B]."""
        correct = torch.full((len(record),), UNKNOWN, dtype=torch.float64, device=batch.prompt_ids.device)
        rows = [row for row, drawn in enumerate(self._drawn) if drawn]
        if self._any_drawn:
            part = batch.take(rows)
            masks = part.completion_mask.bool()
            ids = [row[mask].tolist() for row, mask in zip(part.completion_ids, masks, strict=True)]
            texts = [self.processing_class.decode(row, skip_special_tokens=True) for row in ids]
            cut = [not row or row[-1] not in self.eos_token_ids for row in ids]
            truncated = torch.tensor(cut, dtype=torch.bool)
            paid = self.pipeline.score_outcomes([record[row] for row in rows], part, texts, truncated)
            correct[rows] = paid.correct.double()
            total = sum(component.double() for component in paid.components.values())
            for name, graded in (("reward", total), ("train_accuracy", correct[rows])):
                values = torch.tensor(gather_items(graded.tolist()), dtype=torch.float64)
                self._metrics["train"][name].append(values.mean().item())
        return correct

    # -------------------------------------------------------------------------------------------- updates

    def _prepare_inputs(self, generation_batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The next micro-batch, with the numbers of tokens that its optimizer step's means are over."""
        inputs = super()._prepare_inputs(generation_batch)
        if "num_items_in_batch" not in inputs:
            size = self.args.gradient_accumulation_steps
            parts = self._buffered_inputs
            for update in (parts[start : start + size] for start in range(0, len(parts), size)):
                tokens = sum(part["completion_mask"].sum() for part in update)
                gold = sum(self._gold_tokens(part) for part in update)
                tokens, gold = self._total(torch.stack([tokens, torch.as_tensor(gold).to(tokens)]))
                if self.learns_from_samples:
                    self._share_out(update, tokens)
                for part in update:
                    part |= {"num_items_in_batch": tokens, "gold_items": gold}
        return inputs

    def _gold_tokens(self, part: dict[str, Tensor]) -> Tensor | int:
        """Tokens whose cross-entropy counts in a micro-batch: of gold rows and of gold beside samples."""
        if not self.args.ce_weight:
            return 0
        rows = part["completion_mask"][~part["sampled"]].sum()
        return rows + part["gold_mask"][self._extra_gold(part)].sum()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """TRL's, which calls `_compute_loss`; then what that measured is logged, once per optimizer step."""
        self._count_trained(inputs)
        found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            metrics = self._metrics["train"]
            tokens, gold = inputs["num_items_in_batch"], inputs["gold_items"]
            for name, value in self._sums.items():
                total = self._total(value) / (gold if name == "cross_entropy" else tokens).clamp(min=1)
                metrics[name].append(total.item())
            self._sums = {}
        return found

    def _compute_loss(self, unwrapped_student: nn.Module, inputs: dict[str, Tensor], num_items_in_batch):
        """The micro-batch's share of the optimizer step's loss; entropy of the student, summed; tokens.

        Gold completions are run beside the samples of their prompt, on the same prefix.
        """
        weight = self.args.ce_weight
        batch = CompletionBatch.within(inputs)
        extra = self._extra_gold(inputs) if weight else None
        rows = len(batch.prompt_ids)
        whole = batch if extra is None else _joined(batch, inputs, extra)
        states = self._student_states(unwrapped_student, whole)
        head = output_head(unwrapped_student)
        owner = torch.arange(len(whole.prompt_ids), device=states.device)[:, None]
        owner = owner.expand_as(whole.completion_mask)[whole.completion_mask.bool()]  # the row of each token

        own = states[owner < rows] if extra is not None and len(extra) else states
        if self.learns_from_samples:
            losses, divergence = self._policy_gradient(own, head, batch, inputs)
        else:
            losses = divergence = self._divergence(own, head, inputs)
        record, step = inputs["record"].tolist(), self.state.global_step
        spread = batch.scatter(losses.detach())
        check_finite("divergences", spread, record, self.pipeline.records, step, _REMEDY)
        loss = (1 - weight) * losses.sum() / num_items_in_batch
        if weight:
            is_gold = torch.cat([~inputs["sampled"], inputs["sampled"].new_ones(len(extra))])
            taught = is_gold[owner]
            scores = token_scores(head, states[taught], whole.tokens()[taught], vocab_size=self.vocab_size)
            gold_items = inputs["gold_items"].clamp(min=1) / self.accelerator.num_processes
            loss = loss - weight * scores.log_prob.sum() / gold_items
            self._measure("cross_entropy", -scores.log_prob)
        likeliest, entropy = top_one_and_entropy(own.detach(), head, self.vocab_size)
        mask = batch.completion_mask.bool()
        self._measure("divergence", divergence / self.measure.temperature**2)
        self._measure("agreement", likeliest == inputs["teacher_choice"][mask])
        self._measure("teacher_entropy", inputs["teacher_entropy"][mask])
        return loss, entropy.sum(), mask.sum()

    def _extra_gold(self, inputs: dict[str, Tensor]) -> Tensor:
        """The first row of each sampled prompt: its gold completion is run besides."""
        first = _first_of(inputs["record"])
        return first[inputs["sampled"][first]]

    def _divergence(self, states: Tensor, head: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """The divergence before each completion token, times temperature², [N]."""
        mask = inputs["completion_mask"].bool()
        if self.args.teacher_top_k is None:
            teacher = inputs["teacher_states"][mask], output_head(self.teacher.model)
            return exact_divergence(states, head, *teacher, self.measure, self.vocab_size)
        top = TopK(*(inputs[name][mask] for name in ("top_log_probs", "top_indices", "top_tail")))
        return top_k_divergence(states, head, top, self.measure, self.vocab_size)

    def _student_states(self, student: nn.Module, batch: CompletionBatch) -> Tensor:
        """The student's states before the completion tokens, [N, H], with gradient where that is on."""
        shared = not self._stock("scoring", self._scoring_obstacle(student, False, {}))
        with self.accelerator.autocast():
            return states_before(student, batch, shared)

    def _teacher_states(self, batch: CompletionBatch) -> Tensor:
        return states_before(self.teacher.model, batch, self._teacher_shares)

    def _count_trained(self, inputs: dict[str, Tensor]) -> None:
        """Count the completion tokens that go through a gradient, gold ones beside samples included."""
        tokens = inputs["completion_mask"].sum()
        if self.args.ce_weight:
            tokens = tokens + inputs["gold_mask"][self._extra_gold(inputs)].sum()
        self.cost.trained(*self._over_processes(int(tokens)))

    # ----------------------------------------------------------------------------------------- curricula

    def curriculum_signals(self, rollout: dict[str, Tensor]) -> dict[str, Tensor]:
        """Whether samples are right; there are no advantages."""
        return {"success": rollout["correct"]}

    # ------------------------------------------------------------------------------------------- numbers

    def _measure(self, name: str, values: Tensor) -> None:
        """Add per-token numbers to this optimizer step's."""
        self._sums[name] = self._sums.get(name, 0) + values.detach().double().sum()


def _first_of(record: Tensor) -> Tensor:
    """The first row of each distinct record, int64."""
    seen: dict[int, int] = {}
    for row, index in enumerate(record.tolist()):
        seen.setdefault(index, row)
    return torch.tensor(list(seen.values()), device=record.device)


def _joined(batch: CompletionBatch, inputs: dict[str, Tensor], rows: Tensor) -> CompletionBatch:
    """The batch and after it the gold completions of some of its rows."""

    def padded(values: Tensor, width: int) -> Tensor:
        return nn.functional.pad(values, (0, width - values.shape[1]))

    width = max(batch.completion_ids.shape[1], inputs["gold_ids"].shape[1])
    return CompletionBatch(
        torch.cat([batch.prompt_ids, batch.prompt_ids[rows]]),
        torch.cat([batch.prompt_mask, batch.prompt_mask[rows]]),
        torch.cat([padded(batch.completion_ids, width), padded(inputs["gold_ids"][rows], width)]),
        torch.cat([padded(batch.completion_mask, width), padded(inputs["gold_mask"][rows], width)]),
    )
