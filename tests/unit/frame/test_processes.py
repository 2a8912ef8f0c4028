"""Several processes, as far as one process can tell, and the configurations that are shipped for them."""

import os

import pytest
import yaml

from utils.frame import processes
from utils.frame.files import REPO_ROOT
from utils.frame.stage import Stage, execute

CONFIGS = sorted((REPO_ROOT / "configs" / "accelerate").glob("*.yaml"))


def test_a_stage_of_one_process_refuses_several(monkeypatch, capsys):
    """In one line, from the main process."""
    stage = Stage("01", "01_preprocessing", "", "", "")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, lines in (("1", 0), ("0", 1)):
        monkeypatch.setenv("RANK", rank)
        assert execute(stage, lambda ctx: pytest.fail("ran"), []) == 2
        errors = capsys.readouterr().err.splitlines()
        assert len(errors) == lines
    assert "runs in one process" in errors[0]


def test_without_a_launcher_there_is_one_process():
    assert "WORLD_SIZE" not in os.environ
    assert processes.num_processes() == 1 and processes.is_main_process()
    assert processes.share([1, 2, 3]) == processes.merge_shares([1, 2, 3]) == [1, 2, 3]
    assert processes.from_main("said") == "said" and processes.gather_lists([1]) == [[1]]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_knows_every_key(path):
    """Its own reader refuses unknown keys of the file; those of a section become options of its launcher."""
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    config = load_config_from_file(str(path))
    assert config.num_machines == 1 and config.main_process_port == 0
    known = {action.dest for action in launch_command_parser()._actions}
    for section in ("fsdp_config", "deepspeed_config"):
        assert set(yaml.safe_load(path.read_text()).get(section, {})) <= known
    assert len(CONFIGS) == 4
