"""A checkpoint's answer to a question of one's own: ``10_evaluate.py --ask``. Nothing is written."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from utils.data.records import Record
from utils.evaluation.policy_names import checkpoint_of, checkpoints_in
from utils.evaluation.stage import variant_of
from utils.frame.credentials import load_environment, redact
from utils.frame.files import UserError, read_jsonl, shown
from utils.frame.manifest import read_manifest
from utils.frame.stage_plan import Plan, Stage, make_plan

ASK = "--ask"
_GOLD = "0"  # a record needs one; what was asked has none


def ask_command(stage: Stage, argv: Sequence[str]) -> int:
    """``--ask QUESTION`` or ``--ask FILE`` (a text with one prompt, or JSONL of questions or 01's records)
    with the options of 10; prints the greedy answers, and what they are read as. Returns the exit code.
    """
    try:
        load_environment()
        words = list(argv)
        place = words.index(ASK)
        asked = [word for word in words[place + 1 : place + 2] if not word.startswith("--")]
        if not asked:
            raise UserError(f"{ASK} takes a question in quotes, or a file with one")
        plan = make_plan(stage, [*words[:place], *words[place + 2 :]])
        for text in answers(plan, asked_records(asked[0], plan)):
            print(redact(text), flush=True)
    except UserError as error:
        print(f"error: {redact(str(error))}", file=sys.stderr)
        return 2
    return 0


def asked_records(asked: str, plan: Plan) -> list[Record]:
    """What is asked, as records in the form of the run's data set (or of ``--dataset_config``).

    A record of 01's is asked as it is. Raises UserError for a file without a question.
    """
    path = Path(asked).expanduser()
    if path.suffix != ".jsonl" or not path.is_file():
        return [_record(path.read_text(encoding="utf-8") if _is_file(path) else asked, plan)]
    known = {field.name for field in fields(Record)}
    found = []
    for number, row in enumerate(read_jsonl(path), start=1):
        if "input_text" in row:
            found.append(Record(**{key: value for key, value in row.items() if key in known}))
        elif isinstance(row.get("question"), str):
            found.append(replace(_record(row["question"], plan), id=str(row.get("id", number))))
        else:
            raise UserError(f"{shown(path)}:{number}: a row needs a question, or the input_text of a record")
    if not found:
        raise UserError(f"{shown(path)}: holds no question")
    return found


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a question may be longer than a file's name can be
        return False


def _record(text: str, plan: Plan) -> Record:
    """A question, with the instruction after it where the data set has one and no report before it."""
    dataset = plan.config.dataset
    prepared = read_manifest(plan.run_dir / "01_preprocessing")
    settings: dict[str, Any] = prepared["config"]["dataset"] if prepared else {}
    if plan.arguments.frame.dataset_config or not settings:
        settings = {"dataset": dataset.dataset, "instruction": dataset.instruction}
    form, question = settings["dataset"], text.strip()
    plain = form in ("gsm8k", "math") and settings["instruction"]
    prompt = f"{question}\n{settings['instruction']}" if plain else question
    return Record("asked", form, question, prompt, "", _GOLD)


def answers(plan: Plan, records: Sequence[Record]) -> list[str]:
    """The policy's greedy answer to each record, and what it is read as, as text.

    Raises UserError where there is no such policy, or a prompt does not fit it.
    """
    config = plan.config
    policy = variant_of(config)
    checkpoint = checkpoint_of(policy, config.options.policy_ckpt, config.model, plan.run_dir)
    if isinstance(checkpoint, Path) and not checkpoint.is_dir():
        raise UserError(
            f"{shown(checkpoint)}: no such checkpoint; train it first, or give another by --policy or "
            "--policy_ckpt"
        )
    if checkpoints_in(checkpoint):
        raise UserError(f"{shown(checkpoint)} holds several checkpoints: name one of them")
    from utils.data.prompts import prompt_ids
    from utils.models.loading import load_policy
    from utils.models.sampling import generate

    model, tokenizer = load_policy(checkpoint, config.model.model)
    limit = config.model.generation.max_new_tokens
    completions = generate(model, tokenizer, prompt_ids(tokenizer, records), max_new_tokens=limit)
    return [
        f"{policy}: {completion.text.strip()}\n{read_as(record, completion.text)}"
        for record, completion in zip(records, completions, strict=True)
    ]


def read_as(record: Record, text: str) -> str:
    """What grading makes of an answer: its program and value, and right or wrong where that is known."""
    from utils.grading.tasks import task_of

    task = task_of(record.dataset)
    graded = task.grade(record, text, program_accuracy=False)
    parts = [f"program {graded.parsed['program']}"] if graded.parsed.get("program") else []
    if graded.answer:
        parts.append(f"answer {graded.answer}")
    if graded.format_error:
        parts.append(f"not of the form asked for ({graded.format_error})")
    elif not graded.answer:
        parts.append(f"no answer ({graded.failure})")
    if record.id != "asked" and record.target_text:
        parts.append("right" if graded.correct else f"wrong (gold {record.target_answer})")
    return f"  read as: {', '.join(parts)}"
