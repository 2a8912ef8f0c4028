"""A run with six items that a tiny model is asked, its evaluation by 10, and what that left."""

from tests.support.finished_runs import pretend_finished
from tests.support.scripts import execute_stage
from utils.data.records import Record
from utils.evaluation import answers as answering
from utils.frame.files import write_jsonl

FILES = (
    "metrics.json",
    "breakdown.csv",
    "samples/predictions.jsonl",
    "samples/tokens.jsonl",
    "checkpoints.csv",
)

BATCHES = 3 + 5  # five records to ask, two greedy ones a batch; three samples fill a batch of two


def prepare_run(run_dir):
    """A run with six items to evaluate; the last one's prompt is too long to be asked."""
    texts = ["cash 2001 5" + " ." * i for i in range(5)] + ["cash " * 60]
    records = [
        Record(f"t-{i}", "sample", "q?", text, "t", "3.0", "add(1, 2)", level=1 + i % 2)
        for i, text in enumerate(texts)
    ]
    write_jsonl(run_dir / "01_preprocessing" / "test.jsonl", (record.to_json() for record in records))
    pretend_finished(run_dir / "01_preprocessing")
    pretend_finished(run_dir / "02_rewards", "reward_spec.yaml")
    return run_dir


def evaluate_run(run_dir, checkpoint, teacher, *more):
    argv = ["--policy_ckpt", str(checkpoint), "--run_id", run_dir.name, "--outputs_root", str(run_dir.parent)]
    argv += ["--teacher_name_or_path", str(teacher), "--max_new_tokens", "8", "--generation.batch_size", "2"]
    return execute_stage("10_evaluate.py", [*argv, *more])


def results_of(out):
    """Every result of an evaluation by name, its runtime and log aside."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file()
        and (path.relative_to(out).as_posix().endswith(FILES) or path.name == "manifest.json")
    }


SAMPLING = ("--policy", "tiny", "--num_samples", "3", "--temperature", "0.9", "--top_k", "50")


def count_batches(monkeypatch, stop_after=None):
    """Count the batches that are answered; interrupt before the one after ``stop_after``."""
    calls, original = [], answering.complete

    def complete(*args, **kwargs):
        if len(calls) == stop_after:
            raise KeyboardInterrupt
        calls.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(answering, "complete", complete)
    return calls
