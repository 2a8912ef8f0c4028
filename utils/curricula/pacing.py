"""Curricula by level: a pool of prompts that grows from one end. Defined in docs/curricula.md."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

from utils.curricula.curriculum import Curriculum, with_levels
from utils.curricula.settings import CurriculumSettings
from utils.data.records import Record
from utils.frame.files import derive_seed


def competence(rollout: int, num_rollouts: int, start_fraction: float, pacing_fraction: float) -> float:
    """The share c(t) of the sorted records in the pool at rollout t = 0 ... S - 1:

    c(t) = min(1, start_fraction + (1 - start_fraction) * t / (pacing_fraction * S))
    """
    return min(1.0, start_fraction + (1 - start_fraction) * rollout / (pacing_fraction * num_rollouts))


def pool_size(share: float, records: int) -> int:
    """ceil(share * records), blind to the rounding of the product (0.07 * 100 is a little above 7)."""
    return min(records, math.ceil(share * records - 1e-9))


class Pacing(Curriculum):
    """easy_to_hard, hard_to_easy: linear pacing over levels (after Platanios et al. 2019, arXiv 1903.09848).

    Records are sorted by level (hard_to_easy: highest first), ties in an order drawn from the seed. At
    rollout t the pool is the first ceil(c(t) * n) of them (see `competence`), but never fewer than a rollout
    takes. Prompts are drawn uniformly from the pool, without replacement within a rollout; every rollout is
    drawn anew.
    """

    def __init__(
        self,
        name: str,
        settings: CurriculumSettings,
        records: Sequence[Record],
        *,
        seed: int,
        num_rollouts: int,
    ):
        usable = with_levels(name, records)
        super().__init__(name, settings, seed, usable, records)
        self.num_rollouts = num_rollouts
        ties = list(usable)
        random.Random(derive_seed(seed, "curriculum", "ties")).shuffle(ties)
        sign = -1 if name == "hard_to_easy" else 1
        self.order = sorted(ties, key=lambda place: sign * self.levels[place])
        self._share, self._pool = 0.0, 0

    def _choose(self, count: int, draw: random.Random) -> list[int]:
        settings = self.settings
        self._share = competence(
            self.rollout, self.num_rollouts, settings.start_fraction, settings.pacing_fraction
        )
        self._pool = max(count, pool_size(self._share, len(self.order)))
        return draw.sample(self.order[: self._pool], count)

    def row(self) -> dict[str, Any]:
        """Levels with the numbers drawn and in the pool; the pool's size and share."""
        drawn = Counter(self.levels[place] for place in self.chosen)
        pool = Counter(self.levels[place] for place in self.order[: self._pool])
        levels = sorted({self.levels[place] for place in self.usable})
        return {
            "pool": self._pool,
            "competence": self._share,
            "arms": {str(level): {"count": drawn[level], "available": pool[level]} for level in levels},
        }
