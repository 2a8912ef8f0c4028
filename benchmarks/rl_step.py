"""Time one GRPO step of stock TRL against SharedPrefix, and check that both compute the same.

    python benchmarks/rl_step.py [--repeats 2] [--shapes 512/32/4x8 128/128/4x8 1024/64/2x16]

A step is everything between two optimizer updates: sampling, reward, scoring under policy and reference,
loss, backward pass, gradient clipping, Adam. Both trainers share configuration, prompts and initial
weights (a random Llama, 6 layers, width 256, full fine-tuning in float32), take turns in one process, and
always sample completions of full length. The agreement columns feed both trainers the same completions
for two steps, with a policy that has moved away from its reference. Prints a Markdown table; ratios are
of median times.
"""

import argparse
import statistics
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging
from trl import GRPOConfig, GRPOTrainer

from utils.rollouts.shared_prefix_trainer import SharedPrefix

VOCABULARY = 1024
WIDTH = 256


class SharedPrefixGRPOTrainer(SharedPrefix, GRPOTrainer):
    pass


@dataclass(frozen=True)
class Shape:
    """Tokens a prompt, tokens a completion, prompts a step, completions a prompt: `512/32/4x8`."""

    prompt: int
    completion: int
    prompts: int
    group: int

    @classmethod
    def parse(cls, text: str) -> "Shape":
        prompt, completion, rows = text.split("/")
        return cls(int(prompt), int(completion), *(int(n) for n in rows.split("x")))


def make_tokenizer(size: int = VOCABULARY) -> PreTrainedTokenizerFast:
    vocabulary = {f"t{i}": i for i in range(size - 2)} | {"<pad>": size - 2, "<eos>": size - 1}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )


def save_model(folder: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=WIDTH * 43 // 16,
        num_hidden_layers=6,
        num_attention_heads=8,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=VOCABULARY - 1,
        pad_token_id=VOCABULARY - 2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def now() -> float:
    """Seconds on a clock, once what was asked of a GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def reward(completion_ids: list[list[int]], **_) -> list[float]:
    return [sum(token % 7 for token in ids) / len(ids) for ids in completion_ids]


class Stepper:
    """One trainer of the model in ``folder``, stepped by hand, so that two trainers can take turns.

    ``size`` is the model's vocabulary, its last two tokens padding and end; ``bf16`` on a GPU, if there is
    one, in place of float32 on the CPU.
    """

    def __init__(
        self,
        kind: type[GRPOTrainer],
        shape: Shape,
        micro_batch: int,
        folder: Path,
        size: int = VOCABULARY,
        bf16: bool = False,
    ):
        generator = torch.Generator().manual_seed(1)
        words = torch.randint(VOCABULARY - 2, (shape.prompts, shape.prompt), generator=generator).tolist()
        prompts = [" ".join(f"t{word}" for word in row) for row in words]
        rows = shape.prompts * shape.group
        micro_batch = min(micro_batch, rows)
        args = GRPOConfig(
            output_dir=str(folder / "output"),
            per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=rows // micro_batch,
            num_generations=shape.group,
            max_completion_length=shape.completion,
            beta=0.04,
            learning_rate=1e-4,
            gradient_checkpointing=False,
            bf16=bf16,
            use_cpu=not (bf16 and torch.cuda.is_available()),
            report_to=[],
            save_strategy="no",
        )
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16 if bf16 else torch.float32)
        with torch.no_grad():  # the reference keeps the saved weights
            for parameter in model.parameters():
                parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
        self.trainer = kind(
            model=model,
            reward_funcs=reward,
            args=args,
            train_dataset=Dataset.from_dict({"prompt": prompts}),
            processing_class=make_tokenizer(size),
        )
        self.batch = [{"prompt": prompt} for prompt in prompts for _ in range(shape.group)]
        self.accumulation = args.gradient_accumulation_steps
        self.trainer.current_gradient_accumulation_steps = self.accumulation
        self.trainer.create_optimizer()
        # Random models stop at random: nothing ends a completion but its length.
        self.trainer.eos_token_ids = [-1]
        self.trainer.generation_config.eos_token_id = None
        self.trainer.generation_kwargs["eos_token_id"] = None
        self.sample = self.trainer._generate_single_turn
        self.trainer._generate_single_turn = self._timed_sampling
        self.fixed = None  # completions to use instead of sampling
        self.sampling_time = 0.0

    def _timed_sampling(self, *args, **kwargs):
        if self.fixed is not None:
            return self.fixed, None
        start = now()
        result = self.sample(*args, **kwargs)
        self.sampling_time = now() - start
        return result

    def step(self) -> float:
        """Make one optimizer step; return the loss summed over its micro-batches."""
        trainer = self.trainer
        loss = sum(
            float(trainer.training_step(trainer.model, self.batch, None)) for _ in range(self.accumulation)
        )
        self.gradient = (
            torch.cat([p.grad.flatten() for p in trainer.model.parameters()]) if self.fixed else None
        )
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.model.zero_grad()
        trainer.state.global_step += 1
        return loss

    def timed_step(self) -> tuple[float, float]:
        """Return the seconds of one step, and those of its sampling."""
        start = now()
        self.step()
        return now() - start, self.sampling_time


def agreement(stock: Stepper, shared: Stepper, shape: Shape) -> tuple[float, float]:
    """Return the largest loss difference and relative gradient difference over two steps on equal samples."""
    generator = torch.Generator().manual_seed(2)
    size = (shape.prompts * shape.group, shape.completion)
    completions = torch.randint(VOCABULARY - 2, size, generator=generator).tolist()
    losses, gradients = [], []
    for _ in range(2):
        for stepper in (stock, shared):
            stepper.fixed = completions
        losses.append(abs(stock.step() - shared.step()))
        gradients.append(float((stock.gradient - shared.gradient).norm() / stock.gradient.norm()))
    stock.fixed = shared.fixed = None
    return max(losses), max(gradients)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=2, help="timed steps of each trainer (default 2)")
    parser.add_argument("--shapes", nargs="+", default=["512/32/4x8", "128/128/4x8", "1024/64/2x16"])
    parser.add_argument("--micro_batch", type=int, default=32, help="completions a forward pass (default 32)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1: steady under load)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    columns = ["prompt / completion / prompts x group", "step", "sampling", "rest", "stock s", "shared s"]
    columns += ["loss difference", "gradient difference"]
    print("| " + " | ".join(columns) + " |")
    print("|---" * len(columns) + "|", flush=True)
    for text in options.shapes:
        shape = Shape.parse(text)
        with tempfile.TemporaryDirectory() as folder:
            save_model(Path(folder))
            stock, shared = (
                Stepper(kind, shape, options.micro_batch, Path(folder))
                for kind in (GRPOTrainer, SharedPrefixGRPOTrainer)
            )
            loss, gradient = agreement(stock, shared, shape)  # also warms both up
            times = [(stock.timed_step(), shared.timed_step()) for _ in range(options.repeats)]
        whole = [statistics.median(pair[side][0] for pair in times) for side in (0, 1)]
        sampling = [statistics.median(pair[side][1] for pair in times) for side in (0, 1)]
        rest = [statistics.median(pair[side][0] - pair[side][1] for pair in times) for side in (0, 1)]
        ratios = [f"{a / b:.2f}x" for a, b in (whole, sampling, rest)]
        cells = [text, *ratios, f"{whole[0]:.2f}", f"{whole[1]:.2f}", f"{loss:.1e}", f"{gradient:.1e}"]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
