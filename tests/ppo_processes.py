"""Train by PPO, also under a curriculum, in however many processes run this; test_ppo_processes.py compares.

usage: ppo_processes.py MODEL_FOLDER OUT_FOLDER (the first process writes OUT_FOLDER/{shared,separate}.json,
process n OUT_FOLDER/n.json)
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import curriculum_processes
from ppo_stub import feed_by_prompt, logged, ppo_trainer, trained_weights
from safetensors.torch import save_file
from torch import distributed

ROLLOUT = 8  # completions, on all processes


def main(model: Path, out: Path) -> None:
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    for name, settings in (
        ("shared", {"lora": True}),
        ("separate", {"separate": True, "target_kl": 1e-4, "adaptive_kl": True, "kl_target": 0.1}),
    ):
        trainer = ppo_trainer(
            model,
            out / name,
            per_device_train_batch_size=ROLLOUT // processes // 2,
            gradient_accumulation_steps=2,
            num_mini_batches=1,
            num_ppo_epochs=3,
            max_steps=6,
            logging_steps=3,
            ddp_backend="gloo" if processes > 1 else None,
            **settings,
        )
        feed_by_prompt(trainer)
        trainer.train()
        if trainer.is_world_process_zero():
            save_file(trained_weights(trainer), out / f"{name}.safetensors")
            (out / f"{name}.json").write_text(json.dumps(logged(trainer)[:-1]))
    curriculum_processes.main(model, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    # Without this, a process that ends while the other still holds the connection may abort at its exit.
    distributed.barrier()
    distributed.destroy_process_group()
