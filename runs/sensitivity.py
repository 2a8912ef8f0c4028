"""How much a method depends on its learning rate: the rates of runs/sensitivity.sh, its table and figure.

    python -m runs.sensitivity rates third ppo grpo       # the driver's options for a third of their rates
    python -m runs.sensitivity table outputs/sensitivity  # of sensitivity_{third,once,thrice}[_seed_S] there

`table` writes sensitivity.md and sensitivity.png to the folder: test accuracy by method and rate, the mean
over seeds with its t interval (one seed: Wilson's, or that of its clusters).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from utils.comparison.estimates import Estimate, over_runs
from utils.documents.document import Section, Table, section_markdown
from utils.documents.figures import drawing, legend
from utils.documents.text import interval, percent
from utils.frame.config import load_tier
from utils.frame.files import REPO_ROOT, UserError, read_json, write_text
from utils.frame.manifest import read_manifest
from utils.frame.pipeline import METHODS, method_of, policy_order
from utils.frame.stage_plan import load_script

FACTORS = {"third": 1 / 3, "once": 1.0, "thrice": 3.0}


def learning_rate(method: str) -> float:
    """The learning rate that a method has without options."""
    row = METHODS[method]
    stage = load_script(row.script).STAGE
    options = stage.choice.others if stage.choice else {}
    cls, _ = (options[row.option[1]] if row.option else stage).tiers["algo"]
    return load_tier(cls, REPO_ROOT / row.defaults).learning_rate


def rates(factor: str, methods: Sequence[str]) -> list[str]:
    """The driver's options that multiply the methods' learning rates."""
    return [
        word
        for method in methods
        for word in (f"--{method}.learning_rate", f"{FACTORS[factor] * learning_rate(method):.3g}")
    ]


def accuracies(study: Path) -> dict[str, dict[str, tuple[float, Estimate]]]:
    """Policy -> factor -> its learning rate, and its test accuracy over the seeds.

    Raises UserError where a factor has no evaluated run, or a policy is not in all runs.
    """
    found: dict[str, dict[str, tuple[float, Estimate]]] = {}
    for factor in FACTORS:
        name = f"{study.name}_{factor}"
        runs = sorted(study.parent.glob(f"{name}_seed_*")) or [study.parent / name]
        evaluated = [
            {path.parent.name: path for path in run.glob("10_evaluation/*/metrics.json")} for run in runs
        ]
        if not all(evaluated):
            raise UserError(f"{study.parent}: no evaluation in {name}[_seed_S]: run runs/sensitivity.sh")
        for policy in sorted(set.intersection(*map(set, evaluated)), key=policy_order):
            trained = method_of(policy)
            if trained is None or trained[0].name == "sft":
                continue
            method, variant = trained
            stage = runs[0] / (method.folder + (f"_{variant}" if variant else ""))
            rate = read_manifest(stage)["config"]["algo"]["learning_rate"]
            measured = [read_json(of_run[policy])["accuracy"] for of_run in evaluated]
            found.setdefault(policy, {})[factor] = (rate, over_runs(measured, (0.0, 1.0)))
    return {policy: of_policy for policy, of_policy in found.items() if len(of_policy) == len(FACTORS)}


def write_table(study: Path) -> None:
    """Write sensitivity.md and sensitivity.png to the study's folder, and print the first."""
    found = accuracies(study)
    rows = [
        [policy, *(_cell(*of_policy[factor]) for factor in FACTORS)] for policy, of_policy in found.items()
    ]
    section = Section(
        "Accuracy by learning rate", [Table(["method", "a third", "once", "three times"], rows)]
    )
    text = section_markdown(section)
    study.mkdir(parents=True, exist_ok=True)
    write_text(study / "sensitivity.md", text)
    with drawing(study / "sensitivity.png", (6, 4), (1,)) as (figure, (axis,)):
        for policy, of_policy in found.items():
            axis.plot(
                FACTORS.values(), [of_policy[factor][1].value for factor in FACTORS], marker="o", label=policy
            )
        axis.set(xscale="log", xlabel="learning rate, times the method's own", ylabel="test accuracy")
        axis.set_xticks(list(FACTORS.values()), ["1/3", "1", "3"])
        axis.minorticks_off()
        axis.grid()
        legend(figure, *axis.get_legend_handles_labels())
    print(text)


def _cell(rate: float, accuracy: Estimate) -> str:
    of = f" ({interval(accuracy.ci95)})" if accuracy.ci95 else ""
    return f"{percent(accuracy.value)}{of} at {rate:.2g}"


def main(words: Sequence[str]) -> int:
    match words:
        case ["rates", factor, *methods] if factor in FACTORS and methods and set(methods) <= set(METHODS):
            print(*rates(factor, methods))
        case ["table", folder]:
            try:
                write_table(Path(folder))
            except UserError as error:
                print(f"error: {error}", file=sys.stderr)
                return 2
        case _:
            print(f"error: give 'rates {'|'.join(FACTORS)} METHOD …' or 'table FOLDER'", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
