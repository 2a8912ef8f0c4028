"""SEC: a bandit that learns which category of prompts to train on next (arXiv 2505.14970).

An arm is a category: a level, a type, or a type at a level. Every place of a rollout draws an arm,

    p(c) = floor / K + (1 - floor) exp(Q(c) / tau) / sum_k exp(Q(k) / tau)        (K arms)

and then one of its prompts without replacement; an arm that runs out is filled up again in a new order. After
the rollout, Q(c) <- (1 - alpha) Q(c) + alpha r(c), from Q = 0. The reward r(c), in [0, 1], is the weighted
mean of the arm's signals. Arms that were not drawn keep their Q, or with `decay_unvisited` have r = 0.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from utils.curricula.curriculum import UNKNOWN, Curriculum, having
from utils.curricula.settings import CurriculumSettings
from utils.data.records import Record
from utils.frame.files import derive_seed

PROBE = "probe_kl_drop"


def boltzmann(values: Sequence[float], tau: float, floor: float = 0.0) -> list[float]:
    """Probabilities floor / K + (1 - floor) softmax(values / tau); no overflow for finite values, tau > 0."""
    top = max(values)
    weights = [math.exp((value - top) / tau) for value in values]
    total = sum(weights)
    return [floor / len(values) + (1 - floor) * weight / total for weight in weights]


def percentile_of(values: Sequence[float], percent: float) -> float:
    """The percentile, linear between neighbours (NumPy's default)."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


class Scale:
    """Maps a signal, at least 0, to [0, 1]: min(1, value / reference).

    The reference is the given percentile of the values of the last ``window`` rollouts, this one included;
    the highest of them where that is 0, and 1 where all are 0, or no percentile is asked.
    """

    def __init__(self, percent: float | None, window: int):
        self.percent, self.window = percent, window
        self.recent: list[list[float]] = []  # known values of the last rollouts

    def __call__(self, values: Sequence[float]) -> list[float]:
        """The values in [0, 1]; `UNKNOWN` stays."""
        reference = 1.0
        known = [value for value in values if value != UNKNOWN]
        if self.percent is not None:
            self.recent = [*self.recent, known][-self.window :]
            pooled = [value for rollout in self.recent for value in rollout]
            if pooled:
                reference = percentile_of(pooled, self.percent) or max(pooled) or 1.0
        return [value if value == UNKNOWN else min(1.0, value / reference) for value in values]


def arm_labels(records: Sequence[Record], arms: str) -> list[str | None]:
    """The arm of every record ("3", "algebra", "algebra/3"); None where what makes the arm is missing."""
    parts = arms.split("_")

    def label(record: Record) -> str | None:
        values = {"level": record.level, "type": record.type or None}
        named = [values[part] for part in parts]
        return None if None in named else "/".join(map(str, named))

    return [label(record) for record in records]


def in_order(labels: Iterable[str]) -> list[str]:
    """Labels by type, then by level as a number."""

    def key(label: str) -> tuple[str, int, str]:
        kind, _, level = label.rpartition("/")
        return (kind, int(level), "") if level.lstrip("-").isdigit() else (kind, 0, level)

    return sorted(labels, key=key)


class SEC(Curriculum):
    """The bandit. ``signal``: what arms are rewarded for where the settings' weights say nothing."""

    def __init__(self, settings: CurriculumSettings, records: Sequence[Record], *, seed: int, signal: str):
        labels = arm_labels(records, settings.arms)
        what = " and ".join(settings.arms.split("_"))
        usable = having("sec", what, [label is not None for label in labels])
        super().__init__("sec", settings, seed, usable, records)
        self.label = labels
        self.arms = in_order({labels[place] for place in usable})
        weights = settings.weights.given() or {signal: 1.0}
        total = sum(weights.values())
        self.weights = {name: weight / total for name, weight in weights.items()}
        self.members = {arm: [place for place in usable if labels[place] == arm] for arm in self.arms}
        self.q = dict.fromkeys(self.arms, 0.0)
        self.probabilities: dict[str, float] = {}  # of the last choice
        self.rewards: dict[str, float] = {}  # of the arms of the last rollout that is known
        self._left: dict[str, list[int]] = {arm: [] for arm in self.arms}  # not drawn since the last refill
        self._refills = dict.fromkeys(self.arms, 0)
        self._scales = {name: Scale(settings.percentile, settings.scale_window) for name in self.weights}
        self._waiting: dict[str, dict[str, float]] | None = None  # signals by arm, until probes are measured
        self._probed: dict[str, float] | None = None  # the arms' KL before the last choice
        self._probes = self._draw_probes() if PROBE in self.weights else {}
        self.probes = list(itertools.chain.from_iterable(self._probes.values()))

    @property
    def needs(self) -> frozenset[str]:
        return frozenset(self.weights)

    # -------------------------------------------------------------------------------------------- choice

    def _choose(self, count: int, draw: random.Random) -> list[int]:
        probabilities = boltzmann([self.q[arm] for arm in self.arms], self.settings.tau, self.settings.floor)
        self.probabilities = dict(zip(self.arms, probabilities, strict=True))
        bounds = list(itertools.accumulate(probabilities))
        taken: dict[str, set[int]] = {arm: set() for arm in self.arms}
        chosen = []
        for _ in range(count):
            aim = draw.random() * bounds[-1]
            # Rounding may put the aim on the last bound itself.
            at = next((at for at, bound in enumerate(bounds) if aim < bound), len(bounds) - 1)
            arm = self.arms[at]
            chosen.append(self._next_of(arm, taken[arm]))
            taken[arm].add(chosen[-1])
        return chosen

    def _next_of(self, arm: str, taken: set[int]) -> int:
        """The arm's next prompt; one that the rollout has already only where the arm has no other."""
        fresh = len(taken) < len(self.members[arm])
        if not self._left[arm]:
            self._left[arm] = self._shuffled(arm)
        left = self._left[arm]
        return left.pop(next(at for at, place in enumerate(left) if not (fresh and place in taken)))

    def _shuffled(self, arm: str) -> list[int]:
        """All prompts of an arm in the order of its next refill."""
        order = list(self.members[arm])
        random.Random(derive_seed(self.seed, "curriculum", arm, self._refills[arm])).shuffle(order)
        self._refills[arm] += 1
        return order

    # ------------------------------------------------------------------------------------------ feedback

    def observe(self, signals: dict[str, Sequence[float]]) -> None:
        """Reward the arms of the last rollout; where probes are needed, once they have been measured."""
        by_arm: dict[str, dict[str, float]] = {self.label[place]: {} for place in self.chosen}
        for name in self.weights.keys() - {PROBE}:
            scaled = self._scales[name](signals[name])
            for arm in by_arm:
                known = [
                    value
                    for place, value in zip(self.chosen, scaled, strict=True)
                    if self.label[place] == arm and value != UNKNOWN
                ]
                if known:
                    by_arm[arm][name] = sum(known) / len(known)
        self._waiting = by_arm
        if not self.probes:
            self._learn()

    def measure(self, values: Sequence[float]) -> None:
        """The probes' KL, nats per token, in the order of `probes`."""
        found = iter(values)
        now = {}
        for arm, probes in self._probes.items():
            part = list(itertools.islice(found, len(probes)))
            now[arm] = sum(part) / len(part)
        if self._waiting is not None and self._probed is not None:
            arms = [arm for arm in self.arms if arm in self._waiting]
            drops = [max(0.0, self._probed[arm] - now[arm]) for arm in arms]
            for arm, drop in zip(arms, self._scales[PROBE](drops), strict=True):
                self._waiting[arm][PROBE] = drop
            self._learn()
        self._probed = now

    def _learn(self) -> None:
        """Move Q towards the rewards of the arms that were drawn, and perhaps that of the others to 0."""
        self.rewards = {}
        for arm, parts in self._waiting.items():
            if parts:
                total = sum(self.weights[name] for name in parts)
                self.rewards[arm] = sum(self.weights[name] * value for name, value in parts.items()) / total
        rewards = dict(self.rewards)
        if self.settings.decay_unvisited:
            rewards |= {arm: 0.0 for arm in self.arms if arm not in self._waiting}
        for arm, reward in rewards.items():
            self.q[arm] = (1 - self.settings.alpha) * self.q[arm] + self.settings.alpha * reward
        self._waiting = None

    def _draw_probes(self) -> dict[str, list[int]]:
        """Records of each arm, the same throughout the training."""
        size = self.settings.probe_size
        return {
            arm: random.Random(derive_seed(self.seed, "curriculum", "probes", arm)).sample(
                places, min(size, len(places))
            )
            for arm, places in self.members.items()
        }

    # --------------------------------------------------------------------------------------- log and state

    def row(self) -> dict[str, Any]:
        """Each arm's Q and probability at the choice, the number drawn, and its reward of the rollout before,
        where it had one, by which it came to its Q."""
        drawn = Counter(self.label[place] for place in self.chosen)
        arms = {}
        for arm in self.arms:
            arms[arm] = {"count": drawn[arm], "q": self.q[arm], "probability": self.probabilities[arm]}
            if arm in self.rewards:
                arms[arm]["reward_before"] = self.rewards[arm]
        return {"pool": len(self.usable), "repeated": len(self.chosen) - len(set(self.chosen)), "arms": arms}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "q": self.q,
            "rewards": self.rewards,
            "left": self._left,
            "refills": self._refills,
            "recent": {name: scale.recent for name, scale in self._scales.items()},
            "waiting": self._waiting,
            "probed": self._probed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.q = {arm: state["q"][arm] for arm in self.arms}  # JSON files have their keys sorted
        self.rewards, self._waiting, self._probed = state["rewards"], state["waiting"], state["probed"]
        self._left, self._refills = state["left"], state["refills"]
        for name, scale in self._scales.items():
            scale.recent = state["recent"][name]
