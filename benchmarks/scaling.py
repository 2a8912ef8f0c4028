"""How cost grows: a GRPO step, 11 with its report, and stages 00 and 01, against the size of their input.

    python benchmarks/scaling.py [--parts step comparison data] [--rounds 2]

step        a GRPO step with shared prefixes, as `peers.py` has it, against group size, prompt, completion,
            vocabulary and width; the others stay at 128 tokens of prompt, 64 of completion, 2 prompts of 8
            completions, 8,192 words, width 256
comparison  `11_compare_runs.py` on made-up evaluations (answers of 40 tokens), against items and policies
data        `00_check_data.py` and `01_prepare_dataset.py` on made-up questions in GSM8K's form

Every measurement is a process of its own. Seconds are those of the processor, which other work on the machine
changes little; memory is the process's peak. The exponent is the slope of log cost over log size between the
two largest sizes: 1 is linear. Fixed costs (imports, the optimizer's pass over the weights) make it smaller.
Prints Markdown tables.
"""

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

BASE = {"group": 8, "prompt": 128, "completion": 64, "vocabulary": 8_192, "width": 256}
STEPS = {
    "group": (4, 8, 16, 32),
    "prompt": (64, 128, 256, 512, 1_024),
    "completion": (32, 64, 128, 256),
    "vocabulary": (2_048, 8_192, 32_768, 131_072),
    "width": (128, 256, 512, 1_024),
}
COMPARISONS = {
    "items (6 policies)": ((500, 6), (1_500, 6), (10_000, 6)),
    "policies (1,500 items)": ((1_500, 3), (1_500, 6), (1_500, 12)),
}
ROWS = (1_000, 10_000, 100_000)


def in_process(command: list[str], cwd: Path = REPO) -> tuple[float, float]:
    """Seconds of the processor, and peak memory in GB, of a command that has to succeed."""
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    error = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(error.decode()[-2_000:])
    return used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e9


def step(sizes: dict[str, int]) -> dict[str, float]:
    """Seconds of a warm GRPO step, and this process's peak memory in GB."""
    import resource
    import time

    import peers
    import rl_step
    import torch

    torch.set_num_threads(1)
    rl_step.VOCABULARY, rl_step.now, rl_step.WIDTH = sizes["vocabulary"], time.process_time, sizes["width"]
    shape = rl_step.Shape(sizes["prompt"], sizes["completion"], 2, sizes["group"])
    with tempfile.TemporaryDirectory() as name:
        rl_step.save_model(Path(name))
        stepper = peers.TimedStepper("ours", shape, Path(name), sizes["vocabulary"])
        stepper.step()
        seconds = stepper.seconds()["whole"]
    return {"seconds": seconds, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9}


def steps(rounds: int) -> None:
    for axis, values in STEPS.items():
        found = []
        for value in values:
            runs = []
            for _ in range(rounds):
                command = [sys.executable, __file__, "--sizes", json.dumps({**BASE, axis: value})]
                output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                runs.append(json.loads(output.splitlines()[-1]))
            found.append((min(run["seconds"] for run in runs), max(run["peak"] for run in runs)))
        table(axis, values, found)


def comparison(size: tuple[int, int], rounds: int) -> tuple[float, float, float]:
    """Seconds and peak GB of 11, and the MB of its report."""
    from tests.support.report_folders import make_run

    items, policies = size
    with tempfile.TemporaryDirectory() as name:
        make_run(Path(name) / "made_up", items, [f"p{n}" for n in range(policies)], tokens=40)
        # Outside a run's folder, the stage asks no manifest for them.
        folders = sorted((Path(name) / "made_up" / "10_evaluation").rename(Path(name) / "policies").iterdir())
        command = [sys.executable, "11_compare_runs.py", "--outputs_root", name, "--overwrite"]
        command += ["--metrics", *map(str, folders)]
        runs = [in_process(command) for _ in range(rounds)]
        page = Path(name) / "run_001" / "11_comparison" / "report.html"
        return (*map(min, zip(*runs, strict=True)), page.stat().st_size / 1e6)


def comparisons(rounds: int) -> None:
    for axis, sizes in COMPARISONS.items():
        found = [comparison(size, rounds) for size in sizes]
        values = [size[axis.startswith("policies")] for size in sizes]
        table(axis, values, found, ("s", "GB", "MB of report.html"))


def make_questions(folder: Path, rows: int) -> None:
    """train.jsonl with so many questions, test.jsonl with a tenth, in GSM8K's form."""
    draw = random.Random(0)
    things = ("apples", "books", "coins", "stamps", "pens", "cards", "shells", "marbles")
    for split, count in (("train", rows), ("test", rows // 10)):
        with open(folder / f"{split}.jsonl", "w") as file:
            for number in range(count):
                first, second, thing = draw.randrange(2, 900), draw.randrange(2, 900), draw.choice(things)
                question = (
                    f"In {split} shop number {number} there are {first} boxes of {second} {thing} each, and "
                    f"{number} more {thing} lie on the shelf. How many {thing} are in the shop?"
                )
                product, total = first * second, first * second + number
                answer = (
                    f"The boxes hold {first} * {second} = <<{first}*{second}={product}>>{product} {thing}.\n"
                    f"With the shelf there are <<{product}+{number}={total}>>{total}.\n#### {total}"
                )
                file.write(json.dumps({"question": question, "answer": answer}) + "\n")


def data(rounds: int) -> None:
    found = {"00_check_data.py": [], "01_prepare_dataset.py": []}
    for rows in ROWS:
        with tempfile.TemporaryDirectory() as name:
            make_questions(Path(name), rows)
            options = ["--outputs_root", f"{name}/outputs", "--overwrite"]
            options += ["--dataset_config", "configs/datasets/gsm8k.yaml", "--data_root", name]
            for script, runs in found.items():
                command = [sys.executable, script, *options]
                runs.append(tuple(map(min, zip(*(in_process(command) for _ in range(rounds)), strict=True))))
    for script, runs in found.items():
        table(f"rows, {script}", ROWS, runs)


def table(axis: str, values, found: list[tuple[float, ...]], units: tuple[str, ...] = ("s", "GB")) -> None:
    """One row per unit: its value at each size, and the exponent between the two largest."""
    print(f"\n| {axis} | " + " | ".join(f"{value:,}" for value in values) + " | exponent |")
    print("|---" * (len(values) + 2) + "|")
    span = math.log(values[-1] / values[-2])
    for unit, costs in zip(units, zip(*found, strict=True), strict=True):
        exponent = math.log(costs[-1] / costs[-2]) / span
        cells = [unit, *(f"{cost:.2f}" for cost in costs), f"{exponent:.2f}"]
        print("| " + " | ".join(cells) + " |", flush=True)


PARTS: dict[str, Callable[[int], None]] = {"step": steps, "comparison": comparisons, "data": data}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=2, help="processes of each size (default 2)")
    parser.add_argument("--sizes", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.sizes:  # one of the processes
        print(json.dumps(step(options.sizes)))
        return
    for part in options.parts:
        PARTS[part](options.rounds)


if __name__ == "__main__":
    main()
