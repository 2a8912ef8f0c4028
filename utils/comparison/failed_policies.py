"""Policies that failed before they could be evaluated, from the failed.json of the run that compares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from utils.frame.failures import read_failures
from utils.frame.pipeline import policy_order


def failed_policies(run_dir: Path, options: Any) -> dict[str, str]:
    """What failed -> why, in the order of the pipeline, as far as stage 11's options ask for it.

    Failures count of the run that compares or, where it compares others (``runs``), of these; and of the
    policies that are asked for, where any are. A policy of several runs failed where it failed in any, and
    its reasons name the runs: "no pairs (seed_0, seed_1)".
    """
    found: dict[str, dict[str, list[str]]] = {}
    elsewhere = options.metrics or options.results
    for failure in read_failures(run_dir) if options.runs or options.policies or not elsewhere else ():
        wanted = not options.policies or failure.policy in ("", *options.policies)
        if wanted and bool(failure.run) == bool(options.runs):
            of_policy = found.setdefault(failure.policy or failure.run, {})
            of_policy.setdefault(failure.reason, []).extend([failure.run] if failure.policy else [])
    return {
        name: "; ".join(
            f"{reason} ({', '.join(runs)})" if any(runs) else reason for reason, runs in found[name].items()
        )
        for name in sorted(found, key=policy_order)
    }


def with_failed(
    rows: list[dict], columns: list[str], failures: dict[str, str]
) -> tuple[list[dict], list[str]]:
    """Rows and columns of summary.csv with a row for every failed policy.

    ``status`` is ok or failed, ``reason`` says why; a failed policy has no other value.
    """
    rows = [row | {"status": "ok", "reason": ""} for row in rows]
    rows += [{"policy": name, "status": "failed", "reason": reason} for name, reason in failures.items()]
    return sorted(rows, key=lambda row: policy_order(row["policy"])), [*columns, "status", "reason"]
