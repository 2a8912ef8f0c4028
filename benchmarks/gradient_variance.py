"""What RLOO claims, measured: with the same samples its gradient varies less than that of plain REINFORCE.

    python benchmarks/gradient_variance.py [--prompts 64] [--json FILE] [options of 07_train_rloo.py]

Reads a run as 07_train_rloo.py does, and writes nothing into it. On its SFT policy, G completions each of P
prompts are sampled once. Of every estimator (baseline) and prompt

    g_p = 1/G sum_i A_i grad log pi(y_i | x_p)

is the policy gradient over the trained parameters, with the log-probability of the whole completion and the
advantages A that training would use. A rollout of n prompts has the mean of n such gradients, so its
covariance is that of g_p divided by n. The trace is estimated without bias from the spread of g_p over the P
prompts, which holds both the variance of sampling completions and that of drawing prompts.

Two gradients of each prompt tell all estimators: that of the rewards less their group's mean m, c_p, and that
of the plain score, s_p (A = 1). Group mean: c_p. Leave-one-out: G / (G - 1) c_p. REINFORCE: c_p + m s_p. And
with every reward moved by o, which changes nothing that is to be learnt and leaves the first two as they are,
REINFORCE: c_p + (m + o) s_p. docs/rloo.md has what was found.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.data.records import load_records
from utils.frame.files import UserError, derive_seed, dump_json, write_json
from utils.frame.stage import StageContext
from utils.frame.stage_plan import check_inputs, load_script, make_plan
from utils.methods.rloo.trainer import SharedPrefixRLOOTrainer, build_rloo_trainer
from utils.models.prefix.shared_prefix import CompletionBatch, evaluating
from utils.models.sampling import generate
from utils.models.sampling_memory import Room
from utils.rewards.spec import load_reward_spec
from utils.rollouts.advantages import baselines
from utils.rollouts.prompt_order import prompt_order
from utils.training.run import compute_reproducibly

ESTIMATORS = {"reinforce": "none", "group_mean": "mean", "leave_one_out": "loo"}  # -> baseline_type
OFFSETS = (-1.0, -0.5, 0.5, 1.0)  # what is added to every reward, to see whom it matters to
RESAMPLES = 2000
GRADIENT_BYTES = 8 * 2**30  # what the gradients of all prompts may take
COLUMNS = 2**18  # of them, brought to float64 at once
ROUNDING = 1e-6  # a difference below this share of a group's largest reward is none


# -------------------------------------------------------------------------------------------- the estimate


def weighted_gradients(log_probs: Tensor, weights: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """The gradient of mean_i w_i log pi(y_i) for each row w of ``weights``, float32 [W, parameters].

    log_probs: of G whole completions, [G], with their graph; weights: [W, G].
    """
    rows = []
    for row in weights:
        found = torch.autograd.grad(
            (row * log_probs).mean(), parameters, retain_graph=True, allow_unused=True
        )
        parts = [
            torch.zeros_like(parameter) if part is None else part
            for part, parameter in zip(found, parameters, strict=True)
        ]
        rows.append(torch.cat([part.flatten().float() for part in parts]))
    return torch.stack(rows)


def products(rows: Tensor) -> Tensor:
    """The dot products of P vectors, [P, D], with each other: float64 [P, P]."""
    total = rows.new_zeros(len(rows), len(rows), dtype=torch.float64)
    for piece in rows.split(COLUMNS, dim=1):
        piece = piece.double()
        total += piece @ piece.T
    return total


def combined_products(dots: Tensor, scale: float, shift: Tensor) -> Tensor:
    """The dot products, [P, P], of the vectors ``scale`` c_p + ``shift``_p s_p, from those of c_1 … c_P and
    s_1 … s_P, [2P, 2P].
    """
    size = len(shift)
    ours, mixed, scores = dots[:size, :size], dots[:size, size:], dots[size:, size:]
    mixed = scale * mixed * shift
    return scale**2 * ours + mixed + mixed.T + shift[:, None] * scores * shift


def total_variance(dots: Tensor, counts: Tensor) -> Tensor:
    """The trace of the unbiased covariance of vectors, given by their dot products [P, P], of which each
    counts as often as ``counts`` [..., P] says.
    """
    size = counts.sum(-1)
    squares = counts @ dots.diagonal()
    of_the_sum = ((counts @ dots) * counts).sum(-1)
    return (squares - of_the_sum / size) / (size - 1)


def variance_ratio(dots: Tensor, other: Tensor, generator: torch.Generator) -> dict[str, Any]:
    """Total variance of one estimator's gradients over that of another's, on the same prompts.

    ``value`` with a 95 % percentile interval ``ci95`` from resampled prompts; both None where the other does
    not vary.
    """
    prompts = len(dots)
    once = torch.ones(prompts, dtype=torch.float64)
    if not total_variance(other, once) > 0:
        return {"value": None, "ci95": None, "n": prompts}
    drawn = torch.randint(prompts, (RESAMPLES, prompts), generator=generator)
    counts = torch.zeros(RESAMPLES, prompts, dtype=torch.float64)
    counts.scatter_add_(1, drawn, torch.ones(RESAMPLES, prompts, dtype=torch.float64))
    below = total_variance(other, counts)
    ratios = (total_variance(dots, counts) / below)[below > 0]
    interval = torch.quantile(ratios, torch.tensor([0.025, 0.975], dtype=torch.float64))
    value = total_variance(dots, once) / total_variance(other, once)
    return {"value": value.item(), "ci95": interval.tolist(), "n": prompts}


# --------------------------------------------------------------------------------------------- sign and order


def sign_agreement(advantages: Tensor, rewards: Tensor) -> float:
    """The share of samples, [P, G], whose advantage has the sign (or the 0) of reward - mean of the group."""
    advantages, rewards = advantages.double(), rewards.double()
    rounding = ROUNDING * rewards.abs().amax(1, keepdim=True)

    def signs(values: Tensor) -> Tensor:
        return values.sign() * (values.abs() > rounding)

    return (signs(advantages) == signs(rewards - rewards.mean(1, keepdim=True))).double().mean().item()


def order_agreement(advantages: Tensor, rewards: Tensor) -> float | None:
    """Of the pairs in a group, [P, G], with unlike rewards, the share whose higher reward has the higher
    advantage; None without such pairs.
    """
    advantages, rewards = advantages.double(), rewards.double()
    rounding = ROUNDING * rewards.abs().amax(1)[:, None, None]
    higher = rewards[:, :, None] - rewards[:, None, :] > rounding
    kept = advantages[:, :, None] > advantages[:, None, :]
    return kept[higher].double().mean().item() if higher.any() else None


# ------------------------------------------------------------------------------------------- on a policy


def sample_groups(
    trainer: SharedPrefixRLOOTrainer,
    rows: Sequence[int],
    generator: torch.Generator,
    batch_size: int,
    room: Room,
) -> tuple[list[CompletionBatch], Tensor]:
    """A group of completions for each of the training set's ``rows``, and what they are paid, [P, G].

    They are sampled, ``batch_size`` completions at once, and paid as a rollout of these prompts; nothing
    learns from the rewards.
    """
    args, tokenizer, size = trainer.args, trainer.processing_class, trainer.num_generations
    picked = trainer.train_dataset.select(rows)
    prompts = trainer.prompt_tokens(picked["prompt"])
    completions = generate(
        trainer.model,
        tokenizer,
        prompts,
        max_new_tokens=args.max_completion_length,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k or 0,
        num_samples=size,
        batch_size=batch_size,
        generator=generator,
        room=room,
    )
    ids = [completion.token_ids for completion in completions]
    device = trainer.accelerator.device
    paid = trainer.pipeline.score_outcomes(
        [record for record in picked["record"] for _ in range(size)],
        CompletionBatch.of([prompt for prompt in prompts for _ in range(size)], ids, device),
        [completion.text for completion in completions],
        torch.tensor([completion.truncated for completion in completions]),
        update=False,
    )
    groups = [
        CompletionBatch.of([prompt] * size, ids[number * size : (number + 1) * size], device)
        for number, prompt in enumerate(prompts)
    ]
    return groups, paid.total.view(-1, size)


def completion_log_probs(trainer: SharedPrefixRLOOTrainer, batch: CompletionBatch) -> Tensor:
    """Log-probabilities of whole completions, [B], as the trainer's loss takes them, with their graph."""
    ids = torch.cat([batch.prompt_ids, batch.completion_ids], dim=1)
    mask = torch.cat([batch.prompt_mask, batch.completion_mask], dim=1)
    length = batch.completion_ids.shape[1]
    found = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, length)[0]
    return (found * batch.completion_mask).sum(1)


def measure(ctx: StageContext, trainer: SharedPrefixRLOOTrainer, prompts: int) -> dict[str, Any]:
    """Compare the estimators on the policy as it is; see the module's text.

    The policy is taken to be the reference still, so that there is no KL in the rewards. Raises UserError
    for less than two prompts, where their gradients take more than `GRADIENT_BYTES`, and where one is not
    finite.
    """
    rows = prompt_order(len(trainer.train_dataset), ctx.seed)[:prompts]
    size = trainer.num_generations
    per_rollout = max(1, trainer.args.generation_batch_size // size)
    generator = torch.Generator().manual_seed(derive_seed(ctx.seed, "gradient_variance"))
    parameters = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    most = GRADIENT_BYTES // (2 * 4 * sum(map(torch.numel, parameters)))  # two float32 gradients each
    if not 2 <= len(rows) <= most:
        raise UserError(f"gradients of {len(rows)} prompts cannot be compared: give 2 to {most} --prompts")
    # Whole micro-batches: samples must not depend on how processes divide them.
    batch_size, room = ctx.config.algo.per_device_train_batch_size, Room(ctx.config.model.generation)
    rewards, gradients = [], []
    with evaluating(trainer.model):
        starts = range(0, len(rows), per_rollout)
        for start in ctx.progress(starts, len(starts), "gradient variance"):
            part = rows[start : start + per_rollout]
            groups, paid = sample_groups(trainer, part, generator, batch_size, room)
            rewards.append(paid.cpu())
            for batch, reward in zip(groups, paid, strict=True):
                weights = torch.stack([reward - baselines(reward, size, "mean"), torch.ones_like(reward)])
                log_probs = completion_log_probs(trainer, batch)
                gradients.append(weighted_gradients(log_probs, weights, parameters).cpu())
    centred, scores = torch.stack(gradients, dim=1)
    del gradients
    if not (centred.isfinite().all() and scores.isfinite().all()):
        raise UserError(
            "the gradient variance check met gradients that are not finite on the start policy: train 03 "
            "again, or use model.torch_dtype float32"
        )
    return compare(centred, scores, torch.cat(rewards), per_rollout, ctx.seed)


def compare(centred: Tensor, scores: Tensor, rewards: Tensor, per_rollout: int, seed: int) -> dict[str, Any]:
    """The findings, from c_p and s_p, [P, parameters] each, rewards [P, G] and the prompts of a rollout."""
    prompts, size = rewards.shape
    dots = products(torch.cat([centred, scores]))
    none, mean = torch.zeros(prompts, dtype=torch.float64), rewards.double().mean(1)
    by_name = {
        "reinforce": combined_products(dots, 1.0, mean),
        "group_mean": combined_products(dots, 1.0, none),
        "leave_one_out": combined_products(dots, size / (size - 1), none),
    }
    everything = by_name["leave_one_out"] + by_name["reinforce"]
    estimators = {}
    for name, baseline in ESTIMATORS.items():
        flat = rewards.flatten()
        advantages = (flat - baselines(flat, size, baseline)).view_as(rewards)
        estimators[name] = {
            "baseline_type": baseline,
            "variance": total_variance(by_name[name], torch.ones_like(mean)).item() / per_rollout,
            "sign_agreement": sign_agreement(advantages, rewards),
            "order_agreement": order_agreement(advantages, rewards),
        }

    def ratio_to(other: Tensor) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(derive_seed(seed, "gradient_variance_bootstrap"))
        return variance_ratio(by_name["leave_one_out"], other, generator)

    return {
        "prompts": prompts,
        "samples_per_prompt": size,
        "prompts_per_rollout": per_rollout,
        "parameters": centred.shape[1],
        "reward_mean": rewards.double().mean().item(),
        "groups_without_spread": (rewards.double().std(1) <= ROUNDING).double().mean().item(),
        "estimators": estimators,
        "ratio_to_reinforce": ratio_to(by_name["reinforce"]),
        "ratio_to_group_mean": ratio_to(by_name["group_mean"]),
        "ratio_to_reinforce_with_rewards_moved": [
            {"offset": offset, **ratio_to(combined_products(dots, 1.0, mean + offset))} for offset in OFFSETS
        ],
        # Gradients have heavy tails: an interval is not to be trusted where one prompt makes up the variance.
        "largest_share_of_one_prompt": (
            (everything.diagonal().max() / everything.trace()).item() if everything.trace() > 0 else 0.0
        ),
        "bootstrap_resamples": RESAMPLES,
    }


def sentence(found: dict[str, Any]) -> str:
    """What was found, in one line."""
    ratio, ours = found["ratio_to_reinforce"], found["estimators"]["leave_one_out"]
    about = f"gradient of {found['prompts_per_rollout']} prompts x {found['samples_per_prompt']} samples"
    agreement = f"sign of advantage = sign of reward - group mean in {100 * ours['sign_agreement']:.1f} %"
    if ratio["value"] is None:
        return f"{about}: REINFORCE's does not vary on this policy, nothing to compare; {agreement}"
    low, high = ratio["ci95"]
    verdict = "lower" if high < 1 else "higher" if low > 1 else "not shown to differ"
    share = found["largest_share_of_one_prompt"]
    return (
        f"{about}: variance of RLOO / REINFORCE {ratio['value']:.3f} (95 % {low:.3f} to {high:.3f}, "
        f"{found['prompts']} prompts, of which one makes up {100 * share:.0f} %): {verdict}; {agreement}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--prompts", type=int, default=64, help="prompts to compare gradients of (default 64)"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures here; else print them")
    options, rest = parser.parse_known_args()
    compute_reproducibly()
    try:
        plan = make_plan(load_script("07_train_rloo.py").STAGE, rest)
        check_inputs(plan)
        with tempfile.TemporaryDirectory() as folder:
            ctx = StageContext(plan.config, plan.run_dir.name, plan.run_dir, Path(folder), False, plan.inputs)
            spec = load_reward_spec(ctx.inputs["reward_spec"])
            trainer, _ = build_rloo_trainer(ctx, load_records(ctx.inputs["train"]), spec)
            found = measure(ctx, trainer, options.prompts)
    except UserError as error:
        sys.exit(f"error: {error}")
    if options.json:
        write_json(options.json, found)
    else:
        print(dump_json(found), end="")
    print(sentence(found))


if __name__ == "__main__":
    main()
