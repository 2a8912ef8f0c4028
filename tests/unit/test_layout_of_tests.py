"""Where tests stand: helpers in support/, units in the tree of utils/; documents name tests there are."""

import ast
import re
from pathlib import Path

import pytest

from tests.support.inner_loop import can_be_fast
from utils.frame.files import REPO_ROOT

TESTS = REPO_ROOT / "tests"
MODULES = sorted(TESTS.rglob("*.py"))
DOCUMENTS = [REPO_ROOT / "README.md", *sorted((REPO_ROOT / "docs").glob("*.md"))]
NAMED = re.compile(r"(?P<path>tests/[\w/]+\.py)(?:::(?P<test>test_\w+))?")


def imported(path: Path) -> set[str]:
    """The modules that a file imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(TESTS).as_posix())
def test_no_test_module_is_imported(path):
    tests = {name for name in imported(path) if name.startswith("tests.")}
    # The latter two are for others to run: graders, and a harness that any trainer can be held against.
    shared = ("tests.support", "tests.external.conformance", "tests.external.faults")
    assert [name for name in tests if not name.startswith(shared)] == []


def test_units_stand_in_the_tree_of_utils():
    unit = TESTS / "unit"
    folders = {path.parent.relative_to(unit) for path in unit.rglob("test_*.py")}
    known = (REPO_ROOT / "utils", REPO_ROOT)  # examples/ and benchmarks/ have tests too
    assert [folder for folder in folders if not any((root / folder).is_dir() for root in known)] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents_name_tests_that_there_are(document):
    for named in NAMED.finditer(document.read_text(encoding="utf-8")):
        path = REPO_ROOT / named["path"]
        assert path.is_file(), named[0]
        assert not named["test"] or f"def {named['test']}(" in path.read_text(encoding="utf-8"), named[0]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("unit/comparison/test_paired.py", True),
        ("unit/methods/ppo/test_losses.py", True),
        ("unit/methods/ppo/test_trainer.py", False),
        ("unit/rollouts/test_shared_prefix_trainer.py", False),
        ("unit/methods/ppo/test_trainer_on_toy.py", False),  # by what it imports from support/
        ("stages/test_resume.py", False),
        ("pipeline/test_pipeline.py", False),
    ],
)
def test_the_inner_loop_is_of_units_that_do_not_need_trl(path, expected):
    assert (TESTS / path).is_file() and can_be_fast(TESTS / path) is expected
