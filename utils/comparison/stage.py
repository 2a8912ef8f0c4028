"""The work of 11_compare_runs.py: what it reads, and what it writes of policies or of seeds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.comparison.evaluations import audit_files, chosen_evaluations, expand_runs, input_files
from utils.comparison.failed_policies import parse_failures
from utils.comparison.lineage import trained_policies, training_logs
from utils.comparison.page.sources import records_file
from utils.comparison.seed_runs import SeedRuns, find_seed_runs
from utils.comparison.topics.sections import AUDIT_INPUT, Compared, write_sections
from utils.evaluation.policy_names import evaluation_files
from utils.frame.config import StageConfig
from utils.frame.files import UserError
from utils.frame.stage import StageContext

FIGURE = "comparison.png"


def comparison_inputs(config: StageConfig, run_dir: Path) -> dict[str, Path]:
    """The evaluations that are compared, and the training logs of their policies where they exist."""
    options = config.options
    if options.by_seed:
        runs = seed_runs(run_dir, options)
        found, folders = runs.evaluations(), runs.folders
    else:
        found = chosen_evaluations(run_dir, options, parse_failures(options.failures))
        folders = {name: [folder] for name, folder in found.items()}
    audits = {f"{AUDIT_INPUT}{run}": path for run, path in audit_files(found.values()).items()}
    logs = training_logs(trained_policies(folders))
    return input_files(found) | logs | audits | records_file(found.values())


def seed_runs(run_dir: Path, options: Any) -> SeedRuns:
    """The runs that stage 11's options name as seeds of one experiment."""
    if options.metrics:
        raise UserError("--by_seed compares runs, which have a seed: leave out --metrics, or --by_seed")
    return find_seed_runs(run_dir, expand_runs(run_dir, options.runs), options.policies, options.failures)


def compare_policies(ctx: StageContext) -> None:
    """Compare policies as they are, each from one run."""
    from utils.comparison.changes import CHANGES, change_rows
    from utils.comparison.failed_policies import with_failed
    from utils.comparison.page.page import PAGE, write_html_report
    from utils.comparison.paired import compare_all, load_result, summary_rows
    from utils.comparison.report import conclusions, render_report
    from utils.comparison.topics.accuracy_plots import plot_comparison
    from utils.comparison.topics.levels import levels_of
    from utils.frame.files import write_csv, write_jsonl, write_text
    from utils.statistics.accuracy_tests import rate

    options = ctx.config.options
    failed = parse_failures(options.failures)
    found = chosen_evaluations(ctx.run_dir, options, failed)
    results = [load_result(name, *evaluation_files(folder)) for name, folder in found.items()]
    ctx.log(f"comparing {', '.join(result.name for result in results)}")
    pairs = compare_all(results, ctx.seed)
    shares = {result.name: rate(sum(result.correct), len(result.correct)) for result in results}
    compared = Compared(
        folders={name: [folder] for name, folder in found.items()},
        results={result.name: [result] for result in results},
        accuracies={name: (share["value"], tuple(share["ci95"])) for name, share in shares.items()},
        pairs=pairs,
        levels=levels_of(results),
    )
    sections = write_sections(ctx, compared)
    rows, columns = sections.with_columns(*summary_rows(results))
    write_csv(ctx.out / "summary.csv", *with_failed(rows, columns, failed))
    write_jsonl(ctx.out / CHANGES, change_rows(pairs))
    plot_comparison(results, ctx.out / FIGURE)
    report = render_report(results, pairs, compared.levels, FIGURE, failed, sections.text)
    write_text(ctx.out / "report.md", report)
    write_html_report(ctx.out / PAGE, report, compared.folders, [""], pairs, (rows, columns), failed=failed)
    say(ctx, rows, failed, conclusions(results, pairs))
    ctx.metrics |= {row["policy"]: {"accuracy": row["accuracy"], "n": row["n"]} for row in rows}
    ctx.metrics |= {policy: {"failed": reason} for policy, reason in failed.items()}


def compare_over_seeds(ctx: StageContext) -> None:
    """Compare the means of policies over the seeds of several runs."""
    from utils.comparison import over_seeds as seeds
    from utils.comparison.changes import CHANGES, seed_change_rows
    from utils.comparison.failed_policies import with_failed
    from utils.comparison.page.page import PAGE, write_html_report
    from utils.comparison.seed_report import render_seed_report, seed_conclusions
    from utils.comparison.topics.accuracy_plots import plot_seeds
    from utils.comparison.topics.cost import with_costs_by_run
    from utils.comparison.topics.levels import levels_of_seeds
    from utils.comparison.topics.measures import with_measures_by_run
    from utils.comparison.topics.training import with_training_by_run
    from utils.frame.files import write_csv, write_jsonl, write_text

    options = ctx.config.options
    runs = seed_runs(ctx.run_dir, options)
    named = ", ".join(f"{seed} ({run})" for seed, run in zip(runs.seeds, runs.runs, strict=True))
    ctx.log(f"comparing {', '.join(runs.folders)} over seeds {named}")
    for policy, lacking in runs.left_out.items():
        ctx.log(f"{policy} is left out: {', '.join(lacking)} did not evaluate it")
    experiment = seeds.load_experiment(runs, ctx.seed)
    pairs = seeds.compare_seeds(experiment)
    means = zip(experiment.policies, experiment.means, strict=True)
    compared = Compared(
        folders=runs.folders,
        results=experiment.results,
        accuracies={name: (mean.value, mean.ci95) for name, mean in means},
        pairs=pairs,
        levels=levels_of_seeds(experiment),
    )
    sections = write_sections(ctx, compared)
    rows, columns = sections.with_columns(*seeds.seed_summary_rows(experiment))
    write_csv(ctx.out / "summary.csv", *with_failed(rows, columns, runs.failed))
    by_seed = with_costs_by_run(*seeds.by_seed_rows(experiment), sections.costs)
    by_seed = with_measures_by_run(*with_training_by_run(*by_seed, sections.trainings), experiment.results)
    write_csv(ctx.out / "by_seed.csv", *by_seed)
    write_csv(ctx.out / "pairs.csv", *seeds.pair_rows(pairs))
    write_jsonl(ctx.out / CHANGES, seed_change_rows(experiment))
    plot_seeds(experiment, ctx.out / FIGURE)
    report = render_seed_report(
        experiment, pairs, runs, compared.levels, FIGURE, sections.costs, sections.text
    )
    write_text(ctx.out / "report.md", report)
    write_html_report(
        ctx.out / PAGE,
        report,
        runs.folders,
        [f"seed {seed}" for seed in runs.seeds],
        pairs,
        (rows, columns),
        {name: of.tolist() for name, of in zip(experiment.policies, experiment.accuracies, strict=True)},
        runs.failed,
    )
    say(ctx, rows, runs.failed, seed_conclusions(experiment, pairs))
    ctx.metrics |= {
        row["policy"]: {"accuracy": row["accuracy"], "n": row["n"], "seeds": len(runs.seeds)} for row in rows
    }
    ctx.metrics |= {policy: {"failed": reason} for policy, reason in runs.failed.items()}


def say(ctx: StageContext, rows: list[dict], failed: Mapping[str, str], conclusions: str) -> None:
    """Log every policy's accuracy with its interval, what failed, then the conclusions."""
    for row in rows:
        ends = f"{100 * row['accuracy_low']:.1f} to {100 * row['accuracy_high']:.1f}"
        ctx.log(f"  {row['policy']:<20} {100 * row['accuracy']:5.1f} % ({ends}, n = {row['n']})")
    for policy, reason in failed.items():
        ctx.log(f"  {policy:<20} failed: {reason}")
    for line in conclusions.splitlines():
        ctx.log(line.replace("**", ""))
