"""Supervised fine-tuning: TRL's SFTTrainer on prompt and completion, loss on completion tokens only.

Prompt and completion are tokenised apart, as sampling sees them, and handed to TRL as token ids with a
completion mask, so that no merge of tokens across the boundary can blur what is taught.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from utils.data.prompts import completion_ids, prompt_ids
from utils.data.records import Record
from utils.frame.files import UserError
from utils.frame.stage import StageContext
from utils.frame.typed_settings import fields_of
from utils.methods.sft.settings import SftAlgo
from utils.models.cpu import rows_worth_a_pass
from utils.models.loading import device
from utils.models.settings import ModelConfig
from utils.models.taught_tokens import score_taught_tokens_only
from utils.rewards.spec import RewardSpec
from utils.rollouts.batches import share_batches
from utils.rollouts.panels import GRADIENT
from utils.training.cost import CountsCost
from utils.training.epoch_fillers import FillsBatches, fillers_needed
from utils.training.load_start import load_named
from utils.training.memory import KeepsAdapterFormat
from utils.training.rows_by_length import GroupsByLength
from utils.training.run import trainer_arguments

PANELS = {
    "training loss (nats per token)": ["loss"],
    "validation reward": ["val_reward"],
    "validation accuracy": ["val_accuracy", "val_format_valid"],
    **GRADIENT,
    "token accuracy": ["mean_token_accuracy"],
    "completion length (tokens)": ["val_length"],
}


class CountingSFTTrainer(KeepsAdapterFormat, GroupsByLength, FillsBatches, CountsCost, SFTTrainer):
    """TRL's SFTTrainer, with rows of like length together and logits of taught tokens only, counting these.

    How much of its micro-batches is padding depends on the devices that share a step: runtime.json says it.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.positions = torch.zeros(2, dtype=torch.long)  # those that held padding, and all
        score_taught_tokens_only(self.model, outputs=("log_probs", "entropy", "is_top1"))

    def compute_loss(self, model, inputs, *args, **kwargs):
        taught = (inputs["labels"] != -100).sum(1)
        self.cost.trained(int(self.accelerator.reduce(taught.sum())))
        self.positions += torch.tensor([int((inputs["attention_mask"] == 0).sum()), inputs["labels"].numel()])
        found = super().compute_loss(model, inputs, *args, **kwargs)
        if self.fillers:  # of one token each, which TRL has counted
            self._total_train_tokens -= int(self.accelerator.reduce((taught == 0).sum()))
            self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        return found

    def end_stage(self, ctx: StageContext) -> None:
        """Leave this process's share of padding since it last resumed: in runtime.json and the log."""
        padding, positions = self.positions.tolist()
        if positions:
            ctx.runtime["padding_share"] = round(padding / positions, 4)
            ctx.log(f"padding: {100 * padding / positions:.1f} % of positions")


def tokenize_demonstrations(
    records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, model: ModelConfig
) -> tuple[list[dict], list[str]]:
    """``input_ids`` and ``completion_mask`` (1 on taught tokens) per record, and the ids of records left out.

    Left out are those whose prompt exceeds ``model.max_prompt_length`` or whose completion exceeds
    ``generation.max_new_tokens``: at inference neither could occur. Raises UserError if that is most of them.
    """
    rows, left_out = [], []
    taught = completion_ids(tokenizer, [record.target_text for record in records])
    for record, prompt, completion in zip(records, prompt_ids(tokenizer, records), taught, strict=True):
        if len(prompt) > model.model.max_prompt_length or len(completion) > model.generation.max_new_tokens:
            left_out.append(record.id)
        else:
            rows.append(taught_row(prompt, completion))
    check_left_out(left_out, records, model)
    return rows, left_out


def taught_row(prompt: list[int], completion: list[int]) -> dict[str, list[int]]:
    """A row of the data set: the token ids of both, and 1 on those that are taught."""
    return {"input_ids": prompt + completion, "completion_mask": [0] * len(prompt) + [1] * len(completion)}


def check_left_out(left_out: Sequence[str], records: Sequence[Record], model: ModelConfig) -> None:
    """Raise UserError where most of the records are left out for their length."""
    if len(left_out) * 2 > len(records):
        raise UserError(
            f"{len(left_out)} of {len(records)} demonstrations exceed model.max_prompt_length "
            f"({model.model.max_prompt_length}) or generation.max_new_tokens "
            f"({model.generation.max_new_tokens}); raise them, or lower dataset.max_input_tokens in 01"
        )


def build_sft_trainer(
    ctx: StageContext, records: Sequence[Record], spec: RewardSpec | None = None
) -> tuple[SFTTrainer, PreTrainedTokenizerBase]:
    """The trainer for ``ctx``'s configuration; counts of rows go into ``ctx.metrics``."""
    model_config: ModelConfig = ctx.config.model
    model, tokenizer = load_named(model_config.model.name_or_path, ctx)
    rows, left_out = tokenize_demonstrations(records, tokenizer, model_config)
    if left_out:
        ctx.log(
            f"{len(left_out)} of {len(records)} demonstrations are too long and left out: {left_out[:5]} …"
        )
    ctx.metrics |= {"demonstrations": len(rows), "left_out": len(left_out)}
    return trainer_of_rows(ctx, model, tokenizer, rows)


def trainer_of_rows(
    ctx: StageContext, model: nn.Module, tokenizer: PreTrainedTokenizerBase, rows: list[dict]
) -> tuple[SFTTrainer, PreTrainedTokenizerBase]:
    """The trainer of ``model`` on rows as `taught_row` makes them, by the settings of ``ctx``."""
    algo: SftAlgo = ctx.config.algo
    bounds = [ctx.config.model.training.max_micro_batch]
    if device().type == "cpu":
        bounds.append(rows_worth_a_pass(model.num_parameters(), fmean(len(row["input_ids"]) for row in rows)))
    batches = share_batches(
        algo.per_device_train_batch_size,
        algo.gradient_accumulation_steps,
        largest=min(filter(None, bounds), default=None),
    )
    fillers = fillers_needed(len(rows), batches.per_device_train_batch_size)
    rows += [{"input_ids": [tokenizer.eos_token_id], "completion_mask": [0]}] * fillers
    arguments = SFTConfig(
        **trainer_arguments(ctx) | fields_of(SFTConfig, algo) | fields_of(SFTConfig, batches),
        completion_only_loss=True,
        max_length=None,  # nothing is cut here: too long demonstrations are left out above
    )
    trainer = CountingSFTTrainer(
        model=model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )
    trainer.fillers = fillers
    return trainer, tokenizer
