"""Where distilled policies come from and what they cost: their own stage, after SFT or from the base."""

import csv

import pytest

from tests.support.finished_runs import KEYS, log_of, write_evaluation, write_methods, write_stage
from tests.support.scripts import execute_stage
from utils.comparison.lineage import trained_policies
from utils.comparison.topics.method_cost import MethodCost, cost_section, costs_of
from utils.comparison.topics.timing import times_of
from utils.comparison.topics.validation_curves import read_curves
from utils.documents.document import section_markdown
from utils.evaluation.policy_names import find_evaluations
from utils.frame.files import write_json, write_jsonl

POLICIES = ("sft", "distill", "distill_sec", "ppo")


def write_distilled(run, stage, start, sampled, base_in_run=False):
    """A finished distillation from ``start``, of which ``sampled`` completions are the student's own."""
    policy = stage.removeprefix("03_")
    inputs = {"sft": ["03_sft/ckpt_sft/best"], "base": ["assets/x"]}[start]

    def logs(folder):
        rows = [
            {
                "step": step,
                "val_reward": share,
                "val_accuracy": share,
                "sampled_completions": sampled * step // 16,
            }
            for step, share in ((0, 0.3), (8, 0.7), (16, 0.6))
        ]
        write_jsonl(folder / "logs" / "metrics.jsonl", rows)

    cost = dict(zip(KEYS, (sampled, 20 * sampled, 5000), strict=True))
    hashed = [(name, f"{name}-0") for name in inputs]
    write_stage(run, stage, 0, inputs=hashed, write=logs, metrics={"cost": cost})
    write_json(run / stage / "runtime.json", {"seconds": 20.0, "sessions": ["a"]})
    weights = [(f"{stage}/ckpt_distill/best", f"{policy}-0")]
    weights += [("03_sft/ckpt_sft/best", "sft-0")] if base_in_run else []
    write_stage(
        run,
        f"10_evaluation/{policy}",
        0,
        inputs=["01_preprocessing/test.jsonl", *weights],
        write=lambda folder: write_evaluation(folder, policy, 35),
    )


@pytest.fixture()
def run(tmp_path):
    """SFT, PPO, distillation from SFT on the student's own samples, and one from the base model on gold."""
    run = write_methods(tmp_path / "s0", 0, policies=("sft", "ppo"))
    write_distilled(run, "03_distill", "sft", 64)
    write_distilled(run, "03_distill_sec", "base", 0)
    return run


def found_in(run, policies=POLICIES):
    return trained_policies({name: [run / "10_evaluation" / name] for name in policies})


def test_distillation_costs_its_own_stage(run):
    found = found_in(run)
    assert {name: list(each.stages) for name, [each] in found.items()} == {
        "sft": ["03_sft"],
        "distill": ["03_distill"],
        "distill_sec": ["03_distill_sec"],
        "ppo": ["05_ppo"],
    }
    costs = costs_of(found)
    assert costs["distill"] == [MethodCost(64, 1280, 5000)] and costs["distill_sec"] == [
        MethodCost(0, 0, 5000)
    ]
    assert times_of(found)["distill"][0].total == 20.0


def test_only_sft_is_where_others_start(run):
    found = found_in(run)
    assert [name for name, [each] in found.items() if each.is_sft] == ["sft"]
    assert [name for name, [each] in found.items() if not each.after_sft] == ["sft", "distill_sec"]
    report = section_markdown(cost_section(found, costs_of(found), {name: ["a"] for name in found}, False))
    assert "**One budget**: distill and ppo sampled 64 completions each." in report
    assert "| distill | 03_distill | 64 | 1,280 | 5,000 |" in report
    assert "Training of distill_sec started from the base model, with no SFT behind it." in report


def test_the_later_stage_trained_the_weights_where_two_hold_some(tmp_path):
    """An adapter of distillation on the whole weights that SFT wrote: the names alone sort the other way."""
    run = write_methods(tmp_path / "s0", 0, policies=("sft",))
    write_distilled(run, "03_distill", "sft", 64, base_in_run=True)
    [each] = found_in(run, ("sft", "distill"))["distill"]
    assert (each.training, each.checkpoint) == ("03_distill", "best")


def test_curves_of_distillation(run):
    """Against the completions it samples; with none it is a level, its best checkpoint's, as SFT is."""
    curves = {curve.policy: curve for curve in read_curves(found_in(run))[0]}
    assert {name: curve.kind for name, curve in curves.items()} == {
        "sft": "level",
        "distill": "line",
        "distill_sec": "level",
        "ppo": "line",
    }
    assert [point.sampled_completions for point in curves["distill"].by_run[0]] == [0, 32, 64]
    [[best]] = curves["distill_sec"].by_run
    assert (best.step, best.val_accuracy) == (8, 0.7)


def test_policies_stand_in_the_order_of_the_pipeline(run):
    assert list(find_evaluations(run, [], [])) == list(POLICIES)


@pytest.mark.slow
def test_a_comparison_draws_and_tells_of_distillation(run):
    argv = ["--outputs_root", str(run.parent), "--run_id", "s0"]
    assert execute_stage("11_compare_runs.py", argv) == 0
    out = run / "11_comparison"
    with open(out / "summary.csv", encoding="utf-8", newline="") as file:
        rows = {row["policy"]: row for row in csv.DictReader(file)}
    assert rows["distill"]["sampled_completions"] == "64" and rows["distill_sec"]["trained_tokens"] == "5000"
    for figure in ("curves.png", "plots/efficiency_vs_quality.png", "timing.png"):
        assert (out / figure).stat().st_size > 0
    assert "Dashed: sft and distill_sec, best checkpoint." in (out / "report.md").read_text()


def test_a_log_without_its_completions_has_no_curve(run):
    write_jsonl(run / "03_distill" / "logs" / "metrics.jsonl", log_of("03_sft", 0))
    _, left_out = read_curves(found_in(run))
    assert "log of 03_distill does not say how many completions were sampled" in left_out["distill"]
