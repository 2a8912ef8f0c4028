"""Curricula: which prompts a rollout is made of. Defined in docs/curricula.md.

A curriculum is asked when a rollout begins (`choose`) and told how it went (`observe`). Its choices depend on
its seed, its settings, the records and what it was told, and on nothing else: processes that are told the
same choose the same. The curricula of one process each:

    random                      none: the trainer's own order, every prompt once an epoch
    easy_to_hard, hard_to_easy  `Pacing`: a pool that grows in order of level
    sec                         `utils.training.curriculum_bandit.SEC`: a bandit over categories of prompts
    pass_rate                   `PassRate`: prompts whose recent success lies within a band
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

from utils.common import UserError, derive_seed
from utils.data.records import Record
from utils.training.curriculum_settings import CURRICULA, DEFAULT_CURRICULUM, CurriculumSettings

UNKNOWN = -1.0  # a signal's value where it is not known; all signals are at least 0


class Curriculum:
    """What all curricula share. A rollout's prompts are given as places among the training records.

    needs: the signals that `observe` must be given. probes: records to be measured before every `choose`.
    usable: the records that can be chosen; the others lack what the curriculum goes by.
    """

    needs: frozenset[str] = frozenset()
    probes: Sequence[int] = ()

    def __init__(
        self,
        name: str,
        settings: CurriculumSettings,
        seed: int,
        usable: list[int],
        records: Sequence[Record],
    ):
        self.name, self.settings, self.seed, self.usable = name, settings, seed, usable
        self.ids = [record.id for record in records]
        self.levels = [record.level for record in records]
        self.rollout = 0  # rollouts chosen so far
        self.chosen: list[int] = []  # the last one's prompts

    @property
    def num_records(self) -> int:
        """Training records in all."""
        return len(self.ids)

    @property
    def mean_level(self) -> float | None:
        """The mean level of the last choice, None where no prompt of it has one."""
        levels = [self.levels[place] for place in self.chosen if self.levels[place] is not None]
        return sum(levels) / len(levels) if levels else None

    @property
    def left_out(self) -> int:
        """Records that are never chosen."""
        return self.num_records - len(self.usable)

    def choose(self, count: int) -> list[int]:
        """The next rollout's prompts, in order; distinct as far as the definition of the curriculum allows.

        Raises UserError where fewer than ``count`` records can be chosen.
        """
        if count > len(self.usable):
            raise UserError(
                f"a rollout takes {count} prompts and --curriculum {self.name} can choose from "
                f"{len(self.usable)} of {self.num_records} training records: make rollouts smaller"
            )
        draw = random.Random(derive_seed(self.seed, "curriculum", self.rollout))
        self.chosen = self._choose(count, draw)
        self.rollout += 1
        return self.chosen

    def _choose(self, count: int, draw: random.Random) -> list[int]:
        raise NotImplementedError

    def measure(self, values: Sequence[float]) -> None:
        """What the `probes` measure now, before the next `choose`."""

    def observe(self, signals: dict[str, Sequence[float]]) -> None:
        """How the last rollout went: for each signal a number per chosen prompt, at least 0, or `UNKNOWN`."""

    def row(self) -> dict[str, Any]:
        """The last choice for the log, to be asked before `observe`: the prompts drawn, in numbers by arm."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """All that `choose` goes by besides settings, seed and records, as JSON data."""
        return {"name": self.name, "num_records": self.num_records, "rollout": self.rollout}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave. Raises UserError for another curriculum's state."""
        for name in ("name", "num_records"):
            if state[name] != getattr(self, name):
                raise UserError(
                    f"the resume point's curriculum has {name} {state[name]}, this run's "
                    f"{getattr(self, name)}: start again with --overwrite"
                )
        self.rollout = state["rollout"]


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
    from utils.training.curriculum_bandit import SEC

    if name not in CURRICULA:
        raise UserError(f"--curriculum must be one of {', '.join(CURRICULA)}, found {name}")
    if name == DEFAULT_CURRICULUM:
        return None
    if name == "pass_rate":
        return PassRate(settings, records, seed=seed)
    if name == "sec":
        return SEC(settings, records, seed=seed, signal=signal)
    return Pacing(name, settings, records, seed=seed, num_rollouts=num_rollouts)


def with_levels(name: str, records: Sequence[Record]) -> list[int]:
    """The places of the records that have a level. Raises UserError where none has."""
    return having(name, "level", [record.level is not None for record in records])


def having(name: str, what: str, present: Sequence[bool]) -> list[int]:
    """The places of the records with ``what``. Raises UserError where there are none."""
    found = [place for place, has in enumerate(present) if has]
    if not found:
        raise UserError(
            f"--curriculum {name} goes by each record's {what}, and none of the {len(present)} training "
            "records has one: use --curriculum random or pass_rate"
        )
    return found


# ---------------------------------------------------------------------------------------------- pacing


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


# ------------------------------------------------------------------------------------------- pass rate


class PassRate(Curriculum):
    """pass_rate: keeps to prompts whose recent success lies within [pass_rate_low, pass_rate_high].

    A prompt's recent success is that of its first visit, then an exponential mean over visits with weight
    ``success_alpha`` on the last; a visit's success is the share of its completions that are right. Each
    place of a rollout goes to a prompt outside the band with probability ``exploration``, else to an unseen
    one with probability ``unseen_share``, else to one in the band; the prompt is drawn uniformly among those
    of its kind not in the rollout yet. Where none is left, the place goes to the first of (in band, unseen,
    outside) that has one.
    """

    needs = frozenset({"success"})
    KINDS = ("in_band", "unseen", "outside")

    def __init__(self, settings: CurriculumSettings, records: Sequence[Record], *, seed: int):
        super().__init__("pass_rate", settings, seed, list(range(len(records))), records)
        self.success: dict[int, float] = {}  # prompt -> recent success
        self._drawn: Counter[str] = Counter()
        self._available: dict[str, int] = {}

    def kind(self, place: int) -> str:
        """Which of `KINDS` a prompt is now."""
        if place not in self.success:
            return "unseen"
        low, high = self.settings.pass_rate_low, self.settings.pass_rate_high
        return "in_band" if low <= self.success[place] <= high else "outside"

    def _choose(self, count: int, draw: random.Random) -> list[int]:
        left: dict[str, list[int]] = {kind: [] for kind in self.KINDS}
        for place in self.usable:
            left[self.kind(place)].append(place)
        self._available = {kind: len(places) for kind, places in left.items()}
        self._drawn = Counter()
        chosen = []
        for _ in range(count):
            outside, unseen = draw.random(), draw.random()
            wanted = "in_band"
            if outside < self.settings.exploration:
                wanted = "outside"
            elif unseen < self.settings.unseen_share:
                wanted = "unseen"
            kind = next(kind for kind in (wanted, *self.KINDS) if left[kind])
            places = left[kind]
            at = draw.randrange(len(places))
            places[at], places[-1] = places[-1], places[at]
            chosen.append(places.pop())
            self._drawn[kind] += 1
        return chosen

    def observe(self, signals: dict[str, Sequence[float]]) -> None:
        """Take in the success of every chosen prompt. Raises UserError where it is known of none."""
        if all(success == UNKNOWN for success in signals["success"]):
            raise UserError(
                "--curriculum pass_rate goes by the success of completions, and none of the rollout was "
                "graded: choose another curriculum"
            )
        rate = self.settings.success_alpha
        for place, success in zip(self.chosen, signals["success"], strict=True):
            if success != UNKNOWN:
                last = self.success.get(place, success)
                self.success[place] = (1 - rate) * last + rate * success

    def row(self) -> dict[str, Any]:
        """Kinds with the numbers drawn and there to be drawn; the pool is all that is not outside."""
        return {
            "pool": self._available["in_band"] + self._available["unseen"],
            "arms": {
                kind: {"count": self._drawn[kind], "available": self._available[kind]} for kind in self.KINDS
            },
        }

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"success": {str(place): rate for place, rate in self.success.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.success = {int(place): rate for place, rate in state["success"].items()}
