"""GRPO in one file, to read: PyTorch and Transformers, and no trainer between them and the method.

    python examples/grpo_plain.py                        # the embedded base student on the embedded data
    python examples/grpo_plain.py --beta 0 --num_iterations 1 --num_mini_batches 1
    python examples/grpo_plain.py --model MODEL --data configs/datasets/gsm8k.yaml --save_to FOLDER

Group relative policy optimisation (DeepSeekMath, arXiv 2402.03300): draw G completions of each prompt, grade
them, and compare each with the others of its group. There is no critic.

    A_i  = (r_i - mean of the group) / (deviation of the group + 1e-4)       the same for all tokens of i
    rho  = pi(token) / pi_old(token)                                         pi_old is the policy that sampled
    k3   = pi_ref / pi - log(pi_ref / pi) - 1                                pi_ref is the start policy
    loss = mean over tokens of [ beta rho k3 - min(rho A, clip(rho, 1 - epsilon, 1 + epsilon) A) ]

Departures from the paper, each marked where it is made:
 1. The mean is over all tokens of the rollout (DAPO, arXiv 2503.14476), not over the tokens of a completion
    and then over completions: a token weighs the same in a short completion and in a long one.
 2. The deviation is the unbiased one (over G - 1), and 1e-4 is added. The paper says "std" and no more.
 3. k3 is weighted by rho, which makes its expected gradient that of KL(pi || pi_ref); without it, as in the
    paper, it is another. beta is 0.005, the paper's 0.04.
 4. A rollout serves four updates (two passes of two mini-batches), the paper's one. With one, rho is 1.
 5. The reward is 1 for a verified answer and else 0; the paper trains a reward model.
 6. The reference stays what it is; the paper renews it, and the reward model, in an outer loop.
 7. 16 prompts x 8 completions a rollout, in the paper 16 x 64; a learning rate for a million parameters; the
    start is a base model, the paper's an instructed one.

And from 06_train_grpo.py, whose scores, loss and gradient are these to 1e-5 on the same completions
(tests/unit/examples/test_plain_trainers.py): all weights are trained in place of an adapter, at a constant
rate; a prompt is encoded once per completion in place of once per group; the policy kept is the last and not
the best on validation items; nothing resumes.

Measured, first command: of 200 test items 0.0 % right before, 65.0 % after 4 rollouts, 61.5 % after 8
(standard error 3.4 points); 1 min 54 s of one processor core, 1.4 GB.

Shape suffixes: B completions, P prompts with G of them each; T tokens of prompt (padded on the left) and
completion (padded on the right), C of the completion alone; V the vocabulary; X tokens not read yet.
"""

import argparse
import copy
import os
import random
import sys
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # threads that wait sleep: others may need the processor
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from utils.data.prompts import render_prompt
from utils.data.records import Record
from utils.data.settings import DatasetConfig
from utils.data.sources import gold_records
from utils.frame.config import load_tier
from utils.frame.files import REPO_ROOT, UserError
from utils.grading.grade import grade


@dataclass
class Args:
    model: str = str(REPO_ROOT / "assets/student")  # start policy and reference: a folder or a hub name
    data: str = str(REPO_ROOT / "configs/datasets/sample.yaml")  # a dataset tier, as 01 reads it
    save_to: str = ""  # folder for the trained policy; empty: it is not kept
    seed: int = 0  # of the prompts' order and of sampling
    num_rollouts: int = 8
    num_prompts: int = 16  # P, prompts in a rollout
    num_generations: int = 8  # G, completions of each prompt
    max_new_tokens: int = 72  # longest completion
    temperature: float = 1.0  # of sampling, and of every log-probability
    num_iterations: int = 2  # passes over each rollout
    num_mini_batches: int = 2  # updates in each pass
    learning_rate: float = 3e-4  # of AdamW, constant
    max_grad_norm: float = 1.0  # a longer gradient is shortened to this
    epsilon: float = 0.2  # clip range of the ratio
    beta: float = 0.005  # weight of the KL penalty
    eval_every: int = 4  # rollouts between evaluations
    eval_items: int = 200  # test items answered greedily in an evaluation


@dataclass
class Rollout:
    """B completions, those of a prompt next to each other, and what the updates need to know of them."""

    tokens_B_T: Tensor
    attended_B_T: Tensor  # 1 on tokens, 0 on padding
    mask_B_C: Tensor  # 1 on the completion's tokens, its end of sequence included
    old_B_C: Tensor | None = None  # log-probabilities under the policy that sampled
    ref_B_C: Tensor | None = None  # and under the reference
    advantages_B: Tensor | None = None

    def take(self, rows: Tensor) -> "Rollout":
        return Rollout(*(getattr(self, each.name)[rows] for each in fields(self)))


# ------------------------------------------------------------------------------------------------ sampling


@torch.no_grad()
def sample(model, tokenizer, prompts: list[str], max_new_tokens: int, temperature: float) -> Rollout:
    """One completion of each prompt; temperature 0 is greedy."""
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)
    tokens_B_T, attended_B_T = inputs["input_ids"], inputs["attention_mask"]
    going_B = torch.ones(len(prompts), dtype=torch.bool, device=model.device)
    unread_B_X, cache, start = tokens_B_T, None, tokens_B_T.shape[1]
    while going_B.any() and tokens_B_T.shape[1] < start + max_new_tokens:
        place_B_X = positions(attended_B_T)[:, -unread_B_X.shape[1] :]
        about = {"attention_mask": attended_B_T, "position_ids": place_B_X, "past_key_values": cache}
        output = model(unread_B_X, **about)
        cache, logits_B_V = output.past_key_values, output.logits[:, -1]
        # With Gumbel noise the largest is a sample of softmax(logits / temperature).
        noise_B_V = -torch.empty_like(logits_B_V).exponential_().log()
        unread_B_X = (logits_B_V + temperature * noise_B_V).argmax(-1, keepdim=True)
        unread_B_X = unread_B_X.where(going_B[:, None], tokenizer.pad_token_id)
        tokens_B_T = torch.cat([tokens_B_T, unread_B_X], dim=1)
        attended_B_T = torch.cat([attended_B_T, going_B[:, None].long()], dim=1)
        going_B = going_B & (unread_B_X[:, 0] != tokenizer.eos_token_id)
    return Rollout(tokens_B_T, attended_B_T, attended_B_T[:, start:])


def positions(attended_B_T: Tensor) -> Tensor:
    """Position ids, [B, T]: padding on the left does not count."""
    return (attended_B_T.cumsum(1) - 1).clamp(min=0)


def graded(tokenizer, rollout: Rollout, records: list[Record]) -> list[bool]:
    """Whether each completion answers its record's question rightly."""
    completions_B_C = rollout.tokens_B_T[:, -rollout.mask_B_C.shape[1] :]
    kept = [ids[mask.bool()] for ids, mask in zip(completions_B_C, rollout.mask_B_C, strict=True)]
    texts = tokenizer.batch_decode(kept, skip_special_tokens=True)
    return [grade(record, text).correct for record, text in zip(records, texts, strict=True)]


# ---------------------------------------------------------------------------------------------- the method


def log_probs(model, rollout: Rollout, temperature: float) -> Tensor:
    """Log-probabilities of the completions' tokens, [B, C], at the temperature of sampling."""
    length = rollout.mask_B_C.shape[1]
    about = {"attention_mask": rollout.attended_B_T, "position_ids": positions(rollout.attended_B_T)}
    output = model(rollout.tokens_B_T, **about, logits_to_keep=length + 1)
    # Logits at a token are about the next one: those at the prompt's last token are the first wanted.
    log_probs_B_C_V = (output.logits[:, :-1] / temperature).log_softmax(-1)
    return log_probs_B_C_V.gather(2, rollout.tokens_B_T[:, -length:, None]).squeeze(2)


def group_advantages(rewards_B: Tensor, num_generations: int) -> Tensor:
    """Each reward against its group, [B]; 0 throughout a group of equal rewards."""
    rewards_P_G = rewards_B.view(-1, num_generations)
    centred_P_G = rewards_P_G - rewards_P_G.mean(1, keepdim=True)
    return (centred_P_G / (rewards_P_G.std(1, keepdim=True) + 1e-4)).view(-1)  # departure 2


@torch.no_grad()
def score(model, reference, rollout: Rollout, rewards_B: Tensor, args: Args) -> Rollout:
    """The rollout with all that its updates need to know."""
    old_B_C, ref_B_C = (log_probs(each, rollout, args.temperature) for each in (model, reference))
    advantages_B = group_advantages(rewards_B, args.num_generations)
    return replace(rollout, old_B_C=old_B_C, ref_B_C=ref_B_C, advantages_B=advantages_B)


def grpo_loss(new_B_C: Tensor, batch: Rollout, tokens: Tensor, args: Args) -> tuple[Tensor, dict[str, float]]:
    """The loss of some rows of a rollout, and what to log; `tokens` is what their sums are divided by."""
    mask_B_C, advantages_B_1 = batch.mask_B_C, batch.advantages_B[:, None]
    ratio_B_C = ((new_B_C - batch.old_B_C) * mask_B_C).exp()
    free_B_C = ratio_B_C * advantages_B_1
    held_B_C = ratio_B_C.clamp(1 - args.epsilon, 1 + args.epsilon) * advantages_B_1
    away_B_C = (batch.ref_B_C - new_B_C) * mask_B_C
    k3_B_C = away_B_C.exp() - away_B_C - 1
    loss_B_C = args.beta * ratio_B_C * k3_B_C - torch.minimum(free_B_C, held_B_C)  # departure 3
    loss = (loss_B_C * mask_B_C).sum() / tokens  # departure 1
    clipped = ((held_B_C < free_B_C) * mask_B_C).sum() / tokens
    return loss, {"kl": -away_B_C.sum().item() / tokens.item(), "clipped": clipped.item()}


def update(model, optimizer, rollout: Rollout, args: Args) -> dict[str, float]:
    """All updates on a rollout; means of what they measured."""
    tokens = rollout.mask_B_C.sum() / args.num_mini_batches  # of a mini-batch, on average
    measured = []
    for _ in range(args.num_iterations):  # departure 4
        for rows in torch.randperm(len(rollout.mask_B_C)).chunk(args.num_mini_batches):
            batch = rollout.take(rows.to(model.device))
            loss, found = grpo_loss(log_probs(model, batch, args.temperature), batch, tokens, args)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)
            optimizer.step()
            measured.append(found)
    return {name: sum(found[name] for found in measured) / len(measured) for name in measured[0]}


# ---------------------------------------------------------------------------------------- evaluation, main


def accuracy(model, tokenizer, records: list[Record], max_new_tokens: int) -> float:
    """The share of right greedy answers."""
    right = []
    for start in range(0, len(records), 100):
        part = records[start : start + 100]
        prompts = [render_prompt(tokenizer, record.input_text) for record in part]
        right += graded(tokenizer, sample(model, tokenizer, prompts, max_new_tokens, 0.0), part)
    return sum(right) / len(right)


def main(args: Args) -> float:
    """Train; print a line per rollout; return the last accuracy."""
    torch.manual_seed(args.seed)
    draw, data = random.Random(args.seed), load_tier(DatasetConfig, args.data)
    train, test = gold_records(data, "train"), gold_records(data, "test")[: args.eval_items]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).to(device)
    model.eval()  # no dropout: ratios compare passes over the same tokens
    reference = copy.deepcopy(model)  # departure 6
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=0.0)
    began, found = time.perf_counter(), accuracy(model, tokenizer, test, args.max_new_tokens)
    print(f"before: {found:.1%} of {len(test)} test items answered right, greedily", flush=True)
    for number in range(1, args.num_rollouts + 1):
        prompted = draw.sample(train, args.num_prompts)
        asked = [record for record in prompted for _ in range(args.num_generations)]
        prompts = [render_prompt(tokenizer, record.input_text) for record in asked]
        rollout = sample(model, tokenizer, prompts, args.max_new_tokens, args.temperature)
        rewards_B = torch.tensor(graded(tokenizer, rollout, asked), device=device).float()  # departure 5
        rollout = score(model, reference, rollout, rewards_B, args)
        groups = rollout.advantages_B.view(-1, args.num_generations)
        logged = {"reward": rewards_B.mean().item(), "signal": groups.any(1).float().mean().item()}
        logged |= update(model, optimizer, rollout, args)
        shown = "  ".join(f"{name} {value:.3f}" for name, value in logged.items())
        print(f"rollout {number:3d}  {shown}  {time.perf_counter() - began:.0f} s", flush=True)
        if number % args.eval_every == 0 or number == args.num_rollouts:
            found = accuracy(model, tokenizer, test, args.max_new_tokens)
            print(f"after {number} rollouts: {found:.1%} of the test items", flush=True)
    if args.save_to:
        model.save_pretrained(args.save_to)
        tokenizer.save_pretrained(args.save_to)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for each in fields(Args):
        parser.add_argument(f"--{each.name}", type=each.type, default=each.default)
    try:
        main(Args(**vars(parser.parse_args())))
    except (UserError, OSError) as error:
        parser.error(str(error))
