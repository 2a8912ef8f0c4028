"""Faults on purpose, counted.

python -m tests.external.faults fuzz --inputs 1000
"""

import argparse
import sys

parser = argparse.ArgumentParser(prog="python -m tests.external.faults", description=__doc__)
commands = parser.add_subparsers(dest="what", required=True)
fuzz = commands.add_parser("fuzz", help="every reader of files and words, under damaged and hostile inputs")
fuzz.add_argument("--inputs", type=int, default=1000)
fuzz.add_argument("--seed", type=int, default=0)
given = parser.parse_args()
if given.what == "fuzz":
    from tests.external.faults.fuzz import fuzz_all

    sys.exit(not fuzz_all(given.inputs, given.seed))
