"""docs/architecture.md names what is there: paths, functions, and every room."""

import ast
import re

from utils.frame.files import REPO_ROOT

DOCUMENT = REPO_ROOT / "docs" / "architecture.md"
TEXT = DOCUMENT.read_text(encoding="utf-8")
OF_A_RUN = ("01_preprocessing/", "05_ppo", "outputs/", "datasets/")  # what runs and downloads make


def paths(text: str) -> set[str]:
    """What stands in backticks and looks like a path of the repository."""
    found = {word for word in re.findall(r"`([^`\s]+)`", text) if re.search(r"/|\.(py|sh|txt|md)$", word)}
    return {path for path in found if not path.startswith(OF_A_RUN)}


def names_in(path: str) -> set[str]:
    """The functions, classes and methods that a file defines: "f", "C", "C.f"."""
    found = set()
    for node in ast.parse((REPO_ROOT / path).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{each.name}" for each in node.body if isinstance(each, ast.FunctionDef)}
    return found


def test_every_path_exists():
    named = paths(TEXT) - {"__init__.py", "report.md", "report.html"}
    assert len(named) > 40
    missing = sorted(
        path for path in named if not (REPO_ROOT / path).exists() and not (DOCUMENT.parent / path).exists()
    )
    assert not missing


def test_every_link_leads_somewhere():
    links = re.findall(r"\]\(([^)#]+)", TEXT)
    assert len(links) > 5 and all((DOCUMENT.parent / link).exists() for link in links), links


def test_every_function_is_in_its_file():
    """Rows of the table of steps: the last two columns are a file, and names that it defines."""
    rows = re.findall(r"^\|.*\| `(utils/[^`]+\.py)` \|(.*)\|$", TEXT, flags=re.MULTILINE)
    assert len(rows) > 15
    for path, names in rows:
        for name in re.findall(r"`([^`]+)`", names):
            assert name in names_in(path), f"{path} has no {name}"


def test_the_map_and_the_tree_are_whole():
    map_, tree = re.findall(r"^```\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
    drawn = re.findall(r"│ (\w+) {3,}", map_)
    listed = (REPO_ROOT / "utils" / "__init__.py").read_text(encoding="utf-8")
    assert drawn == re.findall(r"^(\w+) {2,}\S", listed, flags=re.MULTILINE), "the rooms, in their order"
    folders = {path.parent for path in (REPO_ROOT / "utils").glob("*/*/__init__.py")}
    assert {folder.name for folder in folders} == set(
        re.findall(r"(\w+)/ ", map_.split("leaves in the run")[1])
    )
    assert len({line.rindex("│") for line in map_.splitlines() if "│" in line}) == 1
    named = {line.split()[0].rstrip(",") for line in tree.splitlines()}
    at_the_top = {
        path.name + "/" for path in REPO_ROOT.iterdir() if path.is_dir() and path.name[0] not in "._"
    }
    assert at_the_top - named <= {"outputs/", "datasets/"}
    for parent in ("configs", "tests"):
        below = {
            path.name + "/"
            for path in (REPO_ROOT / parent).iterdir()
            if path.is_dir() and path.name[0] != "_"
        }
        assert below <= named
