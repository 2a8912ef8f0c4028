"""Faults on purpose, counted; docs/reliability.md has the figures.

python -m tests.external.faults fuzz --inputs 1000
python -m tests.external.faults stages --kills 9
python -m tests.external.faults trials --root PREPARED --kills 9 -- python program.py --out {root}/out
"""

import argparse
import importlib
import signal
import sys
import tempfile
from pathlib import Path

NUMBERS = {
    "kills": "at random times, before file operations, and within writes",
    "limits": "on the size of files and on memory, and full disks (which takes root)",
    "damages": "of files that a killed execution left, and of those that it reads",
    "planted": "files put into the folder that it reads",
    "starts": "times of eight executions at once",
}


def main(words: list[str]) -> int:
    """Fuzz the readers, or try programs; 0 where nothing but refusals and the same bytes came of it."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.external.faults", description=__doc__.split(";")[0]
    )
    commands = parser.add_subparsers(dest="what", required=True)
    fuzz = commands.add_parser("fuzz", help="every reader of files and words, under hostile inputs")
    fuzz.add_argument("--inputs", type=int, default=1000)
    trials = commands.add_parser("trials", help="any program, disturbed and then run again")
    trials.add_argument("--root", type=Path, required=True, help="folder as it is before the program runs")
    trials.add_argument("--reads", default="", help="folder below it that the program reads, to be damaged")
    trials.add_argument("--preload", default="", help="module to import once for all trials")
    trials.add_argument("command", nargs="+", help="the program; {root} in it is the folder of the trial")
    stages = commands.add_parser("stages", help="the scripts 02 to 10, small, disturbed and then run again")
    stages.add_argument("--names", nargs="+", help="02, 03, distill and so on to 10 (default: all)")
    for each in (trials, stages):
        for name, what in NUMBERS.items():
            each.add_argument(f"--{name}", type=int, default=0, help=what)
    for each in (fuzz, trials, stages):
        each.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(words)
    if given.what == "fuzz":
        from tests.external.faults.fuzz import fuzz_all

        for number in (signal.SIGINT, signal.SIGTERM):  # the table is of what was done until then
            signal.signal(number, signal.default_int_handler)
        return int(not fuzz_all(given.inputs, given.seed))
    numbers = {name: getattr(given, name) for name in NUMBERS}
    if given.what == "stages":
        from tests.external.faults.stages import TRIALS, try_stages

        with tempfile.TemporaryDirectory() as work:
            return int(not try_stages(given.names or [*TRIALS], numbers, given.seed, Path(work)))
    from tests.external.faults.trials import Program, run_trials

    if given.preload:
        importlib.import_module(given.preload)
    with tempfile.TemporaryDirectory() as work:
        program = Program(given.command, given.root.resolve(), Path(work), given.reads)
        return int(not run_trials(program, numbers, given.seed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
