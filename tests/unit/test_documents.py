"""The pages of docs/: commands that their scripts take, links, and the headings of a method's page."""

import re
import shlex

import pytest

from utils.driver import command
from utils.driver.graph import build_graph
from utils.frame.files import REPO_ROOT
from utils.frame.stage_plan import load_script, make_plan

PAGES = [REPO_ROOT / "README.md", REPO_ROOT / "CONTRIBUTING.md", *sorted((REPO_ROOT / "docs").glob("*.md"))]
METHODS = ("sft", "distillation", "ppo", "grpo", "rloo", "dpo")
HEADINGS = [
    "Usage",
    "Equations",
    "Departures from the paper",
    "Settings",
    "Logged metrics",
    "Results",
    "References",
]
# What a reader puts in place of these words.
PLACEHOLDERS = {
    "M.yaml": "configs/models/sample.yaml",
    "D.yaml": "configs/datasets/sample.yaml",
    "NAME": "ppo",
    **dict.fromkeys(("S", "RATE", "W", "N"), "1"),
}
# Pages whose commands other tests run (some are refused), and options with which nothing is planned.
RUN_ELSEWHERE = ("commands.md", "extending.md")
NO_PLAN = {"--diagnose", "--diff", "--ask"}


def prose(path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(path) -> list[tuple[str, list[str]]]:
    """The numbered scripts that a page calls, with all options, and of alternatives the first."""
    text = re.sub(r"\\\n\s*", "", prose(path))
    for name, value in re.findall(r'^    ([A-Z])="(.*)"$', text, re.MULTILINE):
        text = text.replace(f"${name}", value)
    blocks = re.findall(
        r"^    (?:\S* )*?(?:python |--num_processes \d )(\d\d_\w+\.py.*)$", text, re.MULTILINE
    )
    found = []
    for line in [*blocks, *re.findall(r"`(\d\d_\w+\.py --[^`]*)`", text)]:
        script, *words = shlex.split(re.sub(r"[\[\]]", "", line), comments=True)
        if "…" not in line and not NO_PLAN & set(words):
            found.append((script, [PLACEHOLDERS.get(word, word.split("|")[0]) for word in words]))
    return found


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name not in RUN_ELSEWHERE], ids=lambda path: path.name
)
def test_commands_are_taken_by_their_scripts(page, tmp_path, monkeypatch):
    """Options, values and files: what a plan is made of. Inputs of other stages are not looked for."""
    monkeypatch.chdir(REPO_ROOT)
    for script, words in commands(page):
        if script == "12_driver.py":
            known, goal, overrides = command.parse(words, "", "")
            build_graph(goal, overrides, known.run_id, known.seed)
        else:
            make_plan(load_script(script).STAGE, [*words, "--outputs_root", str(tmp_path)])


def test_commands_are_found():
    found = {page.name: len(commands(page)) for page in PAGES}
    assert (
        found["README.md"] > 5
        and found["driver.md"] > 5
        and found["data.md"] > 5
        and sum(found.values()) > 100
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_other_scripts_are_there(page):
    named = r"\b((?:benchmarks|assets|examples|runs|slurm|tests)/[\w/]+\.(?:py|sh|sbatch|yaml))"
    for path in re.findall(named, page.read_text(encoding="utf-8")):
        assert (REPO_ROOT / path).exists() or path == "slurm/cluster.local.yaml", path


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        name, _, anchor = link.partition("#")
        if name.startswith("http"):
            continue
        target = (page.parent / name) if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("method", METHODS)
def test_a_page_of_a_method_has_the_headings_in_their_order(method):
    page = REPO_ROOT / "docs" / f"{method}.md"
    assert re.findall(r"^## (.*)$", prose(page), re.MULTILINE) == HEADINGS
