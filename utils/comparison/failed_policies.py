"""Policies that failed before they could be evaluated, as ``--failures`` names them: "policy: reason"."""

from __future__ import annotations

import re
from collections.abc import Sequence

from utils.frame.pipeline import policy_order

_ENTRY = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?):\s+(?P<reason>\S.*)", re.DOTALL)


def parse_failures(entries: Sequence[str]) -> dict[str, str]:
    """Name -> reason on one line; several reasons of one name are joined.

    A name is a policy, which failed wherever it is looked for, or "<run>/<policy>".

    Raises ValueError for an entry of another form.
    """
    failures: dict[str, list[str]] = {}
    for entry in entries:
        found = _ENTRY.fullmatch(entry.strip())
        if not found:
            raise ValueError(
                f"failures: {entry!r} is not of the form 'policy: reason'; on the command line, give them as "
                "a JSON list: --failures '[\"dpo: too few pairs, 3\"]'"
            )
        reason = " ".join(found["reason"].split())
        if reason not in failures.setdefault(found["name"], []):
            failures[found["name"]].append(reason)
    return {name: "; ".join(failures[name]) for name in sorted(failures, key=policy_order)}


def failed_in_any(failures: dict[str, str]) -> dict[str, str]:
    """Policy -> reason, with the runs named that a reason is of: "no pairs (run_0, run_1)"."""
    runs: dict[str, dict[str, list[str]]] = {}
    for name, reason in failures.items():
        run, _, policy = name.rpartition("/")
        of_policy = runs.setdefault(policy, {}).setdefault(reason, [])
        of_policy += [run] if run else []
    return {
        policy: "; ".join(
            f"{reason} ({', '.join(where)})" if where else reason for reason, where in runs[policy].items()
        )
        for policy in sorted(runs, key=policy_order)
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
