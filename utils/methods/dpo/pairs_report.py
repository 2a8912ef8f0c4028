"""What a set of preference pairs looks like: a readable summary, and a histogram of its margins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils.documents.figures import PALETTE, drawing
from utils.frame.criteria import Criteria, judged
from utils.methods.dpo.pairs import RULE_OF_GOLD, PreferencePair, PreferenceSet, remedies
from utils.methods.dpo.settings import PreferencesAlgo

QUANTILES = (0, 10, 25, 50, 75, 90, 100)
LENGTH_BIAS = 0.6  # share of pairs whose chosen (or rejected) completion is the longer one, ties as halves

_COLOURS = {
    "correct_over_wrong": PALETTE[4],
    RULE_OF_GOLD: PALETTE[3],
    "valid_over_invalid": PALETTE[6],
    "higher_reward": PALETTE[1],
}


def longer_chosen(pairs: Sequence[PreferencePair]) -> float:
    """Share of the pairs whose chosen completion has more tokens than the rejected one, ties as halves."""
    difference = np.array([pair.chosen.tokens - pair.rejected.tokens for pair in pairs])
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())


def length_warning(pairs: Sequence[PreferencePair]) -> str:
    """One line where length alone would tell what is chosen too often, else ""."""
    share = longer_chosen(pairs)
    if max(share, 1 - share) < LENGTH_BIAS:
        return ""
    longer = "chosen" if share > 0.5 else "rejected"
    return (
        f"the {longer} completion is the longer one in {100 * max(share, 1 - share):.0f} % of the pairs "
        "(ties as halves): DPO can learn length from them; watch val_length"
    )


def describe(found: PreferenceSet, reward: str, rules: Sequence[str], algo: PreferencesAlgo) -> str:
    """The summary as text: counts, reasons, quantiles and lengths. ``rules`` are those in force."""
    pairs = [*found.train, *found.held_out]
    prompts = found.prompts
    sampled = sum(each.sampled for each in prompts)
    lines = [
        f"Preference pairs by --reward {reward}, margin {algo.min_margin:g} or more",
        "",
        f"prompts      {len(prompts):6}   with pairs {sum(bool(each.pairs) for each in prompts)}",
        f"candidates   {sampled:6}   different within their prompt {sum(each.different for each in prompts)}",
        f"pairs        {len(pairs):6}",
        f"  to train on{len(found.train):6}   of {_prompts(found.train)} prompts",
        f"  held out   {len(found.held_out):6}   of {_prompts(found.held_out)} other prompts",
        "",
        "pairs by rule",
    ]
    by_rule = Counter(pair.rule for pair in pairs)
    names = [name for name in _COLOURS if by_rule[name] or name in rules]
    lines += [f"  {name:<20}{by_rule[name]:6}" for name in names]
    lines += ["", "by level             prompts  with pairs   pairs"]
    for level in sorted({each.level for each in prompts}, key=lambda level: (level is None, level)):
        members = [each for each in prompts if each.level == level]
        lines.append(
            f"  {'none' if level is None else level:<17}{len(members):9}"
            f"{sum(bool(each.pairs) for each in members):12}{sum(len(each.pairs) for each in members):8}"
        )
    lines += ["", f"prompts without a pair: {sum(found.reasons.values())}"]
    lines += [
        f"  {reason:<38}{count:6}   {', or '.join(remedies(reason, algo))}"
        for reason, count in found.reasons.items()
    ]
    lines += ["", "quantiles, %    " + "".join(f"{quantile:>9}" for quantile in QUANTILES)]
    for name, decimals, values in (
        ("margin", 3, [pair.margin for pair in pairs]),
        ("chosen reward", 3, [pair.chosen.reward for pair in pairs]),
        ("rejected reward", 3, [pair.rejected.reward for pair in pairs]),
        ("chosen tokens", 0, [pair.chosen.tokens for pair in pairs]),
        ("rejected tokens", 0, [pair.rejected.tokens for pair in pairs]),
    ):
        found_at = np.percentile(values, QUANTILES)
        lines.append(f"{name:<16}" + "".join(f"{value:9.{decimals}f}" for value in found_at))
    lines += [
        "",
        f"the chosen completion is the longer one in {100 * longer_chosen(pairs):.1f} % (ties as halves)",
    ]
    if warning := length_warning(pairs):
        lines.append(f"warning: {warning}")
    return "\n".join(lines) + "\n"


def _prompts(pairs: Sequence[PreferencePair]) -> int:
    return len({pair.prompt for pair in pairs})


def pair_criteria(found: PreferenceSet, prompts: int) -> Criteria:
    """What pairs should be like: of many prompts, with a positive margin."""
    having = sum(bool(each.pairs) for each in found.prompts)
    margins = [pair.margin for pair in (*found.train, *found.held_out)]
    return {
        "prompts with pairs": judged(having / max(1, prompts), at_least=0.2),
        "mean margin": judged(float(np.mean(margins)) if margins else None, above=0.0),
    }


def plot_margins(path: Path, pairs: Sequence[PreferencePair], min_margin: float) -> None:
    """A histogram of the margins, stacked by rule (PNG)."""
    names = [name for name in _COLOURS if any(pair.rule == name for pair in pairs)]
    margins = [[pair.margin for pair in pairs if pair.rule == name] for name in names]
    largest = max(max(values) for values in margins)
    with drawing(path, (7.5, 4), (1,)) as (_, (axis,)):
        axis.hist(
            margins,
            bins=np.linspace(min(min_margin, 0.0), largest or 1.0, 41),
            stacked=True,
            color=[_COLOURS[name] for name in names],
            label=[
                f"{name.replace('_', ' ')} ({len(values)})"
                for name, values in zip(names, margins, strict=True)
            ],
        )
        axis.axvline(min_margin, color="#444444", linewidth=1, linestyle="--")
        axis.annotate(
            f" least margin {min_margin:g}", (min_margin, 1), xycoords=("data", "axes fraction"), va="top"
        )
        axis.set(xlabel="margin (reward of the chosen less that of the rejected)", ylabel="pairs")
        axis.legend(frameon=False)
