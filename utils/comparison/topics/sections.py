"""What a comparison says besides accuracies and tests, of policies of one run or of several seeds alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.comparison.lineage import trained_policies
from utils.frame.files import read_json
from utils.frame.stage import StageContext

if TYPE_CHECKING:  # the driver imports this to see what stage 11 would read
    from utils.comparison.over_seeds import SeedPair
    from utils.comparison.paired import Pair, PolicyResult
    from utils.comparison.topics.cost import Costs
    from utils.comparison.topics.curves import Curve
    from utils.comparison.topics.levels import Levels
    from utils.comparison.topics.measures import Measures
    from utils.comparison.topics.sample_efficiency import Efficiency
    from utils.comparison.topics.students import Students
    from utils.comparison.topics.teacher import Against
    from utils.comparison.topics.training import Trainings

AUDIT_INPUT = "reward audit of "  # then the run: how the stage's inputs name one


@dataclass(frozen=True)
class Compared:
    """The policies of a comparison, in the order of the pipeline.

    Attributes:
        folders: policy -> folder 10_evaluation/<policy> of each run.
        results: policy -> its result in each run.
        accuracies: policy -> accuracy with its 95 % interval, the mean over the runs where there are several.
        pairs: their tests.
        levels: accuracies by level.
    """

    folders: Mapping[str, Sequence[Path]]
    results: Mapping[str, Sequence[PolicyResult]]
    accuracies: Mapping[str, tuple[float, tuple[float, float]]]
    pairs: Sequence[Pair] | Sequence[SeedPair]
    levels: Levels


@dataclass(frozen=True)
class Sections:
    """The report's sections after the accuracies, and what they were made from."""

    text: str
    costs: Costs
    levels: Levels
    efficiency: Efficiency | None
    against: Against
    trainings: Trainings
    measures: Measures
    students: Students

    def with_columns(self, rows: list[dict[str, Any]], columns: list[str]) -> tuple[list[dict], list[str]]:
        """Rows and columns of summary.csv with all that the sections are made from."""
        from utils.comparison.topics.cost import with_costs
        from utils.comparison.topics.levels import with_levels
        from utils.comparison.topics.measures import with_measures
        from utils.comparison.topics.sample_efficiency import with_efficiency
        from utils.comparison.topics.students import with_students
        from utils.comparison.topics.teacher import with_teacher
        from utils.comparison.topics.training import with_training

        rows, columns = with_costs(*with_levels(rows, columns, self.levels), self.costs)
        rows, columns = with_teacher(*with_efficiency(rows, columns, self.efficiency), self.against)
        rows, columns = with_students(*with_training(rows, columns, self.trainings), self.students)
        return with_measures(rows, columns, self.measures)


def write_sections(ctx: StageContext, compared: Compared) -> Sections:
    """Write figures and tables of curricula, cost, training and seconds, and make the report's sections."""
    from utils.comparison.topics.cost import costs_of
    from utils.comparison.topics.curricula import (
        CURRICULUM_FIGURE,
        Findings,
        curriculum_groups,
        curriculum_section,
    )
    from utils.comparison.topics.curricula_plot import plot_curricula
    from utils.comparison.topics.curves import read_curves
    from utils.comparison.topics.levels_frontier_audit import audit_section, frontier_section, level_section
    from utils.comparison.topics.measures import measure_sections, measures_of
    from utils.comparison.topics.sample_efficiency import efficiency_section, sample_efficiency
    from utils.comparison.topics.students import student_section, students_of
    from utils.comparison.topics.teacher import against_teacher, teacher_section
    from utils.comparison.topics.training import training_section, trainings_of
    from utils.comparison.topics.types import type_section

    trained = trained_policies(compared.folders)
    costs = costs_of(trained)
    curves, left_out = read_curves(trained)
    efficiency = sample_efficiency(curves, ctx.config.options.efficiency_fraction)
    against = against_teacher(compared.results)
    trainings = trainings_of(trained)
    measures, students = measures_of(compared.results), students_of(compared.results)
    audits = {
        name.removeprefix(AUDIT_INPUT): read_json(path)
        for name, path in ctx.inputs.items()
        if name.startswith(AUDIT_INPUT)
    }
    runs = max(map(len, compared.folders.values()))
    groups = curriculum_groups(list(compared.accuracies))
    if groups:
        plot_curricula(groups, curves, compared.levels, ctx.out / CURRICULUM_FIGURE)
    findings = Findings(compared.accuracies, compared.pairs, compared.levels, efficiency, against)
    parts = [
        level_section(compared.levels, list(compared.accuracies), ctx.out),
        type_section(compared.results),
        curriculum_section(groups, findings, runs),
        measure_sections(measures, compared.results),
        frontier_section(measures, compared.accuracies, compared.folders, ctx.out),
        _write_costs(ctx, compared, trained, costs, curves, left_out),
        efficiency_section(efficiency),
        training_section(trainings),
        audit_section(audits, ctx.out),
        student_section(students, compared.accuracies, runs),
        teacher_section(against, runs),
    ]
    return Sections(
        text="\n\n".join(part for part in parts if part),
        costs=costs,
        levels=compared.levels,
        efficiency=efficiency,
        against=against,
        trainings=trainings,
        measures=measures,
        students=students,
    )


def _write_costs(
    ctx: StageContext,
    compared: Compared,
    trained: Mapping[str, Any],
    costs: Costs,
    curves: Sequence[Curve],
    left_out: Mapping[str, str],
) -> str:
    """Write curves, efficiency and timing of the compared policies; returns the report's sections on them."""
    from utils.comparison.topics import cost_plots, timing
    from utils.comparison.topics.cost import mean_count
    from utils.comparison.topics.cost_report import CURVES, EFFICIENCY, TIMING, cost_section
    from utils.comparison.topics.curves import COLUMNS, curve_rows
    from utils.frame.files import write_csv, write_text

    accuracies, times = compared.accuracies, timing.times_of(trained)
    sft = [name for name, of_policy in trained.items() if of_policy[0].is_sft]
    figures = []
    if any(curve.kind != "level" for curve in curves):
        figures.append(CURVES)
        cost_plots.plot_curves(curves, list(accuracies), ctx.out / CURVES)
    write_csv(ctx.out / "curves.csv", curve_rows(curves, trained), COLUMNS)
    others = [name for name in trained if name not in sft]
    if any(mean_count(costs[name], "trained_tokens") is not None for name in others):
        figures.append(EFFICIENCY)
        cost_plots.plot_efficiency(accuracies, costs, sft, ctx.out / EFFICIENCY)
    timed = any(timing.mean_seconds(times[name], "total") is not None for name in others)
    if timed:
        cost_plots.plot_timing(accuracies, times, sft, ctx.out / "timing.png")
    write_csv(ctx.out / "timing.csv", timing.timing_rows(trained, times), timing.COLUMNS)
    write_text(ctx.out / TIMING, timing.render_timing(trained, times, "timing.png" if timed else ""))
    ids = {name: of_runs[0].ids for name, of_runs in compared.results.items()}
    return cost_section(trained, costs, ids, curves, left_out, figures)
