"""Secrets: where they are found, how they are blotted out, and that planted ones are found nowhere."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from utils.frame.credentials import load_environment, redact
from utils.frame.files import REPO_ROOT, UserError
from utils.frame.stage import Stage, execute

# One for each place that a secret can be in. The third is spelled otherwise in JSON and in an address.
ENVIRONMENT = "planted_environment_0123456789"
DOTENV = "planted_dotenv_0123456789"
SPELLED = 'planted "quoted" & spelled /0123456789'
HOME_FILE = "planted_home_file_0123456789"
HUB_FILE = "planted_hub_file_0123456789"
HUB_STORED = "planted_hub_stored_0123456789"
NETRC = "planted_netrc_0123456789"
SHAPED = "hf_" + "aB3" * 11
PLANTED = (ENVIRONMENT, DOTENV, SPELLED, HOME_FILE, HUB_FILE, HUB_STORED, NETRC, SHAPED)
EVERY = " and ".join(PLANTED)
NAMES = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HF_TOKEN_PATH",
    "HF_HOME",
    "NETRC",
    "BELLMAN_ENV",
    "MY_API_KEY",
)


def plant(home: Path) -> dict[str, str]:
    """Plant the secrets below ``home``; returns the variables that point there."""
    (home / "env").write_text(
        f"# a comment\nHF_TOKEN={DOTENV}\nMY_PASSWORD='{SPELLED}'\nPLAIN=visible_setting\n"
    )
    (home / ".huggingface_token").write_text(HOME_FILE + "\n")
    hub = home / ".cache" / "huggingface"
    hub.mkdir(parents=True)
    (hub / "token").write_text(HUB_FILE)
    (hub / "stored_tokens").write_text(f"[mine]\nhf_token = {HUB_STORED}\n")
    (home / ".netrc").write_text(f"machine api.wandb.ai login user password {NETRC}\n")
    return {"HOME": str(home), "BELLMAN_ENV": str(home / "env"), "MY_API_KEY": ENVIRONMENT}


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """A home with secrets in it, for this process."""
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that what is set below is unset in the end
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    for name, value in plant(home).items():
        monkeypatch.setenv(name, value)
    return home


# ------------------------------------------------------------------------------------- where they are found


def test_the_environment_wins_over_env_file_and_an_empty_one_counts(planted, monkeypatch):
    for name in ("MY_PASSWORD", "PLAIN"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    load_environment()
    assert os.environ["HF_TOKEN"] == DOTENV and os.environ["PLAIN"] == "visible_setting"
    monkeypatch.setenv("HF_TOKEN", "")
    load_environment()
    assert os.environ["HF_TOKEN"] == ""


def test_the_hub_finds_its_token_in_the_promised_order(planted):
    """Asked of the library itself, in a process each, for it reads its paths when it is imported."""
    code = (
        "from utils.frame.credentials import load_environment; load_environment()\n"
        "from huggingface_hub import get_token; print(get_token())"
    )

    def found() -> str:
        done = subprocess.run([sys.executable, "-c", code], cwd=REPO_ROOT, capture_output=True, text=True)
        return done.stdout.strip()

    assert found() == DOTENV
    (planted / "env").write_text("")
    assert found() == HOME_FILE
    (planted / ".huggingface_token").unlink()
    assert found() == HUB_FILE
    os.environ["HF_TOKEN_PATH"] = str(planted / "given")
    (planted / "given").write_text("from_the_given_file")
    assert found() == "from_the_given_file"


def test_an_env_file_that_cannot_be_read_says_nothing_of_its_content(planted, monkeypatch):
    (planted / "env").write_bytes(b"HF_TOKEN=\xff\xfeplanted_broken_0123456789\n")
    with pytest.raises(UserError, match="cannot be read as UTF-8 text") as raised:
        load_environment()
    assert "planted" not in str(raised.value).replace(str(planted), "")
    monkeypatch.setenv("BELLMAN_ENV", str(planted / "nosuch"))
    with pytest.raises(UserError, match="BELLMAN_ENV: .*nosuch: no such file"):
        load_environment()


def test_git_ignores_env_and_has_the_example():
    ignored = subprocess.run(["git", "check-ignore", ".env"], cwd=REPO_ROOT, capture_output=True, text=True)
    if ignored.returncode == 128:
        pytest.skip("no git checkout")
    assert ignored.stdout == ".env\n"
    lines = (REPO_ROOT / ".env.example").read_text().splitlines()
    assert all(not line or line.startswith("#") for line in lines)


# ----------------------------------------------------------------------------------- how they are blotted out


def test_every_planted_secret_is_blotted_out(planted):
    assert redact(EVERY) == " and ".join(["[redacted]"] * len(PLANTED))
    assert redact("visible_setting, token, hf_short") == "visible_setting, token, hf_short"


def test_other_spellings_are_blotted_out_too(planted):
    assert redact(json.dumps({"a": SPELLED})) == '{"a": "[redacted]"}'
    assert redact("x=planted%20%22quoted%22%20%26%20spelled%20%2F0123456789&y") == "x=[redacted]&y"
    assert (
        redact("https://me:s3cret@host/x https://host:80/x@y")
        == "https://[redacted]@host/x https://host:80/x@y"
    )


def test_half_a_token_is_blotted_out_too(planted):
    assert redact(f"found {DOTENV[:20]}… x") == "found [redacted] x"


def test_a_secret_of_several_lines_is_blotted_out_line_by_line(planted, monkeypatch):
    monkeypatch.setenv("SSH_KEY", "-----BEGIN KEY-----\nplanted_line_one_01\nplanted_line_two_02\n")
    assert redact("planted_line_one_01 planted_line_two_02") == "[redacted] [redacted]"


def test_secrets_of_the_environment_are_blotted_out(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnop")
    monkeypatch.setenv("WANDB_API_KEY", "wandb-0123456789")
    monkeypatch.setenv("SHORT_TOKEN", "on")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".huggingface_token").write_text("hf_from_the_home_folder\n")
    text = "a hf_abcdefghijklmnop b wandb-0123456789 c hf_from_the_home_folder on"
    assert redact(text) == "a [redacted] b [redacted] c [redacted] on"


@pytest.mark.parametrize("error", [None, UserError(EVERY), RuntimeError(EVERY)])
def test_nothing_that_a_stage_says_or_notes_keeps_one(planted, tmp_path, capfd, error):
    stage = Stage("01", "01_preprocessing", summary="Say secrets.", reads="", writes="")

    def run(ctx):
        ctx.log(EVERY)
        ctx.metrics["said"], ctx.runtime["said"] = EVERY, EVERY
        if error:
            raise error

    words = ["--output_dir", str(tmp_path / "outputs")]
    if isinstance(error, RuntimeError):
        with pytest.raises(RuntimeError):  # which Python reports, through `redact_tracebacks`
            execute(stage, run, words)
    else:
        assert execute(stage, run, words) == (2 if error else 0)
    out, err = capfd.readouterr()
    assert where_planted(tmp_path / "outputs") == []
    assert not any(secret in out + err for secret in PLANTED)
    log = (tmp_path / "outputs/run_001/01_preprocessing/stage.log").read_text()
    assert log.count(" and ".join(["[redacted]"] * len(PLANTED))) == (2 if error else 1)


# ------------------------------------------------------------------------------------- planted in real runs

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


def where_planted(folder: Path) -> list[str]:
    """The files below ``folder``, hidden ones included, that hold a secret in name or content, and which."""
    spellings = {text.encode() for secret in PLANTED for text in (secret, json.dumps(secret)[1:-1])}
    found = []
    for file in folder.rglob("*"):
        content = file.read_bytes() if file.is_file() else b""
        found += [f"{file}: {text!r}" for text in spellings if text in content or text in bytes(file)]
    return found


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
    common = ["--quick_test", "--output_dir", str(outputs)]
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


def test_the_search_would_find_them(tmp_path):
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x.bin").write_bytes(b"\0\xff" + NETRC.encode() + b"\0")
    (tmp_path / "y.json").write_text(json.dumps({"a": SPELLED}))
    (tmp_path / HUB_FILE).touch()
    assert len(where_planted(tmp_path)) == 3
