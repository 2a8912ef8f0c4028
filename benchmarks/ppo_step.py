"""Time one PPO step: what the teacher costs, and what shared prefixes save.

    python benchmarks/ppo_step.py [--repeats 2] [--shapes 512/32/4x8]

A step is a rollout and one optimizer update on it: sampling, scoring under policy (with values), reference
and teacher, reward, advantages, loss, backward pass, gradient clipping, Adam. One update per rollout makes
the teacher's share the largest it can be. Policy, reference and teacher are random Llamas of the same size (6
layers, width 256, float32; the policy fully trained), and completions always have full length.

The trainer runs twice, in turns in one process: with shared prefixes, and "plain", without them anywhere
(sampling by Transformers' `generate`, every sequence in full for all three models). The agreement columns
feed both the same completions for two steps. Prints a Markdown table; ratios are of median times.
"""

import argparse
import contextlib
import statistics
import sys
import tempfile
import warnings
from pathlib import Path
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rl_step import VOCABULARY, Shape, Stepper, agreement, now, save_model
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from utils.data.records import Record
from utils.methods.ppo.build import PPOTrainer
from utils.methods.ppo.ppo_config import PPOConfig
from utils.models import teacher as teacher_module
from utils.models.teacher import Teacher
from utils.rewards.reward_pipeline import RewardPipeline
from utils.rewards.spec import RewardSpec

SWITCHED_OFF = "switched off for comparison"
SETTINGS = (
    "output_dir",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_generations",
    "max_completion_length",
    "learning_rate",
    "gradient_checkpointing",
    "bf16",
    "use_cpu",
    "save_strategy",
)


class PPOStepper(Stepper):
    """A PPO trainer stepped by hand; `shared=False` runs it without shared prefixes anywhere."""

    def __init__(
        self,
        shared: bool,
        shape: Shape,
        micro_batch: int,
        folder: Path,
        size: int = VOCABULARY,
        bf16: bool = False,
    ):
        super().__init__(self._ppo_trainer, shape, micro_batch, folder, size, bf16)
        self.shared = shared
        if not shared:
            self.trainer._model_obstacle = lambda model: SWITCHED_OFF
        self.batch = [row | {"record": number // shape.group} for number, row in enumerate(self.batch)]
        self.teacher_score = self.trainer.pipeline.teacher.score
        self.trainer.pipeline.teacher.score = self._timed_teacher
        self.teacher_time = 0.0

    @staticmethod
    def _ppo_trainer(model, reward_funcs, args, train_dataset, processing_class) -> PPOTrainer:
        """The PPO trainer for what `Stepper` gives a GRPO trainer."""
        frozen = AutoModelForCausalLM.from_pretrained(model.config.name_or_path, dtype=model.dtype)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():  # neither the reference, which has the saved weights, nor the policy
            for parameter in frozen.parameters():
                parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
        records = [Record(str(row), "gsm8k", "", "", "", "1") for row in range(len(train_dataset))]
        return PPOTrainer(
            model=model,
            pipeline=RewardPipeline(
                records, RewardSpec(), "combined", Teacher(frozen.to(args.device), len(processing_class))
            ),
            args=PPOConfig(
                **{name: getattr(args, name) for name in SETTINGS},
                num_ppo_epochs=1,
                num_mini_batches=1,
                report_to=[],
            ),
            train_dataset=train_dataset,
            processing_class=processing_class,
        )

    def _timed_teacher(self, *args):
        plain = mock.patch.object(teacher_module, "obstacle", lambda model: SWITCHED_OFF)
        with contextlib.nullcontext() if self.shared else plain:
            start = now()
            scores = self.teacher_score(*args)
            self.teacher_time = now() - start
        return scores

    def timed_step(self) -> tuple[float, float]:
        """Return the seconds of one step, and those of the teacher in it."""
        seconds, _ = super().timed_step()
        return seconds, self.teacher_time


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=2, help="timed steps of each trainer (default 2)")
    parser.add_argument("--shapes", nargs="+", default=["512/32/4x8"])
    parser.add_argument("--micro_batch", type=int, default=32, help="completions a forward pass (default 32)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1: steady under load)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    columns = ["prompt / completion / prompts x group", "step", "teacher adds", "plain s", "shared s"]
    columns += ["teacher s", "loss difference", "gradient difference"]
    print("| " + " | ".join(columns) + " |")
    print("|---" * len(columns) + "|", flush=True)
    for text in options.shapes:
        shape = Shape.parse(text)
        with tempfile.TemporaryDirectory() as folder:
            save_model(Path(folder))
            plain, shared = (
                PPOStepper(kind, shape, options.micro_batch, Path(folder)) for kind in (False, True)
            )
            loss, gradient = agreement(plain, shared, shape)  # also warms both up
            times = [(plain.timed_step(), shared.timed_step()) for _ in range(options.repeats)]
        whole = [statistics.median(pair[side][0] for pair in times) for side in (0, 1)]
        teacher = statistics.median(pair[1][1] for pair in times)
        added = statistics.median(scored / (step - scored) for _, (step, scored) in times)
        ratios = [f"{whole[0] / whole[1]:.2f}x", f"{100 * added:.1f} %"]
        seconds = [f"{value:.2f}" for value in (*whole, teacher)]
        print(
            "| " + " | ".join([text, *ratios, *seconds, f"{loss:.1e}", f"{gradient:.1e}"]) + " |", flush=True
        )


if __name__ == "__main__":
    main()
