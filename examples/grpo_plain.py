"""GRPO in one file, to read: PyTorch and Transformers, no trainer between them and the method.

    python examples/grpo_plain.py                     # the embedded base student, on the embedded data
    python examples/grpo_plain.py --beta 0 --num_iterations 1 --num_mini_batches 1
    python examples/grpo_plain.py --model MODEL --data outputs/run_001/01_preprocessing --save_to FOLDER

Group relative policy optimisation (DeepSeekMath, arXiv 2402.03300). For each prompt draw G completions and
grade them. What a completion is worth is its reward against the others of its group, so no critic is needed:

    A_i  = (r_i - mean of the group) / (deviation of the group + 1e-4)            the same for all its tokens
    rho  = pi(token) / pi_old(token)                                     pi_old is the policy that sampled
    loss = - mean over tokens of [ min(rho A, clip(rho, 1 - eps, 1 + eps) A) - beta rho k3 ]
    k3   = pi_ref / pi - log(pi_ref / pi) - 1                                     pi_ref is the start policy

Departures from the paper, each at its line below:
 1. The mean is over the tokens of the rollout (DAPO, arXiv 2503.14476), not over each completion's tokens
    and then over completions: a token weighs the same in a short completion and in a long one.
 2. The deviation is the unbiased one (over G - 1), and 1e-4 is added. The paper says "std" and no more.
 3. k3 is weighted by rho. Its expected gradient is then that of KL(pi || pi_ref); without rho, as in the
    paper, it is not. beta is 0.005, the paper's 0.04.
 4. A rollout is used for four updates (two passes, two mini-batches each), in the paper for one. With one
    update rho is 1 and the clip idle.
 5. The reward is 1 for a verified answer and 0 otherwise, where the paper trains a reward model.
 6. The reference is the start policy throughout. The paper renews reference and reward model in an outer
    loop.
 7. 16 prompts x 8 completions a rollout, in the paper 16 x 64; the learning rate is that of a model of a
    million parameters; and the start is a base model, where the paper's has been fine-tuned on instructions.

And from 06_train_grpo.py, whose loss and gradient on the same batch are these to 1e-5
(tests/unit/examples/test_plain.py): all weights are trained and not an adapter, the learning rate is
constant, prompts are encoded once per completion and not once per group, the policy is the last and not the
best on validation items, and nothing resumes.

Measured on one core of a 2.1 GHz server: FIGURES

Shape suffixes: P prompts, G completions of each, B = P G; T tokens of prompt (padded on the left) and
completion (padded on the right), C of the completion alone; V vocabulary.
"""

import argparse
import copy
import random
import sys
import time
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor
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
    data: str = ""
    """folder with train.jsonl and test.jsonl of 01_prepare_dataset.py; empty: the embedded data set"""
    save_to: str = ""
    """folder for the trained policy; empty: it is not kept"""
    seed: int = 0
    """of the prompts' order and of sampling"""
    num_rollouts: int = 24
    """rollouts in all"""
    num_prompts: int = 16
    """P, prompts in a rollout"""
    num_generations: int = 8
    """G, completions of each prompt"""
    max_new_tokens: int = 72
    """longest completion"""
    temperature: float = 1.0
    """of sampling, and of every log-probability"""
    num_iterations: int = 2
    """passes over each rollout"""
    num_mini_batches: int = 2
    """updates in each pass"""
    learning_rate: float = 5e-4
    """of AdamW, constant"""
    max_grad_norm: float = 1.0
    """the gradient is scaled down to this norm"""
    epsilon: float = 0.2
    """clip range of the ratio"""
    beta: float = 0.005
    """weight of the KL penalty"""
    eval_every: int = 8
    """rollouts between evaluations"""
    eval_items: int = 200
    """test items answered greedily in an evaluation"""


@dataclass
class Rollout:
    """B completions, those of a prompt next to each other, and what the updates need to know of them."""

    tokens_B_T: Tensor
    attended_B_T: Tensor  # 1 on real tokens, 0 on padding
    mask_B_C: Tensor  # 1 on the completion's tokens, its end of sequence included
    old_B_C: Tensor  # log-probabilities under the policy that sampled
    ref_B_C: Tensor  # and under the reference
    advantages_B: Tensor

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


def log_probs(model, tokens_B_T: Tensor, attended_B_T: Tensor, length: int, temperature: float) -> Tensor:
    """Log-probabilities of each row's last `length` tokens, [B, C], at the temperature of sampling."""
    positions_B_T = (attended_B_T.cumsum(1) - 1).clamp(min=0)  # padding on the left does not count
    output = model(
        tokens_B_T, attention_mask=attended_B_T, position_ids=positions_B_T, logits_to_keep=length + 1
    )
    # The logits at a token predict the next one: those of the prompt's last token speak of the first here.
    logits_B_C_V = output.logits[:, :-1] / temperature
    targets_B_C = tokens_B_T[:, -length:]
    return logits_B_C_V.log_softmax(-1).gather(2, targets_B_C[:, :, None]).squeeze(2)


def group_advantages(rewards_B: Tensor, num_generations: int) -> Tensor:
    """Each reward against its group, [B]; 0 throughout a group of equal rewards."""
    rewards_P_G = rewards_B.view(-1, num_generations)
    centred_P_G = rewards_P_G - rewards_P_G.mean(1, keepdim=True)
    return (centred_P_G / (rewards_P_G.std(1, keepdim=True) + 1e-4)).view(-1)  # departure 2


def grpo_loss(
    new_B_C: Tensor, batch: Rollout, tokens: float, epsilon: float, beta: float
) -> tuple[Tensor, dict[str, float]]:
    """The loss of some rows of a rollout, and what to log. `tokens` is what a mean is taken over."""
    mask_B_C, advantages_B_1 = batch.mask_B_C, batch.advantages_B[:, None]
    ratio_B_C = ((new_B_C - batch.old_B_C) * mask_B_C).exp()
    free_B_C = ratio_B_C * advantages_B_1
    held_B_C = ratio_B_C.clamp(1 - epsilon, 1 + epsilon) * advantages_B_1
    away_B_C = (batch.ref_B_C - new_B_C) * mask_B_C
    kl_B_C = (away_B_C.exp() - away_B_C - 1) * ratio_B_C  # departure 3
    loss_B_C = beta * kl_B_C - torch.minimum(free_B_C, held_B_C)
    loss = (loss_B_C * mask_B_C).sum() / tokens  # departure 1
    clipped = ((held_B_C < free_B_C) * mask_B_C).sum() / tokens
    return loss, {"clipped": clipped.item(), "kl": ((kl_B_C * mask_B_C).sum() / tokens).item()}


@torch.no_grad()
def roll_out(model, reference, tokenizer, records: list[Record], args: Args) -> tuple[Rollout, Tensor]:
    """G completions of every record's prompt, scored and graded; and their rewards, [B]."""
    asked = [record for record in records for _ in range(args.num_generations)]
    prompts = [render_prompt(tokenizer, record.input_text) for record in asked]
    sampled = sample(model, tokenizer, prompts, args.max_new_tokens, args.temperature)
    tokens_B_T, attended_B_T, mask_B_C = sampled
    texts = texts_of(tokenizer, tokens_B_T, mask_B_C)
    rewards_B = torch.tensor(  # departure 5
        [float(grade(record, text).correct) for record, text in zip(asked, texts, strict=True)],
        device=model.device,
    )
    scores = []
    for scored in (model, reference):
        parts = zip(*(each.chunk(args.num_mini_batches) for each in (tokens_B_T, attended_B_T)), strict=True)
        length = mask_B_C.shape[1]
        scores.append(torch.cat([log_probs(scored, *part, length, args.temperature) for part in parts]))
    advantages_B = group_advantages(rewards_B, args.num_generations)
    return Rollout(tokens_B_T, attended_B_T, mask_B_C, *scores, advantages_B), rewards_B


def update(model, optimizer: torch.optim.Optimizer, rollout: Rollout, args: Args) -> dict[str, float]:
    """All updates on a rollout; means of what they measured."""
    tokens = rollout.mask_B_C.sum() / args.num_mini_batches  # in a mini-batch, on average
    measured = []
    for _ in range(args.num_iterations):  # departure 4
        for rows in torch.randperm(len(rollout.mask_B_C)).chunk(args.num_mini_batches):
            batch = rollout.take(rows.to(model.device))
            length = batch.mask_B_C.shape[1]
            new_B_C = log_probs(model, batch.tokens_B_T, batch.attended_B_T, length, args.temperature)
            loss, found = grpo_loss(new_B_C, batch, tokens, args.epsilon, args.beta)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)
            optimizer.step()
            measured.append(found)
    return {name: sum(found[name] for found in measured) / len(measured) for name in measured[0]}


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
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).to(device)
    model.eval()  # no dropout: the ratio compares two passes over the same tokens
    reference = copy.deepcopy(model).requires_grad_(False)  # departure 6
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=0.0)
    began, found = time.perf_counter(), accuracy(model, tokenizer, test, args.max_new_tokens)
    print(f"before: {found:.1%} of {len(test)} test items answered right, greedily")
    for number in range(1, args.num_rollouts + 1):
        rollout, rewards_B = roll_out(model, reference, tokenizer, draw.sample(train, args.num_prompts), args)
        logged = update(model, optimizer, rollout, args)
        idle = (rollout.advantages_B.view(-1, args.num_generations) == 0).all(1).float().mean().item()
        print(
            f"rollout {number:3d}  reward {rewards_B.mean():.3f}  groups without signal {idle:.2f}  "
            f"kl {logged['kl']:.4f}  clipped {logged['clipped']:.3f}  {time.perf_counter() - began:.0f} s",
            flush=True,
        )
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
