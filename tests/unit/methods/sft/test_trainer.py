"""SFT's micro-batches and head against TRL's own: the same loss and gradient of an optimizer step."""

from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

from utils.methods.sft.trainer import CountingSFTTrainer
from utils.models.loading import add_lora, load_base
from utils.models.settings import LoraSection, ModelSection

PROMPTS, TAUGHT = [30, 4, 17, 9, 25, 3, 12, 40], [3, 5, 2, 4, 1, 6, 2, 3]
ROWS = [
    {"input_ids": [5 + (7 * row + place) % 90 for place in range(prompt + taught)],
     "completion_mask": [0] * prompt + [1] * taught}
    for row, (prompt, taught) in enumerate(zip(PROMPTS, TAUGHT, strict=True))
]  # fmt: skip


def step(kind, folder, output, micro_batch):
    """The loss and gradients of the first optimizer step, on all rows, and what is logged."""
    model = load_base(folder, ModelSection())
    model = add_lora(model, LoraSection(r=4), seed=1)
    with torch.no_grad():
        for name, each in model.named_parameters():
            if "lora_B" in name:  # zero at first, and with it the gradient of A
                each += 0.05 * torch.randn(each.shape, generator=torch.Generator().manual_seed(len(name)))
    arguments = SFTConfig(
        output_dir=str(output),
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=len(ROWS) // micro_batch,
        max_steps=1,
        learning_rate=0.0,
        max_grad_norm=0.0,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        completion_only_loss=True,
        max_length=None,
        seed=0,
        data_seed=0,
        disable_tqdm=True,
    )
    trainer = kind(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(ROWS),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    gradients = {}

    def keep(optimizer, args, kwargs):
        trained = [(name, each) for name, each in trainer.model.named_parameters() if each.requires_grad]
        gradients.update({name: each.grad.clone() for name, each in trained})

    trainer.create_optimizer()
    trainer.optimizer.register_step_pre_hook(keep)
    trainer.train()
    ctx = SimpleNamespace(runtime={}, log=lambda line: None)
    if kind is CountingSFTTrainer:
        trainer.end_stage(ctx)
    return trainer.state.log_history[0] | ctx.runtime, gradients


@pytest.mark.parametrize("micro_batch", [8, 2], ids=["one micro-batch", "four of like length"])
def test_a_step_is_that_of_trl(micro_batch, tiny_models, tmp_path):
    folder = tiny_models("llama")
    wanted, gradients = step(SFTTrainer, folder, tmp_path / "stock", len(ROWS))
    found, own = step(CountingSFTTrainer, folder, tmp_path / "own", micro_batch)
    assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
    assert found["num_tokens"] == wanted["num_tokens"] == sum(PROMPTS) + sum(TAUGHT)
    assert gradients.keys() == own.keys() and any(each.abs().max() > 1e-3 for each in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(own[name], gradient, rtol=1e-3, atol=1e-6, msg=name)


def test_padding_is_stated_and_less_where_rows_of_like_length_are_together(tiny_models, tmp_path):
    whole, _ = step(CountingSFTTrainer, tiny_models("llama"), tmp_path / "whole", 8)
    parts, _ = step(CountingSFTTrainer, tiny_models("llama"), tmp_path / "parts", 2)
    lengths = sorted(map(sum, zip(PROMPTS, TAUGHT, strict=True)))
    assert whole["padding_share"] == pytest.approx(1 - sum(lengths) / (8 * lengths[-1]), abs=1e-4)
    assert parts["padding_share"] == pytest.approx(1 - sum(lengths) / (2 * sum(lengths[1::2])), abs=1e-4)
    assert parts["padding_share"] < 0.4 * whole["padding_share"]
