"""report.md: what the comparison found, in words that the tests support."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from utils.comparison.paired import ALPHA, POWER, Pair, PolicyResult
from utils.comparison.topics.levels import Levels, level_table
from utils.documents.text import interval, markdown_table, p_text, percent
from utils.frame.pipeline import policy_order
from utils.statistics.accuracy_tests import rate

SHOWN_IDS = 10


def render_report(
    results: Sequence[PolicyResult],
    pairs: Sequence[Pair],
    levels: Levels,
    figure: str,
    failed: Mapping[str, str] | None = None,
    costs: str = "",
) -> str:
    """The Markdown report of one comparison.

    Args:
        results, pairs: what is compared.
        levels: the results' accuracies by level.
        figure: the plot's file name beside the report.
        failed: policy -> reason, for those that could not be compared.
        costs: the sections on cost and training.
    """
    first = results[0].metrics
    parts = [
        f"# Comparison on {first['dataset']}, {first['split']} split",
        conclusions(results, pairs),
        "## Accuracy",
        _accuracy_table(results, failed or {}),
        level_table(levels, [result.name for result in results], "policy"),
        f"![Accuracy of every policy with 95 % intervals]({figure})",
        costs,
        _failure_table(results),
    ]
    if pairs:
        parts += ["## Paired tests", _pair_table(pairs), _method_note(pairs), "## Items that changed"]
        parts += [_changed(pair) for pair in pairs]
    return "\n\n".join(part for part in parts if part) + "\n"


def conclusions(results: Sequence[PolicyResult], pairs: Sequence[Pair]) -> str:
    """One sentence per difference that the corrected test supports, or one that says there is none."""
    if not pairs:
        return f"Only one policy, {results[0].name}, was evaluated: there is nothing to compare it with."
    # That an untrained model is worse than any other goes without saying, and is said last.
    supported = sorted((pair for pair in pairs if pair.significant), key=_with_base)
    lines = [f"- {_finding(pair)}" for pair in supported]
    rest = len(pairs) - len(supported)
    at_level = f"at the {ALPHA:g} level after Holm's correction"
    if not supported:
        lines.append(f"- The test supports no difference between the policies {at_level}.")
    elif rest:
        lines.append(
            f"- For the other {rest} of {len(pairs)} pairs the test supports no difference {at_level}."
        )
    return "\n".join(lines)


def _with_base(pair: Pair) -> bool:
    return any(name.rpartition("/")[2] == "base" for name in (pair.a, pair.b))


def _finding(pair: Pair) -> str:
    better, worse = (pair.b, pair.a) if pair.difference > 0 else (pair.a, pair.b)
    high, low = sorted((pair.accuracy_a, pair.accuracy_b), reverse=True)
    ends = pair.ci95 if pair.difference > 0 else (-pair.ci95[1], -pair.ci95[0])
    return (
        f"**{better}** answers more items correctly than **{worse}**: {percent(high)} against "
        f"{percent(low)}, a difference of {100 * abs(pair.difference):.1f} points "
        f"(95 % interval {100 * ends[0]:.1f} to {100 * ends[1]:.1f}; exact McNemar, Holm-corrected "
        f"p {p_text(pair.p_holm)}; n = {pair.n})."
    )


def _accuracy_table(results: Sequence[PolicyResult], failed: Mapping[str, str]) -> str:
    scores = [
        (key, title) for key, title in _SCORES.items() if any(key in result.metrics for result in results)
    ]
    rows = []
    for result in results:
        share = rate(sum(result.correct), len(result.correct))
        tokens = (result.metrics.get("response_tokens") or {}).get("mean")
        rows.append(
            [
                result.name,
                str(share["n"]),
                percent(share["value"]),
                interval(share["ci95"]),
                *(
                    percent(result.metrics[key]["value"]) if key in result.metrics else ""
                    for key, _ in scores
                ),
                "" if tokens is None else f"{tokens:.1f}",
            ]
        )
    heads = ["policy", "n", "accuracy", "95 % interval", *(t for _, t in scores), "mean tokens"]
    return markdown_table(heads, with_failed_rows(rows, failed, place=2))


_SCORES = {
    "program_accuracy": "program",
    "tolerant_accuracy": "tolerant",
    "flexible_accuracy": "flexible",
    "format_validity": "valid format",
    "truncation_rate": "cut off",
}


def _failure_table(results: Sequence[PolicyResult]) -> str:
    reasons = sorted({reason for result in results for reason in result.metrics["failure_reasons"]})
    if not reasons:
        return ""
    total = {r: sum(result.metrics["failure_reasons"].get(r, 0) for result in results) for r in reasons}
    reasons.sort(key=lambda reason: (-total[reason], reason))
    rows = [
        [reason.replace("_", " "), *(str(r.metrics["failure_reasons"].get(reason, 0)) for r in results)]
        for reason in reasons
    ]
    return "## Why items fail\n\n" + markdown_table(["failure reason", *(r.name for r in results)], rows)


def _pair_table(pairs: Sequence[Pair]) -> str:
    heads = [
        "pair",
        "n",
        "difference",
        "95 % interval",
        "fixed",
        "broken",
        "McNemar p",
        "Holm p",
        "detectable",
    ]
    rows = [
        [
            f"{pair.a} → {pair.b}",
            str(pair.n),
            f"{100 * pair.difference:+.1f}",
            f"{100 * pair.ci95[0]:+.1f} to {100 * pair.ci95[1]:+.1f}",
            str(len(pair.fixed)),
            str(len(pair.broken)),
            p_text(pair.p_value).removeprefix("= "),
            p_text(pair.p_holm).removeprefix("= ") + (" *" if pair.significant else ""),
            "none" if pair.detectable is None else f"{100 * pair.detectable:.1f}",
        ]
        for pair in pairs
    ]
    return markdown_table(heads, rows)


def _method_note(pairs: Sequence[Pair]) -> str:
    return (
        "Differences are in percentage points, second policy minus first, on the items that both were given. "
        "Intervals of a single accuracy are Wilson 95 % intervals, those of a difference paired percentile "
        "bootstrap intervals. p-values are exact two-sided McNemar tests; Holm p corrects for the "
        f"{len(pairs)} {'test' if len(pairs) == 1 else 'tests'} of this table, and * marks those below "
        f"{ALPHA:g}. *Detectable* is the smallest true difference that this test would find with "
        f"{100 * POWER:.0f} % power at level {ALPHA:g} / {len(pairs)}, given how often the two disagreed."
    )


def _changed(pair: Pair) -> str:
    return (
        f"**{pair.a} → {pair.b}**\n\n"
        f"- fixed, {len(pair.fixed)}: {_ids(pair.fixed)}\n"
        f"- broken, {len(pair.broken)}: {_ids(pair.broken)}"
    )


def _ids(ids: Sequence[str]) -> str:
    if not ids:
        return "none"
    shown = ", ".join(f"`{item}`" for item in ids[:SHOWN_IDS])
    return shown + (f" and {len(ids) - SHOWN_IDS} more" if len(ids) > SHOWN_IDS else "")


def with_failed_rows(rows: Sequence[list[str]], failed: Mapping[str, str], place: int) -> list[list[str]]:
    """A table's rows, with one for every policy that failed, the reason in the column at ``place``."""
    more = []
    for name, reason in failed.items():
        more.append([name, *[""] * (len(rows[0]) - 1)])
        more[-1][place] = f"– failed: {reason}"
    return sorted([*rows, *more], key=lambda row: policy_order(row[0])) if more else list(rows)
