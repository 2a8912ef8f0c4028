"""10: evaluate one policy by greedy answers, or grade predictions made elsewhere.

    python 10_evaluate.py --policy grpo
    python 10_evaluate.py --policy_ckpt outputs/run_001/06_grpo/ckpt_grpo/step_40 --policy grpo_step_40
    python 10_evaluate.py --predictions FILE --dataset_config configs/datasets/finqa.yaml --data_root DIR

Outside predictions are graded against the split's raw file, and need no model and no earlier stage.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from utils.common import UserError, read_json, resolve_path
from utils.config import DatasetConfig, ModelConfig, StageConfig, setting
from utils.data.records import HELD_OUT
from utils.evaluation.policies import checkpoint_of, policy_name
from utils.stage import Stage, StageContext, main
from utils.training.policy_inputs import configured_teacher, model_inputs


@dataclass
class Options:
    """Options of 10_evaluate.py."""

    policy: str = setting(
        "", 'base, sft, teacher, distill, ppo, grpo, rloo, dpo, or a name of your own; "" is sft'
    )
    policy_ckpt: str = setting("", "full model, adapter or hub name; empty: the run's own", path=True)
    predictions: str = setting("", "grade this file instead of a model (JSON or JSONL)", path=True)
    split: Literal["train", "val", "dev", "test"] = setting("test", "which items; dev is val")
    max_items: int | None = setting(None, "only the first items of the split; null for all")
    teacher_metrics: bool = setting(True, "also hold a model's answers and the gold text against the teacher")

    def validate(self) -> None:
        if self.max_items is not None and self.max_items < 1:
            raise ValueError(f"max_items must be at least 1, found {self.max_items}")
        if self.policy_ckpt and self.predictions:
            raise ValueError("give policy_ckpt or predictions, not both")


def split_of(options: Options) -> str:
    return "val" if options.split == "dev" else options.split


def variant(config: StageConfig) -> str:
    return policy_name(config.options.policy, outside=bool(config.options.predictions))


def inputs(config: StageConfig, run_dir: Path) -> dict[str, Path]:
    options, split = config.options, split_of(config.options)
    if options.predictions:
        from utils.evaluation.evaluate import gold_file

        return {"predictions": resolve_path(options.predictions), "gold": gold_file(config.dataset, split)}
    checkpoint = checkpoint_of(variant(config), options.policy_ckpt, config.model, run_dir)
    teacher = configured_teacher(config.model) if options.teacher_metrics else {}
    held_out = run_dir / "01_preprocessing" / HELD_OUT
    return {
        "records": run_dir / "01_preprocessing" / f"{split}.jsonl",
        "reward_spec": run_dir / "02_rewards" / "reward_spec.yaml",
        **({"held_out_levels": held_out} if held_out.is_file() else {}),
        **model_inputs(checkpoint),
        **teacher,
    }


def run(ctx: StageContext) -> None:
    from utils.data.records import load_records
    from utils.data.sources import gold_records
    from utils.evaluation.evaluate import ask_policy, summary_lines, write_evaluation
    from utils.evaluation.items import grade_items
    from utils.evaluation.metrics import compute_metrics, headline
    from utils.evaluation.predictions import read_predictions
    from utils.rewards.spec import load_reward_spec

    config, options = ctx.config, ctx.config.options
    policy, split, required_fields, against_teacher = variant(config), split_of(options), (), {}
    if options.predictions:
        every = gold_records(config.dataset, split)
        records = every[: options.max_items]
        predictions = read_predictions(ctx.inputs["predictions"], every)
        held_out = config.dataset.hold_out_levels
    else:
        records = load_records(ctx.inputs["records"])[: options.max_items]
        required_fields = load_reward_spec(ctx.inputs["reward_spec"]).required_fields
        held_out = (
            read_json(ctx.inputs["held_out_levels"])["levels"] if "held_out_levels" in ctx.inputs else ()
        )
        checkpoint = checkpoint_of(policy, options.policy_ckpt, config.model, ctx.run_dir)
        ctx.log(f"{policy}: answering {len(records)} items of the {split} split")
        predictions, against_teacher = ask_policy(ctx, records, checkpoint, options.teacher_metrics)
    if not records:
        raise UserError(f"the {split} split has no items; prepare one with 01_prepare.py")
    items = grade_items(ctx.progress(records, description="grading"), predictions, required_fields)
    metrics = compute_metrics(items, policy, split, held_out) | against_teacher
    write_evaluation(ctx.out, items, metrics)
    for line in [f"{policy} on {metrics['dataset']} {split}", *summary_lines(metrics)]:
        ctx.log(line)
    ctx.metrics |= headline(metrics)


STAGE = Stage(
    number="10",
    folder="10_evaluation",
    summary="Evaluate one policy by greedy answers, or grade predictions made elsewhere.",
    reads="01_preprocessing/<split>.jsonl, 02_rewards/reward_spec.yaml, the policy's checkpoint and the "
    "teacher; with --predictions FILE only that file and the split below --data_root",
    writes="10_evaluation/<policy>/: metrics.json, breakdown.csv, samples/predictions.jsonl",
    tiers={
        "model": (ModelConfig, "configs/models/sample.yaml"),
        "dataset": (DatasetConfig, "configs/datasets/sample.yaml"),
    },
    options=Options,
    inputs=inputs,
    quick={"max_items": 16},
    variant=variant,
)

if __name__ == "__main__":
    main(STAGE, run)
