"""Which acceptance criteria the stages behind the compared policies met, and which not."""

from __future__ import annotations

from utils.comparison.evaluations import evaluated_in
from utils.comparison.manifest_diff import load_manifests
from utils.comparison.topic import Comparison, Topic
from utils.documents.document import Paragraph, Section, Table
from utils.frame.criteria import bound_in_words, in_words, verdict


def topic(comparison: Comparison) -> Topic:
    """A row for each criterion that failed, and how many passed; nothing where no stage states any."""
    found = criteria_of(comparison)
    if not found:
        return Topic()
    failed = [each for each in found if not each[-1]["passed"]]
    met = f"{len(found) - len(failed)} of {len(found)} acceptance criteria of the stages are met."
    lead = Paragraph([met])
    rows = [
        [*names, in_words(each).partition(" (")[0], bound_in_words(each), verdict(each)]
        for *names, each in failed
    ]
    head = ["run", "stage", "criterion", "value", "should be", ""]
    tables = [Table(head, rows)] if rows else []
    return Topic([Section("Acceptance criteria", [lead, *tables])])


def criteria_of(comparison: Comparison) -> list[tuple[str, str, str, dict]]:
    """(run, stage, criterion, its entry) of every stage of the runs whose evaluations are compared."""
    places = [evaluated_in(folder) for of_policy in comparison.folders.values() for folder in of_policy]
    compared = {place for place in places if place}
    found = []
    for run in sorted({run for run, _ in compared}):
        for stage, manifest in sorted(load_manifests(run).items()):
            other = stage.startswith(("10_", "11_")) and (run, stage) not in compared
            criteria = {} if other else manifest.get("criteria", {})
            found += [(run.name, stage, name, each) for name, each in criteria.items()]
    return found
