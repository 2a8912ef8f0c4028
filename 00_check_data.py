"""Check the raw data: read every row, report what is in it and what is wrong with it.

Exits 1 where the share of rows with an error is above dataset.error_threshold, or where a file as a whole is
damaged (empty, truncated, not an array); the report is written either way.
"""

import sys
from pathlib import Path

from utils.data import checks
from utils.data.preparation import dropped_counts, sound_rows
from utils.data.settings import DatasetConfig
from utils.data.sources import raw_inputs, read_splits, reader_fits, render
from utils.data.token_count import special_tokens
from utils.documents.text import plural
from utils.frame.config import StageConfig
from utils.frame.criteria import judged
from utils.frame.files import shown, write_json, write_jsonl, write_text
from utils.frame.stage import Stage, StageContext, main


def inputs(config: StageConfig, run_dir: Path) -> dict[str, Path]:
    """The raw file of each split, and the reader where there is one."""
    return raw_inputs(config.dataset)


STAGE = Stage(
    number="00",
    folder="00_data_validation",
    summary="Check the raw data: counts, damage, duplicates, overlap, golds that cannot be graded.",
    reads="the raw files below dataset.data_root (the embedded set is generated where it is missing)",
    writes="report.json, report.md, problems.jsonl (file, place, severity, code), examples.jsonl",
    tiers={"dataset": (DatasetConfig, "configs/datasets/sample.yaml")},
    inputs=inputs,
    fits=reader_fits,
)


def run(ctx: StageContext) -> int:
    """Read, check, write the report; returns 1 where the data cannot be used."""
    from utils.grading.tasks import task_of

    config = ctx.config.dataset
    task = task_of(config.dataset)
    splits = read_splits(config, ctx.inputs, task.gold_fault, ctx.progress)
    special = special_tokens(config.tokenizer)
    for raw in splits.values():
        raw.problems.extend(checks.special_token_problems(raw.rows, special))
        raw.problems.extend(checks.solution_problems(raw.rows, task.solution_fault))
    across = checks.duplicate_problems(splits) + checks.page_problems(splits)
    records = {
        split: [render(config, row) for row in ctx.progress(raw.rows, description=f"rendering {split}")]
        for split, raw in splits.items()
    }
    failed = checks.verdict(splits, config.error_threshold)
    summary = checks.summarize(splits, records, across)
    summary |= {"dataset": config.label, "error_threshold": config.error_threshold}
    problems = [problem for raw in splits.values() for problem in raw.problems] + across
    write_json(ctx.out / "report.json", summary | {"verdict": failed or "passed"})
    page = checks.report_markdown(config.label, summary, failed, config.form.quirks_known)
    write_text(ctx.out / "report.md", page)
    write_jsonl(ctx.out / "problems.jsonl", (problem.to_json() for problem in problems))
    write_jsonl(ctx.out / "examples.jsonl", checks.examples(records))
    for split, counts in summary["splits"].items():
        errors, warnings = sum(counts["errors"].values()), sum(counts["warnings"].values())
        found, *lines = checks.problem_lines(splits[split], across, ctx.inputs[split].parent)
        ctx.log(f"{split}: {counts['usable']} of {counts['rows']} rows usable, {found}")
        for line in lines:
            ctx.log(f"  {line}")
        ctx.metrics[split] = {"rows": counts["rows"], "usable": counts["usable"]}
        ctx.metrics[split] |= {"errors": errors, "warnings": warnings}
    if problems:
        ctx.log(f"every problem: {shown(ctx.out / 'problems.jsonl')}")
    dropped = dropped_counts(sound_rows(splits, config, task.evidence)[1])
    if dropped:
        counts = ", ".join(f"{count} {code}" for code, count in dropped.items())
        ctx.log(f"01_prepare_dataset.py will leave out {plural(sum(dropped.values()), 'row')}: {counts}")
    ctx.metrics["repeated"] = summary["repeated"]
    rows = sum(counts["rows"] for counts in summary["splits"].values())
    usable = sum(counts["usable"] for counts in summary["splits"].values()) / max(1, rows)
    ctx.criteria["usable rows"] = judged(usable, at_least=1 - config.error_threshold)
    shared = summary["repeated"]["duplicate_across_splits"]
    ctx.criteria["questions in two splits"] = judged(shared, equal_to=0)
    if failed:
        print(f"error: {failed} (all problems: {shown(ctx.out / 'problems.jsonl')})", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    main(STAGE, run)
