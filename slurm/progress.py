"""How far the stages of a run are: resume points, validations, errors. Needs no SLURM, only outputs.

python slurm/progress.py --run_id run_001
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from slurm.lib_progress import progress_of_run  # noqa: E402
from utils.frame.files import resolve_path, shown  # noqa: E402


def main(argv: list[str]) -> int:
    """Show a line for each stage of the run, and of its seeds' runs; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--run_id", default="run_001", help="name of the run, or of its seeds' runs (default: run_001)"
    )
    parser.add_argument("--outputs_root", help="folder that holds the runs (default: outputs)")
    known = parser.parse_args(argv)
    root = resolve_path(known.outputs_root or "outputs")
    shown_any = False
    for run_dir in (root / known.run_id, *sorted(root.glob(f"{known.run_id}_seed_*"))):
        for progress in progress_of_run(run_dir):
            print(f"{run_dir.name}/{progress}")
            shown_any = True
    if not shown_any:
        print(
            f"error: {shown(root / known.run_id)}: no stage has begun; give --run_id and --outputs_root",
            file=sys.stderr,
        )
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
