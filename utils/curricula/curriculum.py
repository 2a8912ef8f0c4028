"""What every curriculum is: which prompts a rollout is made of. Defined in docs/curricula.md.

A curriculum is asked when a rollout begins (`choose`) and told how it went (`observe`). Its choices depend on
its seed, its settings, the records and what it was told, and on nothing else: processes that are told the
same choose the same.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from utils.curricula.settings import CurriculumSettings
from utils.data.records import Record
from utils.frame.files import UserError, derive_seed

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
