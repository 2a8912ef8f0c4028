"""The report of a comparison as a document: what the tests support, in words, then a section per topic."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import reduce
from typing import Any

import pandas as pd

from utils.comparison import topics
from utils.comparison.caveats import caveats
from utils.comparison.experiment_facts import ExperimentFacts
from utils.comparison.over_seeds import SeedPair
from utils.comparison.paired import ALPHA, POWER, Pair
from utils.comparison.topic import Comparison, Topic
from utils.documents.document import Bullets, Document, Finding, Paragraph, plain, sentence, strong
from utils.documents.text import listed, p_text, percent

MORE = "{} answers more items correctly than {}"
SPELT_OUT = 2  # findings about the policies trained here that get a sentence each; more share one
MANY = 15  # supported pairs (all of six policies) up to which each has a sentence; more share one by winner


def report_of(comparison: Comparison, found: Mapping[str, Topic], facts: ExperimentFacts) -> Document:
    """The report: its title, what was compared, the conclusions (last of the lead), all topics' sections."""
    first = next(iter(comparison.results.values()))[0].metrics
    seeds = f" over {comparison.runs} seeds" if comparison.experiment else ""
    where = f"{first['dataset']}, {first['split']} split" if first["split"] else first["dataset"]
    title = f"Comparison{seeds}" + f" on {where}" * bool(where)
    sections = [section for topic in found.values() for section in topic.sections]
    return Document(title, [*facts.blocks(), conclusions(comparison)], sections)


def conclusions(comparison: Comparison) -> Bullets | Paragraph:
    """What is to be known first (`caveats`), then a finding per difference that the corrected test supports,
    or one that says there is none."""
    found, first = _findings(comparison), caveats(comparison)
    if not first:
        return found
    rest = found.lines if isinstance(found, Bullets) else [Finding(found.line)]
    return Bullets([*first, *rest])


def _findings(comparison: Comparison) -> Bullets | Paragraph:
    pairs, seeds = comparison.pairs, comparison.experiment is not None
    if not pairs:
        everywhere = " in every run" if seeds else ""
        alone = f"Only one policy, {comparison.policies[0]}, was evaluated{everywhere}"
        return Paragraph(f"{alone}: there is nothing to compare it with.")
    supported = [pair for pair in pairs if pair.significant]
    if seeds:
        here = [pair for pair in pairs if pair.significant_here and not pair.significant]
        lines = _supported(comparison, supported)
        if len(here) > SPELT_OUT:
            lines.append(_findings_here(comparison, here))
        else:
            lines += [_finding_here(comparison, pair) for pair in here]
    else:
        # That an untrained model is worse than any other goes without saying, and is said last.
        here, lines = [], _supported(comparison, sorted(supported, key=_with_base))
    support, several = "The tests support" if seeds else "The test supports", comparison.looks > 1
    at_level = f"at the {ALPHA:g} level after Holm's correction"
    at_level += f" and for {comparison.looks} looks" * several
    rest = [pair for pair in pairs if pair not in supported and pair not in here]
    if len(rest) == len(pairs):
        claim = f"{support} no difference between the policies {at_level}"
        lines.append(Finding(claim, _could_find(rest)))
    elif rest:
        support = support[0].lower() + support[1:]
        claim = f"For the other {len(rest)} of {len(pairs)} pairs {support} no difference {at_level}"
        lines.append(Finding(claim, _could_find(rest)))
    return Bullets(lines)


def _supported(comparison: Comparison, pairs: Sequence[Pair] | Sequence[SeedPair]) -> list[Finding]:
    if len(pairs) > MANY:
        return _findings_by_winner(comparison, pairs)
    if comparison.experiment:
        return [_finding_over_seeds(comparison, pair) for pair in pairs]
    return [_finding(pair) for pair in pairs]


def _could_find(pairs: Sequence[Pair] | Sequence[SeedPair]) -> str:
    """What was measured of these pairs, where they are few, and what their tests could have found at all: to
    find nothing is not to find equality.
    """
    measured = [
        f"{better} over {worse} {by} points (95 % interval {ends})"
        for better, worse, by, ends in map(_best_first, pairs)
    ]
    said = f"{', '.join(measured)}; " if len(pairs) <= SPELT_OUT else ""
    return said + _detectable(pairs)


def _detectable(pairs: Sequence[Pair] | Sequence[SeedPair]) -> str:
    sizes = sorted(100 * pair.detectable for pair in pairs if pair.detectable is not None)
    if not sizes:
        return "there are too few items or seeds to find any."
    ends = " to ".join(dict.fromkeys(f"{size:.1f}" for size in (sizes[0], sizes[-1])))
    return f"a true difference has to be {ends} points to be found with {100 * POWER:.0f} % power."


def conclusion_lines(conclusions: Bullets | Paragraph) -> list[str]:
    """The conclusions as lines of plain text."""
    if isinstance(conclusions, Paragraph):
        return [plain(conclusions.line)]
    return [f"- {plain(line)}" for line in conclusions.lines]


def _with_base(pair: Pair) -> bool:
    return any(name.rpartition("/")[2] == "base" for name in (pair.a, pair.b))


def _best_first(pair: Pair | SeedPair) -> tuple[str, str, str, str]:
    """Better policy, worse policy, points between them, and the interval of that difference."""
    low, high = pair.ci95 if pair.difference > 0 else (-pair.ci95[1], -pair.ci95[0])
    names = (pair.b, pair.a) if pair.difference > 0 else (pair.a, pair.b)
    return *names, f"{100 * abs(pair.difference):.1f}", f"{100 * low:.1f} to {100 * high:.1f}"


def _finding(pair: Pair) -> Finding:
    better, worse, points, ends = _best_first(pair)
    high, low = sorted((pair.accuracy_a, pair.accuracy_b), reverse=True)
    of_reports = f" of {pair.clusters} reports" if pair.clusters else ""
    return Finding(
        sentence(MORE, strong(better), strong(worse)),
        f"{percent(high)} against {percent(low)}, a difference of {points} points (95 % interval {ends}; "
        f"{_test_of(pair)}, Holm-corrected p {p_text(pair.p_holm)}; n = {pair.n}{of_reports}).",
    )


def _finding_over_seeds(comparison: Comparison, pair: SeedPair) -> Finding:
    better, worse, points, ends = _best_first(pair)
    return Finding(
        sentence(MORE, strong(better), strong(worse)),
        f"{_means_of(comparison, better, worse)} on average over {comparison.runs} seeds, a difference of "
        f"{points} points (95 % interval {ends}; test over seeds and {comparison.units}, Holm-corrected p "
        f"{p_text(pair.p_holm)}).",
    )


def _findings_by_winner(comparison: Comparison, pairs: Sequence[Pair] | Sequence[SeedPair]) -> list[Finding]:
    """A sentence for each policy that is better than others, the one with most of them first."""
    test = f"test over seeds and {comparison.units}" if comparison.experiment else _test_of(pairs[0])
    won: dict[str, list[Pair | SeedPair]] = {}
    for pair in pairs:
        won.setdefault(_best_first(pair)[0], []).append(pair)
    lines = []
    for better, of in sorted(won.items(), key=lambda each: -len(each[1])):
        largest = p_text(max(pair.p_holm for pair in of))
        by = [part for _, worse, points, _ in map(_best_first, of) for part in (strong(worse), points)]
        listing = listed(["{} by {}"] * len(of))
        lines.append(
            Finding(
                sentence("{} answers more items correctly than " + _others(len(of)), strong(better)),
                sentence(f"{listing} points ({test}, largest Holm-corrected p {largest}).", *by),
            )
        )
    return lines


def _others(count: int) -> str:
    return "one other" if count == 1 else f"{count} others"


def _test_of(pair: Pair) -> str:
    return "exact test by report" if pair.clusters else "exact McNemar"


def _finding_here(comparison: Comparison, pair: SeedPair) -> Finding:
    better, worse, points, ends = _best_first(pair)
    claim = "The policies trained here as {} answer more items correctly than those trained as {}"
    return Finding(
        sentence(claim, strong(better), strong(worse)),
        f"{_means_of(comparison, better, worse)}, a difference of {points} points (exact test over "
        f"{comparison.units}, Holm-corrected p {p_text(pair.p_items_holm)}). That other seeds would show "
        f"it too is not supported: 95 % interval {ends}, Holm-corrected p {p_text(pair.p_holm)}.",
    )


def _findings_here(comparison: Comparison, pairs: Sequence[SeedPair]) -> Finding:
    largest = p_text(max(pair.p_items_holm for pair in pairs))
    listing, by = "the table of pairs has them", []
    if len(pairs) <= MANY:
        listing = listed(["{} over {} by {}"] * len(pairs)) + " points"
        by = [
            part
            for won, lost, points, _ in map(_best_first, pairs)
            for part in (strong(won), strong(lost), points)
        ]
    return Finding(
        f"For {len(pairs)} pairs only the policies trained here are shown to differ (exact test over "
        f"{comparison.units}, largest Holm-corrected p {largest})",
        sentence(f"{listing}. That other seeds would show it too is not supported.", *by),
    )


def _means_of(comparison: Comparison, better: str, worse: str) -> str:
    high, low = (comparison.accuracies[name].value for name in (better, worse))
    return f"{percent(high)} against {percent(low)}"


# ------------------------------------------------------------------------------------------- tables


def summary_table(found: Mapping[str, Topic]) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows and columns of summary.csv: a row per policy with the columns of all topics."""
    return _beside([found[name].columns for name in _in_order(found)])


def table_by_run(found: Mapping[str, Topic]) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows and columns of by_seed.csv: a row per policy and run."""
    by_run = [found[name].by_run for name in _in_order(found)]
    return _beside(
        [
            {(policy, place): row for policy, rows in of_topic.items() for place, row in enumerate(rows)}
            for of_topic in by_run
        ]
    )


def _in_order(found: Mapping[str, Topic]) -> list[str]:
    return sorted(found, key=lambda name: [*topics.COLUMNS, name].index(name))


def _beside(parts: Sequence[Mapping[Hashable, Mapping[str, Any]]]) -> tuple[list[dict[str, Any]], list[str]]:
    """Tables side by side; a column that a later one has as well stands there."""
    frames = [pd.DataFrame(part.values(), part.keys(), dtype=object) for part in parts if part]
    whole = reduce(lambda left, right: left.drop(columns=right, errors="ignore").join(right), frames)
    whole = whole.astype(object).where(whole.notna(), "")
    return whole.to_dict("records"), list(whole)
