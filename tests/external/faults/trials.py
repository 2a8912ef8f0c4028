"""Trials: a program is disturbed, then run in peace, and must end in the bytes of an undisturbed one."""

import contextlib
import fnmatch
import hashlib
import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.external.faults.execution import (
    Ended,
    Fault,
    Started,
    die,
    die_in_a_write,
    execute,
    limit_files,
    limit_memory,
)

# What differs between two executions of the same work.
VOLATILE = (".*", "*.log", "runtime.json", "timing.*", "timings.jsonl")
PAGE = 4096  # bytes that a file system gives a file at once
SAME, STOPPED, TRACEBACK, WRONG, DEAD_END = (
    *("same bytes", "one-line stop", "traceback or crash", "silent wrong", "dead end"),
)
OUTCOMES = (SAME, STOPPED, TRACEBACK, WRONG, DEAD_END)
# Files that libraries look for beside those that a program wrote.
PLANTED = {
    "chat_template.jinja": b"{% for m in messages %}planted{{ m.content }}{% endfor %}",
    "added_tokens.json": b'{"planted": 5}',
    "special_tokens_map.json": b'{"eos_token": "the"}',
    "generation_config.json": b'{"eos_token_id": 5, "temperature": 9.0}',
    "modeling_planted.py": b"raise SystemExit('planted code has run')",
    "adapter_model.bin": b"planted",
    "pytorch_model.bin": b"planted",
    "tokenizer.model": b"planted",
    "scaler.pt": b"planted",
}


@dataclass
class Program:
    """What is held against faults.

    command: the program's words; ``{root}`` in them stands for a folder that each trial has its own copy of.
    prepared: that folder as it is before the program runs.
    reads: a folder below the root whose files the program reads; "" where none is to be damaged.
    """

    command: list[str]
    prepared: Path
    work: Path
    reads: str = ""
    whole: dict[str, str] = field(default_factory=dict)
    peace: Ended | None = None

    def measure(self) -> None:
        """Run it undisturbed, twice: the bytes that must come out, the time and the operations it takes."""
        trees = []
        for name in ("first", "second"):
            with self.copy(name) as root:
                self.peace = execute(self.command, root)
                if self.peace.code:
                    raise SystemExit(
                        f"undisturbed, the command ends with {self.peace.code}: {self.peace.said}"
                    )
                trees.append(tree(root))
                self.sizes = sorted(path.stat().st_size for path in root.rglob("*") if path.is_file())
        if trees[0] != trees[1]:
            names = [name for name in trees[0] if trees[0][name] != trees[1].get(name)]
            raise SystemExit(f"two undisturbed executions differ in {names[:5]}: nothing can be compared")
        self.whole = trees[0]

    @contextlib.contextmanager
    def copy(self, name: str) -> Iterator[Path]:
        """The prepared folder, anew."""
        root = self.work / name
        shutil.copytree(self.prepared, root, symlinks=True)
        try:
            yield root
        finally:
            shutil.rmtree(root)


def tree(root: Path) -> dict[str, str]:
    """Path -> hash of every file that the same work gives the same bytes of."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
        and not any(fnmatch.fnmatch(part, each) for part in path.relative_to(root).parts for each in VOLATILE)
    }


# ------------------------------------------------------------------------------------ kinds of trials
# Each disturbs a copy of the root, and says how that went where the program is to have said something.

Disturb = Callable[[Program, Path, random.Random], list[Ended]]


def at_a_time(program: Program, root: Path, rng: random.Random) -> list[Ended]:
    """SIGKILL at any time."""
    execute(program.command, root, Fault(seconds=rng.uniform(0, program.peace.seconds)))
    return []


def at_an_operation(program: Program, root: Path, rng: random.Random) -> list[Ended]:
    """SIGKILL before any change of a file."""
    execute(program.command, root, Fault(die, rng.randint(1, program.peace.operations)))
    return []


def in_a_write(program: Program, root: Path, rng: random.Random) -> list[Ended]:
    """Death within a write, in safetensors' and torch's writers too."""
    operation = rng.randint(1, program.peace.operations)
    execute(program.command, root, Fault(die_in_a_write(_size(program, rng)), operation))
    return []


def small_files(program: Program, root: Path, rng: random.Random) -> list[Ended]:
    """A limit on the size of files, as `ulimit -f` sets it."""
    operation = rng.randint(1, program.peace.operations)
    return [execute(program.command, root, Fault(limit_files(_size(program, rng)), operation))]


def little_memory(program: Program, root: Path, rng: random.Random) -> list[Ended]:
    """A limit on memory, as `ulimit -v` sets it: none to 256 MiB more than there is at some moment."""
    operation = rng.randint(0, program.peace.operations)
    return [
        execute(
            program.command, root, Fault(limit_memory(rng.randrange(1 << rng.randint(16, 28))), operation)
        )
    ]


def full_disk(program: Program, root: Path, rng: random.Random) -> list[Ended]:
    """A disk without room for all that the program writes."""
    before = [path.stat().st_size for path in program.prepared.rglob("*") if path.is_file()]
    pages = sum(-(-size // PAGE) * PAGE for size in before)
    size = pages + rng.randrange(max(1, sum(program.sizes) - sum(before))) + (64 << 10)
    with contextlib.ExitStack() as stack:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", root], check=True)
        stack.callback(subprocess.run, ["umount", root], check=True)
        shutil.copytree(program.prepared, root, symlinks=True, dirs_exist_ok=True)
        ended = execute(program.command, root)
        left = root.with_name("left")
        shutil.copytree(root, left, symlinks=True)
    shutil.rmtree(root)
    left.rename(root)
    return [ended]


def at_once(program: Program, root: Path, rng: random.Random) -> list[Ended]:
    """Eight executions at the same time."""
    return [each.wait() for each in [Started(program.command, root) for _ in range(8)]]


def damaged_state(program: Program, root: Path, rng: random.Random) -> list[Ended]:
    """A file that a killed execution has left is flipped, cut or deleted, or one is put beside it."""
    before = {path for path in root.rglob("*") if path.is_file()}
    operation = rng.randint(program.peace.operations // 3, program.peace.operations)
    execute(program.command, root, Fault(die, operation))
    left = [path for path in root.rglob("*") if path.is_file() and path not in before]
    if left:
        _damage(rng.choice(sorted(left)), rng)
    return []


def damaged_input(program: Program, root: Path, rng: random.Random) -> list[Ended]:
    """A file of the folder that it reads is flipped, cut or deleted, or one is put beside it."""
    files = sorted(path for path in (root / program.reads).rglob("*") if path.is_file())
    _damage(rng.choice(files), rng)
    return []


def planted_input(program: Program, root: Path, rng: random.Random) -> list[Ended]:
    """A file that libraries look for is put into a folder that it reads."""
    folders = sorted({path.parent for path in (root / program.reads).rglob("*") if path.is_file()})
    _plant(rng.choice(folders), rng)
    return []


KINDS: dict[str, tuple[Disturb, ...]] = {
    "kills": (at_a_time, at_an_operation, in_a_write),
    "limits": (small_files, little_memory, full_disk),
    "damages": (damaged_state, damaged_input),
    "planted": (planted_input,),
    "starts": (at_once,),
}


def _size(program: Program, rng: random.Random) -> int:
    """Part of the size of some file."""
    return int(rng.choice(program.sizes) * rng.random())


def _damage(path: Path, rng: random.Random) -> None:
    data, kind = bytearray(path.read_bytes()), rng.randrange(4)
    if kind == 0 and data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
    elif kind == 1 and data:
        path.write_bytes(data[: rng.randrange(len(data))])
    elif kind == 2:
        _plant(path.parent, rng)
    else:
        path.unlink()


def _plant(folder: Path, rng: random.Random) -> None:
    new = [name for name in PLANTED if not (folder / name).exists()]
    if rng.random() < 0.1:
        (folder / "additional_chat_templates").symlink_to(folder.parent)
    else:
        name = rng.choice(new)
        (folder / name).write_bytes(PLANTED[name])


# --------------------------------------------------------------------------------------------- results


def outcome(program: Program, root: Path, disturbed: list[Ended], whole: bool) -> tuple[str, str]:
    """Run the program again in peace; what comes of it, and what it says where that is not well.

    ``whole``: nothing was damaged, so that it must end, and not only stop.
    """
    for each in disturbed:
        if not each.in_one_line:
            return TRACEBACK, each.said or f"signal {-each.code}"
    end = execute(program.command, root)
    if not end.in_one_line:
        return TRACEBACK, end.said or f"signal {-end.code}"
    if end.code:
        return DEAD_END if whole else STOPPED, end.said
    found = tree(root)
    damaged = f"{program.reads}/" if program.reads and not whole else "/"
    names = program.whole.keys() | (found if whole else ())
    changed = sorted(
        name for name in names if found.get(name) != program.whole.get(name) and not name.startswith(damaged)
    )
    return (WRONG, f"not the same: {', '.join(changed)}") if changed else (SAME, "")


def try_out(program: Program, disturb: Disturb, number: int, seed: int) -> tuple[Counter, list[str]]:
    """So many trials of one kind, each from its own seed: how often each outcome, and what was said of bad
    ones.
    """
    count, said = Counter(), []
    damages = (*KINDS["damages"], *KINDS["planted"])
    for trial in range(number):
        rng = random.Random(f"{seed}/{disturb.__name__}/{trial}")
        with program.copy(f"{disturb.__name__}_{trial}") as root:
            disturbed = disturb(program, root, rng)
            found, words = outcome(program, root, disturbed, whole=disturb not in damages)
        count[found] += 1
        if found not in (SAME, STOPPED):
            said.append(f"{disturb.__name__} {trial}: {found}: {words.strip()[-1500:]}")
    return count, said


def all_trials(
    program: Program, numbers: dict[str, int], seed: int
) -> Iterator[tuple[str, Counter, list[str]]]:
    """Each fault in words, how often each outcome came of it, and what was said of bad ones, of a program
    that has been measured.
    """
    for kind, number in numbers.items():
        ways = [each for each in KINDS[kind] if program.reads or each not in (damaged_input, planted_input)]
        for place, disturb in enumerate(ways):
            what, share = disturb.__doc__.splitlines()[0].rstrip("."), len(range(place, number, len(ways)))
            if share and disturb is full_disk and not _can_mount(program.work):
                yield f"{what}: none, no file system can be mounted here", Counter(), []
            elif share:
                yield what, *try_out(program, disturb, share, seed)


def run_trials(program: Program, numbers: dict[str, int], seed: int) -> bool:
    """All trials and their table; whether each ended in the same bytes or, where it may, in one line."""
    program.measure()
    print_head()
    clean = True
    for what, count, said in all_trials(program, numbers, seed):
        print_row(what, count)
        print(*said, sep="\n", end="\n" if said else "", flush=True)
        clean &= not said
    return clean


def print_head() -> None:
    """The head of a table of outcomes."""
    print(f"| fault | trials | {' | '.join(OUTCOMES)} |\n|---|{'---|' * (len(OUTCOMES) + 1)}", flush=True)


def print_row(what: str, count: Counter) -> None:
    """A fault, and how often each outcome came of it."""
    print(f"| {what} | {count.total()} | {' | '.join(str(count[each]) for each in OUTCOMES)} |", flush=True)


def _can_mount(work: Path) -> bool:
    place = work / "mounted"
    place.mkdir(exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "none", place], capture_output=True).returncode == 0
    return mounted and subprocess.run(["umount", place]).returncode == 0
