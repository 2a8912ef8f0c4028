"""From raw rows to the records of train, val and test: what is left out, split, limited and cut."""

import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from utils.data.checks import item_key
from utils.data.reader import SPLITS
from utils.data.reading import Problem, RawRow
from utils.data.records import Record
from utils.data.rendering import Cut, approximate_tokens
from utils.data.settings import DatasetConfig
from utils.data.sources import RawSplit
from utils.frame.files import UserError, derive_seed
from utils.frame.stage import no_bar


@dataclass
class PreparedSplit:
    """The records by split, the rows left out (with the reason), and what was cut, by split.

    ``held_out`` counts, by split, the rows of held-out levels that it lost (train, val) or keeps (test).
    ``evidence`` is what `evidence_statistics` says of each split; {} where nothing depends on the evidence.
    """

    records: dict[str, list[Record]]
    dropped: list[dict]
    cuts: dict[str, list[Cut]] = field(default_factory=dict)
    held_out: dict[str, int] = field(default_factory=dict)
    evidence: dict[str, dict] = field(default_factory=dict)


def prepare(
    raw: dict[str, RawSplit],
    config: DatasetConfig,
    count_tokens: Callable[[str], int] = approximate_tokens,
    progress: Callable[..., Iterable[RawRow]] = no_bar,
    find_evidence: Callable[[RawRow], tuple[str, ...]] | None = None,
) -> PreparedSplit:
    """Records of every split, with a seeded part of train as val where the set has no val of its own.

    Rows with an error are left out, and so are rows whose question and context occur in a later split (train
    before val before test), so that nothing evaluated has been trained on. Where nothing of an input can be
    cut (GSM8K, MATH), train and val also lose the rows that are longer than ``max_input_tokens``; test keeps
    them, since nothing may vanish from its denominator. ``dropped`` names each of these rows.

    Rows of ``hold_out_levels`` are left out of train and val and counted in ``held_out``. They are taken out
    after val was cut from train, so that the other rows are split as without them.

    With ``derive_evidence``, ``find_evidence`` gives the places of the evidence that annotators left out.
    Under ``context: gold`` every split, test too, loses the rows whose evidence is unknown.

    Raises UserError where a level to hold out does not occur, or where a split would have nothing left.
    """
    rows, dropped = sound_rows(raw, config, find_evidence)
    if "val" not in rows:
        rows["train"], rows["val"] = hold_out(rows["train"], config.val_fraction, config.val_seed)
    held_out = hold_out_levels(rows, config.hold_out_levels)
    limits = {"train": config.max_train, "val": config.max_val, "test": config.max_test}
    prepared = PreparedSplit({}, dropped, held_out=held_out)
    for split in SPLITS:
        if split != "test" and config.max_input_tokens is not None and not config.form.has_context:
            rows[split], long = _short_enough(rows[split], config, count_tokens)
            prepared.dropped += [{"split": split} | problem.to_json() for problem in long]
        chosen = limit(rows[split], limits[split], derive_seed(config.val_seed, "limit", split))
        shown = progress(chosen, description=f"rendering {split}")
        rendered = [config.form.record(row, config, count_tokens) for row in shown]
        prepared.records[split] = [record for record, _ in rendered]
        prepared.cuts[split] = [cut for _, cut in rendered if cut is not None]
        if config.context != "full" or config.derive_evidence:
            prepared.evidence[split] = evidence_statistics(chosen, prepared.cuts[split])
    return prepared


def sound_rows(
    raw: dict[str, RawSplit],
    config: DatasetConfig,
    find_evidence: Callable[[RawRow], tuple[str, ...]] | None = None,
) -> tuple[dict[str, list[RawRow]], list[dict]]:
    """The rows of each split that can be used, and what is left out whatever the lengths: rows with an error,
    repeated in a later split, or under ``context: gold`` without known evidence. As in `prepare`.
    """
    dropped = [
        {"split": split} | problem.to_json()
        for split, part in raw.items()
        for problem in part.problems
        if problem.severity == "error"
    ]
    rows = {split: part.usable for split, part in raw.items()}
    for split in rows:
        rows[split], leaks = _without_leaks(rows, split)
        dropped += [{"split": split} | problem.to_json() for problem in leaks]
        if config.derive_evidence:
            rows[split] = [_with_evidence(row, find_evidence) for row in rows[split]]
        if config.context == "gold":
            rows[split], unknown = _evidence_known(rows[split])
            dropped += [{"split": split} | problem.to_json() for problem in unknown]
    return rows, dropped


def hold_out(rows: list[RawRow], fraction: float, seed: int) -> tuple[list[RawRow], list[RawRow]]:
    """Split rows into (train, val), val holding about ``fraction`` of them, each in file order.

    Rows of one report page, and rows that are the same item, stay on one side.
    """
    groups: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(row.report or item_key(row), []).append(index)
    order = list(groups.values())
    random.Random(derive_seed(seed, "val")).shuffle(order)
    wanted, held = round(fraction * len(rows)), set()
    for group in order:
        if len(held) >= wanted:
            break
        held.update(group)
    train = [row for index, row in enumerate(rows) if index not in held]
    return train, [rows[index] for index in sorted(held)]


def hold_out_levels(rows: dict[str, list[RawRow]], levels: list[int]) -> dict[str, int]:
    """Take the rows of these levels out of train and val, in place; rows without a level stay.

    Returns how many rows each of train and val lost, and how many test keeps; {} for no levels. Raises
    UserError for a level that train or test does not have, and where train or val would be left empty.
    """
    if not levels:
        return {}
    for split in ("train", "test"):
        found = {row.level for row in rows[split]} - {None}
        for level in levels:
            if level not in found:
                has = f"levels {', '.join(map(str, sorted(found)))}" if found else "no levels"
                raise UserError(
                    f"dataset.hold_out_levels: level {level} does not occur in {split}, which has {has}"
                )
    counts = {split: sum(row.level in levels for row in rows[split]) for split in SPLITS}
    for split in ("train", "val"):
        rows[split] = [row for row in rows[split] if row.level not in levels]
        if not rows[split]:
            raise UserError(f"dataset.hold_out_levels: nothing is left in {split}; hold out fewer levels")
    return counts


def limit(rows: list[RawRow], most: int | None, seed: int) -> list[RawRow]:
    """A seeded sample of at most ``most`` rows, in file order (the files are sorted by type or report)."""
    if most is None or most >= len(rows):
        return rows
    return [rows[index] for index in sorted(random.Random(seed).sample(range(len(rows)), most))]


def cut_statistics(cuts: list[Cut]) -> dict[str, int]:
    """Totals over the inputs that were over the limit."""
    return {
        "inputs_cut": sum(cut.sentences + cut.rows > 0 for cut in cuts),
        "sentences_cut": sum(cut.sentences for cut in cuts),
        "rows_cut": sum(cut.rows for cut in cuts),
        "tokens_cut": sum(cut.tokens_before - cut.tokens_after for cut in cuts),
        "inputs_that_lost_gold_evidence": sum(cut.evidence_lost > 0 for cut in cuts),
        "inputs_still_over_limit": sum(cut.still_over for cut in cuts),
    }


def evidence_statistics(rows: list[RawRow], cuts: list[Cut]) -> dict[str, int | float]:
    """How many rows have evidence that annotators marked, that was derived, or none; and the share of those
    with evidence whose input keeps all of it (absent where no row has any)."""
    derived = sum(row.places_derived for row in rows)
    known = sum(bool(row.gold_places) for row in rows)
    counts = {"annotated": known - derived, "derived": derived, "unknown": len(rows) - known}
    if not known:
        return counts
    lost = sum(cut.evidence_lost > 0 for cut in cuts)
    return counts | {"keep_all": known - lost, "share_that_keeps_all": (known - lost) / known}


def dropped_counts(dropped: list[dict]) -> dict[str, int]:
    """Rows left out, by code of the reason."""
    return dict(sorted(Counter(entry["code"] for entry in dropped).items()))


def _short_enough(
    rows: list[RawRow], config: DatasetConfig, count_tokens: Callable[[str], int]
) -> tuple[list[RawRow], list[Problem]]:
    """The rows whose input is within ``max_input_tokens``, and a problem for each of the others."""
    kept, long = [], []
    for row in rows:
        _, cut = config.form.input_text(row, config, count_tokens)
        if cut is None:
            kept.append(row)
        else:
            message = f"an input of {cut.tokens_before} tokens, max_input_tokens is {config.max_input_tokens}"
            long.append(row.problem("error", "too_long", message))
    return kept, long


def _with_evidence(row: RawRow, find_evidence: Callable[[RawRow], tuple[str, ...]]) -> RawRow:
    if row.gold_places:
        return row
    places = find_evidence(row)
    return replace(row, gold_places=places, places_derived=bool(places))


def _evidence_known(rows: list[RawRow]) -> tuple[list[RawRow], list[Problem]]:
    message = "no qa.gold_inds to make a context of"
    unknown = [row.problem("error", "no_evidence", message) for row in rows if not row.gold_places]
    return [row for row in rows if row.gold_places], unknown


def _without_leaks(rows: dict[str, list[RawRow]], split: str) -> tuple[list[RawRow], list[Problem]]:
    later = [other for other in SPLITS[SPLITS.index(split) + 1 :] if other in rows]
    keys = {item_key(row): (other, row) for other in later for row in rows[other]}
    kept, leaks = [], []
    for row in rows[split]:
        if (found := keys.get(item_key(row))) is None:
            kept.append(row)
        else:
            other, twin = found
            message = f"the same question and context as {twin.id} of {other} ({twin.source})"
            leaks.append(row.problem("error", "leak", message))
    return kept, leaks
