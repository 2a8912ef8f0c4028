"""What stands before any result: model, data, training, seeds, and what forbids conclusions."""

import pytest

from tests.support.comparisons import comparison_of
from tests.support.finished_runs import folders_in, write_run
from utils.comparison.experiment_facts import experiment_facts
from utils.comparison.paired import load_result
from utils.documents.document import block_markdown
from utils.evaluation.policy_names import evaluation_files
from utils.frame.files import read_json, write_json

MODEL = {
    "model": {"name_or_path": "assets/student", "teacher_name_or_path": "org/teacher-7b"},
    "metadata": {"parameters": 963_968},
}


def facts_of(run, policies=("sft", "ppo")):
    folders = folders_in(run, policies=policies)
    results = {name: [load_result(name, *evaluation_files(of[0]))] for name, of in folders.items()}
    return experiment_facts(comparison_of(results, folders=folders))


@pytest.fixture
def run(tmp_path):
    """A run of 60 test items that its manifests say more of."""
    run = tmp_path / "r"
    write_run(run, 3, {"sft": 20, "ppo": 40}, evaluation={"model": MODEL, "quick_test": False})
    metrics = {
        "00_data_validation": {"test": {"usable": 60}, "train": {"usable": 2000}, "val": {"usable": 200}},
        "01_preprocessing": {"test": {"records": 60}, "train": {"records": 64}, "val": {"records": 200}},
    }
    for stage, found in metrics.items():
        manifest = read_json(run / stage / "manifest.json")
        write_json(run / stage / "manifest.json", manifest | {"metrics": found})
    return run


def change(run, stage, **facts):
    manifest = read_json(run / stage / "manifest.json")
    write_json(run / stage / "manifest.json", manifest | facts)


def test_a_whole_experiment(run):
    found = facts_of(run)
    assert found.limits == []
    assert found.facts == {
        "model": "student (0.96 million parameters), teacher teacher-7b",
        "data": "sample, test split: 60 of 60 items",
        "training": "64 of 2,000 items to train on and 200 items to validate on",
        "seeds": "one, 3: intervals and tests are about other items, not about other trainings",
    }
    [table] = found.blocks()
    assert "| model | student (0.96 million parameters)" in block_markdown(table)
    assert found.lines()[0].startswith("model: ")


def test_a_quick_test_and_a_part_of_the_test_set_are_badges(run):
    change(run, "00_data_validation", metrics={"test": {"usable": 1147}})
    change(run, "03_sft", config={"quick_test": True})
    found = facts_of(run)
    assert [limit.partition(":")[0] for limit in found.limits] == [
        "quick test (--quick_test)",
        "a part of the test split",
    ]
    assert found.limits[1].endswith("60 of 1,147 items")
    assert found.lines()[0].startswith("NOTE: quick test")


def test_metrics_from_elsewhere_have_no_model(tmp_path):
    write_run(tmp_path / "r", 0, {"sft": 20, "ppo": 40})
    found = facts_of(tmp_path / "r")
    assert "model" not in found.facts and "training" not in found.facts
    assert found.facts["data"] == "sample, test split: 60 items"
