"""Fixtures of the tests of comparisons."""

import pytest

from tests.support.finished_runs import write_methods


@pytest.fixture()
def outputs(tmp_path):
    """Runs s0, s1 and s2 of several methods, each with its seed."""
    for seed in range(3):
        write_methods(tmp_path / f"s{seed}", seed)
    return tmp_path
