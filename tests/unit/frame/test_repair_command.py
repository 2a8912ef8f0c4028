"""Commands that error messages print: run as they stand, they make the stage exactly as it was made."""

import re
import shlex
from pathlib import Path

import pytest

from tests.support.scripts import execute_stage
from utils.data.settings import DatasetConfig
from utils.data.sources import gold_records
from utils.frame.files import REPO_ROOT, write_jsonl
from utils.frame.manifest import read_manifest, write_manifest
from utils.frame.repair_command import command_for
from utils.frame.stage_plan import load_script, make_plan

PRINTED = re.compile(r"run `(?P<command>[^`]+)`")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Runs of stages that need no model, with other settings than the default ones."""
    folder = tmp_path_factory.mktemp("repair")
    (folder / "other.yaml").write_text("numeric_match: 0.5\n")
    ids = [record.id for record in gold_records(DatasetConfig(), "test")[:3]]
    write_jsonl(folder / "answers.jsonl", [{"id": each, "response": "1"} for each in ids])
    return folder


def stage(outputs, script, *argv) -> int:
    return execute_stage(script, ["--outputs_root", outputs / "outputs", *argv])


def run_printed(text: str) -> None:
    """Run the command that a message prints, which must work."""
    python, script, *argv = shlex.split(PRINTED.search(text)["command"])
    assert python == "python" and Path(script).name == script
    assert execute_stage(script, argv) == 0


COMMON = ("--run_id", "r", "--seed", "3", "--quick_test")


def test_what_has_never_run_takes_the_options_of_the_run(outputs, capfd):
    """Seed, size, tier files and tier keys come from the command that misses it."""
    words = (*COMMON, "--reward_config", str(outputs / "other.yaml"), "--reward.exact_match", "2")
    assert stage(outputs, "02_build_rewards.py", *words) == 2
    run_printed(capfd.readouterr().err)
    assert stage(outputs, "02_build_rewards.py", *words) == 0
    # 04 has no reward tier: it learns the file from what was typed, and the rest of the run's other stages.
    assert stage(outputs, "04_generate_candidates.py", "--run_id", "r", "--model.lora.r", "4") == 2
    printed = PRINTED.search(capfd.readouterr().err)["command"]
    plan = make_plan(load_script("03_sft_train.py").STAGE, shlex.split(printed)[2:])
    assert printed.startswith("python 03_sft_train.py ") and plan.run_dir == outputs / "outputs" / "r"
    assert plan.config.seed == 3 and plan.config.quick_test and plan.config.model.lora.r == 4


@pytest.mark.parametrize("damage", ["changed", "missing", "not listed", "unfinished"])
def test_a_damaged_input_is_made_again_to_the_same_bytes(outputs, capfd, damage):
    words = (*COMMON, "--reward_config", str(outputs / "other.yaml"), "--reward.exact_match", "2")
    prepared = outputs / "outputs" / "r" / "01_preprocessing"
    if not (prepared / "manifest.json").exists():
        assert stage(outputs, "01_prepare_dataset.py", *COMMON, "--dataset.max_train", "40") == 0
    before = (prepared / "manifest.json").read_bytes()
    if damage == "changed":
        (prepared / "train.jsonl").write_text("{}")
    elif damage == "missing":
        (prepared / "train.jsonl").unlink()
    elif damage == "not listed":
        made = read_manifest(prepared)
        del made["outputs"]["01_preprocessing/train.jsonl"]
        write_manifest(prepared / "manifest.json", made)
    else:
        (prepared / "manifest.json").unlink()
        (prepared / "runtime.json").rename(prepared / ".in_progress.json")
    capfd.readouterr()
    assert stage(outputs, "02_build_rewards.py", *words, "--overwrite") == 2
    run_printed(capfd.readouterr().err)
    assert (prepared / "manifest.json").read_bytes() == before


def test_an_evaluation_is_redone_under_its_own_name(outputs, capfd, monkeypatch):
    """A relative path is meant from where it was typed."""
    monkeypatch.chdir(outputs)
    given = ["--predictions", "answers.jsonl", "--split", "test", "--max_items", "3"]
    for policy in ("mine", "yours"):
        assert stage(outputs, "10_evaluate.py", *COMMON, *given, "--policy", policy) == 0
    monkeypatch.chdir(REPO_ROOT)
    folder = outputs / "outputs" / "r" / "10_evaluation" / "yours"
    before = (folder / "manifest.json").read_bytes()
    (folder / "metrics.json").write_text("{}")
    capfd.readouterr()
    assert stage(outputs, "11_compare_runs.py", "--run_id", "r") == 2
    printed = PRINTED.search(capfd.readouterr().err)["command"]
    there, python, command = printed.partition("python ")
    assert there == f"cd {outputs} && "
    monkeypatch.chdir(outputs)
    script, *argv = shlex.split(command)
    assert Path(script) == REPO_ROOT / "10_evaluate.py" and execute_stage("10_evaluate.py", argv) == 0
    assert (folder / "manifest.json").read_bytes() == before
    assert stage(outputs, "11_compare_runs.py", "--run_id", "r") == 0


def test_an_option_can_be_replaced_and_places_are_the_runs_own(tmp_path):
    out = tmp_path / "r2" / "04_candidates"
    out.mkdir(parents=True)
    words = "04_generate_candidates.py --run_id r1 --outputs_root=/x --split val --overwrite --reward task"
    (out / "runtime.json").write_text(f'{{"command": "{words}"}}')
    command = command_for(out, redo=True, given={"split": "train"})
    assert command == (
        f"python 04_generate_candidates.py --run_id r2 --reward task --split train --outputs_root {tmp_path} "
        "--overwrite"
    )


def test_a_note_that_is_damaged_is_no_note(tmp_path):
    out = tmp_path / "r" / "06_grpo_task"
    out.mkdir(parents=True)
    for text in ("[]", '{"command": 3}', '{"command": "a \'b"}', "{"):
        (out / "runtime.json").write_text(text)
        assert (
            command_for(out) == f"python 06_train_grpo.py --run_id r --reward task --outputs_root {tmp_path}"
        )
