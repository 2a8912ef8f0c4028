"""Distillation as a stage: its start, its teacher and gold text, and whether there is anything to learn."""

from __future__ import annotations

from collections.abc import Sequence

from datasets import Dataset
from transformers import PreTrainedTokenizerBase, TrainerCallback

from utils.data.prompts import PromptTokens, render_prompt
from utils.data.records import Record
from utils.frame.files import UserError
from utils.frame.stage import StageContext
from utils.methods.distill.gold_text import gold_completions
from utils.methods.distill.settings import DistillAlgo
from utils.methods.distill.trainer import GroupDistillationConfig, GroupDistillationTrainer
from utils.methods.sft.trainer import check_left_out
from utils.models.prefix.shared_prefix import position_limit
from utils.models.settings import ModelConfig
from utils.models.teacher import Teacher
from utils.rewards.spec import RewardSpec
from utils.rollouts.follows_curriculum import follow_curriculum
from utils.rollouts.panels import GRADIENT, LENGTH
from utils.rollouts.reward_state import open_pipeline
from utils.rollouts.start import check_prompts, rollout_arguments
from utils.training.load_start import load_start

# On gold text, a start policy at this agreement and these KLs (nats per token) says what its teacher says.
AGREEMENT, SMALL_KL = 0.95, 0.01


PANELS = {
    "loss": ["loss"],
    "divergence (nats per token)": ["divergence"],
    "cross-entropy on gold (nats per token)": ["cross_entropy"],
    "agreement of likeliest tokens": ["agreement", "val_agreement"],
    "KL on validation gold (nats per token)": ["val_forward_kl", "val_reverse_kl"],
    "entropy (nats per token)": ["entropy", "teacher_entropy"],
    "accuracy of the rollout": ["train_accuracy"],
    "validation reward": ["val_reward"],
    "validation accuracy": ["val_accuracy", "val_format_valid"],
    **GRADIENT,
    **LENGTH,
}


class NothingToLearn(TrainerCallback):
    """Warns, after the start policy's validation, where student and teacher already agree on gold text."""

    def __init__(self, ctx: StageContext):
        self.ctx = ctx

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.global_step or "val_agreement" not in (logs or {}):
            return
        agreement, forward, reverse = (
            logs[f"val_{name}"] for name in ("agreement", "forward_kl", "reverse_kl")
        )
        if agreement >= AGREEMENT and max(forward, reverse) <= SMALL_KL:
            self.ctx.log(
                "warning: there is little to learn from this teacher: before training the student already "
                f"has its likeliest token at {100 * agreement:.1f} % of the gold tokens, KL {forward:.4f} "
                f"and {reverse:.4f} nats per token. Try: another model.teacher_name_or_path, or --start base"
            )


def build_distill_trainer(
    ctx: StageContext, records: Sequence[Record], spec: RewardSpec
) -> tuple[GroupDistillationTrainer, PreTrainedTokenizerBase]:
    """The trainer for ``ctx``'s configuration, from the SFT policy or, with ``--start base``, the base model.

    Where gold text is read, records with one longer than ``generation.max_new_tokens`` are left out. Raises
    UserError where those are most, where a prompt is longer than ``model.max_prompt_length``, where prompt
    and completion do not fit the teacher, and as `Teacher.load`.
    """
    config: ModelConfig = ctx.config.model
    algo: DistillAlgo = ctx.config.algo
    model, tokenizer = load_start(ctx)
    teacher = Teacher.load(config.model, tokenizer)
    reads_gold = algo.on_policy_fraction < 1 or algo.ce_weight > 0 or ctx.config.options.curriculum == "sec"
    gold = gold_completions(records, tokenizer)
    if reads_gold:
        records, gold = _with_short_gold(ctx, records, gold)
    prompts = [render_prompt(tokenizer, record.input_text) for record in records]
    prompt_tokens = PromptTokens(tokenizer)
    longest = check_prompts(prompt_tokens(prompts), records, config.model.max_prompt_length)
    _check_teacher_length(teacher, *longest, config.generation.max_new_tokens)
    trainer = GroupDistillationTrainer(
        model=model,
        teacher=teacher,
        pipeline=open_pipeline(records, spec, "task", config, tokenizer),  # grades alone, for the log
        gold=gold,
        args=GroupDistillationConfig(
            **rollout_arguments(ctx, GroupDistillationConfig, equal_shares=algo.on_policy_fraction in (0, 1)),
            divergence_temperature=algo.temperature,
            teacher_top_k=algo.top_k,
        ),
        train_dataset=Dataset.from_dict({"prompt": prompts, "record": list(range(len(records)))}),
        processing_class=tokenizer,
    )
    trainer.prompt_tokens = prompt_tokens
    trainer.add_callback(NothingToLearn(ctx))
    follow_curriculum(ctx, trainer, records, algo.num_rollouts, signal="confidence_gap")
    if reads_gold:
        trainer.check_gold(list(zip(prompts, gold, strict=True)), records)
    return trainer, tokenizer


def _with_short_gold(
    ctx: StageContext, records: Sequence[Record], gold: Sequence[list[int]]
) -> tuple[list[Record], list[list[int]]]:
    """Records and gold completions where these are no longer than a sample can be, as in SFT.

    The others are named. Raises UserError where most are longer.
    """
    limit = ctx.config.model.generation.max_new_tokens
    pairs = list(zip(records, gold, strict=True))
    left_out = [record.id for record, ids in pairs if len(ids) > limit]
    check_left_out(left_out, records, ctx.config.model)
    if left_out:
        ctx.log(
            f"{len(left_out)} of {len(records)} records are left out, whose gold text is longer than "
            f"generation.max_new_tokens ({limit}): {left_out[:5]} …"
        )
    ctx.metrics["left_out"] = len(left_out)
    kept = [pair for pair in pairs if len(pair[1]) <= limit]
    return [record for record, _ in kept], [ids for _, ids in kept]


def _check_teacher_length(teacher: Teacher, tokens: int, record: str, max_new_tokens: int) -> None:
    """Raise UserError where the longest prompt, of ``tokens``, and sample exceed the teacher's positions."""
    limit = position_limit(teacher.model)
    if tokens + max_new_tokens - 1 > limit:
        raise UserError(
            f"the prompt of {record} has {tokens} tokens, generation.max_new_tokens is {max_new_tokens} and "
            f"the teacher has {limit} positions: lower dataset.max_input_tokens or "
            "generation.max_new_tokens, or set another model.teacher_name_or_path"
        )
