"""The work of 11_compare_runs.py: what it reads, and what it writes of policies or of seeds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.comparison.answer_files import records_file
from utils.comparison.evaluations import (
    audit_files,
    chosen_evaluations,
    expand_runs,
    files_of_others,
    input_files,
)
from utils.comparison.failed_policies import failed_policies
from utils.comparison.lineage import trained_policies, training_logs
from utils.comparison.seed_runs import SeedRuns, find_seed_runs
from utils.evaluation.policy_names import evaluation_files
from utils.frame.config import StageConfig
from utils.frame.criteria import in_words, judged, verdict
from utils.frame.failures import FAILED
from utils.frame.files import UserError
from utils.frame.stage import StageContext

if TYPE_CHECKING:  # the driver imports this to see what stage 11 would read
    from utils.comparison.topic import Comparison

AUDIT_INPUT = "reward audit of "  # then the run: how the stage's inputs name one
OTHERS_INPUT = "results of "  # then the name that they are compared by
OTHERS = "results_of_others"  # folder of what was made of them


def comparison_inputs(config: StageConfig, run_dir: Path) -> dict[str, Path]:
    """The evaluations that are compared, and the training logs of their policies where they exist."""
    options = config.options
    failed = failed_policies(run_dir, options)
    if options.by_seed:
        runs = seed_runs(run_dir, options)
        found, folders = runs.evaluations(), runs.folders
    else:
        found = chosen_evaluations(run_dir, options, failed)
        folders = {name: [folder] for name, folder in found.items()}
    audits = {f"{AUDIT_INPUT}{run}": path for run, path in audit_files(found.values()).items()}
    logs = training_logs(trained_policies(folders))
    failures = {"failures": run_dir / FAILED} if failed else {}
    others = {f"{OTHERS_INPUT}{name}": path for name, path in files_of_others(options.results).items()}
    return input_files(found) | logs | audits | records_file(found.values()) | failures | others


def seed_runs(run_dir: Path, options: Any) -> SeedRuns:
    """The runs that stage 11's options name as seeds of one experiment."""
    if options.metrics or options.results:
        option = "--metrics" if options.metrics else "--results"
        raise UserError(f"--by_seed compares runs, which have a seed: leave out {option}, or --by_seed")
    failed = failed_policies(run_dir, options)
    return find_seed_runs(run_dir, expand_runs(run_dir, options.runs), options.policies, failed)


def compare(ctx: StageContext) -> None:
    """Compare policies as they are, or with ``by_seed`` their means over the seeds of several runs."""
    from utils.comparison.experiment_facts import experiment_facts
    from utils.comparison.failed_policies import with_failed
    from utils.comparison.page.page import PAGE, write_page
    from utils.comparison.report import conclusion_lines, report_of, summary_table, table_by_run
    from utils.comparison.summary_files import summary_of, with_names
    from utils.comparison.topic import topics_of
    from utils.frame.files import write_csv, write_json, write_text

    comparison = _means_over_seeds(ctx) if ctx.config.options.by_seed else _policies(ctx)
    topics = topics_of(comparison, ctx.progress)
    files = [file for topic in topics.values() for file in topic.files.items()]
    for name, write in ctx.progress(files, description="figures and tables"):
        write(ctx.out / name)
    rows, columns = summary_table(topics)
    table = with_names(*with_failed(rows, columns, comparison.failed), comparison)
    write_csv(ctx.out / "summary.csv", *table)
    if comparison.experiment:
        write_csv(ctx.out / "by_seed.csv", *table_by_run(topics))
    facts = experiment_facts(comparison)
    report = report_of(comparison, topics, facts)
    conclusions = conclusion_lines(report.lead[-1])
    write_json(ctx.out / "summary.json", summary_of(comparison, table[0], facts, conclusions))
    write_text(ctx.out / "report.md", report.markdown())
    write_page(ctx.out / PAGE, report, comparison, facts, (rows, columns), ctx.progress)
    for line in facts.lines():
        ctx.log(line)
    _say(ctx, comparison, conclusions)
    _say_criteria(ctx, comparison)
    for name, share in comparison.accuracies.items():
        seeds = {"seeds": comparison.runs} if comparison.experiment else {}
        ctx.metrics[name] = {"accuracy": share.value, "n": share.n} | seeds
    ctx.metrics |= {policy: {"failed": reason} for policy, reason in comparison.failed.items()}


def _say_criteria(ctx: StageContext, comparison: Comparison) -> None:
    """Log how many acceptance criteria of the runs' stages are met, and those that are not; they go into the
    manifest as one of this stage's own.
    """
    from utils.comparison.topics.acceptance_criteria import criteria_of

    found = criteria_of(comparison)
    failed = [each for each in found if not each[-1]["passed"]]
    if found:
        ctx.log(f"acceptance criteria of the stages: {len(found) - len(failed)} of {len(found)} met")
    for run, stage, name, each in failed:
        ctx.log(f"  [{verdict(each)}] {run}/{stage}: {name}: {in_words(each)}")
    ctx.criteria["policies that failed"] = judged(len(comparison.failed), equal_to=0)


def _policies(ctx: StageContext) -> Comparison:
    """Policies as they are, each from one run."""
    from utils.comparison.paired import compare_all, load_result
    from utils.comparison.results_of_others import write_others
    from utils.comparison.topic import Comparison

    options = ctx.config.options
    failed = failed_policies(ctx.run_dir, options)
    found = chosen_evaluations(ctx.run_dir, options, failed)
    results = [load_result(name, *evaluation_files(folder)) for name, folder in found.items()]
    if options.results:
        files = files_of_others(options.results)
        if twice := sorted(files.keys() & found.keys()):
            raise UserError(
                f"--results: there is another policy '{twice[0]}'; give the file a name, as NAME=FILE"
            )
        others = write_others(ctx.out / OTHERS, files, options.results_metric, results)
        results += [load_result(name, *evaluation_files(folder)) for name, folder in others.items()]
        found |= others
    ctx.log(f"comparing {', '.join(found)}")
    return Comparison(
        folders={name: [folder] for name, folder in found.items()},
        results={result.name: [result] for result in results},
        accuracies={result.name: result.accuracy for result in results},
        pairs=compare_all(results, ctx.seed, options.looks, ctx.progress),
        failed=failed,
        **_of_both(ctx),
    )


def _means_over_seeds(ctx: StageContext) -> Comparison:
    """The means of policies over the seeds of several runs."""
    from utils.comparison.over_seeds import compare_seeds, load_experiment
    from utils.comparison.topic import Comparison

    runs = seed_runs(ctx.run_dir, ctx.config.options)
    named = ", ".join(f"{seed} ({run})" for seed, run in zip(runs.seeds, runs.runs, strict=True))
    ctx.log(f"comparing {', '.join(runs.folders)} over seeds {named}")
    for policy, lacking in runs.left_out.items():
        ctx.log(f"{policy} is left out: {', '.join(lacking)} did not evaluate it")
    experiment = load_experiment(runs, ctx.seed)
    return Comparison(
        folders=runs.folders,
        results=experiment.results,
        accuracies=dict(zip(experiment.policies, experiment.means, strict=True)),
        pairs=compare_seeds(experiment, ctx.config.options.looks, ctx.progress),
        failed=runs.failed,
        experiment=experiment,
        seed_runs=runs,
        **_of_both(ctx),
    )


def _of_both(ctx: StageContext) -> dict[str, Any]:
    """What a comparison of either kind is given besides its policies."""
    audits = {name: path for name, path in ctx.inputs.items() if name.startswith(AUDIT_INPUT)}
    return {
        "audits": {name.removeprefix(AUDIT_INPUT): path for name, path in audits.items()},
        "efficiency_fraction": ctx.config.options.efficiency_fraction,
        "looks": ctx.config.options.looks,
    }


def _say(ctx: StageContext, comparison: Comparison, conclusions: list[str]) -> None:
    """Log what is to be known first, every accuracy with its interval, what failed, then the conclusions."""
    from utils.comparison.caveats import caveats

    first = len(caveats(comparison))
    for line in conclusions[:first]:
        ctx.log(line)
    for name, share in comparison.accuracies.items():
        ends = " to ".join(f"{100 * end:.1f}" for end in share.ci95)
        ctx.log(f"  {name:<20} {100 * share.value:5.1f} % ({ends}, n = {share.n})")
    if comparison.clusters:
        ctx.log(f"  intervals and tests count the {comparison.clusters} reports that the items come from")
    for policy, reason in comparison.failed.items():
        ctx.log(f"  {policy:<20} failed: {reason}")
    for line in conclusions[first:]:
        ctx.log(line)
