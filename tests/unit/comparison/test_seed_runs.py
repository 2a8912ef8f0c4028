"""Which runs are seeds of one experiment, and 11_compare_runs.py --by_seed from the command line."""

import json

import pytest

from tests.support.finished_runs import write_run
from tests.support.policy_results import RUNS, SEEDS
from tests.support.scripts import execute_stage
from utils.comparison.seed_runs import find_seed_runs, lineage
from utils.frame.files import UserError, read_csv, write_json


@pytest.fixture()
def outputs(tmp_path):
    for seed in SEEDS:
        write_run(tmp_path / f"s{seed}", seed, {"base": 0, "sft": 20 + seed, "sft_long": 40 + seed})
    return tmp_path


def find(outputs, runs=RUNS, policies=()):
    return find_seed_runs(outputs / "seeds", list(runs), list(policies))


def refused(outputs, runs=RUNS, policies=()):
    with pytest.raises(UserError) as error:
        find(outputs, runs, policies)
    assert "\n" not in str(error.value)
    return str(error.value)


def replaced(outputs, run, seed, right=None, **changes):
    """The message for a run that was written anew with changes."""
    write_run(outputs / run, seed, right or {"sft": 20}, **changes)
    return refused(outputs, ["s0", "s1", run], ["sft"])


def test_runs_come_in_the_order_of_their_seeds(outputs):
    found = find(outputs, ["s2", str(outputs / "s0"), "s1"])
    assert (found.runs, found.seeds, found.left_out, found.code) == (RUNS, SEEDS, {}, [])
    assert list(found.folders) == ["base", "sft", "sft_long"]
    assert found.folders["sft"] == [outputs / run / "10_evaluation" / "sft" for run in RUNS]
    assert list(found.evaluations())[:2] == ["s0/base", "s1/base"]


def test_a_policy_that_a_run_lacks_is_left_out_unless_it_was_asked_for(outputs):
    write_run(outputs / "s3", 3, {"sft": 20})
    found = find(outputs, [*RUNS, "s3"])
    assert list(found.folders) == ["sft"] and found.left_out == {"base": ["s3"], "sft_long": ["s3"]}
    assert "no finished evaluation of 'base'" in refused(outputs, [*RUNS, "s3"], ["base", "sft"])
    write_run(outputs / "s4", 4, {"dpo": 20})
    assert "no policy was evaluated in all of s0, s4" in refused(outputs, ["s0", "s4"])


def test_lineage_is_what_a_stage_rests_on():
    manifests = {
        "01_preprocessing": {"inputs": {"datasets/x": 1}},
        "03_sft": {"inputs": {"01_preprocessing/train.jsonl": 1}},
        "03_sft_teacher": {"inputs": {"01_preprocessing/train.jsonl": 1}},
        "06_grpo": {"inputs": {"03_sft/ckpt_sft/best": 1, "assets/student": 1}},
        "10_evaluation/grpo": {"inputs": {"06_grpo/ckpt_grpo/best": 1}},
    }
    found = lineage(manifests, "10_evaluation/grpo")
    assert set(found) == {"10_evaluation/grpo", "06_grpo", "03_sft", "01_preprocessing"}


def test_one_run_is_no_experiment(outputs):
    assert "needs two or more runs" in refused(outputs, ["s0"])
    assert "needs two or more runs" in refused(outputs, [])
    assert "names 's0' twice" in refused(outputs, ["s0", "s1", str(outputs / "s0")])


def test_seeds_must_differ(outputs):
    assert "s1 and again both have seed 1" in replaced(outputs, "again", 1)


def test_policies_of_a_run_must_have_one_seed(outputs):
    manifest = outputs / "s1" / "10_evaluation" / "sft" / "manifest.json"
    write_json(manifest, json.loads(manifest.read_text()) | {"seed": 9})
    assert "s1: 'base' was evaluated with seed 1, 'sft' with 9" in refused(outputs)


def test_a_policy_trained_twice_with_one_seed_is_refused(outputs):
    manifest = outputs / "s1" / "03_sft" / "manifest.json"
    write_json(manifest, json.loads(manifest.read_text()) | {"seed": 2})
    message = refused(outputs)
    assert "'sft' was trained with the same seed in s1 and s2 (03_sft: seed 2)" in message
    assert list(find(outputs, policies=["base"]).folders) == ["base"]  # which is trained by no run


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"training": {"lr": 2}}, "s0 and odd differ in more than the seed: 03_sft algo.lr is 1 against 2"),
        ({"raw": "raw-2"}, "01_preprocessing input datasets/x.json is another file"),
        ({"training": {"lr": 1, "beta": 0.1}}, "03_sft algo.beta is (absent) against 0.1"),
        (
            {"evaluation": {"dataset": {"instruction": "Think."}}},
            "10_evaluation/sft dataset.instruction is (absent) against 'Think.'",
        ),
    ],
)
def test_runs_that_differ_in_more_than_the_seed_are_refused(outputs, changes, message):
    assert message in replaced(outputs, "odd", 7, **changes)


def test_test_items_or_stages_that_differ_are_refused(outputs):
    write_run(outputs / "odd", 7, {"sft": 20})
    path = outputs / "odd" / "10_evaluation" / "sft" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["inputs"]["01_preprocessing/test.jsonl"]["sha256"] = "other"
    write_json(path, manifest)
    message = refused(outputs, ["s0", "odd"], ["sft"])
    assert "10_evaluation/sft input 01_preprocessing/test.jsonl is another file" in message
    del manifest["inputs"]["01_preprocessing/test.jsonl"], manifest["inputs"]["03_sft/ckpt_sft/best"]
    write_json(path, manifest)
    assert "absent from the second" in refused(outputs, ["s0", "odd"], ["sft"])


def test_code_that_differs_is_named_but_not_refused(outputs):
    write_run(outputs / "new", 7, {"sft": 20}, environment={"git_commit": "b"})
    assert find(outputs, ["s0", "new"], ["sft"]).code == ["git_commit"]


def test_an_option_that_is_new_and_left_empty_is_no_difference(outputs):
    write_run(outputs / "new", 7, {"sft": 20}, training={"lr": 1, "preset": "", "tuning": {"trials": None}})
    assert find(outputs, ["s0", "new"], ["sft"]).runs == ["s0", "new"]


def test_how_much_a_device_takes_at_once_may_differ(outputs):
    write_run(outputs / "small", 7, {"sft": 20})
    path = outputs / "small" / "03_sft" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["config"]["model"] = {"training": {"max_micro_batch": 2}}
    write_json(path, manifest)
    assert find(outputs, ["s0", "small"], ["sft"]).runs == ["s0", "small"]


@pytest.mark.parametrize(("sha256", "alike"), [("m", True), ("n", False)])
def test_a_base_model_may_lie_elsewhere(outputs, sha256, alike):
    for run, seed, name, value in (
        ("here", 7, "models/tiny", "m"),
        ("there", 8, "external/tiny", sha256),
    ):
        write_run(outputs / run, seed, {"sft": 20})
        path = outputs / run / "03_sft" / "manifest.json"
        manifest = json.loads(path.read_text())
        manifest["inputs"][name] = {"sha256": value}
        write_json(path, manifest)
    if alike:
        assert find(outputs, ["here", "there"], ["sft"]).seeds == [7, 8]
    else:
        assert "input external/tiny is absent from the first" in refused(outputs, ["here", "there"], ["sft"])


@pytest.mark.parametrize(
    ("start", "alike"),
    [
        ("outputs/first_seed_8/03_sft/ckpt_sft/final", True),
        ("outputs/first_seed_7/03_sft/ckpt_sft/final", False),  # the other seed's weights
        ("outputs/first_seed_18/03_sft/ckpt_sft/final", False),
        ("outputs/second_seed_8/03_sft/ckpt_sft/final", False),
    ],
)
def test_every_seed_may_go_on_from_weights_of_its_own(outputs, start, alike):
    """SFT for a second epoch starts where the run of the same seed left off."""
    starts = {7: "outputs/first_seed_7/03_sft/ckpt_sft/final", 8: start}
    for seed, name in starts.items():
        write_run(outputs / f"more_{seed}", seed, {"sft": 20})
        path = outputs / f"more_{seed}" / "03_sft" / "manifest.json"
        manifest = json.loads(path.read_text())
        manifest["config"]["model"] = {"model": {"name_or_path": name}}
        manifest["inputs"][name] = {"sha256": f"weights of {seed}"}
        write_json(path, manifest)
    if alike:
        assert find(outputs, ["more_7", "more_8"], ["sft"]).seeds == [7, 8]
    else:
        assert "more_7 and more_8 differ in more than the seed" in refused(
            outputs, ["more_7", "more_8"], ["sft"]
        )


def test_outside_weights_and_predictions_may_differ(outputs):
    for seed in (7, 8):
        write_run(outputs / f"p{seed}", seed, {"sft": 20})
        path = outputs / f"p{seed}" / "10_evaluation" / "sft" / "manifest.json"
        manifest = json.loads(path.read_text())
        name = f"external/answers_{seed}.jsonl"
        manifest["inputs"] = {name: {"sha256": str(seed)}, "datasets/test.json": {"sha256": "t"}}
        manifest["config"]["options"]["predictions"] = name
        write_json(path, manifest)
    assert find(outputs, ["p7", "p8"], ["sft"]).seeds == [7, 8]


# --------------------------------------------------------------------------------------------- stage


def compare(outputs, *more):
    argv = ["--outputs_root", str(outputs), "--runs", "s2,s0,s1", "--by_seed", "--run_id", "seeds", *more]
    return execute_stage("11_compare_runs.py", argv)


@pytest.mark.slow
@pytest.mark.usefixtures("unrendered")
def test_comparison_over_seeds(outputs, capsys):
    assert compare(outputs) == 0
    out = outputs / "seeds" / "11_comparison"
    assert [row["policy"] for row in read_csv(out / "summary.csv")] == ["base", "sft", "sft_long"]
    by_seed = [(row["policy"], row["seed"], row["correct"]) for row in read_csv(out / "by_seed.csv")]
    assert by_seed[3:6] == [("sft", "0", "20"), ("sft", "1", "21"), ("sft", "2", "22")]
    assert len(read_csv(out / "pairs.csv")) == 3
    assert "| sft_long | 66.7, 68.3, 70.0 |" in (out / "report.md").read_text()
    metrics = json.loads((out / "manifest.json").read_text())["metrics"]
    assert metrics["sft"] == {"accuracy": pytest.approx(0.35), "n": 60, "seeds": 3}
    said = capsys.readouterr().out
    assert "over seeds 0 (s0), 1 (s1), 2 (s2)" in said
    assert "sft_long answers more items correctly than sft: 68.3 % against 35.0 %" in said
    files = {
        path.name: path.read_bytes() for path in out.iterdir() if path.suffix not in (".log", "", ".json")
    }
    assert {"summary.csv", "by_seed.csv", "pairs.csv", "changes.jsonl", "level_heatmap.png"} <= set(files)
    assert compare(outputs) == 0 and "up to date" in capsys.readouterr().out
    assert compare(outputs, "--overwrite") == 0
    assert all((out / name).read_bytes() == data for name, data in files.items())


def test_a_refusal_is_one_line(outputs, capsys):
    assert compare(outputs, "--runs", "s0") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: --by_seed needs two or more runs") and said.count("\n") == 1
