"""What evaluations measure besides accuracy: samples, reasoning, rewards, distance to the reference.

Each part of 10's metrics.json is optional: evaluations made before it was measured still compare.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from utils.comparison.estimates import Estimate, columns_of, number_cell, over_all_runs, percent_cell
from utils.comparison.paired import PolicyResult
from utils.comparison.topic import Comparison, Topic
from utils.documents.document import Line, Paragraph, Section, Table, strong
from utils.documents.text import listed

# The parts of metrics.json, the prefix of their columns of summary.csv, and the range of their values.
PARTS = {
    "samples": ("", (0.0, 1.0)),
    "reasoning": ("reasoning_", (0.0, 1.0)),
    "rewards": ("reward_", (-math.inf, math.inf)),
    "reference": ("reference_", (0.0, math.inf)),
}
KL_TOKEN, KL_RESPONSE, TOTAL = "kl_per_token", "kl_per_response", "total"
# Part -> title of its section, how its cells are written, what stands above its table.
_TEXTS = {
    "samples": (
        "Sampled answers",
        percent_cell,
        "pass@k: one of k samples is right (unbiased); majority@k: the commonest value of k is right.",
    ),
    "reasoning": (
        "Reasoning quality",
        percent_cell,
        "Means over the items to which a measure applies. None of them says that an answer is right.",
    ),
    "rewards": (
        "Rewards",
        number_cell,
        "Means over the greedy answers of each component of the run's reward specification, before its "
        "weight, and of the weighted total.",
    ),
}

Measures = dict[str, dict[str, dict[str, Estimate]]]  # part -> policy -> name -> what was measured


def topic(comparison: Comparison) -> Topic:
    """A section per part that any policy has, and a column per number."""
    measures = measures_of(comparison.results)
    sections = []
    for part, (title, cell, note) in _TEXTS.items():
        if found := measures.get(part):
            names = _names(found.values())
            silent = _silent(found.values(), names) if part == "rewards" else []
            names = [name for name in names if name not in silent]
            heads = ["policy", *(name.replace("_at_", "@").replace("_", " ") for name in names)]
            rows = [[policy, *(cell(of.get(name)) for name in names)] for policy, of in found.items()]
            lacking = [policy for policy in comparison.policies if policy not in found]
            text = f"{note} 95 % {comparison.intervals(f'intervals over {comparison.units}')}."
            text += f" 0 for every policy: {listed(silent)}." if silent else ""
            text += f" Not measured in the evaluation of {listed(lacking)}." if lacking else ""
            sampled = _sampling(comparison.results) if part == "samples" else []
            sections.append(Section(title, [Paragraph([*sampled, text]), Table(heads, rows)]))
    # By run it is each evaluation's own number, also where another run's lacks it.
    by_run = {
        name: [measures_of({name: [result]}) for result in of_runs]
        for name, of_runs in comparison.results.items()
    }
    every = [of_run for of_runs in by_run.values() for of_run in of_runs]
    return Topic(
        sections,
        columns={name: _columns(name, measures, [measures]) for name in comparison.policies},
        by_run={name: [_columns(name, of, every) for of in of_runs] for name, of_runs in by_run.items()},
    )


def measures_of(results: Mapping[str, Sequence[PolicyResult]]) -> Measures:
    """Part -> policy -> its numbers, where every evaluation of it has them.

    With one run the intervals are 10's. With several, means over the runs with a t interval over them, cut
    to the range of possible values; none where the runs do not differ.
    """
    found: Measures = {}
    for part, (_, bounds) in PARTS.items():
        for policy, of_runs in results.items():
            if shared := over_all_runs([numbers(part, result.metrics) for result in of_runs], bounds):
                found.setdefault(part, {})[policy] = shared
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
        # KL(policy | reference) on the policy's own greedy answers, nats per token and per response.
        kl = content.get("on_responses") or {}
        found = {KL_TOKEN: kl.get("reverse_kl"), KL_RESPONSE: kl.get("kl_per_text")}
    else:
        found = content
    return {name: number for name, number in found.items() if number and number.get("value") is not None}


def _columns(policy: str, measures: Measures, every: Sequence[Measures]) -> dict[str, Any]:
    """A policy's cells for every number that any of ``every`` has, blank where it lacks one."""
    cells = {}
    for part, (prefix, _) in PARTS.items():
        of_policy = measures.get(part, {}).get(policy, {})
        names = _names(of for each in every for of in each.get(part, {}).values())
        cells |= columns_of({prefix + name: of_policy.get(name) for name in names})
    return cells


def _names(found) -> list[str]:
    """Every name that any policy has, in the order of the first one."""
    return list(dict.fromkeys(name for of_policy in found for name in of_policy))


def _silent(found, names: Sequence[str]) -> list[str]:
    """The components of which every policy has 0: a column of zeros says no more than their names."""
    return [name for name in names if all(of[name].value == 0 for of in found if name in of)]


def _sampling(results: Mapping[str, Sequence[PolicyResult]]) -> list[Line]:
    """How answers were sampled, or that policies sampled differently; a space after it."""
    keys = ("num_samples", "temperature", "top_p", "top_k")
    settings = {
        ", ".join(f"{key} {content[key]:g}" for key in keys if content.get(key) is not None)
        for of_runs in results.values()
        for result in of_runs
        if (content := result.metrics.get("samples"))
    }
    if len(settings) > 1:
        return [strong("Not sampled alike"), f" ({'; '.join(sorted(settings))}): do not compare them. "]
    return [f"Sampled with {next(iter(settings))}. "]
