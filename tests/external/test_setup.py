"""setup.sh and activate.sh, with stubs in place of python, pip and df: nothing is installed."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from utils.frame.files import REPO_ROOT

TOOLS = ["bash", "cat", "mkdir", "touch", "rm", "mv", "cp", "head", "sed", "awk", "grep", "dirname"]

# Stands for a python3: answers the questions setup.sh asks it and makes a "venv" that is such a stub again.
PYTHON_STUB = """#!/bin/bash
version=${STUB_VERSION:-3.11.9}
case "$*" in
  *version_info*) [ "$(printf '%s\\n' 3.11 "$version" | sort -V | head -n 1)" = 3.11 ] ;;
  -V) echo "Python $version" ;;
  *"import venv, ensurepip"*) [ -z "$STUB_NO_VENV" ] ;;
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m pip --version") echo "pip 1" ;;
  "-m pip check") exit ${STUB_CHECK:-0} ;;
  "-m pip install"*) echo "$*" >>"$STUB_CALLS"; echo "${STUB_PIP_SAYS:-fine}"; exit ${STUB_PIP_CODE:-0} ;;
  "- "*) cat >/dev/null; echo "$version $(sha256sum "$2" "$3" | cut -c1-64 | tr '\\n' ' ')" ;;
  *) echo "stub: $*" >&2; exit 99 ;;
esac
"""


@pytest.fixture
def project(tmp_path):
    """A copy of the scripts with a PATH of its own; returns run(*argv, **environment)."""
    root = tmp_path / "with space" / "project"
    root.mkdir(parents=True)
    for name in ("setup.sh", "activate.sh", "requirements.txt", "constraints.txt"):
        shutil.copy(REPO_ROOT / name, root / name)
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for tool in [*TOOLS, "sort", "sha256sum", "cut", "tr", "printf"]:
        (binaries / tool).symlink_to(shutil.which(tool))
    script(binaries / "python3", PYTHON_STUB)
    script(binaries / "df", "#!/bin/bash\necho header\necho disk 0 0 ${STUB_FREE_KB:-99999999} 0 /\n")
    calls = tmp_path / "pip_calls"
    calls.touch()

    def run(*argv: str, cwd: Path = root, program: str = "setup.sh", **environment: str):
        env = {"PATH": str(binaries), "HOME": str(tmp_path), "STUB_CALLS": str(calls)} | environment
        command = ["bash", str(root / program), *argv]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=cwd, env=env)

    run.root, run.binaries, run.calls = root, binaries, calls
    return run


def script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def one_line(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 2, done
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: "), done.stderr
    return done.stderr


def test_it_installs_once_then_runs_the_command_inside(project):
    done = project("bash", "-c", 'echo "$VIRTUAL_ENV"; pwd; exit 7', cwd=Path("/"))
    assert done.returncode == 7, done
    assert done.stdout.splitlines()[-2:] == [str(project.root / ".venv"), str(project.root)]
    call = project.calls.read_text()
    assert "-r " + str(project.root / "requirements.txt") in call and "constraints.txt" in call
    again = project("python", "-V")
    assert again.stdout == "Python 3.11.9\n" and again.stderr == ""
    assert project().stdout == ""
    assert project.calls.read_text() == call


def test_arguments_reach_the_command_as_they_are(project):
    done = project("printf", "<%s>", "a b", "--restart", "*", "")
    assert done.stdout.endswith("<a b><--restart><*><>")


@pytest.mark.parametrize("name", ["requirements.txt", "constraints.txt"])
def test_changed_pins_install_again_into_the_same_environment(project, name):
    project()
    (project.root / ".venv" / "mark").touch()
    with open(project.root / name, "a") as file:
        file.write("# changed\n")
    project()
    project()
    assert len(project.calls.read_text().splitlines()) == 2
    assert (project.root / ".venv" / "mark").exists()


def test_restart_builds_anew(project):
    project()
    (project.root / ".venv" / "mark").touch()
    assert project("--restart", "python", "-V").stdout.endswith("Python 3.11.9\n")
    assert not (project.root / ".venv" / "mark").exists()
    assert len(project.calls.read_text().splitlines()) == 2


def test_an_interrupted_installation_is_not_taken_as_up_to_date(project):
    """The installation is killed while pip runs; what it left is thrown away."""
    python = project.binaries / "python3"
    text = PYTHON_STUB.replace('echo "$*" >>"$STUB_CALLS";', 'touch "${0%/bin/python}/half"; kill -9 $PPID;')
    script(python, text)
    assert project().returncode == -9
    half = project.root / ".venv" / "half"
    assert half.exists()
    script(python, PYTHON_STUB)
    done = project("python", "-V")
    assert done.returncode == 0 and "did not finish; starting afresh" in done.stdout
    assert not half.exists()


def test_a_broken_environment_is_rebuilt(project):
    project()
    script(project.root / ".venv" / "bin" / "python", "#!/bin/bash\nexit 127\n")
    assert project("python", "-V").stdout.endswith("Python 3.11.9\n")


def test_without_python(project):
    (project.binaries / "python3").unlink()
    assert "python3 is missing: install Python 3.11" in one_line(project())
    assert not (project.root / ".venv").exists()


def test_with_an_old_python(project):
    message = one_line(project(STUB_VERSION="3.9.2"))
    assert "python3 is Python 3.9.2, but Python 3.11 or newer is needed" in message
    script(project.binaries / "python3.12", PYTHON_STUB.replace("${STUB_VERSION:-3.11.9}", "3.12.1"))
    assert project("python", "-V", STUB_VERSION="3.9.2").stdout.endswith("Python 3.12.1\n")


def test_a_python_of_choice(project):
    script(project.binaries / "mypython", PYTHON_STUB.replace("${STUB_VERSION:-3.11.9}", "3.13.2"))
    assert project("python", "-V", PYTHON="mypython").stdout.endswith("Python 3.13.2\n")
    assert "nosuch is missing" in one_line(project("--restart", PYTHON="nosuch"))
    # What cannot be rebuilt is not thrown away.
    assert project("python", "-V").stdout == "Python 3.13.2\n"


def test_without_the_venv_module(project):
    assert "has no venv module: install it (e.g. apt-get install python3-venv)" in one_line(
        project(STUB_NO_VENV="1")
    )
    assert not (project.root / ".venv").exists()


def test_without_disk_space(project):
    message = one_line(project(STUB_FREE_KB="1048576"))
    assert "about 4 GB are needed, 1024 MB are free" in message
    assert not (project.root / ".venv").exists()


@pytest.mark.parametrize(
    "says, expected",
    [
        ("WARNING: Retrying ... NewConnectionError: Name or service not known", "cannot be reached: connect"),
        (
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
            "is full",
        ),
        (
            "ERROR: No matching distribution found for torch==2.13.0",
            "No matching distribution found for torch",
        ),
    ],
)
def test_what_pip_could_not_do_is_one_line_and_is_tried_again(project, says, expected):
    assert expected in one_line(project(STUB_PIP_CODE="1", STUB_PIP_SAYS=says))
    assert project("python", "-V").stdout.endswith("Python 3.11.9\n")


def test_contradicting_packages_are_an_error(project):
    assert "contradict each other" in one_line(project(STUB_CHECK="1"))


def test_wrong_use(project):
    assert "unknown option --rebuild" in one_line(project("--rebuild"))
    assert "./setup.sh [--restart] [COMMAND ...]" in project("--help").stdout
    project()
    assert "nosuch: no such command" in one_line(project("nosuch"))


def test_activate_needs_setup_and_then_enters(project):
    def source():
        command = ["bash", "-c", f'source "{project.root}/activate.sh"; echo "$? $ENTERED"']
        return subprocess.run(command, capture_output=True, text=True, timeout=30, cwd="/", env=os.environ)

    before = source()
    assert before.stdout == "2 \n" and "setup.sh first" in before.stderr
    project()
    (project.root / ".venv" / "bin" / "activate").write_text("ENTERED=yes\n")
    assert source().stdout == "0 yes\n"
    assert "source activate.sh" in one_line(project(program="activate.sh"))


def test_constraints_are_pins_only_and_cover_the_requirements():
    def lines(name: str) -> list[str]:
        text = (REPO_ROOT / name).read_text().splitlines()
        return [line for line in text if line.strip() and not line.startswith("#")]

    pins = dict(line.split("==") for line in lines("constraints.txt"))
    assert pins["torch"] == "2.13.0"
    assert not [name for name in pins if name.lower().startswith(("nvidia", "cuda", "triton"))]
    names = {name.lower().replace("_", "-") for name in pins}
    for line in lines("requirements.txt"):
        assert line.split("==")[0].lower().replace("_", "-") in names
