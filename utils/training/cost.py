"""What a method costs: completions it samples, tokens it generates and trains on, seconds by phase.

Counts are the same on every execution and go into the manifest; seconds go into runtime.json. Both are part
of every resume point, so a resumed stage ends with the counts of an uninterrupted one, and with the seconds
that led to its result (what was lost with a kill is not in them).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from utils.frame.files import read_json, write_json
from utils.frame.stage import StageContext

COST_FILE = "cost.json"
PHASES = ("sampling", "scoring", "updating")


class Cost:
    """Counts of a stage, over all processes, and its seconds in each of `PHASES`, in this process.

    sampled_completions: completions sampled to learn from (not those of validation).
    generated_tokens: their tokens.
    trained_tokens: completion tokens that went through a gradient; every pass counts.
    """

    def __init__(self):
        self.sampled_completions = self.generated_tokens = self.trained_tokens = 0
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._open: list[str] = []  # phases under way, the innermost last
        self._since = 0.0

    def sampled(self, completions: int, tokens: int) -> None:
        """Count sampled completions and the tokens in them."""
        self.sampled_completions += completions
        self.generated_tokens += tokens

    def trained(self, tokens: int) -> None:
        """Count completion tokens of one forward and backward pass."""
        self.trained_tokens += tokens

    def begin(self, phase: str) -> None:
        """Begin a phase; the one under way, if any, pauses until this one ends."""
        self._charge()
        self._open.append(phase)

    def end(self) -> None:
        """End the innermost phase."""
        self._charge()
        self._open.pop()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """`begin` and `end` around a block."""
        self.begin(name)
        try:
            yield
        finally:
            self.end()

    def _charge(self) -> None:
        """Add the time since the last call to the innermost phase."""
        if torch.cuda.is_available():  # work is queued there: wait for what belongs to this phase
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now

    def counts(self) -> dict[str, int]:
        """What the manifest states."""
        return {
            "sampled_completions": self.sampled_completions,
            "generated_tokens": self.generated_tokens,
            "trained_tokens": self.trained_tokens,
        }

    def report(self, ctx: StageContext) -> None:
        """Leave the counts for the stage's manifest and the seconds for its runtime.json."""
        ctx.metrics["cost"] = self.counts()
        ctx.runtime["seconds_by_phase"] = {name: round(value, 2) for name, value in self.seconds.items()}

    def state_dict(self) -> dict[str, Any]:
        """Counts and seconds, as JSON data for a resume point."""
        return self.counts() | {"seconds": dict(self.seconds)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        for name in self.counts():
            setattr(self, name, state[name])
        self.seconds = dict(state["seconds"])


class CountsCost:
    """Trainer mixin: `cost`, kept in every resume point. Put it before the trainer among the base classes."""

    def __init__(self, *args: Any, **kwargs: Any):
        self.cost = Cost()
        super().__init__(*args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        # The trainer's state, by which a resume point is known to be complete, is written after this.
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            write_json(Path(output_dir) / COST_FILE, self.cost.state_dict())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.cost.load_state_dict(read_json(Path(checkpoint) / COST_FILE))


class MeasuresUpdates(TrainerCallback):
    """The time of an optimizer step that is neither sampling nor scoring is updating.

    With ``samples``, every log row also says how many completions had been sampled by then. Add it before
    callbacks that work at the end of a step, whose time is not to be counted.
    """

    def __init__(self, cost: Cost, samples: bool):
        self.cost, self.samples = cost, samples

    def on_step_begin(self, args, state, control, **kwargs):
        self.cost.begin("updating")

    def on_step_end(self, args, state, control, **kwargs):
        self.cost.end()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.samples:
            state.log_history[-1]["sampled_completions"] = self.cost.sampled_completions
