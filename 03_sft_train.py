"""03: supervised fine-tuning on the training demonstrations.

    python 03_sft_train.py [--num_train_epochs 3] [--lora.enabled false]

TRL's SFTTrainer; LoRA unless the model configuration switches it off; loss on completion tokens only. Greedy
answers to validation items choose the best checkpoint.
"""

from pathlib import Path

from utils.config import ModelConfig, StageConfig
from utils.stage import NoOptions, Stage, StageContext, main
from utils.training.policy_inputs import configured_model, training_inputs
from utils.training.settings import SftAlgo

PANELS = {
    "training loss (nats per token)": ["loss"],
    "validation reward": ["val_reward"],
    "validation accuracy": ["val_accuracy", "val_format_valid"],
    "gradient norm": ["grad_norm"],
    "token accuracy": ["mean_token_accuracy"],
    "completion length (tokens)": ["val_length"],
}


def inputs(config: StageConfig, run_dir: Path) -> dict[str, Path]:
    return training_inputs(run_dir) | configured_model(config.model.model.name_or_path)


def run(ctx: StageContext) -> None:
    from utils.training.running import train_stage
    from utils.training.sft import build_sft_trainer

    train_stage(ctx, "sft", lambda records, spec: build_sft_trainer(ctx, records), PANELS)


STAGE = Stage(
    number="03",
    folder="03_sft",
    summary="Fine-tune the base model on the training demonstrations.",
    reads="01_preprocessing/{train,val}.jsonl, 02_rewards/reward_spec.yaml, the base model",
    writes="03_sft/: ckpt_sft/{best,final,step_N}, logs/{metrics.jsonl,curves.png}, valid_samples/",
    tiers={
        "model": (ModelConfig, "configs/models/sample.yaml"),
        "algo": (SftAlgo, "configs/algorithms/sft.yaml"),
    },
    options=NoOptions,
    inputs=inputs,
    quick={"algo.max_steps": 4, "model.validation.eval_steps": 2, "model.validation.num_items": 8},
)

if __name__ == "__main__":
    main(STAGE, run)
