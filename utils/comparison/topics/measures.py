"""What evaluations measure besides accuracy, in a comparison: samples, reasoning, rewards, the reference.

Each part of 10's metrics.json is optional: evaluations made before it was measured still compare.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from utils.comparison.paired import PolicyResult
from utils.comparison.topics.number import Measured, number_cell, over_runs, percent_cell, with_measured
from utils.documents.text import listed, markdown_table

# The parts of metrics.json, the prefix of their columns of summary.csv, and the range of their values.
PARTS = {
    "samples": ("", (0.0, 1.0)),
    "reasoning": ("reasoning_", (0.0, 1.0)),
    "rewards": ("reward_", (-math.inf, math.inf)),
    "reference": ("reference_", (0.0, math.inf)),
}
KL_TOKEN, KL_RESPONSE, TOTAL = "kl_per_token", "kl_per_response", "total"

Measures = dict[str, dict[str, dict[str, Measured]]]  # part -> policy -> name -> what was measured


def measures_of(results: Mapping[str, Sequence[PolicyResult]]) -> Measures:
    """Part -> policy -> its numbers, where every evaluation of it has them.

    With one run the intervals are 10's. With several, means over the runs with a t interval over them, cut
    to the range of possible values; none where the runs do not differ.
    """
    found: Measures = {}
    for part, (_, bounds) in PARTS.items():
        for policy, of_runs in results.items():
            each = [numbers(part, result.metrics) for result in of_runs]
            shared = [name for name in each[0] if all(name in of_run for of_run in each)]
            measured = {name: over_runs([of_run[name] for of_run in each], bounds) for name in shared}
            if measured:
                found.setdefault(part, {})[policy] = measured
    return found


def numbers(part: str, metrics: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Name -> {"value", "ci95", …} of one part of metrics.json; {} where it has none."""
    content = metrics.get(part) or {}
    if part == "samples":
        found = {
            f"{kind.removesuffix('_k')}_{k}": number
            for kind in ("pass_at_k", "majority_at_k")
            for k, number in sorted(content.get(kind, {}).items(), key=lambda item: int(item[0]))
        }
    elif part == "reference":
        found = _kl(content.get("on_responses") or {})
    else:
        found = content
    return {name: number for name, number in found.items() if number and number.get("value") is not None}


def _kl(on_responses: Mapping[str, Any]) -> dict[str, Mapping[str, Any] | None]:
    """KL(policy | reference) on the policy's own greedy answers, nats per token and per response."""
    return {KL_TOKEN: on_responses.get("reverse_kl"), KL_RESPONSE: on_responses.get("kl_per_text")}


# --------------------------------------------------------------------------------------------- tables


def with_measures(
    rows: Sequence[dict[str, Any]], columns: Sequence[str], measures: Measures
) -> tuple[list, list]:
    """Rows and columns of summary.csv with ``pass_at_4``, ``reasoning_…``, ``reward_…``, ``reference_…``.

    Each has the ends of its interval beside it; blank for policies without. No columns where none has any.
    """
    names = {(part, name): PARTS[part][0] + name for part in measures for name in _names(measures[part])}

    def of_policy(policy: str) -> dict[str, Measured | None]:
        return {column: measures[part].get(policy, {}).get(name) for (part, name), column in names.items()}

    return with_measured(rows, columns, list(names.values()), of_policy)


def with_measures_by_run(
    rows: Sequence[dict[str, Any]], columns: Sequence[str], results: Mapping[str, Sequence[PolicyResult]]
) -> tuple[list, list]:
    """Rows of by_seed.csv, policy by policy and run by run, with each evaluation's own numbers."""
    each = [result for of_runs in results.values() for result in of_runs]
    one_by_one = [measures_of({"": [result]}) for result in each]
    every = measures_of_all(one_by_one)
    filled, found = [], list(columns)
    for row, measures in zip(rows, one_by_one, strict=True):
        padded = {part: {row["policy"]: measures.get(part, {}).get("", {})} | every[part] for part in every}
        (cells,), found = with_measures([row], columns, padded)
        filled.append(cells)
    return filled, found


def measures_of_all(one_by_one: Sequence[Measures]) -> Measures:
    """All names of all parts, under policies that no row has: they make every row's columns the same."""
    every: Measures = {}
    for place, measures in enumerate(one_by_one):
        for part in PARTS:
            if part in measures:
                every.setdefault(part, {})[f"\0{place}"] = measures[part][""]
    return every


def _names(of_part: Mapping[str, Mapping[str, Measured]]) -> list[str]:
    """Every name that some policy has, in the order of the first one."""
    return list(dict.fromkeys(name for of_policy in of_part.values() for name in of_policy))


# ------------------------------------------------------------------------------------------- sections


def measure_sections(measures: Measures, results: Mapping[str, Sequence[PolicyResult]]) -> str:
    """The report's sections on sampled answers, reasoning and rewards; "" where nothing was measured."""
    runs = max(map(len, results.values()))
    how = f"t intervals over {runs} seeds" if runs > 1 else "intervals over items"
    sections = []
    for part, (title, note) in _NOTES.items():
        if part in measures:
            names = _names(measures[part])
            cell = percent_cell if part in ("samples", "reasoning") else number_cell
            rows = [
                [policy, *(cell(of_policy.get(name)) for name in names)]
                for policy, of_policy in measures[part].items()
            ]
            heads = ["policy", *(name.replace("_at_", "@").replace("_", " ") for name in names)]
            sampled = f"{_sampling(results)} " if part == "samples" else ""
            text = f"{sampled}{note} 95 % {how}.{_lacking(measures[part], results)}"
            sections += [f"## {title}", text, markdown_table(heads, rows)]
    return "\n\n".join(sections)


_NOTES = {
    "samples": (
        "Sampled answers",
        "pass@k: one of k samples is right (unbiased); majority@k: the commonest value of k is right.",
    ),
    "reasoning": (
        "Reasoning quality",
        "Means over the items to which a measure applies. None of them says that an answer is right.",
    ),
    "rewards": (
        "Rewards",
        "Means over the greedy answers of each component of the run's reward specification, before its "
        "weight, and of the weighted total.",
    ),
}


def _sampling(results: Mapping[str, Sequence[PolicyResult]]) -> str:
    """How answers were sampled, or that policies sampled differently."""
    keys = ("num_samples", "temperature", "top_p", "top_k")
    settings = Counter(
        ", ".join(f"{key} {content[key]:g}" for key in keys if content.get(key) is not None)
        for of_runs in results.values()
        for result in of_runs
        if (content := result.metrics.get("samples"))
    )
    if len(settings) > 1:
        return f"**Not sampled alike** ({'; '.join(sorted(settings))}): do not compare them."
    return f"Sampled with {next(iter(settings))}."


def _lacking(
    of_part: Mapping[str, Mapping[str, Measured]], results: Mapping[str, Sequence[PolicyResult]]
) -> str:
    lacking = [policy for policy in results if policy not in of_part]
    return f" Not measured in the evaluation of {listed(lacking)}." if lacking else ""
