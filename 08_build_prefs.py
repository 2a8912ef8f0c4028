"""08: set the candidates of each prompt against each other, for DPO.

    python 08_build_prefs.py [--reward combined|task|intrinsic] [--pairs_per_prompt 4] [--min_margin 0]

Pairs are made by the rules of configs/algorithms/preferences.yaml from what 04 sampled. Some prompts are held
out with all their pairs, to measure preference accuracy on.
"""

from dataclasses import dataclass
from pathlib import Path

from utils.frame.config import StageConfig, setting
from utils.frame.pipeline import DEFAULT_REWARD, RewardName
from utils.frame.stage import Stage, StageContext, main
from utils.methods.dpo.settings import PreferencesAlgo
from utils.models.settings import ModelConfig
from utils.training.inputs import (
    candidates_file,
    input_option,
    model_inputs,
    prepared_split,
    reward_spec,
    start_of,
    start_path,
    teacher_inputs,
    variant,
)


@dataclass
class Options:
    """Options of 08_build_prefs.py."""

    reward: RewardName = setting(
        DEFAULT_REWARD,
        "which parts of the candidates' rewards count; a folder 08_preferences_<reward> for others",
    )
    candidates: str = input_option("candidates")
    policy_ckpt: str = input_option("policy_ckpt")
    reward_spec: str = input_option("reward_spec")


def inputs(config: StageConfig, run_dir: Path) -> dict[str, Path]:
    # The teacher is asked for demonstrations alone: candidates have been scored by 04.
    spec = reward_spec(run_dir, config)
    teacher = teacher_inputs(spec, config.model, config.options.reward) if config.algo.gold_as_chosen else {}
    return {
        "candidates": candidates_file(config, run_dir),
        "train": prepared_split(run_dir, "train"),
        "reward_spec": spec,
        **model_inputs(start_of(config, run_dir)),
        **teacher,
    }


def run(ctx: StageContext) -> None:
    from utils.data.records import load_records
    from utils.frame.files import write_jsonl, write_text
    from utils.methods.dpo.pairs import build_preferences, gold_answers, rules_in_force
    from utils.methods.dpo.pairs_report import describe, length_warning, pair_criteria, plot_margins
    from utils.methods.dpo.sampled import load_sampled
    from utils.models.loading import load_tokenizer
    from utils.rewards.spec import load_reward_spec, paid_weights, weights_in_force
    from utils.rollouts.reward_state import close_pipeline, open_pipeline

    algo, model, reward = ctx.config.algo, ctx.config.model, ctx.config.options.reward
    spec = load_reward_spec(ctx.inputs["reward_spec"])
    rows = load_sampled(ctx.inputs["candidates"], spec, reward)
    golds = [None] * len(rows)
    if algo.gold_as_chosen:
        record_of = {record.id: record for record in load_records(ctx.inputs["train"])}
        records = [record_of[row["id"]] for row in rows]
        tokenizer = load_tokenizer(start_path(ctx), model.model)
        pipeline = open_pipeline(records, spec, reward, model, tokenizer)
        limit, prompts = model.generation.max_new_tokens, [row["prompt"] for row in rows]
        golds = gold_answers(records, prompts, spec, pipeline, tokenizer, limit, ctx.progress)
        close_pipeline(ctx, pipeline)
    found = build_preferences(rows, golds, algo, spec, reward, ctx.seed, ctx.progress)
    write_jsonl(ctx.out / "pairs.jsonl", (pair.row() for pair in found.train))
    write_jsonl(ctx.out / "val_pairs.jsonl", (pair.row() for pair in found.held_out))
    pairs, rules = [*found.train, *found.held_out], rules_in_force(algo.rules, paid_weights(spec, reward))
    write_text(ctx.out / "stats.txt", describe(found, reward, rules, algo))
    plot_margins(ctx.out / "margins.png", pairs, algo.min_margin)
    ctx.metrics |= {
        "pairs": len(found.train),
        "held_out_pairs": len(found.held_out),
        "prompts": len(rows),
        "prompts_with_pairs": sum(bool(each.pairs) for each in found.prompts),
        "prompts_without": found.reasons,
    }
    ctx.metrics["reward_weights"] = weights_in_force(spec, reward)
    ctx.criteria |= pair_criteria(found, len(rows))
    if warning := length_warning(pairs):
        ctx.log(f"warning: {warning}")
    ctx.log(
        f"{len(found.train)} pairs to train on, {len(found.held_out)} held out; "
        f"{ctx.metrics['prompts_with_pairs']} of {len(rows)} prompts have pairs, the others: "
        + (", ".join(f"{count} {reason}" for reason, count in found.reasons.items()) or "none")
    )


STAGE = Stage(
    number="08",
    folder="08_preferences",
    summary="Build preference pairs from the candidates.",
    reads="04_candidates/candidates.jsonl, 01_preprocessing/train.jsonl, 02_rewards/reward_spec.yaml, the "
    "tokenizer of 03_sft/ckpt_sft/best; the teacher with gold_as_chosen",
    writes="08_preferences/: pairs.jsonl, val_pairs.jsonl, stats.txt, margins.png",
    tiers={
        "model": (ModelConfig, "configs/models/sample.yaml"),
        "algo": (PreferencesAlgo, "configs/algorithms/preferences.yaml"),
    },
    options=Options,
    inputs=inputs,
    variant=variant,
    quick={"algo.min_pairs": 1, "algo.val_fraction": 0.25, "algo.gold_as_chosen": True},
)

if __name__ == "__main__":
    main(STAGE, run)
