"""Numbers of a rollout that must be finite: where they are not, the run stops and names the records."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from utils.data.records import Record
from utils.frame.files import UserError


def check_finite(
    what: str, numbers: Tensor, place: Sequence[int], records: Sequence[Record], step: int, remedy: str
) -> None:
    """Raise UserError naming step and records where a row of [B, C] holds NaN or infinity.

    ``place``: of each row's record among ``records``, [B].
    """
    broken = (~numbers.isfinite()).any(1)
    if broken.any():
        named = names_of(broken, place, records)
        raise UserError(f"{what} that are not finite at step {step}, for {named}: {remedy}")


def names_of(rows: Tensor, place: Sequence[int], records: Sequence[Record]) -> str:
    """The ids of the records of the chosen rows, bool [B]: the first five."""
    chosen = [index for index, wanted in zip(place, rows.tolist(), strict=True) if wanted]
    ids = list(dict.fromkeys(records[index].id for index in chosen))
    return ", ".join(ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
