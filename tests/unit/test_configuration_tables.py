"""docs/configuration.md is what the dataclasses say."""

from docs import configuration_tables as reference
from tests.support import toy
from utils.frame.files import REPO_ROOT
from utils.frame.pipeline import SCRIPTS
from utils.frame.typed_settings import leaf_keys


def test_the_tables_of_the_documentation_are_up_to_date():
    document = reference.DOCUMENT.read_text(encoding="utf-8")
    fresh = reference.with_tables(document, reference.stages())
    assert document == fresh, "run python -m docs.configuration_tables and commit docs/configuration.md"


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
            assert script in SCRIPTS.values()
    for stage in reference.stages():
        assert SCRIPTS[stage.folder].startswith(stage.number + "_") and stage.folder[:2] == stage.number
        assert stage.summary and stage.reads and stage.writes
