"""11: compare evaluated policies on the same items, or the manifests of two runs.

    python 11_compare_runs.py
    python 11_compare_runs.py --policies sft,grpo --runs run_001,run_002
    python 11_compare_runs.py --runs 'sweep_*' --run_id sweep
    python 11_compare_runs.py outputs/run_*/10_evaluation/*/metrics.json ../theirs/run_003 [--run_id all]
    python 11_compare_runs.py --results a=samples_gsm8k_a.jsonl,b=samples_gsm8k_b.jsonl
    python 11_compare_runs.py --by_seed --runs seed_0,seed_1,seed_2 --run_id seeds
    python 11_compare_runs.py --diff run_001 run_002 [--diff_json FILE] [--outputs_root DIR]

The default compares every policy that this run has evaluated. ``--by_seed`` takes the runs as seeds of one
experiment: means over seeds, and tests that count seeds as well as items. ``--diff`` only reads and prints.
"""

import sys
from dataclasses import dataclass

from utils.comparison.stage import compare, comparison_inputs
from utils.frame.command_line import wants_help
from utils.frame.config import setting
from utils.frame.files import UserError
from utils.frame.stage import Stage, StageContext, main


@dataclass
class Options:
    """Options of 11_compare_runs.py."""

    policies: list[str] = setting([], "which policies; empty for all that were evaluated")
    runs: list[str] = setting(
        [], "run ids beside this run's folder, folders, or quoted globs of either; empty for this run"
    )
    metrics: list[str] = setting(
        [],
        "metrics.json files of 10, their folders, runs, or globs, also without --metrics; compared with what "
        "--runs and --policies name, if any",
    )
    results: list[str] = setting(
        [], "results of others, FILE or NAME=FILE: CSV with id,correct, lm-eval samples, Inspect logs"
    )
    results_metric: str = setting(
        "", "which metric or scorer of theirs says who is right; with a filter: exact_match,strict-match"
    )
    by_seed: bool = setting(False, "take the runs as seeds of one experiment")
    efficiency_fraction: float = setting(
        0.9, "sample efficiency: completions to this fraction of the best mean validation accuracy"
    )
    looks: int = setting(
        1, "how often these policies are compared while results come in; corrected p-values are times it"
    )
    diff_json: str = setting("", "with --diff: also write the differences to this file", path=True)

    def validate(self) -> None:
        if self.looks < 1:
            raise ValueError(f"looks must be at least 1, found {self.looks}")
        if not 0 < self.efficiency_fraction <= 1:
            raise ValueError(
                f"efficiency_fraction must be above 0 and at most 1, found {self.efficiency_fraction}"
            )


def run(ctx: StageContext) -> None:
    if ctx.config.options.diff_json:
        raise UserError("--diff_json goes with --diff RUN_A RUN_B")
    compare(ctx)


STAGE = Stage(
    number="11",
    folder="11_comparison",
    summary="Compare evaluated policies on the same items. With --diff RUN_A RUN_B [--diff_json FILE]: print "
    "what differs between the manifests of two runs, most consequential first, and write nothing else.",
    reads="10_evaluation/<policy>/{metrics.json,breakdown.csv,samples/} of this run, --runs or --metrics; of "
    "the stages that trained them manifest.json, runtime.json, logs/metrics.jsonl and the reward audit; "
    "failed.json, where the driver noted what failed; --results files of others",
    writes="11_comparison/: report.{html,md}, summary.{csv,json}, changes.jsonl, curves.csv, "
    "timing.{csv,md}, {comparison,level_heatmap,curves,timing}.png, plots/{efficiency_vs_quality,"
    "reward_vs_method}.png, and frontier.png, reward_audit.png and curriculum.png where there is something "
    "to draw; pairs.csv; with --by_seed also by_seed.csv",
    tiers={},
    options=Options,
    inputs=comparison_inputs,
    plain="metrics",
)

if __name__ == "__main__":
    if "--diff" in sys.argv and not wants_help(sys.argv):
        from utils.comparison.manifest_diff import diff_command

        sys.exit(diff_command(STAGE, sys.argv[1:]))
    main(STAGE, run)
