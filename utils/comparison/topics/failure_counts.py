"""Why items fail: how often each policy failed for which reason."""

from __future__ import annotations

import pandas as pd

from utils.comparison.topic import Comparison, Topic
from utils.documents.document import Section, Table


def topic(comparison: Comparison) -> Topic:
    """The commonest reason first; nothing over seeds, and where no item fails."""
    counts = {name: of_runs[0].metrics["failure_reasons"] for name, of_runs in comparison.results.items()}
    if comparison.experiment or not any(counts.values()):
        return Topic()
    table = pd.DataFrame(counts).fillna(0).astype(int).sort_index()
    table = table.loc[table.sum(axis=1).sort_values(ascending=False, kind="stable").index]
    rows = [[reason.replace("_", " "), *map(str, row)] for reason, *row in table.itertuples()]
    return Topic([Section("Why items fail", [Table(["failure reason", *table.columns], rows)])])
