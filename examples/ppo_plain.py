"""PPO on tokens in one file, to read: a teacher's logits reward every token. PyTorch and Transformers alone.

    python examples/ppo_plain.py                         # the embedded base student and its teacher
    python examples/ppo_plain.py --model MODEL --teacher TEACHER --data configs/datasets/gsm8k.yaml

Proximal policy optimisation (Schulman et al. 2017, arXiv 1707.06347). A state s_h is the prompt and the
tokens so far, an action a_h the next token. The reward is the inverse soft Bellman operator on a teacher's
logits f (EndoRM, arXiv 2506.23235), which are a soft Q of the text that the teacher was trained on:

    Q(s_h, a_h) = f(s_h, a_h)    V(s_h) = logsumexp f(s_h, .)    r_h = weight (Q(s_h, a_h) - V(s_{h+1}))

with V = 0 after the last token. Over a completion Q - V adds up to log pi_teacher(completion) + V(s_1), and
the second part is the same for all completions of a prompt. Training sees no gold answer.

    r_h   <- r_h - kl_coef (log pi - log pi_ref)                     pi_ref is the start policy
    delta  = r_h + gamma v_{h+1} - v_h                               v is the critic, a head on the policy
    A_h    = delta + gamma lam A_{h+1}      R_h = A_h + v_h          then A to mean 0 and deviation 1
    rho    = pi(token) / pi_old(token)                               pi_old is the policy that sampled
    loss   = mean of vf_coef/2 (v - R)^2 - min(rho A, clip(rho, 1 - epsilon, 1 + epsilon) A)

Departures from the papers, each marked where it is made:
 1. A KL penalty to the start policy is part of the reward (Ziegler et al. 2019, arXiv 1909.08593).
 2. Nothing follows the last token, also where the length limit cut a completion off: no bootstrap.
 3. Advantages are whitened, and the value loss is clipped as the ratio is (arXiv 2403.17031).
 4. A rollout is left once the policy has moved by `target_kl`. There is no entropy bonus.
 5. The teacher is a larger model, where EndoRM's is the policy itself; its reward is weighted.

And from 05_train_ppo.py, whose rewards, advantages, loss and gradient are these to 1e-5 on the same batch
(tests/unit/examples/test_plain_trainers.py): all weights are trained, no adapter, at constant rates; prompts
are not shared; answers are not rewarded; the last policy is kept, not the best; nothing resumes.

Measured, first command: of 200 test items 0.0 % right before, 49.5 % after 4 rollouts, 55.5 % after 8
(standard error 3.5 points); 2 min 51 s of one processor core, 1.5 GB.

Shape suffixes: B completions; T tokens of prompt (padded on the left) and completion (padded on the right), C
of the completion alone; V the vocabulary, D the model's width; X tokens not read yet.
"""

import argparse
import os
import random
import sys
import time
from dataclasses import dataclass, fields
from pathlib import Path

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # threads that wait sleep: others may need the processor
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor, nn
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
    teacher: str = str(REPO_ROOT / "assets/teacher")  # its logits are the reward; has the policy's tokenizer
    data: str = str(REPO_ROOT / "configs/datasets/sample.yaml")  # a dataset tier, as 01 reads it
    save_to: str = ""  # folder for the trained policy; empty: it is not kept
    seed: int = 0  # of the prompts' order, of sampling and of the value head
    num_rollouts: int = 8
    num_completions: int = 128  # B, completions in a rollout, each of another prompt
    max_new_tokens: int = 72  # longest completion
    temperature: float = 1.0  # of sampling, and of every log-probability of the policy
    num_epochs: int = 2  # passes over each rollout
    num_mini_batches: int = 2  # updates in each pass
    learning_rate: float = 3e-4  # of AdamW, constant
    value_learning_rate: float = 3e-3  # of the value head
    max_grad_norm: float = 1.0  # a longer gradient is shortened to this
    weight: float = 0.1  # of the teacher's reward
    gamma: float = 1.0  # discount
    lam: float = 0.95  # lambda of generalised advantage estimation
    epsilon: float = 0.2  # clip range of the ratio
    value_epsilon: float = 0.5  # how far a value may move from the rollout's without being clipped
    vf_coef: float = 0.1  # weight of the value loss
    kl_coef: float = 0.005  # weight of the KL penalty in the reward
    target_kl: float = 0.05  # leave a rollout once its updates have moved the policy this far, nats a token
    eval_every: int = 4  # rollouts between evaluations
    eval_items: int = 200  # test items answered greedily in an evaluation


@dataclass
class Rollout:
    """B completions, and what the updates need to know of them."""

    tokens_B_T: Tensor
    attended_B_T: Tensor  # 1 on tokens, 0 on padding
    mask_B_C: Tensor  # 1 on the completion's tokens, its end of sequence included
    old_B_C: Tensor | None = None  # log-probabilities under the policy that sampled
    values_B_C: Tensor | None = None  # of the critic at that time
    advantages_B_C: Tensor | None = None
    returns_B_C: Tensor | None = None

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


def read(model, rollout: Rollout) -> tuple[Tensor, Tensor]:
    """Logits [B, C, V] and final hidden states [B, C, D] before each of the completions' tokens."""
    length = rollout.mask_B_C.shape[1]
    about = {"attention_mask": rollout.attended_B_T, "position_ids": positions(rollout.attended_B_T)}
    output = model(rollout.tokens_B_T, **about, logits_to_keep=length + 1, output_hidden_states=True)
    # What stands at a token is about the next one: the prompt's last token is the first that is wanted.
    return output.logits[:, :-1], output.hidden_states[-1][:, -length - 1 : -1]


def of_tokens(numbers_B_C_V: Tensor, rollout: Rollout) -> Tensor:
    """The entry of each completion token, [B, C]."""
    tokens_B_C = rollout.tokens_B_T[:, -numbers_B_C_V.shape[1] :]
    return numbers_B_C_V.gather(2, tokens_B_C[:, :, None]).squeeze(2)


def judge(model, head: nn.Linear, rollout: Rollout, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities at the temperature of sampling, and the critic's values, [B, C] each."""
    logits_B_C_V, states_B_C_D = read(model, rollout)
    log_probs_B_C = of_tokens((logits_B_C_V / temperature).log_softmax(-1), rollout)
    return log_probs_B_C, head(states_B_C_D).squeeze(2)


def bellman_rewards(teacher, rollout: Rollout, gamma: float) -> Tensor:
    """Q(s_h, a_h) - gamma V(s_{h+1}) of the teacher's logits, [B, C]."""
    logits_B_C_V, _ = read(teacher, rollout)
    v_B_C = logits_B_C_V.logsumexp(-1) * rollout.mask_B_C
    following_B_C = torch.cat([v_B_C[:, 1:], torch.zeros_like(v_B_C[:, :1])], dim=1)
    return (of_tokens(logits_B_C_V, rollout) - gamma * following_B_C) * rollout.mask_B_C


def gae(rewards_B_C: Tensor, values_B_C: Tensor, mask_B_C: Tensor, gamma: float, lam: float) -> Tensor:
    """Generalised advantage estimates, [B, C]; nothing follows the last token, cut off or not."""
    values_B_C = values_B_C * mask_B_C  # departure 2
    following_B_C = torch.cat([values_B_C[:, 1:], torch.zeros_like(values_B_C[:, :1])], dim=1)
    deltas_B_C = (rewards_B_C + gamma * following_B_C - values_B_C) * mask_B_C
    advantages_B_C = deltas_B_C.clone()
    for step in reversed(range(deltas_B_C.shape[1] - 1)):
        advantages_B_C[:, step] += gamma * lam * advantages_B_C[:, step + 1]
    return advantages_B_C * mask_B_C


def whiten(numbers_B_C: Tensor, mask_B_C: Tensor) -> Tensor:
    """To mean 0 and deviation 1 over the tokens; 0 elsewhere."""
    kept = numbers_B_C[mask_B_C.bool()]
    return (numbers_B_C - kept.mean()) / kept.std() * mask_B_C


@torch.no_grad()
def score(model, head, reference, teacher, rollout: Rollout, args: Args) -> tuple[Rollout, dict[str, float]]:
    """The rollout with all that its updates need to know, and what to log."""
    mask_B_C, kept = rollout.mask_B_C, rollout.mask_B_C.bool()
    old_B_C, values_B_C = judge(model, head, rollout, args.temperature)
    away_B_C = (old_B_C - judge(reference, head, rollout, args.temperature)[0]) * mask_B_C
    intrinsic_B_C = args.weight * bellman_rewards(teacher, rollout, args.gamma)  # departure 5
    rewards_B_C = intrinsic_B_C - args.kl_coef * away_B_C  # departure 1
    gains_B_C = gae(rewards_B_C, values_B_C, mask_B_C, args.gamma, args.lam)
    plain = gae(rewards_B_C, 0 * values_B_C, mask_B_C, args.gamma, 1.0)[kept]
    logged = {"reward": intrinsic_B_C.sum(1).mean(), "kl": away_B_C.sum(1).mean()}
    logged["explained"] = 1 - (plain - values_B_C[kept]).var() / plain.var()
    found = old_B_C, values_B_C, whiten(gains_B_C, mask_B_C), gains_B_C + values_B_C  # departure 3
    known = Rollout(rollout.tokens_B_T, rollout.attended_B_T, mask_B_C, *found)
    return known, {name: value.item() for name, value in logged.items()}


def ppo_loss(new_B_C: Tensor, now_B_C: Tensor, batch: Rollout, args: Args) -> tuple[Tensor, dict[str, float]]:
    """The loss of some rows of a rollout from log-probabilities and values now, and what to log."""
    share_B_C = batch.mask_B_C / batch.mask_B_C.sum()  # of each token in a mean over tokens
    log_ratio_B_C = (new_B_C - batch.old_B_C) * batch.mask_B_C
    free_B_C = log_ratio_B_C.exp() * batch.advantages_B_C
    held_B_C = log_ratio_B_C.exp().clamp(1 - args.epsilon, 1 + args.epsilon) * batch.advantages_B_C
    step_B_C = (now_B_C - batch.values_B_C).clamp(-args.value_epsilon, args.value_epsilon)  # departure 3
    near_B_C = batch.values_B_C + step_B_C
    error_B_C = torch.maximum((now_B_C - batch.returns_B_C) ** 2, (near_B_C - batch.returns_B_C) ** 2)
    loss_B_C = args.vf_coef / 2 * error_B_C - torch.minimum(free_B_C, held_B_C)
    moved_B_C = log_ratio_B_C.exp() - 1 - log_ratio_B_C  # k3, an estimate of KL(pi_old || pi)
    moved, clipped = ((each * share_B_C).sum().item() for each in (moved_B_C, held_B_C < free_B_C))
    return (loss_B_C * share_B_C).sum(), {"moved": moved, "clipped": clipped}


def update(model, head, optimizer, rollout: Rollout, args: Args) -> dict[str, float]:
    """All updates on a rollout, or as many as `target_kl` allows; means of what they measured."""
    measured = []
    for _ in range(args.num_epochs):
        for rows in torch.randperm(len(rollout.mask_B_C)).chunk(args.num_mini_batches):
            if sum(found["moved"] for found in measured) > args.target_kl * len(measured):
                continue  # departure 4
            batch = rollout.take(rows.to(model.device))
            loss, found = ppo_loss(*judge(model, head, batch, args.temperature), batch, args)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_([*model.parameters(), *head.parameters()], args.max_grad_norm)
            optimizer.step()
            measured.append(found)
    means = {name: sum(found[name] for found in measured) / len(measured) for name in measured[0]}
    return means | {"updates": len(measured)}


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
    model, reference, teacher = (
        AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).to(device).eval()  # no dropout
        for name in (args.model, args.model, args.teacher)
    )
    head = nn.Linear(model.config.hidden_size, 1, device=device)
    groups = [{"params": model.parameters()}, {"params": head.parameters(), "lr": args.value_learning_rate}]
    optimizer = torch.optim.AdamW(groups, lr=args.learning_rate, weight_decay=0.0)
    began, found = time.perf_counter(), accuracy(model, tokenizer, test, args.max_new_tokens)
    print(f"before: {found:.1%} of {len(test)} test items answered right, greedily", flush=True)
    for number in range(1, args.num_rollouts + 1):
        asked = draw.sample(train, args.num_completions)
        prompts = [render_prompt(tokenizer, record.input_text) for record in asked]
        rollout = sample(model, tokenizer, prompts, args.max_new_tokens, args.temperature)
        right = graded(tokenizer, rollout, asked)  # to look at: no update sees it
        rollout, logged = score(model, head, reference, teacher, rollout, args)
        logged = {"right": sum(right) / len(right), **logged, **update(model, head, optimizer, rollout, args)}
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
