"""Normalisers: token rewards of a rollout brought to a known scale.

Statistics are taken over all unmasked entries together, never one sequence at a time: standardised within
itself, every sequence would sum to 0 and say nothing. With middle m and spread s,

    none      x
    mean_std  s = standard deviation, m = mean
    z_score   the same; they differ in `running` scope alone, where mean_std forgets and z_score weighs every
              entry ever seen alike
    robust    s = IQR / 1.349 (the standard deviation of a normal distribution), m = median; the standard
              deviation where the IQR is 0
    min_max   s = half the range, m = its middle, or with `center=False` s = the largest |x|, m = 0: to
              [-1, 1], clamped, then times `clip` where given

and the result is (x - m) / s with `center`, x / s without, then cut to [-clip, clip] where given. Where there
is no spread (all entries equal, or a single one), the result is 0.

Which to use for token rewards: dividing keeps a completion's sum proportional to the raw sum, so whatever
holds for that (telescoping, cancelled per-prompt offsets) still does. Centring adds the same number to every
token: a completion then gains or loses with its length, whatever it says. Clipping ends the proportionality
too. The IQR of a peaked teacher's rewards can be tiny, and `robust` then makes the rest huge: give it a
`clip`.

`running` scope keeps statistics over the rollouts so far, the current one included, every rollout weighted by
its number of entries; older ones fade by `MEMORY` per rollout (not for z_score). Moments are merged exactly
(Chan et al. 1983), so that a single entry or a shift between rollouts is no special case; extremes and
quantiles, which cannot be, are averaged.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields

import torch
from torch import Tensor

from utils.frame.files import UserError

NAMES = ("none", "mean_std", "z_score", "min_max", "robust")
SCOPES = ("batch", "running")
MEMORY = 0.99  # what a rollout's weight is multiplied by at each later one
NORMAL_IQR = 1.349  # interquartile range of a standard normal distribution
ROUNDING = 1e-6  # spread below this part of the entries' size is float32 rounding, not spread


@dataclass
class Statistics:
    """Weighted statistics of entries (float64); `count` is their weight, 0 for none."""

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0  # sum of squared deviations from the mean
    low: float = 0.0
    high: float = 0.0
    quartile_1: float = 0.0
    median: float = 0.0
    quartile_3: float = 0.0

    @classmethod
    def of(cls, values: Tensor) -> Statistics:
        """Statistics of float64 [n], n >= 1; quantiles interpolate linearly."""
        mean = values.mean()
        ordered = values.sort().values
        places = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64) * (len(values) - 1)
        below, above = ordered[places.floor().long()], ordered[places.ceil().long()]
        quartiles = below + (above - below) * places.frac()
        return cls(
            float(len(values)),
            mean.item(),
            (values - mean).square().sum().item(),
            ordered[0].item(),
            ordered[-1].item(),
            *quartiles.tolist(),
        )

    def merged(self, new: Statistics, memory: float) -> Statistics:
        """These, weighted by `memory`, together with `new`."""
        old = self.count * memory
        count = old + new.count
        share = new.count / count
        shift = new.mean - self.mean
        squares = self.squares * memory + new.squares + shift * shift * old * share
        averaged = ("mean", "low", "high", "quartile_1", "median", "quartile_3")
        moved = {name: (1 - share) * getattr(self, name) + share * getattr(new, name) for name in averaged}
        return Statistics(count, squares=squares, **moved)

    @property
    def std(self) -> float:
        """Standard deviation of the entries themselves (divided by their number)."""
        return math.sqrt(self.squares / self.count)


class Normaliser:
    """One of `NAMES` in one of `SCOPES`, with its running state.

    center: subtract the middle. clip: bound on the result's size, None for none.
    """

    def __init__(self, name: str, scope: str = "batch", *, center: bool = False, clip: float | None = None):
        if name not in NAMES or scope not in SCOPES:
            raise ValueError(f"no normaliser {name!r} of scope {scope!r}")
        self.name, self.scope, self.center, self.clip = name, scope, center, clip
        self.state = Statistics()

    def __call__(
        self, values: Tensor, mask: Tensor, update: bool = True, whole: Callable[[list], list] = list
    ) -> Tensor:
        """Return normalised values, [B, C] of the values' dtype, 0 where masked.

        values: [B, C]; mask: [B, C], unmasked entries true or 1. update: let a running state take them in;
        otherwise it is used as it is (the batch's own statistics where it is still empty). whole: makes of a
        list that of all processes, where each has a part of the batch; statistics are then of the whole.
        Raises UserError where an unmasked entry is not finite, and leaves the state as it was.
        """
        kept = mask.bool()
        entries = values[kept].double()
        broken = ~torch.isfinite(entries)
        if broken.any():
            rows = (kept & ~torch.isfinite(values)).any(1).nonzero().flatten().tolist()
            raise UserError(
                f"{int(broken.sum())} of {len(entries)} rewards to normalise are not finite, in completions "
                f"{', '.join(map(str, rows[:8]))}{' ...' if len(rows) > 8 else ''} of the rollout: check the "
                "teacher's weights and number format"
            )
        result = torch.zeros_like(values)
        everything = entries if self.name == "none" else torch.cat(whole([entries.cpu()]))
        if len(everything):
            result[kept] = self._apply(entries, self._statistics(everything, update)).to(values.dtype)
        return result

    def _statistics(self, entries: Tensor, update: bool) -> Statistics | None:
        if self.name == "none":
            return None
        if self.scope == "batch":
            return Statistics.of(entries)
        if not update:
            return self.state if self.state.count else Statistics.of(entries)
        self.state = self.state.merged(Statistics.of(entries), 1.0 if self.name == "z_score" else MEMORY)
        return self.state

    def _apply(self, entries: Tensor, statistics: Statistics | None) -> Tensor:
        if statistics is None:
            return entries if self.clip is None else entries.clamp(-self.clip, self.clip)
        middle, spread = self._scale(statistics)
        if not spread:
            return torch.zeros_like(entries)
        scaled = (entries - middle if self.center else entries) / spread
        if self.name == "min_max":
            return scaled.clamp(-1, 1) * (1.0 if self.clip is None else self.clip)
        return scaled if self.clip is None else scaled.clamp(-self.clip, self.clip)

    def _scale(self, statistics: Statistics) -> tuple[float, float]:
        """Middle and spread; a spread of 0 where there is none beyond rounding."""
        size = max(abs(statistics.low), abs(statistics.high))
        if self.name == "min_max":
            spread = (statistics.high - statistics.low) / 2
            middle = statistics.low + spread
            return middle, 0.0 if spread <= ROUNDING * size else spread if self.center else size
        middle, spread = statistics.mean, statistics.std
        if self.name == "robust":
            middle = statistics.median
            quartiles = (statistics.quartile_3 - statistics.quartile_1) / NORMAL_IQR
            spread = quartiles if quartiles > ROUNDING * size else spread
        return middle, spread if spread > ROUNDING * size else 0.0

    def state_dict(self) -> dict[str, float]:
        """The running state as JSON data; its numbers survive JSON bit by bit."""
        return asdict(self.state)

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take over a state that `state_dict` gave. Raises ValueError for anything else."""
        names = {field.name for field in fields(Statistics)}
        if set(state) != names or not all(math.isfinite(value) for value in state.values()):
            raise ValueError("not the state of a normaliser")
        self.state = Statistics(**state)
