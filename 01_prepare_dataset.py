"""Prepare the data: raw rows to the records that every later stage reads."""

from collections.abc import Callable
from pathlib import Path

from utils.data import checks
from utils.data.length_plot import plot_lengths
from utils.data.preparation import Prepared, cut_statistics, dropped_counts, prepare
from utils.data.records import HELD_OUT
from utils.data.rendering import approximate_tokens
from utils.data.settings import DatasetConfig
from utils.data.sources import raw_inputs, read_splits
from utils.frame.config import StageConfig
from utils.frame.files import UserError, first_line, resolve_path, shown, write_json, write_jsonl
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
    quick={"dataset.max_train": 64, "dataset.max_val": 16, "dataset.max_test": 16},
)


def token_counter(config: DatasetConfig) -> Callable[[str], int]:
    """What measures input length: the configured tokenizer, or the tokenizer-free estimate."""
    if not config.tokenizer:
        return approximate_tokens
    from transformers import AutoTokenizer

    local = resolve_path(config.tokenizer)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            local if local.exists() else config.tokenizer, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        wanted = shown(config.tokenizer)
        raise UserError(f"dataset.tokenizer: cannot load {wanted}: {first_line(error)}") from None
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])


def run(ctx: StageContext) -> None:
    """Read the raw splits, prepare the records, write them and say what was left out and cut."""
    from utils.grading.tasks import task_of

    config = ctx.config.dataset
    raw = read_splits(config, ctx.inputs, task_of(config.dataset).gold_fault)
    if failed := checks.verdict(raw, config.error_threshold):
        raise UserError(f"the data cannot be used: {failed}; 00_check_data.py reports every problem")
    prepared = prepare(raw, config, token_counter(config), ctx.progress)
    for split, records in prepared.records.items():
        if not records:
            raise UserError(f"no records left for {split}: raise dataset.val_fraction or add data")
        write_jsonl(ctx.out / f"{split}.jsonl", (record.to_json() for record in records))
        cut = cut_statistics(prepared.cuts[split])
        ctx.metrics[split] = {"records": len(records)} | cut
        over = cut["inputs_still_over_limit"]
        still = f", {over} still over the limit" if over else ""
        ctx.log(f"{split}: {len(records)} records, {cut['inputs_cut']} over-long inputs cut{still}")
    write_jsonl(ctx.out / "dropped.jsonl", prepared.dropped)
    ctx.metrics["dropped"] = dropped_counts(prepared.dropped)
    for code, count in ctx.metrics["dropped"].items():
        ctx.log(f"WARNING: {count} rows left out: {code} (named in dropped.jsonl)")
    if prepared.held_out:
        report_held_out(ctx, prepared)
    plot_lengths(ctx.out / "length.png", prepared.records)


def report_held_out(ctx: StageContext, prepared: Prepared) -> None:
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
