"""12: run methods from raw data to their comparison: what is missing runs, what is up to date is skipped.

python 12_driver.py --method ppo
python 12_driver.py --method all --seeds 0 1 2
python 12_driver.py --method grpo rloo dpo --reward task --completions 4096 --run_id short
python 12_driver.py --method distill --curriculum all --seeds 0 1 2
python 12_driver.py --method grpo --run_id mu2 --grpo.num_iterations 2 --sft.num_train_epochs 1
python 12_driver.py --method ppo --accelerate_config configs/accelerate/ddp.yaml --num_processes 2
python 12_driver.py --method all --seeds 0 1 2 --export_plan plan.json
python 12_driver.py --method grpo --dataset_config configs/datasets/gsm8k.yaml --config configs/models/X.yaml
"""

import signal
import sys
import textwrap

from utils.driver.budget import check_budgets, set_completions
from utils.driver.command import parse, without_export
from utils.driver.execution import Execution, exit_code
from utils.driver.fit import check_fit
from utils.driver.graph import build_graph
from utils.driver.launch import export_plan
from utils.driver.overwriting import redone, refuse_stale, say_other_code
from utils.driver.run_readme import write_readmes
from utils.driver.show import show_budgets, show_plan, show_results
from utils.frame.credentials import load_environment, redact, redact_tracebacks
from utils.frame.files import UserError
from utils.frame.pipeline import ROWS, run_of_seed

OWNERS = (
    "any option of a stage: --OWNER.KEY VALUE with OWNER a tier (model, dataset, reward: for every stage "
    f"that has it) or a step ({', '.join(ROWS)})."
)
EPILOG = f"""\
{textwrap.fill(OWNERS, 108)}

Methods that sample are compared under one budget: as many completions of as many prompts each; other
settings are refused, and --completions sets them all. With --curriculum a method that follows curricula is
trained under each, with the same options. A step that fails takes down only what rests on it.

With several jobs each step gets its share of the cores (OMP_NUM_THREADS, unless it is set). Another number of
threads adds numbers up in another order, so results agree to the last byte only between equal numbers.

reads    the raw data set, the models, and what earlier executions left in the run's folder
writes   outputs/<run_id>/: a folder for each stage, run_manifest.json, failed.json where something failed,
         README.md (goal by --note, configuration, results, how to continue), left alone once it is edited;
         with --seeds outputs/<run_id>_seed_<s>/ for each seed, and their comparison in
         outputs/<run_id>/11_comparison
exit     0 done, else the code of the first step that failed: 1 a stage failed, 2 a mistake in the command,
         its files or settings; 130 or 143 interrupted (run it again)
"""


def drive(argv: list[str]) -> int:
    """Plan, check, run, show. Raises UserError for a mistake that is found before anything has run."""
    known, goal, overrides = parse(argv, __doc__, EPILOG)
    seeds = known.seeds or [known.seed]
    runs = [run_of_seed(known.run_id, seed) for seed in known.seeds] or [known.run_id]
    if known.completions:
        set_completions(known.completions, goal, overrides, runs[0], seeds[0])
    nodes = build_graph(goal, overrides, known.run_id, known.seed, known.seeds)
    budgets = [check_budgets(goal, overrides, run, seed) for run, seed in zip(runs, seeds, strict=True)]
    check_fit(nodes)
    if goal.unordered():
        print(f"trained once, without a curriculum: {', '.join(goal.unordered())}")
    show_budgets(budgets[0], every=known.dry_run)
    if len(known.seeds) == 1:
        print("one seed: a comparison over seeds needs two or more, so only the run's own is made")
    redo = redone(nodes, known.overwrite)
    if known.dry_run:
        show_plan(nodes, known.jobs, redo)
        return 0
    up_to_date = refuse_stale(nodes, redo)
    say_other_code(nodes, redo, known.strict_code)
    if known.export_plan:
        steps = export_plan(known.export_plan, nodes, known.launch, without_export(argv))
        print(f"{known.export_plan}: {len(steps)} steps; nothing was run (--export_plan)")
        return 0
    execution = Execution(nodes, known.jobs, redo, known.launch, known.compare_only, up_to_date)
    outcomes = execution.run()
    write_readmes(nodes, execution.run_dirs, known.note, argv)
    show_results(execution)
    return exit_code(nodes, outcomes)


def main(argv: list[str]) -> int:
    """Run the methods; returns the exit code."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt("SIGTERM")

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        load_environment()
        return drive(argv)
    except UserError as error:
        print(f"error: {redact(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        print("error: interrupted; run the same command again to resume", file=sys.stderr)
        return 143 if stopped.args == ("SIGTERM",) else 130
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    redact_tracebacks()
    sys.exit(main(sys.argv[1:]))
