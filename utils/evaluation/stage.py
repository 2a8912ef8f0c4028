"""What 10_evaluate.py reads, and its work: a policy, each checkpoint of a folder, or outside predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from utils.data.records import HELD_OUT, Record
from utils.evaluation.policy_names import checkpoint_of, checkpoints_in, policy_name, weights_of
from utils.evaluation.start_policy import reference_inputs
from utils.frame.config import StageConfig
from utils.frame.criteria import Criteria, judged
from utils.frame.files import UserError, read_json, resolve_path
from utils.frame.pipeline import UNTRAINED
from utils.frame.processes import is_main_process
from utils.frame.stage import StageContext
from utils.training.inputs import configured_teacher, named_file, prepared_split, reward_spec


def split_of(config: StageConfig) -> str:
    """The split's own name: dev is val."""
    return "val" if config.options.split == "dev" else config.options.split


def variant_of(config: StageConfig) -> str:
    """The policy's name."""
    options = config.options
    return policy_name(options.policy, outside=bool(options.predictions), checkpoint=options.policy_ckpt)


def evaluation_inputs(config: StageConfig, run_dir: Path) -> dict[str, Path]:
    """The files that 10 reads."""
    options, split = config.options, split_of(config)
    if options.predictions:
        from utils.evaluation.policy import gold_file

        return {"predictions": resolve_path(options.predictions), "gold": gold_file(config.dataset, split)}
    checkpoint = checkpoint_of(variant_of(config), options.policy_ckpt, config.model, run_dir)
    records = named_file(config, "test_jsonl", "test.jsonl", prepared_split(run_dir, split))
    held_out = records.with_name(HELD_OUT)
    return {
        "records": records,
        "reward_spec": reward_spec(run_dir, config),
        **({"held_out_levels": held_out} if held_out.is_file() else {}),
        **weights_of(checkpoint),
        **(reference_inputs(checkpoint) if options.reference_metrics else {}),
        **(configured_teacher(config.model) if options.teacher_metrics else {}),
    }


def run_evaluation(ctx: StageContext) -> None:
    """Evaluate what the options name, and put the headline numbers into the manifest."""
    from utils.evaluation.metrics import headline

    if ctx.config.options.predictions:
        metrics = _grade_outside(ctx) if is_main_process() else {}  # there is nothing to share
    else:
        from utils.evaluation.policy import evaluate_policy
        from utils.models.vllm.sampler import announce_sampler

        config, policy = ctx.config, variant_of(ctx.config)
        checkpoint = checkpoint_of(policy, config.options.policy_ckpt, config.model, ctx.run_dir)
        several = checkpoints_in(checkpoint)
        announce_sampler(ctx)
        questions = _questions(ctx, several[0].path if several else checkpoint)
        if several:
            from utils.evaluation.checkpoints import evaluate_checkpoints

            ctx.metrics |= evaluate_checkpoints(ctx, questions, policy, several)
            return
        metrics = evaluate_policy(ctx, questions, policy, checkpoint, ctx.out)
    if is_main_process():
        from utils.evaluation.policy import summary_lines

        ctx.log(f"{metrics['policy']} on {metrics['dataset']} {metrics['split']}")
        for line in summary_lines(metrics):
            ctx.log(line)
        ctx.metrics |= headline(metrics)
        ctx.criteria |= _criteria(metrics)


def _criteria(metrics: dict[str, Any]) -> Criteria:
    """What an evaluation should be like; a policy that no stage trained may answer in any form."""
    found = {"items without an answer": judged(metrics["missing"]["count"], equal_to=0)}
    if metrics["policy"] not in UNTRAINED:
        found["answers of valid form"] = judged(metrics["format_validity"]["value"], at_least=0.9)
    if "truncation_rate" in metrics:
        found["answers cut off"] = judged(metrics["truncation_rate"]["value"], at_most=0.1)
    return found


def _questions(ctx: StageContext, checkpoint: Path | str) -> Any:
    """What a policy is asked and held against; ``checkpoint`` has its tokenizer."""
    from utils.data.records import load_records
    from utils.evaluation.policy import Questions
    from utils.evaluation.token_pass import load_reference, load_teacher
    from utils.rewards.spec import load_reward_spec

    options, config = ctx.config.options, ctx.config.model
    held_out, reference = ctx.inputs.get("held_out_levels"), ctx.inputs.get("reference")
    records = _first(load_records(ctx.inputs["records"]), ctx)
    return Questions(
        split=split_of(ctx.config),
        records=records,
        held_out_levels=read_json(held_out)["levels"] if held_out else (),
        spec=load_reward_spec(ctx.inputs["reward_spec"]),
        teacher=load_teacher(config, checkpoint) if options.teacher_metrics else None,
        reference=load_reference(config, reference, checkpoint) if reference else None,
    )


def _grade_outside(ctx: StageContext) -> dict[str, Any]:
    """Grade the predictions of a file against the split's raw file; returns the content of metrics.json."""
    from utils.data.sources import gold_records
    from utils.evaluation.metrics import compute_metrics
    from utils.evaluation.policy import write_evaluation
    from utils.grading.graded_item import grade_items
    from utils.grading.outside_predictions import read_predictions

    config, split = ctx.config, split_of(ctx.config)
    every = gold_records(config.dataset, split)
    predictions = read_predictions(ctx.inputs["predictions"], every)
    items = grade_items(ctx.progress(_first(every, ctx), description="grading"), predictions)
    metrics = compute_metrics(items, variant_of(config), split, config.dataset.hold_out_levels)
    write_evaluation(ctx.out, items, metrics)
    return metrics


def _first(records: list[Record], ctx: StageContext) -> list[Record]:
    if not records:
        raise UserError(
            f"the {split_of(ctx.config)} split has no items; prepare one with 01_prepare_dataset.py"
        )
    return records[: ctx.config.options.max_items]
