"""From components to one reward: weights, fixed or following the evidence, and the normalisers' state.

The intrinsic reward and the reasoning score are estimates of quality. With `adaptive.enabled` their weights
follow how well they have lately ranked right answers above wrong ones. Of a rollout, over all pairs of a
right and a wrong completion of one prompt,

    evidence  e = 2 * P(right scores above wrong, ties one half) - 1, in [-1, 1]
    running   E <- (1 - rate) * E + rate * e, starting where the factor is `initial_factor`
    weight    = base * factor, factor = minimum_factor + (1 - minimum_factor) * min(max(E, 0), 1)

So a component that is noise, constant or turned against correctness sinks to `minimum_factor`, and no weight
ever exceeds what the specification gives. Only the order of scores matters: neither their scale nor their
variance moves a weight. A rollout in which no prompt has both right and wrong answers says nothing and
changes nothing. The factors in force in a rollout come from earlier ones. Correctness and format are facts,
not estimates, and keep their weights; where correctness has no weight, its labels are not used either.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from utils.frame.files import UserError
from utils.frame.processes import gather_items
from utils.rewards.normalisers import Normaliser
from utils.rewards.spec import RewardSpec, RewardWeights
from utils.statistics.ranking import within_group_accuracy

ADAPTED = ("intrinsic", "reasoning")
LEVELS = ("token", "outcome")  # what intrinsic rewards are normalised as; each has its own statistics


class RewardCombiner:
    """Weights in force and normalisers of the intrinsic reward, with their state.

    weights: those that `paid_weights` left in force. in_parts: each of several processes has a part of the
    rollout; statistics and evidence are then of all parts.
    """

    in_parts = False

    def __init__(self, spec: RewardSpec, weights: RewardWeights):
        self.base, self.adaptive = asdict(weights), spec.adaptive
        section = spec.intrinsic
        self.normalisers = {
            level: Normaliser(section.normaliser, section.scope, center=section.center, clip=section.clip)
            for level in LEVELS
        }
        followed = spec.adaptive.enabled and weights.correctness > 0
        self.adapted = tuple(name for name in ADAPTED if followed and self.base[name] > 0)
        low, first = spec.adaptive.minimum_factor, spec.adaptive.initial_factor
        self.evidence = dict.fromkeys(self.adapted, (first - low) / (1 - low) if low < 1 else 1.0)

    def factors(self) -> dict[str, float]:
        """The factor on each adapted weight, in [minimum_factor, 1]."""
        low = self.adaptive.minimum_factor
        return {name: low + (1 - low) * min(max(e, 0.0), 1.0) for name, e in self.evidence.items()}

    def weights(self) -> dict[str, float]:
        """The weight of each component, after adaptation."""
        factors = self.factors()
        return {name: weight * factors.get(name, 1.0) for name, weight in self.base.items()}

    def normalise(self, values: Tensor, mask: Tensor, level: str, update: bool = True) -> Tensor:
        """Normalise intrinsic rewards, [B, C] of tokens or [B, 1] of outcomes (see Normaliser)."""
        return self.normalisers[level](values, mask, update, self._whole)

    def _whole(self, part: Sequence[Any]) -> list[Any]:
        """The parts of all processes, one after the other."""
        return gather_items(part) if self.in_parts else list(part)

    def observe(
        self, scores: Mapping[str, Sequence[float]], correct: Sequence[bool], groups: Sequence[Hashable]
    ) -> None:
        """Take in a rollout's evidence.

        scores: of each adapted component a finite score per completion, unweighted; correct: verified;
        groups: which prompt a completion answers.
        """
        rate = self.adaptive.rate
        if self.adapted:
            correct, groups = self._whole(correct), self._whole(groups)
        for name in self.adapted:
            accuracy = within_group_accuracy(self._whole(scores[name]), correct, groups)
            if accuracy is not None:
                self.evidence[name] = (1 - rate) * self.evidence[name] + rate * (2 * accuracy - 1)

    def state_dict(self) -> dict[str, Any]:
        """Everything that rollouts change, as JSON data."""
        states = {level: normaliser.state_dict() for level, normaliser in self.normalisers.items()}
        return {"evidence": dict(self.evidence), "normalisers": states}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state that `state_dict` gave under the same specification; UserError for another."""
        evidence, normalisers = state["evidence"], state["normalisers"]
        if set(evidence) != set(self.evidence) or not all(map(math.isfinite, evidence.values())):
            raise UserError(
                "the saved reward state is of another reward specification: train with --overwrite"
            )
        self.evidence = {name: evidence[name] for name in self.adapted}
        for level, normaliser in self.normalisers.items():
            normaliser.load_state_dict(normalisers[level])
