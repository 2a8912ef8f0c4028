"""Preference pairs from scored candidates: which completions of a prompt are set against each other.

A pair is made of two different completions of one prompt. What is chosen has a valid form, was not cut off,
and has a reward that is higher by ``min_margin`` at least; a rule has to speak for the pair:

    correct_over_wrong   verified right over wrong
    valid_over_invalid   valid form over invalid, where the chosen one is not less right
    higher_reward        more reward, whatever else

Under ``--reward intrinsic`` the last rule holds alone, because neither correctness nor form is rewarded:
pairs are then made without the gold. What is learnt from are the token ids that were sampled, with the token
that ended them; the text is for reading, and tokenised again it may give others.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cached_property, lru_cache
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from utils.data.prompts import completion_ids, token_ids
from utils.data.records import Record
from utils.frame.files import UserError, derive_seed
from utils.frame.stage import no_bar
from utils.grading.grade import grade
from utils.methods.dpo.settings import PreferencesAlgo
from utils.models.loading import device
from utils.models.prefix.shared_prefix import CompletionBatch
from utils.rewards.reward_pipeline import RewardPipeline
from utils.rewards.spec import RewardSpec, RewardWeights, paid_weights

RULE_OF_GOLD = "gold_over_wrong"  # correct_over_wrong, where the demonstration is what is chosen

# Why a prompt has no pair, in the order in which the reasons are looked for.
REASONS = (
    "fewer than two candidates",
    "all right",
    "none in valid form",
    "all wrong",
    "no rule applies",
    "below the margin",
    "near-duplicates",
)
_SAMPLE_MORE = "sample more in 04 (--num_candidates, --max_items)"


def remedies(reason: str, algo: PreferencesAlgo) -> list[str]:
    """What helps against one of `REASONS`, the likeliest first; never what is set already."""
    gold = [] if algo.gold_as_chosen else ["set algo.gold_as_chosen true"]
    rule = [] if "higher_reward" in algo.rules else ["add higher_reward to algo.rules"]
    alike = [
        f"raise algo.{name}"
        for name in ("max_similarity", "max_repeat_similarity")
        if getattr(algo, name) < 1
    ]
    return {
        "fewer than two candidates": ["sample more in 04 (--num_candidates)"],
        "all right": [_SAMPLE_MORE],
        "none in valid form": ["train 03 for longer", *gold],
        "all wrong": [*gold, _SAMPLE_MORE],
        "no rule applies": [*rule, _SAMPLE_MORE],
        "below the margin": ["lower algo.min_margin"] if algo.min_margin > 0 else [_SAMPLE_MORE],
        "near-duplicates": alike or [_SAMPLE_MORE],
    }[reason]


@dataclass(frozen=True)
class Answer:
    """A completion that can be in a pair: its text, the tokens to train on, its reward and verdicts.

    ids: as sampled, with the token that ended them. valid: it has the form that was asked for, and it ended;
    what was cut off is never chosen.
    """

    text: str
    ids: tuple[int, ...]
    reward: float
    correct: bool
    valid: bool
    gold: bool = False

    @property
    def tokens(self) -> int:
        """Length in tokens."""
        return len(self.ids)


@dataclass(frozen=True)
class PreferencePair:
    """Two answers to one prompt, and the rule that sets them against each other."""

    id: str
    prompt: str
    level: int | None
    rule: str
    chosen: Answer
    rejected: Answer

    @property
    def margin(self) -> float:
        """Difference of the rewards, which have six decimals."""
        return round(self.chosen.reward - self.rejected.reward, 6)

    def row(self) -> dict[str, Any]:
        """The pair as JSON data."""
        return {
            "id": self.id,
            "prompt": self.prompt,
            "chosen": self.chosen.text,
            "rejected": self.rejected.text,
            "chosen_ids": list(self.chosen.ids),
            "rejected_ids": list(self.rejected.ids),
            "chosen_reward": self.chosen.reward,
            "rejected_reward": self.rejected.reward,
            "margin": self.margin,
            "rule": self.rule,
            "level": self.level,
        }


@dataclass(frozen=True)
class PromptPairs:
    """What became of one prompt's candidates.

    sampled: how many there were. different: how many different texts. reason: why there is no pair, one of
    `REASONS`; "" where there is one.
    """

    level: int | None
    sampled: int
    different: int
    pairs: list[PreferencePair]
    reason: str


@dataclass(frozen=True)
class PreferenceSet:
    """All pairs, those to train on and those held out, and what became of each prompt."""

    train: list[PreferencePair]
    held_out: list[PreferencePair]
    prompts: list[PromptPairs]

    @cached_property
    def reasons(self) -> dict[str, int]:
        """Prompts without a pair by reason, in the order of `REASONS`."""
        counts = Counter(each.reason for each in self.prompts if each.reason)
        return {reason: counts[reason] for reason in REASONS if counts[reason]}


# ------------------------------------------------------------------------------------------- candidates


def candidate_answers(row: dict[str, Any], reward: str) -> list[Answer]:
    """The answers of different text among a prompt's candidates, in their order.

    Raises UserError for candidates without their tokens.
    """
    answers: dict[str, Answer] = {}
    for each in row["candidates"]:
        if "token_ids" not in each:
            raise UserError(
                f"candidates of {row['id']}: no token_ids; an older version made them, so redo 04"
            )
        paid = reward_under(each["reward"], reward)
        valid = each["parsed"] and not each["truncated"]
        answer = Answer(each["text"], tuple(each["token_ids"]), paid, each["correct"], valid)
        # A text that was cut off where another ended is another answer.
        answers.setdefault((each["text"], each["truncated"]), answer)
    return list(answers.values())


def reward_under(components: dict[str, float], reward: str) -> float:
    """The sum of the components that ``reward`` counts, of a candidate's ``reward``, weighted by 04."""
    parts = {name: value for name, value in components.items() if name != "total"}
    intrinsic = parts.pop("intrinsic", 0.0)
    task = sum(parts.values())
    return round({"task": task, "intrinsic": intrinsic, "combined": task + intrinsic}[reward], 6)


def gold_answers(
    records: Sequence[Record],
    prompts: Sequence[str],
    spec: RewardSpec,
    pipeline: RewardPipeline,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    progress: Callable[..., Iterable] = no_bar,
) -> list[Answer | None]:
    """The demonstration of each of the pipeline's records as an answer, ended as SFT ends it.

    None where it does not grade as right and valid itself, or is longer than ``max_tokens``: at inference it
    could not be written. ``progress``: as `StageContext.progress`.
    """
    ids = completion_ids(tokenizer, [record.target_text for record in records])
    prompt_ids = token_ids(tokenizer, prompts)
    answers: list[Answer | None] = [None] * len(records)
    usable = []
    for index, record in enumerate(progress(records, description="grading golds")):
        graded = grade(record, record.target_text, spec.required_fields, program_accuracy=False)
        if graded.correct and graded.format_valid and len(ids[index]) <= max_tokens:
            usable.append(index)
    if not usable:
        return answers
    batch = CompletionBatch.of(*([rows[index] for index in usable] for rows in (prompt_ids, ids)), device())
    targets = [records[index].target_text for index in usable]
    whole = torch.zeros(len(usable), dtype=torch.bool)
    rewards = pipeline.score_outcomes(usable, batch, targets, whole, update=False, progress=progress)
    for place, index in enumerate(usable):
        paid = round(sum(part[place].item() for part in rewards.components.values()), 6)
        answers[index] = Answer(records[index].target_text, tuple(ids[index]), paid, True, True, gold=True)
    return answers


# ----------------------------------------------------------------------------------------------- pairing


def rules_in_force(rules: Sequence[str], weights: RewardWeights) -> list[str]:
    """The rules whose part of the reward has a weight; ``higher_reward`` alone where no other's has."""
    paid = {
        "correct_over_wrong": weights.correctness > 0,
        "valid_over_invalid": weights.format > 0,
        "higher_reward": True,
    }
    return [rule for rule in rules if paid[rule]] or ["higher_reward"]


def rule_for(chosen: Answer, rejected: Answer, rules: Sequence[str]) -> str | None:
    """The first rule that sets ``chosen`` over ``rejected``, or None; the margin is not looked at."""
    if not chosen.valid or rejected.gold:
        return None
    applies = {
        "correct_over_wrong": chosen.correct and not rejected.correct,
        "valid_over_invalid": not rejected.valid and chosen.correct >= rejected.correct,
        "higher_reward": chosen.reward > rejected.reward,
    }
    return next((rule for rule in rules if applies[rule]), None)


def pair_prompt(
    answers: Sequence[Answer], algo: PreferencesAlgo, rules: Sequence[str], seed: int
) -> tuple[list[tuple[Answer, Answer, str]], str]:
    """Up to ``pairs_per_prompt`` pairs as (chosen, rejected, rule), or none and the reason.

    A gold answer is taken only where no other valid one is right. Pairs are taken by the order of ``rules``,
    then those of answers not used yet, then as ``selection`` says; ``seed`` decides between equals.
    """
    if any(each.correct and each.valid and not each.gold for each in answers):
        answers = [each for each in answers if not each.gold]
    ruled = [
        (chosen, rejected, rule)
        for chosen in answers
        for rejected in answers
        if chosen is not rejected and (rule := rule_for(chosen, rejected, rules))
    ]
    waiting = [pair for pair in ruled if round(pair[0].reward - pair[1].reward, 6) >= algo.min_margin]
    if not waiting:
        return [], "below the margin" if ruled else _why_no_rule(answers)
    random.Random(seed).shuffle(waiting)
    if algo.selection != "random":
        sign = -1 if algo.selection == "largest_margin" else 1
        waiting.sort(key=lambda pair: sign * (pair[0].reward - pair[1].reward))
    taken: list[tuple[Answer, Answer, str]] = []
    used: Counter[str] = Counter()
    while waiting and len(taken) < algo.pairs_per_prompt:
        best = min(waiting, key=lambda pair: (rules.index(pair[2]), used[pair[0].text] + used[pair[1].text]))
        waiting.remove(best)
        if not _near_duplicate(best, taken, algo):
            taken.append(best)
            used.update((best[0].text, best[1].text))
    return taken, "" if taken else "near-duplicates"


def _why_no_rule(answers: Sequence[Answer]) -> str:
    if all(each.correct for each in answers):
        return "all right"
    if not any(each.valid for each in answers):
        return "none in valid form"
    return "all wrong" if not any(each.correct for each in answers) else "no rule applies"


def _near_duplicate(pair: tuple, taken: Sequence[tuple], algo: PreferencesAlgo) -> bool:
    chosen, rejected, _ = pair
    if similarity(chosen.text, rejected.text) >= algo.max_similarity:
        return True
    return any(
        similarity(chosen.text, other[0].text) >= algo.max_repeat_similarity
        and similarity(rejected.text, other[1].text) >= algo.max_repeat_similarity
        for other in taken
    )


@lru_cache(maxsize=1 << 16)
def similarity(a: str, b: str) -> float:
    """Share of the words, numbers and symbols of two texts that they have in common in the same order: 0 to 1
    (Ratcliff and Obershelp; ``difflib``). 1 for texts that differ in blanks alone."""
    first, second = (re.findall(r"\w+|[^\w\s]", text) for text in (a, b))
    return SequenceMatcher(None, first, second, autojunk=False).ratio()


# -------------------------------------------------------------------------------------------- the whole


def build_preferences(
    rows: Sequence[dict[str, Any]],
    golds: Sequence[Answer | None],
    algo: PreferencesAlgo,
    spec: RewardSpec,
    reward: str,
    seed: int,
    progress: Callable[..., Iterable] = no_bar,
) -> PreferenceSet:
    """Pair the candidates of every row (as 04 writes them), and hold out a share of the prompts.

    ``golds`` has a row's demonstration, or None; ``progress``: as `StageContext.progress`. Raises UserError,
    with the counts that explain it, where there are fewer than ``min_pairs`` to train on, or too few prompts
    to hold any out.
    """
    rules = rules_in_force(algo.rules, paid_weights(spec, reward))
    prompts = []
    for row, gold in zip(progress(rows, description="pairing"), golds, strict=True):
        answers = candidate_answers(row, reward)
        found, reason = pair_prompt(
            [*answers, gold] if gold else answers, algo, rules, derive_seed(seed, "pairs", row["id"])
        )
        if reason and len(row["candidates"]) < 2:
            reason = "fewer than two candidates"
        pairs = []
        for number, (chosen, rejected, rule) in enumerate(found):
            rule = RULE_OF_GOLD if chosen.gold else rule
            pairs.append(
                PreferencePair(f"{row['id']}/{number}", row["prompt"], row["level"], rule, chosen, rejected)
            )
        prompts.append(PromptPairs(row["level"], len(row["candidates"]), len(answers), pairs, reason))
    pairs = [pair for each in prompts for pair in each.pairs]
    train, held_out = split_by_prompt(pairs, algo.val_fraction, seed)
    found = PreferenceSet(train, held_out, prompts)
    if len(train) < algo.min_pairs or (algo.val_fraction > 0 and not held_out):
        raise UserError(too_few(found, algo))
    return found


def split_by_prompt(
    pairs: Sequence[PreferencePair], fraction: float, seed: int
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Pairs to train on and pairs held out: ``fraction`` of the prompts (by their text) with all their pairs.

    Where there are two prompts or more, one at least is held out and one is not, unless ``fraction`` is 0.
    """
    texts = sorted({pair.prompt for pair in pairs})
    random.Random(derive_seed(seed, "preference_split")).shuffle(texts)
    count = round(fraction * len(texts))
    if fraction > 0 and len(texts) > 1:
        count = min(max(count, 1), len(texts) - 1)
    held_out = set(texts[:count])
    return (
        [pair for pair in pairs if pair.prompt not in held_out],
        [pair for pair in pairs if pair.prompt in held_out],
    )


def too_few(found: PreferenceSet, algo: PreferencesAlgo) -> str:
    """One line: how many pairs there are, why there are no more, and what to change."""
    with_pairs = sum(bool(each.pairs) for each in found.prompts)
    sampled = {each.sampled for each in found.prompts} or {0}
    each_has = " to ".join(dict.fromkeys((str(min(sampled)), str(max(sampled)))))
    reasons = ", ".join(f"{count} {reason}" for reason, count in found.reasons.items()) or "none"
    commonest = sorted(found.reasons, key=found.reasons.get, reverse=True)
    tries = [remedies(reason, algo)[0] for reason in commonest]
    tries += [remedy for reason in commonest for remedy in remedies(reason, algo)[1:]]
    tries = list(dict.fromkeys(tries))[:2] or [_SAMPLE_MORE]
    if len(found.train) >= algo.min_pairs:  # there are enough, but one prompt cannot be on both sides
        needed = "algo.val_fraction holds one prompt out, and only one has pairs"
        tries = [*tries, "or set algo.val_fraction 0"]
    else:
        needed = f"algo.min_pairs is {algo.min_pairs}"
        tries += ["or lower algo.min_pairs"] if len(found.train) > 0 else []
    return (
        f"too few preference pairs: {len(found.train)} to train on, {needed}; {with_pairs} of "
        f"{len(found.prompts)} prompts ({each_has} candidates each) have pairs, the others: {reasons}"
        f". Try: {'; '.join(tries)}"
    )
