"""Accuracy by type of problem (MATH's subjects, the embedded set's kinds of question)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from utils.comparison.estimates import Estimate, over_all_runs, percent_cell
from utils.comparison.paired import PolicyResult
from utils.comparison.topic import Comparison, Topic
from utils.documents.document import Paragraph, Section, Table


def topic(comparison: Comparison) -> Topic:
    """A row per type and a column per policy; nothing with fewer than two types."""
    found = accuracies_by_type(comparison.results)
    if len(found) < 2:
        return Topic()
    first = [of_runs[0].metrics.get("accuracy_by_type") or {} for of_runs in comparison.results.values()]
    count = {name: rate["n"] for by_type in first for name, rate in by_type.items()}
    rows = [
        [name, str(count[name]), *(percent_cell(of_type.get(policy)) for policy in comparison.policies)]
        for name, of_type in found.items()
    ]
    note = (
        f"Accuracy by type, 95 % {comparison.intervals(comparison.wilson)}. These are many looks at few "
        "items each: the tests are about all items."
    )
    return Topic([Section("Types", [Paragraph(note), Table(["type", "n", *comparison.policies], rows)])])


def accuracies_by_type(results: Mapping[str, Sequence[PolicyResult]]) -> dict[str, dict[str, Estimate]]:
    """Type -> policy -> accuracy, for the policies of which every evaluation has items of that type.

    Wilson intervals with one run, t intervals over several.
    """
    found: dict[str, dict[str, Estimate]] = {}
    for policy, of_runs in results.items():
        by_type = [result.metrics.get("accuracy_by_type") or {} for result in of_runs]
        for name, share in over_all_runs(by_type, (0.0, 1.0)).items():
            found.setdefault(name, {})[policy] = share
    return dict(sorted(found.items()))
