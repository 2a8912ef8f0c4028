"""PPO under sec in however many processes run this; training_processes.py has them train."""

import json
import os
from pathlib import Path

import torch

from tests.support.ppo_stub import feed_by_prompt, ppo_trainer
from utils.curricula.build import build_curriculum
from utils.curricula.settings import CurriculumSettings
from utils.data.records import Record
from utils.frame.config import build

PROMPTS = [f"{row}+{row}=" for row in range(24)]
RECORDS = [
    Record(f"train-{row}", "sample", "q", prompt, "t", "1", level=row % 4)
    for row, prompt in enumerate(PROMPTS)
]
SETTINGS = {
    "weights": {"abs_advantage": 2.0, "confidence_gap": 1.0, "probe_kl_drop": 1.0},
    "probe_size": 3,
    "tau": 0.1,
}


def curriculum_trainer(model: Path, out: Path, **changes):
    """PPO under sec on all signals, those of distillation made up; rollouts of 4 prompts x 4 completions."""
    settings = {"num_mini_batches": 1, "num_ppo_epochs": 1, "max_steps": 8, "logging_steps": 8, **changes}
    trainer = ppo_trainer(model, out, prompts=PROMPTS, **settings)
    feed_by_prompt(trainer)
    trainer.curriculum_knows = frozenset(SETTINGS["weights"])
    trainer.confidence_gap = lambda records: torch.tensor([row % 7 / 7 for row in records]).double()
    trainer.gold_divergence = lambda records: torch.tensor(
        [(row % 5 + 1) / (trainer.state.global_step + row % 3 + 1) for row in records]
    ).double()
    settings = build(CurriculumSettings, SETTINGS, "here")
    trainer.follow(build_curriculum("sec", settings, RECORDS, seed=1, num_rollouts=8))
    trainer.history = []
    choose = trainer.curriculum.choose

    def kept(count):
        chosen = choose(count)
        trainer.history.append({"chosen": chosen, "q": dict(trainer.curriculum.q)})
        return chosen

    trainer.curriculum.choose = kept
    rollout = trainer._generate_and_score_completions

    def rows_kept(inputs):
        trainer.history[-1]["rows"] = [row["record"] for row in inputs]
        return rollout(inputs)

    trainer._generate_and_score_completions = rows_kept
    return trainer


def main(model: Path, out: Path) -> None:
    processes, rank = int(os.environ.get("WORLD_SIZE", "1")), os.environ.get("RANK", "0")
    trainer = curriculum_trainer(
        model,
        out / "trainer",
        per_device_train_batch_size=16 // processes,
        ddp_backend="gloo" if processes > 1 else None,
    )
    trainer.train()
    (out / f"{rank}.json").write_text(json.dumps(trainer.history))
