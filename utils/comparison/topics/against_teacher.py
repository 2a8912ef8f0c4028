"""Agreement with the teacher, and distance from it, by the teacher's and the policy's own distributions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from utils.comparison.estimates import Estimate, columns_of, number_cell, over_runs, percent_cell
from utils.comparison.paired import PolicyResult
from utils.comparison.topic import Comparison, Topic
from utils.documents.document import Number, Paragraph, Section, Table, emphasis, sentence

# What is shown of 10's metrics.json: its key -> title and, for the interval, the range of its values.
SHOWN = {
    "top1_agreement": ("agreement", (0.0, 1.0)),
    "forward_kl": ("forward KL", (0.0, math.inf)),
    "reverse_kl": ("reverse KL", (0.0, math.inf)),
    "jsd": ("JSD", (0.0, math.log(2))),
    "centred_cosine": ("cosine of logits", (-1.0, 1.0)),
}
TEXTS = {"on_responses": "own answers", "on_gold": "gold text"}
PLACES = [(text, key) for text in TEXTS for key in SHOWN]


def topic(comparison: Comparison) -> Topic:
    """A row per policy; nothing where no policy was held against a teacher."""
    against = against_teacher(comparison.results)
    if not against:
        return Topic()
    heads = [f"{SHOWN[key][0]}, {TEXTS[text]}" for text, key in PLACES]
    rows = [[name, *(cell(of.get(place), place[1]) for place in PLACES)] for name, of in against.items()]
    note = sentence(
        "Policy and teacher given the same prefix, over response tokens alone: how often both put the same "
        "token first, and divergences in nats per token (forward: KL(teacher | policy)). {} are the policy's "
        "greedy ones, so every row is about other text; the {} is the same for all. 95 % {}.",
        *(emphasis("Own answers"), emphasis("gold text")),
        comparison.intervals(f"bootstrap intervals over {comparison.units}"),
    )
    columns = {
        name: columns_of({f"{text.removeprefix('on_')}_{key}": of.get((text, key)) for text, key in PLACES})
        for name, of in against.items()
    }
    table = Table(["policy", *heads], rows)
    return Topic([Section("Against the teacher", [Paragraph(note), table])], columns)


def against_teacher(
    results: Mapping[str, Sequence[PolicyResult]],
) -> dict[str, dict[tuple[str, str], Estimate]]:
    """Policy -> (text, key) -> its distance from the teacher, where every evaluation of it has one.

    With one run, the intervals are 10's (bootstrap over items). With several, means over the runs with a t
    interval over seeds, cut to the range of possible values.
    """
    found: dict[str, dict[tuple[str, str], Estimate]] = {}
    for name, of_runs in results.items():
        parts = [result.metrics.get("teacher", {}) for result in of_runs]
        for text, key in PLACES:
            measured = [part.get(text, {}).get(key) for part in parts]
            if None not in measured:
                found.setdefault(name, {})[text, key] = over_runs(measured, SHOWN[key][1])
    return found


def cell(estimate: Estimate | None, key: str) -> Number:
    """One number with its interval for a table."""
    return percent_cell(estimate) if key == "top1_agreement" else number_cell(estimate, to="–")
