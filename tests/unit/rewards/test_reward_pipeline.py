"""Rewards of a rollout, added up by hand: where they are paid, with which weights, and who is asked."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trl.rewards import get_soft_overlong_punishment

from utils.data.records import Record
from utils.frame.files import UserError
from utils.models.loading import load_policy
from utils.models.prefix.shared_prefix import CompletionBatch
from utils.models.settings import ModelSection
from utils.models.teacher import Teacher
from utils.rewards.overlong import Overlong
from utils.rewards.reward_pipeline import ALL_COMPONENTS, RewardPipeline
from utils.rewards.spec import AdaptiveSection, IntrinsicSection, RewardSpec, RewardWeights
from utils.rewards.task_reward import COMPONENTS, graded_row, task_reward

RECORDS = [
    Record(
        id=f"train-{number}",
        dataset="sample",
        question="the change ?",
        input_text=f"cash 2001 {10 + number} 2002 30\nthe change ?",
        target_text="{}",
        target_answer=str(20 - number),
        target_program=f"subtract(30, {10 + number})",
        table=[["", "2001", "2002"], ["cash", str(10 + number), "30"]],
    )
    for number in range(3)
]


def program(text: str) -> str:
    return json.dumps({"program": text})


RIGHT, SWAPPED, INVENTED = program("subtract(30, 10)"), program("subtract(10, 30)"), program("add(7, 10)")


class StubTeacher:
    """Scores given in advance; counts how often it is asked."""

    def __init__(self, q, v):
        self.q, self.v, self.asked, self.cache = torch.tensor(q), torch.tensor(v), 0, None

    def score(self, batch, progress=None):
        self.asked += 1
        mask = batch.completion_mask
        return SimpleNamespace(q=self.q * mask, v=self.v * mask)


def batch_of(lengths, columns=None) -> CompletionBatch:
    columns = columns or max(lengths)
    mask = (torch.arange(columns)[None] < torch.tensor(lengths)[:, None]).long()
    prompt = torch.ones(len(lengths), 2, dtype=torch.long)
    return CompletionBatch(prompt, prompt, torch.full_like(mask, 5), mask)


def spec_of(
    intrinsic=0.5, correctness=2.0, reasoning=0.25, format=1.0, adaptive=None, **section
) -> RewardSpec:
    return RewardSpec(
        weights=RewardWeights(intrinsic, correctness, reasoning, format),
        intrinsic=IntrinsicSection(**section),
        adaptive=adaptive or AdaptiveSection(),
        required_fields=["program"],
    )


# Four completions of 3, 2, 4 and 1 tokens: right; operands swapped, cut off; a made-up operand; no JSON.
TEXTS = [RIGHT, SWAPPED, INVENTED, "no"]
LENGTHS = [3, 2, 4, 1]
CUT = torch.tensor([False, True, False, False])
Q = [[3.0, 1.0, 2.0, 0.0], [1.0, 4.0, 0.0, 0.0], [0.5, 0.5, 1.0, 2.0], [6.0, 0.0, 0.0, 0.0]]
V = [[4.0, 3.0, 2.5, 0.0], [4.0, 5.0, 0.0, 0.0], [4.0, 1.0, 1.0, 3.0], [6.5, 0.0, 0.0, 0.0]]
LOG_PROBS = torch.tensor(Q) - torch.tensor(V)  # sums -3.5, -4, -5, -0.5
# Correctness 2 * exact match; the swapped program shares no step; the third neither. Form: -0.2 for the last.
WHOLE = {"exact_match": [2, 0, 0, 0], "format_penalty": [0, 0, 0, -0.2], "reasoning": [0.25, 0.25, 0.125, 0]}


def score(spec, reward="combined", outcomes=False, lengths=LENGTHS, q=Q, v=V, gamma=1.0, **kwargs):
    pipeline = RewardPipeline(RECORDS, spec, reward, StubTeacher(q, v), gamma=gamma)
    ask = pipeline.score_outcomes if outcomes else pipeline.score_tokens
    return ask([0] * len(lengths), batch_of(lengths, 4), TEXTS, CUT, **kwargs)


def close(tensor, expected):
    torch.testing.assert_close(tensor, torch.tensor(expected, dtype=torch.float32), rtol=1e-6, atol=1e-6)


def test_tokens_get_the_teacher_s_reward_and_the_last_one_the_rest():
    paid = score(spec_of(missing_eos_penalty=0.75))
    expected = 0.5 * LOG_PROBS
    expected[0, 2] += 2 + 0.25
    expected[1, 1] += 0.25 - 0.5 * 0.75
    expected[2, 3] += 0.125
    expected[3, 0] += -0.2
    close(paid.token_rewards, expected.tolist())
    assert set(paid.components) == set(ALL_COMPONENTS) == {*COMPONENTS, "reasoning", "intrinsic"}
    for name in ALL_COMPONENTS:
        if name != "intrinsic":
            close(paid.components[name], WHOLE.get(name, [0, 0, 0, 0]))
    close(paid.components["intrinsic"], [-1.75, -2.0 - 0.375, -2.5, -0.25])
    close(paid.total, paid.token_rewards.sum(1).tolist())
    close(paid.raw["intrinsic"], [-3.5, -4.0, -5.0, -0.5])
    close(paid.raw["reasoning"], [1, 1, 0.5, 0])
    assert paid.correct.tolist() == [True, False, False, False]
    assert paid.parsed.tolist() == [True, True, True, False]
    assert paid.weights == {"intrinsic": 0.5, "correctness": 2.0, "reasoning": 0.25, "format": 1.0}


def test_outcomes_are_paid_on_the_last_token():
    paid = score(spec_of(missing_eos_penalty=0.75), outcomes=True)
    last = torch.tensor([2, 1, 3, 0])
    totals = [-1.75 + 2.25, -2.375 + 0.25, -2.5 + 0.125, -0.25 - 0.2]
    close(paid.token_rewards.gather(1, last[:, None])[:, 0], totals)
    assert (paid.token_rewards != 0).sum() == 4
    close(paid.total, totals)
    close(paid.raw["intrinsic"], [-3.5, -4.0, -5.0, -0.5])


@pytest.mark.parametrize("outcomes", [False, True])
def test_what_is_paid_under_each_reward(outcomes):
    spec = spec_of()
    task, teacher, both = (score(spec, name, outcomes) for name in ("task", "intrinsic", "combined"))
    assert all((task.components["intrinsic"] == 0).tolist()) and "intrinsic" not in task.raw
    for name in ALL_COMPONENTS:
        expected = task if name != "intrinsic" else teacher
        close(both.components[name], expected.components[name].tolist())
        if name != "intrinsic":
            assert (teacher.components[name] == 0).all()
    close(both.token_rewards, (task.token_rewards + teacher.token_rewards).tolist())
    for paid in (task, teacher, both):  # graded all the same, for the log
        assert paid.correct.tolist() == [True, False, False, False]
        close(paid.raw["reasoning"], [1, 1, 0.5, 0])
    assert teacher.weights == {"intrinsic": 0.5, "correctness": 0.0, "reasoning": 0.0, "format": 0.0}


def test_the_task_part_is_the_task_reward():
    spec = spec_of(intrinsic=0.0, reasoning=0.0)
    paid = RewardPipeline(RECORDS, spec, "task", None).score_tokens([0] * 4, batch_of(LENGTHS), TEXTS, CUT)
    rows = [task_reward(RECORDS[0], text, spec) for text in TEXTS]
    for name in COMPONENTS:
        close(paid.components[name], [row[name] for row in rows])
    close(paid.total, [row["total"] for row in rows])


def test_overlong_completions_lose_what_dapo_takes_off():
    """By equation 13 of arXiv 2503.14476, and by TRL's function; on the last token, and part of the total."""
    found = Overlong.of(0.2, 24)
    assert found == Overlong(longest=24, buffer=5) and Overlong.of(0.0, 24) is None
    lengths = list(range(1, 26))
    by_the_paper = [0 if n <= 19 else (19 - n) / 5 if n <= 24 else -1 for n in lengths]
    by_trl = get_soft_overlong_punishment(24, 5)([[0] * n for n in lengths])
    close(found.penalty(torch.tensor(lengths)), by_the_paper)
    close(found.penalty(torch.tensor(lengths)), by_trl)

    pipeline = RewardPipeline(RECORDS, spec_of(), "task", None)
    plain = pipeline.score_tokens([0] * 4, batch_of(LENGTHS), TEXTS, CUT)
    pipeline.overlong = Overlong(longest=4, buffer=2)
    paid = pipeline.score_outcomes([0] * 4, batch_of(LENGTHS), TEXTS, CUT)
    close(paid.components["overlong"], [-0.5, 0.0, -1.0, 0.0])
    close(paid.total - plain.total, [-0.5, 0.0, -1.0, 0.0])
    close(paid.token_rewards.sum(1) - plain.token_rewards.sum(1), [-0.5, 0.0, -1.0, 0.0])
    assert pipeline.names[-1] == "overlong" and "overlong" not in plain.components


def test_each_completion_is_graded_against_its_own_record():
    pipeline = RewardPipeline(RECORDS, spec_of(), "task", None)
    texts = [program(f"subtract(30, {10 + number})") for number in (0, 1, 2)]
    paid = pipeline.score_tokens([2, 1, 0], batch_of([1, 1, 1]), texts, torch.zeros(3).bool())
    assert paid.correct.tolist() == [False, True, False]


def test_the_bellman_forms_take_the_trainer_s_gamma():
    q, v = torch.tensor(Q), torch.tensor(V)
    for gamma in (1.0, 0.5):
        paid = score(spec_of(1.0, form="bellman"), "intrinsic", gamma=gamma).token_rewards
        close(paid[2, :3], (q[2, :3] - gamma * v[2, 1:]).tolist())
        close(paid[:, 0][3:], [6.0])  # the last token: its raw Q
    centred = score(spec_of(1.0, form="bellman_centered"), "intrinsic")
    close(centred.total, LOG_PROBS.sum(1).tolist())
    close(score(spec_of(1.0, form="bellman"), "intrinsic").total, (LOG_PROBS.sum(1) + v[:, 0]).tolist())


# ---------------------------------------------------------------------------------- normalising and weights


@pytest.mark.parametrize("outcomes", [False, True])
def test_intrinsic_rewards_are_normalised_over_the_rollout(outcomes):
    """Tokens over the 10 tokens, outcomes over the 4 completions; task parts and the penalty stay."""
    spec = spec_of(1.0, normaliser="mean_std", center=True, missing_eos_penalty=3.0)
    paid = score(spec, outcomes=outcomes)
    kept = batch_of(LENGTHS, 4).completion_mask.bool()
    entries = LOG_PROBS.sum(1) if outcomes else LOG_PROBS[kept]
    scaled = (entries - entries.mean()) / entries.std(correction=0)
    sums = scaled if outcomes else torch.zeros_like(LOG_PROBS).masked_scatter(kept, scaled).sum(1)
    close(paid.components["intrinsic"], (sums - 3.0 * CUT).tolist())
    close(paid.components["exact_match"], [2, 0, 0, 0])
    close(paid.raw["intrinsic"], [-3.5, -4.0, -5.0, -0.5])


def test_all_equal_rewards_are_normalised_to_nothing():
    equal = [[1.0] * 4] * 4
    for outcomes, name in ((False, "z_score"), (True, "robust"), (False, "min_max")):
        lengths = [2, 2, 2, 2]
        spec = spec_of(normaliser=name, clip=1.0)
        paid = score(spec, "intrinsic", outcomes, lengths, q=equal, v=[[3.0] * 4] * 4)
        assert (paid.token_rewards == 0).all() and (paid.total == 0).all()


def test_weights_in_force_are_those_that_earlier_rollouts_left():
    spec = spec_of(adaptive=AdaptiveSection(enabled=True, rate=1.0, minimum_factor=0.1))
    pipeline = RewardPipeline(RECORDS, spec, "combined", StubTeacher(Q, V))
    arguments = ([0] * 4, batch_of(LENGTHS, 4), TEXTS, CUT)
    first = pipeline.score_tokens(*arguments)
    # The right answer's log-probability is second of four: above two of three, evidence 2 * 2/3 - 1 = 1/3.
    # Its reasoning score is tied with one wrong answer's and above two: evidence 2 * 2.5/3 - 1 = 2/3.
    second = pipeline.score_tokens(*arguments)
    assert first.weights["intrinsic"] == 0.5
    assert second.weights == pytest.approx(
        {
            "intrinsic": 0.5 * (0.1 + 0.9 / 3),
            "correctness": 2.0,
            "reasoning": 0.25 * (0.1 + 0.9 * 2 / 3),
            "format": 1.0,
        }
    )
    close(second.components["intrinsic"], (second.weights["intrinsic"] * LOG_PROBS.sum(1)).tolist())
    close(second.components["exact_match"], [2, 0, 0, 0])
    close(second.total, second.token_rewards.sum(1).tolist())


@pytest.mark.parametrize("outcomes", [False, True])
def test_reading_without_updating_leaves_no_trace(outcomes):
    spec = spec_of(normaliser="z_score", scope="running", adaptive=AdaptiveSection(enabled=True))
    pipeline = RewardPipeline(RECORDS, spec, "combined", StubTeacher(Q, V))
    ask = pipeline.score_outcomes if outcomes else pipeline.score_tokens
    arguments = ([0] * 4, batch_of(LENGTHS, 4), TEXTS, CUT)
    before = pipeline.state_dict()
    ask(*arguments, update=False)
    assert pipeline.state_dict() == before
    ask(*arguments)
    assert pipeline.state_dict() != before


def test_a_saved_state_pays_the_same_from_there_on():
    spec = spec_of(
        normaliser="robust", scope="running", adaptive=AdaptiveSection(enabled=True), missing_eos_penalty=0.1
    )
    pipelines = [RewardPipeline(RECORDS, spec, "combined", StubTeacher(Q, V)) for _ in range(2)]
    arguments = ([0] * 4, batch_of(LENGTHS, 4), TEXTS, CUT)
    for _ in range(3):
        pipelines[0].score_tokens(*arguments)
    pipelines[1].load_state_dict(json.loads(json.dumps(pipelines[0].state_dict())))
    first, second = (pipeline.score_tokens(*arguments) for pipeline in pipelines)
    assert torch.equal(first.token_rewards, second.token_rewards) and first.weights == second.weights
    assert pipelines[0].state_dict() == pipelines[1].state_dict()


# ------------------------------------------------------------------------------------------ the teacher


def test_the_teacher_is_asked_once_a_batch_and_only_where_it_is_paid_for():
    teacher = StubTeacher(Q, V)
    arguments = ([0] * 4, batch_of(LENGTHS, 4), TEXTS, CUT)
    pipeline = RewardPipeline(RECORDS, spec_of(), "combined", teacher)
    pipeline.score_tokens(*arguments)
    pipeline.score_outcomes(*arguments)
    assert teacher.asked == 2
    for spec, reward in ((spec_of(), "task"), (spec_of(intrinsic=0.0), "combined")):
        assert not RewardPipeline.needs_teacher(spec, reward)
        paid = RewardPipeline(RECORDS, spec, reward, teacher).score_tokens(*arguments)
        assert "intrinsic" not in paid.raw and (paid.components["intrinsic"] == 0).all()
        RewardPipeline(RECORDS, spec, reward, None).score_outcomes(*arguments)
    assert teacher.asked == 2
    for reward in ("intrinsic", "combined"):
        assert RewardPipeline.needs_teacher(spec_of(), reward)
        with pytest.raises(UserError, match=rf"--reward {reward} needs a teacher.*teacher_name_or_path"):
            RewardPipeline(RECORDS, spec_of(), reward, None)


def test_a_reward_without_weight_is_refused():
    with pytest.raises(UserError, match=r"--reward intrinsic: .*combined.yaml, or use --reward task"):
        RewardPipeline(RECORDS, spec_of(intrinsic=0.0), "intrinsic", None)
    alone = spec_of(1.0, 0.0, 0.0, 0.0)
    with pytest.raises(UserError, match=r"--reward task: .*combined.yaml, or use --reward intrinsic"):
        RewardPipeline(RECORDS, alone, "task", None)
    assert RewardPipeline.needs_teacher(alone, "combined")
    with pytest.raises(UserError, match="one of combined, task, intrinsic, found 'tsak'"):
        RewardPipeline.needs_teacher(alone, "tsak")


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("outcomes", [False, True])
def test_a_reward_that_is_not_finite_stops_in_one_line(value, outcomes):
    q = [row[:] for row in Q]
    q[2][1] = value
    with pytest.raises(UserError, match="not finite, in completions 2 of the rollout") as caught:
        score(spec_of(), "intrinsic", outcomes, q=q)
    assert "\n" not in str(caught.value)


def test_processes_with_parts_of_a_rollout_share_their_state(monkeypatch):
    """Not where each has the whole; tests/stages/test_processes_training.py sees to what they share."""
    teacher = StubTeacher(Q, V)
    assert not RewardPipeline(RECORDS, spec_of(), "combined", teacher).combiner.in_parts
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert RewardPipeline(RECORDS, spec_of(), "combined", teacher).combiner.in_parts
    assert not RewardPipeline(RECORDS, spec_of(), "combined", teacher, replicated=True).combiner.in_parts


def test_an_unusable_gold_is_an_error_naming_the_record():
    broken = replace(RECORDS[0], target_answer="many")
    with pytest.raises(UserError, match="train-0"):
        RewardPipeline([broken], spec_of(), "task", None).score_tokens([0], batch_of([1]), [RIGHT], CUT[:1])


# -------------------------------------------------------------------------------------------- odd batches


@pytest.mark.parametrize("outcomes", [False, True])
@pytest.mark.parametrize("columns", [0, 4])
def test_an_empty_completion_is_paid_in_its_components_alone(outcomes, columns):
    spec = spec_of(normaliser="mean_std", missing_eos_penalty=1.0)
    lengths = [3, 0, 2, 0] if columns else [0] * 4
    q, v = (Q, V) if columns else ([[]] * 4, [[]] * 4)
    pipeline = RewardPipeline(RECORDS, spec, "combined", StubTeacher(q, v))
    ask = pipeline.score_outcomes if outcomes else pipeline.score_tokens
    batch = batch_of(lengths, columns)
    paid = ask([0] * 4, batch, [RIGHT, "", SWAPPED, ""], torch.tensor([False, True, True, False]))
    assert paid.token_rewards.shape == (4, columns)
    assert (paid.token_rewards[1] == 0).all() and (paid.token_rewards[3] == 0).all()
    close(paid.components["format_penalty"], [0, -0.2, 0, -0.2])
    assert paid.components["intrinsic"][1] == paid.components["intrinsic"][3] == 0
    close(paid.total[[1, 3]], [-0.2, -0.2])
    if columns:
        close(paid.total[[0, 2]], paid.token_rewards.sum(1)[[0, 2]].tolist())
        # Empty ones stay out of the statistics: the two outcomes alone, or the five tokens.
        entries = torch.tensor([LOG_PROBS[0, :3].sum(), LOG_PROBS[2, :2].sum()])
        if not outcomes:
            entries = torch.cat([LOG_PROBS[0, :3], LOG_PROBS[2, :2]])
        first = LOG_PROBS[0, :3].sum() / entries.std(correction=0)
        close(paid.components["intrinsic"][0], (0.5 * first).item())


def test_a_single_token_is_first_and_last():
    spec = spec_of(1.0, form="bellman", missing_eos_penalty=0.5)
    pipeline = RewardPipeline(RECORDS, spec, "combined", StubTeacher([[4.0]], [[5.0]]))
    paid = pipeline.score_tokens([0], batch_of([1]), [RIGHT], torch.tensor([True]))
    close(paid.token_rewards, [[4.0 - 0.5 + 2.25]])
    close(paid.raw["intrinsic"], [-1.0])


@given(st.data())
def test_the_total_is_what_the_tokens_get(data):
    """Logits of the usual sizes, any lengths, forms, normalisers, weights."""
    size = data.draw(st.integers(1, 5))
    lengths = data.draw(st.lists(st.integers(1, 12), min_size=size, max_size=size))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    v = torch.rand(size, 12, generator=generator) * 20
    q = v - torch.rand(size, 12, generator=generator) * 8
    weight = st.sampled_from([0.0, 0.05, 1.0])
    spec = spec_of(
        data.draw(st.sampled_from([0.05, 1.0])),
        *(data.draw(weight) for _ in range(3)),
        form=data.draw(st.sampled_from(["bellman", "logprob", "bellman_centered"])),
        normaliser=data.draw(st.sampled_from(["none", "mean_std", "z_score", "min_max", "robust"])),
        center=data.draw(st.booleans()),
        clip=data.draw(st.sampled_from([None, 3.0])),
        missing_eos_penalty=data.draw(st.sampled_from([0.0, 0.5])),
    )
    pipeline = RewardPipeline(RECORDS, spec, "combined", StubTeacher(q.tolist(), v.tolist()))
    ask = data.draw(st.sampled_from([pipeline.score_tokens, pipeline.score_outcomes]))
    batch = batch_of(lengths, 12)
    texts = data.draw(st.lists(st.sampled_from(TEXTS), min_size=size, max_size=size))
    paid = ask([0] * size, batch, texts, torch.rand(size, generator=generator) < 0.5)
    assert (paid.token_rewards[batch.completion_mask == 0] == 0).all()
    gap = (paid.total.double() - paid.token_rewards.double().sum(1)).abs()
    assert (gap <= 1e-6 * paid.total.abs().clamp(min=1)).all()


# ------------------------------------------------------------------------------------------- a real teacher


def test_telescoping_with_a_real_teacher(tiny_models):
    """Outcomes and token sums against the model's own log-probabilities, sequence by sequence."""
    model, tokenizer = load_policy(tiny_models("llama"), ModelSection())
    prompts = [tokenizer(record.input_text)["input_ids"] for record in RECORDS[:2]]
    completions = [tokenizer(text)["input_ids"] for text in (RIGHT, "no", INVENTED, "")]
    owners = [0, 0, 1, 1]
    width, columns = max(map(len, prompts)), max(map(len, completions))

    def padded(rows, size, left):
        ids = torch.zeros(len(rows), size, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for place, row in enumerate(rows):
            where = slice(size - len(row), size) if left else slice(0, len(row))
            ids[place, where], mask[place, where] = torch.tensor(row, dtype=torch.long), 1
        return ids, mask

    batch = CompletionBatch(
        *padded([prompts[owner] for owner in owners], width, True), *padded(completions, columns, False)
    )
    log_probs, first_values = [], []
    for owner, completion in zip(owners, completions, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompts[owner] + completion])).logits[0].double()
        start = len(prompts[owner]) - 1
        picked = logits.log_softmax(-1)[start : start + len(completion)]
        log_probs.append(sum(picked[place, token].item() for place, token in enumerate(completion)))
        first_values.append(logits[start].logsumexp(-1).item() if completion else 0.0)

    teacher = Teacher(model, len(tokenizer))
    for form in ("bellman", "logprob", "bellman_centered"):
        spec = spec_of(1.0, form=form)
        pipeline = RewardPipeline(RECORDS, spec, "intrinsic", teacher)
        tokens = pipeline.score_tokens(owners, batch, ["x"] * 4, torch.zeros(4).bool())
        outcomes = pipeline.score_outcomes(owners, batch, ["x"] * 4, torch.zeros(4).bool())
        expected = torch.tensor(log_probs)
        torch.testing.assert_close(outcomes.total, expected, rtol=1e-5, atol=1e-4)
        if form == "bellman":
            expected = expected + torch.tensor(first_values)
        torch.testing.assert_close(tokens.total, expected, rtol=1e-5, atol=1e-4)


def test_a_row_of_a_sampled_completion():
    completion = SimpleNamespace(text=SWAPPED, token_ids=[1, 2, 3], truncated=True)
    assert graded_row(RECORDS[0], completion, spec_of()) == {
        "text": SWAPPED,
        "tokens": 3,
        "truncated": True,
        "correct": False,
        "parsed": True,
        "reward": task_reward(RECORDS[0], SWAPPED, spec_of()),
    }
