"""Prompts by how often the policy solves them: nearest one half first."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

from utils.curricula.curriculum import UNKNOWN, Curriculum
from utils.curricula.settings import CurriculumSettings
from utils.data.records import Record
from utils.frame.files import UserError


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
