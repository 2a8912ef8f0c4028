"""Rejection-sampling fine-tuning: the SFT trainer, taught the right candidates of 04 as they were sampled.

The control without wrong answers: what policy-gradient methods gain above it, they gain from wrong samples or
from sampling anew. It rests on the same samples as preference pairs do, and costs no others.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase
from trl import SFTTrainer

from utils.data.prompts import token_ids
from utils.data.records import Record
from utils.frame.files import UserError, derive_seed, read_jsonl
from utils.frame.stage import StageContext
from utils.methods.dpo.sampled import options_of, refuse_held_out
from utils.methods.rft.settings import RftAlgo
from utils.methods.sft.trainer import PANELS, taught_row, trainer_of_rows
from utils.rewards.spec import RewardSpec
from utils.training.load_start import load_start

__all__ = ["PANELS", "build_rft_trainer", "right_candidates"]


def right_candidates(
    rows: Sequence[dict[str, Any]], most: int, seed: int
) -> list[tuple[str, list[list[int]]]]:
    """The prompts of 04's rows with a right candidate, and token ids of at most ``most`` different ones.

    Right means verified against the gold, not cut off, and of a valid form. Each prompt has a generator of
    its own, so that one prompt's candidates do not change another's.
    """
    found = []
    for row in rows:
        right = [
            candidate["token_ids"]
            for candidate in row["candidates"]
            if candidate["correct"] and candidate["parsed"] and not candidate["truncated"]
        ]
        different = list({tuple(ids): ids for ids in right}.values())
        if different:
            rng = random.Random(derive_seed(seed, "right_candidates", row["id"]))
            found.append((row["prompt"], rng.sample(different, min(most, len(different)))))
    return found


def build_rft_trainer(
    ctx: StageContext, records: Sequence[Record], spec: RewardSpec
) -> tuple[SFTTrainer, PreTrainedTokenizerBase]:
    """The trainer for ``ctx``'s configuration, from the SFT policy; counts of rows go into ``ctx.metrics``.

    Raises UserError where no candidate is right, and as `options_of` and `refuse_held_out`.
    """
    algo: RftAlgo = ctx.config.algo
    sampled = read_jsonl(ctx.inputs["candidates"])
    refuse_held_out(ctx.inputs["candidates"], options_of(ctx.inputs["candidates"]))
    right = right_candidates(sampled, algo.max_per_prompt, ctx.seed)
    if not right:
        raise UserError(
            f"{ctx.inputs['candidates']}: no candidate is right, so there is nothing to learn from: sample "
            "more in 04 (--num_candidates, --max_items), or train 03 for longer"
        )
    model, tokenizer = load_start(ctx)
    prompts = token_ids(tokenizer, [prompt for prompt, _ in right])
    rows = [
        taught_row(prompt, ids) for prompt, (_, chosen) in zip(prompts, right, strict=True) for ids in chosen
    ]
    ctx.metrics |= {"prompts": len(sampled), "prompts_with_right": len(right), "right_candidates": len(rows)}
    return trainer_of_rows(ctx, model, tokenizer, rows)
