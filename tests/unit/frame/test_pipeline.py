"""The table of stages and methods: what is derived from it, and what it refuses."""

from dataclasses import replace
from pathlib import Path

import pytest

from utils.frame import pipeline
from utils.frame.pipeline import METHODS, PIPELINE, PRESETS, ROWS, StageRow, check
from utils.frame.stage_plan import load_script
from utils.methods.stage import method_stage

NAMES = [row.name for row in PIPELINE]


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("03_sft", "sft"),
        ("03_sft_teacher", "sft"),
        ("03_distill_sec", "distill"),
        ("06_grpo_task_sec", "grpo"),
        ("10_evaluation", "evaluate"),
        ("03_sftx", None),
        ("06_", None),
        ("", None),
        ("logs", None),
    ],
)
def test_a_folder_has_a_row(folder, name):
    row = pipeline.row_of(folder)
    assert (row and row.name) == name


def test_what_a_row_rests_on():
    data = ["check", "prepare", "rewards"]
    assert pipeline.requires("dpo") == [*data, "sft", "candidates", "preferences", "dpo"]
    assert pipeline.requires("ppo") == [*data, "sft", "ppo"]
    assert pipeline.requires("ppo", beside=True) == [*data, "sft", "candidates", "ppo"]
    assert pipeline.requires("dpo", "distill") == [
        *(*data, "sft", "distill", "candidates"),
        *("preferences", "dpo"),
    ]


def test_what_is_after_sft_costs_and_samples():
    def those(holds):
        return [row.name for row in PIPELINE if holds(row.folder) and row.name not in PRESETS]

    after = ["distill", "candidates", "ppo", "grpo", "rloo", "preferences", "dpo"]
    assert those(pipeline.after_sft) == after and pipeline.after_sft("06_grpo_task")
    assert those(pipeline.counts_cost) == ["sft", *(name for name in after if name != "preferences")]
    assert those(pipeline.samples_while_training) == ["distill", "ppo", "grpo", "rloo"]
    assert not any(holds("") for holds in (pipeline.after_sft, pipeline.counts_cost))
    for preset in PRESETS:
        folder, samples = METHODS[preset].folder, preset != "rft"
        assert pipeline.after_sft(folder) and pipeline.counts_cost(folder)
        assert pipeline.samples_while_training(folder) == samples


def test_where_a_method_gets_its_samples():
    found = {method: row and row.name for method in METHODS for row in [pipeline.sampled_in(method)]}
    assert found.pop("rft") == "candidates"
    assert all(found.pop(preset) == preset for preset in PRESETS if preset != "rft")
    assert found == {
        **{"sft": None, "distill": "distill", "ppo": "ppo"},
        **{"grpo": "grpo", "rloo": "rloo", "dpo": "candidates"},
    }


def test_names_of_policies_and_checkpoints():
    method, variant = pipeline.method_of("grpo_task_sec")
    assert (method.name, variant) == ("grpo", "task_sec")
    assert pipeline.best_checkpoint(method, variant) == "06_grpo_task_sec/ckpt_grpo/best"
    assert pipeline.method_of("grpo2") is None and pipeline.method_of("base") is None
    origin = pipeline.origin_of(Path("outputs/r/06_grpo_task/ckpt_grpo/step_4"))
    assert (origin.stage, origin.checkpoint) == (Path("outputs/r/06_grpo_task"), "step_4")
    assert origin.policy == "grpo_task"
    assert pipeline.origin_of(Path("03_sft/ckpt_sft")).checkpoint == ""
    for other in ("a/b", None, Path("mine/ckpt_sft/best"), Path("04_candidates/ckpt_x/best"), Path("03_sft")):
        assert pipeline.origin_of(other) is None


def test_policies_are_in_the_order_of_the_pipeline():
    names = ["x", "dpo", "r/sft", "grpo_task", "grpo", "base", "teacher", "distill", "sft_2"]
    ordered = ["base", "r/sft", "sft_2", "teacher", "distill", "grpo", "grpo_task", "dpo", "x"]
    assert sorted(names, key=pipeline.policy_order) == ordered


@pytest.mark.parametrize("row", PIPELINE, ids=NAMES)
def test_a_rows_script_writes_its_folder(row):
    stage, rest = load_script(row.script).STAGE.chosen(row.option)
    assert (stage.folder, rest) == (row.folder, [])


def changed(of: str, **facts) -> list[StageRow]:
    return [replace(row, **facts) if row.name == of else row for row in PIPELINE]


def with_second_distill(**facts) -> list[StageRow]:
    return [
        *PIPELINE[:5],
        replace(ROWS["distill"], name="x", folder="03_x", code="distill", **facts),
        *PIPELINE[5:],
    ]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (changed("rloo", name="grpo"), "grpo: its name or its folder 07_rloo is another's"),
        (changed("rloo", name="teacher"), "teacher: its name or"),
        (changed("distill", folder="03_sft"), "distill: its name or its folder 03_sft is another's"),
        (changed("ppo", folder="06_ppo"), "ppo: 06_ppo has another number than 05_train_ppo.py"),
        (changed("ppo", script="05_train.py"), "ppo: there is no 05_train.py"),
        (changed("ppo", needs=("dpo",)), "ppo: no earlier row is dpo"),
        (changed("ppo", beside=("candidate",)), "ppo: no earlier row is candidate"),
        (changed("distill", option=()), "distill: an option tells it from the first row of 03_sft_train"),
        (changed("sft", option=("--objective", "sft")), "sft: an option tells it from"),
        (changed("ppo", builder="trainers"), "ppo: there is no utils/methods/ppo/trainers.py"),
        (changed("ppo", code="pop"), "ppo: there is no utils/methods/pop/settings.py"),
        ([row for row in PIPELINE if getattr(row, "package", "") != "rloo"], "no row has utils/methods/rloo"),
        (with_second_distill(), "x: the rows of 03_sft_train.py are told apart by the values of one option"),
        (with_second_distill(option=("--y", "x")), "x: the rows of 03_sft_train.py are told apart"),
    ],
)
def test_a_table_that_lacks_something_is_refused(table, said):
    with pytest.raises(ValueError, match=f"pipeline.py: {said}"):
        check(table)


@pytest.mark.parametrize(("name", "samples"), [("grpo", False), ("dpo", True)])
def test_what_samples_has_the_settings_of_rollouts(monkeypatch, name, samples):
    """Budgets read them: found out when the script is imported, not when a budget is compared."""
    monkeypatch.setattr("utils.methods.stage.PIPELINE", changed(name, samples=samples))
    with pytest.raises(ValueError, match=f"{name}: {name.capitalize()}Algo is a RolloutAlgo if its row says"):
        method_stage(ROWS[name].script)
