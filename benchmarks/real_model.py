"""Time SFT, sampling, GRPO and PPO at real vocabularies, as they were and as they are, on one CPU thread.

    python benchmarks/real_model.py [--parts sft sampling grpo ppo] [--vocabularies 49152 151936] [--rounds 2]
    python benchmarks/real_model.py --profile [--parts …] [--vocabularies …]

The model is SmolLM2-135M (`./download.sh model smollm2-135m`) with LoRA 32; for another vocabulary a random
one of its shape. Every measurement is a process of its own, and the two sides take turns. Seconds are those
of the processor (user and system), which other work on the machine changes little; memory is the process's
peak.

before  glibc's own handling of memory, MKL's products, repeated keys and values, all activations kept; SFT:
        TRL's trainer, rows as drawn
after   `utils/models/cpu.py`, `utils/models/gated_layers.py`; SFT: rows of like length together, in smaller
        micro-batches, the head on taught tokens only

sft       one optimizer step: 32 rows of 80 to 400 tokens, the last 10 to 40 taught, micro-batches of 8
longest   one of these micro-batches, of 8 rows of 400 tokens, for its memory
sampling  4 prompts of 150 tokens, 8 completions each, 64 tokens each
grpo      4 prompts of 165 tokens, 8 completions of 48 each, KL to the start policy, four updates on all
ppo       the same, with values from siblings and KL in the rewards

Prints a Markdown table; ratios are of the medians. With --profile instead, of how it is now: the seconds of
one step by kind of operation, the rate of its matrix products, and the rate of a large product alone, in
GFLOP/s (10^9 operations a second): what would be left if all else cost nothing, and how fast that could be.
"""

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))
MODEL, VOCABULARY = REPO / "models" / "smollm2-135m", 49_152
PARTS = ("sft", "longest", "sampling", "grpo", "ppo")
KINDS = {  # of operations, by the profiler's names
    "products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::mkldnn_linear"),
    "attention": (
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
    ),
    "copies": ("aten::copy_", "aten::cat", "aten::index_select", "aten::index", "aten::gather"),
    "other": (),
}
LEARNABLE = 49_000  # ids that are drawn, in any vocabulary


def load(vocabulary: int, trainable: bool):
    """The model, with an adapter where it is to be trained, and its tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from utils.models.gated_layers import keep_less
    from utils.models.loading import add_lora, load_policy
    from utils.models.settings import LoraSection, ModelSection

    model, tokenizer = load_policy(str(MODEL), ModelSection(), trainable=trainable)
    if vocabulary != VOCABULARY:
        config = AutoConfig.from_pretrained(MODEL)
        config.vocab_size = vocabulary
        model = AutoModelForCausalLM.from_config(config)
    if trainable:
        keep_less(model)
    return (add_lora(model, LoraSection(r=32, lora_alpha=64), 0) if trainable else model.eval()), tokenizer


def undo(model) -> None:
    """Set back what `prepare_cpu` has set; glibc's limits are those that it would move to itself."""
    import ctypes

    import torch
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    from utils.models.cpu import M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
    from utils.models.gated_layers import KNOWN

    for module in model.modules():
        if type(module).__name__ in KNOWN:
            vars(module).pop("forward", None)
    torch.backends.mkldnn.matmul.fp32_precision = "none"
    AttentionInterface.register("sdpa", sdpa_attention_forward)
    for parameter, value in ((M_MMAP_THRESHOLD, 2**25), (M_TRIM_THRESHOLD, 2**26)):
        ctypes.CDLL(None).mallopt(parameter, value)


def arguments(kind, folder: str, **more):
    """What all trainers here have in common."""
    return kind(
        output_dir=folder,
        learning_rate=1e-5,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        seed=0,
        data_seed=0,
        **{"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4} | more,
    )


def supervised(vocabulary: int, before: bool, folder: str, longest: bool):
    """A step of SFT, the real tokens in it, and the model."""
    import torch
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from utils.frame.typed_settings import fields_of
    from utils.methods.sft.trainer import CountingSFTTrainer
    from utils.models.cpu import rows_worth_a_pass
    from utils.rollouts.batches import share_batches

    model, tokenizer = load(vocabulary, trainable=True)
    draw, rows = random.Random(0), []
    for _ in range(32):
        length, taught = (400, 20) if longest else (draw.randrange(80, 401), draw.randrange(10, 41))
        ids = [draw.randrange(10, LEARNABLE) for _ in range(length)]
        rows.append({"input_ids": ids, "completion_mask": [0] * (length - taught) + [1] * taught})
    tokens = sum(len(row["input_ids"]) for row in rows)
    bound = None if before else rows_worth_a_pass(model.num_parameters(), tokens / len(rows))
    batches = fields_of(SFTConfig, share_batches(8, 4, largest=bound))
    args = arguments(SFTConfig, folder, completion_only_loss=True, max_length=None, **batches)
    trainer = (SFTTrainer if before else CountingSFTTrainer)(
        model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )
    count = 8 // args.per_device_train_batch_size if longest else None
    micro_batches = list(trainer.get_train_dataloader())[:count]
    taught = sum((inputs["labels"] != -100).sum() for inputs in micro_batches)
    trainer.model.train()

    def step() -> None:
        for inputs in micro_batches:
            loss = trainer.compute_loss(trainer.model, dict(inputs), num_items_in_batch=torch.tensor(taught))
            loss.backward()
        trainer.model.zero_grad()

    return step, int(sum(inputs["attention_mask"].sum() for inputs in micro_batches)), model


def sampling(vocabulary: int):
    """Sampling, the tokens sampled, and the model."""
    import torch

    from utils.models.prefix.prefix_sampling import sample_completions

    model, _ = load(vocabulary, trainable=False)
    ids = torch.randint(10, LEARNABLE, (4, 150), generator=torch.Generator().manual_seed(0))
    ids = ids.repeat_interleave(8, 0)
    how = {"max_new_tokens": 64, "eos_token_ids": [-1], "pad_token_id": 0}

    def step() -> None:
        generator = torch.Generator().manual_seed(1)
        sample_completions(model, ids, torch.ones_like(ids), generator=generator, **how)

    return step, 32 * 64, model


def rollout(vocabulary: int, folder: str, method: str):
    """A rollout with its four updates, the tokens sampled, and the model."""
    import torch
    from datasets import Dataset
    from rl_step import SharedPrefixGRPOTrainer, reward
    from trl import GRPOConfig

    from utils.data.records import Record
    from utils.methods.ppo.build import PPOTrainer
    from utils.methods.ppo.ppo_config import PPOConfig
    from utils.rewards.reward_pipeline import RewardPipeline
    from utils.rewards.spec import RewardSpec

    model, tokenizer = load(vocabulary, trainable=True)
    draw, words = random.Random(0), [" cash", " revenue", " year", " net", " total", " of", " the", " 12"]
    prompts = ["".join(draw.choice(words) for _ in range(165)) for _ in range(4)]
    size = {"num_generations": 8, "max_completion_length": 48}
    dataset = Dataset.from_dict({"prompt": prompts})
    if method == "grpo":
        own = {"steps_per_generation": 4, "num_iterations": 4, "beta": 0.04}
        args = arguments(GRPOConfig, folder, **size, **own)
        trainer = SharedPrefixGRPOTrainer(model, reward, args, dataset, processing_class=tokenizer)
    else:
        own = {"num_ppo_epochs": 4, "num_mini_batches": 1}
        args = arguments(PPOConfig, folder, **size, **own)
        records = [Record(str(number), "gsm8k", "", "", "", "1") for number in range(4)]
        pipeline = RewardPipeline(records, RewardSpec(), "task", None)
        trainer = PPOTrainer(model, pipeline, args, dataset, tokenizer, siblings=True)
    batch = [{"prompt": prompt, "record": number} for number, prompt in enumerate(prompts) for _ in range(8)]
    trainer.current_gradient_accumulation_steps = 4
    trainer.create_optimizer()
    trainer.eos_token_ids = [-1]  # nothing ends a completion but its length
    trainer.model.train()
    trained = [each for each in trainer.model.parameters() if each.requires_grad]

    def step() -> None:
        for _ in range(4):
            for _ in range(4):
                trainer.training_step(trainer.model, batch, None)
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            trainer.optimizer.step()
            trainer.model.zero_grad()
            trainer.state.global_step += 1

    return step, 32 * 48, model


def prepared(part: str, vocabulary: int, before: bool, folder: str):
    """A step of a part, run once to warm up, and the tokens in it."""
    import torch

    torch.set_num_threads(1)
    if part in ("sft", "longest"):
        step, tokens, trained = supervised(vocabulary, before, folder, part == "longest")
    else:
        own = sampling(vocabulary) if part == "sampling" else rollout(vocabulary, folder, part)
        step, tokens, trained = own
    if before:
        undo(trained)
    step()
    return step, tokens


def measure(part: str, vocabulary: int, before: bool) -> dict[str, float]:
    """Seconds of the processor that one step takes once warm, tokens in it, and peak memory, GB."""
    with tempfile.TemporaryDirectory() as folder:
        step, tokens = prepared(part, vocabulary, before, folder)
        began = time.process_time()
        step()
        seconds = time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {"seconds": seconds, "tokens": tokens, "peak": peak}


def profile(part: str, vocabulary: int) -> list[str]:
    """Cells of the table of --profile."""
    import torch
    from torch.profiler import ProfilerActivity
    from torch.utils.flop_counter import FlopCounterMode

    with tempfile.TemporaryDirectory() as folder:
        step, _ = prepared(part, vocabulary, False, folder)
        with FlopCounterMode(display=False) as counted:  # the profiler's own count keeps all tensors
            step()
        began, worked = time.perf_counter(), time.process_time()
        with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as found:
            step()
            # The profiler's seconds go on where other work has the core.
            share = (time.process_time() - worked) / (time.perf_counter() - began)
    seconds = dict.fromkeys(KINDS, 0.0)
    for event in found.key_averages():
        kind = next((kind for kind, names in KINDS.items() if event.key in names), "other")
        seconds[kind] += share * event.self_cpu_time_total / 1e6
    operations = sum(
        number
        for name, number in counted.get_flop_counts()["Global"].items()
        if str(name).replace(".", "::") in KINDS["products"]
    )
    a, b = torch.randn(2048, 576), torch.randn(576, 1536)
    rounds, began = 50, time.process_time()
    for _ in range(rounds):
        a @ b
    alone = rounds * 2 * a.numel() * b.shape[1] / (time.process_time() - began)
    rates = (operations / seconds["products"], alone)
    return [*(f"{value:.1f}" for value in seconds.values()), *(f"{rate / 1e9:.0f}" for rate in rates)]


def print_row(cells: Sequence[str]) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


def print_head(columns: Sequence[str]) -> None:
    print_row(columns)
    print("|---" * len(columns) + "|", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--vocabularies", nargs="+", type=int, default=[VOCABULARY, 151_936])
    parser.add_argument("--rounds", type=int, default=2, help="processes of each side (default 2)")
    parser.add_argument("--profile", action="store_true", help="where the time goes now")
    parser.add_argument("--side", choices=("before", "after"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not (MODEL / "config.json").is_file():
        parser.error("models/smollm2-135m is not there: ./download.sh model smollm2-135m")
    if options.side:  # one of the processes
        found = measure(options.parts[0], options.vocabularies[0], options.side == "before")
        print(json.dumps(found))
        return
    if options.profile:
        print_head(["part", "vocabulary", *(f"{kind} s" for kind in KINDS), "GFLOP/s in products", "alone"])
        for part in options.parts:
            for vocabulary in options.vocabularies:
                print_row([part, f"{vocabulary:,}", *profile(part, vocabulary)])
        return
    columns = ["part", "vocabulary", "tokens", "before s", "after s", "ratio", "tokens/s", "before GB", "GB"]
    print_head(columns)
    for part in options.parts:
        for vocabulary in options.vocabularies:
            found = {"before": [], "after": []}
            for side in ("before", "after") * options.rounds:
                asked = ["--parts", part, "--vocabularies", str(vocabulary), "--side", side]
                command = [sys.executable, __file__, *asked]
                output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                found[side].append(json.loads(output.splitlines()[-1]))
            old, new = (statistics.median(each["seconds"] for each in found[side]) for side in found)
            peaks = [max(each["peak"] for each in found[side]) for side in found]
            tokens = found["after"][0]["tokens"]
            cells = [part, f"{vocabulary:,}", f"{tokens:,}", f"{old:.1f}", f"{new:.1f}", f"{old / new:.2f}x"]
            cells += [f"{tokens / new:.0f}", *(f"{peak:.1f}" for peak in peaks)]
            print_row(cells)


if __name__ == "__main__":
    main()
