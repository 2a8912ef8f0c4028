"""The driver's command line."""

from __future__ import annotations

import argparse
from pathlib import Path

from utils.driver.bare_options import add_algorithm_files, add_bare, with_own_names
from utils.driver.execution import default_jobs
from utils.driver.goal import (
    FLAG_OF_TIER,
    Goal,
    Overrides,
    listed,
    named,
)
from utils.driver.launch import read_launch
from utils.frame.files import UserError
from utils.frame.pipeline import CURRICULA, FAMILIES, METHODS, PRESETS


def build_parser(description: str, epilog: str) -> argparse.ArgumentParser:
    """The driver's own options."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    names = (
        f"one or several of {', '.join(FAMILIES)}, or all of these; {', '.join(PRESETS)}, or presets "
        "(default: ppo)"
    )
    parser.add_argument("--method", nargs="+", default=["ppo"], metavar="NAME", help=names)
    parser.add_argument("--reward", help="task, intrinsic or combined, for all methods (default: combined)")
    curricula = f"one or several of {', '.join(CURRICULA)}, or all: a training under each (default: random)"
    parser.add_argument("--curriculum", nargs="+", metavar="NAME", help=curricula)
    start = (
        "the policy that every method starts from, in place of SFT: base, a stage folder of another run (its "
        "best checkpoint), a checkpoint, or a hub name"
    )
    parser.add_argument("--policy_ckpt", metavar="POLICY", help=start)
    goal = "the run's goal, a sentence for its README.md"
    parser.add_argument("--note", metavar="TEXT", help=goal)
    parser.add_argument("--teacher", action="store_true", help="evaluate and compare the teacher as well")
    parser.add_argument("--run_id", default="run_001", help="name of the run (default: run_001)")
    parser.add_argument("--outputs_root", help="folder that holds the runs (default: outputs)")
    parser.add_argument("--output_dir", help=argparse.SUPPRESS)
    parser.add_argument("--seed", help="seed of every stage (default: 0)")
    parser.add_argument("--seeds", nargs="+", metavar="S", help="a run for each seed, and their comparison")
    parser.add_argument("--completions", metavar="N", help="completions that each method samples in a run")
    jobs = "steps side by side (default: 2 on two cores without a GPU, in one process each; else 1)"
    parser.add_argument("--jobs", metavar="N", help=jobs)
    launch = "steps that sample or train run under `accelerate launch` with these settings (YAML)"
    parser.add_argument("--accelerate_config", metavar="FILE", help=launch)
    number = "processes of such a step (default: num_processes of --accelerate_config)"
    parser.add_argument("--num_processes", metavar="N", help=number)
    plan = "write the steps as JSON, for a scheduler to run as jobs, and run nothing"
    parser.add_argument("--export_plan", metavar="FILE", help=plan)
    compare = "run no step but the comparisons: what is not finished is named there as failed"
    parser.add_argument("--compare_only", action="store_true", help=compare)
    quick = "every stage small, in seconds: the --help of each says how"
    parser.add_argument("--quick_test", action="store_true", help=quick)
    redo = "redo these steps or folders, and what rests on them; everything where none is named"
    parser.add_argument("--overwrite", nargs="*", metavar="NAME", help=redo)
    code = "refuse what other code than there is now wrote, in place of saying so"
    parser.add_argument("--strict_code", action="store_true", help=code)
    parser.add_argument("--dry_run", action="store_true", help="say what would run, and run nothing")
    algorithm = "algorithm tier (YAML) of the method that it is for; several for several methods"
    parser.add_argument("--algo_config", nargs="+", default=[], metavar="FILE", help=algorithm)
    name = "a shipped model tier by its name (smollm2-135m), or the policy as a folder or hub name"
    parser.add_argument("--model", metavar="NAME", help=name)
    for tier, flag in FLAG_OF_TIER.items():
        parser.add_argument(flag, help=f"{tier} tier (YAML)")
    return parser


def whole(name: str, text: str, least: int) -> int:
    """An option's value as a whole number. Raises UserError where it is none, or below ``least``."""
    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise UserError(f"--{name} must be a whole number from {least} on, found {text!r}")
    return int(text)


def parse(argv: list[str], description: str, epilog: str) -> tuple[argparse.Namespace, Goal, Overrides]:
    """Own options, goal, and what is passed on.

    Of the own options ``seed``, ``seeds`` and ``jobs`` are whole numbers, ``completions`` and
    ``num_processes`` one or None; ``launch`` is how steps are started. Raises UserError for a value that
    cannot be, and for an option that has no owner.
    """
    known, rest = build_parser(description, epilog).parse_known_args(with_own_names(argv))
    if known.output_dir:
        run = Path(known.output_dir)
        raise UserError(
            f"--output_dir {run} is a stage's own folder, and the driver writes many: for a run in that "
            f"place give --outputs_root {run.parent} --run_id {run.name}"
        )
    methods = named("method", known.method, METHODS, {"all": FAMILIES, "presets": PRESETS})
    curricula = () if known.curriculum is None else named("curriculum", known.curriculum, CURRICULA)
    goal = Goal(methods, known.reward, curricula, known.teacher, _start(known.policy_ckpt))
    overrides = Overrides()
    if known.seed is not None and known.seeds:
        raise UserError("give --seed for one run or --seeds for a run of each, not both")
    seeds = listed(known.seeds or ())
    known.seeds = [whole("seeds", text, 0) for text in seeds]
    if len(set(known.seeds)) < len(known.seeds):
        raise UserError("--seeds names a seed twice: two runs of one seed are not two samples")
    known.seed = whole("seed", known.seed or "0", 0)
    if known.num_processes is not None:
        known.num_processes = whole("num_processes", known.num_processes, 1)
    known.launch = read_launch(known.accelerate_config, known.num_processes)
    known.jobs = whole("jobs", known.jobs, 1) if known.jobs else default_jobs(known.launch.num_processes == 1)
    if known.overwrite is not None and (known.export_plan or known.compare_only):
        raise UserError(
            "--overwrite does not go with --export_plan and --compare_only: a job that is repeated would "
            "begin anew; delete the run's folder, or give another --run_id"
        )
    if known.completions:
        known.completions = whole("completions", known.completions, 1)
    if known.outputs_root:
        overrides.shared += ["--outputs_root", known.outputs_root]
    if known.quick_test:
        overrides.shared.append("--quick_test")
    for tier, flag in FLAG_OF_TIER.items():
        if value := getattr(known, flag[2:]):
            overrides.tiers[tier] = [flag, value]
    if known.model:
        overrides.tiers.setdefault("model", []).extend(["--model", known.model])
    while rest:
        key, values = rest.pop(0), []
        if not key.startswith("--"):
            raise UserError(f"'{key}' belongs to no option; see 12_driver.py --help")
        if "=" in key:
            key, value = key.split("=", 1)
            values.append(value)
        while rest and not rest[0].startswith("--"):
            values.append(rest.pop(0))
        if "." in key or not add_bare(overrides, key[2:], values, goal):
            overrides.add(key[2:], values, goal)
    add_algorithm_files(overrides, known.algo_config, goal)
    return known, goal, overrides


def _start(policy: str | None) -> str:
    """The policy to start from as the steps are told it: a path is absolute, as they may run elsewhere."""
    if policy in (None, "", "sft"):
        return ""
    path = Path(policy).expanduser()
    return str(path.absolute()) if path.exists() else policy


def without_export(argv: list[str]) -> list[str]:
    """The command line without ``--export_plan FILE``."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--export_plan")
    return parser.parse_known_args(argv)[1]
