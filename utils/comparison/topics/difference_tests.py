"""The tests of every pair of policies, and the items that changed between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from utils.comparison.over_seeds import Experiment, SeedPair
from utils.comparison.paired import ALPHA, POWER, Pair
from utils.comparison.seed_runs import SeedRuns
from utils.comparison.topic import Comparison, Topic
from utils.documents.document import (
    Block,
    Bullets,
    Heading,
    Line,
    Number,
    Paragraph,
    Section,
    Table,
    code,
    emphasis,
    sentence,
    strong,
)
from utils.documents.text import listed, p_cell, p_text, plural, points, points_interval
from utils.frame.files import write_csv, write_jsonl

CHANGES, PAIRS = "changes.jsonl", "pairs.csv"
LOOKS = (
    "Every p holds for a comparison that was planned and is made once. Who compares again whenever results "
    "come in, and stops at the first small p, finds one too often: such sequential looks are to be counted "
    "beforehand and given as --looks, which multiplies every corrected p by their number."
)
SHOWN_IDS = 10


def topic(comparison: Comparison) -> Topic:
    """Exact McNemar tests with the changed items, or over seeds three tests and which run has which seed."""
    pairs, experiment = comparison.pairs, comparison.experiment
    if experiment is None:
        changed = [block for pair in pairs for block in _changed(pair)]
        sections = [
            Section("Paired tests", [_pair_table(pairs), _method_note(comparison), *_looks_note(comparison)]),
            Section("Items that changed", changed, on_page=False),
        ]
        files = {
            CHANGES: lambda path: write_jsonl(path, change_rows(pairs)),
            PAIRS: lambda path: write_csv(path, [_pair_row(pair) for pair in pairs], PAIR_COLUMNS),
        }
        return Topic(sections if pairs else [], files=files)
    alone = [Heading("Each seed alone"), _seed_table(comparison)]
    tests = Section("Tests", [_seed_pair_table(pairs), *_test_note(comparison), *alone])
    runs = Section("Runs", [_runs(comparison.seed_runs)])
    files = {
        CHANGES: lambda path: write_jsonl(path, seed_change_rows(experiment)),
        PAIRS: lambda path: write_pairs(pairs, path),
    }
    return Topic([tests, runs] if pairs else [runs], files=files)


# ------------------------------------------------------------------------------- policies of one run


def _pair_table(pairs: Sequence[Pair]) -> Table:
    clustered = any(pair.clusters for pair in pairs)
    heads = ["pair", "n", "difference", "95 % interval", "fixed", "broken"]
    heads += ["p by report" if clustered else "McNemar p", "Holm p", "detectable"]
    heads += ["reports", "plain 95 % interval", "McNemar p"] if clustered else []
    rows = [
        [
            f"{pair.a} → {pair.b}",
            str(pair.n),
            Number(points(pair.difference), pair.difference),
            points_interval(pair.ci95),
            str(len(pair.fixed)),
            str(len(pair.broken)),
            p_cell(pair.p_value),
            f"{p_cell(pair.p_holm)}{' *' * pair.significant}",
            "none" if pair.detectable is None else f"{100 * pair.detectable:.1f}",
            *([str(pair.clusters or ""), points_interval(pair.plain95), p_cell(pair.p_plain)] * clustered),
        ]
        for pair in pairs
    ]
    return Table(heads, rows)


def _looks_note(comparison: Comparison) -> list[Block]:
    """What repeated looks do to the tests, and which policies are looks at one training."""
    looks = comparison.looks
    said = f" This is one of {looks} looks: the corrected p-values are {looks} times as large." * (looks > 1)
    blocks: list[Block] = [Paragraph(LOOKS + said)]
    trainings: dict[tuple, list[str]] = {}
    for name, of_policy in comparison.trained.items():
        if key := tuple((each.run_dir, each.training) for each in of_policy if each.training):
            trainings.setdefault(key, []).append(name)
    for names in trainings.values():
        if len(names) > 1:
            blocks.append(
                Paragraph(
                    f"{listed(names)} are checkpoints of one training, looked at one after the other: "
                    "the best of them on these items is a selection, and its accuracy here is no estimate of "
                    "what it would be on others."
                )
            )
    return blocks


def _method_note(comparison: Comparison) -> Paragraph:
    pairs, steps = comparison.pairs, len(comparison.pairs) * comparison.looks
    if any(pair.clusters for pair in pairs):
        return Paragraph(
            sentence(
                "Differences are in percentage points, second policy minus first, on the items that both "
                "were given. Items that share a report are not independent: the interval is that of a "
                "bootstrap that draws reports with all their items (expanded percentiles), and {} is that of "
                "the exact test that exchanges the two policies' answers to a whole report at once. Holm p "
                "corrects it for the {} of this table, and * marks those below {}. {} is the smallest true "
                "difference that the exact test would find with {} % power at level {} / {}, given how often "
                "the two disagreed and how alike items of a report are. The last two columns take the items "
                "as independent.",
                *(emphasis("p by report"), plural(len(pairs), "test"), f"{ALPHA:g}", emphasis("Detectable")),
                *(f"{100 * POWER:.0f}", f"{ALPHA:g}", f"{steps}"),
            )
        )
    return Paragraph(
        sentence(
            "Differences are in percentage points, second policy minus first, on the items that both were "
            "given. Intervals of a single accuracy are Wilson 95 % intervals, those of a difference paired "
            "percentile bootstrap intervals. p-values are exact two-sided McNemar tests; Holm p corrects for "
            "the {} of this table, and * marks those below {}. {} is the smallest true difference that this "
            "test would find with {} % power at level {} / {}, given how often the two disagreed.",
            *(plural(len(pairs), "test"), f"{ALPHA:g}", emphasis("Detectable")),
            *(f"{100 * POWER:.0f}", f"{ALPHA:g}", f"{steps}"),
        )
    )


def _changed(pair: Pair) -> list[Block]:
    lines = [
        [f"{change}, {len(ids)}: ", *_named(ids)]
        for change, ids in (("fixed", pair.fixed), ("broken", pair.broken))
    ]
    return [Paragraph(strong(f"{pair.a} → {pair.b}")), Bullets(lines)]


def _named(ids: Sequence[str]) -> Line:
    """The first ids, and how many more there are."""
    if not ids:
        return ["none"]
    shown = [part for item in ids[:SHOWN_IDS] for part in (", ", code(item))][1:]
    return [*shown, f" and {len(ids) - SHOWN_IDS} more"] if len(ids) > SHOWN_IDS else shown


def change_rows(pairs: Sequence[Pair]) -> Iterator[dict[str, Any]]:
    """{"a", "b", "id", "change"} of every item that b fixes or breaks against a, in file order of each."""
    for pair in pairs:
        for change in ("fixed", "broken"):
            for item in getattr(pair, change):
                yield {"a": pair.a, "b": pair.b, "id": item, "change": change}


PAIR_COLUMNS = [
    *("a", "b", "n", "reports", "difference", "low", "high", "p", "p_holm"),
    *("plain_low", "plain_high", "p_plain", "fixed", "broken", "detectable"),
]


def _pair_row(pair: Pair) -> dict[str, Any]:
    values = (
        *(pair.a, pair.b, pair.n, pair.clusters, pair.difference, *pair.ci95, pair.p_value, pair.p_holm),
        *(*pair.plain95, pair.p_plain, len(pair.fixed), len(pair.broken), pair.detectable),
    )
    return dict(zip(PAIR_COLUMNS, values, strict=True))


# ---------------------------------------------------------------------------------------- over seeds


def _seed_pair_table(pairs: Sequence[SeedPair]) -> Table:
    heads = ["pair", "difference", "seeds and items: 95 % interval", "p (Holm p)", "items only: p (Holm p)"]
    heads += ["seeds only: 95 % interval", "p", "bootstrap 95 % interval", "detectable"]
    rows = []
    for pair in pairs:
        seeds = pair.over_seeds
        rows.append(
            [
                f"{pair.a} → {pair.b}",
                Number(points(pair.difference), pair.difference),
                points_interval(pair.ci95),
                f"{p_cell(pair.p_value)} ({p_cell(pair.p_holm)}{' *' * pair.significant})",
                f"{p_cell(pair.p_items)} ({p_cell(pair.p_items_holm)}{' *' * pair.significant_here})",
                points_interval(seeds.ci95) if seeds else "no spread",
                p_cell(seeds.p_value) if seeds else "–",
                points_interval(pair.bootstrap95),
                "–" if pair.detectable is None else f"{100 * pair.detectable:.1f}",
            ]
        )
    return Table(heads, rows)


def _test_note(comparison: Comparison) -> list[Block]:
    count, pairs = len(comparison.experiment.seeds), len(comparison.pairs)
    reports = ""
    if comparison.clusters:
        reports = (
            " Items that share a report are not independent, so the items of these tests are the "
            f"{comparison.clusters} reports with all their questions; pairs.csv also has what the tests "
            "would say of independent items."
        )
    questions = {
        "Seeds and items": "would the difference be there with other training seeds and other items? A t "
        "test for crossed seeds and items (Hillis' degrees of freedom); its p is never stated below that of "
        "the items alone. Conclusions about methods rest on this test. The bootstrap interval draws seeds "
        f"and items anew, and is too narrow where {count} seeds differ much.",
        "Items only": "do these trained policies differ, averaged over the seeds, on other items? An exact "
        "sign-flip test; it says nothing about other seeds.",
        "Seeds only": "would other seeds show the difference on these items? A paired t test over "
        f"{count} seeds (degrees of freedom {count - 1}), not corrected for the number of pairs; with few "
        "seeds it finds only differences that are large beside their spread.",
    }
    correction = sentence(
        "Holm p corrects for the {} within a test; * marks those below {}. {} is the smallest true "
        "difference that the test over seeds and items would find with {} % power at level {} / {}, if the "
        "spread is as it was seen here.",
        *(plural(pairs, "pair"), f"{ALPHA:g}", emphasis("Detectable")),
        *(f"{100 * POWER:.0f}", f"{ALPHA:g}", f"{pairs * comparison.looks}"),
    )
    opening = (
        f"Differences are in percentage points, second policy minus first.{reports} Three questions, three "
        "tests:"
    )
    tests = Bullets([[emphasis(name), f": {text}"] for name, text in questions.items()])
    return [Paragraph(opening), tests, Paragraph(correction), *_looks_note(comparison)]


def _seed_table(comparison: Comparison) -> Table:
    """Difference and exact p of every pair within each seed."""
    rows = []
    for pair in comparison.pairs:
        a, b = (comparison.accuracies[name].by_run for name in (pair.a, pair.b))
        cells = [f"{points(y - x)} (p {p_text(p)})" for x, y, p in zip(a, b, pair.p_each_seed, strict=True)]
        rows.append([f"{pair.a} → {pair.b}", *cells])
    seeds = [f"seed {seed}" for seed in comparison.experiment.seeds]
    test = "exact p by report" if comparison.clusters else "exact McNemar p"
    return Table([f"difference ({test})", *seeds], rows)


def _runs(runs: SeedRuns) -> Bullets:
    """Which run had which seed, what is left out and why, and whether the runs' code differs."""
    lines: list[Line] = [
        [f"seed {seed}: ", code(run)] for seed, run in zip(runs.seeds, runs.runs, strict=True)
    ]
    lines += [
        f"Left out: {policy}, which {', '.join(lacking)} did not evaluate."
        for policy, lacking in runs.left_out.items()
    ]
    lines += [
        f"Failed, and compared in no run: {policy}: {reason}." for policy, reason in runs.failed.items()
    ]
    if runs.code:
        lines.append(f"The runs were made by different code: {', '.join(runs.code)}.")
    return Bullets(lines)


def seed_change_rows(experiment: Experiment) -> Iterator[dict[str, Any]]:
    """``change_rows`` within every seed, with ``seed``: pair by pair, seed by seed, in file order."""
    ids = experiment.items.index
    for a, b in combinations(range(len(experiment.policies)), 2):
        names = {"a": experiment.policies[a], "b": experiment.policies[b]}
        for place, seed in enumerate(experiment.seeds):
            right_a, right_b = experiment.correct[a, place], experiment.correct[b, place]
            for change, at in (("fixed", right_b & ~right_a), ("broken", right_a & ~right_b)):
                for index in np.flatnonzero(at):
                    yield names | {"seed": seed, "id": ids[index], "change": change}


def write_pairs(pairs: Sequence[SeedPair], path: Path) -> None:
    """pairs.csv: every number of every pair, blank where there is none."""
    columns = ["a", "b", "difference", "low", "high", "p", "p_holm", "bootstrap_low", "bootstrap_high"]
    columns += ["p_items", "p_items_holm", "seeds_low", "seeds_high", "p_seeds", "p_mcnemar", "detectable"]
    columns += ["reports", "plain_low", "plain_high", "p_plain", "p_each_seed"]
    rows = []
    for pair in pairs:
        seeds = pair.over_seeds
        values = (
            *(pair.a, pair.b, pair.difference, *pair.ci95, pair.p_value, pair.p_holm, *pair.bootstrap95),
            *(pair.p_items, pair.p_items_holm),
            *((*seeds.ci95, seeds.p_value) if seeds else ("", "", "")),
            _listing(pair.p_mcnemar),
            pair.detectable,
            *(pair.clusters, *pair.plain95, pair.p_plain, _listing(pair.p_each_seed)),
        )
        rows.append(dict(zip(columns, values, strict=True)))
    write_csv(path, rows, columns)


def _listing(p_values: Sequence[float]) -> str:
    return " ".join(f"{p:.6g}" for p in p_values)
