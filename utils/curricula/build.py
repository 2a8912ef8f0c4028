"""The curriculum that a configuration names."""

from __future__ import annotations

from collections.abc import Sequence

from utils.curricula.curriculum import Curriculum
from utils.curricula.pacing import Pacing
from utils.curricula.pass_rate import PassRate
from utils.curricula.settings import CurriculumSettings
from utils.data.records import Record
from utils.frame.files import UserError
from utils.frame.pipeline import CURRICULA, DEFAULT_CURRICULUM


def build_curriculum(
    name: str,
    settings: CurriculumSettings,
    records: Sequence[Record],
    *,
    seed: int,
    num_rollouts: int,
    signal: str = "abs_advantage",
) -> Curriculum | None:
    """The curriculum called ``name``; None for random, which is the trainer's own order.

    num_rollouts: rollouts of the whole training. signal: what sec's arms are rewarded for where
    ``settings.weights`` say nothing.
    Raises UserError for an unknown name, and where the records lack what the curriculum goes by.
    """
    from utils.curricula.bandit import SEC

    if name not in CURRICULA:
        raise UserError(f"--curriculum must be one of {', '.join(CURRICULA)}, found {name}")
    if name == DEFAULT_CURRICULUM:
        return None
    if name == "pass_rate":
        return PassRate(settings, records, seed=seed)
    if name == "sec":
        return SEC(settings, records, seed=seed, signal=signal)
    return Pacing(name, settings, records, seed=seed, num_rollouts=num_rollouts)
