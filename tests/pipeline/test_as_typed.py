"""Every command of docs/commands.md, as it is typed: it works, or is refused with the documented line.

Commands run in this process on the embedded models, small; paths below outputs/ lie in a folder of the test.
Trainings that another line of the tables runs already are planned, with their inputs checked.
"""

import glob
import re
import shlex
import shutil

import pytest

from tests.support.scripts import execute_stage
from utils.evaluation.ask import ask_command
from utils.frame.files import REPO_ROOT, UserError, read_json
from utils.frame.stage_plan import check_inputs, load_script, make_plan

DOCUMENT = (REPO_ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `([0-9i]\S+\.py[^`]*)` \| (.*) \|$", DOCUMENT, re.MULTILINE)
# What the lines of the tables need of a run, in order.
RUN = (
    ("01_prepare_dataset.py",),
    ("02_build_rewards.py",),
    ("03_sft_train.py", "--max_steps", "2"),
    ("04_generate_candidates.py", "--max_items", "4", "--num_candidates", "6"),
    ("08_build_prefs.py", "--min_pairs", "1"),
    ("10_evaluate.py", "--policy", "base"),
    ("10_evaluate.py", "--policy", "sft"),
)
SMALL = {
    "01": ["--max_train", "24", "--max_val", "4", "--max_test", "4"],
    "03": ["--max_steps", "1"],
    "04": ["--max_items", "2"],
    "05": ["--num_rollouts", "1", "--rollout_batch_size", "16"],
    "06": ["--num_rollouts", "1"],
    "09": ["--max_steps", "1"],
    "10": ["--max_items", "2", "--teacher_metrics", "false", "--reference_metrics", "false"],
}
# One training of each kind; the other lines differ in settings that their plan shows.
TRAINED = (
    "03_sft_train.py --batch_size 4",
    "04_generate_candidates.py",
    "05_train_ppo.py --policy_ckpt base",
    "06_train_grpo.py --group_size 4",
    "09_train_dpo.py --pairs",
)
RUN_ALWAYS = ("00", "01", "02", "10", "11")
DATA = ("datasets/finqa", "datasets/gsm8k", "datasets/math")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """A folder with run_001, as far as the commands need it."""
    root = tmp_path_factory.mktemp("typed") / "outputs"
    for script, *argv in RUN:
        words = ["--quick_test", "--outputs_root", root, *SMALL.get(script[:2], []), *argv]
        assert execute_stage(script, words) == 0, script
    evaluated = root / "run_001" / "10_evaluation"
    shutil.copytree(evaluated / "sft", evaluated / "sft_best")
    return root


def words_of(command: str, outputs, data) -> list[str]:
    """The words of a command, its paths in the folder of the test and globs expanded, as a shell would."""
    found = []
    for word in shlex.split(command)[1:]:
        if word.startswith("outputs/"):
            word = str(outputs.parent / word)
        elif word.rstrip("/") in DATA:
            word = str(data / word.split("/")[1])
        found += sorted(glob.glob(word)) if "*" in word else [word]
    return found


def run(script: str, words: list[str], command: str, outputs) -> int:
    """The exit code of a command in its small form."""
    number = script[:2]
    placed = [] if "--output_dir" in words else ["--outputs_root", str(outputs)]
    if script.startswith("inspect"):
        return load_script(script).main(words)
    if number == "12":
        return load_script(script).main([*words, "--dry_run", "--run_id", "driven", *placed])
    if "--ask" in words:
        return ask_command(load_script(script).STAGE, [*words, *placed])
    small = ["--num_rollouts", "1"] if "distill" in words else SMALL.get(number, [])
    argv = [*words, *placed, "--quick_test", *small]
    if number not in RUN_ALWAYS and not command.startswith(TRAINED):
        return planned(script, argv)
    if number in ("03", "04"):  # beside the run that other lines read
        for stage in ("01_preprocessing", "02_rewards"):
            shutil.copytree(outputs / "run_001" / stage, outputs / f"typed_{number}" / stage)
        argv += ["--run_id", f"typed_{number}"]
    return execute_stage(script, argv if "--output_dir" in words else [*argv, "--overwrite"])


def planned(script: str, argv: list[str]) -> int:
    """The exit code of a stage that ends once its inputs are checked."""
    try:
        check_inputs(make_plan(load_script(script).STAGE, argv))
    except UserError as error:
        print(f"error: {error}")
        return 2
    return 0


@pytest.mark.parametrize(("command", "here"), ROWS, ids=[command for command, _ in ROWS])
@pytest.mark.usefixtures("unrendered")
def test_it_works_or_is_refused_as_documented(command, here, outputs, request, capsys, monkeypatch):
    monkeypatch.chdir(REPO_ROOT)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    named, data = {word.rstrip("/") for word in shlex.split(command)}, None
    if named & {*DATA, "configs/datasets/finqa.yaml"}:
        data = request.getfixturevalue("shared_data")
    if "configs/datasets/finqa.yaml" in named:
        command += f" --data_root {data}/finqa"
    script, before = command.split()[0], sorted(outputs.rglob("*"))
    code = run(script, words_of(command, outputs, data), command, outputs)
    said = "".join(capsys.readouterr())
    if "Refused" in here:
        assert code == 2 and said.count("error:") == 1 and "Traceback" not in said
        for option in re.findall("`([^`]+)`", here):
            assert option.replace("outputs --run_id", f"{outputs} --run_id") in said, said
        assert sorted(outputs.rglob("*")) == before  # nothing is left behind
    elif "then misses" in here:
        assert code == 2 and "01_prepare_dataset.py --run_id run_002" in said
    else:
        assert code == 0, said


def test_what_was_named_is_in_the_manifests(outputs):
    """After the commands above: hashes of named inputs, and settings under this project's names."""
    if not (outputs / "run_001" / "09_dpo" / "manifest.json").is_file():
        pytest.skip("runs after the commands")
    ppo = read_json(outputs / "run_001" / "05_ppo" / "manifest.json")
    assert ppo["config"]["options"]["policy_ckpt"] == "base" and "assets/student" in ppo["inputs"]
    assert ppo["config"]["algo"]["kl_coef"] == 0.05 and ppo["config"]["algo"]["cliprange"] == 0.2
    assert ppo["metrics"]["reward_weights"]["correctness"] == 1.0 and "criteria" in ppo
    dpo = read_json(outputs / "run_001" / "09_dpo" / "manifest.json")
    assert {"08_preferences/pairs.jsonl", "03_sft/ckpt_sft/best"} <= set(dpo["inputs"])
    sft = read_json(outputs / "typed_03" / "03_sft" / "manifest.json")["config"]["algo"]
    assert (sft["per_device_train_batch_size"], sft["num_train_epochs"]) == (4, 1.0)
    scores = (outputs / "typed_04" / "04_candidates" / "scores.jsonl").read_text().splitlines()
    assert len(scores) == 2 * 4


def test_every_line_of_the_tables_is_read():
    tables = DOCUMENT.partition("## Names in other libraries")[0]
    assert len(ROWS) == sum(line.startswith("| `") for line in tables.splitlines()) > 50
