"""The one place that says which command makes a stage of a run, as error messages print it.

A stage that has begun is redone by the words that it was begun with, which its folder keeps. One that never
has takes the options that all stages of a run share from the command that misses it, and from other stages.
"""

import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.frame import manifest as manifests
from utils.frame.command_line import Arguments, parse
from utils.frame.credentials import redact
from utils.frame.files import REPO_ROOT, UserError, read_json
from utils.frame.pipeline import NESTED, PIPELINE, options_of, row_of
from utils.frame.synonyms import FRAME_SYNONYMS, RESUMING
from utils.frame.typed_settings import Text

_PLACES = ("run_id", "outputs_root", "output_dir")
_ONCE = ("overwrite", *RESUMING)  # of one execution, whether a value follows or not


def command_for(
    out: Path,
    asked: Arguments | None = None,
    redo: bool = False,
    given: Mapping[str, str] | None = None,
) -> str:
    """The command that makes a stage's folder, such as ``outputs/run_001/10_evaluation/ppo``.

    Args:
        out: the folder, whether it is there or not.
        asked: the command line of another stage of the run, which misses it.
        redo: whether it is to be redone although it is finished.
        given: options, without dashes, that it is to have in place of those that it was begun with.
    """
    nested = out.parent.name in NESTED
    run_dir = out.parent.parent if nested else out.parent
    folder = out.parent.name if nested else out.name
    row = row_of(folder)
    script = row.script if row else f"{folder[:2]}_….py"
    begun = _begun(out)
    if begun is None:
        words = [*(options_of(folder) if row else ()), *(("--policy", out.name) if nested else ())]
        words += _shared(run_dir, script, words, asked)
    else:
        words = _without(begun[0], _PLACES, _ONCE)
    for option, value in (given or {}).items():
        words = [*_without(words, [option]), f"--{option}", value]
    words = ["--run_id", run_dir.name, *words]
    here = Path(begun[1]) if begun else Path.cwd()
    if run_dir.parent != REPO_ROOT / "outputs":
        words += ["--outputs_root", _within(here, run_dir.parent)]
    words += ["--overwrite"] * redo
    there = f"cd {shlex.quote(str(here))} && " if here != Path.cwd() else ""
    return there + shlex.join(["python", _within(here, REPO_ROOT / script), *words])


def noted_command(script: str, argv: list[str]) -> dict[str, str]:
    """What a stage notes down of how it was begun: its command, and the working directory that its paths are
    relative to. Access tokens are blotted out."""
    return {"command": redact(shlex.join([script, *argv])), "directory": redact(str(Path.cwd()))}


def _begun(out: Path) -> tuple[list[str], str] | None:
    """The words that a stage was last begun with, and where; None where nothing says so."""
    for name in (manifests.IN_PROGRESS, manifests.RUNTIME):
        try:
            noted = read_json(out / name)
            return shlex.split(noted["command"])[1:], str(noted.get("directory", Path.cwd()))
        except (UserError, KeyError, TypeError, ValueError, AttributeError):
            continue
    return None


def _without(words: Sequence[str], valued: Collection[str], switches: Collection[str] = ()) -> list[str]:
    """A command line without these options, and without their values: ``valued`` have one, which may be
    left out after ``switches``.
    """
    kept, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        name, equals, _ = word.removeprefix("--").partition("=")
        name = FRAME_SYNONYMS.get(name.replace("-", "_"), name.replace("-", "_"))
        if not word.startswith("--") or name not in (*valued, *switches):
            kept.append(word)
        elif not equals and rest and (name in valued or not rest[0].startswith("--")):
            rest.pop(0)
    return kept


def _shared(run_dir: Path, script: str, chosen: Sequence[str], asked: Arguments | None) -> list[str]:
    """The options that a stage which has never begun has in common with the others of its run."""
    found: dict[str, Any] = {}
    for row in PIPELINE:
        begun = _begun(run_dir / row.folder)
        if begun is not None and begun[1] == str(Path.cwd()):
            try:
                found |= parse(*_chosen(row.script, begun[0])).shared["frame"]
            except UserError:
                continue
    if asked is not None:
        tiers = _chosen(script, chosen)[0].tiers
        for owner, values in asked.shared.items():
            found |= values if owner == "frame" or owner in tiers else {}
    return words_of(found)


def words_of(options: Mapping[str, Any]) -> list[str]:
    """Parsed options as the words that say them."""
    words = []
    for option, value in options.items():
        values = value if isinstance(value, list) else [value]
        words += [f"--{option}", *(each.value if isinstance(each, Text) else str(each) for each in values)]
    return words


def _chosen(script: str, words: Sequence[str]) -> tuple[Any, list[str]]:
    """The stage that a script's command line asks for, and the rest of the command line."""
    from utils.frame.stage_plan import load_script  # which prints the commands that are made here

    return load_script(script).STAGE.chosen(words)


def _within(folder: Path, path: Path) -> str:
    """A path as it is typed in a folder."""
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)
