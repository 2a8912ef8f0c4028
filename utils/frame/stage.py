"""The frame every numbered script runs in.

A script declares a `Stage` and calls `main(STAGE, run)`. The frame parses the command line, loads the tiers,
checks the inputs against the manifests of the stages that wrote them, decides between skip, resume and fresh
start, runs, and writes `manifest.json` last. See docs/stage_contract.md. Where several processes run a stage
together, the main one does all this and tells the others; see docs/distributed.md.
"""

import contextlib
import datetime
import fcntl
import os
import platform
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.frame import manifest as manifests
from utils.frame.command_line import help_text, wants_help
from utils.frame.config import StageConfig
from utils.frame.credentials import load_environment, redact, redact_tracebacks
from utils.frame.criteria import Criteria, criteria_lines
from utils.frame.failures import forget_failures
from utils.frame.files import TEMPORARY_PREFIX, UserError, dump_json, remove, shown, write_json, write_text
from utils.frame.lifeline import end_with_driver
from utils.frame.processes import (
    from_main,
    is_main_process,
    join_processes,
    leave_processes,
    lost_another,
    num_processes,
)
from utils.frame.repair_command import noted_command
from utils.frame.replacing import REPLACED, set_aside, settle
from utils.frame.shortages import refusal
from utils.frame.stage_plan import Plan, Stage, check_inputs, make_plan, started, status_of

if TYPE_CHECKING:
    from tqdm import tqdm

IN_PROGRESS = manifests.IN_PROGRESS
LOCK = ".lock"
LOG = "stage.log"


@dataclass
class StageContext:
    """What `run(ctx)` gets: where to read and write, and where to leave its numbers.

    `inputs` holds the verified paths by name, `out` the existing stage folder; `resuming` tells that an
    interrupted execution of the same work left its files there. `metrics` goes into the manifest (headline
    numbers, nothing volatile), `criteria` too (`judged` of utils/frame/criteria.py, by name), `runtime` into
    runtime.json (speeds, times). Of several processes, the main
    one's count, and it alone says lines. `stage` is the stage's folder without a variant ("06_grpo").
    """

    config: StageConfig
    run_id: str
    run_dir: Path
    out: Path
    resuming: bool
    inputs: dict[str, Path]
    metrics: dict[str, Any] = field(default_factory=dict)
    runtime: dict[str, Any] = field(default_factory=dict)
    stage: str = ""
    criteria: Criteria = field(default_factory=dict)

    @property
    def seed(self) -> int:
        """The seed of everything random in the stage."""
        return self.config.seed

    def log(self, message: str) -> None:
        """Say one line: to standard output, and with the time to stage.log."""
        if not is_main_process():
            return
        line = redact(" ".join(str(message).splitlines()))
        if "tqdm" in sys.modules:
            from tqdm import tqdm

            # Keeps a progress bar that is on the screen in one piece.
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()
        else:
            print(line, flush=True)
        _append_to_log(self.out, line)

    def warn(self, message: str) -> None:
        """Say one line that is a warning."""
        self.log(f"WARNING: {message}")

    def progress(
        self, iterable: Iterable | None, total: int | None = None, description: str = "", initial: int = 0
    ) -> "tqdm":
        """Wrap an iterable in a progress bar on standard error (none where that is not a terminal).

        Without an iterable, a bar of ``total`` to `update` and to `close`; ``initial`` of it is done already.
        """
        from tqdm import tqdm

        return tqdm(
            iterable,
            total=total,
            desc=description,
            initial=initial,
            file=sys.stderr,
            disable=None if is_main_process() else True,
            leave=False,
            dynamic_ncols=True,
        )


def no_bar(items: Iterable, description: str = "") -> Iterable:
    """`StageContext.progress` for work that shows none."""
    return items


Run = Callable[[StageContext], int | None]


def main(stage: Stage, run: Run, argv: list[str] | None = None) -> None:
    """Run a stage and exit: 0 done or up to date, 1 failed, 2 user's mistake, 130 interrupted.

    `run` may return a non-zero exit code to say that its work is done and its verdict is failure: its files
    stay for reading, no manifest is written, and the next run starts afresh.
    """
    redact_tracebacks()
    sys.exit(execute(stage, run, sys.argv[1:] if argv is None else argv))


def execute(stage: Stage, run: Run, argv: list[str]) -> int:
    """Run a stage and return its exit code; see `main`. An error that is no user's mistake is raised."""
    with _terminate_as_interrupt():
        try:
            if wants_help(argv):
                print(help_text(stage.chosen(argv)[0], Path(sys.argv[0]).name, stage.choice), end="")
                return 0
            load_environment()
            end_with_driver()
            return _execute(stage, run, argv)
        except UserError as error:
            return _fail(str(error), 2)
        except KeyboardInterrupt as interrupt:
            code = 143 if interrupt.args == ("SIGTERM",) else 130
            if not is_main_process():
                return code
            return _fail("interrupted; run the same command again to resume", code)
        except BrokenPipeError:
            # The reader of our output (`| head`) has gone: nothing more can be said, and that is no fault.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        except Exception as error:
            if line := refusal(error):
                return _fail(line, 2)
            if not isinstance(error, RuntimeError) or not lost_another(error):
                raise
            return _fail("another process of this stage has ended, see its message", 1)


def _fail(message: str, code: int) -> int:
    print(f"error: {redact(' '.join(message.splitlines()))}", file=sys.stderr, flush=True)
    return code


@contextlib.contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """Let a polite kill (a batch system's time limit) end a stage as Ctrl-C does."""
    process = os.getpid()

    def interrupt(number: int, frame: Any) -> None:
        if os.getpid() == process:
            # A launcher may pass on a signal that came to all: ending is not to be interrupted.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            raise KeyboardInterrupt("SIGTERM")
        # A forked worker inherits this handler; it is to die at once, as it would without it.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread, where signals cannot be set
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _execute(stage: Stage, run: Run, argv: list[str]) -> int:
    if num_processes() > 1 and not stage.chosen(argv)[0].several_processes:
        if not is_main_process():
            return 2
        raise UserError(f"{Path(sys.argv[0]).name} runs in one process: start it without accelerate launch")
    join_processes()
    return _lead(stage, run, argv) if is_main_process() else _follow(stage, run, argv)


def _lead(stage: Stage, run: Run, argv: list[str]) -> int:
    """What the main process does. It tells the others: None for work, or their exit code."""
    told, code = False, 2  # a mistake, unless it turns out otherwise
    try:
        plan = make_plan(stage, argv)
        check_inputs(plan)
        if _nothing_to_do(plan):
            code = 0
            return 0
        plan.stage.fits(plan.config, plan.run_dir)
        with _locked(plan.out):
            settle(plan.out, LOCK, LOG)
            # Another execution may have finished the stage between the look above and the lock.
            if _nothing_to_do(plan):
                code = 0
                return 0
            ctx, sessions = _begin(plan, argv)
            told, verdict = True, 0
            from_main((None, plan.inputs, ctx.resuming))
            try:
                verdict = _run(plan, ctx, sessions, run, argv)
                return verdict
            finally:
                # (What a stage with a verdict of failure wrote stays for reading.)
                if not verdict and settle(plan.out, LOCK, LOG):
                    print(f"{plan.name}: what it held before is kept", flush=True)
    finally:
        if not told:
            from_main((code, {}, False))
            leave_processes()


def _follow(stage: Stage, run: Run, argv: list[str]) -> int:
    """What the other processes do: their share of the work, where the main one finds that there is some."""
    nothing: tuple[int | None, dict[str, Path], bool] = (0, {}, False)
    code, inputs, resuming = from_main(nothing)
    if code is None:
        plan = make_plan(stage, argv)
        plan.inputs = inputs
        code = run(_context(plan, resuming)) or 0
    leave_processes()
    return code


def _nothing_to_do(plan: Plan) -> bool:
    """Tell whether the stage is up to date; raises UserError where other work's results are in its place."""
    if plan.arguments.frame.overwrite:
        return False
    status = status_of(plan)
    if status == "up_to_date":
        print(f"{plan.name}: up to date", flush=True)
        if (plan.out / IN_PROGRESS).exists():  # killed once its manifest was written
            forget_failures(plan.run_dir, plan.name)
        with contextlib.suppress(UserError):  # of other stages, which are not asked for
            manifests.update_run_manifest(plan.run_dir)
        return True
    if status.startswith("stale: "):
        raise UserError(
            f"{shown(plan.out)} holds other work ({status.removeprefix('stale: ')}): "
            "--overwrite to redo it, or choose another --run_id"
        )
    return False


# What a stage's folder has one of from its first moment on.
_TRACES = (LOCK, LOG, IN_PROGRESS, manifests.MANIFEST)


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Keep a second process out of a stage folder; the lock ends with the process, however it ends.

    Raises UserError where the folder holds files that no stage wrote: they would be cleared away.
    """
    foreign = sorted(out.iterdir())[:1] if out.is_dir() else []
    if foreign and not any((out / name).exists() for name in _TRACES):
        raise UserError(
            f"{shown(out)} holds {foreign[0].name}, which no stage wrote: nothing is written into a folder "
            "that holds other data; move it away, or choose another --run_id"
        )
    out.mkdir(parents=True, exist_ok=True)
    with open(out / LOCK, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{shown(out)} is being written by another process; wait for it to end") from None
        yield


def _begin(plan: Plan, argv: list[str]) -> tuple[StageContext, list[str]]:
    """Make the folder ready; return the context, and when this and earlier sessions began."""
    out = plan.out
    manifests.code_sha256()  # of what runs now, for the manifest: files may be edited meanwhile
    noted = started(out)
    resuming = noted.get("identity") == plan.identity and not plan.arguments.frame.overwrite
    if (out / manifests.MANIFEST).exists():
        set_aside(out, LOCK)
    else:
        _clear(out, keep_files=resuming)
    sessions = [*(noted.get("sessions", []) if resuming else []), _now()]
    command = noted_command(Path(sys.argv[0]).name, argv)
    write_json(out / IN_PROGRESS, {"identity": plan.identity, "sessions": sessions, **command})
    ctx = _context(plan, resuming)
    if noted and not resuming:
        ctx.log(f"{plan.name}: cleared what an interrupted run of other work had left")
    ctx.log(f"{plan.name}: {'resuming' if resuming else 'start'} ({ctx.run_id}, seed {ctx.seed})")
    return ctx, sessions


def _context(plan: Plan, resuming: bool) -> StageContext:
    run_dir, stage = plan.run_dir, plan.stage.folder
    return StageContext(plan.config, run_dir.name, run_dir, plan.out, resuming, plan.inputs, stage=stage)


def _run(plan: Plan, ctx: StageContext, sessions: list[str], run: Run, argv: list[str]) -> int:
    out = plan.out
    begin = time.monotonic()
    try:
        code = run(ctx) or 0
        leave_processes()
    except UserError as error:
        _append_to_log(out, f"error: {error}")
        raise
    except Exception:
        _append_to_log(out, traceback.format_exc())
        raise
    for line in criteria_lines(ctx.criteria):
        ctx.log(line)
    if code == 0:
        seconds = time.monotonic() - begin
        _write_runtime(ctx, argv, sessions, seconds)
        _write_manifest(plan, ctx)
        forget_failures(plan.run_dir, plan.name)
        manifests.forget_beginning(out)
        ctx.log(f"{plan.name}: done in {seconds:.1f} s -> {shown(out)}")
        manifests.update_run_manifest(plan.run_dir)
    else:
        remove(out / IN_PROGRESS)
    return code


def _clear(out: Path, keep_files: bool) -> None:
    """Empty an unfinished stage folder; when resuming, of results: they are written anew, or brought back
    from ``resume/``, whose files have hashes. A file that was put among them is none.
    """
    if keep_files:
        for file in [*out.rglob(f"{TEMPORARY_PREFIX}*"), *manifests.output_files(out)]:
            remove(file)
        return
    for entry in out.iterdir():
        if entry.name not in (LOCK, REPLACED):
            remove(entry)


def _write_manifest(plan: Plan, ctx: StageContext) -> None:
    whole = plan.identity | {
        "run_id": ctx.run_id,
        "metrics": ctx.metrics,
        "criteria": ctx.criteria,
        "outputs": manifests.describe_outputs(plan.out, plan.run_dir),
        "environment": manifests.environment(),
    }
    manifests.write_manifest(plan.out / manifests.MANIFEST, whole)


def _write_runtime(ctx: StageContext, argv: list[str], sessions: list[str], seconds: float) -> None:
    facts = {
        "started": sessions[0],
        "sessions": sessions,
        "finished": _now(),
        "seconds": round(seconds, 3),
        "host": platform.node(),
        "num_processes": num_processes(),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        **noted_command(Path(sys.argv[0]).name, argv),
    }
    write_text(ctx.out / manifests.RUNTIME, redact(dump_json(facts | ctx.runtime)))


def _append_to_log(out: Path, text: str) -> None:
    # A log that cannot be written (a full disk) must not hide the error that is being logged.
    with contextlib.suppress(OSError), open(out / LOG, "a", encoding="utf-8") as file:
        file.write(f"{_now()} {redact(text)}\n")


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
