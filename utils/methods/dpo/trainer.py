"""DPO on tokens: TRL's DPOTrainer, a pair's prompt encoded once for both completions.

The policy, its gradient and the reference share prefixes (utils/models/prefix/shared_prefix.py). The
reference's log-probabilities are computed once per stage and kept among the resume points, not in a
cache of the ``datasets`` library.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from trl import DPOConfig, DPOTrainer
from trl.trainer.utils import FusedCausalLMOutput, use_adapter

from utils.frame.files import UserError, atomic_path
from utils.frame.processes import (
    from_main,
    is_main_process,
    merge_shares,
    num_processes,
    share,
    wait_for_everyone,
)
from utils.frame.stage import StageContext
from utils.models.prefix.prefix_scoring import accept_shared_prefix, score_completions
from utils.models.prefix.shared_prefix import CompletionBatch, evaluating, obstacle
from utils.rollouts.shared_prefix_trainer import refuse_sharding
from utils.training.cost import CountsCost
from utils.training.epoch_fillers import FillsBatches, fillers_needed
from utils.training.memory import KeepsAdapterFormat
from utils.training.resume_points import is_whole, seal

logger = logging.getLogger(__name__)


class PairTrainer(KeepsAdapterFormat, FillsBatches, CountsCost, DPOTrainer):
    """TRL's DPOTrainer on tokenised pairs, prompts encoded once, whose reference log-probabilities outlive an
    interruption.

    Where prefixes cannot be shared (``stock`` says why), TRL's own forward pass runs. Several processes share
    the forward and backward passes of a micro-batch; its loss, whose means may be over tokens or sorted
    pairs, is taken of the whole micro-batch.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, args: DPOConfig, **kwargs: Any):
        reason = "gradient checkpointing drops the cache" if args.gradient_checkpointing else obstacle(model)
        self.stock = reason or ""
        if not self.stock:
            accept_shared_prefix(model)
        super().__init__(model=model, args=args, **kwargs)
        refuse_sharding(self, "DPO")

    def _forward(self, model: nn.Module, *, input_ids: Tensor, labels: Tensor, **kwargs: Any):
        """TRL's fused forward pass: log-probability and entropy, float32 [B, L-1], of the tokens to come, 0
        where ``labels`` is -100.

        TRL logs two more figures per token, which are made of the logits: not with shared prefixes.
        """
        if self.stock or "output_router_logits" in kwargs:  # a router's loss counts every full sequence
            return model(input_ids=input_ids, labels=labels, **kwargs)
        batch = pairs_apart(input_ids, labels)
        scores = model(shared_prefix=batch, entropy=True)
        scored = labels[:, 1:] != -100
        log_probs, entropy = (
            values.new_zeros(scored.shape).masked_scatter(scored, values)
            for values in (scores.log_prob, scores.entropy)
        )
        nothing = torch.zeros_like(scored)
        return FusedCausalLMOutput(
            log_probs=log_probs, entropy=entropy, mean_logits=nothing.float(), is_top1=nothing
        )

    def compute_ref_log_probs(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """TRL's, over shared prefixes."""
        return super().compute_ref_log_probs(partial(self._forward, model), inputs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """TRL's, without what shared prefixes do not tell."""
        if not self.stock:
            for name in ("logits/chosen", "logits/rejected", "mean_token_accuracy"):
                self._metrics["train"].pop(name, None)
        super().log(logs, *args, **kwargs)

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        """The pairs have been tokenised (`tokenize_pairs`); TRL would join prompt and completion first."""
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """Add ``ref_chosen_logps`` and ``ref_rejected_logps``, float32: sums over the completion's tokens.

        Called before training, while policy and reference are the same; the result is kept until the stage
        is done, so that an interrupted one goes on with the very same numbers. A file that does not match its
        hash is not taken, and the result is computed anew.
        """
        kept = Path(self.args.output_dir) / f"reference_{name}"
        path = kept / "log_probs.safetensors"
        if not from_main(is_main_process() and is_whole(kept, logger.warning)):
            with self.cost.phase("scoring"):
                own = [
                    self.compute_ref_log_probs(self.model, batch)
                    for batch in self.batches(dataset, shared=True)
                ]
            parts = merge_shares([[part.float().cpu() for part in pair] for pair in own])
            chosen, rejected = (torch.cat(column) for column in zip(*parts, strict=True))
            if not (chosen.isfinite().all() and rejected.isfinite().all()):
                raise UserError(
                    "the SFT policy's log-probabilities are not finite: set model.torch_dtype float32"
                )
            if is_main_process():
                with atomic_path(kept) as folder:
                    folder.mkdir()
                    save_file(
                        {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}, folder / path.name
                    )
                    seal(folder)
            wait_for_everyone()
        columns = {name: values.tolist() for name, values in load_file(path).items()}
        rows = dataset.to_dict() | columns
        if name == "train":
            self.fillers = fillers_needed(len(dataset), self.args.per_device_train_batch_size)
            filler = dict.fromkeys(dataset.column_names, [self.processing_class.eos_token_id])
            filler |= dict.fromkeys(columns, math.nan)  # by which it is known
            rows = {name: [*values, *[filler[name]] * self.fillers] for name, values in rows.items()}
        return Dataset.from_dict(rows)

    def batches(self, dataset: Dataset, shared: bool = False) -> Iterator[dict[str, Tensor]]:
        """The pairs in order, collated as in training, on the device.

        They come in the micro-batches of all processes, as a loss may be of the whole. shared: this process's
        share of the batches.
        """
        size = self.args.per_device_train_batch_size * num_processes()
        starts = range(0, len(dataset), size)
        for start in share(starts) if shared else starts:
            rows = [dataset[index] for index in range(start, min(start + size, len(dataset)))]
            yield {
                name: values.to(self.accelerator.device) for name, values in self.data_collator(rows).items()
            }

    def compute_loss(self, model, inputs, *args, **kwargs):
        """TRL's, counting the tokens that are trained on: those of both completions."""
        if not self.model.training or num_processes() == 1:
            if self.model.training:
                self.cost.trained(int(inputs["completion_mask"].sum()))
            return super().compute_loss(partial(self._forward, model), inputs, *args, **kwargs)
        own, before = inputs, self._total_train_tokens
        real = ~self.accelerator.gather(own["ref_chosen_logps"]).isnan()
        whole = {name: self._of_all(values, real) for name, values in own.items()}
        self.cost.trained(int(whole["completion_mask"].sum()))
        forward = partial(self._forward_of_all, model, own, real)
        loss = super().compute_loss(forward, whole, *args, **kwargs)
        # TRL adds up the tokens of processes that it takes to be different.
        self._total_train_tokens = before + (self._total_train_tokens - before) // num_processes()
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        return loss

    def _of_all(self, values: Tensor, real: Tensor) -> Tensor:
        """The whole micro-batch of what each process has a part of, without fillers (``real``, bool [pairs]).

        Of a pair's two sequences, [2 pairs, L], those chosen come first; or one number per pair, [pairs].
        """
        if values.ndim == 1:
            return self.accelerator.gather(values)[real]
        parts = self.accelerator.gather(self.accelerator.pad_across_processes(values, dim=1).contiguous())
        halves = parts.view(num_processes(), 2, -1, parts.shape[1]).transpose(0, 1).flatten(1, 2)
        return halves[:, real].flatten(0, 1)

    def _forward_of_all(self, model: nn.Module, own: dict[str, Tensor], real: Tensor, **kwargs: Any):
        """`_forward` of the whole micro-batch, with the gradient of this process's part.

        DDP takes the mean of the processes' gradients, so the part's counts for as many as there are.
        """
        labels = own["input_ids"].masked_fill(own["completion_mask"] == 0, -100)
        mask = own["attention_mask"]
        found = self._forward(
            model, **(kwargs | {"input_ids": own["input_ids"], "attention_mask": mask, "labels": labels})
        )
        length = kwargs["input_ids"].shape[1] - 1
        fields = {}
        for name in ("log_probs", "entropy", "mean_logits", "is_top1"):
            fields[name] = self._of_all(getattr(found, name).detach().float(), real)
        own_log_probs = nn.functional.pad(found.log_probs, (0, length - found.log_probs.shape[1]))
        is_own = torch.zeros(len(real), dtype=torch.bool, device=real.device)
        size = len(own["ref_chosen_logps"])
        first = size * self.accelerator.process_index
        is_own[first : first + size] = True
        kept = real[first : first + size].repeat(2)
        gradient = (own_log_probs - own_log_probs.detach()) * num_processes()  # zero, but for its gradient
        places = is_own[real].repeat(2).nonzero().squeeze(1)
        unused = 0 * gradient[~kept].sum()  # DDP waits for every part's gradient
        fields["is_top1"] = fields["is_top1"].bool()
        fields["log_probs"] = fields["log_probs"].index_add(0, places, gradient[kept]) + unused
        return FusedCausalLMOutput(**fields)

    def end_stage(self, ctx: StageContext) -> None:
        """Leave the last validation's preference accuracy and KL for the manifest."""
        rows = [row for row in self.state.log_history if "val_preference_accuracy" in row]
        last = rows[-1] if rows else {}
        names = ("val_preference_accuracy", "val_kl_sequence")
        ctx.metrics |= {name: last[name] for name in names if name in last}

    @torch.no_grad()
    def held_out_metrics(self) -> dict[str, float]:
        """Preference accuracy, margin and loss on the held-out pairs, against the reference.

        With r = beta * (log pi - log pi_ref), summed over a completion: the share of pairs with
        r(chosen) > r(rejected), equal ones as halves (all are, before the first step), and the mean of
        r(chosen) - r(rejected).
        """
        margins, losses = [], []
        for batch in self.batches(self.eval_dataset):
            seen = []

            def recorded(seen=seen, **kwargs):
                seen.append(self._forward(self.model, **kwargs))
                return seen[-1]

            with evaluating(self.model), self.compute_loss_context_manager():
                loss = super().compute_loss(recorded, batch)
            chosen, rejected = seen[0].log_probs.sum(1).chunk(2)
            reference = batch["ref_chosen_logps"] - batch["ref_rejected_logps"]
            margins.append(self.beta * (chosen - rejected - reference))
            losses.append(loss * len(chosen))
        self._metrics["eval"].clear()
        margin = torch.cat(margins)
        return {
            "val_preference_accuracy": ((margin > 0).float() + 0.5 * (margin == 0)).mean().item(),
            "val_preference_margin": margin.mean().item(),
            "val_preference_loss": (sum(losses) / len(margin)).item(),
        }

    @torch.no_grad()
    def divergence(
        self, prompts: list[list[int]], completions: list[list[int]], temperature: float
    ) -> Tensor:
        """log pi - log pi_ref of every token of the policy's own completions, at the sampling temperature.

        Returns float32 [B, C], 0 after a completion's end.
        """
        policy = self.accelerator.unwrap_model(self.model)
        batch = CompletionBatch.of(prompts, completions, self.accelerator.device)
        how = {"temperature": temperature, "shared": not self.stock}
        own = score_completions(policy, batch, **how).log_prob
        if self.ref_model is not None:
            reference = score_completions(self.ref_model, batch, **how).log_prob
        else:
            with use_adapter(policy, "ref"):
                reference = score_completions(policy, batch, **how).log_prob
        return batch.scatter(own - reference)


def pairs_apart(input_ids: Tensor, labels: Tensor) -> CompletionBatch:
    """Prompts and completions of sequences padded on the right, int64 [B, L]; ``labels`` is -100 outside the
    completion, which is not empty.
    """
    prompts, completions = [], []
    for ids, mask in zip(input_ids.tolist(), (labels != -100).tolist(), strict=True):
        start, length = mask.index(True), sum(mask)
        prompts.append(ids[:start])
        completions.append(ids[start : start + length])
    return CompletionBatch.of(prompts, completions, input_ids.device)
