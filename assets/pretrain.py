"""Pre-training of the embedded models on an endless stream of synthetic reports.

Documents are reports as the policy will see them, with worked questions. The base student learns to look up
and to write programs in a plain form, then also in the JSON frame; it sees the right convention and the
annotators' slip equally often, so that its conventions are open. The teacher learns the JSON response with
gold programs only.
The loss is on worked answers only. Reports of the embedded data set never occur in the stream.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from utils.data.readers import sample
from utils.data.readers.sample import Question, Table

Segment = tuple[str, bool]  # text, and whether its tokens carry loss


@dataclass
class PretrainConfig:
    """Hyper-parameters of one pre-training run."""

    steps: int
    batch_size: int  # documents
    learning_rate: float
    warmup_steps: int = 50
    min_learning_rate_ratio: float = 0.02
    weight_decay: float = 0.01
    beta2: float = 0.98
    max_grad_norm: float = 1.0
    seed: int = 0


def embedded_tables(seed: int = 0) -> set[str]:
    """Keys of every table of the embedded data set, to keep them out of the stream."""
    return {json.dumps(row["table"]) for rows in sample.generate(seed).values() for row in rows}


def draw_fresh_table(rng: random.Random, excluded: set[str]) -> tuple[Table, list[int]]:
    """A random table that the embedded data set does not contain."""
    while True:
        table, years = sample.draw_table(rng)
        if json.dumps(sample.grid(table, years)) not in excluded:
            return table, years


def plain_response(question: Question) -> str:
    """The base corpus' form of a worked question."""
    return f"evidence: {' ; '.join(question.evidence)}\nprogram: {question.demonstration}"


def json_response(question: Question) -> str:
    """The response in the form that stage 03 teaches."""
    return json.dumps({"evidence": " ; ".join(question.evidence), "program": question.demonstration})


OPEN_CONVENTIONS = dict.fromkeys(sample.ANNOTATOR_SLIPS, 0.5)


def base_document(rng: random.Random, excluded: set[str]) -> list[Segment]:
    """A report with one to three worked questions; one report in ten restates its cells in random order."""
    table, years = draw_fresh_table(rng, excluded)
    segments: list[Segment] = [(sample.report_text(rng, table), False)]
    if rng.random() < 0.1:
        cells = [(row, year) for row in table for year in table[row]]
        rng.shuffle(cells)
        for row, year in cells:
            segments += [(f"\n{row} {year} ", False), (f"{table[row][year]}", True)]
        return segments
    for _ in range(rng.choice((1, 2, 3))):
        question = sample.draw_question(table, years, rng, OPEN_CONVENTIONS)
        segments += [(f"\nquestion: {question.text}", False), ("\n" + plain_response(question), True)]
    return segments


def framed_document(rng: random.Random, excluded: set[str]) -> list[Segment]:
    """A base document, or (one in four) a question answered in the JSON frame, its convention as open."""
    if rng.random() >= 0.25:
        return base_document(rng, excluded)
    return _answered_in_json(rng, excluded, OPEN_CONVENTIONS)


def gold_document(rng: random.Random, excluded: set[str]) -> list[Segment]:
    """A report with one question, answered as stage 03 teaches it, by the gold program."""
    return _answered_in_json(rng, excluded, slips={})


def _answered_in_json(rng: random.Random, excluded: set[str], slips: dict[str, float]) -> list[Segment]:
    table, years = draw_fresh_table(rng, excluded)
    question = sample.draw_question(table, years, rng, slips)
    prompt = f"{sample.report_text(rng, table)}\nquestion: {question.text}"
    return [(prompt, False), (json_response(question), True)]


def encode(
    tokenizer: PreTrainedTokenizerBase, documents: list[list[Segment]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels, int64 [documents, longest], right-padded; labels are -100 where no loss is taken.

    Each document ends in the end-of-sequence token, which carries loss.
    """
    rows = []
    for segments in documents:
        ids, labels = [], []
        for text, taught in segments:
            piece = tokenizer(text, add_special_tokens=False)["input_ids"]
            ids += piece
            labels += piece if taught else [-100] * len(piece)
        rows.append((ids + [tokenizer.eos_token_id], labels + [tokenizer.eos_token_id]))
    longest = max(len(ids) for ids, _ in rows)
    inputs = torch.full((len(rows), longest), tokenizer.pad_token_id)
    targets = torch.full((len(rows), longest), -100)
    for row, (ids, labels) in enumerate(rows):
        inputs[row, : len(ids)] = torch.tensor(ids)
        targets[row, : len(ids)] = torch.tensor(labels)
    return inputs, targets


def pretrain(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    document: Callable[[random.Random, set[str]], list[Segment]],
    config: PretrainConfig,
) -> Iterator[dict[str, float]]:
    """Train ``model`` in place; yields step, loss (nats per taught token) and learning rate of each step."""
    rng = random.Random(config.seed)
    excluded = embedded_tables()
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=config.learning_rate,
        betas=(0.9, config.beta2),
        weight_decay=config.weight_decay,
    )
    model.train()
    for step in range(1, config.steps + 1):
        rate = config.learning_rate * _schedule(step, config)
        for group in optimizer.param_groups:
            group["lr"] = rate
        inputs, targets = encode(tokenizer, [document(rng, excluded) for _ in range(config.batch_size)])
        # Right padding and causal attention: no real token sees padding, so no mask is needed.
        hidden = model.model(input_ids=inputs).last_hidden_state[:, :-1]
        taught = targets[:, 1:] != -100
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[taught]), targets[:, 1:][taught])
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is not finite at step {step}; lower the learning rate")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        yield {"step": step, "loss": loss.item(), "learning_rate": rate}


def _schedule(step: int, config: PretrainConfig) -> float:
    """Linear warm-up, then a cosine to ``min_learning_rate_ratio``."""
    warm = min(1.0, step / config.warmup_steps)
    floor = config.min_learning_rate_ratio
    return warm * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * step / config.steps)))
