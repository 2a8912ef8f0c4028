"""An evaluation that is stopped anywhere and run again leaves the bytes of one that was not."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.evaluated_runs import (
    BATCHES,
    SAMPLING,
    count_batches,
    evaluate_run,
    prepare_run,
    results_of,
)
from utils.evaluation import answers as answering
from utils.evaluation import policy as evaluate
from utils.evaluation.journal import JOURNAL, append, read_journal
from utils.models.sampling import Completion


@pytest.fixture(scope="module")
def whole(tiny_models, tmp_path_factory):
    """An evaluation without an interruption: run folder's name -> its results."""
    run_dir = prepare_run(tmp_path_factory.mktemp("whole") / "run_001")
    assert evaluate_run(run_dir, tiny_models("llama"), tiny_models("llama"), *SAMPLING) == 0
    return results_of(run_dir / "10_evaluation" / "tiny")


@pytest.mark.parametrize(
    "stop_after,tail", [(0, b""), (2, b""), (4, b'{"id": "t-0", "sam'), (7, b"\x00\x00")]
)
def test_a_stopped_evaluation_goes_on_with_the_next_batch(
    tiny_models, tmp_path, monkeypatch, whole, stop_after, tail, capsys
):
    """``tail``: what a killed process or a machine that lost power left at the journal's end."""
    run_dir = prepare_run(tmp_path / "run_001")
    model = tiny_models("llama")
    with monkeypatch.context() as patched:
        count_batches(patched, stop_after)
        assert evaluate_run(run_dir, model, model, *SAMPLING) == 130
    out = run_dir / "10_evaluation" / "tiny"
    assert not (out / "metrics.json").exists() and not (out / "manifest.json").exists()
    if stop_after:
        with open(out / "resume" / JOURNAL, "ab") as file:
            file.write(tail)
    calls = count_batches(monkeypatch)
    assert evaluate_run(run_dir, model, model, *SAMPLING) == 0
    assert results_of(out) == whole
    assert len(calls) == BATCHES - stop_after
    assert json.loads((out / "runtime.json").read_text())["batches_resumed"] == stop_after
    assert "resuming" in capsys.readouterr().out


def test_an_evaluation_stopped_after_its_answers_asks_nothing_again(
    tiny_models, tmp_path, monkeypatch, whole
):
    """Killed between predictions.jsonl and metrics.json."""
    run_dir, model = prepare_run(tmp_path / "run_001"), tiny_models("llama")

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(evaluate, "write_csv", killed)
        assert evaluate_run(run_dir, model, model, *SAMPLING) == 130
    calls = count_batches(monkeypatch)
    assert evaluate_run(run_dir, model, model, *SAMPLING) == 0
    assert results_of(run_dir / "10_evaluation" / "tiny") == whole and not calls


def change(path):
    """A readable change of the first answer."""
    text = path.read_bytes()
    assert text.count(b'[["') > 1
    path.write_bytes(text.replace(b'[["', b'[["3', 1))


def flip(path):
    """A bit, of what nobody would miss."""
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)


def forge(path):
    """An answer that is said to be another item's."""
    first, *others = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([re.sub(rb"t-\d", b"t-9", first), *others]))


@pytest.mark.parametrize("damage", [change, flip, forge])
def test_a_damaged_answer_never_becomes_a_result(tiny_models, tmp_path, monkeypatch, whole, damage):
    """It is made again, and a file that was put among the results is none."""
    run_dir, model = prepare_run(tmp_path / "run_001"), tiny_models("llama")
    with monkeypatch.context() as patched:
        count_batches(patched, 4)
        assert evaluate_run(run_dir, model, model, *SAMPLING) == 130
    out = run_dir / "10_evaluation" / "tiny"
    damage(out / "resume" / JOURNAL)
    for name in ("samples/tokens.jsonl", "samples/planted.json", "step_2/metrics.json"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("{}\n")
    calls = count_batches(monkeypatch)
    assert evaluate_run(run_dir, model, model, *SAMPLING) == 0
    assert results_of(out) == whole
    assert len(calls) == BATCHES - 3  # that of the damaged answer is one of those again
    said = (out / "stage.log").read_text()
    assert "WARNING: answers.journal: 1 damaged line; set aside as damaged-answers.journal" in said
    assert not (out / "resume").exists()


def test_answers_of_other_work_are_not_taken(tiny_models, tmp_path, monkeypatch):
    """Another seed draws other samples: what an interrupted run of the first had drawn is thrown away."""
    run_dir, model = prepare_run(tmp_path / "run_001"), tiny_models("llama")
    with monkeypatch.context() as patched:
        count_batches(patched, 6)
        assert evaluate_run(run_dir, model, model, *SAMPLING) == 130
    calls = count_batches(monkeypatch)
    assert evaluate_run(run_dir, model, model, *SAMPLING, "--seed", "1") == 0
    assert len(calls) == BATCHES


def test_greedy_answers_do_not_depend_on_samples(tiny_models, tmp_path, whole):
    run_dir, model = prepare_run(tmp_path / "run_001"), tiny_models("llama")
    assert evaluate_run(run_dir, model, model, "--policy", "tiny") == 0
    found = results_of(run_dir / "10_evaluation" / "tiny")
    assert found["samples/tokens.jsonl"] == whole["samples/tokens.jsonl"]
    rows, more = (
        [json.loads(line) for line in files["samples/predictions.jsonl"].splitlines()]
        for files in (found, whole)
    )
    assert [row | {"samples": other["samples"]} for row, other in zip(rows, more, strict=True)] == more
    assert (rows[5]["token_ids"], rows[5]["rewards"], more[5]["samples"]) == (None, None, [])
    assert "samples" not in rows[0] and "samples" not in json.loads(found["metrics.json"])
    samples = [sample for row in more for sample in row["samples"]]
    assert len(samples) == 15 and len({sample["response"] for sample in samples}) > 5
    assert set(samples[0]) == {"response", "value", "correct", "tokens", "truncated", "token_ids"}


def test_non_finite_logits_are_one_line_that_names_the_items(tiny_models, tmp_path, monkeypatch, capsys):
    def broken(*args, **kwargs):
        raise FloatingPointError("non-finite logits for token 0 of completions [1]")

    monkeypatch.setattr(answering, "complete", broken)
    run_dir, model = prepare_run(tmp_path / "run_001"), tiny_models("llama")
    assert evaluate_run(run_dir, model, model, "--policy", "tiny") == 2
    # Besides it there may be progress bars of what was loaded.
    lines = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(lines) == 1 and "non-finite logits for token 0" in lines[0] and "items t-0, t-1" in lines[0]


@given(st.data())
def test_a_journal_cut_anywhere_gives_its_whole_lines(tmp_path_factory, data):
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    ids = st.lists(st.integers(0, 9), min_size=1, max_size=3)
    completions = st.builds(Completion, text, ids, st.booleans())
    rows = data.draw(st.lists(st.lists(completions, min_size=1, max_size=2), min_size=1, max_size=5))
    found = {(f"é{number}", len(row) > 1): row for number, row in enumerate(rows)}
    path = tmp_path_factory.mktemp("journal") / JOURNAL
    append(path, found)
    assert read_journal(path) == (found, 0)
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    left, damaged = read_journal(path)
    assert list(left.items()) == list(found.items())[: whole[:cut].count(b"\n")] and not damaged
    place, bit = data.draw(st.integers(0, len(whole) - 2)), data.draw(st.integers(0, 7))
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
    left, damaged = read_journal(path)
    assert damaged and left.items() < found.items()
