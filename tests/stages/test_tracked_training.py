"""SFT with TensorBoard and without: the event file, and that nothing else differs."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support.scripts import execute_stage
from utils.frame.files import read_json, read_jsonl


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same short SFT without and with TensorBoard: the folder of each."""
    outputs = tmp_path_factory.mktemp("outputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TENSORBOARD_LOGGING_DIR", "")  # which the stage sets
        for run_id, tracker in (("plain", "none"), ("tracked", "tensorboard")):
            words = ["--quick_test", "--outputs_root", outputs, "--run_id", run_id]
            assert execute_stage("01_prepare_dataset.py", words) == 0
            assert execute_stage("02_build_rewards.py", words) == 0
            words += ["--validation.num_items", "1", "--report_to", tracker]
            assert execute_stage("03_sft_train.py", words) == 0
    return outputs / "plain" / "03_sft", outputs / "tracked" / "03_sft"


def test_the_event_file_holds_what_the_log_holds(runs):
    _, tracked = runs
    (file,) = (tracked / "logs" / "tensorboard").iterdir()
    events = EventAccumulator(str(file)).Reload()
    seen = {
        (tag, event.step): event.value for tag in events.Tags()["scalars"] for event in events.Scalars(tag)
    }
    # Transformers names what is no evaluation "train/<key>".
    rows = read_jsonl(tracked / "logs" / "metrics.jsonl")
    logged = {
        (f"train/{key}", row["step"]): value
        for row in rows
        for key, value in row.items()
        if key not in ("step", "sampled_completions") and isinstance(value, int | float)
    }
    assert {"train/loss", "train/val_reward", "train/grad_norm"} <= {tag for tag, _ in logged}
    for place, value in logged.items():
        assert seen[place] == pytest.approx(value, rel=1e-6), place


def test_a_tracker_changes_nothing_but_its_own_folder(runs):
    plain, tracked = (read_json(folder / "manifest.json") for folder in runs)
    assert plain["outputs"] == tracked["outputs"]
    assert not any("tensorboard" in name for name in tracked["outputs"])
    assert plain["metrics"] == tracked["metrics"]
    assert tracked["config"]["model"]["training"]["report_to"] == ["tensorboard"]
