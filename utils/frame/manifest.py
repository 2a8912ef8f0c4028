"""Manifests: what a stage read, was told and wrote, as content hashes that two runs can be compared by.

`manifest.json` holds nothing volatile (no time, host or absolute path), so identical work gives identical
bytes; `runtime.json` beside it holds the rest. `run_manifest.json` at the run's root points to all of them.
"""

import contextlib
import csv
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from utils.frame.config import relative_name
from utils.frame.credentials import redact
from utils.frame.effects import by_effect
from utils.frame.files import (
    REPO_ROOT,
    UserError,
    dump_json,
    json_of,
    remove,
    sha256_of,
    sha256_of_tree,
    shown,
    visible_files,
    write_text,
)
from utils.frame.processes import num_processes

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
RUNTIME = "runtime.json"
RUN_MANIFEST = "run_manifest.json"
IN_PROGRESS = ".in_progress.json"  # what a stage that has not finished was begun for
RESUME = "resume"  # folder of what a stage resumes from, in its own or in one below that
CHECKSUM = "checksum"
# What a manifest may hold.
_KINDS = {
    CHECKSUM: str,
    "schema_version": int,
    "stage": str,
    "variant": str,
    "run_id": str,
    "seed": int,
    "config": dict,
    "inputs": dict,
    "outputs": dict,
    "criteria": dict,
    "metrics": dict,
    "environment": dict,
}
_SEALED = re.compile(rb'\{\n  "checksum": "([0-9a-f]{64})",\n')
_DEEPEST = 50  # levels within a manifest; a configuration has four
# What 11 says of seconds, which differ between two executions of the same work.
TIMING = ("timing.csv", "timing.md", "timing.png")
# Folders in logs/ where trackers write, in files with times and names of their own making.
TRACKERS = (("logs", "tensorboard"), ("logs", "wandb"))

PACKAGES = (
    "accelerate",
    "bitsandbytes",
    "datasets",
    "math-verify",
    "numpy",
    "peft",
    "safetensors",
    "scipy",
    "sympy",
    "tokenizers",
    "torch",
    "transformers",
    "trl",
    "vllm",
)


# -------------------------------------------------------------------------------- describing files


def is_output(relative: Path) -> bool:
    """Tell whether a file of a stage folder counts as output.

    Left out: manifest.json, runtime.json, *.log, logs/timings.jsonl, the stage's own timing.{csv,md,png}, all
    below resume/ and below the trackers' folders in logs/, and hidden names.
    """
    parts = relative.parts
    return not (
        relative.name in (MANIFEST, RUNTIME)
        or relative.as_posix() in TIMING
        or relative.suffix == ".log"
        or parts[-2:] == ("logs", "timings.jsonl")
        or RESUME in parts[:-1]
        or parts[:2] in TRACKERS
        or any(part.startswith(".") for part in parts)
    )


def output_files(folder: Path) -> list[Path]:
    """Return all output files below a stage folder (or a folder in it), sorted."""
    return [file for file in visible_files(folder) if is_output(file.relative_to(folder))]


def describe_file(path: Path) -> dict[str, Any]:
    """Return {sha256, bytes} of a file, and `rows` for .jsonl (non-blank lines) and .csv (without header)."""
    facts = {"sha256": sha256_of(path), "bytes": path.stat().st_size}
    if path.suffix == ".jsonl":
        with open(path, "rb") as file:
            facts["rows"] = sum(1 for line in file if line.strip())
    elif path.suffix == ".csv":
        with open(path, encoding="utf-8", errors="replace", newline="") as file:
            facts["rows"] = max(0, sum(1 for _ in csv.reader(file)) - 1)
    return facts


def describe(path: Path) -> dict[str, Any]:
    """Return the facts of an input: a file's, or for a directory {sha256, bytes, files}."""
    if not path.is_dir():
        return describe_file(path)
    files = output_files(path)
    return {
        "sha256": sha256_of_tree({file.relative_to(path).as_posix(): sha256_of(file) for file in files}),
        "bytes": sum(file.stat().st_size for file in files),
        "files": len(files),
    }


def describe_inputs(inputs: dict[str, Path], run_dir: Path) -> dict[str, dict[str, Any]]:
    """Return relative path -> facts for a stage's inputs."""
    described: dict[str, dict[str, Any]] = {}
    for name, path in inputs.items():
        key = relative_name(path, run_dir)
        if key in described and key.startswith("external/"):
            # Two outside files of one basename: the input's name tells them apart.
            key = f"external/{name}/{path.name}"
        described[key] = describe(path)
    return described


def describe_outputs(out: Path, run_dir: Path) -> dict[str, dict[str, Any]]:
    """Return relative path -> facts for everything a stage folder holds."""
    return {relative_name(file, run_dir): describe_file(file) for file in output_files(out)}


# ------------------------------------------------------------------------------------ environment


@lru_cache(maxsize=1)
def code_sha256() -> str:
    """The hash of the numbered scripts and of utils/, as they were when this was first asked."""
    files = [*REPO_ROOT.glob("[0-9][0-9]_*.py"), *(REPO_ROOT / "utils").rglob("*.py")]
    return sha256_of_tree({file.relative_to(REPO_ROOT).as_posix(): sha256_of(file) for file in files})


def environment() -> dict[str, Any]:
    """Return python, package versions, device kind, number of processes, the code's hash, git commit and
    dirty flag (null outside a checkout).
    """
    packages: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = None
    commit = _git("rev-parse", "HEAD")
    # Run outputs may lie inside the checkout, so of untracked files only code and configuration count.
    changed = _git("status", "--porcelain", "--untracked-files=no") or _git(
        "ls-files", "--others", "--exclude-standard", "--", "*.py", "configs"
    )
    return {
        "python": platform.python_version(),
        "packages": packages,
        "device": device_kind(packages["torch"]),
        "num_processes": num_processes(),
        "code_sha256": code_sha256(),
        "git_commit": commit,
        "git_dirty": bool(changed) if commit else None,
    }


def device_kind(torch_version: str | None) -> str:
    """Return "cuda" or "cpu" without importing torch."""
    if torch_version is None or torch_version.endswith("+cpu"):
        return "cpu"
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return "cpu"
    return "cuda" if Path("/dev/nvidiactl").exists() else "cpu"


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(REPO_ROOT), *arguments], capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


# ----------------------------------------------------------------------------- writing and reading


def write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest atomically, access tokens of the environment blotted out; its first line holds the
    checksum of all others.
    """
    text = redact(dump_json({key: value for key, value in manifest.items() if key != CHECKSUM}))
    seal = f'{{\n  "{CHECKSUM}": "{hashlib.sha256(text.encode()).hexdigest()}",\n'
    write_text(path, seal + text.removeprefix("{\n"))


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return a stage folder's manifest, None where it has none. Raises UserError when it is damaged."""
    path = folder / MANIFEST
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    manifest = json_of(data, path)
    if fault := _fault(manifest, data):
        raise UserError(f"{shown(path)}: {fault}; redo the stage with --overwrite")
    return manifest


def _fault(manifest: Any, text: bytes) -> str:
    """What is wrong with a manifest, as a clause; "" where it is as a stage writes it.

    One of before there were checksums has none, and no other key that is unknown.
    """
    if not isinstance(manifest, dict) or not isinstance(manifest.get("outputs"), dict):
        return "not a stage manifest"
    sealed = _SEALED.match(text)
    if sealed:
        holds = hashlib.sha256(b"{\n" + text[sealed.end() :]).hexdigest() == sealed[1].decode()
    else:
        holds = manifest.keys() <= _KINDS.keys() - {CHECKSUM}
    return _wrong_kind(manifest) if holds else "changed since the stage wrote it (its checksum does not hold)"


def _wrong_kind(manifest: dict[str, Any]) -> str:
    for key, value in manifest.items():
        if not isinstance(value, _KINDS.get(key, object)):
            return f'not a stage manifest ("{key}" holds {type(value).__name__})'
    for name, facts in [*manifest["outputs"].items(), *manifest.get("inputs", {}).items()]:
        if not isinstance(facts, dict) or not isinstance(facts.get("sha256"), str):
            return f'not a stage manifest ("{name[:60]}" has no sha256)'
    if _depth(manifest) > _DEEPEST:
        return "not a stage manifest (nested too deeply)"
    try:
        dump_json(manifest).encode()
    except ValueError:  # numbers that are none, and halves of characters
        return "not a stage manifest (it holds what no stage could write)"
    return ""


def _depth(value: Any, above: int = 0) -> int:
    """How many levels of mappings and lists a value has, counted no further than there may be."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if above > _DEEPEST:
        return above
    return max((_depth(each, above + 1) for each in inner), default=above)


def identity(stage_folder: str, variant: str, seed: int, config: dict, inputs: dict) -> dict[str, Any]:
    """Return what makes two executions of a stage the same work."""
    return {
        "schema_version": SCHEMA_VERSION,
        "stage": stage_folder,
        "variant": variant,
        "seed": seed,
        "config": config,
        "inputs": inputs,
    }


def differences(old: Any, new: Any, prefix: str = "") -> Iterator[str]:
    """Yield "key: old -> new" for every leaf in which two nested mappings differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from differences(old.get(key), new.get(key), f"{prefix}{' ' if prefix else ''}{key}")
    elif old != new:
        yield f"{prefix}: {_short(old)} -> {_short(new)}"


def identity_differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return how two identities differ, inputs first, then configuration, then the rest."""
    found = []
    for name in sorted(old.get("inputs", {}).keys() | new["inputs"].keys()):
        before, after = old.get("inputs", {}).get(name), new["inputs"].get(name)
        if before is None or after is None:
            found.append(f"input {name}: {'not read' if before is None else 'read'} before")
        elif before["sha256"] != after["sha256"]:
            found.append(f"input {name}: content changed")
    for part in ("config", "seed", "variant", "stage", "schema_version"):
        label = "" if part == "config" else part
        lines = [
            line.replace(" ", ".", line.split(":")[0].count(" "))
            for line in differences(old.get(part), new[part], label)
        ]
        found += sorted(lines, key=by_effect)
    return found


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:59] + "…"


def damaged_output(manifest: dict[str, Any], run_dir: Path, below: str = "") -> str | None:
    """Return "<name> is missing" or "… has changed" for the first such recorded output, else None."""
    for name, facts in sorted(manifest["outputs"].items()):
        if below and name != below and not name.startswith(below + "/"):
            continue
        path = run_dir / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != facts.get("bytes") or sha256_of(path) != facts["sha256"]:
            return f"{name} has changed"
    return None


def unlisted_file(manifest: dict[str, Any], run_dir: Path, folder: str) -> Path | None:
    """The first file in a folder of a stage's outputs that the manifest does not list; None where it lists
    all. A file that is added, such as a chat template, can change what a folder means as one that is changed.
    """
    stage = run_dir / Path(*Path(folder).parts[:1])
    for path in sorted((run_dir / folder).rglob("*")):
        counts = (path.is_file() or path.is_symlink()) and is_output(path.relative_to(stage))
        if counts and path.relative_to(run_dir).as_posix() not in manifest["outputs"]:
            return path
    return None


def update_run_manifest(run_dir: Path) -> dict[str, Any]:
    """Write `run_manifest.json`: stage folder -> path, hash, headline metrics and criteria of its manifest.

    The hash leaves `run_id` out, so that the same work under two run ids differs in `run_id` alone. What a
    kill after a stage's manifest was written has left of its beginning is removed.
    """
    with _alone_in(run_dir):
        return _update_run_manifest(run_dir)


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes that do the same waiting, where the file system knows locks of folders."""
    number = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(number, fcntl.LOCK_EX)
        yield
    finally:
        os.close(number)


def forget_beginning(folder: Path) -> None:
    """Remove what a stage can only use until its manifest is written: what it resumes from, then the note of
    what it was begun for, which says that there may be something to remove. Another process that finds the
    stage finished may be doing the same.
    """
    for resume in [folder / RESUME, *folder.glob(f"*/{RESUME}")]:
        shutil.rmtree(resume, ignore_errors=True)
    remove(folder / IN_PROGRESS)


def _update_run_manifest(run_dir: Path) -> dict[str, Any]:
    stages = {}
    for path in sorted([*run_dir.glob(f"*/{MANIFEST}"), *run_dir.glob(f"*/*/{MANIFEST}")]):
        if (manifest := read_manifest(path.parent)) is None:
            continue  # cleared a moment ago
        if (path.parent / IN_PROGRESS).exists():
            forget_beginning(path.parent)
        content = {key: value for key, value in manifest.items() if key not in ("run_id", CHECKSUM)}
        stages[path.parent.relative_to(run_dir).as_posix()] = {
            "manifest": path.relative_to(run_dir).as_posix(),
            "sha256_without_run_id": hashlib.sha256(dump_json(content).encode()).hexdigest(),
            "metrics": manifest.get("metrics", {}),
            "criteria": manifest.get("criteria", {}),
        }
    whole = {"schema_version": SCHEMA_VERSION, "run_id": run_dir.name, "stages": stages}
    path, text = run_dir / RUN_MANIFEST, redact(dump_json(whole))
    if not path.is_file() or path.read_bytes() != text.encode():
        write_text(path, text)
    return whole
