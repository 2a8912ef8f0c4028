"""What the tests of GRPO and RLOO share: made-up rewards, completions fed in, tiny trainers."""

import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, RLOOTrainer

from utils.data.prompts import PromptTokens
from utils.methods.grpo.trainer import SharedPrefixGRPOTrainer
from utils.methods.rloo.trainer import BaselineRLOOConfig
from utils.models.prefix.shared_prefix import CompletionBatch
from utils.rewards.reward_pipeline import ALL_COMPONENTS, RolloutRewards
from utils.rewards.task_reward import COMPONENTS
from utils.rollouts.start import OutcomeRewards

PROMPTS = ["2+2=", "a longer prompt: 7*6=", "x", "why?"]
SIZE = 4  # completions per prompt
WEIGHT = 0.3  # of the intrinsic reward

# What every trainer of a tiny model has in common, whatever it trains by.
TINY_TRAINING = {
    "max_completion_length": 6,
    "save_strategy": "no",
    "learning_rate": 1e-2,
    "optim": "adamw_torch",
    "gradient_checkpointing": False,
    "use_cpu": True,
    "bf16": False,
    "report_to": [],
    "disable_tqdm": True,
    "seed": 5,
}


def token_reward(token: int) -> float:
    """The made-up teacher's reward of a token, unweighted."""
    return (token % 11 - 7) / 5


def outcome(ids: list[int]) -> float:
    """The made-up verified reward of a completion."""
    return (sum(ids) % 7) / 4 - 0.5


class StubPipeline:
    """The interface of RewardPipeline on made-up rewards."""

    teacher = None
    names = (*COMPONENTS, "intrinsic")

    def __init__(self):
        base = {"exact_match": 1.0, "reasoning": 0.0, "intrinsic": WEIGHT}
        self.combiner = SimpleNamespace(adapted=(), base=base)
        self.records = [SimpleNamespace(id=f"train-{number}") for number in range(len(PROMPTS))]

    def score_tokens(self, record, batch: CompletionBatch, texts, truncated, update=True) -> RolloutRewards:
        mask = batch.completion_mask.bool()
        tokens = torch.zeros(mask.shape, dtype=torch.float64)
        outcomes = []
        for row, ids in enumerate(batch.completion_ids):
            kept = ids[mask[row]].tolist()
            tokens[row, : len(kept)] = WEIGHT * torch.tensor([token_reward(token) for token in kept])
            outcomes.append(outcome(kept))
        components = {name: torch.zeros(len(mask)) for name in ALL_COMPONENTS}
        components |= {"exact_match": torch.tensor(outcomes), "intrinsic": tokens.sum(1).float()}
        paid = tokens.clone()
        paid[torch.arange(len(mask)), mask.sum(1) - 1] += torch.tensor(outcomes, dtype=torch.float64)
        right = components["exact_match"] > 0
        return RolloutRewards(paid.float(), components, {}, right, right, {"intrinsic": WEIGHT})

    score_outcomes = score_tokens  # whoever asks for outcomes reads the components alone

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        assert state == {}


def group_trainer(kind: type, folder: Path, out: Path, *, tokens: bool = False, **changes):
    """A trainer of ``kind`` on the tiny model in ``folder``, in float64, whose policy has left its reference.

    Rollouts of 16 completions of up to 6 tokens, 4 of each prompt. ``tokens``: process supervision.
    """
    settings = {
        **TINY_TRAINING,
        "output_dir": str(out),
        "per_device_train_batch_size": 16,
        "num_generations": SIZE,
        "steps_per_generation": 1,
        "num_iterations": 2,
        "max_steps": 4,
        "logging_steps": 1,
        "beta": 0.1,
        "temperature": 0.9,
        **changes,
    }
    config = BaselineRLOOConfig if issubclass(kind, RLOOTrainer) else GRPOConfig
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pipeline = StubPipeline()
    rewards = OutcomeRewards(pipeline, PromptTokens(tokenizer), {tokenizer.eos_token_id}, tokens)
    if tokens:
        settings["reward_weights"] = [float(name != "intrinsic") for name in rewards.names]
    trainer = kind(
        model=AutoModelForCausalLM.from_pretrained(folder),
        reward_funcs=rewards.functions(),
        args=config(**settings),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS, "record": list(range(len(PROMPTS)))}),
        processing_class=tokenizer,
    )
    trainer.pipeline, trainer.outcomes = pipeline, rewards
    if tokens:
        trainer.process_rewards = rewards
    for model in (trainer.model, trainer.ref_model):
        if model is not None:
            model.double()
    move(trainer.model, 0.01, 1)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    feed(trainer)
    return trainer


def move(model, size: float, seed: int) -> None:
    """Add noise to every weight."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


def feed(trainer) -> None:
    """Replace sampling by completions of 1 to 6 tokens that depend on the step and the row."""

    def sample(prompt_ids, *_):
        draw = random.Random(trainer.state.global_step)
        rows = [[draw.randrange(2, 90) for _ in range(draw.choice([1, 2, 3, 6]))] for _ in prompt_ids]
        return (rows, None) if isinstance(trainer, SharedPrefixGRPOTrainer) else rows

    trainer._generate_single_turn = sample


def rollout_inputs() -> list[dict]:
    """What the data loader gives for a rollout: every prompt SIZE times."""
    return [{"prompt": text, "record": row} for row, text in enumerate(PROMPTS) for _ in range(SIZE)]


def log_probs_of(model, rollout: dict, temperature: float) -> np.ndarray:
    """Log-probabilities of the completions' tokens, float64 [B, C], from each row's whole padded sequence.

    (Padding counts in the position ids, as in TRL: the rounding of rotary embeddings would show otherwise.)
    """
    found = np.zeros(rollout["completion_ids"].shape)
    for row in range(len(found)):
        ids, mask = (
            torch.cat([rollout[f"prompt_{kind}"][row], rollout[f"completion_{kind}"][row]])[None]
            for kind in ("ids", "mask")
        )
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=mask).logits[0].double().numpy() / temperature
        completion = rollout["completion_ids"][row][rollout["completion_mask"][row].bool()].numpy()
        start = rollout["prompt_ids"].shape[1] - 1
        logits = logits[start : start + len(completion)]
        top = logits.max(1, keepdims=True, initial=-np.inf)
        normal = np.log(np.exp(logits - top).sum(1)) + top[:, 0]
        found[row, : len(completion)] = logits[np.arange(len(completion)), completion] - normal
    return found


def completions_of(rollout: dict) -> list[list[int]]:
    """The token ids of each row's completion."""
    rows = zip(rollout["completion_ids"], rollout["completion_mask"], strict=True)
    return [ids[mask.bool()].tolist() for ids, mask in rows]
