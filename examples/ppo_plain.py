"""PPO on tokens in one file, to read, with the reward of every token read from a teacher's logits.

    python examples/ppo_plain.py                      # the embedded base student and its teacher
    python examples/ppo_plain.py --model MODEL --teacher TEACHER --data outputs/run_001/01_preprocessing
"""

import argparse
import copy
import random
import sys
import time
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from utils.data.prompts import render_prompt
from utils.data.readers.sample import generate
from utils.data.records import Record, load_records
from utils.grading.grade import grade


@dataclass
class Args:
    model: str = str(ROOT / "assets" / "student")
    """start policy and reference: a folder or a hub name"""
    teacher: str = str(ROOT / "assets" / "teacher")
    """whose logits are the reward; its tokenizer is the policy's"""
    data: str = ""
    """folder with train.jsonl and test.jsonl of 01_prepare_dataset.py; empty: the embedded data set"""
    save_to: str = ""
    """folder for the trained policy; empty: it is not kept"""
    seed: int = 0
    """of the prompts' order, of sampling and of the value head"""
    num_rollouts: int = 24
    """rollouts in all"""
    rollout_size: int = 128
    """B, completions in a rollout, each of a prompt of its own"""
    max_new_tokens: int = 72
    """longest completion"""
    temperature: float = 1.0
    """of sampling, and of every log-probability of the policy"""
    num_epochs: int = 2
    """passes over each rollout"""
    num_mini_batches: int = 2
    """updates in each pass"""
    learning_rate: float = 5e-4
    """of AdamW, constant"""
    value_learning_rate: float = 5e-3
    max_grad_norm: float = 1.0
    """the gradient is scaled down to this norm"""
    gamma: float = 1.0
    """discount"""
    lam: float = 0.95
    """lambda of generalised advantage estimation"""
    epsilon: float = 0.2
    """clip range of the ratio"""
    value_epsilon: float = 10.0
    """how far a value may move from the rollout's without being clipped"""
    vf_coef: float = 0.1
    """weight of the value loss"""
    kl_coef: float = 0.005
    """weight of the KL penalty in the reward"""
    target_kl: float = 0.1
    """leave a rollout once its updates have moved the policy this far, nats per token"""
    eval_every: int = 8
    """rollouts between evaluations"""
    eval_items: int = 200
    """test items answered greedily in an evaluation"""
    bias_init: int = 0


@dataclass
class Rollout:
    """B completions and what the updates need to know of them."""

    tokens_B_T: Tensor
    attended_B_T: Tensor  # 1 on real tokens, 0 on padding
    mask_B_C: Tensor  # 1 on the completion's tokens, its end of sequence included
    old_B_C: Tensor  # log-probabilities under the policy that sampled
    values_B_C: Tensor  # and the critic's values then
    advantages_B_C: Tensor
    returns_B_C: Tensor

    def take(self, rows: Tensor) -> "Rollout":
        return Rollout(*(getattr(self, each.name)[rows] for each in fields(self)))


# ------------------------------------------------------------------------------------------------ sampling


@torch.no_grad()
def sample(
    model, tokenizer, prompts: list[str], max_new_tokens: int, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """One completion per prompt: tokens_B_T, attended_B_T, mask_B_C. Temperature 0 is greedy."""
    encoded = tokenizer(
        prompts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
    ).to(model.device)
    tokens_B_T, attended_B_T = encoded["input_ids"], encoded["attention_mask"]
    ends = torch.tensor([tokenizer.eos_token_id], device=model.device)
    going_B = torch.ones(len(prompts), dtype=torch.bool, device=model.device)
    unread_B_X, cache, length = tokens_B_T, None, tokens_B_T.shape[1]
    while going_B.any() and tokens_B_T.shape[1] < length + max_new_tokens:
        positions_B_X = (attended_B_T.cumsum(1) - 1).clamp(min=0)[:, -unread_B_X.shape[1] :]
        output = model(
            unread_B_X, attention_mask=attended_B_T, position_ids=positions_B_X, past_key_values=cache
        )
        cache, logits_B_V = output.past_key_values, output.logits[:, -1]
        if temperature:
            unread_B_X = torch.multinomial((logits_B_V / temperature).softmax(-1), 1)
        else:
            unread_B_X = logits_B_V.argmax(-1, keepdim=True)
        unread_B_X = unread_B_X.where(going_B[:, None], tokenizer.pad_token_id)
        tokens_B_T = torch.cat([tokens_B_T, unread_B_X], dim=1)
        attended_B_T = torch.cat([attended_B_T, going_B[:, None].long()], dim=1)
        going_B = going_B & ~torch.isin(unread_B_X[:, 0], ends)
    return tokens_B_T, attended_B_T, attended_B_T[:, length:]


def texts_of(tokenizer, tokens_B_T: Tensor, mask_B_C: Tensor) -> list[str]:
    completions = tokens_B_T[:, -mask_B_C.shape[1] :]
    kept = [ids[mask.bool()] for ids, mask in zip(completions, mask_B_C, strict=True)]
    return tokenizer.batch_decode(kept, skip_special_tokens=True)


# ---------------------------------------------------------------------------------------------- the method


def read(model, tokens_B_T: Tensor, attended_B_T: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Logits [B, C, V] and last hidden states [B, C, D] before each of a row's last `length` tokens."""
    positions_B_T = (attended_B_T.cumsum(1) - 1).clamp(min=0)  # padding on the left does not count
    output = model(
        tokens_B_T,
        attention_mask=attended_B_T,
        position_ids=positions_B_T,
        logits_to_keep=length + 1,
        output_hidden_states=True,
    )
    # What stands at a token predicts the next one: the prompt's last token speaks of the first here.
    return output.logits[:, :-1], output.hidden_states[-1][:, -length - 1 : -1]


def chosen(numbers_B_C_V: Tensor, tokens_B_T: Tensor) -> Tensor:
    """The entries of the tokens that were sampled, [B, C]."""
    return numbers_B_C_V.gather(2, tokens_B_T[:, -numbers_B_C_V.shape[1] :, None]).squeeze(2)


def intrinsic_rewards(logits_B_C_V: Tensor, tokens_B_T: Tensor, mask_B_C: Tensor, gamma: float) -> Tensor:
    q_B_C = chosen(logits_B_C_V, tokens_B_T)
    v_B_C = logits_B_C_V.logsumexp(-1) * mask_B_C
    following_B_C = torch.cat([v_B_C[:, 1:], torch.zeros_like(v_B_C[:, :1])], dim=1)
    return (q_B_C - gamma * following_B_C) * mask_B_C


def gae(rewards_B_C: Tensor, values_B_C: Tensor, mask_B_C: Tensor, gamma: float, lam: float) -> Tensor:
    values_B_C = values_B_C * mask_B_C
    advantages_B_C, running_B = torch.zeros_like(rewards_B_C), torch.zeros_like(rewards_B_C[:, 0])
    following_B = torch.zeros_like(running_B)
    for t in reversed(range(rewards_B_C.shape[1])):
        delta_B = rewards_B_C[:, t] + gamma * following_B - values_B_C[:, t]
        running_B = (delta_B + gamma * lam * running_B) * mask_B_C[:, t]
        advantages_B_C[:, t], following_B = running_B, values_B_C[:, t]
    return advantages_B_C


def whiten(numbers_B_C: Tensor, mask_B_C: Tensor) -> Tensor:
    kept = numbers_B_C[mask_B_C.bool()]
    return (numbers_B_C - kept.mean()) / kept.std() * mask_B_C


def ppo_loss(new_B_C, now_B_C, batch: Rollout, args: Args) -> tuple[Tensor, dict[str, float]]:
    mask_B_C = batch.mask_B_C
    log_ratio_B_C = (new_B_C - batch.old_B_C) * mask_B_C
    ratio_B_C = log_ratio_B_C.exp()
    free_B_C = ratio_B_C * batch.advantages_B_C
    held_B_C = ratio_B_C.clamp(1 - args.epsilon, 1 + args.epsilon) * batch.advantages_B_C
    near_B_C = batch.values_B_C + (now_B_C - batch.values_B_C).clamp(-args.value_epsilon, args.value_epsilon)
    error_B_C = torch.maximum((now_B_C - batch.returns_B_C) ** 2, (near_B_C - batch.returns_B_C) ** 2)
    loss_B_C = args.vf_coef * error_B_C / 2 - torch.minimum(free_B_C, held_B_C)
    mean = lambda numbers_B_C: (numbers_B_C * mask_B_C).sum() / mask_B_C.sum()
    found = {
        "moved": mean((-log_ratio_B_C).exp() - 1 + log_ratio_B_C).item(),
        "clipped": mean((held_B_C < free_B_C).float()).item(),
        "value error": mean(error_B_C).item(),
    }
    return mean(loss_B_C), found


@torch.no_grad()
def roll_out(model, head, reference, teacher, tokenizer, records: list[Record], args: Args) -> tuple[Rollout, dict]:
    prompts = [render_prompt(tokenizer, record.input_text) for record in records]
    tokens_B_T, attended_B_T, mask_B_C = sample(model, tokenizer, prompts, args.max_new_tokens, args.temperature)
    parts = []
    for rows in torch.arange(len(prompts)).chunk(args.num_mini_batches):
        batch = tokens_B_T[rows], attended_B_T[rows], mask_B_C.shape[1]
        logits, states = read(model, *batch)
        old = chosen((logits / args.temperature).log_softmax(-1), batch[0])
        ref = chosen((read(reference, *batch)[0] / args.temperature).log_softmax(-1), batch[0])
        paid = intrinsic_rewards(read(teacher, *batch)[0], batch[0], mask_B_C[rows], args.gamma)
        parts.append((old, ref, paid, head(states).squeeze(-1)))
    old, ref, paid, values = (torch.cat(each) for each in zip(*parts, strict=True))
    rewards = paid - args.kl_coef * (old - ref) * mask_B_C
    if args.bias_init and head.bias.item() == 0:
        v = gae(rewards, values*0, mask_B_C, 1.0, 1.0)[mask_B_C.bool()].mean() - values[mask_B_C.bool()].mean()
        head.bias += v; values = values + v
    advantages = gae(rewards, values, mask_B_C, args.gamma, args.lam)
    returns = advantages + values
    k = mask_B_C.bool()
    ev = 1 - (returns - values)[k].var() / returns[k].var()
    right = sum(grade(r, t).correct for r, t in zip(records, texts_of(tokenizer, tokens_B_T, mask_B_C)))/len(records)
    logged = {"paid": paid.sum(1).mean().item(), "kl": ((old - ref) * mask_B_C).sum(1).mean().item(), "ev": ev.item(), "values": values[k].mean().item(),
    "returns": returns[k].mean().item(), "length": mask_B_C.sum(1).float().mean().item(), "right": right}
    return Rollout(tokens_B_T, attended_B_T, mask_B_C, old, values, whiten(advantages, mask_B_C), returns), logged


def update(model, head, optimizer: torch.optim.Optimizer, rollout: Rollout, args: Args) -> dict[str, float]:
    """All updates on a rollout; means of what they measured."""
    measured = []
    for _ in range(args.num_epochs):
        for rows in torch.randperm(len(rollout.mask_B_C)).chunk(args.num_mini_batches):
            if measured and sum(f["moved"] for f in measured) / len(measured) > args.target_kl:
                continue
            batch = rollout.take(rows.to(model.device))
            logits, states = read(model, batch.tokens_B_T, batch.attended_B_T, batch.mask_B_C.shape[1])
            new = chosen((logits / args.temperature).log_softmax(-1), batch.tokens_B_T)
            loss, found = ppo_loss(new, head(states).squeeze(-1), batch, args)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([*model.parameters(), *head.parameters()], args.max_grad_norm)
            optimizer.step()
            measured.append(found)
    return {name: sum(found[name] for found in measured) / len(measured) for name in measured[0]} | {"n": len(measured)}


# ------------------------------------------------------------------------------------------ data and main


def embedded_records(split: str) -> list[Record]:
    """The embedded data set ("train", "dev" or "test"), its prompts as 01_prepare_dataset.py renders them."""
    records = []
    for row in generate(seed=0)[split]:
        (_, *years), *lines = row["table"]
        facts = [
            f"{name} {year} {cell}" for name, *cells in lines for year, cell in zip(years, cells, strict=True)
        ]
        qa = row["qa"]
        text = "\n".join([*row["pre_text"], *facts, f"question: {qa['question']}"])
        answer, program = str(qa["exe_ans"]), qa["program"]
        record = Record(row["id"], "sample", qa["question"], text, "", answer, program, table=row["table"])
        records.append(record)
    return records


def accuracy(model, tokenizer, records: list[Record], max_new_tokens: int) -> float:
    """The share of right greedy answers."""
    right = 0
    for start in range(0, len(records), 100):
        part = records[start : start + 100]
        prompts = [render_prompt(tokenizer, record.input_text) for record in part]
        tokens_B_T, _, mask_B_C = sample(model, tokenizer, prompts, max_new_tokens, temperature=0)
        texts = texts_of(tokenizer, tokens_B_T, mask_B_C)
        right += sum(grade(record, text).correct for record, text in zip(part, texts, strict=True))
    return right / len(records)


def main(args: Args) -> float:
    """Train; print a line per rollout; return the last accuracy."""
    torch.manual_seed(args.seed)
    draw = random.Random(args.seed)
    if args.data:
        train, test = (load_records(Path(args.data) / f"{split}.jsonl") for split in ("train", "test"))
    else:
        train, test = embedded_records("train"), embedded_records("test")
    test = test[: args.eval_items]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model, teacher = (
        AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).to(device).eval()
        for name in (args.model, args.teacher)
    )
    reference = copy.deepcopy(model)
    head = nn.Linear(model.config.hidden_size, 1).to(device)
    nn.init.normal_(head.weight, std=(model.config.hidden_size + 1) ** -0.5)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.AdamW([{"params": model.parameters(), "lr": args.learning_rate}, {"params": head.parameters(), "lr": args.value_learning_rate}], weight_decay=0.0)
    began, found = time.perf_counter(), accuracy(model, tokenizer, test, args.max_new_tokens)
    print(f"before: {found:.1%} of {len(test)} test items answered right, greedily")
    for number in range(1, args.num_rollouts + 1):
        rollout, logged = roll_out(model, head, reference, teacher, tokenizer, draw.sample(train, args.rollout_size), args)
        logged |= update(model, head, optimizer, rollout, args)
        print(f"rollout {number:3d} ", "  ".join(f"{name} {value:.3f}" for name, value in logged.items()), f" {time.perf_counter() - began:.0f} s", flush=True)
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
    main(Args(**vars(parser.parse_args())))
