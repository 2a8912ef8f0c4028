"""The steps of an execution as a table that changes in place, where standard output is a terminal."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.console import Console
from rich.control import Control
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from utils.documents.text import duration, percent
from utils.driver.graph import ComparisonNode, Key, Node, Outcome
from utils.driver.process import say
from utils.frame.files import UserError
from utils.frame.manifest import read_manifest

REFRESHES = 4  # a second
ROOMY = 100  # columns of a terminal from which on the table's are set wider apart
AROUND = 8  # lines of the terminal that are left to messages, title and frame
_STYLE = {"running": "cyan", "done": "green", "failed": "bold red", "blocked": "red"}
# "answering:  40%|####      | 4/10 [00:08<00:12, ...": what it does, how far it is, the time that is left.
_BAR = re.compile(
    r"^(?:(?P<what>.*?): *)?\d+%\|.*?\| *(?P<done>\S+)/(?P<total>\S+) \[[\d:]+<(?P<left>[\d:?]+)"
)
_VALIDATION = re.compile(r"^step .*(val accuracy [\d.]+ %)")
_NOTABLE = re.compile(r"^\s*(\[FAIL\]|warning: |WARNING: |error: )")


@dataclass
class StepView:
    """A step that was started: what is seen of it while it runs. It watches its process (`Watcher`).

    Attributes:
        name: what messages call it.
        begin: when it was started, by the monotonic clock, in seconds.
        what: what its progress bar says that it does.
        share: how far the bar is, from 0 to 1; None without a bar.
        until: when the bar ends by its own account; None where it has none.
        latest: the last validation.
        talks: whether lines that ask for attention are printed: those of a comparison stand in the results.
    """

    name: str
    begin: float = field(default_factory=time.monotonic)
    what: str = ""
    share: float | None = None
    until: float | None = None
    latest: str = ""
    talks: bool = True

    def line(self, text: str) -> None:
        """Keep a validation; print what asks for attention. The rest is in the step's stage.log."""
        if found := _VALIDATION.match(text):
            self.latest = found[1]
        if self.talks and _NOTABLE.match(text):
            say(f"[{self.name}] {text.strip()}")

    def bar(self, text: str) -> None:
        """Read a bar. One that is only half there leaves things as they are."""
        if not text.strip():
            self.what, self.share, self.until = "", None, None
        elif found := _BAR.match(text):
            self.what = f"{found['done']}/{found['total']} {found['what'] or ''}".strip()
            self.share = _number(found["done"]) / max(_number(found["total"]), 1e-9)
            left = _seconds(found["left"])
            self.until = None if left is None else time.monotonic() + left


class LiveTable:
    """A row for each step: its state, progress, time, time left, and the last figure to know of it.

    Args:
        nodes: the steps, in their order.
        outcomes: what became of those that have ended; looked at with each refresh.
        console: the terminal.
    """

    def __init__(self, nodes: Sequence[Node], outcomes: Mapping[Key, Outcome], console: Console):
        self.nodes, self.outcomes, self.console = nodes, outcomes, console
        self.steps: dict[Key, StepView] = {}
        self.ended = False
        self._begin, self._size = time.monotonic(), console.size
        self._headlines: dict[Key, str] = {}

    def begin(self, node: Node, name: str) -> StepView:
        """A step is started, which messages call by that name; what is returned watches its output."""
        self.steps[node.key] = StepView(name, talks=not isinstance(node, ComparisonNode))
        return self.steps[node.key]

    def refreshed(self) -> Table:
        """The table as things are now, on a clean screen where the window has another size.

        A terminal breaks lines anew for another width, so the old table no longer is where it was drawn.
        """
        if self.console.size != self._size:
            self._size = self.console.size
            self.console.control(Control.home(), Control.clear())
        return self.table()

    def table(self) -> Table:
        """All rows once the execution has ended; before, those that the window has room for."""
        gap = 2 if self._size.width >= ROOMY else 0
        table = Table(
            caption=self._caption(), caption_justify="left", box=box.SIMPLE_HEAD, padding=(0, gap, 0, 0)
        )
        names = max(len(self._name(node)) for node in self.nodes)
        for name, width in (
            ("step", min(names, 32)),
            ("state", 10),
            ("progress", 8),
            ("time", 7),
            ("left", 7),
            ("latest", 8),
        ):
            side = "right" if name in ("time", "left") else "left"
            table.add_column(name, no_wrap=True, min_width=width, justify=side)
        first, end = self._window()
        if first:
            table.add_row(f"… {first} before", style="dim")
        for node in self.nodes[first:end]:
            table.add_row(*self._cells(node))
        if end < len(self.nodes):
            table.add_row(f"… {len(self.nodes) - end} more", style="dim")
        return table

    def _window(self) -> tuple[int, int]:
        """Which rows are shown: around the first step that has not ended."""
        rows = max(3, self._size.height - AROUND)
        if self.ended or len(self.nodes) <= rows:
            return 0, len(self.nodes)
        now = next((i for i, node in enumerate(self.nodes) if node.key not in self.outcomes), len(self.nodes))
        first = min(max(0, now - rows // 3), len(self.nodes) - rows)
        return first, first + rows

    def _cells(self, node: Node) -> list[Any]:
        name = escape(self._name(node))
        outcome, step = self.outcomes.get(node.key), self.steps.get(node.key)
        if outcome:
            seconds = _clock(outcome.seconds) if outcome.seconds else ""
            latest = self._headline(node) if outcome.ok else ""  # why it failed is said above the table
            return [name, _state(outcome.status), "", seconds, "", latest]
        if step is None:
            return [f"[dim]{name}[/]", "[dim]waiting[/]"]
        state = _state("running") if step.share is None else ProgressBar(1.0, step.share, width=10)
        now = time.monotonic()
        left = "" if step.until is None else _clock(max(0.0, step.until - now))
        return [name, state, escape(step.what), _clock(now - step.begin), left, step.latest]

    def _name(self, node: Node) -> str:
        """The step's folder; of several runs, with what tells the runs apart ("seed_1/05_ppo")."""
        if len({each.run_id for each in self.nodes}) == 1:
            return node.plan.name
        return f"{node.run_id.removeprefix(self.nodes[-1].run_id + '_')}/{node.plan.name}"

    def _headline(self, node: Node) -> str:
        if node.key not in self._headlines:
            self._headlines[node.key] = ""
            with contextlib.suppress(UserError):  # a damaged manifest is for the next stage to complain of
                self._headlines[node.key] = headline((read_manifest(node.plan.out) or {}).get("metrics", {}))
        return self._headlines[node.key]

    def _caption(self) -> str:
        ended = sum(outcome.status != "blocked" for outcome in self.outcomes.values())
        return f"{ended} of {len(self.nodes)} steps, {duration(time.monotonic() - self._begin)}"


@contextlib.contextmanager
def table_on_terminal(nodes: Sequence[Node], outcomes: Mapping[Key, Outcome]) -> Iterator[LiveTable | None]:
    """Show the table while the block runs; None where standard output is no terminal that can.

    What is printed meanwhile appears above the table.
    """
    console = Console(highlight=False)
    if not sys.stdout.isatty() or console.is_dumb_terminal:
        yield None
        return
    table = LiveTable(nodes, outcomes, console)
    live = Live(
        console=console,
        get_renderable=table.refreshed,
        refresh_per_second=REFRESHES,
        redirect_stderr=sys.stderr.isatty(),
    )
    with live:
        try:
            yield table
        finally:
            table.ended = True


def headline(metrics: Mapping[str, Any]) -> str:
    """The one figure to know of a finished stage, from its manifest's metrics; "" for a stage without."""
    if "pass@1" in metrics:
        return f"pass@1 {percent(metrics['pass@1'])}"
    if "final_val_accuracy" in metrics:
        return f"val accuracy {percent(metrics['final_val_accuracy'])}"
    if "n" in metrics and "accuracy" in metrics:
        return f"accuracy {percent(metrics['accuracy'])} of {metrics['n']:,}"
    if "pairs" in metrics:
        return f"{metrics['pairs']:,} pairs"
    for counted in ("usable", "records"):
        splits = {name: metrics[name] for name in ("train", "val", "test") if name in metrics}
        counts = [f"{name} {found[counted]:,}" for name, found in splits.items() if counted in found]
        if counts:
            return ", ".join(counts)
    return ""


def _state(status: str) -> str:
    return f"[{_STYLE[status]}]{status}[/]" if status in _STYLE else status


def _clock(seconds: float) -> str:
    """A time for a narrow column: 0:08, 2:05, 1:02:05."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _number(text: str) -> float:
    """A count as tqdm prints it: 12, or 3.4k."""
    unit = {"k": 1e3, "M": 1e6, "G": 1e9}.get(text[-1])
    try:
        return float(text[:-1]) * unit if unit else float(text)
    except ValueError:
        return 0.0


def _seconds(text: str) -> float | None:
    """A time as tqdm prints it: 02:05, 1:02:05, or ? where it does not know."""
    parts = text.split(":")
    if not all(part.isdigit() for part in parts):
        return None
    return sum(int(part) * 60**place for place, part in enumerate(reversed(parts)))
