"""Readers under inputs that nobody meant: each is to be read, or refused by the error that is documented."""

import contextlib
import io
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests.external.faults.inputs import LAUGHS, ODD, PIECES, as_json, changed, damaged
from tests.support.finished_runs import pretend_finished
from tests.support.raw_rows import finqa_item, gsm8k_item, math_item
from utils.comparison.manifest_diff import diff_runs, render_diff
from utils.comparison.results_of_others import read_results
from utils.data.records import Record, load_records
from utils.data.settings import DatasetConfig
from utils.data.sources import read_split
from utils.frame import manifest as manifests
from utils.frame.command_line import FrameOptions, known_keys
from utils.frame.files import REPO_ROOT, UserError, read_json
from utils.frame.pipeline import ROWS
from utils.frame.shortages import refusal
from utils.frame.stage_plan import load_script, make_plan
from utils.frame.typed_settings import field_types
from utils.grading.grade import grade
from utils.grading.outside_predictions import read_predictions
from utils.rewards.spec import RewardSpec, load_reward_spec

SECONDS = 5.0  # of processor time: no input may take longer
Reader = Callable[[random.Random], None]


@dataclass
class Counts:
    """Of a reader: inputs, those refused as documented, and what else happened."""

    inputs: int = 0
    refused: int = 0
    slow: int = 0
    slowest: float = 0.0
    errors: dict[str, str] = field(default_factory=dict)  # last line and place -> traceback
    exceptions: int = 0


def fuzz(reader: Reader, inputs: int, seed: int | str, counts: Counts | None = None) -> Counts:
    """Give a reader so many inputs, each made from its own seed, so that one can be given again."""
    counts = counts or Counts()
    signal.signal(signal.SIGVTALRM, _too_long)
    for number in range(inputs):
        name = f"{seed}/{number}"
        rng = random.Random(name)
        start = time.process_time()
        signal.setitimer(signal.ITIMER_VIRTUAL, 60)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                reader(rng)
        except UserError:
            counts.refused += 1
        except Exception as error:
            if refusal(error):  # too long a name, as every stage says it
                counts.refused += 1
                continue
            kind, place = type(error).__name__, traceback.extract_tb(error.__traceback__)[-1]
            _note(counts, name, f"{kind} in {Path(place.filename).name}:{place.lineno}")
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            counts.inputs += 1
            taken = time.process_time() - start
            counts.slow += taken > SECONDS
            counts.slowest = max(counts.slowest, taken)
    return counts


def _note(counts: Counts, name: str, what: str) -> None:
    counts.exceptions += 1
    counts.errors.setdefault(what, f"input {name}: {traceback.format_exc()}")


def _too_long(signal_number: int, frame: Any) -> None:
    raise TimeoutError("an input took more than a minute of processor time")


# ---------------------------------------------------------------------------------------------- readers


def readers(folder: Path) -> dict[str, Reader]:
    """Every reader of files and words by its name; ``folder`` is for the files."""
    return {
        "manifest": partial(_manifest, *_finished_stage(folder / "run")),
        "YAML": partial(_yaml, folder / "tier.yaml", _tiers()),
        "command line": partial(_command_line, _stages(), folder),
        "predictions": partial(_predictions, folder / "predictions.jsonl", _records()),
        "results of others": partial(_results, folder),
        "data": partial(_data, folder),
        "records": partial(_records_file, folder / "records.jsonl"),
        "graders": partial(_graders, _records()),
    }


def _finished_stage(run: Path) -> tuple[Path, dict[str, Any]]:
    folder = run / "03_sft"
    for below in ("ckpt_sft/best", "logs"):
        (folder / below).mkdir(parents=True)
    pretend_finished(
        folder,
        "ckpt_sft/best/config.json",
        "logs/metrics.jsonl",
        schema_version=1,
        variant="",
        seed=0,
        run_id=run.name,
        config={"algo": {"learning_rate": 1e-4, "names": []}, "options": {"start": "sft"}},
        inputs={"01_preprocessing/train.jsonl": {"sha256": "0" * 64, "bytes": 3, "rows": 1}},
        metrics={"loss": 0.5, "cost": {"sampled_completions": 3}},
        criteria={"valid": {"value": 0.5, "at_least": 0.3, "passed": True}},
        environment={"python": "3.11", "packages": {"torch": None}, "git_commit": None, "git_dirty": None},
    )
    return folder, read_json(folder / manifests.MANIFEST)


def _manifest(folder: Path, whole: dict[str, Any], rng: random.Random) -> None:
    """A manifest with a checksum or without, damaged as text or as values, and all that compares it."""
    path = folder / manifests.MANIFEST
    manifest = changed(whole, rng) if rng.random() < 0.6 else whole
    if manifest is whole or rng.random() < 0.6:
        text = as_json(manifest)
        path.write_bytes(damaged(text, rng) if manifest is whole or rng.random() < 0.2 else text)
    else:
        with contextlib.suppress(ValueError, AttributeError, RecursionError):  # what no stage could write
            manifests.write_manifest(path, manifest)
    read = manifests.read_manifest(folder)
    same_work = manifests.identity("03_sft", "", 0, whole["config"], whole["inputs"])
    manifests.identity_differences(read, same_work)
    manifests.damaged_output(read, folder.parent)
    manifests.unlisted_file(read, folder.parent, "03_sft/ckpt_sft/best")
    render_diff(diff_runs({"03_sft": whole}, {"03_sft": read}), "a", "b")
    manifests.update_run_manifest(folder.parent)


def _tiers() -> list[tuple[type, bytes]]:
    classes = {tier: cls for stage in _stages() for tier, (cls, _) in stage.tiers.items()}
    folders = {"model": "models", "algo": "algorithms", "dataset": "datasets", "reward": "rewards"}
    return [
        (cls, file.read_bytes())
        for tier, cls in {**classes, "reward": RewardSpec}.items()
        for file in sorted((REPO_ROOT / "configs" / folders[tier]).glob("*.yaml"))
    ]


def _yaml(path: Path, tiers: list[tuple[type, bytes]], rng: random.Random) -> None:
    from utils.frame.config import load_tier

    cls, whole = rng.choice(tiers)
    kind = rng.random()
    text = damaged(whole, rng)
    if kind < 0.05:
        text = LAUGHS.encode() + text
    elif kind < 0.15:
        text += b"\nextra: " + rng.choice(PIECES)
    elif kind < 0.4:
        key = rng.choice([b"model", b"name", b"learning_rate", b"weights", b"intrinsic", b"beta", b"dataset"])
        text = key + b": " + as_json(rng.choice(ODD)) + b"\n"
    path.write_bytes(text)
    if cls is RewardSpec:
        load_reward_spec(path)
    else:
        load_tier(cls, path)


def _stages() -> list[Any]:
    return [load_script(script).STAGE for script in sorted({row.script for row in ROWS.values()})]


def _command_line(stages: list[Any], folder: Path, rng: random.Random) -> None:
    """Options that there are, with values of all sorts; words that no system would pass on are left out."""
    stage = rng.choice(stages)
    known = [*known_keys(stage), *(key.rpartition(".")[2] for key in known_keys(stage))]
    known += [option for option in field_types(FrameOptions) if option != "outputs_root"]
    words = ["--outputs_root", str(folder / "outputs")]
    for _ in range(rng.choice((1, 1, 2, 3))):
        words.append("--" + rng.choice(known + ["", "=", "x" * 300, "no-such"]))
        value = rng.choice([*ODD, *PIECES, "assets/student", "configs/models/sample.yaml", "1", "[1, 2]"])
        value = value.decode(errors="surrogateescape") if isinstance(value, bytes) else str(value)[:3000]
        words += [value] if rng.random() < 0.9 else []
    make_plan(stage, [word.replace("\0", "").replace("\ud800", "") for word in words])


def _records() -> list[Record]:
    program = '{"program": "subtract(5, 3)", "answer": "2"}'
    return [
        Record("0", "finqa", "q ?", "q ?", program, "2.0", target_program="subtract(5, 3)", source="a#0"),
        Record("1", "gsm8k", "q ?", "q ?", "2\n#### 2", "2", source="a#1"),
        Record("2", "math", "q ?", "q ?", r"so \boxed{\frac{1}{2}}", r"\frac{1}{2}", source="a#2"),
    ]


def _predictions(path: Path, records: list[Record], rng: random.Random) -> None:
    rows = [
        {"id": "0", "predicted": ["subtract(", "5", "3", ")", "EOF"]},
        {"index": 1, "response": "#### 2"},
        {"id": "2", "response": r"\boxed{3}"},
    ]
    path.write_bytes(_rows(rows, rng))
    read_predictions(path, records)


def _rows(rows: list[Any], rng: random.Random) -> bytes:
    """Rows as JSONL or as an array, damaged as values, as text, or both."""
    kind = rng.random()
    rows = changed(rows, rng) if kind < 0.7 else rows
    lines = isinstance(rows, list) and rng.random() < 0.5
    text = b"\n".join(map(as_json, rows)) if lines else as_json(rows)
    return damaged(text, rng) if kind > 0.5 else text


def _results(folder: Path, rng: random.Random) -> None:
    if rng.random() < 0.3:
        path = folder / "results.csv"
        path.write_bytes(damaged(b"id,correct,level\n0,True,1\n1,false,\n2,1,3\n", rng))
    else:
        path = folder / f"{rng.choice(('results', 'samples_gsm8k'))}.{rng.choice(('json', 'jsonl'))}"
        rows = [
            {"doc_id": 0, "exact_match": 1.0, "doc": {"question": "q"}, "filter": "none", "target": "2"},
            {"id": "a", "correct": True, "level": 1, "gold": "2"},
        ]
        path.write_bytes(_rows(rows, rng))
    read_results(path)


def _data(folder: Path, rng: random.Random) -> None:
    form, make = rng.choice([("finqa", finqa_item), ("gsm8k", gsm8k_item), ("math", lambda _: math_item())])
    path = folder / f"train.{rng.choice(('json', 'jsonl'))}"
    path.write_bytes(_rows([make(1), make(2)], rng))
    found = read_split(DatasetConfig(dataset=form, data_root=str(folder)), "train", path)
    if found.problems:
        raise UserError(str(found.problems[0]))


def _records_file(path: Path, rng: random.Random) -> None:
    rows = [record.__dict__ for record in _records()]
    path.write_bytes(_rows(rows, rng))
    load_records(path)


def _graders(records: list[Record], rng: random.Random) -> None:
    """What a model writes; MATH's answers go to the worker."""
    record = rng.choice(records)
    text = damaged(record.target_text.encode(), rng).decode("utf-8", "replace")
    grade(record, text)


# --------------------------------------------------------------------------------------------- the table


# Of a hundred inputs: what takes a reader longer is given less often.
SHARES = {
    "manifest": 8,
    "YAML": 3,
    "command line": 3,
    "predictions": 34,
    "results of others": 17,
    "data": 12,
    "records": 20,
    "graders": 3,
}


def fuzz_all(inputs: int, seed: int) -> bool:
    """Fuzz every reader, a hundred inputs at a time in turns, and print the table, of what has been done so
    far where it is interrupted; whether nothing but refusals came of it.
    """
    counts = {name: Counts() for name in SHARES}
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(KeyboardInterrupt):
        all_readers = readers(Path(folder))
        for turn in range(-(-inputs // 100)):
            for name, reader in all_readers.items():
                fuzz(reader, SHARES[name], f"{seed}/{turn}", counts[name])
    print("| reader | inputs | refused in one line | undocumented exceptions | above 5 s | slowest, s |")
    print("|---|---|---|---|---|---|")
    for name, found in [*counts.items(), ("all", _sum(counts.values()))]:
        print(
            f"| {name} | {found.inputs:,} | {found.refused:,} | {found.exceptions} | {found.slow} | "
            f"{found.slowest:.1f} |"
        )
        for what, trace in found.errors.items():
            print(f"\n{name}: {what}\n{trace}", file=sys.stderr)
    return not any(found.exceptions or found.slow for found in counts.values())


def _sum(counts: Iterable[Counts]) -> Counts:
    whole = Counts()
    for each in counts:
        whole.inputs += each.inputs
        whole.refused += each.refused
        whole.exceptions += each.exceptions
        whole.slow += each.slow
        whole.slowest = max(whole.slowest, each.slowest)
    return whole
