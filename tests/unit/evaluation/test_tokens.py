"""The token pass: every value of an answer's tokens held to a slow float64 pass over that answer alone."""

import copy
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.records import RECORDS
from utils.data.prompts import completion_ids, render_prompt
from utils.evaluation.answers import PolicyAnswers
from utils.evaluation.start_policy import reference_inputs
from utils.evaluation.token_pass import load_reference, token_pass
from utils.evaluation.token_text import TokenTexts
from utils.frame.files import UserError, dump_json
from utils.grading.tasks import task_of
from utils.models.sampling import Completion
from utils.models.settings import ModelConfig
from utils.models.teacher import Teacher
from utils.models.value_head import ValueHead, ValueModel, save_critic
from utils.rewards.intrinsic import FORMS
from utils.rewards.spec import AdaptiveSection, IntrinsicSection, RewardSpec, RewardWeights
from utils.rewards.task_reward import task_reward

EOS = 1
SPEC = RewardSpec(
    weights=RewardWeights(intrinsic=0.3, reasoning=0.2),
    intrinsic=IntrinsicSection(form="bellman", alpha=0.7, missing_eos_penalty=0.4),
)


def padded_model(folder, rows, seed):
    """A float64 model with more vocabulary rows than the tokenizer has tokens; those rows are loud."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    size = model.get_input_embeddings().num_embeddings
    generator = torch.Generator().manual_seed(seed)
    model.resize_token_embeddings(size + rows, mean_resizing=False)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.05 * noise)
        model.get_input_embeddings().weight[size:] = 3.0
    return model


@pytest.fixture(scope="module")
def models(tiny_models):
    """Policy, teacher, reference; each with a padding of its own."""
    return [padded_model(tiny_models("llama"), rows, seed) for seed, rows in enumerate((3, 11, 5))]


@pytest.fixture(scope="module")
def tokenizer(tiny_models):
    return AutoTokenizer.from_pretrained(tiny_models("llama"))


@pytest.fixture(scope="module")
def answers(models, tokenizer):
    """Answers to six records: finished, cut off, the gold text, none, empty but for its end, too long."""

    def completion(ids, truncated=False):
        return Completion(tokenizer.decode(ids, skip_special_tokens=True), list(ids), truncated)

    gold = completion_ids(tokenizer, [RECORDS[2].target_text])[0]
    wrong = tokenizer('{"program": "subtract(12, 30)"}', add_special_tokens=False)["input_ids"]
    completions = [
        completion([*wrong, EOS]),
        completion([20, 21, 22, 23, 24], truncated=True),
        completion(gold),
        None,
        completion([EOS]),
        completion([30] * 250, truncated=True),
    ]
    records = RECORDS[: len(completions)]
    prompts = [
        tokenizer(render_prompt(tokenizer, record.input_text), add_special_tokens=False)["input_ids"]
        for record in records
    ]
    return PolicyAnswers(models[0], tokenizer, records, prompts, completions)


def context(run_dir, **inputs):
    said = []
    config = SimpleNamespace(model=ModelConfig())
    return SimpleNamespace(
        inputs=inputs,
        seed=5,
        runtime={},
        run_dir=run_dir,
        config=config,
        progress=lambda rows, description: rows,
        log=said.append,
        said=said,
    )


def slow(model, prompt, response, size, shift=0):
    """Logits [n, size] that predict the response's tokens, from one stock pass over this sequence alone."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *response]]), use_cache=False).logits[0].numpy()
    first = len(prompt) - 1 + shift
    return logits[first : first + len(response), :size]


def log_softmax(f, temperature=1.0):
    f = f / temperature
    top = f.max(-1, keepdims=True)
    return f - top - np.log(np.exp(f - top).sum(-1, keepdims=True))


def expected(models, prompt, response, size, spec, gamma=1.0, shift=0):
    """The columns of tokens.jsonl but the advantage, token by token (r_h = Q(s_h, a_h) - V(s_{h+1}))."""
    policy, teacher, reference = (slow(model, prompt, response, size, shift) for model in models)
    found = {name: [] for name in ("log_prob", "intrinsic", "kl_teacher", "kl_reference", "log_ratio")}
    log_q, log_p, log_r = map(log_softmax, (policy, teacher, reference))
    alpha = spec.intrinsic.alpha

    def v(place):
        return alpha * np.log(np.exp(teacher[place] / alpha).sum()) if place < len(response) else 0.0

    for place, token in enumerate(response):
        q = np.exp(log_q[place])
        found["log_prob"].append(log_q[place, token])
        found["kl_teacher"].append((q * (log_q[place] - log_p[place])).sum())
        found["kl_reference"].append((q * (log_q[place] - log_r[place])).sum())
        found["log_ratio"].append(log_q[place, token] - log_r[place, token])
        pay = {
            "logprob": teacher[place, token] - v(place),
            "bellman": teacher[place, token] - gamma * v(place + 1),
            "bellman_centered": teacher[place, token] - gamma * v(place + 1) - (v(0) if not place else 0.0),
        }
        found["intrinsic"].append(pay[spec.intrinsic.form])
    return found


def run(ctx, answers, models, size, spec=SPEC, checkpoint=None):
    return token_pass(ctx, answers, Teacher(models[1], size), models[2], spec, checkpoint)


@pytest.mark.parametrize("form", FORMS)
def test_every_value_equals_the_slow_one(models, tokenizer, answers, tmp_path, form):
    spec = RewardSpec(intrinsic=IntrinsicSection(form=form, alpha=0.7))
    size = len(tokenizer)
    found = run(context(tmp_path), answers, models, size, spec)
    assert [row["id"] for row in found.rows] == [f"train-{number}" for number in (0, 1, 2, 4, 5)]
    for row in found.rows[:4]:
        place = int(row["id"].removeprefix("train-"))
        response = answers.completions[place].token_ids
        slow_values = expected(models, answers.prompts[place], response, size, spec)
        assert set(row["values"]) == set(slow_values) and len(row["tokens"]) == len(response)
        for name, values in slow_values.items():
            np.testing.assert_allclose(row["values"][name], values, atol=5.1e-5, rtol=0, err_msg=name)
        # The model's prediction *after* a token is another one: the rows really are p - 1.
        if len(response) > 1:
            shifted = expected(models, answers.prompts[place], response[:-1], size, spec, shift=1)
            for name in slow_values:
                assert not np.allclose(row["values"][name][:-1], shifted[name], atol=1e-2), name
    assert found.rows[4]["values"] == {} and len(found.rows[4]["tokens"]) == 250  # beyond 256 positions
    json.dumps(found.rows, allow_nan=False)


def test_the_padding_of_a_vocabulary_would_be_seen(models, tokenizer, answers):
    """The truth of the test above is not the one with all columns."""
    size = len(tokenizer)
    prompt, response = answers.prompts[1], answers.completions[1].token_ids
    cut = expected(models, prompt, response, size, SPEC)["log_prob"]
    whole = expected([models[0]] * 3, prompt, response, size + 3, SPEC)["log_prob"]
    assert not np.allclose(cut, whole, atol=1e-2)


def test_metrics_hold_the_policy_against_both(models, tokenizer, answers, tmp_path):
    size = len(tokenizer)
    found = run(context(tmp_path), answers, models, size)
    gold = completion_ids(tokenizer, [record.target_text for record in answers.records])
    own = [each and each.token_ids for each in answers.completions]
    for other, column in (("teacher", "kl_teacher"), ("reference", "kl_reference")):
        for name, texts, used in (("on_responses", own, [0, 1, 2, 4]), ("on_gold", gold, range(6))):
            sums = [
                expected(models, answers.prompts[place], texts[place], size, SPEC)[column] for place in used
            ]
            part = found.metrics[other][name]
            assert (part["items"], part["left_out"]) == (len(sums), 6 - len(sums))
            assert part["reverse_kl"]["value"] == pytest.approx(np.concatenate(sums).mean(), abs=1e-9)
            if other == "reference":
                per_text = part["kl_per_text"]
                assert per_text["value"] == pytest.approx(np.mean([sum(each) for each in sums]), abs=1e-9)
                assert per_text["ci95"][0] <= per_text["value"] <= per_text["ci95"][1]
    assert "kl_per_text" not in found.metrics["teacher"]["on_gold"]


def test_the_intrinsic_reward_of_an_answer_is_the_teachers_log_probability(
    models, tokenizer, answers, tmp_path
):
    size = len(tokenizer)
    found = run(context(tmp_path), answers, models, size)
    assert found.outcomes[3] is None and found.outcomes[5] is None
    for place in (0, 1, 2, 4):
        response = answers.completions[place].token_ids
        teacher = slow(models[1], answers.prompts[place], response, size)
        alpha = SPEC.intrinsic.alpha
        nats = log_softmax(teacher, alpha)[np.arange(len(response)), response].sum()
        assert found.outcomes[place] == pytest.approx(alpha * nats, abs=1e-9)


def test_without_teacher_or_reference_their_values_are_not_there(models, tokenizer, answers, tmp_path):
    size = len(tokenizer)
    both = run(context(tmp_path), answers, models, size)
    nothing = token_pass(context(tmp_path), answers, None, None, SPEC)
    assert (nothing.metrics, nothing.rows, nothing.outcomes) == ({}, [], [None] * 6)
    alone = token_pass(context(tmp_path), answers, Teacher(models[1], size), None, SPEC)
    assert alone.metrics["teacher"] == both.metrics["teacher"] and list(alone.metrics) == ["teacher"]
    assert set(alone.rows[0]["values"]) == {"log_prob", "intrinsic", "kl_teacher"}
    reference = token_pass(context(tmp_path), answers, None, models[2], SPEC)
    assert reference.metrics["reference"] == both.metrics["reference"]
    assert set(reference.rows[0]["values"]) == {"log_prob", "kl_reference", "log_ratio"}
    assert reference.outcomes == [None] * 6


def test_a_policy_that_is_its_own_reference_is_run_once(models, tokenizer, answers, tmp_path, monkeypatch):
    from utils.evaluation import token_values

    passes = []
    original = token_values.states_and_head
    monkeypatch.setattr(
        token_values,
        "states_and_head",
        lambda model, *given, **more: passes.append(model) or original(model, *given, **more),
    )
    ctx = context(tmp_path, reference=tmp_path / "best")
    found = run(ctx, answers, models, len(tokenizer), checkpoint=tmp_path / "best")
    assert {id(model) for model in passes} == {id(models[0]), id(models[1])}
    assert found.metrics["reference"]["on_gold"]["reverse_kl"]["value"] == pytest.approx(0, abs=1e-12)
    assert set(found.rows[0]["values"]) == {"log_prob", "intrinsic", "kl_teacher"}  # no maps of zeros


def test_values_that_are_not_finite_stop_it(models, tokenizer, answers, tmp_path):
    broken = copy.deepcopy(models[2])
    with torch.no_grad():
        broken.model.norm.weight[0] = float("nan")
    changed = [*models[:2], broken]
    with pytest.raises(UserError, match=r"not finite for item \d \(distances/reference"):
        run(context(tmp_path), answers, changed, len(tokenizer))


# ------------------------------------------------------------------------------------------- PPO's critic

PPO = {
    "gamma": 0.9,
    "lam": 0.8,
    "kl_coef": 0.2,
    "entropy_reward_coef": 0.03,
    "adaptive_kl": False,
    "whiten_rewards": False,
    "value_model": "shared",
    "overlong_buffer": 0.5,
}


@pytest.fixture
def ppo_run(tmp_path):
    """A factory: a run whose 05_ppo was trained with these settings -> its checkpoint."""

    def make(critic=None, reward="combined", **changes):
        checkpoint = tmp_path / "05_ppo" / "ckpt_ppo" / "best"
        checkpoint.mkdir(parents=True, exist_ok=True)
        if critic is not None:
            save_critic(critic, checkpoint)
        config = {
            "algo": PPO | changes,
            "options": {"reward": reward},
            "model": {"generation": {"temperature": 0.6, "max_new_tokens": 8}},
        }
        manifest = {"outputs": {}, "inputs": {"03_sft/ckpt_sft/best": {"sha256": "0" * 64}}, "config": config}
        (tmp_path / "05_ppo" / "manifest.json").write_text(dump_json(manifest))
        return checkpoint

    return make


def slow_advantages(models, states, head, answers, place, size, reward="combined"):
    """GAE by its definition, a sum over all later errors, of rewards put together by hand."""
    completion, prompt = answers.completions[place], answers.prompts[place]
    record, response = answers.records[place], completion.token_ids
    n, gamma, lam = len(response), PPO["gamma"], PPO["lam"]
    intrinsic = expected(models, prompt, response, size, SPEC, gamma=gamma)["intrinsic"]
    picked = np.arange(n), response
    log_q, log_r = (
        log_softmax(slow(model, prompt, response, size), 0.6)[picked] for model in (models[0], models[2])
    )
    if completion.truncated:
        intrinsic[-1] -= SPEC.intrinsic.missing_eos_penalty
    rewards = SPEC.weights.intrinsic * np.array(intrinsic) if reward == "combined" else np.zeros(n)
    rewards = rewards - PPO["kl_coef"] * (log_q - log_r) - PPO["entropy_reward_coef"] * log_q
    rewards[-1] += task_reward(record, completion.text, SPEC)["total"]
    rewards[-1] += SPEC.weights.reasoning * task_of(record.dataset).reasoning_score(record, completion.text)
    rewards[-1] -= min(1.0, max(0.0, (n - 4) / 4))  # of 8 tokens the last 4 cost
    with torch.no_grad():
        ids = torch.tensor([[*prompt, *response]])
        hidden = states(ids, output_hidden_states=True, use_cache=False).hidden_states[-1][0]
    before = hidden[len(prompt) - 1 : -1].float().numpy().astype(float)
    weight, bias = (part.detach().numpy().astype(float) for part in (head.weight, head.bias))
    values = np.append(before @ weight[0] + bias[0], 0.0)
    errors = rewards + gamma * values[1:] - values[:-1]
    return [sum((gamma * lam) ** (k - t) * errors[k] for k in range(t, n)) for t in range(n)]


def trained_head(width=32):
    head = ValueHead(width, seed=4)
    with torch.no_grad():
        head.weight.mul_(3.0)
        head.bias.fill_(0.7)
    return head


def test_advantages_are_ppos_own(models, tokenizer, answers, tmp_path, ppo_run):
    head, size = trained_head(), len(tokenizer)
    checkpoint = ppo_run(head)
    found = run(context(tmp_path), answers, models, size, checkpoint=checkpoint)
    for row, place in zip(found.rows[:4], (0, 1, 2, 4), strict=True):
        slow_values = slow_advantages(models, models[0], head, answers, place, size)
        np.testing.assert_allclose(row["values"]["advantage"], slow_values, atol=1e-4, rtol=0)
        slow_intrinsic = expected(
            models,
            answers.prompts[place],
            answers.completions[place].token_ids,
            size,
            SPEC,
            gamma=PPO["gamma"],
        )["intrinsic"]
        np.testing.assert_allclose(row["values"]["intrinsic"], slow_intrinsic, atol=5.1e-5, rtol=0)
    assert found.rows[4]["values"] == {}


def test_advantages_of_a_critic_of_its_own(models, tokenizer, answers, tmp_path, ppo_run, monkeypatch):
    from utils.evaluation import critic

    size = len(tokenizer)
    trained = ValueModel(copy.deepcopy(models[2]), seed=1)
    with torch.no_grad():
        trained.model.model.layers[0].mlp.up_proj.weight.mul_(1.5)
    checkpoint = ppo_run(trained, value_model="separate")
    fresh = copy.deepcopy(models[2])
    monkeypatch.setattr(critic, "load_policy", lambda *_, **__: (fresh, None))
    ctx = context(tmp_path, reference=tmp_path / "03_sft")
    found = run(ctx, answers, models, size, checkpoint=checkpoint)
    slow_values = slow_advantages(models, trained.model, trained.head, answers, 0, size)
    np.testing.assert_allclose(found.rows[0]["values"]["advantage"], slow_values, atol=1e-4, rtol=0)


def test_the_reward_of_the_stage_is_what_counts(models, tokenizer, answers, tmp_path, ppo_run):
    head, size = trained_head(), len(tokenizer)
    checkpoint = ppo_run(head, reward="task")
    found = token_pass(context(tmp_path), answers, None, models[2], SPEC, checkpoint)
    slow_values = slow_advantages(models, models[0], head, answers, 1, size, reward="task")
    np.testing.assert_allclose(found.rows[1]["values"]["advantage"], slow_values, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("changes", "spec", "reason"),
    [
        ({"adaptive_kl": True}, SPEC, "KL coefficient followed"),
        ({"whiten_rewards": True}, SPEC, "scaled within rollouts"),
        ({}, RewardSpec(intrinsic=IntrinsicSection(normaliser="z_score")), "normalised over rollouts"),
        ({}, RewardSpec(adaptive=AdaptiveSection(enabled=True)), "weights followed"),
        ({"value_model": "separate"}, SPEC, "saved without its critic"),
        ({"critic_target": "residual"}, SPEC, "learned what siblings' values leave"),
        ({"lam_length": 0.05}, SPEC, "lambda followed the length"),
    ],
)
def test_rewards_that_cannot_be_paid_again_give_no_advantages(
    models, tokenizer, answers, tmp_path, ppo_run, changes, spec, reason
):
    checkpoint = ppo_run(trained_head(), **changes)
    ctx = context(tmp_path)
    found = run(ctx, answers, models, len(tokenizer), spec, checkpoint)
    assert "advantage" not in found.rows[0]["values"] and "log_ratio" in found.rows[0]["values"]
    assert len(ctx.said) == 1 and reason in ctx.said[0]


def test_values_of_siblings_are_no_critic(models, tokenizer, answers, tmp_path, ppo_run):
    checkpoint = ppo_run(value_model="siblings")
    ctx = context(tmp_path)
    found = run(ctx, answers, models, len(tokenizer), SPEC, checkpoint)
    assert "advantage" not in found.rows[0]["values"] and ctx.said == []


def test_whoever_rewards_need_has_to_be_asked(models, tokenizer, answers, tmp_path, ppo_run):
    checkpoint = ppo_run(trained_head())
    ctx = context(tmp_path)
    token_pass(ctx, answers, None, models[2], SPEC, checkpoint)
    token_pass(ctx, answers, Teacher(models[1], len(tokenizer)), None, SPEC, checkpoint)
    assert ["need the teacher" in ctx.said[0], "need the reference" in ctx.said[1]] == [True, True]
    elsewhere = context(tmp_path / "other")
    found = run(elsewhere, answers, models, len(tokenizer), SPEC, checkpoint)
    assert "advantage" not in found.rows[0]["values"] and elsewhere.said == []


# --------------------------------------------------------------------------------------------- reference


def test_the_reference_is_where_training_started(tmp_path):
    run_dir = tmp_path / "run_007"
    sft = run_dir / "03_sft" / "ckpt_sft" / "best"
    for stage in ("03_sft", "05_ppo_intrinsic", "06_grpo", "03_distill"):
        method = stage.split("_")[1]
        for folder in (f"ckpt_{method}", f"ckpt_{method}/best", f"ckpt_{method}/step_40"):
            assert reference_inputs(run_dir / stage / folder) == {"reference": sft}
    for other in (tmp_path / "model", run_dir / "04_candidates" / "ckpt_x" / "best", "org/name", run_dir):
        assert reference_inputs(other) == {}
    # What was distilled from the base model did not start from the SFT policy, as its manifest tells.
    for inputs, found in (
        ({"assets/student": {}}, {}),
        ({"03_sft/ckpt_sft/best": {}}, {"reference": sft}),
    ):
        manifest = run_dir / "03_distill" / "manifest.json"
        manifest.parent.mkdir(parents=True, exist_ok=True)
        hashed = dict.fromkeys(inputs, {"sha256": "0" * 64})
        manifest.write_text(dump_json({"outputs": {}, "inputs": hashed}))
        assert reference_inputs(run_dir / "03_distill" / "ckpt_distill" / "best") == found


def test_a_reference_with_another_tokenizer_is_refused(tiny_models):
    with pytest.raises(UserError, match="tokenizers.*--reference_metrics false"):
        load_reference(ModelConfig(), tiny_models("llama"), "assets/student")


# ------------------------------------------------------------------------------------------ text of tokens


@pytest.fixture(scope="module", params=["bytes", "assets/student"])
def texts(request, tokenizer):
    from utils.models.loading import load_tokenizer

    return tokenizer if request.param == "bytes" else load_tokenizer(request.param)


TEXTS = st.text(st.characters(exclude_characters="\ufffd", codec="utf-8"), max_size=30)


@given(text=TEXTS | st.sampled_from(["naïve – 東京 🙂", "a  b", "</script><b>&amp;", " x"]))
def test_pieces_of_text_join_to_the_text(texts, text):
    ids = texts(text, add_special_tokens=False)["input_ids"]
    pieces = TokenTexts(texts).of([*ids, texts.eos_token_id])
    assert len(pieces) == len(ids) + 1 and pieces[-1] == texts.eos_token
    special = set(texts.all_special_tokens)
    if not any(piece in special for piece in pieces[:-1]):
        assert "".join(pieces[:-1]) == texts.decode(ids, clean_up_tokenization_spaces=False)


@given(data=st.data())
def test_any_tokens_have_a_piece_each(texts, data):
    ids = data.draw(st.lists(st.integers(0, len(texts) - 1), max_size=20))
    pieces = TokenTexts(texts).of(ids)
    assert len(pieces) == len(ids)
    json.dumps(pieces).encode("ascii")
    "".join(pieces).encode("utf-8")  # no halves of surrogate pairs


def test_a_character_stands_at_its_last_token(tokenizer):
    ids = tokenizer("é🙂x", add_special_tokens=False)["input_ids"]
    assert TokenTexts(tokenizer).of(ids) == ["", "é", "", "", "", "🙂", "x"]
    broken = [ids[0], ids[-1], EOS, ids[1], *ids[2:6], ids[0]]
    pieces = ["\ufffd", "x", "<eos>", "\ufffd", "", "", "", "🙂", "\ufffd"]
    assert TokenTexts(tokenizer).of(broken) == pieces
