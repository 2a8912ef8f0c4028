"""The live table: what it reads from a step's output, what its rows say, and a window of another size."""

import contextlib
import fcntl
import io
import os
import struct
import subprocess
import sys
import termios
import textwrap

import pytest
from rich.console import Console

from tests.support.driver import DRIVER
from utils.driver import live_table
from utils.driver.goal import Goal, Overrides
from utils.driver.graph import Outcome, build_graph
from utils.driver.live_table import LiveTable, StepView, headline, table_on_terminal
from utils.driver.process import Child
from utils.frame.files import write_json

BARS = """
    import sys, time
    from tqdm import tqdm
    print("step 4/8: loss 0.2, val reward 0.300, val accuracy 37.5 %", flush=True)
    print("loaded", flush=True)
    print("warning: a rate that is never reached", flush=True)
    for _ in tqdm(range(4), desc="answering", file=sys.stderr, leave=False, mininterval=0):
        time.sleep(0.05)
    print("  [FAIL] answers of valid form: 0.5 (at least 0.9)", flush=True)
    print("a warning of a library", file=sys.stderr)
    print("error: no pairs", file=sys.stderr)
    sys.exit(2)
"""


class Seen(StepView):
    """A step that keeps every state of its bar."""

    def bar(self, text):
        super().bar(text)
        self.__dict__.setdefault("shares", []).append((self.what, self.share))


def test_a_step_is_seen_by_its_bars_and_its_lines(capfd):
    step = Seen("05_ppo")
    child = Child([sys.executable, "-c", textwrap.dedent(BARS)], "05_ppo", watcher=step)
    assert child.wait() == 2
    assert any(what.endswith("/4 answering") for what, _ in step.shares)
    assert step.share is None and step.what == "", "the bar is cleared at its end"
    assert step.latest == "val accuracy 37.5 %"
    out, err = capfd.readouterr()
    # What asks for attention is printed, with the step's name; the rest is in its log.
    assert out.splitlines() == [
        "[05_ppo] warning: a rate that is never reached",
        "[05_ppo] [FAIL] answers of valid form: 0.5 (at least 0.9)",
    ]
    assert err.splitlines() == ["[05_ppo] a warning of a library"]


@pytest.mark.parametrize(
    ("bar", "what", "share", "left"),
    [
        ("training:  25%|##5       | 2/8 [00:30<01:30, 15.00s/it]", "2/8 training", 0.25, 90),
        ("50%|#####     | 1.50k/3.00k [00:30<1:01:30, 15.00s/it]", "1.50k/3.00k", 0.5, 3690),
        ("golds:   0%|          | 0/16 [00:00<?, ?it/s]", "0/16 golds", 0.0, None),
    ],
)
def test_bars_are_read(bar, what, share, left, monkeypatch):
    monkeypatch.setattr(live_table.time, "monotonic", lambda: 100.0)
    step = StepView("03_sft")
    step.bar(bar)
    assert (step.what, step.share) == (what, share)
    assert step.until == (None if left is None else 100.0 + left)
    step.bar(bar[:12])  # one that has half arrived
    assert step.what == what
    step.bar("   ")
    assert (step.what, step.share, step.until) == ("", None, None)


def world(tmp_path, seeds=()):
    """(nodes, outcomes, table, what its console was given) of GRPO, on a terminal of 100 by 30."""
    shared = Overrides(shared=["--outputs_root", str(tmp_path)])
    nodes, outcomes, screen = build_graph(Goal(("grpo",)), shared, "r", 0, seeds), {}, io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, height=30, color_system=None)
    return nodes, outcomes, LiveTable(nodes, outcomes, console), screen


def rows(table: LiveTable, screen: io.StringIO) -> list[str]:
    screen.seek(0)
    screen.truncate()
    table.console.print(table.refreshed())
    return [" ".join(line.split()) for line in screen.getvalue().splitlines()]


def test_rows_say_state_progress_time_and_the_last_figure(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(live_table.time, "monotonic", lambda: now[0])
    nodes, outcomes, table, screen = world(tmp_path)
    keys = {node.step.id: node.key for node in nodes}
    write_json(tmp_path / "r/03_sft/manifest.json", {"outputs": {}, "metrics": {"final_val_accuracy": 0.375}})
    outcomes[keys["sft"]] = Outcome("done", seconds=72.0)
    outcomes[keys["candidates"]] = Outcome("failed", "04_candidates: [no] prompts")
    step = table.begin(next(node for node in nodes if node.step.id == "grpo"), "06_grpo")
    step.begin = 0.0
    now[0] = 125.0
    assert "06_grpo running 2:05" in rows(table, screen)
    step.bar("training:  25%|##5       | 2/8 [00:30<01:30, 15.00s/it]")
    step.line("step 2/8: val reward 0.300, val accuracy 40.0 %")
    now[0] = 130.0
    found = rows(table, screen)
    assert "03_sft done 1:12 val accuracy 37.5 %" in found
    assert "04_candidates failed" in found
    assert any(
        line.startswith("06_grpo ━") and line.endswith("2/8 training 2:10 1:25 val accuracy 40.0 %")
        for line in found
    )
    assert "11_comparison waiting" in found
    assert "2 of 10 steps, 2 min 10 s" in found
    table.console.size = (80, 30)  # of most terminals: the figures are whole there, too
    assert "03_sft done 1:12 val accuracy 37.5 %" in rows(table, screen)


def test_a_low_window_shows_what_is_around_the_running_step(tmp_path):
    nodes, outcomes, table, screen = world(tmp_path, seeds=(0, 1, 2))
    assert len(nodes) > 30
    for node in nodes[:12]:
        outcomes[node.key] = Outcome("skipped")
    found = rows(table, screen)
    assert len(found) < 30
    assert any(line.startswith("… ") and line.endswith(" before") for line in found)
    assert any(line.startswith(f"seed_1/{nodes[12].plan.name} ") for line in found)
    assert any(line.startswith("… ") and line.endswith(" more") for line in found)
    table.ended = True
    assert len(rows(table, screen)) > len(nodes)


def test_a_window_of_another_size_is_cleared(tmp_path):
    _, _, table, screen = world(tmp_path)
    clear = "\x1b[H\x1b[2J"
    assert not any(clear in line for line in rows(table, screen))
    table.console.size = (60, 20)
    assert clear in "".join(rows(table, screen))
    assert clear not in "".join(rows(table, screen))


@pytest.mark.slow
def test_on_a_terminal_steps_side_by_side_share_one_table(fake):
    """Real steps under a driver that has a terminal: no line of theirs is printed, and each has a row."""
    read, write = os.openpty()
    fcntl.ioctl(write, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    command = [sys.executable, "-c", DRIVER, str(fake.script), str(fake.out.parent), "a", "b"]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=write,
        stderr=write,
        env={**os.environ, "TERM": "xterm", "NO_COLOR": "1"},
    ) as driver:
        os.close(write)
        seen = ""
        with contextlib.suppress(OSError):  # how a terminal says that its other end is closed
            while piece := os.read(read, 1 << 16):
                seen += piece.decode(errors="replace")
        assert driver.wait() == 0, seen
    os.close(read)
    last = [" ".join(line.split()) for line in seen.rpartition(" step ")[2].splitlines()]
    for name in "ab":
        assert any(line.startswith(f"05_ppo_{name} done ") for line in last), seen
    assert any("2 of 2 steps" in line for line in last)
    assert "finished in" not in seen and "start (r, seed 0)" not in seen


def test_there_is_no_table_where_standard_output_is_no_terminal(capsys):
    with table_on_terminal([], {}) as table:
        assert table is None
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("metrics", "text"),
    [
        ({"train": {"usable": 2000}, "test": {"usable": 5}, "repeated": {}}, "train 2,000, test 5"),
        ({"val": {"records": 16}}, "val 16"),
        ({"accuracy": 0.25, "pass@1": 0.25, "pass@2": 0.4}, "pass@1 25.0 %"),
        ({"accuracy": 0.25, "n": 1147}, "accuracy 25.0 % of 1,147"),
        ({"pairs": 12}, "12 pairs"),
        ({"base": {"accuracy": 0.1, "n": 5}}, ""),
    ],
)
def test_headlines(metrics, text):
    assert headline(metrics) == text
