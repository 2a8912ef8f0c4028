"""The chapter on where the compared policies come from."""

from pathlib import Path

from utils.comparison.page.provenance import _runs
from utils.frame.manifest import code_sha256


def test_stages_that_other_code_ran_are_named():
    """Not which code: equal runs have equal pages."""
    stages = {
        name: {"seed": 0, "environment": {"code_sha256": code_sha256()}} for name in ("03_sft", "06_grpo")
    }
    assert "The code has changed" not in _runs({Path("r"): stages}).note
    stages["06_grpo"]["environment"]["code_sha256"] = "0" * 64
    note = _runs({Path("r"): stages}).note
    assert note.endswith(" The code has changed since 06_grpo ran.") and "0000" not in note
