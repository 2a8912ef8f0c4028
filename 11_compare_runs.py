"""11: compare evaluated policies on the same items, or the manifests of two runs.

    python 11_compare_runs.py
    python 11_compare_runs.py --policies sft,grpo --runs run_001,run_002
    python 11_compare_runs.py --by_seed --runs seed_0,seed_1,seed_2 --run_id seeds
    python 11_compare_runs.py --diff run_001 run_002 [--diff_json FILE] [--output_dir DIR]

The default compares every policy that this run has evaluated. ``--by_seed`` takes the runs as seeds of one
experiment: means over seeds, and tests that count seeds as well as items. ``--diff`` only reads and prints.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from utils.cli import wants_help
from utils.common import UserError
from utils.config import StageConfig, setting
from utils.evaluation.policies import evaluation_files, find_evaluations
from utils.evaluation.seed_runs import find_seed_runs
from utils.stage import Stage, StageContext, main

FIGURE = "comparison.png"


@dataclass
class Options:
    """Options of 11_compare_runs.py."""

    policies: list[str] = setting([], "which policies; empty for all that were evaluated")
    runs: list[str] = setting([], "run ids beside this run's folder, or folders; empty for this run")
    by_seed: bool = setting(False, "take the runs as seeds of one experiment")
    diff_json: str = setting("", "with --diff: also write the differences to this file", path=True)


def inputs(config: StageConfig, run_dir: Path) -> dict[str, Path]:
    options = config.options
    if options.by_seed:
        found = find_seed_runs(run_dir, options.runs, options.policies).evaluations()
    else:
        found = find_evaluations(run_dir, options.runs, options.policies)
    return {
        f"{name}:{path.name}": path for name, folder in found.items() for path in evaluation_files(folder)
    }


def run(ctx: StageContext) -> None:
    options = ctx.config.options
    if options.diff_json:
        raise UserError("--diff_json goes with --diff RUN_A RUN_B")
    if options.by_seed:
        compare_over_seeds(ctx)
    else:
        compare_policies(ctx)


def compare_policies(ctx: StageContext) -> None:
    """Compare policies as they are, each from one run."""
    from utils.common import write_csv, write_text
    from utils.evaluation.comparison import compare_all, load_result, summary_rows
    from utils.evaluation.plots import plot_comparison
    from utils.evaluation.report import conclusions, render_report

    options = ctx.config.options
    found = find_evaluations(ctx.run_dir, options.runs, options.policies)
    results = [load_result(name, *evaluation_files(folder)) for name, folder in found.items()]
    ctx.log(f"comparing {', '.join(result.name for result in results)}")
    pairs = compare_all(results, ctx.seed)
    rows, columns = summary_rows(results)
    write_csv(ctx.out / "summary.csv", rows, columns)
    plot_comparison(results, ctx.out / FIGURE)
    write_text(ctx.out / "report.md", render_report(results, pairs, FIGURE))
    say(ctx, rows, conclusions(results, pairs))
    ctx.metrics |= {row["policy"]: {"accuracy": row["accuracy"], "n": row["n"]} for row in rows}


def compare_over_seeds(ctx: StageContext) -> None:
    """Compare the means of policies over the seeds of several runs."""
    from utils.common import write_csv, write_text
    from utils.evaluation import seeds
    from utils.evaluation.plots import plot_seeds
    from utils.evaluation.seed_report import render_seed_report, seed_conclusions

    runs = find_seed_runs(ctx.run_dir, ctx.config.options.runs, ctx.config.options.policies)
    named = ", ".join(f"{seed} ({run})" for seed, run in zip(runs.seeds, runs.runs, strict=True))
    ctx.log(f"comparing {', '.join(runs.folders)} over seeds {named}")
    for policy, lacking in runs.left_out.items():
        ctx.log(f"{policy} is left out: {', '.join(lacking)} did not evaluate it")
    experiment = seeds.load_experiment(runs, ctx.seed)
    pairs = seeds.compare_seeds(experiment)
    rows, columns = seeds.seed_summary_rows(experiment)
    write_csv(ctx.out / "summary.csv", rows, columns)
    write_csv(ctx.out / "by_seed.csv", *seeds.by_seed_rows(experiment))
    write_csv(ctx.out / "pairs.csv", *seeds.pair_rows(pairs))
    plot_seeds(experiment, ctx.out / FIGURE)
    write_text(ctx.out / "report.md", render_seed_report(experiment, pairs, runs, FIGURE))
    say(ctx, rows, seed_conclusions(experiment, pairs))
    ctx.metrics |= {
        row["policy"]: {"accuracy": row["accuracy"], "n": row["n"], "seeds": len(runs.seeds)} for row in rows
    }


def say(ctx: StageContext, rows: list[dict], conclusions: str) -> None:
    """Log every policy's accuracy with its interval, then the conclusions."""
    for row in rows:
        ends = f"{100 * row['accuracy_low']:.1f} to {100 * row['accuracy_high']:.1f}"
        ctx.log(f"  {row['policy']:<20} {100 * row['accuracy']:5.1f} % ({ends}, n = {row['n']})")
    for line in conclusions.splitlines():
        ctx.log(line.replace("**", ""))


STAGE = Stage(
    number="11",
    folder="11_comparison",
    summary="Compare evaluated policies on the same items. With --diff RUN_A RUN_B [--diff_json FILE]: print "
    "what differs between the manifests of two runs, most consequential first, and write nothing else.",
    reads="10_evaluation/<policy>/{metrics.json,breakdown.csv} of this run, or of --runs",
    writes="11_comparison/: summary.csv, comparison.png, report.md; "
    "with --by_seed also by_seed.csv, pairs.csv",
    tiers={},
    options=Options,
    inputs=inputs,
)

if __name__ == "__main__":
    if "--diff" in sys.argv and not wants_help(sys.argv):
        from utils.evaluation.manifest_diff import diff_command

        sys.exit(diff_command(STAGE, sys.argv[1:]))
    main(STAGE, run)
