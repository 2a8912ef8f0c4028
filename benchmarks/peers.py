"""One GRPO step of what a user would pick instead, and of ours: seconds, memory, the distance to the limit.

    python benchmarks/peers.py [--vocabularies 850 49152] [--shapes 512/32/4x8 … 64/256/2x16] [--rounds 2]

generate     stock TRL, which samples by Transformers' `generate`
continuous   stock TRL with `use_transformers_continuous_batching`
ours         TRL's trainer with shared prefixes (`utils/rollouts/shared_prefix_trainer.py`)

A step is what `rl_step.py` says: sampling, scoring (reward and reference), update (loss, backward pass,
clipping, Adam); the same random Llama (6 layers, width 256, float32, all parameters trained), one thread.
Every measurement is a process of its own, and the three take turns. Seconds are those of the processor (user
and system), which other work on the machine changes little; memory is the process's peak.

The limit is the time that the products with the weight matrices take for the tokens that differ: each prompt
once, each completion once; forward for sampling and for the reference, forward and twice backward for the
update. Decoding multiplies as many rows at a time as there are completions. Each product is timed by itself,
in the same process as ours. Attention, normalisation, sampling and Adam are left out, so no step reaches it.

Prints a Markdown table; ratios are of the medians.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import rl_step
from rl_step import Shape, SharedPrefixGRPOTrainer, Stepper
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging
from trl import GRPOTrainer

KINDS = ("generate", "continuous", "ours")
SHAPES = ("512/32/4x8", "512/32/2x16", "128/128/4x8", "128/128/2x16", "64/256/4x8", "64/256/2x16")
PARTS = ("sampling", "scoring", "update", "whole")


class TimedStepper(Stepper):
    """A stepper that also knows how long scoring took; seconds of the processor."""

    def __init__(self, kind: str, shape: Shape, folder: Path, vocabulary: int):
        trainer = SharedPrefixGRPOTrainer if kind == "ours" else GRPOTrainer
        super().__init__(trainer, shape, shape.prompts * shape.group, folder, vocabulary)
        self.rollout = self.trainer._generate_and_score_completions
        self.trainer._generate_and_score_completions = self._timed_rollout
        if kind == "continuous":
            from transformers.generation import ContinuousBatchingConfig

            self.trainer.use_transformers_continuous_batching = True
            # Blocks of 256 tokens, twice what the rollout needs; by default it takes most of the memory.
            pages = 2 * shape.prompts * shape.group * -(-(shape.prompt + shape.completion) // 256)
            self.trainer.continuous_batching_config = ContinuousBatchingConfig(num_blocks=pages)

    def _timed_rollout(self, inputs):
        start = time.process_time()
        result = self.rollout(inputs)
        self.rollout_time = time.process_time() - start
        return result

    def seconds(self) -> dict[str, float]:
        start = time.process_time()
        self.step()
        whole = time.process_time() - start
        scoring = self.rollout_time - self.sampling_time
        parts = {"sampling": self.sampling_time, "scoring": scoring, "update": whole - self.rollout_time}
        return {**parts, "whole": whole}


def product_seconds(model: PreTrainedModel, rows: int, head_rows: int) -> float:
    """Seconds of one product of each weight matrix with ``rows`` hidden states, the head's ``head_rows``."""
    head, total = model.get_output_embeddings(), 0.0
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            count = head_rows if module is head else rows
            states = torch.randn(count, module.in_features)
            module(states)
            start = time.process_time()
            module(states)
            total += time.process_time() - start
    return total


@torch.no_grad()
def limit(shape: Shape, folder: Path) -> dict[str, float]:
    """Seconds of each part's products for the tokens that differ."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    completions = shape.prompts * shape.group
    prompts, sampled = shape.prompts * shape.prompt, completions * shape.completion
    sampling = product_seconds(model, prompts, shape.prompts)
    sampling += (shape.completion - 1) * product_seconds(model, completions, completions)
    scoring = product_seconds(model, prompts + sampled, sampled)
    return {"sampling": sampling, "scoring": scoring, "update": 3 * scoring, "whole": sampling + 4 * scoring}


def measure(kind: str, shape: Shape, vocabulary: int) -> dict[str, float]:
    """Seconds of the parts of a step once warm, peak memory in GB, and for ours the limit."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    rl_step.VOCABULARY, rl_step.now = vocabulary, time.process_time
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rl_step.save_model(folder)
        stepper = TimedStepper(kind, shape, folder, vocabulary)
        stepper.step()
        found = stepper.seconds()
        found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        if kind == "ours":
            found["limit"] = limit(shape, folder)
    return found


def cells(found: dict[str, list[dict]]) -> list[str]:
    """The cells of a row: seconds, ratios to ours by part, ours over the limit, memory."""
    median = {
        kind: {part: statistics.median(each[part] for each in runs) for part in PARTS}
        for kind, runs in found.items()
    }
    row = [f"{median[kind]['whole']:.2f}" for kind in KINDS]
    for kind in KINDS[:2]:
        row.append(" / ".join(f"{median[kind][part] / median['ours'][part]:.1f}" for part in PARTS))
    limits = [{part: each["limit"][part] for part in PARTS} for each in found["ours"]]
    bound = {part: statistics.median(each[part] for each in limits) for part in PARTS}
    row.append(" / ".join(f"{median['ours'][part] / bound[part]:.1f}" for part in PARTS))
    row.append(" / ".join(f"{max(each['peak'] for each in found[kind]):.1f}" for kind in KINDS))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vocabularies", nargs="+", type=int, default=[850, 49_152])
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=2, help="processes of each kind (default 2)")
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.kind:  # one of the processes
        print(json.dumps(measure(options.kind, Shape.parse(options.shapes[0]), options.vocabularies[0])))
        return
    parts = " / ".join(PARTS)
    columns = ["vocabulary", "prompt/completion/prompts x group", *(f"{kind} s" for kind in KINDS)]
    columns += [f"{kind} over ours: {parts}" for kind in KINDS[:2]]
    columns += [f"ours over the limit: {parts}", "GB: " + " / ".join(KINDS)]
    print("| " + " | ".join(columns) + " |")
    print("|---" * len(columns) + "|", flush=True)
    for vocabulary in options.vocabularies:
        for shape in options.shapes:
            found: dict[str, list[dict]] = {kind: [] for kind in KINDS}
            for kind in KINDS * options.rounds:
                asked = ["--vocabularies", str(vocabulary), "--shapes", shape, "--kind", kind]
                command = [sys.executable, __file__, *asked]
                output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                found[kind].append(json.loads(output.splitlines()[-1]))
            print("| " + " | ".join([f"{vocabulary:,}", shape, *cells(found)]) + " |", flush=True)


if __name__ == "__main__":
    main()
