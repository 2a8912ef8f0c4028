"""Which tests are the inner loop, `pytest -m fast`."""

from pathlib import Path

UNIT = Path(__file__).resolve().parents[1] / "unit"


def can_be_fast(path: Path) -> bool:
    """Whether a test file belongs to the inner loop: units, but of no trainer.

    A trainer's tests train, and the libraries of training take longer to import than most tests to run.
    """
    return path.is_relative_to(UNIT) and "trainer" not in path.stem
