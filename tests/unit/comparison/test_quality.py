"""What a comparison says besides accuracies: samples, reasoning, rewards, KL, teacher, changed items."""

import json
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.comparisons import comparison_of, text_of
from tests.support.finished_runs import write_evaluation, write_methods, write_stage
from tests.support.policy_results import LEVELS, answers, experiment, result
from tests.support.scripts import execute_stage
from utils.comparison.paired import compare_all
from utils.comparison.report import summary_table, table_by_run
from utils.comparison.topic import Topic
from utils.comparison.topics import levels, measures, problem_types, students
from utils.comparison.topics.difference_tests import change_rows, seed_change_rows
from utils.comparison.topics.frontier import frontier
from utils.comparison.topics.measures import measures_of
from utils.comparison.topics.problem_types import accuracies_by_type
from utils.comparison.topics.students import students_of
from utils.frame.files import read_json, write_json
from utils.statistics.accuracy_tests import rate, wilson_interval


def number(value, low=None, high=None, n=60):
    return {"value": value, "ci95": None if low is None else [low, high], "n": n}


def measured(kl=0.5, total=0.7, samples=8):
    """The optional parts of metrics.json."""
    return {
        "samples": {
            "num_samples": samples,
            "temperature": 1.0,
            "top_p": 0.95,
            "pass_at_k": {"1": number(0.5, 0.4, 0.6), "2": number(0.6, 0.5, 0.7), "10": number(0.9, 0.8, 1)},
            "majority_at_k": {"1": number(0.5, 0.4, 0.6)},
        },
        "reasoning": {"step_coverage": number(0.8, 0.7, 0.9)},
        "rewards": {"exact_match": number(0.6, 0.5, 0.7), "total": number(total, total - 0.1, total + 0.1)},
        "reference": {
            "on_responses": {
                "items": 60,
                "tokens": 600,
                "reverse_kl": number(kl / 10, kl / 20, kl / 5),
                "kl_per_text": number(kl, kl / 2, 2 * kl),
            }
        },
    }


GRPO = result("grpo", answers(40), LEVELS, **measured())
OLD = result("sft", answers(20), LEVELS)  # evaluated before any of it was measured


# ------------------------------------------------------------------------------------------- measures


def test_every_part_has_its_columns_and_old_evaluations_are_left_blank():
    topic = measures.topic(comparison_of({"sft": [OLD], "grpo": [GRPO]}))
    rows, columns = summary_table({"measures": topic})
    assert [name for name in columns if not name.endswith(("_low", "_high"))] == [
        *("pass_at_1", "pass_at_2", "pass_at_10", "majority_at_1", "reasoning_step_coverage"),
        *("reward_exact_match", "reward_total", "reference_kl_per_token", "reference_kl_per_response"),
    ]
    assert (rows[1]["pass_at_10"], rows[1]["pass_at_10_low"]) == (0.9, 0.8)
    assert (rows[1]["reference_kl_per_response"], rows[1]["reference_kl_per_token_high"]) == (0.5, 0.1)
    assert set(rows[0]) == set(columns) and set(rows[0].values()) == {""}
    text = text_of(topic)
    assert "| grpo | 50.0 % (40.0–60.0) | 60.0 % (50.0–70.0) | 90.0 % (80.0–100.0) |" in text
    assert "Sampled with num_samples 8, temperature 1, top_p 0.95." in text
    assert text.count("Not measured in the evaluation of sft.") == 3


def test_nothing_measured_is_no_column_and_no_section():
    topic = measures.topic(comparison_of({"sft": [OLD]}))
    assert measures_of({"sft": [OLD]}) == {} and text_of(topic) == ""
    assert topic.columns == {"sft": {}} and topic.by_run == {"sft": [{}]}


def test_policies_that_were_sampled_differently_are_said_to_be():
    other = result("rloo", answers(40), **measured(samples=4))
    comparison = comparison_of({"grpo": [GRPO], "rloo": [other]})
    assert "**Not sampled alike** (num_samples 4, " in text_of(measures.topic(comparison))


def test_over_seeds_it_is_the_mean_with_a_t_interval_within_the_possible():
    runs = [result("grpo", answers(40), **measured(kl=kl, total=kl - 1)) for kl in (0.1, 0.5, 0.9)]
    of_grpo = {part: found["grpo"] for part, found in measures_of({"grpo": runs}).items()}
    kl = of_grpo["reference"]["kl_per_response"]
    half = 4.302652729911275 * 0.4 / np.sqrt(3)
    assert kl.value == pytest.approx(0.5) and kl.ci95 == (0.0, pytest.approx(0.5 + half))
    assert of_grpo["rewards"]["total"].ci95[0] == pytest.approx(-0.5 - half)  # a reward may be negative
    assert of_grpo["reasoning"]["step_coverage"].ci95 is None  # the runs do not differ
    lacking = [*runs[:2], OLD]
    assert measures_of({"grpo": lacking}) == {}  # never a mean over some of the seeds
    rows, columns = table_by_run({"measures": measures.topic(comparison_of({"grpo": lacking}))})
    assert [row["reference_kl_per_response"] for row in rows] == [0.1, 0.5, ""]
    assert all(set(row) == set(columns) for row in rows)


def test_a_measure_that_is_null_is_not_measured():
    nothing = result("grpo", answers(40), reasoning={"step_coverage": None}, reference={"on_responses": {}})
    assert measures_of({"grpo": [nothing]}) == {}


# ------------------------------------------------------------------------------------------- frontier


@given(st.dictionaries(st.sampled_from("abcdef"), st.tuples(*[st.integers(0, 4)] * 2), min_size=1))
def test_the_frontier_is_what_no_other_policy_beats(points):
    def beats(x, y):
        return x[0] <= y[0] and x[1] >= y[1] and x != y

    slow = {name for name in points if not any(beats(points[other], points[name]) for other in points)}
    found = frontier(points)
    assert set(found) == slow and [points[name][0] for name in found] == sorted(points[n][0] for n in slow)
    values = [points[name][1] for name in found]
    assert values == sorted(values)


AUDIT = {
    "components": {
        name: {
            "auroc": number(0.9, 0.8, 1.0) | {"reason": None},
            "pair_accuracy": {"value": None, "ci95": None, "reason": "no pairs"},
            "length": {
                "all": number(-0.1, -0.2, 0.1) | {"reason": None},
                "wrong": {"value": None, "ci95": None, "reason": "no wrong ones"},
            },
        }
        for name in ("exact_match", "total")
    },
    "counts": {"candidates": 8, "prompts": 2, "right": 4, "mixed_prompts": 1, "pairs": 4},
    "levels": {},
    "warnings": [],
}


@pytest.fixture()
def outputs(tmp_path):
    """Two seeds of SFT, PPO and GRPO, of which everything is measured, with a reward audit."""
    for seed in range(2):
        run = write_methods(tmp_path / f"s{seed}", seed, policies=())
        for policy, right, kl in (("sft", 20, 0.0), ("ppo", 45, 3.0), ("grpo", 40, 0.5)):
            stage = {"sft": "03_sft", "ppo": "05_ppo", "grpo": "06_grpo"}[policy]

            def write(folder, policy=policy, right=right, kl=kl, seed=seed):
                write_evaluation(folder, policy, right + seed)
                more = measured(kl=kl + 0.1 * seed, total=right / 60)
                write_json(folder / "metrics.json", read_json(folder / "metrics.json") | more)

            weights = (f"{stage}/ckpt_{policy}/best", f"{policy}-{seed}")
            spec = ("02_rewards/reward_spec.yaml", "spec")
            inputs = ["01_preprocessing/test.jsonl", weights, spec]
            write_stage(run, f"10_evaluation/{policy}", seed, inputs=inputs, write=write)
        write_stage(
            run, "02_rewards_audit", seed, write=lambda out: write_json(out / "reward_audit.json", AUDIT)
        )
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [False, True])
def test_figures_and_sections_of_a_whole_comparison(outputs, seeds):
    over = ["--by_seed", "--runs", "s*", "--run_id", "c"] if seeds else ["--run_id", "s0"]
    assert execute_stage("11_compare_runs.py", ["--outputs_root", str(outputs), *over]) == 0
    out = outputs / ("c" if seeds else "s0") / "11_comparison"
    report = (out / "report.md").read_text()
    for name in ("level_heatmap.png", "frontier.png", "reward_audit.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG") and f"({name})" in report
    titles = [line[3:] for line in report.splitlines() if line.startswith("## ")]
    expected = ["Levels", "Sampled answers", "Reasoning quality", "Rewards", "KL against reward"]
    assert [title for title in titles if title in expected] == expected
    assert {"Stability and convergence", "Reward audit"} <= set(titles)
    assert "these are sft, grpo and ppo." in report
    assert report.count("\n\n\n") == 0


@pytest.mark.usefixtures("unrendered")
def test_total_rewards_of_different_specifications_are_not_drawn(outputs):
    for policy in ("sft", "ppo"):
        path = outputs / "s0" / "10_evaluation" / policy / "manifest.json"
        manifest = read_json(path)
        manifest["inputs"]["02_rewards/reward_spec.yaml"]["sha256"] = policy
        write_json(path, manifest)
    assert execute_stage("11_compare_runs.py", ["--outputs_root", str(outputs), "--run_id", "s0"]) == 0
    report = (outputs / "s0" / "11_comparison" / "report.md").read_text()
    assert "follow different specifications and are not comparable" in report


def test_equal_numbers_give_an_equal_heat_map_and_a_part_without_items_a_dash(tmp_path):
    small = result("x", answers(3)[:3], [1, 1, 1])
    for name in ("a", "b"):
        topic = levels.topic(comparison_of({"grpo": [GRPO], "x": [small]}))
        topic.files["level_heatmap.png"](tmp_path / f"{name}.png")
    assert topic.columns["x"] | {"accuracy_level_2": ""} == topic.columns["x"]
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


# ------------------------------------------------------------------------------------ student, teacher


TEACHER = result("teacher", [1] * 40 + [0] * 20)


def test_what_a_student_keeps_of_its_teacher_and_adds():
    student = result("ppo", [1] * 30 + [0] * 10 + [1] * 5 + [0] * 15)
    found = students_of({"ppo": [student], "teacher": [TEACHER]})
    assert list(found) == ["ppo"]
    kept, added = rate(30, 40), rate(5, 20)
    assert (found["ppo"].kept.value, found["ppo"].kept.ci95) == (kept["value"], tuple(kept["ci95"]))
    assert (found["ppo"].added.value, found["ppo"].added.n) == (added["value"], 20)
    topic = students.topic(comparison_of({"ppo": [student], "teacher": [TEACHER]}))
    text = text_of(topic)
    assert "| ppo | teacher | -8.3 | 75.0 % (59.8–85.8), n = 40 | 25.0 %" in text
    assert topic.columns["ppo"]["kept_of_teacher"] == 0.75 and list(topic.columns) == ["ppo"]


def test_every_run_has_its_own_teacher_and_no_teacher_no_section():
    names = [f"{run}/{policy}" for run, policy in product(("a", "b"), ("sft", "teacher"))]
    found = students_of({name: [TEACHER] for name in names})
    assert {name: each.teacher for name, each in found.items()} == {
        "a/sft": "a/teacher",
        "b/sft": "b/teacher",
    }
    assert students_of({"sft": [TEACHER], "a/teacher": [TEACHER]})["sft"].teacher == "a/teacher"
    assert students_of({"sft": [OLD]}) == {} and students.topic(comparison_of({"sft": [OLD]})) == Topic()


def test_a_teacher_that_is_always_right_leaves_nothing_to_add():
    perfect = result("teacher", [1] * 60)
    found = students_of({"sft": [OLD], "teacher": [perfect]})["sft"]
    assert found.added is None and found.kept.value == pytest.approx(20 / 60)


# --------------------------------------------------------------------------------------------- changes


def test_changes_are_the_items_that_the_pairs_count():
    b = result("grpo", [0] * 10 + [1] * 30 + [0] * 20)
    pairs = compare_all([result("sft", answers(20)), b, result("ppo", answers(60))], 0)
    rows = list(change_rows(pairs))
    assert len(rows) == sum(len(pair.fixed) + len(pair.broken) for pair in pairs)
    assert [row["id"] for row in rows if (row["b"], row["change"]) == ("grpo", "broken")] == [
        f"test-{i}" for i in range(10)
    ]
    json.dumps(rows)


def test_changes_of_seeds_are_those_of_each_seed():
    found = experiment(sft=(20, 21), ppo=(24, 19))
    rows = [(row["seed"], row["id"], row["change"]) for row in seed_change_rows(found)]
    fixed = [(0, f"test-{i}", "fixed") for i in range(20, 24)]
    assert rows == fixed + [(1, f"test-{i}", "broken") for i in (19, 20)]


def test_types_have_a_row_each_and_their_means_over_runs():
    def of(*rights):
        return {"accuracy_by_type": {name: rate(right, 20) for name, right in rights}}

    a = [result("a", answers(20), LEVELS, **of(("sum", 10), ("ratio", 5), ("odd", 1)))]
    b = [result("b", answers(20), LEVELS, **of(("sum", 20), ("ratio", 0)))]
    section = text_of(problem_types.topic(comparison_of({"a": a, "b": b})))
    rows = {line.split(" | ")[0].strip("| "): line for line in section.splitlines() if line.startswith("| ")}
    low, high = wilson_interval(10, 20)
    assert f"| 20 | 50.0 % ({100 * low:.1f}–{100 * high:.1f}) | 100.0 %" in rows["sum"]
    assert rows["odd"].endswith("| – |")  # b has no item of that type
    with_old = text_of(problem_types.topic(comparison_of({"a": a[:1], "c": [OLD]})))
    assert "Wilson" in section and with_old.count("\n| ") == 5

    seeds = [*a, result("a", answers(20), LEVELS, **of(("sum", 14), ("ratio", 5)))]
    found = accuracies_by_type({"a": seeds})
    assert "odd" not in found and found["ratio"]["a"].ci95 is None  # no spread to judge by
    assert found["sum"]["a"].value == pytest.approx(0.6)
    assert found["sum"]["a"].ci95 == (0.0, 1.0)  # two seeds, four points of twenty apart: cut to the possible


def test_a_single_type_is_no_section():
    one = result("a", answers(20), LEVELS, accuracy_by_type={"": rate(3, 5)})
    for results in ({"a": [one]}, {"old": [OLD]}):
        assert problem_types.topic(comparison_of(results)) == Topic()
