"""Curves of training against completions: points counted by hand, drawn where they belong."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from tests.support.finished_runs import (
    RIGHT,
    compare_methods,
    folders_in,
    log_of,
    trained,
    write_methods,
    write_stage,
)
from utils.comparison.estimates import Estimate
from utils.comparison.lineage import training_logs
from utils.comparison.topic import Comparison, styles_of
from utils.comparison.topics import validation_curves
from utils.comparison.topics.method_cost import SIDE_BY_SIDE, WIDTH, MethodCost, apart, plot_efficiency
from utils.comparison.topics.timing import Seconds, plot_timing
from utils.comparison.topics.validation_curves import (
    Curve,
    Point,
    curves_note,
    draw_curve,
    plot_curves,
    read_curves,
)
from utils.frame.files import UserError, read_csv, write_json, write_jsonl
from utils.frame.manifest import describe_outputs
from utils.frame.pipeline import FAMILIES, POLICIES


def relog(run, stage, rows):
    """Give a stage another log, as if it had always been so."""
    write_jsonl(run / stage / "logs" / "metrics.jsonl", rows)
    path = run / stage / "manifest.json"
    write_json(path, json.loads(path.read_text()) | {"outputs": describe_outputs(run / stage, run)})


def test_points_are_the_validations_at_the_completions_sampled_by_then(outputs):
    curves, left_out = read_curves(trained(outputs / "s0", outputs / "s2"))
    assert left_out == {"base": "which was not trained in its run"}
    assert [(curve.policy, curve.kind) for curve in curves] == [
        ("sft", "level"),
        ("ppo", "line"),
        ("grpo", "line"),
        ("dpo", "bar"),
    ]
    sft, ppo, _, dpo = curves
    assert ppo.by_run[0] == [Point(0, 0, 0.3 - 0.1, 0.3), Point(8, 32, 0.4, 0.5), Point(16, 64, 0.5, 0.6)]
    assert [[point.val_accuracy for point in points] for points in ppo.shared()] == [
        [0.3, 0.3],
        [0.5, 0.6],
        [0.6, 0.8],
    ]
    # DPO's completions are those of 04, all there before its first step.
    assert [point.sampled_completions for points in dpo.by_run for point in points] == [64] * 6
    assert [points[0].step for points in sft.by_run] == [16, 16] and len(sft.by_run[0]) == 1


def test_sft_is_shown_at_its_best_checkpoint_the_earliest_of_equals(outputs):
    rewards = [0.1, 0.6, 0.6, 0.4]
    rows = [{"step": 10 * i, "val_reward": r, "val_accuracy": r} for i, r in enumerate(rewards)]
    relog(outputs / "s0", "03_sft", rows)
    curves, _ = read_curves(trained(outputs / "s0", policies=("sft",)))
    assert curves[0].by_run == [[Point(10, 0, 0.6, 0.6)]]


def test_policies_without_a_training_log_are_left_out_by_name(outputs):
    run = outputs / "s0"
    relog(
        run, "05_ppo", [{k: v for k, v in r.items() if k != "sampled_completions"} for r in log_of("05", 0)]
    )
    (run / "09_dpo" / "logs" / "metrics.jsonl").unlink()
    inputs = ["01_preprocessing/test.jsonl"]
    write_stage(run, "10_evaluation/grpo_step_8", 0, inputs=[*inputs, "06_grpo/ckpt_grpo/step_8"])
    write_stage(run, "10_evaluation/outside", 0, inputs=[*inputs, "external/best"])
    policies = (*RIGHT, "grpo_step_8", "outside")
    found = trained(run, policies=policies)
    curves, left_out = read_curves(found)
    assert [curve.policy for curve in curves] == ["sft", "grpo"]
    assert left_out == {
        "base": "which was not trained in its run",
        "ppo": "as the log of 05_ppo does not say how many completions were sampled",
        "dpo": "whose 09_dpo has no log",
        "grpo_step_8": "which is a checkpoint of the training shown as grpo",
        "outside": "which was not trained in its run",
    }
    assert "Not shown: dpo, whose 09_dpo has no log." in curves_note(curves, left_out)
    assert list(training_logs(found)) == [
        f"s0/{stage}:metrics.jsonl" for stage in ("03_sft", "05_ppo", "06_grpo")
    ]


def test_dpo_is_not_placed_where_its_candidates_were_not_counted(tmp_path):
    run = write_methods(tmp_path / "old", 0, counts={"04_candidates": None})
    _, left_out = read_curves(trained(run))
    assert "dpo" in left_out and "ppo" not in left_out


@pytest.mark.parametrize(
    "row", [{"val_reward": 1.0}, {"val_reward": "high", "val_accuracy": 1}, {"val_reward": float("nan")}]
)
def test_a_validation_that_cannot_be_read_names_the_log(outputs, row):
    path = outputs / "s0" / "06_grpo" / "logs" / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1, "sampled_completions": 8, "val_accuracy": 0.5, **row}) + "\n")
    if "val_accuracy" not in row and row["val_reward"] == 1.0:
        path.write_text(json.dumps({"step": 1, "sampled_completions": 8, "val_reward": 1.0}) + "\n")
    with pytest.raises(UserError, match="06_grpo/logs/metrics.jsonl: a validation row cannot be read"):
        read_curves(trained(outputs / "s0", policies=("grpo",)))


def test_validations_that_not_every_seed_has_are_not_averaged_and_that_is_said(outputs):
    relog(outputs / "s1", "06_grpo", list(log_of("06_grpo", 1))[:4])
    found = trained(outputs / "s0", outputs / "s1", policies=("ppo", "grpo"))
    curves, _ = read_curves(found)
    assert [[points[0].sampled_completions for points in curve.shared()] for curve in curves] == [
        [0, 32, 64],
        [0, 32],
    ]
    assert "Of grpo, validations that not every seed has" in curves_note(curves, {})


@pytest.mark.slow
@pytest.mark.usefixtures("unrendered")
def test_the_stage_reads_the_logs_as_verified_inputs(outputs, capsys):
    assert compare_methods(outputs) == 0
    out = outputs / "seeds" / "11_comparison"
    inputs = json.loads((out / "manifest.json").read_text())["inputs"]
    assert sum("metrics.jsonl" in name for name in inputs) == 12 and len(inputs) == 12 + 2 * 15
    rows = read_csv(out / "curves.csv")
    assert len(rows) == 3 * (1 + 3 + 3 + 3)
    assert [tuple(row.values()) for row in rows[3:6]] == [
        ("ppo", "0", "0", "0", "0.19999999999999998", "0.3"),
        ("ppo", "0", "8", "32", "0.4", "0.5"),
        ("ppo", "0", "16", "64", "0.5", "0.6"),
    ]
    report = (out / "report.md").read_text()
    assert "Mean over 3 seeds; a band reaches from the lowest seed to the highest." in report
    assert "dpo had all completions sampled before training" in report and "(curves.png)" in report
    with open(outputs / "s1" / "05_ppo" / "logs" / "metrics.jsonl", "a") as file:
        file.write("\n")
    assert compare_methods(outputs) == 2
    said = capsys.readouterr().err
    assert "05_ppo/logs/metrics.jsonl has changed" in said and "05_train_ppo.py" in said


@pytest.mark.slow
@pytest.mark.usefixtures("unrendered")
def test_one_seed_has_lines_without_bands_and_says_nothing_of_seeds(outputs):
    assert compare_methods(outputs, seeds=False) == 0
    training = (outputs / "s0" / "11_comparison" / "report.md").read_text().split("## Training")[1]
    training = training.split("##")[0]
    assert "seed" not in training and "Dashed: sft, best checkpoint." in training


# --------------------------------------------------------------------------------------------- figures


def drawn(curve, key="val_accuracy", scale=100):
    axis = Figure().subplots()
    draw_curve(axis, curve, key, scale, styles_of([curve.policy])[curve.policy])
    return axis


def points(*values, x=(0, 10, 20)):
    return [Point(i, at, value, value) for i, (at, value) in enumerate(zip(x, values, strict=True))]


def test_a_line_is_the_mean_and_its_band_reaches_from_lowest_to_highest_seed():
    axis = drawn(Curve("ppo", "line", [points(0.1, 0.3, 0.8), points(0.1, 0.5, 0.6), points(0.1, 0.7, 0.4)]))
    assert axis.lines[0].get_xydata().ravel().tolist() == pytest.approx([0, 10, 10, 50, 20, 60])
    (band,) = axis.collections
    corners = band.get_paths()[0].vertices
    reach = {x: [y for at, y in corners if at == x] for x in (0, 10, 20)}
    assert [min(reach[x]) for x in reach] == pytest.approx([10, 30, 40])
    assert [max(reach[x]) for x in reach] == pytest.approx([10, 70, 80])
    alone = drawn(Curve("ppo", "line", [points(0.1, 0.3, 0.8)]))
    assert not alone.collections and alone.lines[0].get_ydata().tolist() == pytest.approx([10, 30, 80])


def test_dpo_stands_at_its_candidates_with_the_range_of_its_training():
    at = (64, 64, 64)
    axis = drawn(Curve("dpo", "bar", [points(0.3, 0.2, 0.5, x=at), points(0.4, 0.6, 0.7, x=at)]))
    assert axis.lines[0].get_xydata().tolist() == [[64, pytest.approx(60)]]
    (bar,) = axis.collections
    assert sorted(bar.get_segments()[0][:, 1]) == pytest.approx([20, 70])
    # Equal values whose mean rounds below them must not make a bar of negative length.
    drawn(Curve("dpo", "bar", [points(0.1, 0.1, 0.1, x=at)] * 3), scale=0.3)


def test_sft_is_a_level():
    axis = drawn(Curve("sft", "level", [points(0.4, x=(0,)), points(0.6, x=(0,))]))
    assert axis.lines[0].get_ydata() == pytest.approx([50, 50]) and axis.lines[0].get_linestyle() == "--"


def test_a_method_looks_the_same_in_every_company():
    alone = {name: styles_of([name])[name] for name in POLICIES}
    assert styles_of(list(POLICIES)) == alone
    assert len({style.colour for style in alone.values()}) == len({s.marker for s in alone.values()}) == 8
    families = ("base", "teacher", *FAMILIES)
    assert len({alone[name].colour for name in families}) == len(families)
    assert all(to_hex(style.colour).upper() == style.colour for style in alone.values())
    variants = ["sft", "ppo", "ppo_intrinsic", "ppo_task", "grpo", "mine"]
    found = styles_of(variants)
    assert len(set(found.values())) == 6 and all(
        found[name] == alone[name] for name in ("sft", "ppo", "grpo")
    )
    assert list(found) == variants  # the page counts on the order
    runs = styles_of(["run_1/grpo", "run_2/grpo"])
    assert runs["run_1/grpo"] == alone["grpo"] != runs["run_2/grpo"]
    assert styles_of(["a/grpo", "grpo"])["grpo"] == alone["grpo"]
    many = styles_of([f"policy_{i}" for i in range(20)])
    assert len(set(many.values())) == 20


@given(st.dictionaries(st.text("abcdefgh", min_size=1), st.floats(0, 1e6), min_size=1, max_size=9))
def test_markers_stand_apart_in_their_order_and_move_no_more_than_needed(means):
    gap = SIDE_BY_SIDE * WIDTH * max(means.values())
    places = apart(means)
    order = sorted(means, key=means.get)
    for first, second in zip(order, order[1:], strict=False):
        assert places[second] - places[first] >= gap * (1 - 1e-6) - 1e-9
    assert sum(places.values()) == pytest.approx(sum(means.values()), abs=1e-6)
    assert all(abs(places[name] - means[name]) <= gap * len(means) + 1e-9 for name in means)
    spread = {name: 10.0 * i for i, name in enumerate(means)}
    assert apart(spread) == pytest.approx(spread)


@pytest.mark.slow
def test_figures_are_the_same_bytes_and_hold_no_date(outputs, tmp_path):
    found = trained(outputs / "s0", outputs / "s1")
    curves, _ = read_curves(found)
    accuracies = {name: Estimate(right / 60, (right / 70, right / 60)) for name, right in RIGHT.items()}
    folders = folders_in(outputs / "s0", outputs / "s1")
    comparison = Comparison(folders, dict.fromkeys(RIGHT, ()), accuracies, [])
    costs = {name: [MethodCost(64, 10**8, 2)] for name in RIGHT} | {"base": [MethodCost(problem="none")]}
    times = {name: [Seconds(1.0, 2.0, 3.0, 7.0)] for name in RIGHT}
    times["grpo"], times["base"] = [Seconds(total=9.0)], [Seconds()]
    for folder in (tmp_path / "a", tmp_path / "b"):
        plot_curves(curves, comparison.styles, folder / "curves.png")
        plot_efficiency(comparison, costs, ["sft"], folder / "efficiency.png")
        plot_timing(comparison, times, ["sft"], folder / "timing.png")
        unsplit = {name: [Seconds(total=1.0)] for name in RIGHT}
        plot_timing(comparison, unsplit, [], folder / "no_split.png")
    for path in sorted((tmp_path / "a").iterdir()):
        data = path.read_bytes()
        assert data == (tmp_path / "b" / path.name).read_bytes()
        assert data.startswith(b"\x89PNG") and b"tEXt" not in data and b"tIME" not in data
    validation_curves.topic(comparison).files["curves.csv"](tmp_path / "curves.csv")
    assert len(read_csv(tmp_path / "curves.csv")) == 2 * (1 + 3 + 3 + 3)
