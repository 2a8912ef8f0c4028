"""How well a score ranks right answers above wrong ones, overall and among the answers to one prompt."""

from collections.abc import Hashable, Sequence

import numpy as np


def auroc(scores: Sequence[float], labels: Sequence[bool]) -> float | None:
    """The probability that a random right item scores above a random wrong one, ties counting one half.

    scores, labels: n finite numbers and n truths (right or not). None where all labels are the same. Equals
    the area under the ROC curve; only the order of the scores matters. Raises ValueError for a non-finite
    score or different lengths.
    """
    won, pairs = group_pairs(scores, labels, [0] * len(scores))
    return float(won[0] / pairs[0]) if len(pairs) else None


def within_group_accuracy(
    scores: Sequence[float], labels: Sequence[bool], groups: Sequence[Hashable]
) -> float | None:
    """The same over the pairs (right, wrong) within groups, as a group-relative method sees them.

    Every pair counts the same, so a group with many pairs counts more than one with few. None where no group
    holds both a right and a wrong item.
    """
    won, pairs = group_pairs(scores, labels, groups)
    return float(won.sum() / pairs.sum()) if len(pairs) else None


def group_pairs(
    scores: Sequence[float], labels: Sequence[bool], groups: Sequence[Hashable]
) -> tuple[np.ndarray, np.ndarray]:
    """Of each group with both labels, by first appearance: pairs in which the right item scores higher (ties
    one half), and pairs (right, wrong) in all; two float64 arrays of one length.
    """
    values, right = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=bool)
    if not len(values) == len(right) == len(groups):
        raise ValueError(f"{len(values)} scores, {len(right)} labels and {len(groups)} groups")
    if not np.isfinite(values).all():
        raise ValueError(f"{(~np.isfinite(values)).sum()} of {len(values)} scores are not finite")
    if not len(values):
        return np.zeros(0), np.zeros(0)
    number: dict[Hashable, int] = {}
    group = np.array([number.setdefault(name, len(number)) for name in groups])
    order = np.lexsort((values, group))
    values, right, group = values[order], right[order], group[order]
    # Blocks of equal scores within a group, in rising order; a block's right items beat the wrong ones below.
    new_group = np.append(True, group[1:] != group[:-1])
    starts = np.flatnonzero(new_group | np.append(True, values[1:] != values[:-1]))
    above, tied = np.add.reduceat(right, starts, dtype=float), np.add.reduceat(~right, starts, dtype=float)
    firsts = np.flatnonzero(new_group[starts])
    blocks = np.diff(firsts, append=len(starts))
    below = np.cumsum(tied) - tied
    below -= np.repeat(below[firsts], blocks)
    won = np.add.reduceat(above * (below + tied / 2), firsts)
    pairs = np.add.reduceat(above, firsts) * np.add.reduceat(tied, firsts)
    return won[pairs > 0], pairs[pairs > 0]
