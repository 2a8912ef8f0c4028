"""10: evaluate one policy, or every checkpoint of one, or grade predictions made elsewhere.

    python 10_evaluate.py --policy grpo
    python 10_evaluate.py --policy grpo --num_samples 8                            also pass@k and majority@k
    python 10_evaluate.py --policy_ckpt outputs/run_001/06_grpo/ckpt_grpo/step_40
    python 10_evaluate.py --policy_ckpt outputs/run_001/06_grpo/ckpt_grpo          every checkpoint in it
    python 10_evaluate.py --policy grpo --ask "what was the change in cash ?"      its answer; or --ask FILE
    python 10_evaluate.py --predictions FILE --dataset_config configs/datasets/finqa.yaml --data_root DIR

Outside predictions are graded against the split's raw file, and need no model and no earlier stage.
"""

import sys
from dataclasses import dataclass
from typing import Literal

from utils.data.settings import DatasetConfig
from utils.evaluation.stage import evaluation_inputs, variant_of
from utils.frame.command_line import wants_help
from utils.frame.config import setting
from utils.frame.pipeline import POLICIES
from utils.frame.stage import Stage, StageContext, main
from utils.models.settings import ModelConfig
from utils.training.inputs import input_option

MAX_SAMPLES = 512


@dataclass
class Options:
    """Options of 10_evaluate.py."""

    policy: str = setting(
        "",
        f'{", ".join(POLICIES)}, or a name of your own; "" is sft, or named after policy_ckpt',
    )
    policy_ckpt: str = setting(
        "",
        "stage folder (its best checkpoint), full model, adapter, hub name, base, or a folder of several "
        "checkpoints, for each; empty: the run's own",
        path=True,
    )
    predictions: str = setting("", "grade this file instead of a model (JSON or JSONL)", path=True)
    test_jsonl: str = setting(
        "", "records as 01 writes them, in place of the run's own split", names_input=True
    )
    reward_spec: str = input_option("reward_spec")
    split: Literal["train", "val", "dev", "test"] = setting("test", "which items; dev is val")
    max_items: int | None = setting(None, "only the first items of the split; null for all")
    num_samples: int = setting(
        0, "completions drawn per item, at generation.temperature, for pass@k and majority@k; 0 for none"
    )
    teacher_metrics: bool = setting(True, "also hold a model's answers and the gold text against the teacher")
    reference_metrics: bool = setting(
        True, "also hold them against the SFT policy that training started from"
    )

    def validate(self) -> None:
        if self.max_items is not None and self.max_items < 1:
            raise ValueError(f"max_items must be at least 1, found {self.max_items}")
        if not 0 <= self.num_samples <= MAX_SAMPLES:
            raise ValueError(f"num_samples must be between 0 and {MAX_SAMPLES}, found {self.num_samples}")
        if self.policy_ckpt and self.predictions:
            raise ValueError("give policy_ckpt or predictions, not both")


def run(ctx: StageContext) -> None:
    from utils.evaluation.stage import run_evaluation

    run_evaluation(ctx)


STAGE = Stage(
    number="10",
    folder="10_evaluation",
    summary="Evaluate a policy or each of its checkpoints, or grade predictions made elsewhere. With --ask "
    "QUESTION (or a file): print a policy's answer to a question of your own, and write nothing.",
    reads="01_preprocessing/<split>.jsonl, 02_rewards/reward_spec.yaml, the policy's checkpoint, the SFT "
    "policy that it was trained from and the teacher; with --predictions FILE only that file and the split "
    "below --data_root",
    writes="10_evaluation/<policy>/: metrics.json, breakdown.csv, samples/{predictions,tokens}.jsonl; of "
    "several checkpoints these in a folder each, checkpoints.{csv,png}",
    tiers={
        "model": (ModelConfig, "configs/models/sample.yaml"),
        "dataset": (DatasetConfig, "configs/datasets/sample.yaml"),
    },
    options=Options,
    inputs=evaluation_inputs,
    several_processes=True,
    quick={"max_items": 16},
    variant=variant_of,
)

if __name__ == "__main__":
    if "--ask" in sys.argv and not wants_help(sys.argv):
        from utils.evaluation.ask import ask_command

        sys.exit(ask_command(STAGE, sys.argv[1:]))
    main(STAGE, run)
