"""All stages with the tokenizers and templates of Llama 3.1, Qwen 3 and SmolLM2, around tiny random models.

What their tokenizers have that the tests' own has not: a beginning of sequence, several ends, no padding
token, a thinking mode, templates that trim, padded vocabularies, texts that are read as special tokens.
"""

import json

import pytest

from tests.support.real_tokenizers import REAL, fetched, make_model_around, read_each_content_once
from tests.support.scripts import execute_stage
from utils.data.prompts import end_of_turn, prompt_ids
from utils.data.records import load_records
from utils.frame.files import read_json, read_jsonl, write_jsonl
from utils.models.loading import load_tokenizer
from utils.models.settings import ModelSection

FEW = {
    "generation.max_new_tokens": 24,
    "generation.batch_size": 16,
    "model.max_prompt_length": 96,
    "lora.r": 2,
    "validation.num_items": 2,
    "validation.eval_steps": 9,
    "training.save_steps": 9,
}
ROLLOUT = ["--num_rollouts", 1, "--rollout_batch_size", 8, "--warmup_steps", 0]
ALONE = ["--teacher_metrics", "false", "--reference_metrics", "false"]
STAGES = [
    ("02_build_rewards.py", []),
    ("03_sft_train.py", ["--max_steps", 2, "--per_device_train_batch_size", 4, "--warmup_steps", 0]),
    ("03_sft_train.py", ["--objective", "distill", "--num_generations", 4, *ROLLOUT]),
    ("04_generate_candidates.py", ["--max_items", 6, "--num_candidates", 12]),
    ("05_train_ppo.py", ["--num_generations", 4, *ROLLOUT]),
    ("06_train_grpo.py", ["--num_generations", 4, *ROLLOUT]),
    ("07_train_rloo.py", ["--num_samples", 4, *ROLLOUT]),
    ("08_build_prefs.py", ["--gold_as_chosen", "true", "--min_pairs", 1, "--pairs_per_prompt", 2]),
    ("09_train_dpo.py", ["--max_steps", 1, "--per_device_train_batch_size", 4, "--warmup_steps", 0]),
    ("10_evaluate.py", ["--policy", "sft", "--max_items", 3, *ALONE]),
    ("10_evaluate.py", ["--policy", "dpo", "--max_items", 3, "--num_samples", 2]),
    ("11_compare_runs.py", []),
]
TRAINED = ("03_sft", "03_distill", "05_ppo", "06_grpo", "07_rloo", "09_dpo")


def riddle(number: int, extra: str = "") -> dict[str, str]:
    a, b = number + 1, 2 * number + 3
    return {"question": f"  {a} plus {b}?{extra}  ", "answer": f"{a} + {b} = {a + b}\n#### {a + b}"}


@pytest.fixture(params=REAL)
def run(request, tmp_path, unrendered, monkeypatch):
    """The real tokenizer, and a run of all stages around it."""
    real, folder = REAL[request.param], tmp_path
    tokenizer_folder = fetched(real)
    read_each_content_once(monkeypatch)
    models = [
        make_model_around(real, tokenizer_folder, folder / name, padding, seed)
        for seed, (name, padding) in enumerate(zip(("student", "teacher"), real.padding, strict=True))
    ]
    data = folder / "data"
    write_jsonl(data / "train.jsonl", [riddle(n) for n in range(10)] + [riddle(50, real.ends[0] + " Right?")])
    write_jsonl(data / "test.jsonl", [riddle(n) for n in range(20, 26)])
    dataset = [
        "--dataset_config",
        "configs/datasets/gsm8k.yaml",
        "--data_root",
        data,
        "--tokenizer",
        models[0],
    ]
    dataset += ["--instruction", ""]
    config = folder / "model.yaml"
    settings = {"model": {"chat_template_kwargs": real.kwargs}}
    settings["model"] |= {"name_or_path": str(models[0]), "teacher_name_or_path": str(models[1])}
    for key, value in FEW.items():
        section, _, name = key.partition(".")
        settings.setdefault(section, {})[name] = value
    config.write_text(json.dumps(settings))  # which is YAML
    common = ["--outputs_root", folder / "outputs", "--config", config]
    for script in ("00_check_data.py", "01_prepare_dataset.py"):
        assert execute_stage(script, [*dataset, *common]) == 0, script
    for script, more in STAGES:
        assert execute_stage(script, [*common, *more]) == 0, script
    return real, folder / "outputs" / "run_001", models


def test_all_stages_learn_from_what_was_sampled(run):
    real, run_dir, (student, _) = run
    tokenizer = load_tokenizer(student, ModelSection(chat_template_kwargs=real.kwargs))
    ends = tokenizer.convert_tokens_to_ids(list(real.ends))
    # One beginning of sequence, the question as the template trims it, no thinking where that is off.
    records = load_records(run_dir / "01_preprocessing" / "train.jsonl")
    prompts = prompt_ids(tokenizer, records)
    if real.bos:
        bos = tokenizer.convert_tokens_to_ids(real.bos)
        assert all(ids[0] == bos and ids.count(bos) == 1 for ids in prompts)
    assert ("</think>" in tokenizer.decode(prompts[0])) == bool(real.kwargs)
    assert end_of_turn(tokenizer) == ends[0]
    # A question that holds the end of a turn is counted, and nothing else is.
    check = read_json(run_dir / "00_data_validation" / "report.json")["splits"]
    assert [check[split]["warnings"].get("special_token", 0) for split in ("train", "test")] == [1, 0]
    # What is sampled ends in any of the ends, which is kept, and is never a padded column.
    rows = read_jsonl(run_dir / "04_candidates" / "candidates.jsonl")
    sampled = [each for row in rows for each in row["candidates"]]
    finished = [each for each in sampled if not each["truncated"]]
    assert {each["token_ids"][-1] for each in finished} == set(ends)
    assert all(token < len(tokenizer) for each in sampled for token in each["token_ids"])
    assert not any(token in ends for each in sampled for token in each["token_ids"][:-1])
    # Pairs hold the sampled ids, and the end of a turn after the gold.
    known = {tuple(each["token_ids"]) for each in sampled}
    pairs = read_jsonl(run_dir / "08_preferences" / "pairs.jsonl")
    assert pairs and all(tuple(pair["rejected_ids"]) in known for pair in pairs)
    assert all(pair["chosen_ids"][-1] == ends[0] for pair in pairs if tuple(pair["chosen_ids"]) not in known)
    # Every training moved, and says which template it rendered with.
    for stage in TRAINED:
        manifest = read_json(run_dir / stage / "manifest.json")
        assert manifest["metrics"]["chat_template"]["end_of_turn"] == real.ends[0], stage
    metrics = read_json(run_dir / "10_evaluation" / "dpo" / "metrics.json")
    assert metrics["n"] == 3 and metrics["teacher"]["on_responses"]["tokens"] > 0
