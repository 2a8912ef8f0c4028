"""The soft overlong punishment: what a completion loses that comes near the limit of its length."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Overlong:
    """The last ``buffer`` tokens before the limit of ``longest`` cost ever more (DAPO, arXiv 2503.14476,
    equation 13): 0 up to ``longest - buffer``, then linearly down to -1 at ``longest``.
    """

    longest: int
    buffer: int

    @classmethod
    def of(cls, share: float, longest: int) -> Overlong | None:
        """With a buffer of this share of ``longest`` tokens, one at least; None for a share of 0."""
        return cls(longest, max(1, round(share * longest))) if share else None

    def penalty(self, tokens: Tensor) -> Tensor:
        """What completions of so many tokens, [B], lose; float32 [B] in [-1, 0]."""
        return ((self.longest - self.buffer - tokens).float() / self.buffer).clamp(-1, 0)
