"""`FollowsCurriculum`: a trainer on rollouts whose prompts a curriculum chooses.

The prompts are chosen when a rollout begins, not by the data loader, which fetches ahead of the feedback.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from utils.curricula.build import build_curriculum
from utils.curricula.curriculum import UNKNOWN, Curriculum
from utils.data.records import Record
from utils.frame.files import UserError, read_json, write_json
from utils.frame.pipeline import DEFAULT_CURRICULUM
from utils.frame.processes import is_main_process, merge_shares, share
from utils.frame.stage import StageContext
from utils.rollouts.curriculum_log import LOG_FILE, report_curriculum
from utils.rollouts.rollout_log import RolloutLog

if TYPE_CHECKING:
    from utils.rollouts.start import OutcomeRewards

STATE_FILE = "curriculum_state.json"


class ChoiceLog(RolloutLog):
    """A class of its own: Transformers warns of a second callback of the same."""


class FollowsCurriculum:
    """Trainer mixin: where `curriculum` is set, it chooses the prompts of every rollout.

    Put it before `SharedPrefix` among the base classes. The data set's rows are in the order of the
    curriculum's records. On several processes all choose the same prompts, each works on its share, and all
    are told of the whole rollout. The curriculum's state is part of every resume point.

    outcomes: what grades the completions, where the rollout itself does not say what is ``correct``.
    curriculum_knows: the signals that the trainer can give, for `follow` to check; ``confidence_gap`` and
        ``gold_divergence`` are methods of trainers that know them (`ComparesOnGold`).
    """

    curriculum: Curriculum | None = None
    curriculum_log: RolloutLog | None = None
    outcomes: OutcomeRewards | None = None
    curriculum_knows: frozenset[str] = frozenset({"abs_advantage", "success"})

    def follow(self, curriculum: Curriculum, log: RolloutLog | None = None) -> None:
        """Let ``curriculum`` choose from now on, its choices written to ``log``.

        Raises UserError where it goes by a signal that this trainer does not have.
        """
        if missing := sorted(curriculum.needs - self.curriculum_knows):
            raise UserError(
                f"--curriculum {curriculum.name} goes by {', '.join(missing)}, and what this method knows is "
                f"{', '.join(sorted(self.curriculum_knows)) or 'nothing'}: choose another curriculum, or for "
                "sec other algo.curriculum.weights"
            )
        self.curriculum, self.curriculum_log = curriculum, log
        if log is not None:
            self.add_callback(log)

    def end_stage(self, ctx: StageContext) -> None:
        """Report what the curriculum did, once the training has ended."""
        if self.curriculum is not None and is_main_process():
            report_curriculum(ctx)
        super().end_stage(ctx)

    # ---------------------------------------------------------------------------------------------- hooks

    def curriculum_signals(self, rollout: dict[str, Tensor]) -> dict[str, Tensor]:
        """Signals of this process's completions, float64 [B] each, at least 0, or `UNKNOWN`.

        abs_advantage: the mean |advantage| over a completion's tokens; 0 where it has none in the loss.
        success: 1 where the answer is verified right, else 0.
        """
        mask = rollout["completion_mask"].double()
        size = rollout["advantages"].detach().double().abs()
        size = size if size.ndim == 2 else size[:, None]
        found = {"abs_advantage": (size * mask).sum(1) / mask.sum(1).clamp(min=1)}
        correct = rollout.get("correct")
        if self.outcomes is not None:
            correct = self.outcomes.paid.correct
        if correct is not None:
            found["success"] = correct.double()
        return found

    # -------------------------------------------------------------------------------------------- rollout

    def _next_rollout(self, generation_batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The rollout on the curriculum's prompts, in place of the given rows of the data set."""
        if self.curriculum is None:
            return super()._next_rollout(generation_batch)
        size = self.num_generations
        rows = len(generation_batch)
        prompts = rows * self.accelerator.num_processes // size
        if self.curriculum.probes:
            probes = self._over_records(self.gold_divergence, self.curriculum.probes)
            self.curriculum.measure(self._checked("probe KL", probes, -math.inf))  # may round to below 0
        chosen = self.curriculum.choose(prompts)
        self._log_choice()
        if (level := self.curriculum.mean_level) is not None:
            self._metrics["train"]["prompts/mean_level"].append(level)
        first = self.accelerator.process_index * rows
        mine = [chosen[row // size] for row in range(first, first + rows)]
        rollout = super()._next_rollout([self.train_dataset[place] for place in mine])
        self.curriculum.observe(self._signals(rollout, chosen))
        return rollout

    def _signals(self, rollout: dict[str, Tensor], chosen: Sequence[int]) -> dict[str, list[float]]:
        """What the curriculum needs to know of the whole rollout: a number per chosen prompt."""
        wanted, found = self.curriculum.needs, {}
        if wanted & {"abs_advantage", "success"}:
            for name, values in self.curriculum_signals(rollout).items():
                if name in wanted:
                    found[name] = self._by_prompt(name, self.accelerator.gather(values))
        if "confidence_gap" in wanted:
            gaps = self._over_records(self.confidence_gap, chosen)
            found["confidence_gap"] = self._checked("confidence gap", gaps)
        return found

    def _by_prompt(self, name: str, values: Tensor) -> list[float]:
        """The mean of each prompt's known values, of float64 [all completions]; `UNKNOWN` where none is."""
        self._checked(name, values.tolist())
        groups = values.reshape(-1, self.num_generations)
        known = groups != UNKNOWN
        count = known.sum(1)
        means = torch.where(known, groups, 0.0).sum(1) / count.clamp(min=1)
        return torch.where(count > 0, means, UNKNOWN).tolist()

    def _over_records(self, measured: Callable[[list[int]], Tensor], records: Sequence[int]) -> list[float]:
        """What ``measured`` finds for the records, each process measuring some of them."""
        own = share(records)
        return merge_shares(measured(own).tolist() if own else [])

    def _checked(self, name: str, values: list[float], least: float = 0.0) -> list[float]:
        """The values. Raises UserError for one that is not finite, or below ``least`` and not `UNKNOWN`."""
        for value in values:
            if not math.isfinite(value) or (value < least and value != UNKNOWN):
                raise UserError(
                    f"the curriculum's {name} is {value} at step {self.state.global_step}: lower "
                    "algo.learning_rate, or use model.torch_dtype float32; the last resume point is kept"
                )
        return values

    def _log_choice(self) -> None:
        if self.curriculum_log is not None and is_main_process():
            curriculum = self.curriculum
            ids = [curriculum.ids[place] for place in curriculum.chosen]
            row = {"rollout": curriculum.rollout - 1, **curriculum.row(), "ids": ids}
            self.curriculum_log.write(self.state.global_step, row)

    # ---------------------------------------------------------------------------------------------- state

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        # The trainer's state, by which a resume point is known to be complete, is written after this.
        super()._save_optimizer_and_scheduler(output_dir)
        if self.curriculum is not None and self.args.should_save:
            write_json(Path(output_dir) / STATE_FILE, self.curriculum.state_dict())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.curriculum is not None and checkpoint is not None:
            self.curriculum.load_state_dict(read_json(Path(checkpoint) / STATE_FILE))


def follow_curriculum(
    ctx: StageContext,
    trainer: FollowsCurriculum,
    records: Sequence[Record],
    num_rollouts: int,
    signal: str = "abs_advantage",
) -> None:
    """Let ``trainer`` follow the stage's ``--curriculum``, over ``num_rollouts`` rollouts in all.

    ``signal``: what sec's arms are rewarded for, where ``algo.curriculum.weights`` say nothing.
    Raises UserError as `build_curriculum` and `FollowsCurriculum.follow` do.
    """
    name = getattr(ctx.config.options, "curriculum", DEFAULT_CURRICULUM)
    curriculum = build_curriculum(
        name, ctx.config.algo.curriculum, records, seed=ctx.seed, num_rollouts=num_rollouts, signal=signal
    )
    if curriculum is None:
        return
    if curriculum.left_out:
        ctx.log(
            f"warning: --curriculum {name} never chooses {curriculum.left_out} of {len(records)} training "
            "records, which lack what it goes by"
        )
    ctx.metrics["curriculum"] = {"left_out": curriculum.left_out}
    trainer.follow(curriculum, ChoiceLog(ctx.out / "resume" / "curriculum", ctx.out / "logs" / LOG_FILE))
