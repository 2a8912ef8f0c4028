"""Secrets planted in every place, and runs that fail in many ways: none is in an output or a command line."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.support.planted_secrets import (
    EVERY,
    NAMES,
    PLANTED,
    plant,
    where_planted,
)
from utils.frame.files import REPO_ROOT

# Stages in one process, so that the libraries are imported once; an error that is no user's mistake is left
# to Python. The function of the reward says every secret when it fails, in the middle of training.
STAGES = """
import json, sys
from utils.frame.stage_plan import load_script
from utils.frame.credentials import redact_tracebacks
from utils.frame.stage import execute
redact_tracebacks()
for script, *argv in json.loads(sys.stdin.read()):
    module = load_script(script)
    print("exit", execute(module.STAGE, module.run, argv), flush=True)
raise RuntimeError(json.load(open(sys.argv[1]))["text"])
"""

REWARD = """
import json
from pathlib import Path

CALLS = []
FOLDER = Path({folder!r})

def failing(record, completion):
    CALLS.append(completion)
    if (FOLDER / "training").exists() and len(set(CALLS)) > {after}:
        raise ValueError(json.loads((FOLDER / "text.json").read_text())["text"])
    return 0.5
"""


def command_lines(pid: int, seen: set[bytes], ended: threading.Event) -> None:
    """Note the command lines of all processes that descend from ``pid``."""
    while not ended.is_set():
        parents = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                stat = (folder / "stat").read_text().rpartition(")")[2].split()
                parents[int(folder.name)] = (int(stat[1]), (folder / "cmdline").read_bytes())
            except (OSError, IndexError):
                continue
        family = {pid}
        while more := {each for each, (parent, _) in parents.items() if parent in family} - family:
            family |= more
        seen |= {parents[each][1] for each in family if each in parents}
        time.sleep(0.2)


@pytest.fixture(scope="module")
def planted_run(tmp_path_factory, tiny_models):
    """Stages that end well, one whose reward function fails, one with a wrong option, and a bug: the folder
    of outputs, what was said, and all command lines."""
    folder = tmp_path_factory.mktemp("planted")
    home, outputs = folder / "home", folder / "outputs"
    home.mkdir()
    model = str(tiny_models("llama"))
    (folder / "text.json").write_text(json.dumps({"text": EVERY}))
    (folder / "rewards.py").write_text(REWARD.format(folder=str(folder), after=20))
    (folder / "reward.yaml").write_text(f"own: {{failing: {{file: '{folder}/rewards.py', weight: 0.1}}}}\n")
    for split, count in (("train", 8), ("test", 2)):
        rows = [{"question": f"{split} {n}+1?", "answer": f"#### {n + 1}"} for n in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ["--dataset", "gsm8k", "--data_root", str(folder), "--val_fraction", "0.25"]
    common = ["--quick_test", "--outputs_root", str(outputs)]
    small = [*common, "--model.name_or_path", model, "--validation.num_items", "1"]
    small += ["--report_to", "tensorboard"]
    failing = [*small, "--reward", "task", "--generation.max_new_tokens", "8", "--training.save_steps", "1"]
    stages = [
        ["01_prepare_dataset.py", *common, *data],
        ["02_build_rewards.py", *common, "--reward_config", str(folder / "reward.yaml")],
        ["03_sft_train.py", *small, "--max_steps", "1"],
        ["06_train_grpo.py", *failing],
        ["10_evaluate.py", *common, "--split", EVERY],
    ]
    environment = {name: value for name, value in os.environ.items() if name not in NAMES} | plant(home)
    seen: set[bytes] = set()
    ended = threading.Event()
    with subprocess.Popen(
        [sys.executable, "-c", STAGES, str(folder / "text.json")],
        cwd=REPO_ROOT,
        env=environment,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        watch = threading.Thread(target=command_lines, args=(process.pid, seen, ended))
        watch.start()
        (folder / "training").touch()  # 02 asks the function about a handful of golds only
        out, err = process.communicate(json.dumps(stages))
        ended.set()
        watch.join()
    return outputs, out, err, seen


def test_the_stages_ended_as_they_were_meant_to(planted_run):
    outputs, out, err, seen = planted_run
    codes = [int(line.split()[1]) for line in out.splitlines() if line.startswith("exit ")]
    assert codes == [0, 0, 0, 2, 2], out + err
    run = outputs / "run_001"
    assert list((run / "06_grpo_task" / "resume").glob("checkpoint-*/trainer_state.json"))
    assert list((run / "03_sft" / "logs" / "tensorboard").iterdir())
    # Each failure had the secrets to say, and was told without them.
    assert "rewards.py:11: failing() raised ValueError: [redacted] and [redacted]" in err
    assert "[redacted]" in (run / "06_grpo_task" / "stage.log").read_text()
    assert "RuntimeError: [redacted] and [redacted]" in err
    assert any(b"text.json" in line for line in seen)


def test_planted_secrets_are_found_nowhere(planted_run):
    outputs, out, err, seen = planted_run
    assert where_planted(outputs) == []
    for secret in PLANTED:
        assert secret not in out and secret not in err
        assert not any(secret.encode() in line for line in seen)
