"""The reward pipeline of a stage: opened from the configuration, kept in every resume point, closed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from utils.data.records import Record
from utils.frame.files import read_json, write_json
from utils.frame.processes import gather_items, is_main_process, process_index, wait_for_everyone
from utils.frame.stage import StageContext
from utils.models.score_cache import open_cache
from utils.models.settings import ModelConfig
from utils.models.teacher import Teacher
from utils.rewards.reward_pipeline import RewardPipeline
from utils.rewards.spec import RewardSpec
from utils.rollouts.advantages import phantom_share

STATE_FILE = "reward_state.json"
SCORES_FILE = "teacher_scores.safetensors"


def open_pipeline(
    records: Sequence[Record],
    spec: RewardSpec,
    reward: str,
    model: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    gamma: float = 1.0,
    replicated: bool = False,
) -> RewardPipeline:
    """The pipeline for ``--reward``, with the configured teacher and its score cache where it needs one.

    ``replicated``: every process scores the same rollouts, and they share the teacher's work.

    Raises UserError as `Teacher.load` and `RewardPipeline` do.
    """
    teacher = None
    if RewardPipeline.needs_teacher(spec, reward):
        cache = open_cache(model.teacher_cache)
        teacher = Teacher.load(model.model, tokenizer, alpha=spec.intrinsic.alpha, cache=cache)
        teacher.across_processes = replicated
    return RewardPipeline(records, spec, reward, teacher, gamma=gamma, replicated=replicated)


def close_pipeline(ctx: StageContext, pipeline: RewardPipeline) -> None:
    """Share the teacher scores through ``teacher_cache.folder``, if there is one, and note the statistics.

    Without a shared folder the statistics depend on the stage's own work alone, so that its manifest stays
    the same between executions.
    """
    if pipeline.teacher is not None:
        cache, in_parts = pipeline.teacher.cache, pipeline.combiner.in_parts
        if is_main_process() or in_parts:
            cache.publish()
        stats = gather_items([cache.stats]) if in_parts else [cache.stats]
        counts = {name: sum(each[name] for each in stats) for name in cache.stats}
        asked = counts["hits"] + counts["misses"]
        ctx.metrics["teacher_cache"] = counts | {"hit_rate": round(counts["hits"] / max(1, asked), 6)}


class KeepsRewardState:
    """Trainer mixin: what rollouts change in ``self.pipeline`` is part of every resume point.

    Statistics of normalisers, evidence of adaptive weights, and the teacher scores with their cache's order
    and counts, so that a resumed run has the rewards and counts of an uninterrupted one. Of several processes
    each keeps its own scores; where others resume, those of new ones begin empty.
    """

    pipeline: RewardPipeline

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        """The stock rewards, [B of all processes, functions]; kept until the rollout is complete."""
        self._rewards = super()._calculate_rewards(*args, **kwargs)
        return self._rewards

    def _weighted_rewards(self) -> Tensor:
        """What each completion of the rollout of all processes is rewarded with in all, [B]."""
        return (self._rewards * self.reward_weights.to(self._rewards.device)).nansum(1)

    def _log_phantom(self, mass: Tensor, correct: Tensor) -> None:
        """Log what groups all right or all wrong have of the advantages; see `phantom_share`."""
        share = phantom_share(*map(self.accelerator.gather, (mass, correct)), self.num_generations)
        self._metrics["train"]["advantages/phantom"].append(share)

    def end_stage(self, ctx: StageContext) -> None:
        """What is left to do for the stage once the training has ended."""
        close_pipeline(ctx, self.pipeline)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        # The trainer's state, by which a resume point is known to be complete, is written after this.
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            folder = Path(output_dir)
            write_json(folder / STATE_FILE, self.pipeline.state_dict())
        if self.pipeline.teacher is not None:
            self.pipeline.teacher.cache.save(_scores_file(output_dir))
            wait_for_everyone()  # the resume point is complete once the main process goes on

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.pipeline.load_state_dict(read_json(Path(checkpoint) / STATE_FILE))
            if self.pipeline.teacher is not None:
                self.pipeline.teacher.cache.load(_scores_file(checkpoint))


def _scores_file(folder: str) -> Path:
    """Where this process keeps its teacher scores."""
    return Path(folder) / (f"{process_index()}_{SCORES_FILE}" if process_index() else SCORES_FILE)
