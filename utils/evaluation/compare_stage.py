"""The work of 11_compare_runs.py: what it reads, and what it writes of policies or of seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.config import StageConfig
from utils.evaluation.failed import parse_failures
from utils.evaluation.policies import evaluation_files, find_evaluations
from utils.evaluation.seed_runs import find_seed_runs
from utils.evaluation.trained import trained_policies, training_logs
from utils.stage import StageContext

FIGURE = "comparison.png"


def comparison_inputs(config: StageConfig, run_dir: Path) -> dict[str, Path]:
    """The evaluations that are compared, and the training logs of their policies where they exist."""
    options = config.options
    if options.by_seed:
        runs = find_seed_runs(run_dir, options.runs, options.policies, options.failures)
        found, folders = runs.evaluations(), runs.folders
    else:
        found = find_evaluations(run_dir, options.runs, options.policies, parse_failures(options.failures))
        folders = {name: [folder] for name, folder in found.items()}
    files = {
        f"{name}:{path.name}": path for name, folder in found.items() for path in evaluation_files(folder)
    }
    return files | training_logs(trained_policies(folders))


def compare_policies(ctx: StageContext) -> None:
    """Compare policies as they are, each from one run."""
    from utils.common import write_csv, write_text
    from utils.evaluation.comparison import compare_all, load_result, summary_rows
    from utils.evaluation.cost import with_costs
    from utils.evaluation.failed import with_failed
    from utils.evaluation.plots import plot_comparison
    from utils.evaluation.report import conclusions, render_report
    from utils.evaluation.statistics import rate

    options = ctx.config.options
    failed = parse_failures(options.failures)
    found = find_evaluations(ctx.run_dir, options.runs, options.policies, failed)
    results = [load_result(name, *evaluation_files(folder)) for name, folder in found.items()]
    ctx.log(f"comparing {', '.join(result.name for result in results)}")
    pairs = compare_all(results, ctx.seed)
    shares = {result.name: rate(sum(result.correct), len(result.correct)) for result in results}
    accuracies = {name: (share["value"], tuple(share["ci95"])) for name, share in shares.items()}
    ids = {result.name: result.ids for result in results}
    costs, section = write_costs(ctx, {name: [folder] for name, folder in found.items()}, accuracies, ids)
    rows, columns = summary_rows(results)
    write_csv(ctx.out / "summary.csv", *with_failed(*with_costs(rows, columns, costs), failed))
    plot_comparison(results, ctx.out / FIGURE)
    write_text(ctx.out / "report.md", render_report(results, pairs, FIGURE, failed, section))
    say(ctx, rows, failed, conclusions(results, pairs))
    ctx.metrics |= {row["policy"]: {"accuracy": row["accuracy"], "n": row["n"]} for row in rows}
    ctx.metrics |= {policy: {"failed": reason} for policy, reason in failed.items()}


def compare_over_seeds(ctx: StageContext) -> None:
    """Compare the means of policies over the seeds of several runs."""
    from utils.common import write_csv, write_text
    from utils.evaluation import seeds
    from utils.evaluation.cost import with_costs, with_costs_by_run
    from utils.evaluation.failed import with_failed
    from utils.evaluation.plots import plot_seeds
    from utils.evaluation.seed_report import render_seed_report, seed_conclusions

    options = ctx.config.options
    runs = find_seed_runs(ctx.run_dir, options.runs, options.policies, options.failures)
    named = ", ".join(f"{seed} ({run})" for seed, run in zip(runs.seeds, runs.runs, strict=True))
    ctx.log(f"comparing {', '.join(runs.folders)} over seeds {named}")
    for policy, lacking in runs.left_out.items():
        ctx.log(f"{policy} is left out: {', '.join(lacking)} did not evaluate it")
    experiment = seeds.load_experiment(runs, ctx.seed)
    pairs = seeds.compare_seeds(experiment)
    means = zip(experiment.policies, experiment.means, strict=True)
    accuracies = {name: (mean.value, mean.ci95) for name, mean in means}
    ids = {name: results[0].ids for name, results in experiment.results.items()}
    costs, section = write_costs(ctx, runs.folders, accuracies, ids)
    rows, columns = seeds.seed_summary_rows(experiment)
    write_csv(ctx.out / "summary.csv", *with_failed(*with_costs(rows, columns, costs), runs.failed))
    write_csv(ctx.out / "by_seed.csv", *with_costs_by_run(*seeds.by_seed_rows(experiment), costs))
    write_csv(ctx.out / "pairs.csv", *seeds.pair_rows(pairs))
    plot_seeds(experiment, ctx.out / FIGURE)
    report = render_seed_report(experiment, pairs, runs, FIGURE, costs, section)
    write_text(ctx.out / "report.md", report)
    say(ctx, rows, runs.failed, seed_conclusions(experiment, pairs))
    ctx.metrics |= {
        row["policy"]: {"accuracy": row["accuracy"], "n": row["n"], "seeds": len(runs.seeds)} for row in rows
    }
    ctx.metrics |= {policy: {"failed": reason} for policy, reason in runs.failed.items()}


def write_costs(
    ctx: StageContext,
    folders: Mapping[str, Sequence[Path]],
    accuracies: Mapping[str, tuple[float, tuple[float, float]]],
    ids: Mapping[str, Sequence[str]],
) -> tuple[dict[str, list[Any]], str]:
    """Write curves, efficiency and timing of the compared policies.

    Args:
        folders: policy -> folder 10_evaluation/<policy> of each run.
        accuracies: policy -> accuracy with its 95 % interval.
        ids: policy -> ids of its test items.

    Returns:
        Policy -> cost in each run, and the report's sections on them.
    """
    from utils.common import write_csv, write_text
    from utils.evaluation import cost_plots, timing
    from utils.evaluation.cost import costs_of, mean_count
    from utils.evaluation.cost_report import CURVES, EFFICIENCY, TIMING, cost_section
    from utils.evaluation.curves import COLUMNS, curve_rows, read_curves

    trained = trained_policies(folders)
    costs, times = costs_of(trained), timing.times_of(trained)
    sft = [name for name, of_policy in trained.items() if of_policy[0].is_sft]
    figures = []
    curves, left_out = read_curves(trained)
    if any(curve.kind != "level" for curve in curves):
        figures.append(CURVES)
        cost_plots.plot_curves(curves, list(accuracies), ctx.out / CURVES)
    write_csv(ctx.out / "curves.csv", curve_rows(curves, trained), COLUMNS)
    others = [name for name in trained if name not in sft]
    if any(mean_count(costs[name], "trained_tokens") is not None for name in others):
        figures.append(EFFICIENCY)
        cost_plots.plot_efficiency(accuracies, costs, sft, ctx.out / EFFICIENCY)
    timed = any(timing.mean_seconds(times[name], "total") is not None for name in others)
    if timed:
        cost_plots.plot_timing(accuracies, times, sft, ctx.out / "timing.png")
    write_csv(ctx.out / "timing.csv", timing.timing_rows(trained, times), timing.COLUMNS)
    write_text(ctx.out / TIMING, timing.render_timing(trained, times, "timing.png" if timed else ""))
    return costs, cost_section(trained, costs, ids, curves, left_out, figures)


def say(ctx: StageContext, rows: list[dict], failed: Mapping[str, str], conclusions: str) -> None:
    """Log every policy's accuracy with its interval, what failed, then the conclusions."""
    for row in rows:
        ends = f"{100 * row['accuracy_low']:.1f} to {100 * row['accuracy_high']:.1f}"
        ctx.log(f"  {row['policy']:<20} {100 * row['accuracy']:5.1f} % ({ends}, n = {row['n']})")
    for policy, reason in failed.items():
        ctx.log(f"  {policy:<20} failed: {reason}")
    for line in conclusions.splitlines():
        ctx.log(line.replace("**", ""))
