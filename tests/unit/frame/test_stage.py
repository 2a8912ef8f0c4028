"""The stage contract on a toy pipeline: manifests, changed inputs, resume, overwrite, exit codes."""

import errno
import fcntl
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import toy
from utils.frame import manifest as manifests
from utils.frame import stage as stage_module
from utils.frame.config import StageConfig
from utils.frame.files import REPO_ROOT, UserError, sha256_of, sha256_of_tree
from utils.frame.stage import execute
from utils.frame.stage_plan import make_plan, prepare, status_by_settings

PYTHON_FILE = str(Path(toy.__file__))


@pytest.fixture
def run(tmp_path, capfd):
    """Run a toy stage in this process; returns (exit code, standard output, standard error)."""

    def call(number: str, *argv: str, run_id: str = "run_001") -> tuple[int, str, str]:
        stage, function = toy.STAGES[number]
        code = execute(stage, function, ["--outputs_root", str(tmp_path), "--run_id", run_id, *argv])
        return code, *capfd.readouterr()

    return call


def status(tmp_path: Path, number: str, *argv: str) -> str:
    return prepare(toy.STAGES[number][0], ["--outputs_root", str(tmp_path), *argv]).status


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def process(tmp_path: Path, number: str, *argv: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, PYTHON_FILE, number, "--outputs_root", str(tmp_path), *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


# ---------------------------------------------------------------------------------------- manifests


def test_a_manifest_says_what_was_read_told_and_written(run, tmp_path):
    source = tmp_path / "source.txt"
    source.write_text("hello")
    assert run("01", "--rows", "4", "--source", str(source))[0] == 0
    manifest = read(tmp_path / "run_001" / "01_preprocessing" / "manifest.json")
    train = tmp_path / "run_001" / "01_preprocessing" / "train.jsonl"
    assert manifest["stage"] == "01_preprocessing" and manifest["variant"] == ""
    assert manifest["run_id"] == "run_001" and manifest["seed"] == 0 and manifest["schema_version"] == 1
    assert manifest["config"] == {
        "options": {"rows": 4, "source": "external/source.txt"},
        "quick_test": False,
    }
    assert manifest["inputs"] == {"external/source.txt": {"sha256": sha256_of(source), "bytes": 5}}
    assert manifest["outputs"]["01_preprocessing/train.jsonl"] == {
        "sha256": sha256_of(train),
        "bytes": train.stat().st_size,
        "rows": 4,
    }
    assert manifest["outputs"]["01_preprocessing/table.csv"]["rows"] == 1
    assert manifest["metrics"] == {"rows": 4}
    environment = manifest["environment"]
    assert environment["python"] == ".".join(map(str, sys.version_info[:3]))
    assert environment["packages"]["torch"].startswith("2.13.0")
    assert environment["device"] in ("cpu", "cuda")


def test_identical_work_gives_identical_manifests(run, tmp_path):
    """Two runs, one of them redone in another process, differ in run_id, and so in the checksum, alone."""
    for run_id in ("run_001", "run_002"):
        for number in ("01", "03", "10"):
            assert run(number, run_id=run_id)[0] == 0
    folders = ("01_preprocessing", "03_sft", "10_evaluation/sft", "")
    for folder in folders:
        name = "manifest.json" if folder else "run_manifest.json"
        texts = ((tmp_path / run_id / folder / name).read_text() for run_id in ("run_001", "run_002"))
        first, second = (re.sub('"checksum": "[0-9a-f]{64}"', "", text) for text in texts)
        assert first != second
        assert first.replace('"run_id": "run_001"', '"run_id": "run_002"') == second
    before = (tmp_path / "run_001" / "03_sft" / "manifest.json").read_bytes()
    assert process(tmp_path, "03", "--overwrite").returncode == 0
    assert (tmp_path / "run_001" / "03_sft" / "manifest.json").read_bytes() == before


def test_volatile_files_are_no_outputs_and_volatile_facts_go_to_runtime(run, tmp_path):
    run("01")
    run("03")
    folder = tmp_path / "run_001" / "03_sft"
    manifest = read(folder / "manifest.json")
    assert list(manifest["outputs"]) == ["03_sft/ckpt_sft/weights.json"]
    assert (folder / "logs" / "timings.jsonl").exists()
    assert not (folder / "resume").exists() and not (folder / ".in_progress.json").exists()
    runtime = read(folder / "runtime.json")
    assert runtime["tokens_per_second"] == 12.5 and runtime["seconds"] >= 0
    assert (
        runtime["peak_memory_bytes"] > 1e7 and runtime["host"] and runtime["started"] <= runtime["finished"]
    )
    for volatile in (runtime["host"], str(tmp_path), str(REPO_ROOT), runtime["started"][:10]):
        assert volatile not in (folder / "manifest.json").read_text()


def test_which_files_count_as_outputs():
    outside = [
        "manifest.json",
        "runtime.json",
        "a.log",
        "logs/timings.jsonl",
        "ckpt/resume/x",
        ".x/y",
        "a/.tmp-1",
    ]
    assert not any(manifests.is_output(Path(name)) for name in outside)
    inside = ["timings.jsonl", "logs/metrics.jsonl", "resume", "ckpt/resumed/x", "a/log.txt"]
    assert all(manifests.is_output(Path(name)) for name in inside)


def test_two_outside_inputs_of_one_name_are_kept_apart(tmp_path):
    inputs = {}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data.json").write_text(name)
        inputs[name] = tmp_path / name / "data.json"
    described = manifests.describe_inputs(inputs, tmp_path / "run_001")
    assert list(described) == ["external/data.json", "external/b/data.json"]
    assert described["external/data.json"]["sha256"] == sha256_of(inputs["a"])


def test_a_directory_input_is_described_by_its_tree(run, tmp_path):
    run("01")
    run("03")
    run("10")
    facts = read(tmp_path / "run_001/10_evaluation/sft/manifest.json")["inputs"]["03_sft/ckpt_sft"]
    weights = tmp_path / "run_001/03_sft/ckpt_sft/weights.json"
    assert facts == {
        "sha256": sha256_of_tree({"weights.json": sha256_of(weights)}),
        "bytes": weights.stat().st_size,
        "files": 1,
    }


def test_run_manifest_points_to_all_stages(run, tmp_path):
    for number in ("01", "03", "10"):
        run(number)
    whole = read(tmp_path / "run_001" / "run_manifest.json")
    assert list(whole["stages"]) == ["01_preprocessing", "03_sft", "10_evaluation/sft"]
    assert whole["stages"]["01_preprocessing"]["metrics"] == {"rows": 3}
    assert (tmp_path / "run_001" / whole["stages"]["10_evaluation/sft"]["manifest"]).is_file()


def test_no_secret_reaches_a_file(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789abcdef")
    secret_folder = tmp_path / "hf_0123456789abcdef"
    secret_folder.mkdir()
    (secret_folder / "hf_0123456789abcdef.txt").write_text("x")
    code, out, err = run("01", "--source", str(secret_folder / "hf_0123456789abcdef.txt"))
    assert code == 0
    for file in (tmp_path / "run_001").rglob("*"):
        if file.is_file() and not file.name.startswith("."):
            assert "hf_0123456789abcdef" not in file.read_text(), file
    assert "hf_0123456789abcdef" not in out + err


# -------------------------------------------------------------------------------------- input checks


def test_a_missing_input_names_the_script_to_run(run, tmp_path):
    code, out, err = run("03")
    assert code == 2 and out == ""
    assert err.count("\n") == 1 and err.startswith("error: missing input ")
    assert "train.jsonl" in err and "`python 01_prepare_dataset.py --run_id run_001 --outputs_root" in err
    assert not (tmp_path / "run_001").exists()


def test_a_missing_data_set_names_the_download(tmp_path):
    from utils.frame.stage_plan import check_inputs, make_plan

    plan = make_plan(toy.FIRST, ["--outputs_root", str(tmp_path), "--source", "datasets/nosuch/train.json"])
    with pytest.raises(toy.UserError, match=r"run `./download.sh nosuch` first"):
        check_inputs(plan)


def test_an_unfinished_producer_is_named(run, tmp_path):
    run("01")
    assert process(tmp_path, "03", "--fail", "kill").returncode == -signal.SIGKILL
    code, _, err = run("10")
    assert code == 2 and "03_sft is unfinished: run `python 03_sft_train.py" in err


@pytest.mark.parametrize("damage", ["edit", "delete"])
def test_an_input_changed_since_its_manifest_is_an_error(run, tmp_path, damage):
    run("01")
    train = tmp_path / "run_001" / "01_preprocessing" / "train.jsonl"
    if damage == "edit":
        train.write_bytes(train.read_bytes().replace(b'"id": 0', b'"id": 7'))
    else:
        train.unlink()
    code, _, err = run("03")
    expected = "has changed" if damage == "edit" else "is missing"
    assert code == 2 and f"01_preprocessing/train.jsonl {expected}" in err and "01_prepare_dataset.py" in err


def test_a_file_the_producer_did_not_record_is_no_input(run, tmp_path):
    run("01")
    path = tmp_path / "run_001" / "01_preprocessing" / "manifest.json"
    manifest = read(path)
    del manifest["outputs"]["01_preprocessing/train.jsonl"]
    manifests.write_manifest(path, manifest)
    code, _, err = run("03")
    assert code == 2 and "manifest.json does not list it" in err


def planted_file(folder: Path) -> str:
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return "ckpt_sft/chat_template.jinja"


def planted_folder(folder: Path) -> str:
    """A folder from elsewhere."""
    (folder / "additional_chat_templates").symlink_to(folder.parents[2])
    return "ckpt_sft/additional_chat_templates"


@pytest.mark.parametrize("plant", [planted_file, planted_folder])
def test_what_is_added_to_a_folder_is_refused_by_name(run, tmp_path, plant):
    run("01")
    run("03")
    name = plant(tmp_path / "run_001" / "03_sft" / "ckpt_sft")
    code, _, err = run("10")
    assert code == 2 and f"{name} is no output of 03_sft" in err and "delete it" in err
    assert not (tmp_path / "run_001" / "10_evaluation").exists()
    (tmp_path / "run_001" / "03_sft" / name).unlink()
    assert run("10")[0] == 0


def test_every_flipped_byte_of_a_manifest_is_noticed(run, tmp_path):
    run("01")
    folder = tmp_path / "run_001" / "01_preprocessing"
    path, whole = folder / "manifest.json", (folder / "manifest.json").read_bytes()
    assert manifests.read_manifest(folder)["checksum"]
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 7]) + whole[place + 1 :])
        with pytest.raises(UserError, match="manifest.json"):
            manifests.read_manifest(folder)
    assert run("03")[0] == 2 and status(tmp_path, "01").startswith("stale: ")


FACTS = {"sha256": "a" * 64, "bytes": 1}


@pytest.mark.parametrize(
    "damaged",
    [
        {"outputs": []},
        {"outputs": {"a": 3}},
        {"outputs": {"a": {"sha256": 10**400}}},
        {"outputs": {}, "inputs": {"a": []}},
        {"outputs": {}, "seed": "0"},
        {"outputs": {}, "checksums": "a"},
        {"outputs": {}, "config": functools.reduce(lambda inner, _: {"a": inner}, range(60), {})},
    ],
    ids=lambda damaged: str(damaged)[:40],
)
def test_what_is_no_manifest_is_said_in_one_line(tmp_path, damaged):
    """Without a checksum, as manifests were before there was one; such ones are taken if they are whole."""
    (tmp_path / "manifest.json").write_text(json.dumps({"outputs": {"a": FACTS}, "config": {"seed": 0}}))
    assert manifests.read_manifest(tmp_path)["outputs"] == {"a": FACTS}
    (tmp_path / "manifest.json").write_text(json.dumps(damaged))
    with pytest.raises(UserError, match=r"manifest\.json: (not a stage manifest|changed since)"):
        manifests.read_manifest(tmp_path)


# --------------------------------------------------------------------- up to date, stale, overwrite


def test_a_finished_stage_is_up_to_date_until_something_changes(run, tmp_path):
    run("01")
    assert status(tmp_path, "03") == "missing"
    assert run("03")[0] == 0
    assert status(tmp_path, "03") == "up_to_date"
    stamp = (tmp_path / "run_001/03_sft/manifest.json").stat().st_mtime_ns
    code, out, _ = run("03")
    assert (code, out) == (0, "03_sft: up to date\n")
    assert (tmp_path / "run_001/03_sft/manifest.json").stat().st_mtime_ns == stamp

    code, _, err = run("03", "--max_steps", "6")
    assert code == 2 and "algo.max_steps: 5 -> 6" in err and "--overwrite" in err and "--run_id" in err
    assert status(tmp_path, "03", "--max_steps", "6") == "stale: algo.max_steps: 5 -> 6"
    assert status(tmp_path, "03", "--seed", "1") == "stale: seed: 0 -> 1"
    assert status(tmp_path, "03", "--quick_test").startswith("stale: quick_test: false -> true; algo.")

    assert run("03", "--max_steps", "6", "--overwrite")[0] == 0
    assert status(tmp_path, "03", "--max_steps", "6") == "up_to_date"
    assert read(tmp_path / "run_001/03_sft/ckpt_sft/weights.json")["steps"] == 6


def test_a_changed_input_makes_the_stages_after_it_stale(run, tmp_path):
    run("01")
    run("03")
    assert run("01", "--rows", "5", "--overwrite")[0] == 0
    assert status(tmp_path, "03") == "stale: input 01_preprocessing/train.jsonl: content changed"
    code, _, err = run("03")
    assert code == 2 and "content changed" in err


def test_a_stage_whose_grounds_were_redone_is_refused(run, tmp_path):
    """01 redone with other data: 10 does not read what 03 made of the old."""
    for number in ("01", "03"):
        assert run(number)[0] == 0
    assert run("01", "--rows", "5", "--overwrite")[0] == 0
    code, _, err = run("10")
    assert code == 2 and err.count("\n") == 1
    assert "03_sft rests on another 01_preprocessing/train.jsonl than there is now: run `python 03_sft" in err
    # What was deleted is not missed, and the same bytes are the same grounds.
    assert run("01", "--overwrite")[0] == 0
    assert run("10")[0] == 0
    assert run("01", "--rows", "5", "--overwrite")[0] == 0
    assert status(tmp_path, "10").startswith("stale: ") and run("10")[0] == 2
    (tmp_path / "run_001/01_preprocessing/manifest.json").unlink()
    assert run("10")[0] == 0


def test_results_of_other_code_are_refused_where_asked(run, monkeypatch):
    with monkeypatch.context() as older:
        older.setattr(manifests, "code_sha256", lambda: "0" * 64)
        assert run("01")[0] == 0
    assert run("03")[0] == 0 and run("10")[0] == 0
    code, _, err = run("10", "--strict_code", "--overwrite")
    assert code == 2 and "the code has changed since 01_preprocessing ran: run `python 01_pre" in err
    assert run("01", "--overwrite")[0] == 0 and run("10", "--strict_code", "--overwrite")[0] == 0


def test_a_damaged_output_makes_a_stage_stale(run, tmp_path):
    run("01")
    (tmp_path / "run_001/01_preprocessing/table.csv").unlink()
    assert status(tmp_path, "01") == "stale: output 01_preprocessing/table.csv is missing"
    (tmp_path / "run_001/01_preprocessing/manifest.json").write_text("{")
    assert "not valid JSON" in status(tmp_path, "01")
    assert run("01")[0] == 2
    assert run("01", "--overwrite")[0] == 0


def test_a_file_put_into_an_unfinished_stage_is_no_result(run, tmp_path):
    run("01")
    assert process(tmp_path, "03", "--fail", "kill").returncode == -signal.SIGKILL
    folder = tmp_path / "run_001" / "03_sft"
    for name in ("chat_template.jinja", "ckpt_sft/chat_template.jinja", "logs/more/metrics.jsonl"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("planted")
    assert run("03", "--fail", "kill")[0] == 0
    assert list(read(folder / "manifest.json")["outputs"]) == ["03_sft/ckpt_sft/weights.json"]
    assert not (folder / "chat_template.jinja").exists()


def test_overwriting_leaves_nothing_of_the_old(run, tmp_path):
    run("01")
    stray = tmp_path / "run_001/01_preprocessing/old/stray.txt"
    stray.parent.mkdir()
    stray.write_text("x")
    assert run("01", "--overwrite")[0] == 0
    assert not stray.exists()


def test_a_variant_has_its_own_folder(run, tmp_path):
    run("01")
    assert run("03", "--variant", "teacher")[0] == 0
    manifest = read(tmp_path / "run_001/03_sft_teacher/manifest.json")
    assert manifest["stage"] == "03_sft" and manifest["variant"] == "teacher"


# -------------------------------------------------------------------- interruption, resume, failure


@pytest.mark.parametrize(
    "fail, code",
    [("kill", -signal.SIGKILL), ("interrupt", 130), ("terminate", 143), ("crash", 1), ("error", 2)],
)
def test_an_interrupted_stage_resumes_and_ends_as_if_it_had_not_been(run, tmp_path, fail, code):
    for run_id in ("run_001", "run_002"):
        run("01", run_id=run_id)
    ended = process(tmp_path, "03", "--fail", fail)
    folder = tmp_path / "run_001" / "03_sft"
    assert ended.returncode == code
    assert not (folder / "manifest.json").exists()
    assert status(tmp_path, "03", "--fail", fail) == "interrupted"
    assert ("Traceback" in ended.stderr) == (fail == "crash")
    if fail in ("interrupt", "terminate"):
        assert ended.stderr == "error: interrupted; run the same command again to resume\n"
    if fail == "error":
        assert ended.stderr == "error: no good\n"

    again, out, _ = run("03", "--fail", fail)
    assert again == 0 and "resuming" in out and "from step 2" in out
    assert run("03", "--fail", fail, run_id="run_002")[0] != 0 if fail == "error" else True
    assert read(folder / "ckpt_sft/weights.json") == {"steps": 5, "seed": 0}
    assert len(read(folder / "runtime.json")["sessions"]) == 2
    assert not list(folder.rglob(".tmp-*")) and not (folder / ".in_progress.json").exists()
    assert status(tmp_path, "03", "--fail", fail) == "up_to_date"


@pytest.mark.parametrize("next_stage", ["03", "01"])
def test_a_kill_between_the_manifest_and_the_runs_is_mended_by_the_next_stage(
    run, tmp_path, monkeypatch, next_stage
):
    """By the stage itself, which is up to date, or by another one."""
    run("01")
    run_dir = tmp_path / "run_001"

    def killed(plan, ctx):
        write(plan, ctx)
        raise SystemExit

    with monkeypatch.context() as patch:
        write = stage_module._write_manifest
        patch.setattr(stage_module, "_write_manifest", killed)
        with pytest.raises(SystemExit):
            run("03")
    left, resume = (run_dir / "03_sft" / name for name in (".in_progress.json", "resume"))
    assert (
        left.exists()
        and resume.exists()
        and list(read(run_dir / "run_manifest.json")["stages"]) == ["01_preprocessing"]
    )
    assert run(next_stage)[0] == 0
    assert not left.exists() and not resume.exists()
    whole = (run_dir / "run_manifest.json").read_bytes()
    assert list(json.loads(whole)["stages"]) == ["01_preprocessing", "03_sft"]
    stamp = (run_dir / "run_manifest.json").stat().st_mtime_ns
    assert run(next_stage)[0] == 0
    assert (run_dir / "run_manifest.json").stat().st_mtime_ns == stamp


def test_two_processes_that_find_a_stage_finished_clear_it_at_once(tmp_path, monkeypatch):
    (tmp_path / "resume").mkdir()
    for name in "abc":
        (tmp_path / "resume" / name).touch()
    unlink = os.unlink

    def and_the_other_process(path, **how):
        unlink(path, **how)
        for file in (tmp_path / "resume").iterdir():
            unlink(file)

    monkeypatch.setattr(os, "unlink", and_the_other_process)
    manifests.forget_beginning(tmp_path)
    assert not (tmp_path / "resume").exists()


def test_an_interrupted_run_of_other_work_is_cleared(run, tmp_path):
    run("01")
    process(tmp_path, "03", "--fail", "interrupt")
    assert status(tmp_path, "03", "--max_steps", "4") == "missing"
    code, out, _ = run("03", "--max_steps", "4")
    assert code == 0 and "from step 0" in out and "cleared what an interrupted run" in out


def test_overwrite_does_not_resume(run, tmp_path):
    run("01")
    process(tmp_path, "03", "--fail", "interrupt")
    with pytest.raises(RuntimeError):
        run("03", "--fail", "crash", "--overwrite")
    code, out, _ = run("03", "--overwrite")
    assert code == 0 and "from step 0" in out


def test_a_damaged_note_of_an_interrupted_run_means_a_fresh_start(run, tmp_path):
    run("01")
    process(tmp_path, "03", "--fail", "interrupt")
    (tmp_path / "run_001/03_sft/.in_progress.json").write_text('{"identity"')
    assert status(tmp_path, "03", "--fail", "interrupt") == "missing"


def test_a_verdict_of_failure_keeps_its_files_but_writes_no_manifest(run, tmp_path):
    run("01")
    assert run("03", "--fail", "verdict")[0] == 1
    folder = tmp_path / "run_001" / "03_sft"
    assert (folder / "resume/steps.txt").exists() and not (folder / "manifest.json").exists()
    assert status(tmp_path, "03", "--fail", "verdict") == "missing"
    assert run("03", "--fail", "verdict")[0] == 1


def test_a_crash_is_told_in_the_log_too(run, tmp_path):
    run("01")
    with pytest.raises(RuntimeError):
        run("03", "--fail", "crash")
    log = (tmp_path / "run_001/03_sft/stage.log").read_text()
    assert "RuntimeError: a bug" in log and "from step 0" in log


def test_two_processes_cannot_write_one_stage(run, tmp_path):
    folder = tmp_path / "run_001" / "01_preprocessing"
    folder.mkdir(parents=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, _, err = run("01")
    assert code == 2 and "is being written by another process" in err
    assert run("01")[0] == 0


# ---------------------------------------------------------------------------------- at the terminal


def test_from_any_folder_with_a_wrong_option_and_with_help(tmp_path):
    done = process(tmp_path, "03", "--help", cwd="/")
    assert done.returncode == 0 and "--algo.learning_rate" in done.stdout
    assert done.stdout.startswith("usage: python toy.py [--key value ...]")
    wrong = process(tmp_path, "03", "--max_stepz", "3", cwd="/")
    assert wrong.returncode == 2 and wrong.stdout == ""
    assert wrong.stderr == 'error: unknown option --max_stepz; did you mean "--algo.max_steps"?\n'
    assert process(tmp_path, "01", cwd="/").returncode == 0
    assert (tmp_path / "run_001/01_preprocessing/manifest.json").exists()


def test_standard_output_has_the_events_and_no_progress_bar(tmp_path):
    done = process(tmp_path, "01")
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["01_preprocessing"] * 2
    assert "start (run_001, seed 0)" in done.stdout and "done in" in done.stdout and done.stderr == ""


def test_a_reader_that_goes_away_causes_no_traceback(tmp_path):
    command = [sys.executable, PYTHON_FILE, "03", "--help"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    _, err = process.communicate(timeout=60)
    assert "Traceback" not in err


@pytest.mark.parametrize("place", ["file", "file/below", "x" * 300])
def test_an_impossible_folder_is_one_line(tmp_path, place):
    (tmp_path / "file").write_text("not a folder")
    done = process(tmp_path / place, "01")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ") and "--outputs_root" in done.stderr


def test_by_its_settings_a_stage_is_stale_where_it_is_damaged_but_not_where_they_are_wrong(
    run, tmp_path, monkeypatch
):
    def wrong(*_):
        raise UserError("there is no such setting")

    plan = make_plan(toy.FIRST, ["--outputs_root", str(tmp_path)])
    assert status_by_settings(plan) == "missing"
    run("01")
    assert status_by_settings(plan) == "up_to_date"
    monkeypatch.setattr(StageConfig, "to_dict", wrong)
    with pytest.raises(UserError, match="no such setting"):
        status_by_settings(plan)
    (plan.out / "manifest.json").write_text("{")
    assert status_by_settings(plan).startswith("stale: ")


def test_a_full_disk_is_one_line_and_can_be_resumed(tmp_path, capfd):
    def fill(ctx):
        raise OSError(errno.ENOSPC, "No space left on device", str(ctx.out / "big"))

    argv = ["--outputs_root", str(tmp_path)]
    assert execute(toy.FIRST, fill, argv) == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1 and "big: no space left on device; free space or" in err
    assert prepare(toy.FIRST, argv).status == "interrupted"
    assert execute(toy.FIRST, toy.run_first, argv) == 0


def test_another_run_s_files_are_checked_like_one_s_own(run, tmp_path):
    run("01", run_id="run_002")
    train = tmp_path / "run_002/01_preprocessing/train.jsonl"
    assert run("01", "--source", str(train))[0] == 0
    train.write_text("{}")
    code, _, err = run("01", "--source", str(train), run_id="run_003")
    assert code == 2 and "has changed" in err and "--run_id run_002" in err


def test_a_folder_of_a_run_elsewhere_is_held_against_its_manifest(run, tmp_path):
    """One that no stage wrote, such as a copy, is what it is: its hash tells what is read."""
    stage = tmp_path / "elsewhere" / "run_009" / "03_sft"
    for number in ("01", "03"):
        assert process(stage.parents[1], number, "--run_id", "run_009").returncode == 0
    copy = shutil.copytree(stage / "ckpt_sft", tmp_path / "copy")
    words = {folder: ("--source", str(folder)) for folder in (stage / "ckpt_sft", copy)}
    for place, given in enumerate(words.values()):
        assert run("01", *given, run_id=f"run_00{place}")[0] == 0
    for folder in words:
        (folder / "chat_template.jinja").write_text("planted")
    code, _, err = run("01", *words[stage / "ckpt_sft"], run_id="run_000")
    assert code == 2 and "ckpt_sft/chat_template.jinja is no output of 03_sft" in err
    code, _, err = run("01", *words[copy], run_id="run_001")
    assert code == 2 and "input external/copy: content changed" in err


def test_importing_the_frame_is_light():
    heavy = "{'torch', 'transformers', 'pandas', 'numpy'}"
    code = f"import sys, utils.frame.stage; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPO_ROOT,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ,
    )
    assert done.stdout == "[]\n"


# --------------------------------------------------------------------------------------- a folder of its own


def own(folder: Path, *argv: str, number: str = "01") -> int:
    stage, function = toy.STAGES[number]
    return execute(stage, function, ["--output_dir", str(folder), *argv])


def test_output_dir_is_the_stages_own_folder(tmp_path):
    """The run and the folder that holds the runs are read off it."""
    assert own(tmp_path / "outputs" / "run_002" / "01_preprocessing") == 0
    assert own(tmp_path / "outputs" / "run_002" / "03_sft", number="03") == 0
    assert own(tmp_path / "outputs" / "run_002" / "10_evaluation", number="10") == 0
    assert own(tmp_path / "outputs" / "run_002" / "10_evaluation" / "sft", number="10") == 0
    assert read(tmp_path / "outputs/run_002/03_sft/manifest.json")["run_id"] == "run_002"
    assert sorted(path.name for path in (tmp_path / "outputs" / "run_002").iterdir()) == [
        *("01_preprocessing", "03_sft", "10_evaluation", "run_manifest.json")
    ]


@pytest.mark.parametrize(
    ("folder", "more", "words"),
    [
        ("outputs/run_002", [], "--outputs_root"),
        ("outputs/run_002/02_rewards", [], "such as outputs/run_001/01_preprocessing"),
        ("outputs/01_preprocessing", [], "outputs holds runs and is none itself"),
        ("outputs/run_002/01_preprocessing", ["--run_id", "x"], "name two places"),
        ("outputs/run_002/01_preprocessing", ["--outputs_root", "x"], "name two places"),
    ],
)
def test_any_other_output_dir_is_refused(tmp_path, capfd, folder, more, words):
    assert own(tmp_path / "outputs" / "run_001" / "01_preprocessing") == 0
    before = sorted(tmp_path.rglob("*"))
    assert own(tmp_path / folder, *more) == 2
    assert words in capfd.readouterr().err and sorted(tmp_path.rglob("*")) == before


def test_nothing_is_written_among_other_data(tmp_path, capfd):
    """A folder of a stage's name with files that no stage wrote keeps them."""
    folder = tmp_path / "run_001" / "01_preprocessing"
    folder.mkdir(parents=True)
    (folder / "mine.txt").write_text("mine")
    assert own(folder) == 2
    assert "holds mine.txt, which no stage wrote" in capfd.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]
