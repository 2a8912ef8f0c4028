"""Results of policies by their number of right answers, alone and over seeds."""

import pandas as pd

from utils.comparison.over_seeds import gather
from utils.comparison.paired import PolicyResult
from utils.statistics.accuracy_tests import rate


def result(name, correct, levels=None, reports=None, **changes):
    ids = [f"test-{i}" for i in range(len(correct))]
    correct = [bool(c) for c in correct]
    metrics = {
        "dataset": "sample",
        "split": "test",
        "accuracy": rate(sum(correct), len(correct)),
        "missing": {"count": 0, "ids": []},
        "failure_reasons": {"wrong_operand": correct.count(False)},
    }
    columns = {"correct": correct, "level": pd.Series(levels or [None] * len(ids), ids, dtype=object)}
    columns |= {"gold": "3", "report": reports or ""}
    return PolicyResult(name, pd.DataFrame(columns, ids), metrics | changes)


RUNS, SEEDS = ["s0", "s1", "s2"], [0, 1, 2]

LEVELS = [1, 2] * 30


def answers(right):
    """60 items, the first ``right`` of them answered correctly."""
    return [1] * right + [0] * (60 - right)


def experiment(levels=LEVELS, **counts):
    """Policies by name with their number of right answers for every seed."""
    results = {
        name: [result(name, answers(right), levels) for right in by_seed] for name, by_seed in counts.items()
    }
    count = len(next(iter(counts.values())))
    return gather(results, [f"s{i}" for i in range(count)], list(range(count)), seed=0)
