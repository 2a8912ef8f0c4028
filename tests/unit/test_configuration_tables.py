"""docs/configuration.md lists every key, with what a stage runs with where no option is given."""

import re
from operator import attrgetter

import pytest

from docs import configuration_tables as reference
from tests.support import toy
from utils.frame import command_line as cli
from utils.frame.files import REPO_ROOT
from utils.frame.pipeline import METHODS, PIPELINE, row_of
from utils.frame.typed_settings import leaf_keys


def test_the_tables_of_the_documentation_are_up_to_date():
    document = reference.DOCUMENT.read_text(encoding="utf-8")
    fresh = reference.with_tables(document, reference.stages())
    assert document == fresh, "run python -m docs.configuration_tables and commit docs/configuration.md"


def documented() -> dict[str, dict[str, str]]:
    """Title of a table -> key -> the value it shows."""
    text = reference.DOCUMENT.read_text(encoding="utf-8").partition(reference.BEGIN)[2]
    blocks = (block.partition("\n") for block in text.split("### ")[1:])
    return {
        title: dict(re.findall(r"^\| `([^`]+)` \| `([^`]*)`", rows, re.MULTILINE))
        for title, _, rows in blocks
    }


@pytest.mark.parametrize("stage", reference.stages(), ids=lambda stage: stage.folder)
def test_the_documentation_shows_what_a_stage_runs_with(stage):
    """Against the configuration that the stage itself resolves from an empty command line."""
    config, shown = cli.resolve(stage, cli.parse(stage, [])), documented()
    row, sets = row_of(stage.folder), {}
    if getattr(row, "code", ""):
        [line] = re.findall(
            rf"^\| `{' '.join([row.script, *row.option])}` \| (.*) \|$", reference.DOCUMENT.read_text(), re.M
        )
        sets = {f"algo.{key}": value for key, value in re.findall("`([a-z_.]+): ([^`]*)`", line)}
        assert sets
    for tier, (cls, file) in stage.tiers.items():
        if sets and tier == "algo":
            file = METHODS[row.package].defaults
        table = shown[f"{tier.capitalize()} tier: `{cls.__name__}` (`{file}`)"] | sets
        table |= shown["Curricula of 03 distill, 05, 06 and 07"]
        for key in leaf_keys(cls):
            value = attrgetter(key)(getattr(config, tier))
            assert table[f"{tier}.{key}"] == cli.plain(value), key
    for key in leaf_keys(stage.options):
        titles = [title for title in shown if title.startswith(f"Options of `{row.script}")]
        values = [shown[title][key] for title in titles if key in shown[title]]
        assert cli.plain(getattr(config.options, key)) in values, key


def test_tables_hold_every_key_of_a_stage():
    text = reference.tables([toy.SECOND])
    assert "### Algo tier: `ToyAlgo` (`tests/support/toy_algo.yaml`)" in text
    for tier, (cls, _) in toy.SECOND.tiers.items():
        for key in leaf_keys(cls):
            assert f"| `{tier}.{key}` |" in text
    assert "| `algo.kind` | `linear` | shape [sigmoid \\| linear] |" in text
    assert "### Options of `03_sft_train.py`" in text


def test_every_stage_script_is_known_and_declares_its_place():
    for script in sorted(path.name for path in REPO_ROOT.glob("[0-9][0-9]_*.py")):
        if script != "12_driver.py":
            assert script in {row.script for row in PIPELINE}
    for stage in reference.stages():
        assert row_of(stage.folder).script[:3] == f"{stage.number}_" == stage.folder[:3]
        assert stage.summary and stage.reads and stage.writes
