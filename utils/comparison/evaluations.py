"""Which evaluations are compared: those of run ids, run folders and globs, or single metrics.json files."""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from utils.evaluation.policy_names import evaluation_files, find_evaluations
from utils.frame.files import UserError, resolve_path, shown
from utils.frame.manifest import read_manifest
from utils.frame.pipeline import policy_order

STAGE = "10_evaluation"
# What stage 10 says of every item; older evaluations, and others' folders, may lack it.
SAMPLES = ("samples/predictions.jsonl", "samples/tokens.jsonl")
AUDITED = ("04_candidates", "02_rewards_audit")
_WILD = re.compile(r"[*?\[]")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


def chosen_evaluations(run_dir: Path, options: Any, failures: Collection[str] = ()) -> dict[str, Path]:
    """The evaluations that ``runs``, ``policies`` and ``metrics`` of stage 11's options name: name -> folder.

    Names are the policies' where they are of one run, "<run>/<policy>" where of several, and longer where
    these are not unique. ``metrics`` alone is all that is compared; with ``runs`` or ``policies``, both are.
    None where ``results`` alone, of others, are compared.

    Raises UserError where anything that was asked for is not there, or is named twice.
    """
    runs = expand_runs(run_dir, options.runs)
    folders: list[Path] = []
    if runs or options.policies or not (options.metrics or options.results):
        for run in runs or [run_dir.name]:
            of_run = [run] if runs else []
            folders += find_evaluations(run_dir, of_run, options.policies, failures).values()
    several = len({folder.parents[1] for folder in folders}) > 1
    folders += [_folder_of(file) for file in _expand(options.metrics)]
    twice = [folder for folder, count in Counter(map(Path.resolve, folders)).items() if count > 1]
    if twice:
        raise UserError(f"{shown(twice[0])} is named twice in --runs and --metrics: give it once")
    names = _unique_names(folders, 2 if several else 1)
    return dict(sorted(names.items(), key=lambda item: _order(item[0])))


def expand_runs(run_dir: Path, runs: Sequence[str]) -> list[str]:
    """Run ids and folders, with every glob replaced by the runs it matches that have evaluated something.

    A glob is taken below the folder that holds ``run_dir`` first, then as a path of its own.

    Raises UserError for a glob without such a run.
    """
    found: list[str] = []
    for run in runs:
        if not _WILD.search(run):
            found.append(run)
            continue
        matches = sorted(run_dir.parent.glob(run)) if not Path(run).expanduser().is_absolute() else []
        matches = [path for path in matches if _has_evaluations(path)]
        matches = matches or [path for path in _matches(run) if _has_evaluations(path)]
        if not matches:
            raise UserError(
                f"--runs {run!r} matches no run with a finished evaluation in {shown(run_dir.parent)}; "
                "quote the pattern, and run 10_evaluate.py first"
            )
        known = {run_dir.parent / name for name in found} | {Path(name) for name in found}
        found += [
            path.name if path.parent == run_dir.parent else str(path) for path in matches if path not in known
        ]
    return found


def files_of_others(results: Sequence[str]) -> dict[str, Path]:
    """Name -> file, of ``FILE`` (named after it) or ``NAME=FILE`` each.

    Raises UserError for a file that is not there, and a name that is used twice or holds what no file name
    should.
    """
    found: dict[str, Path] = {}
    for entry in results:
        name, given, file = entry.rpartition("=")
        path = resolve_path(file)
        if not path.is_file():
            raise UserError(f"--results {entry}: there is no file {shown(path)}")
        name = name if given else path.stem
        if not _NAME.fullmatch(name):
            raise UserError(
                f'--results {entry}: "{name}" is no name for a policy (letters, digits, ".", "_" and "-"); '
                "give one as NAME=FILE"
            )
        if name in found:
            raise UserError(f"--results names '{name}' twice: give each file a name, as NAME=FILE")
        found[name] = path
    return found


def sample_files(folder: Path) -> list[Path]:
    """What an evaluation's folder holds of SAMPLES: answers, and values for their tokens."""
    return [folder / name for name in SAMPLES if (folder / name).is_file()]


def input_files(evaluations: dict[str, Path]) -> dict[str, Path]:
    """Name of an input ("<policy>:metrics.json") -> file, for all files that the evaluations hold."""
    return {
        f"{name}:{path.name}": path
        for name, folder in evaluations.items()
        for path in (*evaluation_files(folder), *sample_files(folder))
    }


def evaluated_in(folder: Path) -> tuple[Path, str] | None:
    """The run of an evaluation's folder, and its stage folder there ("10_evaluation/<policy>").

    The folder may be one of several checkpoints below it. None for a folder that no run's stage 10 wrote.
    """
    for stage in (folder, folder.parent):
        if stage.parent.name == STAGE and (stage / "manifest.json").is_file():
            return stage.parents[1], f"{STAGE}/{stage.name}"
    return None


def audit_files(evaluations: Iterable[Path]) -> dict[str, Path]:
    """Run -> the audit of its rewards (by 04's candidates, else by 02's), for the runs that have one."""
    found = {}
    runs = {place[0] for folder in evaluations if (place := evaluated_in(folder))}
    for run in sorted(runs):
        for stage in AUDITED:
            name = f"{stage}/reward_audit.json"
            if name in (read_manifest(run / stage) or {}).get("outputs", {}):
                found[run.name if run.name not in found else str(run)] = run / name
                break
    return found


def _has_evaluations(path: Path) -> bool:
    return any(path.glob(f"{STAGE}/*/manifest.json"))


def _is_evaluation(path: Path) -> bool:
    return (path / "metrics.json" if path.is_dir() else path).is_file()


def _matches(pattern: str) -> list[Path]:
    """What a glob matches, taken as ``resolve_path`` takes a path: from the repository, else from here."""
    places = (resolve_path(pattern), Path.cwd() / Path(pattern).expanduser())
    found = next((found for place in places if (found := glob.glob(str(place)))), [])
    return sorted(map(Path, found))


def _expand(entries: Sequence[str]) -> list[Path]:
    """The paths of ``metrics``; a run stands for all it evaluated, a glob for all metrics.json, or folders
    with one, that it matches.
    """
    found: list[Path] = []
    for entry in entries:
        path = resolve_path(entry)
        if path.is_dir() and _has_evaluations(path):
            found += [each for each in sorted(path.glob(f"{STAGE}/*")) if _is_evaluation(each)]
            continue
        if path.exists() or not _WILD.search(entry):
            found.append(path)
            continue
        matches = [match for match in _matches(entry) if _is_evaluation(match)]
        if not matches:
            raise UserError(f"--metrics {entry!r} matches nothing; quote the pattern, and look at its folder")
        found += matches
    return found


def _folder_of(file: Path) -> Path:
    """The folder of an evaluation that is given as its metrics.json, or as the folder itself."""
    file = file / "metrics.json" if file.is_dir() else file
    if file.name != "metrics.json":
        raise UserError(f"--metrics {shown(file)}: give a metrics.json as 10_evaluate.py writes it")
    for path in evaluation_files(file.parent):
        if not path.is_file():
            raise UserError(f"--metrics {shown(file)}: there is no {path.name}; run 10_evaluate.py for it")
    return file.parent


def _unique_names(folders: Sequence[Path], depth: int) -> dict[str, Path]:
    """Names of folders: their last ``depth`` parts, and as many more as tell them apart."""
    parts = {folder: [part for part in folder.parts if part != STAGE] for folder in folders}
    depths = dict.fromkeys(folders, depth)
    while True:
        names = {folder: "/".join(parts[folder][-depths[folder] :]) for folder in folders}
        count = Counter(names.values())
        clash = [
            folder for folder in folders if count[names[folder]] > 1 and depths[folder] < len(parts[folder])
        ]
        if not clash:
            return {name: folder for folder, name in names.items()}
        for folder in clash:
            depths[folder] += 1


def _order(name: str) -> tuple[int, list[tuple[str, int]]]:
    """The order of the pipeline; numbers in names by their value, as of step_80 and step_160."""
    pieces = re.findall(r"(\D*)(\d*)", name)
    return policy_order(name)[0], [(text, int(digits or -1)) for text, digits in pieces]
