"""Rejection-sampling fine-tuning: which candidates are taught, token for token as they were sampled."""

from types import SimpleNamespace

import pytest

from utils.frame.files import UserError, write_json, write_jsonl
from utils.methods.rft.trainer import build_rft_trainer, right_candidates


def candidate(ids, correct=True, parsed=True, truncated=False):
    return {"token_ids": ids, "correct": correct, "parsed": parsed, "truncated": truncated}


ROWS = [
    {
        "id": "a",
        "prompt": "1+1=",
        "candidates": [
            candidate([5, 6, 1]),
            candidate([5, 6, 1]),  # the same again
            candidate([7, 1]),
            candidate([8, 1]),
            candidate([9, 1], correct=False),
            candidate([10, 11], truncated=True),
            candidate([12, 1], parsed=False),
        ],
    },
    {"id": "b", "prompt": "2+2=", "candidates": [candidate([5, 1], correct=False)]},
    {"id": "c", "prompt": "3+3=", "candidates": [candidate([6, 1])]},
]


def test_right_whole_and_valid_candidates_once_each():
    (prompt, ids), other = right_candidates(ROWS, 10, seed=0)
    assert prompt == "1+1=" and sorted(ids) == [[5, 6, 1], [7, 1], [8, 1]]
    assert other == ("3+3=", [[6, 1]])


def test_of_many_some_are_drawn_by_the_seed_for_each_prompt_alone():
    draws = [right_candidates(ROWS, 2, seed)[0][1] for seed in range(20)]
    assert all(len(ids) == 2 for ids in draws) and len({str(sorted(ids)) for ids in draws}) == 3
    assert draws == [right_candidates(ROWS[:1], 2, seed)[0][1] for seed in range(20)]


def made_on(folder, split):
    options = {"split": split, "reward": "combined"}
    write_json(folder / "manifest.json", {"outputs": {}, "inputs": {}, "config": {"options": options}})


@pytest.mark.parametrize("split", ["val", "test"])
def test_prompts_that_are_held_out_are_not_trained_on(tmp_path, split):
    path = tmp_path / "candidates.jsonl"
    write_jsonl(path, ROWS)
    made_on(tmp_path, split)
    config = SimpleNamespace(model=None, algo=SimpleNamespace(max_per_prompt=4))
    with pytest.raises(UserError, match=f"prompts of the {split} split, not to be trained on"):
        build_rft_trainer(SimpleNamespace(config=config, inputs={"candidates": path}, seed=0), [], None)


def test_nothing_right_is_a_line(tmp_path):
    path = tmp_path / "candidates.jsonl"
    write_jsonl(path, ROWS[1:2])
    made_on(tmp_path, "train")
    config = SimpleNamespace(model=None, algo=SimpleNamespace(max_per_prompt=4))
    with pytest.raises(UserError, match="no candidate is right"):
        build_rft_trainer(SimpleNamespace(config=config, inputs={"candidates": path}, seed=0), [], None)
