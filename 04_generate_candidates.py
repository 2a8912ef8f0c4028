"""04: sample K candidate answers per prompt from the SFT policy and score them.

    python 04_generate_candidates.py [--num_candidates 8] [--split train] [--max_items 400]

The candidates show how much a method that learns from samples has to work with, and feed preference pairs.
The audit tells, before anything is trained, how well each part of the reward ranks right answers above wrong.
"""

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from utils.frame.config import StageConfig, setting
from utils.frame.criteria import judged
from utils.frame.pipeline import DEFAULT_REWARD, RewardName
from utils.frame.stage import Stage, StageContext, main
from utils.models.settings import ModelConfig
from utils.training.inputs import (
    input_option,
    model_inputs,
    prepared_split,
    reward_spec,
    start_of,
    teacher_inputs,
)
from utils.training.limits import split_fits


@dataclass
class Options:
    """Options of 04_generate_candidates.py."""

    num_candidates: int = setting(8, "completions per prompt (K)")
    split: Literal["train", "val"] = setting("train", "whose prompts")
    max_items: int | None = setting(
        1024, "only the first prompts of the split, in the order of the seed; null for all"
    )
    reward: RewardName = setting(DEFAULT_REWARD, "which parts of the reward specification count")
    policy_ckpt: str = input_option("policy_ckpt")
    reward_spec: str = input_option("reward_spec")

    def validate(self) -> None:
        if self.num_candidates < 1:
            raise ValueError(f"num_candidates must be at least 1, found {self.num_candidates}")
        if self.max_items is not None and self.max_items < 1:
            raise ValueError(f"max_items must be at least 1, found {self.max_items}")


def inputs(config: StageConfig, run_dir: Path) -> dict[str, Path]:
    spec = reward_spec(run_dir, config)
    return {
        "records": prepared_split(run_dir, config.options.split),
        "reward_spec": spec,
        **model_inputs(start_of(config, run_dir)),
        **teacher_inputs(spec, config.model, config.options.reward),
    }


def run(ctx: StageContext) -> None:
    from utils.data.records import load_records
    from utils.frame.files import write_json, write_jsonl
    from utils.frame.processes import is_main_process
    from utils.rewards.audit.audit import audit_lines, write_audit
    from utils.rewards.spec import load_reward_spec, weights_in_force
    from utils.rollouts.candidates import sample_candidates, score_rows, summarize_candidates
    from utils.rollouts.prompt_order import prompt_order

    options = ctx.config.options
    every = load_records(ctx.inputs["records"])
    records = [every[index] for index in prompt_order(len(every), ctx.seed)[: options.max_items]]
    spec = load_reward_spec(ctx.inputs["reward_spec"])
    rows = sample_candidates(ctx, records, spec, options.num_candidates, options.reward)
    if not is_main_process():
        return
    summary = summarize_candidates(rows, options.num_candidates, ctx.seed)
    write_jsonl(ctx.out / "candidates.jsonl", rows)
    write_jsonl(ctx.out / "scores.jsonl", score_rows(rows))
    write_json(ctx.out / "summary.json", summary)
    ctx.metrics["reward_weights"] = weights_in_force(spec, options.reward)
    ctx.metrics["intrinsic_reward"] = asdict(spec.intrinsic)  # by which 02 --audit knows its scores
    for line in audit_lines(write_audit(rows, ctx.out, ctx.seed)["components"]):
        ctx.log(f"  {line}")
    ctx.metrics |= {
        key: summary[key] for key in ("prompts", "candidates", "mean_reward", "parse_rate", "accuracy")
    }
    ctx.metrics |= {f"pass@{k}": rate["value"] for k, rate in summary["pass_at_k"].items()}
    ctx.criteria["candidates that parse"] = judged(summary["parse_rate"], at_least=0.7)
    signal = judged(summary["prompts_with_signal"], at_least=0.3)
    ctx.criteria["prompts whose candidates differ in reward"] = signal
    ctx.log(
        f"{summary['candidates']} candidates of {summary['prompts']} prompts: "
        + ", ".join(f"pass@{k} {100 * rate['value']:.1f} %" for k, rate in summary["pass_at_k"].items())
        + f", {summary['distinct_per_prompt']:.1f} distinct each, parsed {100 * summary['parse_rate']:.1f} %"
    )


STAGE = Stage(
    number="04",
    folder="04_candidates",
    summary="Sample candidate answers from the SFT policy and score them.",
    reads="01_preprocessing/<split>.jsonl, 02_rewards/reward_spec.yaml, 03_sft/ckpt_sft/best, teacher",
    writes="04_candidates/: candidates.jsonl (a line per prompt, all reward components), scores.jsonl "
    "(a line per candidate), summary.json, "
    "reward_audit.{json,png}",
    tiers={"model": (ModelConfig, "configs/models/sample.yaml")},
    options=Options,
    inputs=inputs,
    several_processes=True,
    fits=partial(split_fits, lambda config: config.options.split),
    quick={"max_items": 8, "num_candidates": 8},
)

if __name__ == "__main__":
    main(STAGE, run)
