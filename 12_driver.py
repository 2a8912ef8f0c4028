"""12: run a method from raw data to the comparison: what is missing runs, what is up to date is skipped.

python 12_driver.py --method ppo
python 12_driver.py --method ppo --reward intrinsic
python 12_driver.py --method grpo --run_id mu2 --grpo.num_iterations 2 --sft.num_train_epochs 1
python 12_driver.py --method grpo --dataset_config configs/datasets/gsm8k.yaml --config configs/models/X.yaml
"""

import argparse
import sys

from utils.common import UserError
from utils.driver import FLAG_OF_TIER, METHODS, Goal, Overrides, run_goal, show_comparison

EPILOG = """\
any option of a stage: --OWNER.KEY VALUE with OWNER a tier (model, dataset, reward: for every stage that has
it) or a step (check, prepare, rewards, sft, candidates, ppo, grpo, evaluate, compare).

reads    the raw data set, the models, and what earlier executions left in the run's folder
writes   outputs/<run_id>/, a folder for each stage, and run_manifest.json
exit     0 done, 1 a stage failed, 2 a mistake in the command or its files, 130 interrupted (run it again)
"""


def parse(argv: list[str]) -> tuple[argparse.Namespace, Goal, Overrides]:
    """Own options, goal, and what is passed on. Raises UserError for an option that has no owner."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--method", choices=list(METHODS), default="ppo", help="what to run (default: ppo)")
    parser.add_argument("--reward", help="task, intrinsic or combined (default: ppo combined, grpo task)")
    parser.add_argument("--run_id", default="run_001", help="name of the run (default: run_001)")
    parser.add_argument("--output_dir", help="folder that holds the runs (default: outputs)")
    parser.add_argument("--seed", default="0", help="seed of every stage (default: 0)")
    parser.add_argument("--quick_test", action="store_true", help="every stage small, in seconds")
    parser.add_argument("--overwrite", action="store_true", help="redo finished stages, deleting their files")
    for tier, flag in FLAG_OF_TIER.items():
        parser.add_argument(flag, help=f"{tier} tier (YAML)")
    known, rest = parser.parse_known_args(argv)
    goal = Goal(known.method, known.reward)
    overrides = Overrides(shared=["--run_id", known.run_id, "--seed", known.seed])
    if known.output_dir:
        overrides.shared += ["--output_dir", known.output_dir]
    if known.quick_test:
        overrides.shared.append("--quick_test")
    for tier, flag in FLAG_OF_TIER.items():
        if value := getattr(known, flag[2:]):
            overrides.tiers[tier] = [flag, value]
    while rest:
        key, values = rest.pop(0), []
        if not key.startswith("--"):
            raise UserError(f"'{key}' belongs to no option; see 12_driver.py --help")
        if "=" in key:
            key, value = key.split("=", 1)
            values.append(value)
        while rest and not rest[0].startswith("--"):
            values.append(rest.pop(0))
        overrides.add(key[2:], values, goal)
    return known, goal, overrides


def main(argv: list[str]) -> int:
    """Run the method; returns the exit code."""
    try:
        known, goal, overrides = parse(argv)
        run_dir = run_goal(goal, overrides, known.overwrite)
        show_comparison(run_dir, goal, int(known.seed))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted; run the same command again to resume", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
