"""The pages of docs/: links that lead somewhere, and the headings of a method's page."""

import re

import pytest

from utils.frame.files import REPO_ROOT

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


def prose(path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


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
