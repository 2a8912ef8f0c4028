"""Accuracy by type of problem (MATH's subjects, the embedded set's kinds of question) in a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from utils.comparison.paired import PolicyResult
from utils.comparison.topics.number import Measured, over_runs, percent_cell
from utils.documents.text import markdown_table


def accuracies_by_type(results: Mapping[str, Sequence[PolicyResult]]) -> dict[str, dict[str, Measured]]:
    """Type -> policy -> accuracy, for the policies of which every evaluation has items of that type.

    Wilson intervals with one run, t intervals over several.
    """
    found: dict[str, dict[str, Measured]] = {}
    for policy, of_runs in results.items():
        by_type = [result.metrics.get("accuracy_by_type") or {} for result in of_runs]
        for name in by_type[0]:
            if all(name in of_run for of_run in by_type):
                rates = [of_run[name] for of_run in by_type]
                found.setdefault(name, {})[policy] = over_runs(rates, (0.0, 1.0))
    return dict(sorted(found.items()))


def type_section(results: Mapping[str, Sequence[PolicyResult]]) -> str:
    """The report's section, a row per type and a column per policy; "" with fewer than two types."""
    found = accuracies_by_type(results)
    if len(found) < 2:
        return ""
    count = {
        name: rate["n"]
        for of_runs in results.values()
        for name, rate in (of_runs[0].metrics.get("accuracy_by_type") or {}).items()
    }
    runs = max(map(len, results.values()))
    how = f"t intervals over {runs} seeds" if runs > 1 else "Wilson intervals"
    rows = [
        [name, str(count[name]), *(percent_cell(of_type.get(policy)) for policy in results)]
        for name, of_type in found.items()
    ]
    note = (
        f"Accuracy by type, 95 % {how}. These are many looks at few items each: the tests are about "
        "all items."
    )
    return f"## Types\n\n{note}\n\n{markdown_table(['type', 'n', *results], rows)}"
