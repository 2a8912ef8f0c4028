"""The order of the house: rooms, imports, sizes and names in utils/ (docs/architecture.md).

Each rule is a function from a source tree to the lines that break it, so that it can be shown to fail: first
on small trees made up here, then it must find nothing in this repository.
"""

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from utils.frame.files import REPO_ROOT

MODULE_LINES, SCRIPT_LINES = 400, 120
# Names that several modules may share: each method and each stage has its own.
SHARED_NAMES = {"__init__", "settings", "trainer", "build", "stage"}
# A form of data set has a reader and a task file, of the same name.
TWIN_FOLDERS = ("utils/data/readers", "utils/grading/tasks")
# Rooms named by design as a module of the standard library is. Nothing in utils is imported by a bare name.
ROOMS_NAMED_LIKE_A_LIBRARY = {"utils/statistics"}


# --------------------------------------------------------------------------------------- reading a tree


@dataclass(frozen=True)
class Import:
    """One name that a module imports: "utils.a.b" of `import utils.a.b`, "utils.a.b.c" of `from utils.a.b
    import c`. `at_import` says that it happens when the module itself is imported: not inside a function,
    and not for type checkers alone."""

    name: str
    line: int
    at_import: bool


def sources(root: Path) -> dict[str, Path]:
    """Every Python file below root/utils by its module name; a package has the name of its folder."""
    found = {}
    for path in sorted((root / "utils").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(module: str, path: Path) -> list[Import]:
    """What the file imports, anywhere in it; relative imports are resolved."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]

    def found(node: ast.AST, at_import: bool) -> Iterator[Import]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            at_import = False
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, at_import)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                yield Import(f"{source}.{alias.name}", node.lineno, at_import)
        for name, value in ast.iter_fields(node):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    types_only = isinstance(node, ast.If) and name == "body" and _is_type_checking(node.test)
                    yield from found(child, at_import and not types_only)

    return list(found(ast.parse(path.read_text(encoding="utf-8")), True))


def _is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def rooms(root: Path) -> list[str]:
    """The rooms in their order, as utils/__init__.py lists them: a name, spaces, what the room is for."""
    text = ast.get_docstring(ast.parse((root / "utils" / "__init__.py").read_text(encoding="utf-8"))) or ""
    return re.findall(r"^(\w+) {2,}\S", text, flags=re.MULTILINE)


# ------------------------------------------------------------------------------------------- the rules


def unlisted_rooms(root: Path) -> list[str]:
    """Folders of utils/ that the list of rooms lacks, and rooms without a folder."""
    folders = {path.parent.name for path in (root / "utils").glob("*/*.py")}
    listed = rooms(root)
    return [
        *(f"utils/{name}: not in the list of utils/__init__.py" for name in sorted(folders - set(listed))),
        *(f"utils/__init__.py: lists {name}, which has no folder" for name in listed if name not in folders),
    ]


def downward_imports(root: Path) -> list[str]:
    """Imports of a room further down the list, wherever they stand, and of folders beside utils/."""
    order = {room: place for place, room in enumerate(rooms(root))}
    found = []
    for module, path in sources(root).items():
        room = (module.split(".") + [""])[1]
        for each in imports(module, path):
            parts = each.name.split(".")
            if parts[0] in ("tests", "docs", "benchmarks", "examples", "slurm"):
                found.append(f"{path.relative_to(root)}:{each.line}: imports {each.name}, from outside utils")
            elif parts[0] == "utils" and order.get(parts[1], 0) > order.get(room, -1):
                found.append(f"{path.relative_to(root)}:{each.line}: {room} imports {each.name}")
    return found


def circles(root: Path) -> list[str]:
    """One chain of modules that import each other at import time, or none."""
    known = sources(root)
    graph = {}
    for module, path in known.items():
        needed = set()
        for each in imports(module, path):
            parts = each.name.split(".")
            # `from a.b import c` runs a, a.b and, where it is a module, a.b.c.
            names = {".".join(parts[:count]) for count in range(1, len(parts) + 1)}
            needed |= {name for name in names if each.at_import and not _within(module, name)}
        graph[module] = needed & known.keys()
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [" imports ".join(reversed(error.args[1]))]
    return []


def _within(module: str, package: str) -> bool:
    """Whether importing the module means that the package's own file has begun to run already."""
    return module == package or module.startswith(package + ".")


def long_files(root: Path) -> list[str]:
    """Modules of more than MODULE_LINES lines, and numbered scripts of more than SCRIPT_LINES."""
    limits = [(path, MODULE_LINES) for path in sources(root).values()]
    limits += [(path, SCRIPT_LINES) for path in sorted(root.glob("[0-9][0-9]_*.py"))]
    lengths = [(path, limit, len(path.read_text(encoding="utf-8").splitlines())) for path, limit in limits]
    return [
        f"{path.relative_to(root)}: {length} lines, at most {limit} are allowed"
        for path, limit, length in lengths
        if length > limit
    ]


def silent_rooms(root: Path) -> list[str]:
    """Folders below utils/ whose __init__.py is missing, or does not say in a sentence what belongs there."""
    found = []
    for folder in sorted({path.parent for path in sources(root).values()} - {root / "utils"}):
        path = folder / "__init__.py"
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        said = ast.get_docstring(ast.parse(text)) or ""
        if len(said.split()) < 4 or not said.endswith((".", "?")):
            found.append(f"{path.relative_to(root)}: does not say what belongs in this folder")
    return found


def shared_names(root: Path) -> list[str]:
    """Files of one name in several folders, but for SHARED_NAMES and a data set's reader and task."""
    places = defaultdict(list)
    for path in sources(root).values():
        places[path.stem].append(path.relative_to(root).as_posix())
    found = []
    for name, files in sorted(places.items()):
        twins = sorted(file.rpartition("/")[0] for file in files) == sorted(TWIN_FOLDERS)
        if len(files) > 1 and name not in SHARED_NAMES and not twins:
            found.append(f"{' and '.join(files)}: the same name")
    return found


def shared_classes(root: Path) -> list[str]:
    """Public classes of one name in several files."""
    places = defaultdict(list)
    for path in sources(root).values():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(path.relative_to(root).as_posix())
    return [f"{' and '.join(files)}: class {name}" for name, files in sorted(places.items()) if files[1:]]


def names_of_the_library(root: Path) -> list[str]:
    """Files and folders named as a module of the standard library is."""
    paths = [path.parent if path.name == "__init__.py" else path for path in sources(root).values()]
    names = {path.relative_to(root).as_posix(): path.stem for path in paths}
    return [
        f"{name}: a module of the standard library has this name"
        for name, stem in names.items()
        if stem in sys.stdlib_module_names and name not in ROOMS_NAMED_LIKE_A_LIBRARY
    ]


# ------------------------------------------------------------------------------------- this repository


RULES = [
    unlisted_rooms,
    downward_imports,
    circles,
    long_files,
    silent_rooms,
    shared_names,
    shared_classes,
    names_of_the_library,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_is_in_order(rule):
    found = rule(REPO_ROOT)
    assert not found, "\n".join(found)


def test_the_rules_see_the_house():
    """A rule that looks in the wrong place finds nothing wrong."""
    modules = sources(REPO_ROOT)
    assert len(modules) > 100 and rooms(REPO_ROOT)[0] == "frame" and rooms(REPO_ROOT)[-1] == "driver"
    assert len(list(REPO_ROOT.glob("[0-9][0-9]_*.py"))) == 13
    found = [each for module, path in modules.items() for each in imports(module, path)]
    inside = [each for each in found if each.name.startswith("utils.")]
    assert len(inside) > 500 and {each.at_import for each in inside} == {True, False}


# ---------------------------------------------------------------------------------------- made-up trees


GOOD = {
    "utils/__init__.py": '"""The rooms, in order.\n\nlow   what all need\nhigh  what needs it\n"""\n',
    "utils/low/__init__.py": '"""What every other room here needs."""\n',
    "utils/low/files.py": "import json\n",
    "utils/low/paths.py": "from utils.low.files import json\n",
    "utils/high/__init__.py": '"""What stands on the other room."""\n',
    "utils/high/stage.py": "from utils.low import files\n\ndef run():\n    import utils.low.paths\n",
    "00_first.py": "pass\n",
}


@pytest.fixture
def tree(tmp_path):
    """A factory: the good tree with some files changed, added, or (None) left out."""

    def build(**changes) -> Path:
        for name, text in (GOOD | changes.get("files", {})).items():
            if text is not None:
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name).write_text(text)
        return tmp_path

    return build


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_good_tree_breaks_no_rule(tree, rule):
    assert rule(tree()) == []


FAULTS = [
    (unlisted_rooms, {"utils/attic/old.py": ""}, r"utils/attic: not in the list"),
    (unlisted_rooms, {"utils/high/__init__.py": None, "utils/high/stage.py": None}, "lists high"),
    (downward_imports, {"utils/low/a.py": "import utils.high.stage"}, r"low/a.py:1: low imports utils.high"),
    (downward_imports, {"utils/low/a.py": "from utils.high import stage"}, r"low/a.py:1: low imports"),
    (downward_imports, {"utils/low/a.py": "from utils import high"}, r"low/a.py:1: low imports utils.high"),
    (downward_imports, {"utils/low/a.py": "from ..high import stage"}, r"low/a.py:1: low imports utils.high"),
    (downward_imports, {"utils/low/a.py": "def f():\n    import utils.high.stage"}, r"low/a.py:2: low"),
    (
        downward_imports,
        {"utils/low/a.py": "if TYPE_CHECKING:\n    from utils.high import stage"},
        r"low/a.py:2: low imports utils.high.stage",
    ),
    (downward_imports, {"utils/high/b.py": "from tests.support import toy"}, r"imports tests.support.toy"),
    (
        circles,
        {"utils/low/a.py": "import utils.low.b", "utils/low/b.py": "from utils.low import a"},
        r"utils.low.[ab] imports utils.low.[ab] imports utils.low.[ab]",
    ),
    (
        circles,
        {
            "utils/low/a.py": "from utils.low.b import x",
            "utils/low/b.py": "try:\n    from utils.low.c import x\nexcept ImportError:\n    x = 1",
            "utils/low/c.py": "class X:\n    from .a import x",
        },
        r"(utils.low.\w imports ){3}utils.low.\w",
    ),
    (
        circles,
        {
            "utils/low/__init__.py": "import utils.low.files",
            "utils/low/files.py": "import utils.high.b",
            "utils/high/b.py": "import utils.low",
        },
        "imports",
    ),
    (long_files, {"utils/low/files.py": "#\n" * 401}, r"utils/low/files.py: 401 lines, at most 400"),
    (long_files, {"00_first.py": "#\n" * 121}, r"00_first.py: 121 lines, at most 120"),
    (silent_rooms, {"utils/low/__init__.py": None}, r"utils/low/__init__.py: does not say"),
    (silent_rooms, {"utils/low/__init__.py": '"""Low."""'}, r"utils/low/__init__.py: does not say"),
    (silent_rooms, {"utils/low/inner/a.py": ""}, r"utils/low/inner/__init__.py: does not say"),
    (shared_names, {"utils/high/files.py": ""}, r"utils/high/files.py and utils/low/files.py: the same"),
    (
        shared_names,
        {"utils/data/readers/gsm8k.py": "", "utils/grading/gsm8k.py": ""},
        r"utils/data/readers/gsm8k.py and utils/grading/gsm8k.py: the same name",
    ),
    (
        shared_classes,
        {"utils/low/a.py": "class Cost:\n    x = 1", "utils/high/b.py": "class Cost(int):\n    y = 2"},
        "utils/high/b.py and utils/low/a.py: class Cost",
    ),
    (names_of_the_library, {"utils/low/json.py": ""}, r"utils/low/json.py: a module of the standard"),
    (names_of_the_library, {"utils/low/types/__init__.py": ""}, r"utils/low/types: a module of the standard"),
]


@pytest.mark.parametrize(
    ("rule", "files", "message"),
    FAULTS,
    ids=[f"{rule.__name__}-{n}" for n, (rule, _, _) in enumerate(FAULTS)],
)
def test_a_fault_is_found(tree, rule, files, message):
    found = rule(tree(files=files))
    assert len(found) == 1 and re.search(message, found[0]), found


def test_what_the_rules_allow(tree):
    """Circles inside functions or for type checkers, long files at the limit, names that may be shared."""
    root = tree(
        files={
            "utils/low/a.py": "from utils.low import b",
            "utils/low/b.py": "if TYPE_CHECKING:\n    import utils.low.a\n\ndef f():\n    import utils.low.a",
            "utils/low/settings.py": "#\n" * 400,
            "utils/high/settings.py": "",
            "utils/data/readers/gsm8k.py": "",
            "utils/grading/tasks/gsm8k.py": "",
            "utils/statistics/__init__.py": "",
            "00_first.py": "#\n" * 120,
        }
    )
    for rule in (downward_imports, circles, long_files, shared_names, names_of_the_library):
        assert rule(root) == [], rule.__name__
