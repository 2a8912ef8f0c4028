"""How cost grows: a GRPO step, 11 with its report, stages 00 to 02, and the memory of long trainings.

    python benchmarks/scaling.py [--parts step items policies checkpoints data rollouts] [--rounds 2]

step        a GRPO step with shared prefixes, as `peers.py` has it, against group size, prompt, completion,
            vocabulary and width; the others stay at 128 tokens of prompt, 64 of completion, 2 prompts of 8
            completions, 8,192 words, width 256
items       `11_compare_runs.py` on made-up evaluations of 12 policies (answers of 40 tokens)
policies    likewise, of 1,500 items
checkpoints `11_compare_runs.py` on a run whose training left so many checkpoints of 1 MB, each of them
            evaluated on 200 items
data        `00_check_data.py`, `01_prepare_dataset.py` and `02_build_rewards.py` on made-up questions in
            GSM8K's form
rollouts    memory that is resident in GRPO and in PPO of a tiny model after so many rollouts of eight
            completions, of which each is one optimizer step

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
import shutil
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
ITEMS, POLICIES = (1_500, 10_000), (3, 6, 12)
CHECKPOINTS = (2, 20, 200)
ROWS = (1_000, 10_000, 100_000)
ROLLOUTS, METHODS = (100, 500, 1_000), ("GRPO", "PPO")


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


def comparison(items: int, policies: int, rounds: int) -> tuple[float, float, float]:
    """Seconds and peak GB of 11, and the MB of its report."""
    from tests.support.report_folders import make_run

    with tempfile.TemporaryDirectory() as name:
        make_run(Path(name) / "made_up", items, [f"p{n}" for n in range(policies)], tokens=40)
        # Outside a run's folder, the stage asks no manifest for them.
        folders = sorted((Path(name) / "made_up" / "10_evaluation").rename(Path(name) / "policies").iterdir())
        command = [sys.executable, "11_compare_runs.py", "--outputs_root", name, "--overwrite"]
        command += ["--metrics", *map(str, folders)]
        runs = [in_process(command) for _ in range(rounds)]
        page = Path(name) / "run_001" / "11_comparison" / "report.html"
        return (*map(min, zip(*runs, strict=True)), page.stat().st_size / 1e6)


def items(rounds: int) -> None:
    found = [comparison(number, POLICIES[-1], rounds) for number in ITEMS]
    table(f"items ({POLICIES[-1]} policies)", ITEMS, found, ("s", "GB", "MB of report.html"))


def policies(rounds: int) -> None:
    found = [comparison(ITEMS[0], number, rounds) for number in POLICIES]
    table(f"policies ({ITEMS[0]:,} items)", POLICIES, found, ("s", "GB", "MB of report.html"))


def make_checkpoints(run: Path, number: int) -> None:
    """A run of SFT and GRPO with so many checkpoints of the latter, each of which has an evaluation."""
    from tests.support.finished_runs import pretend_finished
    from tests.support.report_folders import make_run
    from utils.frame.files import read_json, write_json, write_jsonl
    from utils.frame.manifest import describe_inputs, describe_outputs

    folders = make_run(run, 200, ["sft", "grpo"], tokens=40)
    training = run / "06_grpo"
    for step in range(1, number + 1):
        checkpoint = training / "ckpt_grpo" / f"step_{step}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "adapter_config.json").write_text("{}")
        (checkpoint / "adapter_model.safetensors").write_bytes(random.Random(step).randbytes(1_000_000))
        several = folders["grpo"].with_name("grpo_checkpoints")
        shutil.copytree(folders["grpo"], several / checkpoint.name)
    rows = [{"step": step, "val_reward": 0.5, "val_accuracy": 0.5} for step in range(number + 1)]
    write_jsonl(training / "logs" / "metrics.jsonl", rows)
    for folder in (run / "01_preprocessing", training):
        pretend_finished(folder, seed=0, config={"algo": {}}, inputs={}, metrics={})
    read = {"records": run / "01_preprocessing" / "test.jsonl", "checkpoint": training / "ckpt_grpo"}
    for folder in (*folders.values(), several):
        manifest = read_json(folders["grpo"] / "manifest.json")
        facts = {"inputs": describe_inputs(read, run), "outputs": describe_outputs(folder, run)}
        write_json(folder / "manifest.json", manifest | facts)


def checkpoints(rounds: int) -> None:
    found = []
    for number in CHECKPOINTS:
        with tempfile.TemporaryDirectory() as name:
            make_checkpoints(Path(name) / "run_001", number)
            command = [sys.executable, "11_compare_runs.py", "--outputs_root", name, "--overwrite"]
            found.append(tuple(map(min, zip(*(in_process(command) for _ in range(rounds)), strict=True))))
    table("checkpoints", CHECKPOINTS, found)


def resident(method: str) -> list[float]:
    """GB of memory that a training by "GRPO" or "PPO" has after each number of rollouts."""
    import gc

    import torch
    from transformers import TrainerCallback, trainer

    from tests.support import training_stages as stages
    from tests.support.tiny_models import make_tiny_model
    from utils.methods.grpo.settings import GrpoAlgo
    from utils.methods.ppo.settings import PpoAlgo
    from utils.models.settings import TrainingSection, ValidationSection

    found = []

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step in ROLLOUTS:
                gc.collect()
                pages = int(Path("/proc/self/statm").read_text().split()[1])
                found.append(pages * os.sysconf("SC_PAGE_SIZE") / 1e9)

    torch.set_num_threads(1)
    trainer.DEFAULT_CALLBACKS.append(Look)
    common = {"num_rollouts": ROLLOUTS[-1], "num_generations": 4}
    if method == "GRPO":
        sizes = {"per_device_train_batch_size": 8, "steps_per_generation": 1, "num_iterations": 1}
        script, algo = "06", GrpoAlgo(**common, **sizes)
    else:
        sizes = {"rollout_batch_size": 8, "num_mini_batches": 1, "num_ppo_epochs": 1}
        script, algo = "05", PpoAlgo(**common, **sizes)
    with tempfile.TemporaryDirectory() as name:
        model = make_tiny_model("llama", Path(name) / "model")
        inputs = stages.stage_inputs(Path(name), model)
        ctx = stages.stage_context(Path(name) / "out", inputs, model, algo, curriculum="random")
        ctx.config.model.training = TrainingSection(save_steps=250, logging_steps=1)
        ctx.config.model.validation = ValidationSection(eval_steps=250, num_items=2)
        stages.run_script(script, ctx)
    return found


def rollouts(rounds: int) -> None:
    for method in METHODS:
        command = [sys.executable, __file__, "--resident", method]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found = [(each,) for each in json.loads(output.splitlines()[-1])]
        table(f"rollouts of {method}", ROLLOUTS, found, ("GB",))


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
    found = {"00_check_data.py": [], "01_prepare_dataset.py": [], "02_build_rewards.py": []}
    for rows in ROWS:
        with tempfile.TemporaryDirectory() as name:
            make_questions(Path(name), rows)
            options = ["--outputs_root", f"{name}/outputs", "--overwrite"]
            options += ["--dataset_config", "configs/datasets/gsm8k.yaml"]
            for script, runs in found.items():
                raw = [] if script.startswith("02") else ["--data_root", name]  # 02 reads what 01 wrote
                command = [sys.executable, script, *options, *raw]
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


PARTS: dict[str, Callable[[int], None]] = {
    "step": steps,
    "items": items,
    "policies": policies,
    "checkpoints": checkpoints,
    "data": data,
    "rollouts": rollouts,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=2, help="processes of each size (default 2)")
    parser.add_argument("--sizes", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--resident", choices=METHODS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.sizes or options.resident:  # one of the processes
        print(json.dumps(resident(options.resident) if options.resident else step(options.sizes)))
        return
    for part in options.parts:
        PARTS[part](options.rounds)


if __name__ == "__main__":
    main()
