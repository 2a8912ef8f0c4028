"""Prompts and demonstrations that cannot fit are refused before anything is loaded or written."""

import sys

import pytest

from tests.support.driver import drive
from tests.support.scripts import execute_stage
from utils.data.records import Record
from utils.frame.files import UserError, write_jsonl
from utils.frame.pipeline import METHODS
from utils.frame.stage_plan import load_script, make_plan
from utils.training.limits import method_fits, prompts_fit


def config(script: str, *argv: str):
    return make_plan(load_script(script).STAGE, list(argv)).config


def prepared(tmp_path, prompts, answer="#### 1"):
    numbered = enumerate(prompts)
    rows = [Record(f"train-{n}", "gsm8k", text, text, answer, "1").to_json() for n, text in numbered]
    write_jsonl(tmp_path / "run_001" / "01_preprocessing" / "train.jsonl", rows)
    return tmp_path / "run_001"


def test_a_method_that_samples_needs_every_prompt_to_fit(tmp_path):
    run_dir = prepared(tmp_path, ["short"] * 9 + ["long " * 300])
    with pytest.raises(UserError, match=r"1 of 10 prompts .*256; train-9 has \d+ tokens.*smollm2"):
        method_fits(METHODS["grpo"], config("06_train_grpo.py"), run_dir)
    method_fits(METHODS["grpo"], config("06_train_grpo.py", "--max_prompt_length", "1500"), run_dir)
    method_fits(METHODS["sft"], config("03_sft_train.py"), run_dir)  # which leaves one out


def test_fine_tuning_needs_most_demonstrations_to_fit(tmp_path):
    run_dir = prepared(tmp_path, ["short"] * 4 + ["long " * 300] * 6)
    with pytest.raises(UserError, match="6 of 10 prompts .*raise --max_prompt_length"):
        method_fits(METHODS["sft"], config("03_sft_train.py"), run_dir)
    run_dir = prepared(tmp_path, ["short"] * 10, answer="word " * 100)
    with pytest.raises(UserError, match="10 of 10 demonstrations .*raise --max_new_tokens"):
        method_fits(METHODS["sft"], config("03_sft_train.py"), run_dir)
    method_fits(METHODS["sft"], config("03_sft_train.py", "--max_new_tokens", "700"), run_dir)


@pytest.mark.parametrize("sampling", [["temperature", "0.7"], ["top_p", "0.9"], ["top_k", "20"]])
def test_a_divergence_of_sampled_tokens_needs_the_students_own_distribution(tmp_path, sampling):
    """The others compare distributions, and are right whatever wrote the text."""
    name, value = sampling

    def fits(objective, *argv):
        method_fits(METHODS[objective], config("03_sft_train.py", "--objective", objective, *argv), tmp_path)

    fits("opd")
    fits("distill", f"--model.generation.{name}", value)
    with pytest.raises(UserError, match=f"sampled_kl needs .*model.generation.{name} [01]"):
        fits("opd", f"--model.generation.{name}", value)


def test_nothing_is_said_without_a_tokenizer_or_records(tmp_path):
    run_dir = prepared(tmp_path, ["long " * 300])
    method_fits(METHODS["grpo"], config("06_train_grpo.py", "--model", "owner/on-the-hub"), run_dir)
    method_fits(METHODS["grpo"], config("06_train_grpo.py"), tmp_path / "run_002")
    prompts_fit(config("04_generate_candidates.py"), [])


def test_the_driver_refuses_finqa_with_the_embedded_model(tmp_path, shared_data, capsys, monkeypatch):
    """At once: no model library is even imported."""
    for name in ("torch", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    root = tmp_path / "out"
    data = ["--dataset_config", "configs/datasets/finqa.yaml", "--data_root", str(shared_data / "finqa")]
    code, _, err = drive(capsys, *data, "--outputs_root", str(root))
    assert code == 2 and err.count("\n") == 1 and not root.exists()
    assert "--model smollm2-135m" in err and "--context retrieved" in err


def test_a_stage_leaves_no_folder_where_prompts_cannot_fit(tmp_path, capsys, shared_data):
    data = ["--dataset_config", "configs/datasets/gsm8k.yaml", "--data_root", shared_data / "gsm8k"]
    small = ["--max_train", 40, "--max_val", 4, "--max_test", 4, "--outputs_root", tmp_path]
    assert execute_stage("01_prepare_dataset.py", [*data, *small]) == 0
    assert execute_stage("02_build_rewards.py", ["--outputs_root", tmp_path, "--quick_test"]) == 0
    assert execute_stage("03_sft_train.py", ["--outputs_root", tmp_path, "--max_prompt_length", 20]) == 2
    err = capsys.readouterr().err
    assert "prompts are longer than model.max_prompt_length (20" in err and "--model smollm2-135m" in err
    assert not (tmp_path / "run_001" / "03_sft").exists()
