"""Validation by generation and reward during training, and the checkpoints it chooses between."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled, unset_hf_deepspeed_config

from utils.data.prompts import prompt_ids
from utils.data.records import Record
from utils.frame.files import atomic_path, write_json
from utils.frame.manifest import RESUME
from utils.frame.processes import is_main_process, num_processes, wait_for_everyone
from utils.models.loading import load_policy, save_policy
from utils.models.sampling import generate
from utils.models.sampling_memory import Room
from utils.models.settings import ModelConfig
from utils.rewards.spec import RewardSpec, verified
from utils.rewards.task_reward import graded_row


class GenerationValidation(TrainerCallback):
    """Every ``validation.eval_steps`` and at both ends: greedy answers to validation items, their reward.

    ``eval_steps`` counts ``unit`` optimizer steps each. Logs ``val_reward``, ``val_accuracy``,
    ``val_format_valid``, ``val_length`` (tokens), ``val_truncated`` and what the trainer's own
    ``validation_metrics(records)`` says, where it has that; writes ``valid_samples/step_N.json``
    and the checkpoints ``step_N`` and ``best`` (highest ``val_reward``, the earliest of equals). The reward
    is the task's alone (``verified``), whatever is trained on. What is best so far is read from the trainer's
    own log, which every resume point holds, so a resumed run chooses as an uninterrupted one.

    Without records nothing is validated, and ``best`` is ``final``.

    Set ``trainer`` before training starts.
    """

    def __init__(
        self,
        records: Sequence[Record],
        spec: RewardSpec,
        config: ModelConfig,
        tokenizer: PreTrainedTokenizerBase,
        out: Path,
        method: str,
        unit: int = 1,
    ):
        self.records, self.config, self.tokenizer = records, config, tokenizer
        self.prompts, self.spec = prompt_ids(tokenizer, records), verified(spec)
        self.out, self.checkpoints = out, out / f"ckpt_{method}"
        self.every = config.validation.eval_steps * unit
        # Every process is to have a part of the records.
        self.batch_size = min(config.generation.largest_batch, -(-len(records) // num_processes()) or 1)
        self.room = Room(config.generation)
        self.trainer: Trainer | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step == 0 and self.records:
            self.validate()

    def on_step_end(self, args, state, control, **kwargs):
        due = state.global_step % self.every == 0 or state.global_step == state.max_steps
        if due and self.records:
            should_log = control.should_log
            self.validate()
            control.should_log = should_log  # the log of the validation is not the log of the training step

    def validate(self) -> dict[str, float]:
        """Validate the policy as it is now; returns what was logged."""
        trainer = self.trainer
        completions = generate(
            self._whole_policy(),
            self.tokenizer,
            self.prompts,
            max_new_tokens=self.config.generation.max_new_tokens,
            batch_size=self.batch_size,
            across_processes=True,
            room=self.room,
        )
        rows = [
            {
                "id": record.id,
                "question": record.question,
                "gold": record.target_program or record.target_answer,
                **graded_row(record, completion, self.spec),
            }
            for record, completion in zip(self.records, completions, strict=True)
        ]
        step = trainer.state.global_step
        metrics = {
            "val_reward": _mean([row["reward"]["total"] for row in rows]),
            "val_accuracy": _mean([row["correct"] for row in rows]),
            "val_format_valid": _mean([row["parsed"] for row in rows]),
            "val_length": _mean([row["tokens"] for row in rows]),
            "val_truncated": _mean([row["truncated"] for row in rows]),
        }
        if hasattr(trainer, "validation_metrics"):
            metrics |= trainer.validation_metrics(self.records)
        earlier = [row["val_reward"] for row in trainer.state.log_history if "val_reward" in row]
        # Not TRL's log, which would mix the training metrics of this step into this row.
        Trainer.log(trainer, dict(metrics))
        if is_main_process():
            saved = rows[: self.config.validation.num_saved_samples]
            write_json(self.out / "valid_samples" / f"step_{step}.json", saved)
        if step > 0:
            self._write(self.checkpoints / f"step_{step}")
        if not earlier or metrics["val_reward"] > max(earlier):
            self._write(self.checkpoints / "best")
        return metrics

    def save_final(self) -> None:
        """Write ``final``: the policy as training left it."""
        self._write(self.checkpoints / "final")
        if not self.records:
            self._write(self.checkpoints / "best")

    def _whole_policy(self) -> nn.Module:
        """The policy, or where its weights are spread over processes a copy of it, by way of a checkpoint."""
        if not sharded(self.trainer):
            return self.trainer.accelerator.unwrap_model(self.trainer.model)
        folder = self.out / RESUME / "policy"
        self._write(folder)
        wait_for_everyone()
        with _unpartitioned(self.trainer):
            policy, _ = load_policy(folder, self.config.model)
        return policy

    def _write(self, path: Path) -> None:
        """Write the policy into the folder ``path``; a matter of all processes where it is sharded."""
        trainer = self.trainer
        model = trainer.accelerator.unwrap_model(trainer.model)
        weights = None
        if sharded(trainer):
            wrapped = trainer.model_wrapped if trainer.is_deepspeed_enabled else trainer.model
            weights = trainer.accelerator.get_state_dict(wrapped)
        if not is_main_process():
            return
        with atomic_path(path) as folder:
            save_policy(model, self.tokenizer, folder, weights)
            if hasattr(trainer, "save_critic"):
                trainer.save_critic(folder)


def sharded(trainer: Trainer) -> bool:
    """Whether no process has all of the model's weights."""
    return trainer.is_fsdp_enabled or is_deepspeed_zero3_enabled()


@contextlib.contextmanager
def _unpartitioned(trainer: Trainer) -> Iterator[None]:
    """Let models that are loaded meanwhile have all of their weights, which ZeRO-3 would spread."""
    if not is_deepspeed_zero3_enabled():
        yield
        return
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        trainer.accelerator.state.deepspeed_plugin.set_deepspeed_weakref()


def best_row(history: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The log row with the highest validation reward, the earliest of equals."""
    validated = [row for row in history if "val_reward" in row]
    return max(validated, key=lambda row: (row["val_reward"], -row["step"]))


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 6)
