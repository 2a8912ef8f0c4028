"""DPO as a stage: its pairs, its start, which is also the reference, and its validation.

Completions are the tokens that were sampled, prompts are tokenised without further special tokens, and
nothing is cut. The trainer is in `dpo_trainer.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, Trainer
from trl import DPOConfig

from utils.data.prompts import token_ids
from utils.data.records import Record
from utils.frame.files import UserError, derive_seed, read_jsonl, shown
from utils.frame.repair_command import command_for
from utils.frame.stage import StageContext
from utils.frame.typed_settings import fields_of
from utils.methods.dpo.settings import DpoAlgo, PreferencesAlgo
from utils.methods.dpo.trainer import PairTrainer
from utils.methods.ppo.losses import k1, k3
from utils.models.loading import load_policy
from utils.models.prefix.shared_prefix import evaluating
from utils.models.sampling import drawn_as, generate
from utils.models.settings import ModelConfig
from utils.rewards.spec import RewardSpec
from utils.rollouts.batches import share_batches
from utils.rollouts.panels import GRADIENT, VALIDATION
from utils.training.inputs import start_path
from utils.training.load_start import load_start
from utils.training.run import trainer_arguments
from utils.training.validation import GenerationValidation

PANELS = {
    "loss": ["loss", "val_preference_loss"],
    "beta (log pi - log ref)": ["rewards/chosen", "rewards/rejected"],
    "margin: chosen - rejected": ["rewards/margins", "val_preference_margin"],
    "preference accuracy": ["rewards/accuracies", "val_preference_accuracy"],
    **VALIDATION,
    "log-probability (nats per completion)": ["logps/chosen", "logps/rejected"],
    "KL to the reference (nats per completion)": ["val_kl_sequence"],
    "KL to the reference (nats per token)": ["val_kl"],
    "entropy (nats per token)": ["entropy"],
    "completion length (tokens)": ["val_length"],
    "share of completions cut off": ["val_truncated"],
    **GRADIENT,
}


class PreferenceValidation(GenerationValidation):
    """GenerationValidation, and a row about the held-out pairs and the distance to the reference.

    Logs ``val_preference_{accuracy,margin,loss}`` (`PairTrainer.held_out_metrics`) and, from one sample of
    each validation prompt at ``generation.temperature``, ``val_kl_sequence`` (k1, nats per completion) and
    ``val_kl`` (k3, nats per token). The samples come from the same random numbers every time; without
    ``algo.validation_kl`` they are left out.
    """

    def validate(self) -> dict[str, float]:
        """As GenerationValidation's; then the row of preferences."""
        metrics = super().validate()
        more = self.trainer.held_out_metrics()
        if self.trainer.validation_kl:
            more |= self.measure_kl()
        Trainer.log(self.trainer, {name: round(value, 6) for name, value in more.items()})
        return metrics | more

    def measure_kl(self) -> dict[str, float]:
        """KL(pi || pi_ref) on the policy's own samples."""
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        generation = self.config.generation
        completions = generate(
            model,
            self.tokenizer,
            self.prompts,
            **drawn_as(generation),
            batch_size=generation.largest_batch,
            room=self.room,
            generator=torch.Generator().manual_seed(derive_seed(self.trainer.args.seed, "validation_kl")),
            across_processes=True,
        )
        sequences, tokens, count = 0.0, 0.0, 0
        for start in range(0, len(self.prompts), generation.largest_batch):
            part = slice(start, start + generation.largest_batch)
            ids = [completion.token_ids for completion in completions[part]]
            with evaluating(model):
                log_ratio = self.trainer.divergence(self.prompts[part], ids, generation.temperature).double()
            sequences += k1(log_ratio).sum().item()
            tokens += k3(log_ratio).sum().item()
            count += sum(map(len, ids))
        return {"val_kl_sequence": sequences / len(self.prompts), "val_kl": tokens / count}


def tokenize_pairs(
    rows: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, model: ModelConfig
) -> Dataset:
    """``prompt_ids, chosen_ids, rejected_ids`` of the rows of 08: completions as they were sampled.

    Raises UserError where a prompt exceeds ``model.max_prompt_length`` or a completion
    ``generation.max_new_tokens``, or pairs were written without their tokens.
    """
    if any("chosen_ids" not in row for row in rows):
        raise UserError("the pairs have no token ids; an older version made them, so redo 08")
    columns = {}
    for name, limit, key in (
        ("prompt", model.model.max_prompt_length, "model.max_prompt_length"),
        ("chosen", model.generation.max_new_tokens, "generation.max_new_tokens"),
        ("rejected", model.generation.max_new_tokens, "generation.max_new_tokens"),
    ):
        if name == "prompt":
            ids = token_ids(tokenizer, [row["prompt"] for row in rows])
        else:
            ids = [row[f"{name}_ids"] for row in rows]
        for row, tokens in zip(rows, ids, strict=True):
            if len(tokens) > limit:
                raise UserError(
                    f"{name} of pair {row['id']} has {len(tokens)} tokens, {key} is {limit}: raise it"
                )
        columns[f"{name}_ids"] = ids
    return Dataset.from_dict(columns)


def build_dpo_trainer(
    ctx: StageContext, records: Sequence[Record] = (), spec: RewardSpec | None = None
) -> tuple[PairTrainer, PreTrainedTokenizerBase]:
    """The trainer for ``ctx``'s configuration, starting from the SFT policy, which is also the reference.

    It learns from the pairs among the inputs alone: ``records`` and ``spec`` are not used.

    Raises UserError where there are no pairs to train on, or none held out.
    """
    model_config: ModelConfig = ctx.config.model
    algo: DpoAlgo = ctx.config.algo
    model, tokenizer = load_start(ctx)
    datasets = {}
    for name in ("pairs", "val_pairs"):
        rows = read_jsonl(ctx.inputs[name])
        if not rows:
            given = {"algo.val_fraction": str(PreferencesAlgo().val_fraction)}
            redo = command_for(ctx.inputs[name].parent, redo=True, given=given)
            raise UserError(f"{shown(ctx.inputs[name])}: holds no pairs: run `{redo}`")
        datasets[name] = tokenize_pairs(rows, tokenizer, model_config)
    batches = share_batches(
        algo.per_device_train_batch_size,
        algo.gradient_accumulation_steps,
        largest=model_config.training.max_micro_batch,
        whole_micro_batches=False,
    )
    settings = fields_of(DPOConfig, algo) | {"loss_weights": algo.loss_weights or None}
    arguments = DPOConfig(
        **trainer_arguments(ctx) | settings | fields_of(DPOConfig, batches),
        precompute_ref_log_probs=True,
        max_length=None,  # nothing is cut: too long ones are an error above
    )
    reference = None  # adapters keep it beside the policy; a full model needs a second one for the KL
    if not hasattr(model, "peft_config"):
        reference = load_policy(start_path(ctx), model_config.model)[0]
    trainer = PairTrainer(
        model=model,
        ref_model=reference,
        args=arguments,
        train_dataset=datasets["pairs"],
        eval_dataset=datasets["val_pairs"],
        processing_class=tokenizer,
    )
    trainer.validation, trainer.validation_kl = PreferenceValidation, algo.validation_kl
    if trainer.stock:
        ctx.log(f"prompts are encoded once per completion: {trainer.stock}")
    ctx.metrics |= {"pairs": len(datasets["pairs"]), "held_out_pairs": len(datasets["val_pairs"])}
    return trainer, tokenizer
