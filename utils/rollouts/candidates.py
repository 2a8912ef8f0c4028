"""Candidates: K sampled answers per prompt with their rewards, and what they say about the policy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from utils.data.prompts import render_prompt, template_facts, token_ids
from utils.data.records import Record
from utils.frame.files import derive_seed
from utils.frame.stage import StageContext
from utils.models.loading import device, load_policy
from utils.models.prefix.shared_prefix import CompletionBatch
from utils.models.sampling import drawn_as, generate
from utils.models.sampling_memory import Room
from utils.models.vllm.sampler import announce_sampler, vllm_completer
from utils.rewards.spec import RewardSpec
from utils.rollouts.reward_state import close_pipeline, open_pipeline
from utils.statistics.pass_at_k import mean_shares, pass_at_k, sample_ks
from utils.training.cost import Cost
from utils.training.inputs import start_path


def sample_candidates(
    ctx: StageContext, records: Sequence[Record], spec: RewardSpec, num_candidates: int, reward: str
) -> list[dict[str, Any]]:
    """A row per record: ``id, level, prompt, candidates``; sampled at ``generation.temperature``.

    Every process calls this alike; they share the models' work, and each gets all the rows.

    A candidate has ``text, tokens, token_ids, truncated, correct, parsed``, ``reward`` (every component as
    ``reward`` counts it, the intrinsic one by its outcome, and the total) and ``raw`` (unweighted:
    ``reasoning``, user-defined ones, and ``intrinsic`` = alpha log pi_hat(completion), null where no teacher
    is asked).
    """
    config = ctx.config.model
    model, tokenizer = load_policy(start_path(ctx), config.model)
    ctx.metrics |= template_facts(tokenizer)
    prompts = [render_prompt(tokenizer, record.input_text) for record in records]
    prompt_ids = token_ids(tokenizer, prompts)
    announce_sampler(ctx)
    cost = Cost()
    with cost.phase("sampling"):
        completions = generate(
            model,
            tokenizer,
            prompt_ids,
            **drawn_as(config.generation),
            num_samples=num_candidates,
            batch_size=config.generation.largest_batch,
            generator=torch.Generator().manual_seed(derive_seed(ctx.seed, "candidates")),
            progress=partial(ctx.progress, description="sampling"),
            across_processes=True,
            room=Room(config.generation),
            completer=vllm_completer(model, tokenizer, config, prompt_ids),
        )
    cost.sampled(len(completions), sum(len(completion.token_ids) for completion in completions))
    pipeline = open_pipeline(records, spec, reward, config, tokenizer, replicated=True)
    owner = [number for number in range(len(records)) for _ in range(num_candidates)]
    batch = CompletionBatch.of(
        [prompt_ids[number] for number in owner], [each.token_ids for each in completions], device()
    )
    truncated = torch.tensor([completion.truncated for completion in completions])
    texts = [completion.text for completion in completions]
    with cost.phase("scoring"):
        rewards = pipeline.score_outcomes(owner, batch, texts, truncated, progress=ctx.progress)
    close_pipeline(ctx, pipeline)
    cost.report(ctx)
    candidates = []
    for index, completion in enumerate(completions):
        paid = {name: round(part[index].item(), 6) for name, part in rewards.components.items()}
        raw = {name: round(part[index].item(), 6) for name, part in rewards.raw.items()}
        candidates.append(
            {
                "text": completion.text,
                "tokens": len(completion.token_ids),
                "truncated": completion.truncated,
                "correct": rewards.correct[index].item(),
                "parsed": rewards.parsed[index].item(),
                "reward": paid | {"total": round(sum(paid.values()), 6)},
                "token_ids": list(completion.token_ids),
                "raw": {"intrinsic": None} | raw,
            }
        )
    return [
        {
            "id": record.id,
            "level": record.level,
            "prompt": prompt,
            "candidates": candidates[number * num_candidates : (number + 1) * num_candidates],
        }
        for number, (record, prompt) in enumerate(zip(records, prompts, strict=True))
    ]


def score_rows(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A row per candidate, without its text: which prompt's, which one, and what it was rewarded with."""
    for row in rows:
        for number, candidate in enumerate(row["candidates"]):
            facts = {key: candidate[key] for key in ("correct", "parsed", "truncated", "tokens")}
            yield {"id": row["id"], "candidate": number, **facts, "reward": candidate["reward"]}


def summarize_candidates(rows: Sequence[dict[str, Any]], num_candidates: int, seed: int) -> dict[str, Any]:
    """Counts, mean reward components, parse rate, pass@k for k = 1, 2, 4 … K overall and by level, diversity.

    Diversity is the mean number of distinct texts per prompt and the share of prompts whose rewards differ
    between candidates: the others give group-relative methods no signal.
    """
    candidates = [candidate for row in rows for candidate in row["candidates"]]
    ks, rng = sample_ks(num_candidates), np.random.default_rng(derive_seed(seed, "pass_at_k"))
    by_level = defaultdict(list)
    for row in rows:
        by_level[row["level"]].append(row)
    return {
        "prompts": len(rows),
        "candidates": len(candidates),
        "accuracy": _mean([candidate["correct"] for candidate in candidates]),
        "parse_rate": _mean([candidate["parsed"] for candidate in candidates]),
        "truncated": _mean([candidate["truncated"] for candidate in candidates]),
        "mean_tokens": _mean([candidate["tokens"] for candidate in candidates]),
        "mean_reward": _mean([candidate["reward"]["total"] for candidate in candidates]),
        "mean_components": {
            name: _mean([candidate["reward"][name] for candidate in candidates])
            for name in candidates[0]["reward"]
        },
        "pass_at_k": _pass_rates(rows, ks, rng),
        "pass_at_k_by_level": {
            str(level): _pass_rates(members, ks, rng)
            for level, members in sorted(by_level.items(), key=lambda pair: str(pair[0]))
        },
        "distinct_per_prompt": _mean([len({c["text"] for c in row["candidates"]}) for row in rows]),
        "prompts_with_signal": _mean(
            [len({c["reward"]["total"] for c in row["candidates"]}) > 1 for row in rows]
        ),
    }


def _pass_rates(
    rows: Sequence[dict[str, Any]], ks: Sequence[int], rng: np.random.Generator
) -> dict[str, dict[str, Any]]:
    """Mean pass@k over prompts by k, as `mean_shares` has it, in six decimals."""
    counts = [(len(row["candidates"]), sum(c["correct"] for c in row["candidates"])) for row in rows]
    means = mean_shares(np.array([[pass_at_k(*count, k) for k in ks] for count in counts]), rng)
    for mean in means:
        mean |= {"value": round(mean["value"], 6), "ci95": [round(end, 6) for end in mean["ci95"]]}
    return dict(zip(map(str, ks), means, strict=True))


def _mean(values: Sequence[float]) -> float:
    return round(float(np.mean(values)), 6)
