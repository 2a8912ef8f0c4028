"""Stability and convergence from training logs: against values worked out by hand and simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.comparison.lineage import Trained
from utils.comparison.report import summary_table, table_by_run
from utils.comparison.topic import Topic
from utils.comparison.topics.stability import (
    NUMBERS,
    crossing,
    late_spread,
    mean_of,
    topic_of,
    training_of,
    training_section,
    trainings_of,
)
from utils.documents.document import section_markdown
from utils.frame.files import UserError, write_json, write_jsonl

VALIDATIONS = [(0, 0.2), (8, 0.6), (16, 0.8), (24, 0.7), (32, 0.9)]


def log(rows=(), validations=VALIDATIONS, sampled=4):
    for step, share in validations:
        row = {"step": step, "val_accuracy": share, "val_reward": share}
        yield row | ({"sampled_completions": sampled * step} if sampled else {})
    yield from rows


def trained(tmp_path, rows, stage="06_grpo", name="r"):
    path = tmp_path / name / stage / "logs" / "metrics.jsonl"
    write_jsonl(path, rows)
    outputs = {f"{stage}/logs/metrics.jsonl": {}}
    write_json(path.parents[1] / "manifest.json", {"outputs": outputs})
    return Trained(tmp_path / name, 0, {stage: {"outputs": outputs}}, stage, "best")


def test_validations_by_hand(tmp_path):
    found = training_of(trained(tmp_path, log()))
    # The last quarter of 32 steps holds 24 and 32.
    assert found["plateau_val_accuracy"] == pytest.approx(0.8)
    # 95 % of the way from 0.2 to 0.8 is 0.77: between 8 (0.6) and 16 (0.8), 0.85 of the stretch.
    assert found["steps_to_plateau"] == pytest.approx(8 + 0.85 * 8)
    assert found["completions_to_plateau"] == pytest.approx(4 * (8 + 0.85 * 8))
    assert (found["best_val_step"], found["max_drawdown"], found["final_drop"]) == (32, pytest.approx(0.1), 0)


def test_what_samples_nothing_has_steps_alone_and_what_never_rises_has_no_plateau(tmp_path):
    sft = training_of(trained(tmp_path, log(sampled=0), "03_sft"))
    assert sft["completions_to_plateau"] is None and sft["steps_to_plateau"] == pytest.approx(14.8)
    falls = training_of(trained(tmp_path, log(validations=[(0, 0.8), (8, 0.5), (16, 0.6)]), name="f"))
    assert falls["steps_to_plateau"] is None and falls["best_val_step"] == 0
    assert (falls["max_drawdown"], falls["final_drop"]) == (pytest.approx(0.3), pytest.approx(0.2))
    one = training_of(trained(tmp_path, log(validations=[(0, 0.5)]), name="o"))
    assert one["plateau_val_accuracy"] is None and one["max_drawdown"] is None


def test_a_broken_validation_names_its_file(tmp_path):
    with pytest.raises(UserError, match="r/06_grpo/logs/metrics.jsonl: a validation row cannot be read"):
        training_of(trained(tmp_path, log(validations=[(0, 0.5), (8, None)])))


@given(st.lists(st.floats(0, 1), min_size=2, max_size=12), st.floats(0.05, 1))
def test_crossing_is_where_a_fine_walk_along_the_line_first_gets(values, share):
    x = np.arange(len(values)) * 10.0
    plateau = np.mean([v for at, v in zip(x, values, strict=True) if at >= 0.75 * x[-1]])
    found = crossing(x, values, share)
    if plateau - values[0] <= 1e-9:
        assert found is None
        return
    target = values[0] + share * (plateau - values[0])
    assert np.interp(found, x, values) >= target - 1e-6
    before = np.linspace(0, found, 400, endpoint=False)
    assert (np.interp(before, x, values) <= target + 1e-6).all()


def test_spread_is_that_of_the_noise_whatever_the_slope():
    rng = np.random.default_rng(0)
    x = np.arange(60)
    estimates = [late_spread(x, 0.02 * x + rng.normal(0, 0.3, 60)) ** 2 for _ in range(2000)]
    # The mean square with n - 2 degrees of freedom is unbiased: 0.09; the error is its Monte-Carlo one.
    assert np.mean(estimates) == pytest.approx(0.09, abs=4 * 0.09 * math.sqrt(2 / 28 / 2000))
    assert late_spread([*range(9), 50, 51], [2.0 * i for i in [*range(9), 50, 51]]) == pytest.approx(
        0, abs=1e-9
    )
    assert late_spread(range(7), [1.0] * 7) == pytest.approx(0, abs=1e-12)
    assert late_spread(range(6), [1.0] * 6) is None


def test_a_wild_beginning_is_not_late():
    wild = [0.0, 5.0] * 10
    assert late_spread(range(40), [*wild, *[1.0] * 20]) == pytest.approx(0, abs=1e-12)
    assert late_spread(range(40), [*[1.0] * 20, *wild]) > 2


def test_phantom_advantage_is_the_mean_of_the_later_half(tmp_path):
    rows = [{"step": i, "advantages/phantom": share} for i, share in enumerate((0.9, 0.1, 0.2, 0.4))]
    assert training_of(trained(tmp_path, rows))["phantom_advantage"] == pytest.approx(0.3)
    assert training_of(trained(tmp_path, log(), name="none"))["phantom_advantage"] is None


def test_gradient_spikes_and_looks_with_a_warning(tmp_path):
    norms = [1.0] * 60
    for at in (30, 40, 50):
        norms[at] = 50.0
    rows = [{"step": i, "grad_norm": norm, "reward": 0.1 * (i % 5)} for i, norm in enumerate(norms)]
    found = training_of(trained(tmp_path, rows))
    assert found["gradient_spikes"] == pytest.approx(3 / 40)
    assert "gradient_spikes" in found["health_findings"]
    # Looks after 10, 20, …, 60 rows; the third spike, which makes the rule speak, is in the last alone.
    assert found["warned_share"] == pytest.approx(1 / 6)
    calm = training_of(trained(tmp_path, [row | {"grad_norm": 1.0} for row in rows], name="calm"))
    assert (calm["gradient_spikes"], calm["warned_share"], calm["health_findings"]) == (0, 0, "")


@pytest.mark.parametrize(("warm_up", "said"), [(2, ""), (3, "warm_up_longer_than_training")])
def test_a_warm_up_as_long_as_the_training_is_found(tmp_path, warm_up, said):
    of_policy = trained(tmp_path, log(validations=[(0, 0.2), (3, 0.3)]), "03_rft")
    of_policy.stages["03_rft"]["config"] = {"algo": {"warmup_steps": warm_up}}
    assert training_of(of_policy)["health_findings"] == said


def test_numbers_that_are_not_finite_are_found_by_the_rule_and_spoil_no_other(tmp_path):
    rows = [{"step": i, "reward": math.nan if i == 15 else 1.0 + i, "loss": 0.1} for i in range(30)]
    path = trained(tmp_path, [])
    lines = "\n".join(str(row).replace("'", '"').replace("nan", "NaN") for row in rows)
    path.log.write_text(lines)
    found = training_of(path)
    assert "non_finite" in found["health_findings"] and found["late_reward_sd"] == pytest.approx(0, abs=1e-9)


def test_checkpoints_of_one_training_count_once_and_what_has_no_log_is_left_out(tmp_path):
    one = trained(tmp_path, log())
    base = Trained(tmp_path, 0, {}, "", "")
    assert list(trainings_of({"base": [base], "grpo": [one], "grpo_step_8": [one]})) == ["grpo"]


def training(**found):
    return dict.fromkeys((*NUMBERS, "health_findings")) | found


def test_means_over_seeds_and_columns():
    each = [training(plateau_val_accuracy=value, health_findings="kl_runaway") for value in (0.8, 0.9, 1.0)]
    mean = mean_of(each, "plateau_val_accuracy")
    half = 4.302652729911275 * 0.1 / math.sqrt(3)  # t quantile of 2 degrees of freedom
    assert mean.value == pytest.approx(0.9)
    assert mean.ci95 == (pytest.approx(0.9 - half), 1.0)  # a share: cut at 1
    assert mean_of(each, "steps_to_plateau") is None
    assert mean_of([*each, training()], "plateau_val_accuracy") is None
    found = {
        "accuracy": Topic(columns={"grpo": {"n": 1}, "base": {"n": 1}}),
        "stability": topic_of({"grpo": each}),
    }
    rows, columns = summary_table(found)
    assert len(columns) == 2 + 3 * len(NUMBERS) and set(rows[0]) == set(rows[1]) == set(columns)
    assert rows[0]["plateau_val_accuracy"] == pytest.approx(0.9) and rows[1]["plateau_val_accuracy"] == ""
    assert rows[0]["health_findings"] == "kl_runaway"
    by_run, columns = table_by_run({"stability": found["stability"]})
    assert [row["plateau_val_accuracy"] for row in by_run] == [0.8, 0.9, 1.0]
    assert set(by_run[0]) == set(columns) and by_run[0]["max_drawdown"] == ""
    assert topic_of({}) == Topic()


def test_section_says_what_it_found_and_in_how_many_seeds():
    loud = training(plateau_val_accuracy=0.5, steps_to_plateau=8.0, health_findings="kl_runaway")
    quiet = training(plateau_val_accuracy=0.7, steps_to_plateau=9.0, health_findings="")
    text = section_markdown(training_section({"ppo": [loud, quiet], "grpo": [quiet, quiet]}))
    assert "| ppo | 60.0 % [50.0–70.0] | 8 [8–9] | – |" in text
    assert "- ppo: kl runaway (1 of 2 seeds)." in text
    assert "- Nothing is found in the whole log of grpo." in text
