"""Where each data set's raw files are, and which reader takes them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from utils.data.readers import sample
from utils.data.readers.finqa import read_finqa
from utils.data.readers.gsm8k import read_gsm8k
from utils.data.readers.hendrycks_math import read_math
from utils.data.readers.user import read_own
from utils.data.reading import FILE, Problem, RawRow
from utils.data.records import Record
from utils.data.rendering import render_record
from utils.data.settings import DatasetConfig
from utils.frame.files import UserError, resolve_path

SPLITS = ("train", "val", "test")

# Raw files by split, each name tried in this order below the data root; a set may lack val, which is then cut
# from train. The second names are those of the publishers' repositories and archives.
_CANDIDATES: dict[str, dict[str, tuple[str, ...]]] = {
    "finqa": {
        "train": ("dataset/train.json", "train.json"),
        "val": ("dataset/dev.json", "dev.json"),
        "test": ("dataset/test.json", "test.json"),
    },
    "gsm8k": {
        "train": ("train.jsonl", "grade_school_math/data/train.jsonl"),
        "val": ("val.jsonl",),
        "test": ("test.jsonl", "grade_school_math/data/test.jsonl"),
    },
    "math": {
        "train": ("train.jsonl", "train", "MATH/train"),
        "val": ("val.jsonl",),
        "test": ("test.jsonl", "test", "MATH/test"),
    },
}


@dataclass(frozen=True)
class RawSplit:
    """What a reader made of one split: its usable rows in file order, and all problems."""

    rows: list[RawRow]
    problems: list[Problem]

    @property
    def items(self) -> int:
        """Rows in the file, usable or not (as far as the file could be read)."""
        lost = {(p.file, p.place) for p in self.problems if p.severity == "error" and p.place != FILE}
        return len(lost | {(row.file, row.place) for row in self.rows})


def raw_files(config: DatasetConfig) -> dict[str, Path]:
    """The raw file (or folder) of each split; without "val" where the set has none.

    What ``files`` names comes before the names that the published sets have. The embedded set is generated
    here where it is missing: it is the same for every run seed, so that runs with different seeds are
    compared on the same items.
    """
    root = resolve_path(config.data_root)
    if config.dataset == "sample":
        sample.ensure(root)
    files = {}
    for split, names in _candidates(config).items():
        found = [root / name for name in names if (root / name).exists()]
        if found or split != "val" or "val" in config.files:
            files[split] = found[0] if found else root / names[0]
    return files


def raw_inputs(config: DatasetConfig) -> dict[str, Path]:
    """What a stage reads that reads raw data: the raw files by split, and the reader where there is one."""
    return raw_files(config) | ({"reader": resolve_path(config.reader)} if config.reader else {})


def _candidates(config: DatasetConfig) -> dict[str, tuple[str, ...]]:
    """The names that the raw file of each split may have."""
    if config.reader:
        return {split: (config.files.get(split, f"{split}.jsonl"),) for split in SPLITS}
    known = _CANDIDATES["finqa" if config.dataset == "sample" else config.dataset]
    return {split: (config.files[split],) if split in config.files else known[split] for split in SPLITS}


def read_split(config: DatasetConfig, split: str, path: Path) -> RawSplit:
    """Read one split's raw file. Problems and sources name the file without its folders."""
    required = tuple(config.required_fields)
    if config.reader:
        if config.dataset == "finqa" and "evidence" in config.response_fields:
            required += ("evidence",)
        return RawSplit(*read_own(path, split, resolve_path(config.reader), config.dataset, required))
    if config.dataset in ("finqa", "sample"):
        if "evidence" in config.response_fields:
            required += ("qa.evidence",)  # an empty evidence field would be taught in silence
        max_level = sample.MAX_LEVEL if config.dataset == "sample" else None
        return RawSplit(*read_finqa(path, path.name, required, max_level))
    reader = read_gsm8k if config.dataset == "gsm8k" else read_math
    return RawSplit(*reader(path, path.name, split, required))


def read_splits(
    config: DatasetConfig, files: dict[str, Path], program_fault: Callable[[RawRow], str]
) -> dict[str, RawSplit]:
    """Read all splits; a FinQA row whose gold program fails becomes an error.

    ``files`` may name more than splits (a reader), which is left out. ``program_fault`` returns why a row's
    gold program does not execute to its answer, "" where it does.
    """
    splits = {split: read_split(config, split, files[split]) for split in SPLITS if split in files}
    if config.dataset in ("finqa", "sample"):
        for raw in splits.values():
            for row in raw.rows:
                if reason := program_fault(row):
                    raw.problems.append(row.problem("error", "gold_program", reason))
    return splits


def gold_records(config: DatasetConfig, split: str) -> list[Record]:
    """The records of a split straight from its raw file, in file order and with nothing cut.

    For grading predictions made elsewhere. Raises UserError where the split has no file, or naming the first
    row that cannot be used: a gold item must not vanish from a denominator.
    """
    files = raw_files(config)
    if split not in files or not files[split].exists():
        raise UserError(f"{config.data_root}: holds no {split} split of {config.dataset}")
    raw = read_split(config, split, files[split])
    for problem in raw.problems:
        if problem.severity == "error":
            raise UserError(f"{files[split]}: {problem.place}: {problem.message}; mend the row or remove it")
    return [render(config, row) for row in raw.rows]


def render(config: DatasetConfig, row: RawRow) -> Record:
    """The record of one row with nothing cut."""
    return render_record(
        row,
        dataset=config.label,
        table_style=config.table_style,
        instruction=config.instruction,
        response_fields=tuple(config.response_fields),
        max_input_tokens=None,
    )[0]
