"""The frame every numbered script runs in.

A script declares a `Stage` and calls `main(STAGE, run)`. The frame parses the command line, loads the tiers,
checks the inputs against the manifests of the stages that wrote them, decides between skip, resume and fresh
start, runs, and writes `manifest.json` last. See docs/stage_contract.md.
"""

import contextlib
import datetime
import errno
import fcntl
import os
import platform
import resource
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from utils import manifest as manifests
from utils.cli import help_text, output_root, parse, resolve, wants_help
from utils.common import (
    TEMPORARY_PREFIX,
    UserError,
    read_json,
    redact,
    remove,
    shown,
    write_json,
    write_text,
)
from utils.config import StageConfig

IN_PROGRESS = ".in_progress.json"
LOCK = ".lock"
LOG = "stage.log"

# Which script writes which folder of a run; a variant's folder is the stage's name plus "_<variant>".
SCRIPTS = {
    "00_data_validation": "00_check_data.py",
    "01_preprocessing": "01_prepare.py",
    "02_rewards": "02_build_rewards.py",
    "03_sft": "03_sft_train.py",
    "03_distill": "03_distill_train.py",
    "04_candidates": "04_generate_candidates.py",
    "05_ppo": "05_ppo_train.py",
    "06_grpo": "06_grpo_train.py",
    "07_rloo": "07_rloo_train.py",
    "08_preferences": "08_build_preferences.py",
    "09_dpo": "09_dpo_train.py",
    "10_evaluation": "10_evaluate.py",
    "11_comparison": "11_compare_runs.py",
}
# Stages that hold one sub-folder per variant in place of one suffixed folder.
NESTED = frozenset({"10_evaluation"})


@dataclass(frozen=True)
class NoOptions:
    """A stage without options of its own."""


@dataclass(frozen=True)
class Stage:
    """What a numbered script is: its place in the pipeline, its configuration and what it reads."""

    number: str
    folder: str
    summary: str
    reads: str
    writes: str
    tiers: dict[str, tuple[type, str]]
    options: type = NoOptions
    inputs: Callable[[StageConfig, Path], dict[str, Path]] = lambda config, run_dir: {}
    quick: dict[str, Any] = field(default_factory=dict)
    variant: Callable[[StageConfig], str] | str = ""

    def variant_of(self, config: StageConfig) -> str:
        """Return the variant's name, "" for the plain stage."""
        return self.variant(config) if callable(self.variant) else self.variant

    def out_dir(self, config: StageConfig, run_dir: Path) -> Path:
        """Return the stage's folder in a run."""
        variant = self.variant_of(config)
        if self.folder in NESTED:
            return run_dir / self.folder / variant
        return run_dir / (f"{self.folder}_{variant}" if variant else self.folder)


@dataclass
class StageContext:
    """What `run(ctx)` gets."""

    config: StageConfig
    run_id: str
    run_dir: Path
    out: Path
    resuming: bool
    inputs: dict[str, Path]
    metrics: dict[str, Any] = field(default_factory=dict)
    runtime: dict[str, Any] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        """The seed of everything random in the stage."""
        return self.config.seed

    def log(self, message: str) -> None:
        """Say one line: to standard output, and with the time to stage.log."""
        line = redact(" ".join(str(message).splitlines()))
        if "tqdm" in sys.modules:
            from tqdm import tqdm

            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()
        else:
            print(line, flush=True)
        with open(self.out / LOG, "a", encoding="utf-8") as file:
            file.write(f"{_now()} {line}\n")

    def progress(self, iterable: Iterable, total: int | None = None, description: str = "") -> Iterable:
        """Wrap an iterable in a progress bar on standard error (none where that is not a terminal)."""
        from tqdm import tqdm

        return tqdm(iterable, total=total, desc=description, file=sys.stderr, disable=None, leave=False)


class Prepared(NamedTuple):
    """A stage looked at but not run; `status` is missing, up_to_date, interrupted or "stale: <why>"."""

    config: StageConfig
    run_dir: Path
    out: Path
    status: str


@dataclass
class _Plan:
    """Everything the frame knows before it runs a stage."""

    stage: Stage
    arguments: Any
    config: StageConfig
    run_dir: Path
    out: Path
    inputs: dict[str, Path]
    identity: dict[str, Any] | None = None

    @property
    def variant(self) -> str:
        return self.stage.variant_of(self.config)


# ------------------------------------------------------------------------------------------ planning


def prepare(stage: Stage, argv: list[str] | None = None) -> Prepared:
    """Resolve a stage's command line and say what running it would do, without running it."""
    plan = _plan(stage, sys.argv[1:] if argv is None else argv)
    try:
        plan.identity = _identity(plan)
    except UserError as error:
        finished = (plan.out / manifests.MANIFEST).exists()
        return Prepared(plan.config, plan.run_dir, plan.out, f"stale: {error}" if finished else "missing")
    return Prepared(plan.config, plan.run_dir, plan.out, _status(plan))


def _plan(stage: Stage, argv: list[str]) -> _Plan:
    arguments = parse(stage, argv)
    config = resolve(stage, arguments)
    run_dir = output_root(stage, arguments.frame, config) / arguments.frame.run_id
    inputs = {name: Path(path) for name, path in stage.inputs(config, run_dir).items()}
    return _Plan(stage, arguments, config, run_dir, stage.out_dir(config, run_dir), inputs)


def _identity(plan: _Plan) -> dict[str, Any]:
    """Check every input, then return what makes this execution the same work as another."""
    for path in plan.inputs.values():
        _verify_input(path, plan)
    return manifests.identity(
        plan.stage.folder,
        plan.variant,
        plan.config.seed,
        plan.config.to_dict(plan.run_dir),
        manifests.describe_inputs(plan.inputs, plan.run_dir),
    )


def _verify_input(path: Path, plan: _Plan) -> None:
    """Raise UserError where an input is missing or is no longer what the stage that wrote it recorded."""
    if not path.is_relative_to(plan.run_dir):
        if not path.exists():
            raise UserError(f"missing input {shown(path)}{_how_to_get(path)}")
        return
    relative = path.relative_to(plan.run_dir)
    depth = 2 if relative.parts[0] in NESTED and len(relative.parts) > 2 else 1
    folder = Path(*relative.parts[:depth])
    command = f"`{_command(folder, plan)}`"
    recorded = manifests.read_manifest(plan.run_dir / folder)
    if recorded is None:
        unfinished = (plan.run_dir / folder / IN_PROGRESS).exists()
        state = f"{folder} was interrupted" if unfinished else f"missing input {shown(path)}"
        raise UserError(f"{state}: run {command} first")
    name = relative.as_posix()
    if not any(output == name or output.startswith(name + "/") for output in recorded["outputs"]):
        raise UserError(
            f"missing input {shown(path)}: {folder}/manifest.json does not list it; run {command}"
        )
    damage = manifests.damaged_output(recorded, plan.run_dir, below=name)
    if damage:
        raise UserError(
            f"input {damage} since {folder}/manifest.json was written: "
            f"redo it with {command[:-1]} --overwrite`"
        )


def _how_to_get(path: Path) -> str:
    name = manifests.relative_name(path)
    if name.startswith("datasets/"):
        return f": run `./download.sh {name.split('/')[1]}` first"
    return ": no such file or folder"


def _command(folder: Path, plan: _Plan) -> str:
    """Return the command that makes a stage folder in this run."""
    base = folder.parts[0]
    known = [name for name in SCRIPTS if base == name or base.startswith(name + "_")]
    script = SCRIPTS[max(known, key=len)] if known else f"the stage that writes {base}"
    words = ["python", script, "--run_id", plan.arguments.frame.run_id]
    if plan.arguments.frame.output_dir is not None:
        words += ["--output_dir", plan.arguments.frame.output_dir]
    return shlex.join(words)


def _status(plan: _Plan) -> str:
    """Compare the stage folder with the plan (whose identity is known)."""
    try:
        recorded = manifests.read_manifest(plan.out)
    except UserError as error:
        return f"stale: {error}"
    if recorded is None:
        started = _started(plan.out)
        return "interrupted" if started.get("identity") == plan.identity else "missing"
    changed = manifests.identity_differences(recorded, plan.identity)
    if changed:
        return f"stale: {_first(changed)}"
    damage = manifests.damaged_output(recorded, plan.run_dir)
    return f"stale: output {damage}" if damage else "up_to_date"


def _started(out: Path) -> dict[str, Any]:
    """Return what an unfinished execution noted down when it began; {} if there is none."""
    with contextlib.suppress(UserError):
        noted = read_json(out / IN_PROGRESS)
        return noted if isinstance(noted, dict) else {}
    return {}


def _first(changed: list[str], count: int = 3) -> str:
    more = f" (and {len(changed) - count} more)" if len(changed) > count else ""
    return "; ".join(changed[:count]) + more


# ------------------------------------------------------------------------------------------- running


def main(stage: Stage, run: Callable[[StageContext], int | None], argv: list[str] | None = None) -> None:
    """Run a stage and exit: 0 done or up to date, 1 failed, 2 user's mistake, 130 interrupted.

    `run` may return a non-zero exit code to say that its work is done and its verdict is failure: its files
    stay for reading, no manifest is written, and the next run starts afresh.
    """
    sys.exit(execute(stage, run, sys.argv[1:] if argv is None else argv))


def execute(stage: Stage, run: Callable[[StageContext], int | None], argv: list[str]) -> int:
    """Run a stage and return its exit code; see `main`."""
    with _terminate_as_interrupt():
        try:
            if wants_help(argv):
                print(help_text(stage, Path(sys.argv[0]).name), end="")
                return 0
            return _execute(stage, run, argv)
        except UserError as error:
            return _fail(str(error), 2)
        except KeyboardInterrupt as interrupt:
            code = 143 if interrupt.args == ("SIGTERM",) else 130
            return _fail("interrupted; run the same command again to resume", code)
        except BrokenPipeError:
            # The reader of our output (`| head`) has gone: nothing more can be said, and that is no fault.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM):
                raise
            where = f" ({shown(error.filename)})" if error.filename else ""
            return _fail(
                f"{error.strerror}{where}; free space or choose another --output_dir, then run again", 2
            )


def _fail(message: str, code: int) -> int:
    print(f"error: {redact(' '.join(message.splitlines()))}", file=sys.stderr, flush=True)
    return code


@contextlib.contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """Let a polite kill (a batch system's time limit) end a stage as Ctrl-C does."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt("SIGTERM")

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread, where signals cannot be set
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _execute(stage: Stage, run: Callable[[StageContext], int | None], argv: list[str]) -> int:
    plan = _plan(stage, argv)
    plan.identity = _identity(plan)
    status = _status(plan)
    overwrite = plan.arguments.frame.overwrite
    if status == "up_to_date" and not overwrite:
        print(f"{plan.out.relative_to(plan.run_dir)}: up to date", flush=True)
        return 0
    if status.startswith("stale") and not overwrite:
        raise UserError(
            f"{shown(plan.out)} was made with other settings or inputs ({status[7:]}): "
            "--overwrite to redo it, or choose another --run_id"
        )
    with _locked(plan.out):
        return _run(plan, run, argv, resuming=status == "interrupted" and not overwrite)


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Keep a second process out of a stage folder; the lock ends with the process, however it ends."""
    out.mkdir(parents=True, exist_ok=True)
    with open(out / LOCK, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{shown(out)} is being written by another process; wait for it to end") from None
        try:
            yield
        finally:
            (out / LOCK).unlink(missing_ok=True)


def _run(plan: _Plan, run: Callable[[StageContext], int | None], argv: list[str], resuming: bool) -> int:
    out = plan.out
    sessions = _started(out).get("sessions", []) if resuming else []
    _clear(out, keep_files=resuming)
    start = time.time()
    note = {"identity": plan.identity, "sessions": [*sessions, _now()]}
    write_json(out / IN_PROGRESS, note)
    ctx = StageContext(
        config=plan.config,
        run_id=plan.run_dir.name,
        run_dir=plan.run_dir,
        out=out,
        resuming=resuming,
        inputs=plan.inputs,
    )
    name = out.relative_to(plan.run_dir)
    ctx.log(f"{name}: {'resuming' if resuming else 'start'} ({plan.run_dir.name}, seed {ctx.seed})")
    try:
        code = run(ctx) or 0
    except UserError as error:
        ctx_log_only(ctx, f"error: {error}")
        raise
    except Exception:
        ctx_log_only(ctx, traceback.format_exc())
        raise
    if code:
        remove(out / IN_PROGRESS)
        return code
    seconds = time.time() - start
    _write_runtime(plan, ctx, argv, note["sessions"], seconds)
    _write_manifest(plan, ctx)
    ctx.log(f"{name}: done in {seconds:.1f} s -> {shown(out)}")
    remove(out / IN_PROGRESS)
    return 0


def ctx_log_only(ctx: StageContext, text: str) -> None:
    """Append to stage.log what standard error shows anyway."""
    with contextlib.suppress(OSError), open(ctx.out / LOG, "a", encoding="utf-8") as file:
        file.write(f"{_now()} {redact(text)}\n")


def _clear(out: Path, keep_files: bool) -> None:
    """Empty a stage folder; when resuming, only of the temporary files a killed process left."""
    if keep_files:
        for leftover in list(out.rglob(f"{TEMPORARY_PREFIX}*")):
            remove(leftover)
        return
    # The manifest goes first: a folder that is being cleared must not look finished.
    remove(out / manifests.MANIFEST)
    for entry in out.iterdir():
        if entry.name != LOCK:
            remove(entry)


def _write_manifest(plan: _Plan, ctx: StageContext) -> None:
    whole = plan.identity | {
        "run_id": ctx.run_id,
        "metrics": ctx.metrics,
        "outputs": manifests.describe_outputs(plan.out, plan.run_dir),
        "environment": manifests.environment(),
    }
    manifests.write_volatile_free(plan.out / manifests.MANIFEST, whole)


def _write_runtime(
    plan: _Plan, ctx: StageContext, argv: list[str], sessions: list[str], seconds: float
) -> None:
    facts = {
        "started": sessions[0],
        "sessions": sessions,
        "finished": _now(),
        "seconds": round(seconds, 3),
        "host": platform.node(),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "command": shlex.join([Path(sys.argv[0]).name, *argv]),
    }
    write_text(plan.out / manifests.RUNTIME, redact(manifests.dump_json(facts | ctx.runtime)))


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
