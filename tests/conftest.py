"""Fixtures that all tests share: real data where it is at hand, and tiny random models built on demand."""

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

# Before torch is imported anywhere: tests run two at a time, so each keeps to one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
from hypothesis import HealthCheck, settings

from tests.support.inner_loop import can_be_fast
from tests.support.outlines import save_outline
from tests.support.tiny_models import make_tiny_model
from utils.frame.stage import StageContext

REPO_ROOT = Path(__file__).resolve().parent.parent
TESTS = Path(__file__).resolve().parent
LONGEST_FIRST = ["pipeline", "stages", "external", "unit"]

# No example is timed: a machine may be busy.
UNTIMED = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("fast", max_examples=20, **UNTIMED)
settings.register_profile("thorough", max_examples=150, derandomize=True, **UNTIMED)


def only_fast(config: pytest.Config) -> bool:
    """Whether this is the inner loop, `pytest -m fast`."""
    return config.option.markexpr.strip() == "fast"


def pytest_configure(config: pytest.Config) -> None:
    """As many examples as there is time for, and the slowest tests said where speed is what counts."""
    if config.getoption("--hypothesis-profile", default=None) is None:
        settings.load_profile("fast" if only_fast(config) else "thorough")
    if only_fast(config) and config.option.durations is None:
        config.option.durations, config.option.durations_min = 10, 1.0


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """In the inner loop other files are not even imported."""
    if only_fast(config) and collection_path.name.startswith("test_") and not can_be_fast(collection_path):
        return True
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is fast: all that can be and is not marked slow.

    Long files go first, as all others should not have to wait for them in the end.
    """
    for item in items:
        if can_be_fast(item.path) and not item.get_closest_marker("slow"):
            item.add_marker("fast")
    items.sort(key=lambda item: LONGEST_FIRST.index(item.path.relative_to(TESTS).parts[0]))


def pytest_collection_finish(session: pytest.Session) -> None:
    """What was imported until now stays: trainers collect garbage several times each, and would look through
    the hundreds of thousands of objects of torch, Transformers and SymPy every time.
    """
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hypothesis looks for what refers to an object, and warns where that is out of the collector's sight."""
    gc.unfreeze()


@pytest.fixture
def bars(monkeypatch) -> list[str]:
    """What the progress bars of stages say that they do, in order."""
    shown, progress = [], StageContext.progress

    def noted(ctx, items, total=None, description="", **more):
        shown.append(description)
        return progress(ctx, items, total, description, **more)

    monkeypatch.setattr(StageContext, "progress", noted)
    return shown


def find_shared_data() -> Path | None:
    """Return the folder with real copies of the data sets (finqa/, gsm8k/, math/), None if there is none."""
    folder = Path(os.environ.get("BELLMAN_DATA") or TESTS.parents[1] / "shared" / "data")
    return folder if (folder / "gsm8k" / "train.jsonl").is_file() else None


@pytest.fixture(autouse=True)
def same_environment() -> Iterator[None]:
    """Each test leaves the environment variables as it found them; TRL's vLLM sampler sets some for good."""
    before = dict(os.environ)
    yield
    if os.environ != before:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data in the layout of datasets/; the test is skipped without it."""
    folder = find_shared_data()
    if folder is None:
        pytest.skip("real data not found: set BELLMAN_DATA to a folder with finqa/, gsm8k/ and math/")
    return folder


@pytest.fixture
def unrendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn up and not rendered: after the head of a PNG comes what they would show, not pixels.

    Rendering is most of the time of a comparison. It is left out where a test is about what stands beside the
    figures, or about equal figures of equal numbers; each figure is rendered in other tests.
    """
    from matplotlib.figure import Figure

    monkeypatch.setattr(Figure, "savefig", save_outline)
    monkeypatch.setattr(Figure, "tight_layout", lambda *_, **__: None)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a factory: "llama", "qwen2" or "gpt2" -> folder with a random model and its tokenizer.

    Two layers, width 32, 4 heads (2 key-value heads where the architecture groups them), 256 positions,
    float32, one token per byte; made on first use, once a session.
    """
    made: dict[str, Path] = {}

    def make(architecture: str) -> Path:
        if architecture not in made:
            made[architecture] = make_tiny_model(architecture, tmp_path_factory.mktemp(architecture))
        return made[architecture]

    return make


@pytest.fixture(scope="session")
def files(tmp_path_factory, tiny_models) -> dict[str, Path]:
    """Inputs of a training stage by name, on the tiny Llama: eight records, a specification, an adapter."""
    from tests.support.training_stages import training_files

    return training_files(tmp_path_factory.mktemp("files"), tiny_models("llama"))
