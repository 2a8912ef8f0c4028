"""Time a GRPO and a PPO step in bfloat16 on a GPU, with shared prefixes against without, and their memory.

    python benchmarks/gpu_step.py [--methods grpo ppo] [--shapes 900/60/4x8 150/300/4x8] [--repeats 5]
    python benchmarks/gpu_step.py --tiny --shapes 60/8/2x4 --repeats 1       a small model: whether it runs

The model is a random Qwen2 of the shape of Qwen2.5-0.5B (494M parameters), fully trained, weights in
bfloat16. What a step is, and what is compared, is said in rl_step.py (GRPO: stock TRL) and ppo_step.py (PPO,
with a teacher of the same size: the same trainer without shared prefixes). Both trainers take turns for the
times; peak memory (GiB, as allocated on the GPU) is that of each alone. Without a GPU all of it runs on
the CPU, without memory. Prints a Markdown table; ratios are of median times.
"""

import argparse
import gc
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ppo_step import PPOStepper
from rl_step import VOCABULARY, Shape, SharedPrefixGRPOTrainer, Stepper, agreement
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.utils import logging
from trl import GRPOTrainer

SIZES = {
    "vocab_size": 151_936,
    "hidden_size": 896,
    "intermediate_size": 4_864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
}
TINY = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
# Method -> what makes its stepper without shared prefixes, and with them.
KINDS = {
    "grpo": (partial(Stepper, GRPOTrainer), partial(Stepper, SharedPrefixGRPOTrainer)),
    "ppo": (partial(PPOStepper, False), partial(PPOStepper, True)),
}
COLUMNS = (
    "method",
    "prompt / completion / prompts x group",
    "step",
    "sampling",
    "rest",
    "without s",
    "shared s",
    "without GiB",
    "shared GiB",
    "loss difference",
    "gradient difference",
)


def save_model(folder: Path, sizes: dict[str, int]) -> None:
    torch.manual_seed(0)
    ends = {
        "bos_token_id": None,
        "eos_token_id": sizes["vocab_size"] - 1,
        "pad_token_id": sizes["vocab_size"] - 2,
    }
    config = Qwen2Config(**sizes, **ends, max_position_embeddings=4096, tie_word_embeddings=True)
    Qwen2ForCausalLM(config).save_pretrained(folder)


def timed(stepper: Stepper) -> tuple[float, float, float]:
    """Seconds of one step, of its sampling, and of all else."""
    whole = stepper.timed_step()[0]
    return whole, stepper.sampling_time, whole - stepper.sampling_time


def peak_memory(make: Callable[[], Stepper]) -> float | None:
    """GiB at most on the GPU over two steps of a trainer alone; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    _clear()
    stepper = make()
    stepper.step()  # the optimizer's states are there from now on
    torch.cuda.reset_peak_memory_stats()
    stepper.step()
    return torch.cuda.max_memory_allocated() / 2**30


def _clear() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def measure(method: str, shape: Shape, micro_batch: int, repeats: int, folder: Path, size: int) -> list[str]:
    """The cells of one row, after the method and the shape."""
    makers = [partial(kind, shape, micro_batch, folder, size, bf16=True) for kind in KINDS[method]]
    without, shared = (make() for make in makers)
    loss, gradient = agreement(without, shared, shape)  # also warms both up
    times = [(timed(without), timed(shared)) for _ in range(repeats)]
    medians = [
        [statistics.median(pair[side][part] for pair in times) for part in range(3)] for side in (0, 1)
    ]
    ratios = [f"{plain / ours:.2f}x" for plain, ours in zip(*medians, strict=True)]
    seconds = [f"{of_side[0]:.3f}" for of_side in medians]
    del without, shared
    memory = [peak_memory(make) for make in makers]
    _clear()
    gibibytes = ["–" if used is None else f"{used:.1f}" for used in memory]
    return [*ratios, *seconds, *gibibytes, f"{loss:.1e}", f"{gradient:.1e}"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--shapes", nargs="+", default=["900/60/4x8", "150/300/4x8"])
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each trainer (default 5)")
    parser.add_argument("--micro_batch", type=int, default=32, help="completions a forward pass (default 32)")
    parser.add_argument("--tiny", action="store_true", help="a small model, to see that it runs")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    sizes = TINY if options.tiny else SIZES

    print("device:", torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU")
    print("| " + " | ".join(COLUMNS) + " |")
    print("|---" * len(COLUMNS) + "|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_model(folder, sizes)
        for method in options.methods:
            for text in options.shapes:
                cells = measure(
                    method,
                    Shape.parse(text),
                    options.micro_batch,
                    options.repeats,
                    folder,
                    sizes["vocab_size"],
                )
                print("| " + " | ".join([method, text, *cells]) + " |", flush=True)


if __name__ == "__main__":
    main()
