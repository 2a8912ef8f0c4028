"""Whether a run's prompts fit its models, said by the driver before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence

from utils.driver.graph import ComparisonNode, Node, check_records
from utils.frame.pipeline import METHODS, ROWS
from utils.frame.stage_plan import load_script, prepare
from utils.training.limits import raw_data_fit


def check_fit(nodes: Sequence[Node]) -> None:
    """Raise UserError where the prompts of the first run cannot fit (its other seeds have the same): by the
    records that 01 left, or else by the first rows of the raw data.
    """
    of_run = [
        node for node in nodes if node.run_id == nodes[0].run_id and not isinstance(node, ComparisonNode)
    ]
    prepares = next(node for node in of_run if node.step.name == ROWS["prepare"].name)
    stage, argv = load_script(prepares.step.script).STAGE, list(prepares.argv)
    if prepare(stage, argv).status == "up_to_date":
        check_records(of_run)
        return
    trains = next((node for node in of_run if node.step.name in METHODS), None)
    if trains is not None:
        raw_data_fit(prepares.plan.config.dataset, trains.plan.config, not METHODS[trains.step.name].samples)
