"""Training within a device's memory: number formats, and micro-batches that shrink where memory runs out.

Under ``generation.batch_size: auto`` running out of memory is an interruption like any other: training goes
on from its last resume point with half the sequences in a micro-batch and twice as many micro-batches, so
that what a step learns from stays the same. Otherwise it is an error that says what to change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch
from accelerate.utils.memory import clear_device_cache

from utils.frame.files import UserError, atomic_path, read_json, write_json
from utils.frame.manifest import RESUME
from utils.frame.processes import from_main, is_main_process, num_processes
from utils.frame.stage import StageContext
from utils.models.loading import number_format
from utils.models.sampling_memory import ran_out
from utils.models.settings import ModelConfig
from utils.training.resume_points import is_whole, seal

T = TypeVar("T")

FOUND = "memory/micro_batch.json"  # beside the resume points: what the next execution begins with


def precision(model: ModelConfig) -> dict[str, bool]:
    """TrainingArguments' ``bf16`` and ``fp16``, from the model tier.

    Raises UserError where weights in float16 would be trained themselves: their updates round to nothing.
    """
    dtype = number_format(model.model)
    if dtype == torch.float16 and not model.lora.enabled:
        raise UserError(
            "weights in float16 cannot be trained: set lora.enabled: true, or model.torch_dtype: float32"
        )
    return {"bf16": dtype == torch.bfloat16, "fp16": dtype == torch.float16}


class KeepsAdapterFormat:
    """Trainer mixin: adapters are trained in the format they were loaded in.

    TRL casts those of a model in 4 bits to bfloat16, where small updates round to nothing, and where a
    resumed run, whose adapters PEFT loads in float32, would end otherwise than an uninterrupted one.
    """

    def __init__(self, model, *args, **kwargs):
        before = {name: each.data for name, each in model.named_parameters() if each.requires_grad}
        super().__init__(model, *args, **kwargs)
        for name, parameter in model.named_parameters():
            if name in before and parameter.dtype != before[name].dtype:
                parameter.data = before[name]


def train_within_memory(ctx: StageContext, attempt: Callable[[], T]) -> T:
    """Return ``attempt()``, which builds a trainer from ``ctx`` as it then is and trains it.

    Raises UserError where memory runs out and the batch size is not ``auto``, or is down to one sequence, or
    before there is a trainer. With several processes, of which the others would wait for ever, it also ends;
    run again, it goes on with half.
    """
    auto = ctx.config.model.generation.batch_size == "auto"
    kept = ctx.out / RESUME / FOUND
    # The first process alone, since one that is damaged is moved.
    if auto and ctx.resuming and from_main(is_main_process() and is_whole(kept.parent, ctx.warn)):
        _limit(ctx, read_json(kept)["micro_batch"])
    while True:
        try:
            return attempt()
        except Exception as error:
            if not ran_out(error):
                raise
            size = ctx.runtime.get("micro_batch", 1)
            if not auto or size == 1:
                raise UserError(_advice(ctx, size)) from None
        # Outside the handler, whose error holds on to the trainer.
        clear_device_cache(garbage_collection=True)
        with atomic_path(kept.parent) as folder:
            write_json(folder / kept.name, {"micro_batch": size // 2})
            seal(folder)
        if num_processes() > 1:
            raise UserError(
                f"out of memory with micro-batches of {size}: run the same command again, it goes on with "
                f"{size // 2}"
            )
        ctx.log(f"out of memory with micro-batches of {size}: going on with {size // 2}")
        _limit(ctx, size // 2)
        ctx.resuming = True


def _limit(ctx: StageContext, size: int) -> None:
    """Let trainers that are built from ``ctx`` have micro-batches of at most ``size``; the manifest has the
    configuration as it was asked for."""
    model = ctx.config.model
    model = replace(model, training=replace(model.training, max_micro_batch=size))
    ctx.config = replace(ctx.config, model=model)


def _advice(ctx: StageContext, size: int) -> str:
    """What would need less memory and is not in use, the cheapest first."""
    model: ModelConfig = ctx.config.model
    changes = [] if size == 1 else ["--batch_size auto", f"--max_micro_batch {size // 2}"]
    if not model.training.gradient_checkpointing:
        changes.append("--gradient_checkpointing true")
    if not model.lora.enabled:
        changes.append("--lora.enabled true")
    if not model.model.load_in_4bit:
        changes.append("--load_in_4bit true")
    changes.append(f"a lower generation.max_new_tokens ({model.generation.max_new_tokens})")
    return (
        f"out of memory with micro-batches of {size}: try, one after the other, {', '.join(changes)}; "
        "the last resume point is kept"
    )
