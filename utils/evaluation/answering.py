"""A policy's answers: one greedy completion of every record and, where asked for, sampled ones.

What several prompts begin with, such as the report that they ask about, is encoded once for their greedy
answers. Every finished batch is appended to a journal, ``samples/predictions.jsonl``. An evaluation that was
stopped takes whole batches from there when it is run again. Which prompts share a batch, and the random
numbers of a batch, do not depend on what had been done before, so the answers are the same as without the
interruption.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from utils.common import UserError, derive_seed, write_jsonl
from utils.config import GenerationSection, ModelConfig
from utils.data.prompts import render_prompt
from utils.data.records import Record
from utils.evaluation.predictions import Prediction
from utils.models.common_prefix import batches_by_prefix
from utils.models.loading import load_policy
from utils.models.sampling import Completion, batches_by_length, complete
from utils.models.shared_prefix import position_limit

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Key = tuple[str, bool]  # a record's id, and whether its samples are meant rather than its greedy answer
Found = dict[Key, list[Completion]]


@dataclass(frozen=True)
class Answers:
    """A policy with its answers: per record, the prompt's token ids, the greedy completion and samples.

    A completion is None, and there are no samples, where prompt and ``max_new_tokens`` exceed the model's
    positions. ``samples`` is None where none were asked for.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    records: Sequence[Record]
    prompts: list[list[int]]
    completions: list[Completion | None]
    samples: list[list[Completion]] | None = None

    @property
    def unanswered(self) -> list[str]:
        """Ids of the records that the policy could not be asked."""
        pairs = zip(self.records, self.completions, strict=True)
        return [record.id for record, completion in pairs if completion is None]

    def predictions(self) -> dict[str, Prediction]:
        """What is graded, by record id; a record that could not be asked has no entry and counts as wrong."""
        return {
            record.id: Prediction(
                response=completion.text,
                token_count=len(completion.token_ids),
                truncated=completion.truncated,
            )
            for record, completion in zip(self.records, self.completions, strict=True)
            if completion is not None
        }


def answer_records(
    records: Sequence[Record],
    checkpoint: Path | str,
    config: ModelConfig,
    num_samples: int,
    seed: int,
    journal: Path,
    runtime: dict[str, Any],
    progress: Callable[[list], Any] = iter,
) -> Answers:
    """The answers of a policy to every record, at least one; speed goes into ``runtime``.

    Args:
        num_samples: completions drawn for each record, as ``generation`` says, besides the greedy one, which
            does not depend on them.
        journal: the file that finished batches are appended to, and taken from if it is there.

    Raises UserError where no prompt leaves room for an answer, or logits are not finite.
    """
    model, tokenizer = load_policy(checkpoint, config.model)
    texts = [render_prompt(tokenizer, record.input_text) for record in records]
    prompts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    new_tokens, batch_size = config.generation.max_new_tokens, config.generation.batch_size
    limit = position_limit(model)
    asked = [number for number, prompt in enumerate(prompts) if len(prompt) + new_tokens <= limit]
    if not asked:
        raise UserError(
            f"all {len(prompts)} prompts with max_new_tokens {new_tokens} exceed the "
            f"model's {limit} positions; lower generation.max_new_tokens"
        )

    def batches(samples: int) -> list[Batch]:
        rendered = [prompts[number] for number in asked]
        # Decoding outweighs the prompts where each is sampled from often: samples keep the plainer way.
        if samples:
            found = batches_by_length(rendered, batch_size, samples)
        else:
            found = batches_by_prefix(rendered, batch_size)
        return [
            Batch(samples, number, tuple(asked[place] for place in places))
            for number, places in enumerate(found)
        ]

    plan = batches(0) + (batches(num_samples) if num_samples else [])
    ids = [record.id for record in records]
    done = read_journal(journal)
    kept = [batch for batch in plan if all(batch.complete(done.get(key)) for key in batch.keys(ids))]
    left = [batch for batch in plan if batch not in kept]
    found = {key: done[key] for batch in kept for key in batch.keys(ids)}
    start, tokens = time.perf_counter(), 0
    with _appending(journal, found) as append:
        for batch in progress(left):
            try:
                answers = complete(
                    model,
                    tokenizer,
                    [prompts[number] for number in batch.members],
                    max_new_tokens=new_tokens,
                    **batch.drawing(config.generation, seed),
                )
            except FloatingPointError as error:
                raise UserError(
                    f"{checkpoint}: {error}, in the batch of items "
                    f"{named([ids[number] for number in batch.members])}; check the weights, "
                    "or set model.torch_dtype: float32"
                ) from None
            new = dict(zip(batch.keys(ids), answers, strict=True))
            append(new)
            found |= new
            tokens += sum(len(each.token_ids) for of_prompt in answers for each in of_prompt)
    seconds = time.perf_counter() - start
    runtime |= {
        "generation_seconds": round(seconds, 3),
        "generated_tokens": tokens,
        "tokens_per_second": round(tokens / seconds, 1),
        "batches_resumed": len(kept),
    }
    return Answers(
        model,
        tokenizer,
        records,
        prompts,
        [found[id, False][0] if (id, False) in found else None for id in ids],
        [found.get((id, True), []) for id in ids] if num_samples else None,
    )


@dataclass(frozen=True)
class Batch:
    """Records that are answered together.

    samples  completions drawn for each; 0 for the greedy one
    number   of the batch among those of its kind, which its random numbers come from
    members  indices of the records
    """

    samples: int
    number: int
    members: tuple[int, ...]

    def keys(self, ids: Sequence[str]) -> list[Key]:
        """Where the answers to its records are kept."""
        return [(ids[number], self.samples > 0) for number in self.members]

    def complete(self, completions: Sequence[Completion] | None) -> bool:
        """Whether these are all the completions of one record."""
        return completions is not None and len(completions) == max(1, self.samples)

    def drawing(self, config: GenerationSection, seed: int) -> dict[str, Any]:
        """How its completions are drawn, as arguments of ``complete``."""
        if not self.samples:
            return {"common_prefixes": True}
        generator = torch.Generator().manual_seed(derive_seed(seed, "evaluation samples", self.number))
        return {
            "num_samples": self.samples,
            "temperature": config.temperature,
            "top_p": config.top_p,
            "top_k": config.top_k,
            "generator": generator,
        }


def read_journal(path: Path) -> Found:
    """What a journal, or a finished samples/predictions.jsonl, holds.

    It ends with a line that a killed process has left half-written.
    """
    found: Found = {}
    if not path.is_file():
        return found
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            row = json.loads(line)
        except ValueError:
            break
        if row.get("token_ids") is not None:
            found[row["id"], False] = [_completion(row)]
        if row.get("samples"):
            found[row["id"], True] = [_completion(sample) for sample in row["samples"]]
    return found


def _completion(row: dict[str, Any]) -> Completion:
    return Completion(row["response"], row["token_ids"], row["truncated"])


def _journal_rows(found: Found) -> Iterator[dict[str, Any]]:
    for (id, sampled), completions in found.items():
        rows = [
            {"response": each.text, "token_ids": each.token_ids, "truncated": each.truncated}
            for each in completions
        ]
        yield {"id": id, **({"samples": rows} if sampled else rows[0])}


@contextlib.contextmanager
def _appending(path: Path, found: Found) -> Iterator[Callable[[Found], None]]:
    """Write a journal anew, then yield a function that adds to it and takes that to the disk."""
    write_jsonl(path, _journal_rows(found))
    with open(path, "a", encoding="utf-8", newline="") as file:

        def append(more: Found) -> None:
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in _journal_rows(more))
            file.write("".join(lines))
            file.flush()
            os.fsync(file.fileno())

        yield append


def named(ids: Sequence[str]) -> str:
    """The first of many ids, for a message."""
    return ", ".join(ids[:5]) + (", …" if len(ids) > 5 else "")
