"""What the driver shows: what would run, and what came out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.documents.text import duration, plural
from utils.driver.budget import Budget
from utils.driver.execution import Execution
from utils.driver.graph import ComparisonNode, Key, Node, SeedComparison
from utils.driver.run_readme import README
from utils.frame.criteria import FAILED, in_words
from utils.frame.failures import Failure
from utils.frame.files import read_csv, read_json, shown
from utils.frame.manifest import read_manifest
from utils.frame.pipeline import ROWS
from utils.frame.stage_plan import load_script, prepare

WIDTH = 100
COMPARISON = ROWS["compare"].folder
MOST_CRITERIA = 8  # criteria that are named at the end


def show_budgets(budgets: Mapping[str, Budget], every: bool) -> None:
    """Say what is sampled: one line for methods that are alike, or with ``every`` one for each."""
    alike: dict[str, list[str]] = {}
    for method, budget in budgets.items():
        alike.setdefault(str(budget), []).append(method)
    for budget, methods in alike.items():
        if every:
            print(*(f"budget of {method}: {budget}" for method in methods), sep="\n")
        elif len(budgets) > 1:
            print(f"budget of {', '.join(methods)}{' alike' if len(methods) > 1 else ''}: {budget}")


def show_plan(nodes: Sequence[Node], jobs: int, overwrite: Collection[Key]) -> None:
    """Print every step with its status, as things are now; nothing is run or written."""
    several = len({node.run_id for node in nodes}) > 1
    for number, node in enumerate(nodes, start=1):
        status = "when the evaluations have ended"
        if not isinstance(node, ComparisonNode):
            status = prepare(load_script(node.step.script).STAGE, list(node.argv)).status.replace("_", " ")
            status += ", to be redone" if node.key in overwrite and status == "up to date" else ""
        name = f"{node.run_id}/{node.plan.name}" if several else node.plan.name
        print(f"[{number}/{len(nodes)}] {name}: {node.step.script} ({status})")
    print(f"jobs: {jobs}; nothing was run (--dry_run)")


def show_results(execution: Execution) -> None:
    """Print what ran; the comparison over seeds, or else of each run, failed methods included, with what it
    concludes; the acceptance criteria that are not met; and the files to open.
    """
    nodes, outcomes, run_dirs = execution.nodes, execution.outcomes, execution.run_dirs
    ran = [outcome.status for outcome in outcomes.values() if outcome.status in ("done", "failed")]
    failed = ran.count("failed")
    kept = "; what is finished is kept, run the same command again to continue" if failed else ""
    print(f"{len(ran)} of {len(nodes)} steps ran in {duration(execution.seconds)}, {failed} failed{kept}")
    made = [node for node in nodes if isinstance(node, ComparisonNode) and outcomes[node.key].ok]
    for node in [each for each in made if isinstance(each, SeedComparison)] or made:
        folder = run_dirs[node.run_id]
        if isinstance(node, SeedComparison):
            title = f"{node.run_id}: mean accuracy over {len(node.runs(outcomes))} seeds"
            _print_table(title, _rows_of_seeds(folder / COMPARISON), node.failures(outcomes), folder)
        else:
            done = [policy for policy, key in node.policies() if outcomes[key].ok]
            seed = int(node.argv[node.argv.index("--seed") + 1])
            title = f"{node.run_id}: accuracy on the test set"
            _print_table(title, _rows_of_run(folder, done, seed), node.failures(outcomes), folder)
    _print_failed_criteria(execution)
    for node in made[-1:]:
        _print_files(run_dirs[node.run_id])


def _print_failed_criteria(execution: Execution) -> None:
    """The acceptance criteria that stages of this execution do not meet: the first few, and how many more."""
    lines = []
    for node in execution.nodes:
        manifest = read_manifest(node.plan.out) if execution.outcomes[node.key].ok else None
        for name, found in (manifest or {}).get("criteria", {}).items():
            if not found["passed"]:
                lines.append(f"  [{FAILED}] {node.run_id}/{node.plan.name}: {name}: {in_words(found)}")
    if lines:
        print(f"{plural(len(lines), 'acceptance criterion', 'acceptance criteria')} not met:")
        print(*lines[:MOST_CRITERIA], sep="\n")
    if len(lines) > MOST_CRITERIA:
        print(f"  … {len(lines) - MOST_CRITERIA} more in the report")


def _print_files(run_dir: Path) -> None:
    """The three files to open, and what is in them."""
    files = {
        run_dir / COMPARISON / "report.html": "every answer, figure and test",
        run_dir / COMPARISON / "summary.csv": "the numbers, a row for each policy",
        run_dir / README: "what was run, and how to continue",
    }
    width = max(len(shown(path)) for path in files)
    for path, what in files.items():
        print(f"{shown(path):<{width}}  {what}")


@dataclass(frozen=True)
class Row:
    """A policy's accuracy and its difference to the baseline's (SFT's, or base's in a run without SFT), each
    with its interval; p is corrected by Holm."""

    policy: str
    accuracy: tuple[float, float, float]
    difference: tuple[float, float, float] | None = None
    p_value: float | None = None


def _rows_of_run(run_dir: Path, policies: Sequence[str], seed: int) -> list[Row]:
    from utils.comparison.paired import compare_all, load_result
    from utils.evaluation.policy_names import evaluation_files, find_evaluations

    found = find_evaluations(run_dir, [], policies)
    results = [load_result(name, *evaluation_files(folder)) for name, folder in found.items()]
    baseline = _baseline(found)
    over = {pair.b: pair for pair in compare_all(results, seed) if pair.a == baseline}
    rows = []
    for result in results:
        rate, pair = result.metrics["accuracy"], over.get(result.name)
        difference = (pair.difference, *pair.ci95) if pair else None
        accuracy = (rate["value"], *rate["ci95"])
        rows.append(Row(result.name, accuracy, difference, pair.p_holm if pair else None))
    return rows


def _rows_of_seeds(folder: Path) -> list[Row]:
    """The rows of summary.csv and pairs.csv of a comparison over seeds."""
    summary = read_csv(folder / "summary.csv")
    baseline = _baseline(row["policy"] for row in summary)
    pairs = {row["b"]: row for row in read_csv(folder / "pairs.csv") if row["a"] == baseline}
    rows = []
    for row in summary:
        if not row["accuracy"]:
            continue  # a failed policy, which has its own row below
        accuracy = tuple(float(row[key]) for key in ("accuracy", "accuracy_low", "accuracy_high"))
        pair = pairs.get(row["policy"])
        difference = tuple(float(pair[key]) for key in ("difference", "low", "high")) if pair else None
        rows.append(Row(row["policy"], accuracy, difference, float(pair["p_holm"]) if pair else None))
    return rows


def _baseline(policies: Iterable[str]) -> str:
    return "sft" if "sft" in set(policies) else "base"


def _print_table(title: str, rows: Sequence[Row], failures: Sequence[Failure], run_dir: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    over = f"over {_baseline(row.policy for row in rows)}"
    for column in ("policy", "accuracy", "95 % interval", over, "95 % interval", "p (Holm)"):
        table.add_column(column, justify="left" if column == "policy" else "right")
    for row in rows:
        value, low, high = (100 * number for number in row.accuracy)
        cells = [row.policy, f"{value:.1f} %", f"{low:.1f} to {high:.1f} %"]
        if row.difference:
            value, low, high = (100 * number for number in row.difference)
            cells += [f"{value:+.1f}", f"{low:+.1f} to {high:+.1f}", f"{row.p_value:.2g}"]
        table.add_row(*cells)
    for name in dict.fromkeys(failure.policy or failure.run for failure in failures):
        table.add_row(name, "failed")
    console = Console(width=WIDTH, highlight=False, markup=False)
    summary = read_json(run_dir / COMPARISON / "summary.json")
    for line in summary.get("facts", []):
        console.print(line, soft_wrap=True)
    console.print(table)
    for failure in failures:
        console.print(f"{failure.name} failed: {failure.reason}", soft_wrap=True)
    for line in summary.get("conclusions", []):
        console.print(line, soft_wrap=True)
