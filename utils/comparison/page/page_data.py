"""The answers of compared policies as the HTML report holds them: compressed blocks, decoded on demand.

Token values take eight bits each: a value v is stored as q = round(127 * sign(v) * sqrt(|v| / max)), and read
as sign(q) * max * (q / 127)^2, where max is the largest |v| of its measure. The square keeps small values
apart: most tokens cost a policy next to nothing, and a few cost it much. The page states the largest error.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from utils.comparison.answer_files import Answers, read_answers, read_prompts
from utils.comparison.evaluations import SAMPLES
from utils.frame.files import UserError
from utils.frame.stage import no_bar

BLOCK = 25  # items a block: one is decoded in some 20 ms, and neighbours are likely to be read next
# A measure's colours are full at this percentile of |v| among the values above a share of the largest. Nearly
# all tokens of a trained policy have next to no intrinsic reward or KL: over all values the scale would end
# where nothing happens, and a reward of -0.001 would look like one of -10.
SHOWN, NEGLIGIBLE = 90, 0.01
UNKNOWN = -128
_FIRST = 0x180  # a stored value q is the character of this code plus q: no quote, control or surrogate

# Parts of the page's data in the order in which they are kept where not all of it fits.
PARTS = ("answers", "tokens", "prompts", "samples")
_SOURCES = dict(zip(PARTS, (*SAMPLES, "01_preprocessing", SAMPLES[0]), strict=True))

# Measure -> (title, whether it has two signs, what it says).
MEASURES = {
    "intrinsic": ("Intrinsic", True, "the token's reward by the teacher's logits, before any weight"),
    "advantage": ("Advantage", True, "generalised advantage estimate with the policy's own critic"),
    "log_ratio": (
        "Log ratio",
        True,
        "log policy − log reference: the implicit advantage up to the factor beta",
    ),
    "kl_teacher": ("KL teacher", False, "KL(policy ‖ teacher) at this position"),
    "kl_reference": ("KL reference", False, "KL(policy ‖ the policy it started from) at this position"),
    "log_prob": ("Log-prob", False, "log-probability of the token under the policy"),
}
_KEPT = (
    *("response", "program", "value", "failure_detail", "tokens", "truncated", "format_valid", "measures"),
    *("rewards", "reasoning"),
)
_OF_SAMPLE = ("response", "value", "correct")


@dataclass(frozen=True)
class PageData:
    """What the page's script reads.

    Attributes:
        index: the table of items and of who was right; small, decoded when the page opens.
        parts: part -> one JSON value per block of items.
        notes: what is not there, in words.
    """

    index: dict[str, Any]
    parts: dict[str, list[Any]]
    notes: list[str]


def quantise(values: Sequence[float | None] | np.ndarray, largest: float) -> np.ndarray:
    """Values as int codes -127..127; NaN or None (unknown) as UNKNOWN."""
    values = np.array(values, dtype=np.float64)
    known = ~np.isnan(values)
    values = np.where(known, values, 0.0)
    scaled = np.sqrt(np.abs(values) / largest) if largest else np.zeros_like(values)
    return np.where(known, np.rint(127 * np.sign(values) * scaled).astype(int), UNKNOWN)


def dequantise(q: np.ndarray, largest: float) -> np.ndarray:
    """What the page reads from the codes."""
    return np.where(q == UNKNOWN, np.nan, np.sign(q) * largest * (q / 127.0) ** 2)


def encode(values: Sequence[float | None], largest: float) -> str:
    """The values of an answer's tokens, one character each."""
    return (quantise(values, largest) + _FIRST).astype("<u2").tobytes().decode("utf-16-le")


def page_data(folders: Mapping[str, Sequence[Path]], labels: Sequence[str]) -> PageData:
    """Everything that the item browser shows.

    Args:
        folders: policy -> folder 10_evaluation/<policy> of each run.
        labels: what the runs are called, e.g. "seed 0"; as many as each policy has folders.

    Raises:
        UserError: for a damaged file, and for a token value that is not finite.
    """
    answers = {name: [read_answers(folder) for folder in of_policy] for name, of_policy in folders.items()}
    every = [each for of_policy in answers.values() for each in of_policy]
    first: dict[str, dict[str, Any]] = {}  # of every item a row, for what all rows of it say alike
    for each in every:
        first |= {item: row for item, row in each.by_id.items() if item not in first}
    ids, prompts = list(first), read_prompts(folders)
    measures = _measures(answers)
    reasons = {row.get("failure_reason") or "" for each in every for row in each.by_id.values()}
    reasons, types = sorted(reasons - {""}), sorted({row.get("type") or "" for row in first.values()} - {""})
    index = {
        "schema_version": 1,
        "policies": list(folders),
        "runs": list(labels),
        "block": BLOCK,
        "reasons": reasons,
        "types": types,
        "ids": ids,
        **{
            f"{key}s": [row.get(key) or "" for row in first.values()]
            for key in ("question", "gold", "gold_program")
        },
        "levels": [row.get("level") for row in first.values()],
        "item_types": [_place(types, row.get("type")) for row in first.values()],
        "answers": [[_outcomes(each, ids, reasons) for each in of_policy] for of_policy in answers.values()],
        "measures": measures,
        "first_code": _FIRST,
        "unknown": UNKNOWN,
    }
    blocks = [ids[start : start + BLOCK] for start in range(0, len(ids), BLOCK)]
    parts = {
        "answers": [_grid(block, answers, _answer) for block in blocks],
        "tokens": [_grid(block, answers, partial(_tokens, measures)) for block in blocks],
        "prompts": [[prompts.get(item) for item in block] for block in blocks],
        "samples": [_grid(block, answers, _samples) for block in blocks],
    }
    parts = {name: of_part for name, of_part in parts.items() if any(_filled(block) for block in of_part)}
    return PageData(index, parts, _missing(answers, prompts, parts))


def pack(
    data: PageData, room: int, progress: Callable[..., Iterable] = no_bar
) -> tuple[list[tuple[str, str]], list[str]]:
    """The data as (name, base64 of gzip) for the page, and notes on what does not fit into ``room`` bytes.

    Parts go in by their order in PARTS, each by blocks in file order, until the next does not fit. The index
    always goes in. ``progress``: as `StageContext.progress`.
    """
    chunks = [("index", _compressed(data.index))]
    room -= len(chunks[0][1])
    left_out = []
    for part in PARTS:
        blocks = data.parts.get(part, [])
        for number, block in enumerate(progress(blocks, description=f"packing {part}")):
            text = _compressed(block)
            if len(text) > room:
                first, last = number * data.index["block"] + 1, len(data.index["ids"])
                left_out.append(
                    f"{part.capitalize()} of items {first} to {last} are left out, because the page would "
                    f"grow too large; they are in {_SOURCES[part]}."
                )
                break
            room -= len(text)
            chunks.append((f"{part}-{number}", text))
    return chunks, left_out


def _compressed(value: Any) -> str:
    """JSON, compressed to the same bytes for the same value; lone surrogates become U+FFFD in the browser."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode("utf-8", "surrogatepass"), 6, mtime=0)).decode()


def _outcomes(each: Answers, ids: Sequence[str], reasons: Sequence[str]) -> dict[str, Any]:
    """Who is right, a character an item ("1", "0", "-" where there is no answer), and why not."""
    rows = [each.by_id.get(item) for item in ids]
    return {
        "correct": "".join("-" if row is None else str(int(row["correct"])) for row in rows),
        "reasons": [_place(reasons, row.get("failure_reason")) if row else -1 for row in rows],
    }


def _place(names: Sequence[str], name: str | None) -> int:
    return names.index(name) if name else -1


def _grid(block: Sequence[str], answers: Mapping[str, Sequence[Answers]], cell: Any) -> list[Any]:
    """[item][policy][run] -> what ``cell`` makes of the answer, for one block of items."""
    return [[[cell(each, item) for each in of_policy] for of_policy in answers.values()] for item in block]


def _filled(value: Any) -> bool:
    """Whether anything is in nested lists."""
    return any(map(_filled, value)) if isinstance(value, list) else value is not None


def _answer(each: Answers, item: str) -> dict[str, Any] | None:
    row = each.by_id.get(item)
    if row is None:
        return None
    kept = {key: row[key] for key in _KEPT if row.get(key) not in (None, "", {})}
    for key in ("rewards", "reasoning"):
        for name, value in kept.get(key, {}).items():
            _check_finite(value, key, name, item)
    return kept


def _samples(each: Answers, item: str) -> list[dict[str, Any]] | None:
    samples = (each.by_id.get(item) or {}).get("samples") or []
    return [{key: sample.get(key) for key in _OF_SAMPLE} for sample in samples] or None


def _tokens(measures: Sequence[Mapping[str, Any]], each: Answers, item: str) -> dict[str, Any] | None:
    row = each.tokens.get(item)
    if row is None:
        return None
    largest = {m["name"]: m["largest"] for m in measures if m["name"] in row["values"]}
    values = {name: encode(row["values"][name], size) for name, size in largest.items()}
    return {"pieces": row["tokens"], "values": values}


def _measures(answers: Mapping[str, Sequence[Answers]]) -> list[dict[str, Any]]:
    """The measures that any answer has, known ones first, with the scale of each over all answers."""
    found: dict[str, list[np.ndarray]] = {}
    for of_policy in answers.values():
        for each in of_policy:
            for item, row in each.tokens.items():
                for name, values in row["values"].items():
                    found.setdefault(name, []).append(_known(values, name, item))
    order = [*(name for name in MEASURES if name in found), *sorted(set(found) - set(MEASURES))]
    return [_described(name, np.concatenate(found[name])) for name in order]


def _known(values: Sequence[float | None], name: str, item: str) -> np.ndarray:
    """The values that are there: float64 [known]. Raises UserError for one that is not finite."""
    known = [value for value in values if value is not None]
    try:
        array = np.array(known, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.array([np.nan])
    if array.ndim != 1 or not np.isfinite(array).all():
        raise UserError(f"a token value '{name}' of item '{item}' is not a finite number; run 10 again")
    return array


def _described(name: str, values: np.ndarray) -> dict[str, Any]:
    """How a measure is stored and coloured, all in nats.

    ``largest`` is the largest |v|, which is stored exactly; ``shown`` the |v| from which on the colour is
    full; ``error`` the largest difference between a value and what is stored for it.
    """
    title, signed, text = MEASURES.get(name, (name.replace("_", " "), True, ""))
    sizes = np.abs(values)
    largest = float(sizes.max(initial=0.0))
    counted = sizes[sizes > NEGLIGIBLE * largest]
    shown = float(np.percentile(counted, SHOWN)) if len(counted) else 0.0
    error = np.abs(dequantise(quantise(values, largest), largest) - values).max(initial=0.0)
    scale = {"largest": largest, "shown": shown or largest, "error": float(error)}
    return {"name": name, "title": title, "signed": signed, "text": text} | scale


def _check_finite(value: Any, what: str, name: str, item: str) -> None:
    if value is None or isinstance(value, bool):
        return
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{what} '{name}' of item '{item}' is {value!r}, not a finite number; run 10 again")


def _missing(answers: Mapping[str, Sequence[Answers]], prompts: Mapping, parts: Mapping) -> list[str]:
    """In words, what the page has not, so that an empty place is not taken for a result."""
    notes = []
    for file, what in (("predictions.jsonl", "responses"), ("tokens.jsonl", "token values")):
        without = [name for name, of in answers.items() if any(file in each.lacks for each in of)]
        if without:
            whose = "of any policy" if len(without) == len(answers) else f"of {', '.join(without)}"
            notes.append(f"No {what} {whose}: the evaluation has no samples/{file}.")
    rows = [row for of in answers.values() for each in of for row in each.by_id.values()]
    for key, what in (("rewards", "reward components"), ("reasoning", "reasoning quality")):
        if not any(row.get(key) for row in rows):
            notes.append(f"No {what}: the evaluations were made without.")
    if not prompts:
        notes.append("No prompts: the test records are not in the runs compared.")
    if "samples" not in parts:
        notes.append("No sampled answers: the evaluations are greedy (10_evaluate.py --num_samples 8).")
    return notes
