"""Names that settings have elsewhere: what each sets in a stage, what is refused, files of an older form."""

from operator import attrgetter

import pytest

from utils.frame import command_line as cli
from utils.frame.config import load_tier
from utils.frame.files import UserError
from utils.frame.stage_plan import load_script, make_plan
from utils.methods.ppo.settings import PpoAlgo
from utils.methods.sft.settings import SftAlgo
from utils.models.settings import ModelConfig


def config(script: str, *argv: str):
    stage, rest = load_script(script).STAGE.chosen(list(argv))
    return cli.resolve(stage, cli.parse(stage, rest))


@pytest.mark.parametrize(
    ("command", "key", "value"),
    [
        ("03_sft_train.py --batch_size 1", "algo.per_device_train_batch_size", 1),
        ("03_sft_train.py --batch_size auto", "model.generation.batch_size", "auto"),
        ("04_generate_candidates.py --batch_size 4", "model.generation.batch_size", 4),
        ("05_train_ppo.py --batch_size 64", "algo.rollout_batch_size", 64),
        ("09_train_dpo.py --batch_size 4", "algo.per_device_train_batch_size", 4),
        ("10_evaluate.py --batch_size 4", "model.generation.batch_size", 4),
        ("03_sft_train.py --epochs 3", "algo.num_train_epochs", 3.0),
        ("03_sft_train.py --lr 1e-4", "algo.learning_rate", 1e-4),
        ("05_train_ppo.py --ppo_epochs 4", "algo.num_ppo_epochs", 4),
        ("05_train_ppo.py --clip_range 0.1", "algo.cliprange", 0.1),
        ("06_train_grpo.py --clip_range 0.1", "algo.epsilon", 0.1),
        ("06_train_grpo.py --group_size 4", "algo.num_generations", 4),
        ("07_train_rloo.py --group_size 4", "algo.num_samples", 4),
        ("07_train_rloo.py --num_generations 4", "algo.num_samples", 4),
        ("04_generate_candidates.py --group_size 4", "options.num_candidates", 4),
        ("06_train_grpo.py --kl_coef 0.1", "algo.beta", 0.1),
        ("05_train_ppo.py --beta 0.1", "algo.kl_coef", 0.1),
        ("09_train_dpo.py --beta 0.3", "algo.beta", 0.3),
        ("05_train_ppo.py --gae_lambda 0.9", "algo.lam", 0.9),
        ("03_sft_train.py --alpha 16", "model.lora.lora_alpha", 16),
        ("02_build_rewards.py --alpha 0.8", "reward.intrinsic.alpha", 0.8),
        ("03_sft_train.py --dropout 0.1", "model.lora.lora_dropout", 0.1),
        ("03_sft_train.py --use_lora false", "model.lora.enabled", False),
        ("03_sft_train.py --fp16", "model.model.torch_dtype", "float16"),
        ("03_sft_train.py --bf16 true", "model.model.torch_dtype", "bfloat16"),
        ("03_sft_train.py --fp16 false", "model.model.torch_dtype", "float32"),
        ("03_sft_train.py --max_length 512", "model.model.max_prompt_length", 512),
        ("01_prepare_dataset.py --max_length 512", "dataset.max_input_tokens", 512),
        ("03_sft_train.py --eval_samples 5", "model.validation.num_items", 5),
        ("10_evaluate.py --eval_samples 5", "options.max_items", 5),
        ("03_sft_train.py --skip_validation", "model.validation.num_items", 0),
        ("01_prepare_dataset.py --skip_validation", "dataset.error_threshold", 1.0),
        (
            "03_sft_train.py --model_name_or_path sshleifer/tiny-gpt2",
            "model.model.name_or_path",
            "sshleifer/tiny-gpt2",
        ),
        ("03_sft_train.py --model.name a/b", "model.model.name_or_path", "a/b"),
        ("03_sft_train.py --resume_from_checkpoint --seed 3", "seed", 3),
        ("09_train_dpo.py --base_or_sft_ckpt base", "options.policy_ckpt", "base"),
    ],
)
def test_a_name_of_elsewhere_sets_what_it_means(command, key, value):
    assert attrgetter(key)(config(*command.split())) == value


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (
            "06_train_grpo.py --batch_size 8",
            "--algo.per_device_train_batch_size .* or --algo.rollout_batch_size",
        ),
        ("05_train_ppo.py --epochs 2", "--algo.num_ppo_epochs .* or --algo.num_rollouts"),
        ("05_train_ppo.py --alpha 0.5", "--algo.curriculum.alpha .* or --model.lora.lora_alpha"),
        ("06_train_grpo.py --max_steps 10", "--num_rollouts"),
        ("05_train_ppo.py --mini_batch_size 8", "--num_mini_batches"),
        ("03_sft_train.py --load_in_8bit", "--load_in_4bit"),
        ("02_build_rewards.py --use_batch_bonus true", "--reward.intrinsic.scope batch"),
        ("03_sft_train.py --fp16=maybe", "true or false"),
        ("01_prepare_dataset.py --limit 5", "--dataset.max_test .* or --dataset.max_train"),
    ],
)
def test_what_would_mean_something_else_is_one_line(command, words):
    with pytest.raises(UserError, match=words):
        config(*command.split())


def test_a_stage_resumes_from_its_own_folder_alone(tmp_path):
    def plan(value):
        argv = ["--outputs_root", str(tmp_path), "--resume_from_checkpoint", value]
        return make_plan(load_script("03_sft_train.py").STAGE, argv)

    plan(str(tmp_path / "run_001/03_sft/ckpt_sft/step_40"))
    with pytest.raises(UserError, match="resumes by itself .* --policy_ckpt"):
        plan(str(tmp_path / "run_002/03_sft/ckpt_sft/step_40"))
    with pytest.raises(UserError, match="--overwrite begins anew"):
        plan("false")


def test_yaml_takes_the_same_names(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("epochs: 3\nbatch_size: 4\nlr: 1e-4\n")
    assert load_tier(SftAlgo, file) == SftAlgo(
        num_train_epochs=3.0, per_device_train_batch_size=4, learning_rate=1e-4
    )
    file.write_text("ppo: {clip_range: 0.1, ppo_epochs: 4}\nkl_penalty: 0.1\n")
    assert load_tier(PpoAlgo, file) == PpoAlgo(cliprange=0.1, num_ppo_epochs=4, kl_coef=0.1)
    file.write_text("epochs: 3\nnum_train_epochs: 2\n")
    with pytest.raises(UserError, match='"epochs" and "num_train_epochs" are one setting'):
        load_tier(SftAlgo, file)
    file.write_text("mini_batch_size: 3\n")
    with pytest.raises(UserError, match='"mini_batch_size" is not taken: .*--num_mini_batches'):
        load_tier(PpoAlgo, file)


OLDER = """
model:
  name: assets/student
  type: causal_lm
  architecture: llama
  hidden_size: 128
lora: {use_lora: true, rank: 8, alpha: 16, dropout: 0.1}
training: {epochs: 3, batch_size: 4, learning_rate: 5.0e-4, fp16: false, save_steps: 7}
generation: {max_length: 64}
"""


def test_a_model_file_of_the_older_form_loads(tmp_path):
    (tmp_path / "older.yaml").write_text(OLDER)
    model = load_tier(ModelConfig, tmp_path / "older.yaml")
    assert model.model.name_or_path == "assets/student" and model.model.max_prompt_length == 64
    assert (model.lora.r, model.lora.lora_alpha, model.lora.lora_dropout) == (8, 16, 0.1)
    assert model.training.save_steps == 7
    # What it says of fine-tuning is 03's, under what is typed; no other stage's.
    argv = ["--config", str(tmp_path / "older.yaml")]
    sft = config("03_sft_train.py", *argv).algo
    assert (sft.num_train_epochs, sft.per_device_train_batch_size, sft.learning_rate) == (3.0, 4, 5e-4)
    assert config("03_sft_train.py", *argv, "--epochs", "1").algo.num_train_epochs == 1.0
    assert config("05_train_ppo.py", *argv).algo == config("05_train_ppo.py").algo


def test_a_file_of_another_tier_is_named_as_what_it_is():
    with pytest.raises(UserError, match="this file is for --algo_config"):
        config("05_train_ppo.py", "--config", "configs/algorithms/ppo.yaml")
    with pytest.raises(UserError, match="this file is for --dataset_config"):
        config("01_prepare_dataset.py", "--config", "configs/datasets/gsm8k.yaml")


@pytest.mark.parametrize("script", ["00_check_data.py", "02_build_rewards.py", "11_compare_runs.py"])
def test_every_script_takes_every_option_of_the_frame(script):
    config(
        script,
        *("--config", "configs/models/sample.yaml", "--algo_config", "configs/algorithms/ppo.yaml"),
        *("--dataset_config", "configs/datasets/sample.yaml"),
        *("--reward_config", "configs/rewards/task.yaml", "--seed", "1", "--quick_test"),
    )


@pytest.mark.parametrize(
    ("given", "short"),
    [
        ("configs/config_microsoft_DialoGPT_medium.yaml", "dialogpt-medium"),
        ("config_meta-llama_Llama-3.2-1B-Instruct.yaml", "llama-3.2-1b-instruct"),
        ("configs/models/config_Qwen_Qwen2.5_Math_7B.yaml", "qwen2.5-math-7b"),
        ("config_TinyLlama_TinyLlama_1.1B_Chat_v1.0.yaml", "tinyllama-1.1b"),
    ],
)
def test_a_file_by_its_models_long_name_is_the_short_one(given, short):
    assert config("03_sft_train.py", "--config", given) == config(
        "03_sft_train.py", "--config", f"configs/models/{short}.yaml"
    )
