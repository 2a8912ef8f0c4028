"""The command that an installation makes: pyproject.toml names a function that is the driver."""

import importlib
import sys

import tomllib

from utils.driver import console
from utils.frame.files import REPO_ROOT


def entry_point():
    project = tomllib.loads((REPO_ROOT / "pyproject.toml").read_text())["project"]
    module, _, name = project["scripts"]["bellman-bench"].partition(":")
    return getattr(importlib.import_module(module), name)


def test_the_command_is_the_driver_from_any_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bellman-bench", "--method", "nonsense"])
    assert entry_point()() == 2
    assert "nonsense" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["bellman-bench", "--dry_run", "--outputs_root", "out"])
    assert entry_point()() == 0
    assert "11_comparison: 11_compare_runs.py" in capsys.readouterr().out


def test_without_the_scripts_it_says_how_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(console, "REPO_ROOT", tmp_path)
    assert console.main() == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "pip install -e ." in line
