"""Prepare the data: raw rows to the records that every later stage reads."""

from pathlib import Path

from utils.data import checks
from utils.data.length_plot import plot_lengths
from utils.data.preparation import PreparedSplit, cut_statistics, dropped_counts, prepare
from utils.data.records import HELD_OUT
from utils.data.settings import DatasetConfig
from utils.data.sources import raw_inputs, read_splits, reader_fits
from utils.data.token_count import token_counter
from utils.frame.config import StageConfig
from utils.frame.criteria import judged
from utils.frame.files import UserError, write_json, write_jsonl
from utils.frame.stage import Stage, StageContext, main


def inputs(config: StageConfig, run_dir: Path) -> dict[str, Path]:
    """The raw file of each split, and the reader where there is one."""
    return raw_inputs(config.dataset)


STAGE = Stage(
    number="01",
    folder="01_preprocessing",
    summary="Turn raw rows into records: render inputs and targets, cut long inputs, drop unusable rows.",
    reads="the raw files below dataset.data_root (the embedded set is generated where it is missing)",
    writes="train.jsonl, val.jsonl, test.jsonl (one record a line), dropped.jsonl (rows left out, and why), "
    "length.png, held_out_levels.json (with dataset.hold_out_levels)",
    tiers={"dataset": (DatasetConfig, "configs/datasets/sample.yaml")},
    inputs=inputs,
    fits=reader_fits,
    quick={"dataset.max_train": 64, "dataset.max_val": 16, "dataset.max_test": 16},
)


def run(ctx: StageContext) -> None:
    """Read the raw splits, prepare the records, write them and say what was left out and cut."""
    from utils.grading.tasks import task_of

    config = ctx.config.dataset
    task = task_of(config.dataset)
    raw = read_splits(config, ctx.inputs, task.gold_fault, ctx.progress)
    if failed := checks.verdict(raw, config.error_threshold):
        raise UserError(f"the data cannot be used: {failed}; 00_check_data.py reports every problem")
    prepared = prepare(raw, config, token_counter(config.tokenizer), ctx.progress, task.evidence)
    for split, records in prepared.records.items():
        if not records:
            gold = config.context == "gold" and not config.derive_evidence
            hint = "set dataset.derive_evidence" if gold else "raise dataset.val_fraction"
            raise UserError(f"no records left for {split}: {hint} or add data")
        write_jsonl(ctx.out / f"{split}.jsonl", (record.to_json() for record in records))
        cut = cut_statistics(prepared.cuts[split])
        ctx.metrics[split] = {"records": len(records)} | cut
        over = cut["inputs_still_over_limit"]
        ctx.criteria[f"{split}: inputs within the limit"] = judged(1 - over / len(records), at_least=0.95)
        still = f", {over} still over the limit" if over else ""
        what = (
            "over-long inputs cut"
            if config.context == "full"
            else f"with a part of the report ({config.context})"
        )
        ctx.log(f"{split}: {len(records)} records, {cut['inputs_cut']} {what}{still}")
        if split in prepared.evidence:
            report_evidence(ctx, split, prepared.evidence[split])
    write_jsonl(ctx.out / "dropped.jsonl", prepared.dropped)
    ctx.metrics["dropped"] = dropped_counts(prepared.dropped)
    for code, count in ctx.metrics["dropped"].items():
        ctx.log(f"WARNING: {count} rows left out: {code} (named in dropped.jsonl)")
    if prepared.held_out:
        report_held_out(ctx, prepared)
    plot_lengths(ctx.out / "length.png", prepared.records)


def report_evidence(ctx: StageContext, split: str, evidence: dict) -> None:
    """Say how many records have evidence, annotated or derived, and how many inputs keep all of it."""
    ctx.metrics[split]["evidence"] = evidence
    kinds = ", ".join(f"{evidence[kind]} {kind}" for kind in ("annotated", "derived", "unknown"))
    share = evidence.get("share_that_keeps_all")
    kept = "" if share is None else f"; {share:.1%} of those with evidence keep all of it"
    ctx.log(f"{split}: evidence of records: {kinds}{kept}")


def report_held_out(ctx: StageContext, prepared: PreparedSplit) -> None:
    """Say and write down which levels nothing learns from; 10 reports their accuracy apart."""
    levels, rows = sorted(ctx.config.dataset.hold_out_levels), prepared.held_out
    kept = sum(record.level in levels for record in prepared.records["test"])
    write_json(ctx.out / HELD_OUT, {"levels": levels})
    ctx.metrics["held_out_levels"] = {
        "levels": levels,
        "left_out_of_train": rows["train"],
        "left_out_of_val": rows["val"],
        "test_records": kept,
    }
    ctx.log(
        f"held out: level {', '.join(map(str, levels))}: {rows['train']} rows left out of train, "
        f"{rows['val']} of val; test has {kept} of its records"
    )


if __name__ == "__main__":
    main(STAGE, run)
