"""The stage of DPO on a tiny model: its settings, its pairs and its contexts."""

from pathlib import Path
from types import SimpleNamespace

from tests.support.records import RECORDS
from tests.support.training_stages import model_config
from utils.data.prompts import completion_ids, render_prompt, token_ids
from utils.frame.config import StageConfig
from utils.frame.files import write_jsonl
from utils.frame.stage import StageContext
from utils.methods.dpo.settings import DpoAlgo
from utils.models.settings import GenerationSection, LoraSection, TrainingSection, ValidationSection

DPO = DpoAlgo(
    learning_rate=2e-2,
    warmup_steps=1,
    max_steps=7,
    per_device_train_batch_size=3,
    beta=0.3,
    loss_type=["sigmoid"],
)

# Completions of several lengths; the last of them were cut off, so they have no end-of-sequence token.
REJECTED = ['{"program": "add(1, 2)"}<eos>', "no json<eos>", "<eos>", '{"program": "subtract(30, ', "zz"]


def pairs(tokenizer) -> list[dict]:
    return [
        {
            "id": f"{record.id}/0",
            "prompt": render_prompt(tokenizer, record.input_text),
            "chosen": record.target_text,
            "chosen_ids": completion_ids(tokenizer, [record.target_text])[0],
            "rejected": REJECTED[number % len(REJECTED)],
            "rejected_ids": token_ids(tokenizer, [REJECTED[number % len(REJECTED)]])[0],
            "chosen_reward": 1.0,
            "rejected_reward": 0.0,
            "margin": 1.0,
        }
        for number, record in enumerate(RECORDS)
    ]


def dpo_contexts(folder: Path, files: dict[str, Path], model: Path, tokenizer):
    """A factory of stage contexts that write below ``folder``/<name>: six pairs to train on, two held out."""
    rows = pairs(tokenizer)
    write_jsonl(folder / "pairs.jsonl", rows[:6])
    write_jsonl(folder / "val_pairs.jsonl", rows[6:])

    def make(name="out", algo=DPO, resuming=False, seed=3, checkpoint=None, **sections) -> StageContext:
        defaults = {
            "lora": LoraSection(r=4, lora_dropout=0.1),
            "training": TrainingSection(save_steps=2, logging_steps=3),
            "validation": ValidationSection(eval_steps=3, num_items=3),
            "generation": GenerationSection(max_new_tokens=40, batch_size=2),
        }
        config = StageConfig(
            model=model_config(model, **{**defaults, **sections}),
            algo=algo,
            options=SimpleNamespace(reward="combined"),
            seed=seed,
        )
        out = folder / name
        out.mkdir(exist_ok=True)
        inputs = {
            **files,
            "pairs": folder / "pairs.jsonl",
            "val_pairs": folder / "val_pairs.jsonl",
        }
        if checkpoint:
            inputs["checkpoint"] = checkpoint
        return StageContext(config, "run", folder, out, resuming, inputs)

    return make
