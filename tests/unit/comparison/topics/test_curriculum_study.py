"""Sample efficiency, levels held out, the teacher's columns and the curriculum study of a comparison."""

import csv
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tests.support.finished_runs import pretend_finished
from tests.support.scripts import execute_stage
from utils.comparison.estimates import Estimate
from utils.comparison.topics.curriculum_study import curriculum_groups, curriculum_of
from utils.comparison.topics.sample_efficiency import first_reached, geometric_mean, sample_efficiency
from utils.comparison.topics.validation_curves import Curve, Point
from utils.frame.files import dump_json, write_csv, write_json, write_jsonl
from utils.frame.manifest import describe, describe_outputs
from utils.statistics.accuracy_tests import rate


def points(*pairs):
    return [Point(step, x, 0.0, y) for step, (x, y) in enumerate(pairs)]


@pytest.mark.parametrize(
    ("curve", "target", "expected"),
    [
        (points((0, 0.5), (100, 0.7)), 0.6, 50.0),
        (points((0, 0.5), (100, 0.6), (200, 0.9)), 0.6, 100.0),
        (points((0, 0.5), (100, 0.4), (200, 0.8)), 0.7, 175.0),
        (points((0, 0.5), (100, 0.8), (200, 0.2)), 0.65, 50.0),  # the first time counts
        (points((0, 0.5), (100, 0.6)), 0.61, None),
        (points((0, 0.5), (100, 0.6)), 0.5, 0.0),
        (points((80, 0.5), (80, 0.6)), 0.55, 80.0),  # all sampled before training, as for DPO
        ([], 0.5, None),
    ],
)
def test_completions_to_a_target(curve, target, expected):
    found = first_reached(curve, target)
    assert found is expected is None or found == pytest.approx(expected)


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0, 1)), min_size=1, max_size=8), st.floats(0, 1))
def test_the_curve_is_at_the_target_where_it_is_said_to_reach_it(steps, target):
    x = np.cumsum([step for step, _ in steps])
    y = np.array([value for _, value in steps])
    found = first_reached(points(*zip(x.tolist(), y.tolist(), strict=True)), target)
    if found is None:
        assert (y < target).all()
    else:
        assert np.interp(found, x, y) >= target - 1e-6 and x[0] <= found <= x[-1]
        # The sum guards against a slope so steep that the crossing lies at the validation before it.
        assert all(value < target for at, value in zip(x, y, strict=True) if at < found - 1e-6)


def test_geometric_mean_and_its_interval():
    values = [1000.0, 2000.0, 3000.0]
    found = geometric_mean(values)
    mean, (low, high) = found.value, found.ci95
    expected = stats.ttest_1samp(np.log(values), 0).confidence_interval(0.95)
    assert mean == pytest.approx(math.prod(values) ** (1 / 3))
    assert (low, high) == pytest.approx((math.exp(expected.low), math.exp(expected.high)))
    for alike in ([5.0], [5.0, 5.0]):
        assert geometric_mean(alike) == Estimate(pytest.approx(5.0))


def test_the_target_is_a_fraction_of_the_best_mean():
    grpo = Curve("grpo", "line", [points((0, 0.4), (100, 0.8)), points((0, 0.4), (100, 0.6))])
    ppo = Curve("ppo", "line", [points((0, 0.4), (100, 1.0)), points((0, 0.4), (100, 0.5))])
    sft = Curve("sft", "level", [points((0, 0.99))] * 2)  # samples nothing: sets no target
    found = sample_efficiency([sft, grpo, ppo], 0.8)
    assert (found.best, found.best_policy) == (pytest.approx(0.75), "ppo")
    assert found.target == pytest.approx(0.6) and set(found.reached) == {"grpo", "ppo"}
    assert found.reached["grpo"].by_run == [pytest.approx(50), pytest.approx(100)]
    assert found.reached["grpo"].mean.value == pytest.approx(math.sqrt(5000))
    assert found.reached["ppo"].by_run[1] is None and found.reached["ppo"].mean is None
    assert sample_efficiency([sft], 0.8) is None


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("grpo", ("grpo", "random")),
        ("grpo_sec", ("grpo", "sec")),
        ("ppo_intrinsic_easy_to_hard", ("ppo_intrinsic", "easy_to_hard")),
        ("run_001/distill_pass_rate", ("run_001/distill", "pass_rate")),
        ("mine_sec", ("mine_sec", "random")),
        ("grpo_sector", ("grpo_sector", "random")),
    ],
)
def test_names_tell_the_curriculum(policy, expected):
    assert curriculum_of(policy) == expected


def test_groups_hold_variants_of_one_method_and_reward():
    names = ["sft", "distill_sec", "grpo_sec", "grpo", "grpo_task_sec", "grpo_task", "ppo", "b/grpo_sec"]
    groups = curriculum_groups(names)
    assert [(group.title, group.policies) for group in groups] == [
        ("grpo", {"random": "grpo", "sec": "grpo_sec"}),
        ("grpo_task", {"random": "grpo_task", "sec": "grpo_task_sec"}),
    ]


# ------------------------------------------------------------------------------------------- in stage 11

LEVELS = [1, 1, 2, 2, 3] * 8  # level 3 is held out


def write_policy(run_dir, policy, seed, right, agreement, curve=()):
    """An evaluation, right on the items that ``right`` names, and the training it rests on."""
    folder = run_dir / "10_evaluation" / policy
    rows = [
        {"id": f"t-{i}", "correct": int(i in right), "level": level, "gold": "1"}
        for i, level in enumerate(LEVELS)
    ]
    write_csv(folder / "breakdown.csv", rows, list(rows[0]))
    counts = {level: [i for i, at in enumerate(LEVELS) if at == level] for level in (1, 2, 3)}
    trained = counts[1] + counts[2]

    def share(items):
        return rate(len(right & set(items)), len(items))

    def around(value):
        return {"value": value, "ci95": [value - 0.01, value + 0.01], "n": len(LEVELS)}

    teacher = {"items": 40, "tokens": 400, "left_out": 0, "top1_agreement": around(agreement)}
    teacher |= {"forward_kl": around(0.25), "reverse_kl": around(0.5), "jsd": around(0.05)}
    metrics = {
        "schema_version": 1,
        "policy": policy,
        "dataset": "sample",
        "split": "test",
        "n": len(LEVELS),
        "missing": {"count": 0, "ids": []},
        "accuracy": share(range(40)),
        "held_out_levels": [3],
        "accuracy_trained_levels": share(trained),
        "accuracy_held_out_levels": share(counts[3]),
        "failure_reasons": {},
        "teacher": {"on_responses": teacher, "on_gold": teacher},
    }
    write_json(folder / "metrics.json", metrics)
    stage = {"sft": "03_sft"}.get(policy, "06_" + policy)
    if curve:
        write_jsonl(run_dir / stage / "logs" / "metrics.jsonl", curve)
        (run_dir / stage / f"ckpt_{stage[3:7]}" / "best").mkdir(parents=True, exist_ok=True)
        (run_dir / stage / f"ckpt_{stage[3:7]}" / "best" / "w").touch()
        finish(run_dir, stage, seed, {})
    best = f"{stage}/ckpt_{stage[3:7]}/best"
    checkpoint = {best: describe(run_dir / best)} if curve else {}
    finish(run_dir, f"10_evaluation/{policy}", seed, checkpoint)


def finish(run_dir, stage, seed, inputs):
    pretend_finished(run_dir / stage)
    manifest = {
        "schema_version": 1,
        "stage": stage.split("/")[0],
        "variant": "",
        "run_id": run_dir.name,
        "seed": seed,
        "config": {},
        "inputs": inputs,
        "outputs": describe_outputs(run_dir / stage, run_dir),
        "metrics": {"cost": {"sampled_completions": 200, "generated_tokens": 10, "trained_tokens": 10}},
        "environment": {"git_commit": "a"},
    }
    (run_dir / stage / "manifest.json").write_text(dump_json(manifest))


def log(*accuracies):
    return [
        {"step": step, "sampled_completions": 100 * step, "val_reward": value, "val_accuracy": value}
        for step, value in enumerate(accuracies)
    ]


@pytest.fixture()
def outputs(tmp_path):
    for seed in (0, 1):
        run_dir = tmp_path / f"s{seed}"
        write_policy(run_dir, "base", seed, set(), 0.5)
        write_policy(run_dir, "grpo", seed, set(range(10 + seed)), 0.8, log(0.2, 0.3, 0.4))
        write_policy(run_dir, "grpo_sec", seed, set(range(36 - seed)), 0.9 + 0.02 * seed, log(0.2, 0.6, 0.8))
    return tmp_path


def compare(outputs, *more):
    return execute_stage("11_compare_runs.py", ["--outputs_root", str(outputs), *more])


def summary(folder):
    with open(folder / "summary.csv", encoding="utf-8", newline="") as file:
        return {row["policy"]: row for row in csv.DictReader(file)}


@pytest.mark.slow
def test_one_run_reports_curricula_levels_teacher_and_efficiency(outputs):
    assert compare(outputs, "--run_id", "s0", "--efficiency_fraction", "0.75") == 0
    folder = outputs / "s0" / "11_comparison"
    rows, report = summary(folder), (folder / "report.md").read_text()
    sec, base = rows["grpo_sec"], rows["base"]
    # 0.75 of 0.8 is 0.6, which sec has after 100 completions and grpo never.
    assert float(sec["target_val_accuracy"]) == pytest.approx(0.6)
    assert float(sec["completions_to_target"]) == pytest.approx(100)
    assert rows["grpo"]["completions_to_target"] == "" and rows["grpo"]["seeds_reaching_target"] == "0 of 1"
    assert "| grpo | > 200 |" in report and "| grpo_sec | 100 |" in report
    # Right are items 0 … 35 of 40: of level 3, items 4, 9, … 34, 7 of 8; 29 of the other 32.
    assert float(sec["accuracy_held_out_levels"]) == pytest.approx(7 / 8)
    assert float(sec["accuracy_trained_levels"]) == pytest.approx(29 / 32)
    assert float(sec["accuracy_level_3"]) == pytest.approx(7 / 8)
    assert float(sec["accuracy_level_1_low"]) == pytest.approx(rate(15, 16)["ci95"][0])
    assert "level 3, held out (n = 8)" in report and "Level 3 was held out" in report
    assert (float(sec["responses_top1_agreement"]), float(base["gold_forward_kl"])) == (0.9, 0.25)
    assert float(sec["responses_top1_agreement_high"]) == pytest.approx(0.91)
    assert "| base | 50.0 % (49.0–51.0) | 0.25 (0.24–0.26) |" in report
    assert "### grpo\n\nThe tests support, against random: sec better." in report
    assert "| sec | 90.0 % (" in report and "+65.0 (" in report
    assert (folder / "curriculum.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_over_seeds_they_are_means_with_intervals(outputs):
    assert compare(outputs, "--run_id", "both", "--by_seed", "--runs", "s0,s1") == 0
    folder = outputs / "both" / "11_comparison"
    rows, report = summary(folder), (folder / "report.md").read_text()
    sec = rows["grpo_sec"]
    assert float(sec["responses_top1_agreement"]) == pytest.approx(0.91)
    half = stats.t.ppf(0.975, 1) * np.std([0.9, 0.92], ddof=1) / math.sqrt(2)
    assert float(sec["responses_top1_agreement_low"]) == pytest.approx(0.91 - half)
    assert float(sec["responses_top1_agreement_high"]) == 1.0  # no interval beyond what there can be
    # 0.9 of 0.8: between 0.6 at 100 and 0.8 at 200 completions, with both seeds.
    assert float(sec["completions_to_target"]) == pytest.approx(160)
    assert sec["seeds_reaching_target"] == "2 of 2"
    # A group of one level has that level's interval.
    for end in ("", "_low", "_high"):
        assert sec[f"accuracy_held_out_levels{end}"] == sec[f"accuracy_level_3{end}"]
    assert "## Curricula" in report and "mean over 2 seeds" in report
    first = (folder / "curriculum.png").read_bytes()
    assert compare(outputs, "--run_id", "both", "--by_seed", "--runs", "s0,s1", "--overwrite") == 0
    assert (folder / "curriculum.png").read_bytes() == first


@pytest.mark.usefixtures("unrendered")
def test_without_curricula_there_is_no_such_section(outputs):
    assert compare(outputs, "--run_id", "s0", "--policies", "base,grpo") == 0
    folder = outputs / "s0" / "11_comparison"
    assert "## Curricula" not in (folder / "report.md").read_text()
    assert not (folder / "curriculum.png").exists()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["config"]["options"]["efficiency_fraction"] == 0.9


@pytest.mark.parametrize("fraction", ["0", "1.01", "-1"])
def test_an_impossible_fraction_is_refused(outputs, capsys, fraction):
    assert compare(outputs, "--run_id", "s0", "--efficiency_fraction", fraction) == 2
    assert "efficiency_fraction must be above 0 and at most 1" in capsys.readouterr().err
