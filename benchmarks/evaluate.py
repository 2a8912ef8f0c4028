"""Time the answers of an evaluation against a plain padded loop over Transformers' generate.

    python benchmarks/evaluate.py [--run_dir outputs/run_001] [--policy sft] [--num_samples 0 8] [--repeats 3]

Both answer the same items of the run's test split with the same weights in one process, taking turns. The
plain loop takes the items in the order of the file, pads every batch on the left and calls `model.generate`,
with `num_return_sequences` for samples. 10_evaluate.py encodes once what several prompts begin with, or, for
samples, takes prompts by length and encodes each once for all its samples. Both have batches of
`generation.batch_size` completions, and both are timed from text to tokens. Prints a Markdown table: tokens
per second in the fastest pass of each (completions sampled by the two differ in length), and how many greedy
answers are the same token by token. On a CPU seconds are those of the process, without those of other work on
the machine.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.data.prompts import render_prompt
from utils.data.records import load_records
from utils.evaluation.policy_names import checkpoint_of
from utils.frame.config import load_tier
from utils.models.loading import load_policy
from utils.models.prefix.common_prefix import batches_by_prefix
from utils.models.sampling import batches_by_length, complete, eos_token_ids
from utils.models.settings import ModelConfig

Answer = Callable[[int], list[list[int]]]  # number of samples (0: greedy) -> token ids of every completion


def plain_loop(model, tokenizer, texts: list[str], config: ModelConfig) -> Answer:
    """What one writes first: batches in the order of the file, padded, through `generate`."""
    eos = eos_token_ids(model, tokenizer)
    generation = config.generation

    def answer(num_samples: int) -> list[list[int]]:
        size = max(1, generation.largest_batch // max(1, num_samples))
        drawing = {"do_sample": False}
        if num_samples:
            torch.manual_seed(0)
            drawing = {
                "do_sample": True,
                "num_return_sequences": num_samples,
                "temperature": generation.temperature,
                "top_p": generation.top_p,
                "top_k": generation.top_k,
            }
        found = []
        for start in range(0, len(texts), size):
            batch = tokenizer(
                texts[start : start + size], return_tensors="pt", padding=True, add_special_tokens=False
            )
            with torch.no_grad():
                output = model.generate(
                    input_ids=batch["input_ids"].to(model.device),
                    attention_mask=batch["attention_mask"].to(model.device),
                    max_new_tokens=generation.max_new_tokens,
                    eos_token_id=sorted(eos),
                    pad_token_id=tokenizer.pad_token_id,
                    **drawing,
                )
            for row in output[:, batch["input_ids"].shape[1] :].tolist():
                end = next((place + 1 for place, token in enumerate(row) if token in eos), len(row))
                found.append(row[:end])
        return found

    return answer


def ours(model, tokenizer, texts: list[str], config: ModelConfig) -> Answer:
    """The batches of 10_evaluate.py (utils/evaluation/answers.py), without its journal."""
    generation = config.generation

    def answer(num_samples: int) -> list[list[int]]:
        prompts = tokenizer(texts, add_special_tokens=False)["input_ids"]
        drawing = {"common_prefixes": True}
        batches = batches_by_prefix(prompts, generation.largest_batch)
        if num_samples:
            batches = batches_by_length(prompts, generation.largest_batch, num_samples)
            drawing = {
                "num_samples": num_samples,
                "temperature": generation.temperature,
                "top_p": generation.top_p,
                "top_k": generation.top_k,
                "generator": torch.Generator().manual_seed(0),
            }
        found: dict[int, list[list[int]]] = {}
        for batch in batches:
            completions = complete(
                model,
                tokenizer,
                [prompts[number] for number in batch],
                max_new_tokens=generation.max_new_tokens,
                **drawing,
            )
            for number, of_prompt in zip(batch, completions, strict=True):
                found[number] = [completion.token_ids for completion in of_prompt]
        return [ids for number in range(len(prompts)) for ids in found[number]]

    return answer


def timed(answer: Answer, num_samples: int) -> tuple[float, list[list[int]]]:
    """Tokens per second, and the completions."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    start = clock()
    found = answer(num_samples)
    return sum(map(len, found)) / (clock() - start), found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run_dir", type=Path, default=Path("outputs/run_001"))
    parser.add_argument("--policy", default="sft", help="as of 10_evaluate.py (default sft)")
    parser.add_argument("--config", default="configs/models/sample.yaml")
    parser.add_argument("--batch_size", type=int, help="completions a batch (default: of the configuration)")
    parser.add_argument("--max_items", type=int, help="only the first items of the test split")
    parser.add_argument("--num_samples", type=int, nargs="+", default=[0, 8], help="0 is greedy")
    parser.add_argument("--repeats", type=int, default=3, help="timed passes of each, after one to warm up")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1: steady under load)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = load_tier(ModelConfig, options.config)
    if options.batch_size:
        config.generation.batch_size = options.batch_size
    checkpoint = checkpoint_of(options.policy, "", config, options.run_dir.absolute())
    model, tokenizer = load_policy(checkpoint, config.model)
    records = load_records(options.run_dir / "01_preprocessing" / "test.jsonl")[: options.max_items]
    texts = [render_prompt(tokenizer, record.input_text) for record in records]
    plain, fast = (make(model, tokenizer, texts, config) for make in (plain_loop, ours))

    columns = ["items x completions", "ratio", "plain tokens/s", "ours tokens/s", "same answers"]
    print("| " + " | ".join(columns) + " |")
    print("|---" * len(columns) + "|", flush=True)
    for num_samples in options.num_samples:
        pairs = []
        for repeat in range(options.repeats + 1):
            turn = [timed(plain, num_samples), timed(fast, num_samples)]
            if repeat:
                pairs.append([speed for speed, _ in turn])
        speeds = [max(side) for side in zip(*pairs, strict=True)]
        same = "–"
        if not num_samples:
            answers = list(zip(turn[0][1], turn[1][1], strict=True))
            same = f"{sum(one == other for one, other in answers)} of {len(answers)}"
        cells = [
            f"{len(texts)} x {max(1, num_samples)}{' sampled' if num_samples else ' greedy'}",
            f"{speeds[1] / speeds[0]:.2f}x",
            *(f"{speed:,.0f}" for speed in speeds),
            same,
        ]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
