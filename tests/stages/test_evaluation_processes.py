"""04 and 10 in two processes against one: the same bytes, also after one of the two was killed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support import evaluation_processes
from tests.support.evaluated_runs import BATCHES, count_batches, prepare_run
from tests.support.finished_runs import pretend_finished
from utils.data.prompts import token_ids
from utils.evaluation.journal import JOURNAL, journal_of, read_journal
from utils.frame.files import read_json
from utils.frame.manifest import describe_outputs
from utils.models import sampling, teacher
from utils.models.loading import load_policy
from utils.models.prefix.shared_prefix import CompletionBatch
from utils.models.score_cache import ScoreCache
from utils.models.settings import ModelSection
from utils.models.teacher import Teacher

OUT = "10_evaluation/tiny"


@pytest.fixture(scope="module")
def models(tiny_models, tmp_path_factory) -> Path:
    """A policy and a folder of two checkpoints of it."""
    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(tiny_models("llama"), folder / "tiny")
    for name, scale in (("step_1", 1.0), ("step_2", 1.05)):
        shutil.copytree(tiny_models("llama"), folder / "steps" / name)
        weights = folder / "steps" / name / "model.safetensors"
        changed = {
            key: value * scale if "norm" in key else value for key, value in load_file(weights).items()
        }
        save_file(changed, weights, {"format": "pt"})
    return folder


def begun(models: Path, folder: Path) -> Path:
    """A run whose SFT policy is there, with records for 04 and 10."""
    run_dir = prepare_run(folder / "run_001")
    records = (run_dir / "01_preprocessing" / "test.jsonl").read_text().splitlines(keepends=True)
    (run_dir / "01_preprocessing" / "train.jsonl").write_text("".join(records[:5]))
    pretend_finished(run_dir / "01_preprocessing")
    shutil.copytree(models / "tiny", run_dir / "03_sft" / "ckpt_sft" / "best")
    pretend_finished(run_dir / "03_sft")
    return run_dir


def results(run_dir: Path) -> dict[str, bytes]:
    """Every result of 04 and 10 by its path; of a manifest all but how many processes there were,
    which its checksum counts."""
    found = {}
    for folder in (run_dir / "04_candidates", *sorted((run_dir / "10_evaluation").iterdir())):
        for name in describe_outputs(folder, run_dir):
            found[name] = (run_dir / name).read_bytes()
        manifest = read_json(folder / "manifest.json")
        del manifest["checksum"], manifest["environment"]["num_processes"]
        found[f"{folder.name}/manifest.json"] = json.dumps(manifest).encode()
    return found


@pytest.fixture(scope="module")
def runs(models, tmp_path_factory):
    """Runs by one process and by two; and what was left where one of two had been killed before."""
    alone, both = (begun(models, tmp_path_factory.mktemp(name)) for name in ("alone", "both"))
    left = tmp_path_factory.mktemp("killed") / both.name
    command = [sys.executable, evaluation_processes.__file__, models, both, left]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as two:
        evaluation_processes.do_all(models, alone)
        _, errors = two.communicate(timeout=300)
    assert two.returncode == 0, errors[-3000:]
    return alone, both, left


def test_two_processes_write_the_bytes_of_one(runs):
    alone, both, _ = runs
    one, two = results(alone), results(both)
    assert list(two) == list(one)
    assert [name for name in one if one[name] != two[name]] == []
    names = {name.rpartition("/")[2] for name in one}
    assert {
        "candidates.jsonl",
        "predictions.jsonl",
        "tokens.jsonl",
        "metrics.json",
        "checkpoints.csv",
    } <= names
    rows = [json.loads(line) for line in one["04_candidates/candidates.jsonl"].splitlines()]
    assert len({each["text"] for row in rows for each in row["candidates"]}) > 10
    assert any(each["reward"]["intrinsic"] for row in rows for each in row["candidates"])


def test_a_process_that_was_killed_leaves_its_batches(runs):
    """Both journals held a batch or more; the two processes that came after took over all of them."""
    _, both, left = runs
    journal = left / OUT / "resume" / JOURNAL
    mine, theirs = (read_journal(journal_of(journal, process))[0] for process in (0, 1))
    assert mine and len(theirs) == 2 and not mine.keys() & theirs.keys()
    runtime = read_json(both / OUT / "runtime.json")
    assert 2 <= runtime["batches_resumed"] < BATCHES and len(runtime["sessions"]) == 2
    assert sorted(path.name for path in (both / OUT / "samples").iterdir()) == [
        "predictions.jsonl",
        "tokens.jsonl",
    ]


def test_one_process_goes_on_where_two_were_stopped(models, runs, tmp_path, monkeypatch):
    alone, both, left = runs
    run_dir = shutil.copytree(left, tmp_path / left.name)
    calls = count_batches(monkeypatch)
    evaluation_processes.evaluate(models, run_dir)
    assert len(calls) == BATCHES - read_json(both / OUT / "runtime.json")["batches_resumed"]
    for name in describe_outputs(alone / OUT, alone):
        assert (run_dir / name).read_bytes() == (alone / name).read_bytes(), name
    assert not list(run_dir.rglob("*.journal"))


@pytest.mark.parametrize("fallback", [False, True], ids=["shared prefixes", "Transformers"])
@pytest.mark.parametrize("processes", [2, 3, 7])
def test_batches_of_other_processes_take_their_random_numbers(models, monkeypatch, processes, fallback):
    """Played one after the other: the shares make up the whole, and every generator ends as that of one."""
    model, tokenizer = load_policy(models / "tiny", ModelSection(torch_dtype="float32"))
    prompts = token_ids(tokenizer, ["cash " * (1 + number % 3) for number in range(10)])
    batches = [[0, 3], [1, 4, 6], [2, 5], [7, 8, 9]]
    monkeypatch.setattr(sampling, "batches_by_length", lambda *_: batches)
    if fallback:
        monkeypatch.setattr(sampling, "obstacle", lambda model: "a test says so")
    shares = []

    def sampled(process, of):
        """What one process samples goes to ``shares``; returns the state of its generator."""
        generator = torch.Generator().manual_seed(3)
        monkeypatch.setattr(sampling, "process_index", lambda: process)
        monkeypatch.setattr(sampling, "num_processes", lambda: of)
        monkeypatch.setattr(
            sampling,
            "gather_items",
            lambda items: shares.append(dict(items)) or [(i, []) for i in range(10)],
        )
        settings = {"max_new_tokens": 6, "temperature": 1.0, "num_samples": 2, "generator": generator}
        sampling.generate(model, tokenizer, prompts, across_processes=True, **settings)
        return generator.get_state()

    state = sampled(0, of=1)
    whole = shares.pop()
    assert len({tuple(each.token_ids) for of_prompt in whole.values() for each in of_prompt}) == 20
    for process in range(processes):
        assert torch.equal(sampled(process, of=processes), state)
        assert list(shares[process]) == [index for batch in batches[process::processes] for index in batch]
    assert {index: each for share in shares for index, each in share.items()} == whole


def test_processes_score_what_the_first_ones_cache_lacks(models, monkeypatch):
    """A cache that another run has filled since would leave the second process without work to share."""
    model, tokenizer = load_policy(models / "tiny", ModelSection(torch_dtype="float32"))
    batch = CompletionBatch.of([[1, 2], [3]], [[4, 5, 6], [7]], torch.device("cpu"))
    caches = [ScoreCache(10**6), ScoreCache(10**6)]
    expected = Teacher(model, len(tokenizer), cache=caches[1]).score(batch)
    sent, scored = [], []
    monkeypatch.setattr(teacher, "from_main", lambda value: sent.append(value) or sent[0])
    monkeypatch.setattr(teacher, "merge_shares", lambda slices: scored.append(len(slices)) or slices)
    for cache in caches:
        asked = Teacher(model, len(tokenizer), cache=cache)
        asked.across_processes = True
        found = asked.score(batch)
        assert torch.equal(found.q, expected.q) and torch.equal(found.v, expected.v)
    assert scored == [1, 1] and sent[0] != sent[1]
