"""Folders of runs as finished stages leave them, written by hand: manifests, evaluations, counts, logs."""

from tests.support.policy_results import LEVELS, answers, result
from tests.support.scripts import execute_stage
from utils.comparison.lineage import trained_policies
from utils.comparison.topics.timing import PHASES
from utils.frame.files import dump_json, write_csv, write_json, write_jsonl
from utils.frame.manifest import describe_outputs


def write_stage(run, stage, seed, inputs=(), config=None, write=None, **more):
    """A finished stage with a manifest; ``inputs`` are names, hashed by themselves unless (name, hash)."""
    folder = run / stage
    folder.mkdir(parents=True)
    if write:
        write(folder)
    named = dict(item if isinstance(item, tuple) else (item, item) for item in inputs)
    manifest = {
        "run_id": run.name,
        "schema_version": 1,
        "stage": stage.split("/")[0],
        "variant": "",
        "seed": seed,
        "config": {"options": {"policy_ckpt": "", "predictions": ""}} | (config or {}),
        "inputs": {name: {"sha256": sha, "bytes": 1} for name, sha in named.items()},
        "outputs": describe_outputs(folder, run),
        "metrics": {},
        "environment": {"git_commit": "a"},
    }
    write_json(folder / "manifest.json", manifest | more)


def write_run(folder, seed, right, raw="raw-1", training=(("lr", 1),), evaluation=None, **more):
    """A run: raw data, SFT, and evaluations of the policies that ``right`` gives the right answers of."""
    write_stage(folder, "00_data_validation", seed, inputs=[("datasets/other.json", f"unused-{seed}")])
    write_stage(folder, "01_preprocessing", seed, inputs=[("datasets/x.json", raw)])
    write_stage(
        folder,
        "03_sft",
        seed,
        inputs=["01_preprocessing/train.jsonl"],
        config={"algo": dict(training)},
    )
    for policy in right:
        weights = ("assets/student", "w") if policy == "base" else ("03_sft/ckpt_sft/best", f"w{folder.name}")
        write_stage(
            folder,
            f"10_evaluation/{policy}",
            seed,
            inputs=["01_preprocessing/test.jsonl", weights],
            config=evaluation,
            write=lambda out, policy=policy: write_evaluation(out, policy, right[policy]),
            **more,
        )


def pretend_finished(folder, *names, **more):
    """A stage folder with these files (made empty where absent); its manifest lists them and has ``more``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    run_dir = folder.parent
    manifest = {"stage": folder.name, "outputs": describe_outputs(folder, run_dir), **more}
    (folder / "manifest.json").write_text(dump_json(manifest))


KEYS = ("sampled_completions", "generated_tokens", "trained_tokens")

RIGHT = {"base": 0, "sft": 20, "ppo": 45, "grpo": 40, "dpo": 30}

STAGE_OF = {"sft": "03_sft", "ppo": "05_ppo", "grpo": "06_grpo", "dpo": "09_dpo"}

# Stage: what it reads, its counts for seed 0, its seconds by phase and in all.
STAGES = {
    "03_sft": (["01_preprocessing/train.jsonl"], (0, 0, 500), (0.0, 0.0, 40.0), 50.0),
    "04_candidates": (["03_sft/ckpt_sft/best"], (64, 1300, 0), (9.0, 1.0, 0.0), 12.0),
    "05_ppo": (["03_sft/ckpt_sft/best"], (64, 1200, 4800), (8.0, 10.0, 20.0), 45.0),
    "06_grpo": (["03_sft/ckpt_sft/best"], (64, 1250, 1250), (8.5, 5.0, 10.0), 30.0),
    "08_preferences": (["04_candidates/candidates.jsonl"], None, None, 2.0),
    "09_dpo": (["08_preferences/pairs.jsonl", "03_sft/ckpt_sft/best"], (0, 0, 700), (0.0, 3.0, 6.0), 15.0),
}


def log_of(stage, seed):
    """Validations of a stage: x sampled by step, as the trainers log them, among rows of training."""
    sampled = stage[:2] in ("05", "06")
    for step, share in ((0, 0.3), (8, 0.5 + 0.05 * seed), (16, 0.6 + 0.1 * seed)):
        row = {"step": step, "val_reward": share - 0.1, "val_accuracy": share}
        yield row | ({"sampled_completions": 4 * step} if sampled else {})
        yield {"step": step + 1, "loss": 0.1, "sampled_completions": 999}


def write_evaluation(folder, policy, right):
    """metrics.json and breakdown.csv of a policy that has ``right`` of 60 items right."""
    scored = result(policy, answers(right), LEVELS)
    write_json(folder / "metrics.json", scored.metrics)
    rows = scored.items.astype({"correct": int}).reset_index(names="id")
    write_csv(folder / "breakdown.csv", rows.to_dict("records"), list(rows))


def write_methods(run, seed, policies=tuple(RIGHT), counts=None, runtime=True):
    """A finished run of several methods; ``counts`` replaces the counts of stages (None: has none)."""
    write_stage(run, "01_preprocessing", seed, inputs=["datasets/x.json"])
    for stage, (inputs, cost, phases, seconds) in STAGES.items():
        cost = (counts or {}).get(stage, cost and [cost[0], cost[1] + seed, cost[2] + 10 * seed])

        def logs(folder, stage=stage):
            if stage in STAGE_OF.values():
                write_jsonl(folder / "logs" / "metrics.jsonl", log_of(stage, seed))

        metrics = {"cost": dict(zip(KEYS, cost, strict=True))} if cost else {}
        hashed = [(name, f"{name}-{seed}" if name[:2] != "01" else name) for name in inputs]
        write_stage(run, stage, seed, inputs=hashed, write=logs, metrics=metrics)
        if runtime:
            split = {"seconds_by_phase": dict(zip(PHASES, phases, strict=True))} if phases else {}
            write_json(run / stage / "runtime.json", {"seconds": seconds + seed, "sessions": ["a"]} | split)
    for policy in policies:
        best = (
            (f"{STAGE_OF[policy]}/ckpt_{policy}/best", f"{policy}-{seed}") if policy != "base" else "assets/x"
        )
        write_stage(
            run,
            f"10_evaluation/{policy}",
            seed,
            inputs=["01_preprocessing/test.jsonl", best],
            write=lambda folder, policy=policy: write_evaluation(folder, policy, RIGHT[policy] + seed),
        )
    return run


def folders_in(*runs, policies=tuple(RIGHT)):
    return {name: [run / "10_evaluation" / name for run in runs] for name in policies}


def trained(*runs, policies=tuple(RIGHT)):
    return trained_policies(folders_in(*runs, policies=policies))


def compare_methods(outputs, *more, seeds=True):
    over = ["--runs", "s0,s1,s2", "--by_seed", "--run_id", "seeds"] if seeds else ["--run_id", "s0"]
    return execute_stage("11_compare_runs.py", ["--outputs_root", str(outputs), *over, *more])
