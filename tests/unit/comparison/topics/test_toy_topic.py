"""A new measure is one file of topics/: it is in tables, report and page, and nothing else is edited."""

import json
import shutil
import sys

import pytest

from tests.support.finished_runs import write_run
from tests.support.scripts import execute_stage
from utils.comparison import topics
from utils.frame.files import read_csv, read_json, write_json

TOY = '''
"""How many letters a policy's name has."""

from utils.comparison.topic import Comparison, Topic
from utils.documents.document import Figure, Number, Paragraph, Section, Table, emphasis
from utils.documents.figures import drawing, mark


def topic(comparison: Comparison) -> Topic:
    letters = {name: len(name) for name in comparison.policies}
    rows = [[name, Number(f"{count} letters", count)] for name, count in letters.items()]
    blocks = [Paragraph(["A ", emphasis("toy"), "."]), Table(["policy", "letters"], rows)]
    blocks.append(Figure("toy.png", "Toy"))

    def draw(path):
        with drawing(path, (3, 2), (1,)) as (_, (axis,)):
            for place, (name, count) in enumerate(letters.items()):
                mark(axis, place, count, comparison.styles[name])

    return Topic(
        sections=[Section("Letters", blocks)],
        columns={name: {"letters": count} for name, count in letters.items()},
        by_run={name: [{"letters": count}] * comparison.runs for name, count in letters.items()},
        files={"toy.png": draw},
    )
'''


@pytest.fixture()
def toy(tmp_path, monkeypatch):
    """The file, in a folder that counts as one of topics/."""
    folder = tmp_path / "more_topics"
    folder.mkdir()
    (folder / "toy_letters.py").write_text(TOY)
    monkeypatch.setattr(topics, "__path__", [*topics.__path__, str(folder)])
    yield
    sys.modules.pop(f"{topics.__name__}.toy_letters", None)


@pytest.mark.parametrize("seeds", [False, True])
@pytest.mark.usefixtures("toy", "unrendered")
def test_one_file_is_a_topic(tmp_path, seeds):
    for seed in range(2):
        write_run(tmp_path / f"s{seed}", seed, {"sft": 20 + seed, "sft_long": 40 + seed})
    over = ["--by_seed", "--runs", "s0,s1"] if seeds else ["--runs", "s0"]
    argv = ["--outputs_root", str(tmp_path), "--run_id", "c", *over]
    assert execute_stage("11_compare_runs.py", argv) == 0
    out = tmp_path / "c" / "11_comparison"
    rows = read_csv(out / "summary.csv")
    assert [(row["policy"], row["letters"]) for row in rows] == [("sft", "3"), ("sft_long", "8")]
    assert list(rows[0])[-3:] == ["letters", "status", "reason"]  # a topic that is on no list comes last
    report = (out / "report.md").read_text()
    section = "## Letters\n\nA *toy*.\n\n| policy | letters |\n| --- | --- |\n| sft | 3 letters |\n"
    assert report.endswith(f"{section}| sft_long | 8 letters |\n\n![Toy](toy.png)\n")
    page = (out / "report.html").read_text()
    assert '<section class="chapter" id="report-letters">\n<h3>Letters</h3>\n<p>A <em>toy</em>.</p>' in page
    assert '<th scope="row">sft_long</th><td data-key="8">8 letters</td>' in page
    assert page.count('alt="Toy"') == 1 and "The figure toy.png is not there" not in page
    assert "11_comparison/toy.png" in json.loads((out / "manifest.json").read_text())["outputs"]
    if seeds:
        assert [row["letters"] for row in read_csv(out / "by_seed.csv")] == ["3", "3", "8", "8"]


@pytest.mark.usefixtures("unrendered")
def test_equal_runs_have_equal_pages_whatever_their_names_and_commits(tmp_path):
    write_run(tmp_path / "one", 0, {"sft": 20, "sft_long": 40})
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    for path in (tmp_path / "two").rglob("manifest.json"):
        changes = {"run_id": "two", "environment": {"git_commit": "b" * 40, "git_dirty": True}}
        write_json(path, read_json(path) | changes)
    written = []
    for run in ("one", "two"):
        argv = ["--outputs_root", str(tmp_path), "--run_id", run]
        assert execute_stage("11_compare_runs.py", argv) == 0
        written.append(read_json(tmp_path / run / "11_comparison" / "manifest.json")["outputs"])
    assert written[0] == written[1]
    assert "11_comparison/report.html" in written[0] and "11_comparison/timing.md" not in written[0]
    page = (tmp_path / "two" / "11_comparison" / "report.html").read_text()
    assert "bbbb" not in page and "git commit of a stage stands in its manifest.json" in page


@pytest.mark.usefixtures("unrendered")
def test_several_runs_are_told_apart_on_the_page(tmp_path):
    for seed in range(2):
        write_run(tmp_path / f"run_{seed}", seed, {"sft": 20 + seed})
    argv = ["--outputs_root", str(tmp_path), "--run_id", "both", "--runs", "run_0,run_1"]
    assert execute_stage("11_compare_runs.py", argv) == 0
    page = (tmp_path / "both" / "11_comparison" / "report.html").read_text()
    provenance = page[page.index('id="provenance-title"') :]
    assert '<th scope="row">run_0</th>' in provenance and "<td>run_1</td>" in provenance
