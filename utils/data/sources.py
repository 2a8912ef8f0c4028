"""Where each data set's raw files are, and which reader takes them."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from utils.data.layouts import files_below, find_file
from utils.data.reader import SPLITS
from utils.data.readers import all_readers
from utils.data.reading import FILE, Problem, RawRow
from utils.data.recognition import first_row
from utils.data.records import Record
from utils.data.settings import DatasetConfig
from utils.data.user_reader import read_own, reader_function
from utils.frame.config import StageConfig
from utils.frame.files import UserError, resolve_path, shown
from utils.frame.stage import no_bar

TEST_ALONE = " (a set of a test split alone takes another's train, as configs/datasets/math-500.yaml does)"


@dataclass(frozen=True)
class RawSplit:
    """What a reader made of one split: its usable rows in file order, and all problems."""

    rows: list[RawRow]
    problems: list[Problem]

    @property
    def lost(self) -> set[tuple[str, str]]:
        """File and place of every row with an error."""
        return {(p.file, p.place) for p in self.problems if p.severity == "error" and p.place != FILE}

    @property
    def usable(self) -> list[RawRow]:
        """The rows without an error, in file order."""
        lost = self.lost
        return [row for row in self.rows if (row.file, row.place) not in lost]

    @property
    def items(self) -> int:
        """Rows in the file, usable or not (as far as the file could be read)."""
        return len(self.lost | {(row.file, row.place) for row in self.rows})


def raw_files(config: DatasetConfig) -> dict[str, Path]:
    """The raw file (or folder) of each split; without "val" where the set has none.

    What ``files`` names comes before the names that the published sets and other layouts have; where nothing
    is found it is the published name. Of a file in parts it is the first. The embedded set is generated
    here where it is missing: it is the same for every run seed, so that runs with different seeds are
    compared on the same items.
    """
    root, reader = resolve_path(config.data_root), config.form
    reader.ensure(root)
    files = {}
    for split in SPLITS:
        names = (f"{split}.jsonl",) if config.reader else reader.files[split]
        if split in config.files:
            files[split] = Path(os.path.normpath(root / config.files[split]))  # "../gsm8k/train.jsonl"
        elif found := names and find_file(root, split, names):
            files[split] = found
        elif split != "val":
            files[split] = root / names[0]
    return files


def raw_inputs(config: DatasetConfig) -> dict[str, Path]:
    """What a stage reads that reads raw data: the raw files by split ("train", and "train_2" … where it is in
    parts), and the reader where there is one.

    Raises UserError where the folder has other files than a split's, saying which.
    """
    files, root = raw_files(config), resolve_path(config.data_root)
    _refuse_embedded(config, files["train"])
    for split, path in files.items():
        if not path.exists() and root.is_dir() and any(root.iterdir()):
            name = path.relative_to(root) if path.is_relative_to(root) else path
            raise UserError(
                f"{shown(root)} holds no {split} split of {config.label}, such as {name}: found "
                f"{files_below(root)}; name the file: --files.{split} FILE"
                + TEST_ALONE
                * (split == "train" and files["test"].exists())
            )
    parts = {
        f"{split}_{number}": part
        for split, path in files.items()
        for number, part in enumerate(_parts(config, path)[1:], start=2)
    }
    return files | parts | ({"reader": resolve_path(config.reader)} if config.reader else {})


def reader_fits(config: StageConfig, run_dir: Path) -> None:
    """Raise UserError where the user's own reader cannot be called."""
    if config.dataset.reader:
        reader_function(resolve_path(config.dataset.reader))


def _refuse_embedded(config: DatasetConfig, train: Path) -> None:
    """Raise UserError where the embedded set lies in another's place, as earlier versions could write it."""
    embedded, row = all_readers()["sample"], first_row(train) if train.is_file() else None
    if row is not None and config.dataset != embedded.name and not config.name and embedded.recognises(row):
        raise UserError(
            f"{shown(train)} is the embedded synthetic data set, not {config.dataset}: delete it, then run "
            f"./download.sh {config.dataset}"
        )


def _parts(config: DatasetConfig, path: Path) -> list[Path]:
    return [path] if config.reader else config.form.parts(path)


def read_split(config: DatasetConfig, split: str, path: Path) -> RawSplit:
    """Read one split's raw file. Problems and sources name the file without its folders."""
    reader, required = config.form, config.form.required_keys(config)
    if config.reader:
        return RawSplit(*read_own(path, split, resolve_path(config.reader), reader, required))
    return RawSplit(*reader.read(path, split, required))


def read_splits(
    config: DatasetConfig,
    files: dict[str, Path],
    gold_fault: Callable[[RawRow], str],
    progress: Callable[..., Iterable] = no_bar,
) -> dict[str, RawSplit]:
    """Read all splits; a row whose gold cannot be graded against becomes an error.

    ``files`` may name more than splits (a reader), which is left out. ``gold_fault`` returns what is wrong
    with a row's gold, "" where nothing is (`utils.grading.task.Task.gold_fault`). ``progress``: as
    `StageContext.progress`.
    """
    names = progress([split for split in SPLITS if split in files], description="reading")
    splits = {split: read_split(config, split, files[split]) for split in names}
    for raw in splits.values():
        for row in raw.rows:
            if reason := gold_fault(row):
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
    return config.form.record(row, replace(config, max_input_tokens=None))[0]
