"""Secrets: where they are found, and how they are blotted out."""

import json
import os
import subprocess
import sys

import pytest

from tests.support.planted_secrets import (
    DOTENV,
    EVERY,
    HOME_FILE,
    HUB_FILE,
    NAMES,
    NETRC,
    PLANTED,
    SPELLED,
    plant,
    where_planted,
)
from utils.frame.credentials import load_environment, redact
from utils.frame.files import REPO_ROOT, UserError
from utils.frame.stage import Stage, execute


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


@pytest.mark.slow
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

    words = ["--outputs_root", str(tmp_path / "outputs")]
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


def test_the_search_would_find_them(tmp_path):
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x.bin").write_bytes(b"\0\xff" + NETRC.encode() + b"\0")
    (tmp_path / "y.json").write_text(json.dumps({"a": SPELLED}))
    (tmp_path / HUB_FILE).touch()
    assert len(where_planted(tmp_path)) == 3


@pytest.mark.parametrize("word", ["01_preprocessing", "10_evaluate.py", "per_device_train_batch_size"])
def test_words_of_the_project_are_no_secrets(monkeypatch, word):
    monkeypatch.setenv("APP_SECRET", word)
    monkeypatch.setenv("OTHER_SECRET", f"my-{word}-and-more-than-that")
    assert redact(f"outputs/run_001/{word}/x") == f"outputs/run_001/{word}/x"
    assert redact(f"it is my-{word}-and-more-than-that.") == "it is [redacted]."
