"""The rules of `health.py` while a training runs."""

from __future__ import annotations

from transformers import TrainerCallback

from utils.frame.stage import StageContext
from utils.training.health.health_rules import all_warm_up, findings


class TrainingHealth(TrainerCallback):
    """Warns once per finding while training, in plain words, to the stage's log and nowhere else.

    It looks often, so chance would have many chances: a finding is said once it holds in two looks in a row,
    or at the end.
    A resumed process looks at the whole log again, and says again what still holds.
    """

    EVERY = 10  # logs

    def __init__(self, ctx: StageContext):
        self.ctx = ctx
        self.said: set[str] = set()
        self.seen: set[str] = set()
        self.logs = 0

    def on_train_begin(self, args, state, control, **kwargs):
        warm_up = args.get_warmup_steps(state.max_steps)
        if state.is_world_process_zero and all_warm_up(warm_up, state.max_steps):
            self.ctx.log(
                f"warning: the warm-up takes {warm_up} optimizer steps, the training {state.max_steps}: its "
                f"learning rate never reaches {args.learning_rate:g}. Try: lower algo.warmup_steps"
            )

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs += 1
        if self.logs % self.EVERY == 0:
            self._look(state)

    def on_train_end(self, args, state, control, **kwargs):
        self._look(state, last=True)

    def _look(self, state, last: bool = False) -> None:
        if not state.is_world_process_zero:
            return
        found = findings(state.log_history)
        for finding in found:
            if (last or finding.name in self.seen) and finding.name not in self.said:
                self.said.add(finding.name)
                self.ctx.log(f"warning: {finding.message}. Try: {finding.remedy}")
        self.seen = {finding.name for finding in found}
