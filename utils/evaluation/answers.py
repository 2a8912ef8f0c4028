"""A policy's answers: one greedy completion of every record and, where asked for, sampled ones.

What several prompts begin with, such as the report that they ask about, is encoded once for their greedy
answers. Every finished batch is appended to a journal. An evaluation that was stopped takes whole batches
from there when it is run again. Which prompts share a batch, and the random numbers of a batch, do not depend
on what had been done before, so the answers are the same as without the interruption.

Several processes share the batches. Each has a journal of its own (``journal_of``), since two that append to
one file over a network would write into each other; the first process reads all of them, whatever number of
processes wrote them, and takes them into its own in the end.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from utils.data.prompts import prompt_ids
from utils.data.records import Record
from utils.evaluation.journal import Found, Key, append, journal_of, replace_journals, taken_over
from utils.frame.files import UserError, derive_seed
from utils.frame.processes import from_main, gather_lists, is_main_process, process_index, share
from utils.grading.outside_predictions import Prediction
from utils.models.loading import load_policy
from utils.models.prefix.common_prefix import batches_by_prefix
from utils.models.prefix.shared_prefix import position_limit
from utils.models.sampling import Completion, batches_by_length, complete, drawn_as
from utils.models.sampling_memory import Room
from utils.models.settings import GenerationSection, ModelConfig
from utils.models.vllm.sampler import vllm_completer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PolicyAnswers:
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
    warn: Callable[[str], None] = logger.warning,
) -> PolicyAnswers:
    """The answers of a policy to every record, at least one; speed goes into ``runtime``.

    Every process calls this alike and gets all the answers.

    Args:
        num_samples: completions drawn for each record, as ``generation`` says, besides the greedy one, which
            does not depend on them.
        journal: the file that finished batches are appended to, and taken from if it is there; see
            ``journal_of`` for several processes.
        warn: told of a journal that is damaged.

    Raises UserError where no prompt leaves room for an answer, or logits are not finite.
    """
    model, tokenizer = load_policy(checkpoint, config.model)
    prompts = prompt_ids(tokenizer, records)
    new_tokens, batch_size = config.generation.max_new_tokens, config.generation.largest_batch
    room, limit = Room(config.generation), position_limit(model)
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
    found = from_main(_resumed(journal, plan, ids, warn) if is_main_process() else {})
    left = [batch for batch in plan if not all(key in found for key in batch.keys(ids))]
    by_vllm = vllm_completer(model, tokenizer, config, [prompts[number] for number in asked])
    completer = by_vllm or functools.partial(complete, model, tokenizer, room=room)

    def answer(batch: Batch) -> Found:
        try:
            drawing = batch.drawing(config.generation, seed)
            answers = completer([prompts[number] for number in batch.members], **drawing)
        except FloatingPointError as error:
            raise UserError(
                f"{checkpoint}: {error}, in the batch of items "
                f"{named([ids[number] for number in batch.members])}; check the weights, "
                "or set model.torch_dtype: float32"
            ) from None
        return dict(zip(batch.keys(ids), answers, strict=True))

    start = time.perf_counter()
    new = _answer_shares(journal, left, answer, progress)
    seconds = time.perf_counter() - start
    found |= new
    tokens = sum(len(each.token_ids) for of_prompt in new.values() for each in of_prompt)
    runtime |= {
        "generation_seconds": round(seconds, 3),
        "generated_tokens": tokens,
        "tokens_per_second": round(tokens / seconds, 1),
        "batches_resumed": len(plan) - len(left),
    }
    return PolicyAnswers(
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
            return {"max_new_tokens": config.max_new_tokens, "common_prefixes": True}
        generator = torch.Generator().manual_seed(derive_seed(seed, "evaluation samples", self.number))
        return {"num_samples": self.samples, "generator": generator, **drawn_as(config)}


def _answer_shares(
    journal: Path, batches: Sequence[Batch], answer: Callable[[Batch], Found], progress: Callable[[list], Any]
) -> Found:
    """The answers to all batches, of which every process gives its share."""
    own: Found = {}
    whole: Found = {}
    for batch in progress(share(batches)):
        found = answer(batch)
        append(journal_of(journal, process_index()), found)
        own |= found
    for process, theirs in enumerate(map(dict, gather_lists(list(own.items())))):
        if is_main_process() and process > 0 and theirs:
            append(journal, theirs)
            journal_of(journal, process).unlink()
        whole |= theirs
    return whole


def _resumed(journal: Path, plan: Sequence[Batch], ids: Sequence[str], warn: Callable[[str], None]) -> Found:
    """The answers to whole batches that earlier processes left; they are all that ``journal`` then holds."""
    done = taken_over(journal, warn)
    kept = [batch for batch in plan if all(batch.complete(done.get(key)) for key in batch.keys(ids))]
    found = {key: done[key] for batch in kept for key in batch.keys(ids)}
    replace_journals(journal, found)
    return found


def named(ids: Sequence[str]) -> str:
    """The first of many ids, for a message."""
    return ", ".join(ids[:5]) + (", …" if len(ids) > 5 else "")
