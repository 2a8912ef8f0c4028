"""What the tests of the driver share: command lines, executions, a script that a file tells what to do."""

from utils.driver import command
from utils.driver.budget import check_budgets, set_completions
from utils.driver.execution import Execution
from utils.driver.goal import Goal, Overrides
from utils.driver.graph import build_graph
from utils.frame.pipeline import FAMILIES
from utils.frame.stage_plan import load_script


def parse(*argv: str):
    """(known options, goal, overrides) of a command line."""
    return command.parse(list(argv), "", "")


def drive(capsys, *argv: str) -> tuple[int, str, str]:
    """What the driver does with a command line: exit code, standard output and standard error."""
    code = load_script("12_driver.py").main(list(argv))
    return code, *capsys.readouterr()


def budgets(*argv: str, run_id: str = "r"):
    """The budgets of a command line, as the driver checks them before anything runs."""
    known, wanted, overrides = parse(*argv)
    if known.completions:
        set_completions(known.completions, wanted, overrides, run_id, 0)
    return check_budgets(wanted, overrides, run_id, 0)


ALL = Goal(FAMILIES)


def executed(goal=ALL, jobs=1, overwrite=False, seeds=(), overrides=None):
    """(nodes, outcomes by "run/step") after one execution of run "r"."""
    nodes = build_graph(goal, overrides or Overrides(), "r", 0, seeds)
    outcomes = Execution(nodes, jobs, {node.key for node in nodes} if overwrite else ()).run()
    return nodes, {"/".join(key): outcome for key, outcome in outcomes.items()}


def options(words: list[str]) -> dict[str, str]:
    """Words of a command line as option -> value."""
    return dict(zip(words[::2], words[1::2], strict=True))


# A stage that notes its calls, and fails, sleeps or ends as the file of its name in FAKE_CONTROL says.
FAKE = """
import os, signal, sys, time
from dataclasses import dataclass
from pathlib import Path

from utils.frame.files import UserError
from utils.frame.config import setting
from utils.frame.stage import Stage, main


@dataclass
class Options:
    name: str = setting("a", "which step")
    reads: list[str] = setting([], "steps whose results are read")


def inputs(config, run_dir):
    return {name: run_dir / f"05_ppo_{name}" / "out.txt" for name in config.options.reads}


def run(ctx):
    name, control = ctx.config.options.name, Path(os.environ["FAKE_CONTROL"])
    with open(control / "calls", "a") as file:
        file.write(f"{name}{'+' if ctx.resuming else ''}\\n")
    what = (control / name).read_text() if (control / name).exists() else ""
    if what == "mistake":
        raise UserError(f"{ctx.out}: 0 pairs, lower min_margin")
    if what == "crash":
        raise FloatingPointError("loss is nan")
    if what == "sleep":
        (control / f"{name}.pid").write_text(str(os.getpid()))
        time.sleep(60)
    (ctx.out / "out.txt").write_text("".join(ctx.inputs[each].read_text() for each in ctx.inputs) + name)


def variant(config):
    return config.options.name


STAGE = Stage("05", "05_ppo", "fake", "", "", options=Options, inputs=inputs, variant=variant)

if __name__ == "__main__":
    main(STAGE, run)
"""

# Runs steps of a script side by side: SCRIPT OUTPUTS_ROOT NAME …
DRIVER = """
import sys
from utils.driver.execution import Execution, exit_code
from utils.driver.graph import Node
from utils.driver.goal import Step
from utils.frame.stage_plan import load_script

def drive(argv):
    script, out, *names = argv
    words = ("--run_id", "r", "--outputs_root", out, "--name")
    nodes = [Node("r", Step(name, script), (*words, name)) for name in names]
    return exit_code(nodes, Execution(nodes, jobs=2).run())

driver = load_script("12_driver.py")
driver.drive = drive
sys.exit(driver.main(sys.argv[1:]))
"""


def statuses(outcomes) -> str:
    """How each step ended, "a:done b:failed"."""
    return " ".join(f"{step}:{outcome.status}" for (_, step), outcome in outcomes.items())
