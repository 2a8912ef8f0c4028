"""Names that settings have elsewhere, and what each is called here; on the command line and in YAML alike.

Users of TRL, verl, OpenRLHF and of the systems that this project grew from type these. A name that could mean
two settings of a stage is an error that says both, one that would mean something else here is refused with
what to type instead (docs/commands.md lists all).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Name -> groups of endings of keys. The first group that a stage has anything of counts, with all that it has
# of it. "ending?words": only where the key's line of --help has these words; "ending@algo": only in a
# stage with an algorithm tier, which trains.
Groups = tuple[tuple[str, ...], ...]

_EPOCHS: Groups = (("num_train_epochs",), ("num_rollouts", "num_ppo_epochs", "num_iterations"))
_CLIP: Groups = (("cliprange",), ("epsilon",))
_KL: Groups = (("kl_coef",), ("beta?KL penalty",))
_GROUP: Groups = (("num_generations", "num_samples?completions per prompt", "num_candidates"),)
_TRAIN_BATCH: Groups = (("per_device_train_batch_size", "rollout_batch_size"),)
_LENGTH: Groups = (("max_prompt_length",), ("max_input_tokens",))
_COMPLETION: Groups = (("max_new_tokens",),)
_ITEMS: Groups = (("max_items",), ("max_train", "max_val", "max_test"))
_VALIDATED: Groups = (("validation.num_items@algo",), ("max_items",), ("max_val", "max_test"))

SYNONYMS: dict[str, Groups] = {
    # length of training
    **dict.fromkeys(("epochs", "num_epochs", "n_epochs", "train_epochs", "training.epochs"), _EPOCHS),
    **dict.fromkeys(("ppo_epochs", "num_ppo_epochs"), (("num_ppo_epochs",), ("num_iterations",))),
    **dict.fromkeys(("steps", "num_steps", "total_steps"), (("max_steps",),)),
    # batches
    "batch_size": (*_TRAIN_BATCH, ("generation.batch_size",)),
    **dict.fromkeys(("train_batch_size", "training_batch_size"), _TRAIN_BATCH),
    **dict.fromkeys(
        ("eval_batch_size", "per_device_eval_batch_size", "generation_batch_size"),
        (("generation.batch_size",),),
    ),
    **dict.fromkeys(
        ("gradient_accumulation", "grad_accum", "accumulation_steps", "grad_accumulation_steps"),
        (("gradient_accumulation_steps",),),
    ),
    "num_minibatches": (("num_mini_batches",),),
    # groups
    **dict.fromkeys(("group_size", "num_return_sequences", "rloo_k", "samples_per_prompt"), _GROUP),
    "num_generations": (("num_generations",), ("num_samples?completions per prompt", "num_candidates")),
    # optimizer
    "lr": (("learning_rate",),),
    **dict.fromkeys(("critic_lr", "value_lr", "critic_learning_rate"), (("value_learning_rate",),)),
    "warmup": (("warmup_steps",),),
    **dict.fromkeys(("scheduler", "lr_scheduler"), (("lr_scheduler_type",),)),
    "optimizer": (("optim",),),
    **dict.fromkeys(("grad_clip", "gradient_clipping", "max_gradient_norm"), (("max_grad_norm",),)),
    # losses
    **dict.fromkeys(("clip_range", "clip_ratio", "clip_eps", "clip_epsilon", "cliprange"), _CLIP),
    "epsilon": (("epsilon",), ("cliprange",)),
    **dict.fromkeys(("clip_range_value", "value_clip", "clip_range_vf"), (("cliprange_value",),)),
    **dict.fromkeys(("kl_coef", "kl_coeff", "kl_penalty", "init_kl_coef", "kl_weight"), _KL),
    "beta": (("beta",), ("kl_coef",)),
    **dict.fromkeys(("value_coef", "vf_coeff", "value_loss_coef"), (("vf_coef",),)),
    **dict.fromkeys(("gae_lambda", "lambda", "lambda_gae", "lam"), (("lam",),)),
    "curriculum_strategy": (("options.curriculum", "curriculum"),),
    # adapters and number formats
    **dict.fromkeys(("use_lora", "lora"), (("lora.enabled",),)),
    **dict.fromkeys(("lora_r", "lora_rank", "rank"), (("lora.r",),)),
    "alpha": (("alpha", "lora_alpha"),),
    "lora.alpha": (("lora_alpha",),),
    **dict.fromkeys(("dropout", "lora.dropout"), (("lora_dropout",),)),
    "lora.rank": (("lora.r",),),
    **dict.fromkeys(("use_4bit", "qlora", "use_qlora"), (("model.load_in_4bit",),)),
    **dict.fromkeys(("dtype", "precision", "torch_dtype"), (("torch_dtype",),)),
    # lengths and counts
    **dict.fromkeys(
        ("max_length", "max_seq_length", "max_seq_len", "max_sequence_length", "max_prompt_len"), _LENGTH
    ),
    **dict.fromkeys(
        ("max_completion_length", "max_response_length", "response_length", "max_gen_length"), _COMPLETION
    ),
    **dict.fromkeys(("limit", "max_samples", "num_examples", "num_prompts"), _ITEMS),
    **dict.fromkeys(("eval_samples", "num_eval_samples", "max_eval_samples"), _VALIDATED),
    **dict.fromkeys(("eval_every", "eval_interval"), (("eval_steps",),)),
    **dict.fromkeys(("save_every", "save_interval"), (("save_steps",),)),
    **dict.fromkeys(("log_every", "log_interval"), (("logging_steps",),)),
    "num_workers": (("dataloader_num_workers",),),
    # what is read
    **dict.fromkeys(("data_dir", "data_path", "dataset_path"), (("data_root",),)),
    "dataset_name": (("dataset.dataset",),),
    **dict.fromkeys(("teacher_model", "teacher_model_name", "teacher_name"), (("teacher_name_or_path",),)),
    **dict.fromkeys(("base_or_sft_ckpt", "sft_ckpt", "checkpoint", "ckpt"), (("policy_ckpt",),)),
    "test_file": (("test_jsonl",),),
}

# What is an option of every stage under another name.
FRAME_SYNONYMS = {
    **dict.fromkeys(("model_name", "model_name_or_path", "model.name", "base_model"), "model"),
    **dict.fromkeys(("output_root", "outputs", "outputs_dir"), "outputs_root"),
    **dict.fromkeys(("model_config", "config_file"), "config"),
    **dict.fromkeys(("algorithm_config", "algo"), "algo_config"),
    "data_config": "dataset_config",
    **dict.fromkeys(("quick", "fast", "smoke_test"), "quick_test"),
    **dict.fromkeys(("force", "overwrite_output_dir"), "overwrite"),
    "random_seed": "seed",
}

# Switches that stand for a value of a setting; off, they say nothing.
SWITCHES: dict[str, tuple[tuple[str, str], ...]] = {
    "fp16": (("torch_dtype", "float16"),),
    "bf16": (("torch_dtype", "bfloat16"),),
    "use_wandb": (("report_to", "wandb"),),
    "no_lora": (("lora.enabled", "false"),),
    "skip_validation": (("validation.num_items@algo", "0"), ("error_threshold", "1")),
}

# A stage that was interrupted resumes by itself.
RESUMING = frozenset(("resume", "resume_from_checkpoint", "resume_from", "auto_resume"))

REFUSED = {
    "mini_batch_size": "a pass over a rollout is cut by number: --num_mini_batches, of --rollout_batch_size",
    "load_in_8bit": "weights are loaded in 4 bits (--load_in_4bit) or in the format of --torch_dtype",
    "use_8bit": "weights are loaded in 4 bits (--load_in_4bit) or in the format of --torch_dtype",
    "warmup_ratio": "warm-up counts optimizer steps: --warmup_steps",
    "trust_remote_code": "code from a model's folder is never run (docs/models.md)",
    "use_batch_bonus": "a bonus by the batch a completion is in would make its reward chance; the "
    "nearest are --reward.intrinsic.scope batch (statistics of the rollout) and 06 --scale_rewards batch",
    "device": "the GPU is used where there is one; CUDA_VISIBLE_DEVICES= (empty) keeps to the CPU",
    "do_sample": "04 samples and 10 answers greedily; --num_samples K draws K completions in 10 as well",
    "num_beams": "answers are greedy or sampled (--num_samples), never searched for",
    "repetition_penalty": "it would move sampling away from the policy whose log-probabilities are used",
    "kd_weight": "distillation weighs gold text: --ce_weight W, and the divergence has 1 - W",
}

# What to type where a stage has nothing of that name.
ELSEWHERE = {
    **dict.fromkeys(
        ("max_steps", "steps", "num_steps", "total_steps"),
        "optimizer steps follow from rollouts here: --num_rollouts",
    ),
}


@dataclass(frozen=True)
class Key:
    """A key that a stage has: who owns it, its name there, its type and its line of ``--help``."""

    owner: str
    name: str
    hint: Any
    help: str = ""


def matches(ending: str, key: str) -> bool:
    """Whether a full dotted key is, or ends in, ``ending``."""
    return key == ending or key.endswith("." + ending)


def meant(name: str, keys: Mapping[str, Key], value: str | None = None) -> list[str]:
    """The full dotted keys that a name of the table stands for in a stage; [] where it stands for none.

    ``value`` tells ``--batch_size auto``, which is about memory, from a number of training rows.
    """
    groups: Sequence[Iterable[str]] = SYNONYMS.get(name, ())
    if name == "batch_size" and value == "auto":
        groups = (("generation.batch_size",),)
    for group in groups:
        found = [key for ending in group for key in having(ending, keys)]
        if found:
            return list(dict.fromkeys(found))
    return []


def having(target: str, keys: Mapping[str, Key]) -> list[str]:
    """The keys of a stage that an entry of the table means."""
    ending, _, words = target.partition("?")
    ending, _, tier = ending.partition("@")
    if tier and not any(key.owner == tier for key in keys.values()):
        return []
    return [key for key in keys if matches(ending, key) and words in keys[key].help]
