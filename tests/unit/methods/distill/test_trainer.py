"""The distillation trainer: against stock TRL, against the formulas in float64, and what counts in it."""

import dataclasses
import importlib.metadata
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
from trl import DistillationConfig, DistillationTrainer, GRPOConfig, GRPOTrainer

from tests.support.group_stub import TINY_TRAINING, move
from utils.frame.config import load_tier
from utils.frame.files import REPO_ROOT, UserError
from utils.frame.pipeline import METHODS
from utils.frame.typed_settings import check
from utils.methods.distill.build import NothingToLearn
from utils.methods.distill.settings import DistillAlgo, DistillLoss, sampled_prompts
from utils.methods.distill.trainer import GroupDistillationConfig, GroupDistillationTrainer
from utils.models.teacher import Teacher

PROMPTS = ["2+2=", "a longer prompt: 7*6=", "x", "why?", "one more", "1+1="]
GOLD = ["4", "42, as ever", "y", "because", "and another", "two"]
COMMON = {
    **TINY_TRAINING,
    "per_device_train_batch_size": 4,
    "max_steps": 3,
    "logging_steps": 1,
}
# As stock TRL has it: one completion per prompt, one update per rollout.
PLAIN = {"num_generations": 1, "steps_per_generation": 1, "num_iterations": 1}


class Graded:
    """The interface of RewardPipeline: a completion is right where its first token is even."""

    teacher = None
    combiner = SimpleNamespace(adapted=())
    records = [SimpleNamespace(id=f"train-{number}") for number in range(len(PROMPTS))]

    def score_outcomes(self, record, batch, texts, truncated):
        correct = batch.completion_ids[:, 0] % 2 == 0
        assert len(record) == len(texts) == len(truncated) == len(correct)
        return SimpleNamespace(correct=correct, components={"exact_match": correct.float()})


def draw_rows(step, prompt_ids):
    """Completions of 1, 3 or 6 tokens that depend on the step, the prompt and how often it came before."""
    rows, seen = [], {}
    for ids in prompt_ids:
        seen[tuple(ids)] = place = seen.get(tuple(ids), -1) + 1
        draw = random.Random(f"{step} {ids} {place}")
        rows.append([draw.randrange(2, 90) for _ in range(draw.choice([1, 3, 6]))])
    return rows


class Fed(GroupDistillationTrainer):
    """Completions come from `draw_rows`."""

    def _sample_turn(self, prompt_ids, images, multimodal_fields, *args, **kwargs):
        return draw_rows(self.state.global_step, prompt_ids)


class FedStock(DistillationTrainer):
    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, has_tool_images=False):
        return draw_rows(self.state.global_step, prompt_ids)


@pytest.fixture
def make(tiny_models, tmp_path):
    """A factory of our trainer: tiny Llama student that has been moved, tiny Qwen2 teacher."""

    def build(kind=Fed, teacher="qwen2", double=False, **changes):
        folder = tiny_models("llama")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        student = AutoModelForCausalLM.from_pretrained(folder)
        taught = AutoModelForCausalLM.from_pretrained(tiny_models(teacher))
        move(student, 0.05, 1)
        if double:
            student, taught = student.double(), taught.double()
        texts = [text + tokenizer.eos_token for text in GOLD]
        trainer = kind(
            model=student,
            teacher=Teacher(taught, len(tokenizer)),
            pipeline=Graded(),
            gold=tokenizer(texts, add_special_tokens=False)["input_ids"],
            args=GroupDistillationConfig(
                **{**COMMON, **PLAIN, "output_dir": str(tmp_path / "out"), **changes}
            ),
            train_dataset=Dataset.from_dict({"prompt": PROMPTS, "record": list(range(len(PROMPTS)))}),
            processing_class=tokenizer,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.model.train()
        return trainer

    return build


def rollout_rows(trainer) -> list[dict]:
    """What the data loader gives for a rollout."""
    size = trainer.args.num_generations
    rows = trainer.args.generation_batch_size // size
    return [{"prompt": PROMPTS[row], "record": row} for row in range(rows) for _ in range(size)]


def first_losses(trainer) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of a rollout's first optimizer step and its gradients, without the step."""
    steps = trainer.args.gradient_accumulation_steps
    trainer.current_gradient_accumulation_steps = steps
    rows, loss = rollout_rows(trainer), 0.0
    for place in range(steps):
        trainer._step = place
        part = trainer.compute_loss(trainer.model, trainer._prepare_inputs(rows))
        part.backward()
        loss += part.item()
    gradients = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
    return loss, gradients


# ------------------------------------------------------------------------------------ against stock TRL


@pytest.mark.parametrize(
    ("divergence", "stock_beta"), [("reverse_kl", 1.0), ("forward_kl", 0.0), ("jsd", 0.3)]
)
def test_a_training_equals_stock(make, tiny_models, tmp_path, divergence, stock_beta):
    """On-policy, one completion per prompt, exact, temperature 1, an update per rollout: TRL's own."""
    plain = {"optim": "sgd", "learning_rate": 0.1}  # Adam makes a step of any gradient that is not 0
    ours = make(divergence=divergence, beta=stock_beta, **plain)
    folder = tiny_models("llama")
    student = AutoModelForCausalLM.from_pretrained(folder)
    move(student, 0.05, 1)
    stock = FedStock(
        model=student,
        teacher_model=AutoModelForCausalLM.from_pretrained(tiny_models("qwen2")),
        args=DistillationConfig(
            **{**COMMON, **plain, "output_dir": str(tmp_path / "stock"), "beta": stock_beta}
        ),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    stock.remove_callback(PrinterCallback)
    for trainer in (stock, ours):
        trainer.train()
    expected, found = ([r for r in t.state.log_history if "loss" in r] for t in (stock, ours))
    assert len(expected) == len(found) == 3
    for wanted, row in zip(expected, found, strict=True):
        for name in (
            "loss",
            "grad_norm",
            "entropy",
            "num_tokens",
            "completions/mean_length",
            "learning_rate",
        ):
            assert row[name] == pytest.approx(wanted[name], rel=1e-4), name
    for (name, wanted), (_, value) in zip(
        stock.model.named_parameters(), ours.model.named_parameters(), strict=True
    ):
        torch.testing.assert_close(value, wanted, rtol=0, atol=1e-5, msg=name)


def test_gradients_equal_stock_over_micro_batches(make, tiny_models, tmp_path):
    """A step of two micro-batches; means are over the tokens of both, whichever rows share one."""
    split = {"gradient_accumulation_steps": 2}
    loss, gradients = first_losses(make(per_device_train_batch_size=2, steps_per_generation=2, **split))
    folder = tiny_models("llama")
    student = AutoModelForCausalLM.from_pretrained(folder)
    move(student, 0.05, 1)
    settings = {**COMMON, **split, "per_device_train_batch_size": 2, "output_dir": str(tmp_path / "stock")}
    stock = FedStock(
        model=student,
        teacher_model=AutoModelForCausalLM.from_pretrained(tiny_models("qwen2")),
        args=DistillationConfig(**settings),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    stock.model.train()
    rows, expected = [{"prompt": PROMPTS[row]} for row in range(4)], 0.0
    for place in range(2):
        stock._step = place
        part = stock.compute_loss(stock.model, stock._prepare_inputs(rows))
        part.backward()
        expected += part.item()
    assert loss == pytest.approx(expected, rel=1e-6)
    for name, parameter in stock.model.named_parameters():
        scale = parameter.grad.abs().max()
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-5 * scale, msg=name)


def test_another_trl_is_refused(make, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.17.0")
    with pytest.raises(UserError, match="TRL 1.17.0 is installed but the trainers here extend TRL 1.16"):
        make()


def test_prompts_come_in_the_order_of_grpo(make, tiny_models, tmp_path):
    ours = make(num_generations=2, num_iterations=2, steps_per_generation=2)
    grpo = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(tiny_models("llama")),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=GRPOConfig(
            **COMMON, output_dir=str(tmp_path), num_generations=2, num_iterations=2, steps_per_generation=2
        ),
        train_dataset=ours.train_dataset,
        processing_class=ours.processing_class,
    )
    assert list(ours._get_train_sampler()) == list(grpo._get_train_sampler())


# -------------------------------------------------------------------------------- against the formulas


def reference_loss(trainer) -> torch.Tensor:
    """The loss of the buffered rollout's first step from whole sequences, one row at a time, in float64."""
    args, measure, vocab = trainer.args, trainer.measure, trainer.vocab_size

    def log_probs(model, row, completion, temperature):
        prompt = row["prompt_ids"][row["prompt_mask"].bool()]
        logits = model(input_ids=torch.cat([prompt, completion])[None]).logits[
            0, len(prompt) - 1 : -1, :vocab
        ]
        return (logits.double() / temperature).log_softmax(-1)

    divergences, gold = [], []
    taught = set()
    for part in trainer._buffered_inputs[: args.gradient_accumulation_steps]:
        for place in range(len(part["record"])):
            row = {name: value[place] for name, value in part.items() if value.ndim}
            completion = row["completion_ids"][row["completion_mask"].bool()]
            s = log_probs(trainer.model, row, completion, measure.temperature)
            with torch.no_grad():
                t = log_probs(trainer.teacher.model, row, completion, measure.temperature)
            if args.teacher_top_k:
                kept = t.topk(args.teacher_top_k).indices
                s, t = (
                    torch.cat(
                        [x.gather(-1, kept), x.scatter(-1, kept, -torch.inf).logsumexp(-1)[:, None]], -1
                    )
                    for x in (s, t)
                )
            m = (measure.beta * t.exp() + (1 - measure.beta) * s.exp()).log()
            found = {
                "forward_kl": (t.exp() * (t - s)).sum(-1),
                "reverse_kl": (s.exp() * (s - t)).sum(-1),
                "jsd": measure.beta * (t.exp() * (t - m)).sum(-1)
                + (1 - measure.beta) * (s.exp() * (s - m)).sum(-1),
            }
            divergences.append(found[measure.kind])
            record = int(row["record"])
            if args.ce_weight and (id(part), record) not in taught:
                taught.add((id(part), record))
                ids = torch.tensor(trainer.gold[record])
                gold.append(-log_probs(trainer.model, row, ids, 1.0).gather(-1, ids[:, None])[:, 0])
    loss = (1 - args.ce_weight) * measure.temperature**2 * torch.cat(divergences).mean()
    return loss + args.ce_weight * torch.cat(gold).mean() if gold else loss


GROUPS = {"num_generations": 2, "steps_per_generation": 2, "per_device_train_batch_size": 4}
CASES = {
    "reverse": GROUPS,
    "forward T2": {**GROUPS, "divergence": "forward_kl", "divergence_temperature": 2.0},
    "jsd T.7": {**GROUPS, "divergence": "jsd", "beta": 0.2, "divergence_temperature": 0.7},
    "accumulated": {**GROUPS, "gradient_accumulation_steps": 2, "divergence": "jsd"},
    "top 3": {**GROUPS, "teacher_top_k": 3},
    "top 5 forward T2": {
        **GROUPS,
        "teacher_top_k": 5,
        "divergence": "forward_kl",
        "divergence_temperature": 2.0,
    },
    "top 4 jsd": {**GROUPS, "teacher_top_k": 4, "divergence": "jsd", "beta": 0.7},
    "ce beside samples": {**GROUPS, "ce_weight": 0.3},
    "ce alone": {**GROUPS, "ce_weight": 1.0},
    "gold": {"on_policy_fraction": 0.0, "divergence": "forward_kl"},
    "gold with ce": {"on_policy_fraction": 0.0, "ce_weight": 0.5},
    "mixed": {"on_policy_fraction": 0.5},
    "mixed with ce": {"on_policy_fraction": 0.5, "ce_weight": 0.4, "teacher_top_k": 6},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_loss_and_gradients_are_those_of_the_formulas(make, case):
    """Models in float64; what is left is the rounding of TRL's kernel, which is in float32."""
    trainer = make(double=True, **case)
    loss, gradients = first_losses(trainer)
    found = {name: gradient.clone() for name, gradient in gradients.items()}
    trainer.model.zero_grad()
    expected = reference_loss(trainer)
    expected.backward()
    assert abs(loss - expected.item()) <= 1e-6
    for name, parameter in trainer.model.named_parameters():
        assert (found[name] - parameter.grad).abs().max() <= 1e-6, name
    assert expected.item() > 0.01


def sampled_kl_loss(trainer, start, old) -> torch.Tensor:
    """The loss of the buffered rollout's first micro-batch by the sampled tokens, row by row, in float64."""
    args, vocab = trainer.args, trainer.vocab_size
    rows = [
        {name: value[place] for name, value in part.items() if value.ndim}
        for part in trainer._buffered_inputs
        for place in range(len(part["record"]))
    ]

    def log_probs(model, row):
        prompt = row["prompt_ids"][row["prompt_mask"].bool()]
        completion = row["completion_ids"][row["completion_mask"].bool()]
        logits = model(input_ids=torch.cat([prompt, completion])[None]).logits[0, len(prompt) - 1 : -1]
        every = logits[:, :vocab].double().log_softmax(-1)
        return every, every.gather(-1, completion[:, None])[:, 0]

    def rewards(own, teacher, first):
        return args.reward_scale * (teacher - first) - (own - first)

    bound = None if args.reward_mixture is None else np.log(args.reward_mixture / (1 - args.reward_mixture))
    explores = trainer.state.global_step < args.exploration_fraction * args.max_steps
    with torch.no_grad():
        sampled = [log_probs(old, row) for row in rows]
        entropies = torch.cat([-(every.exp() * every).sum(-1) for every, _ in sampled])
        least = np.quantile(entropies.numpy(), 1 - args.top_entropy_quantile)
    total, count = 0.0, 0.0
    for row, (every, chosen) in list(zip(rows, sampled, strict=True))[: args.per_device_train_batch_size]:
        own_every, own = log_probs(trainer.model, row)
        with torch.no_grad():
            (teacher_every, teacher), (_, first) = (
                log_probs(trainer.teacher.model, row),
                log_probs(start, row),
            )
            advantage = rewards(own, teacher, first)
            if bound is not None:
                advantage = advantage.clamp(min=bound)
            if args.kl_baseline:
                advantage = advantage + (own_every.exp() * (own_every - teacher_every)).sum(-1)
            learnt = torch.ones_like(own)
            if explores:
                learnt = (rewards(chosen, teacher, first) >= bound).double()
            elif args.top_entropy_quantile < 1:
                learnt = (-(every.exp() * every).sum(-1) >= least).double()
        total = total - (learnt * (own - chosen).exp() * advantage).sum()
        count += learnt.sum()
    assert count > 0
    return total / count


@pytest.mark.parametrize(
    ("preset", "step"), [("opd", 0), ("exopd", 0), ("vopd", 0), ("reopold", 0), ("reopold", 2)]
)
def test_presets_of_on_policy_distillation_equal_their_formulas(make, tiny_models, preset, step):
    """After the policy has moved twice: away from the start before the rollout, from its sampler after it."""
    algo = load_tier(DistillAlgo, REPO_ROOT / METHODS[preset].defaults)
    check(algo)
    given = {field.name: getattr(algo, field.name) for field in dataclasses.fields(DistillLoss)}
    trainer = make(double=True, **GROUPS, **given)

    def as_it_is():
        model = AutoModelForCausalLM.from_pretrained(tiny_models("llama")).double()
        model.load_state_dict(trainer.model.state_dict())
        return model

    start = as_it_is()
    move(trainer.model, 0.03, 5)
    old = as_it_is()
    trainer.state.global_step, trainer.current_gradient_accumulation_steps = step, 1
    inputs = trainer._prepare_inputs(rollout_rows(trainer))
    if preset == "reopold":
        mask = inputs["completion_mask"].bool()
        assert 0 < (inputs["learnt"][mask] > 0).double().mean() < 1
    move(trainer.model, 0.03, 6)
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    found = {name: parameter.grad.clone() for name, parameter in trainer.model.named_parameters()}
    trainer.model.zero_grad()
    expected = sampled_kl_loss(trainer, start, old)
    expected.backward()
    assert abs(loss.item() - expected.item()) <= 1e-6 and abs(expected.item()) > 1e-4
    for name, parameter in trainer.model.named_parameters():
        assert (found[name] - parameter.grad).abs().max() <= 1e-6, name


def test_the_start_policy_is_only_looked_at(make):
    trainer = make(divergence="sampled_kl", reward_scale=2.0)
    first = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    move(trainer.model, 0.03, 5)
    moved = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with trainer._as_at_the_start():
        assert all(torch.equal(value, first[name]) for name, value in trainer.model.state_dict().items())
    assert all(torch.equal(value, moved[name]) for name, value in trainer.model.state_dict().items())


def test_a_gold_text_that_comes_twice_counts_twice(make):
    """A curriculum may choose a prompt again where it has too few."""
    losses = []
    for rows in ([0, 0, 1, 1], [0, 1]):
        trainer = make(
            double=True, on_policy_fraction=0.0, ce_weight=0.5, per_device_train_batch_size=len(rows)
        )
        inputs = trainer._prepare_inputs([{"prompt": PROMPTS[row], "record": row} for row in rows])
        losses.append(trainer.compute_loss(trainer.model, inputs).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_prompts_and_padding_contribute_nothing(make):
    """Zero gradient at every state but those before completion tokens; other ids in the padding, more of it,
    or another order of rows change nothing."""
    trainer = make(double=True, **GROUPS, ce_weight=0.3)
    inputs = trainer._prepare_inputs(rollout_rows(trainer))
    outputs = []
    hook = trainer.model.model.norm.register_forward_hook(
        lambda module, args, output: (output.retain_grad(), outputs.append(output))[0]
    )
    trainer.compute_loss(trainer.model, inputs).backward()
    hook.remove()
    before, after = outputs  # the prompts, the completions on top
    assert not before.grad[:, :-1].any() and before.grad[:, -1].abs().sum(-1).all()
    run = int((after.grad.abs().sum(-1) > 0).sum())
    gold = trainer._extra_gold(inputs)
    tokens = inputs["completion_mask"].sum(1).tolist() + inputs["gold_mask"][gold].sum(1).tolist()
    assert run == sum(length - 1 for length in tokens)  # the first token is before.grad's

    def again(changed) -> tuple[float, torch.Tensor]:
        trainer.model.zero_grad()
        loss = trainer.compute_loss(trainer.model, changed)
        loss.backward()
        return loss.item(), trainer.model.lm_head.weight.grad.clone()

    plain = again(inputs)
    garbled = dict(inputs)
    for kind in ("prompt", "completion", "gold"):
        ids, mask = inputs[f"{kind}_ids"], inputs[f"{kind}_mask"].bool()
        garbled[f"{kind}_ids"] = torch.where(mask, ids, 77)
    for name in ("teacher_states", "teacher_choice", "teacher_entropy"):
        value = inputs[name].clone()
        value[~inputs["completion_mask"].bool()] = 1e6 if value.is_floating_point() else 7
        garbled[name] = value
    assert again(garbled)[0] == plain[0] and torch.equal(again(garbled)[1], plain[1])
    wider = dict(inputs)
    for name, value in inputs.items():
        if value.ndim >= 2:
            more = value.new_zeros((len(value), 3, *value.shape[2:]))
            wider[name] = torch.cat([more, value] if name.startswith("prompt") else [value, more], 1)
    loss, gradient = again(wider)
    assert loss == pytest.approx(plain[0], rel=1e-9)
    torch.testing.assert_close(gradient, plain[1], rtol=1e-6, atol=1e-9)


# ----------------------------------------------------------------------------------- rollouts and passes


def test_the_teacher_is_asked_once_per_rollout(make):
    """Four updates on each of two rollouts: two passes of two."""
    trainer = make(**GROUPS, num_iterations=2, max_steps=8)
    calls = []
    trainer.teacher.model.model.norm.register_forward_hook(lambda *_: calls.append(trainer.state.global_step))
    trainer.train()
    assert set(calls) == {0, 4}
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert len(rows) == 8 and {"divergence", "agreement", "entropy", "teacher_entropy"} <= rows[0].keys()
    assert trainer.cost.sampled_completions == 16
    assert trainer.cost.trained_tokens == 2 * trainer.cost.generated_tokens


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5, 1.0])
def test_the_fraction_chooses_prompts_by_the_seed(make, fraction):
    settings = {"on_policy_fraction": fraction, "steps_per_generation": 1, "max_steps": 3}
    chosen = []
    for number, seed in enumerate((5, 5, 6)):
        trainer = make(**settings, seed=seed)
        torch.manual_seed(number)  # the global generator has no say
        found, original = [], trainer._draw
        trainer._draw = lambda rows, original=original, found=found: found.append(original(rows)) or found[-1]
        trainer.train()
        chosen.append(found)
        count = sampled_prompts(fraction, 4)
        assert [sum(drawn) for drawn in found] == [count] * 3
        assert trainer.cost.sampled_completions == 3 * count
        assert any("train_accuracy" in row for row in trainer.state.log_history) == (count > 0)
    assert chosen[0] == chosen[1]
    if fraction in (0.25, 0.5):
        assert chosen[0] != chosen[2] and len({tuple(drawn) for drawn in chosen[0] + chosen[2]}) > 1


def test_gold_text_is_what_is_learnt_from(make):
    trainer = make(on_policy_fraction=0.5)
    inputs = trainer._prepare_inputs(rollout_rows(trainer))
    for row, drawn in enumerate(inputs["sampled"].tolist()):
        ids = inputs["completion_ids"][row][inputs["completion_mask"][row].bool()].tolist()
        assert (ids == trainer.gold[inputs["record"][row]]) != drawn
        assert (inputs["correct"][row] == -1) != drawn


@pytest.mark.parametrize("reason", [None, "a test says so"])
def test_a_process_without_drawn_rows_samples_with_the_others(make, monkeypatch, reason):
    """All drawn rows are another process's. TRL's sampler, which needs a prompt, is given one."""
    trainer = make(GroupDistillationTrainer, on_policy_fraction=0.5)
    monkeypatch.setattr(trainer, "_model_obstacle", lambda model: reason)
    drawn = trainer._draw

    def elsewhere(rows):
        drawn(rows)
        return [False] * rows

    monkeypatch.setattr(trainer, "_draw", elsewhere)
    asked, generate = [], trainer.model.generate
    monkeypatch.setattr(
        trainer.model,
        "generate",
        lambda **inputs: asked.append(inputs["input_ids"].shape) or generate(**inputs),
    )
    inputs = trainer._prepare_inputs(rollout_rows(trainer))
    assert asked == ([(1, 1)] if reason else [])
    assert not inputs["sampled"].any() and trainer.cost.sampled_completions == 0
    for row, record in enumerate(inputs["record"]):
        ids = inputs["completion_ids"][row][inputs["completion_mask"][row].bool()].tolist()
        assert ids == trainer.gold[record]


def test_real_samples_use_shared_prefixes(make, caplog):
    trainer = make(GroupDistillationTrainer, **GROUPS, num_iterations=2, max_steps=4)
    trainer.train()
    assert "without shared prefixes" not in caplog.text
    assert trainer.cost.sampled_completions == 8 and trainer.cost.seconds["sampling"] > 0


# -------------------------------------------------------------------------------------- on gold text


def gold_log_probs(trainer, model, record):
    prompt = trainer.processing_class(PROMPTS[record], add_special_tokens=False)["input_ids"]
    ids = torch.tensor([[*prompt, *trainer.gold[record]]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1, : trainer.vocab_size]
    return logits.double().log_softmax(-1).numpy()


def test_hooks_of_curricula_against_whole_sequences(make):
    trainer = make(double=True)
    records = [3, 0, 5, 1, 2]
    gap, divergence = trainer.confidence_gap(records), trainer.gold_divergence(records)
    assert gap.dtype == divergence.dtype == torch.float64 and trainer.model.training
    for place, record in enumerate(records):
        s, t = (gold_log_probs(trainer, model, record) for model in (trainer.model, trainer.teacher.model))
        ids = np.array(trainer.gold[record])[:, None]
        p_s, p_t = (np.exp(np.take_along_axis(x, ids, 1)).mean() for x in (s, t))
        assert gap[place].item() == pytest.approx(max(p_t - p_s, 0), abs=1e-6)
        assert divergence[place].item() == pytest.approx((np.exp(t) * (t - s)).sum(1).mean(), abs=1e-6)
    assert (gap > 0).any()


def test_validation_metrics_are_means_over_all_tokens(make):
    trainer = make(double=True, max_completion_length=max(map(len, GOLD)) + 1)
    texts = zip(PROMPTS, GOLD, strict=True)
    records = [SimpleNamespace(id=text, input_text=text, target_text=gold) for text, gold in texts]
    pairs = [
        [gold_log_probs(trainer, model, row) for model in (trainer.model, trainer.teacher.model)]
        for row in range(len(PROMPTS))
    ]
    s, t = (np.concatenate([pair[side] for pair in pairs]) for side in (0, 1))
    found = trainer.validation_metrics(records)
    assert found == {
        "val_agreement": pytest.approx((s.argmax(1) == t.argmax(1)).mean(), abs=2e-6),
        "val_forward_kl": pytest.approx((np.exp(t) * (t - s)).sum(1).mean(), abs=2e-6),
        "val_reverse_kl": pytest.approx((np.exp(s) * (s - t)).sum(1).mean(), abs=2e-6),
    }


def test_nothing_to_learn_is_said_once_and_only_then():
    said = []
    callback = NothingToLearn(SimpleNamespace(log=said.append))

    def log(step, **values):
        logs = {f"val_{name}": value for name, value in values.items()}
        callback.on_log(None, SimpleNamespace(global_step=step), None, logs)

    log(0, agreement=0.99, forward_kl=0.3, reverse_kl=0.001)  # the few tokens that differ matter
    log(0, agreement=0.8, forward_kl=0.001, reverse_kl=0.001)
    log(0, accuracy=0.5)
    log(8, agreement=1.0, forward_kl=0.0, reverse_kl=0.0)
    callback.on_log(None, SimpleNamespace(global_step=0), None, None)
    assert said == []
    log(0, agreement=0.99, forward_kl=0.004, reverse_kl=0.006)
    assert len(said) == 1 and said[0].startswith("warning: there is little to learn") and "99.0 %" in said[0]


# ------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("k", [None, 3])
def test_a_broken_teacher_stops_the_run(make, k):
    trainer = make(teacher_top_k=k)
    with torch.no_grad():
        trainer.teacher.model.model.norm.weight[0] = float("nan")
    with pytest.raises(UserError, match="not finite at step 0, for train-") as caught:
        trainer.train()
    assert "\n" not in str(caught.value)


def test_a_token_beyond_the_tokenizer_stops_the_run(make):
    trainer = make()
    trainer.vocab_size = 10
    with pytest.raises(UserError, match="of train-.* holds a token that the tokenizer lacks"):
        trainer.train()


def test_models_of_other_padding_are_compared(make, tiny_models):
    """Qwen2.5 pads its vocabularies differently: the padding has no part, and is no obstacle."""
    trainer = make(double=True)
    loss, _ = first_losses(trainer)
    padded = make(double=True)
    padded.teacher.model.resize_token_embeddings(300, mean_resizing=False)
    with torch.no_grad():
        padded.teacher.model.lm_head.weight[padded.vocab_size :] = 10
    assert first_losses(padded)[0] == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"on_policy_fraction": 0.5}, "on_policy_fraction 0.5 needs num_generations 1, found 8"),
        ({"on_policy_fraction": 1.5}, "on_policy_fraction must be between 0 and 1"),
        ({"ce_weight": -0.1}, "ce_weight must be between 0 and 1"),
        ({"divergence": "jsd", "beta": 1.0}, "the ends are divergence forward_kl and reverse_kl"),
        ({"top_k": 0}, "top_k must be at least 1, or null"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"reward_scale": 1.25}, "reward_scale is of divergence sampled_kl, found reverse_kl"),
        ({"divergence": "sampled_kl", "on_policy_fraction": 0.5}, "learns from samples alone"),
        ({"divergence": "sampled_kl", "temperature": 2.0}, "leave temperature at 1"),
        ({"divergence": "sampled_kl", "kl_baseline": True, "reward_scale": 2.0}, "leave out reward_scale"),
        ({"divergence": "sampled_kl", "reward_mixture": 1.0}, "reward_mixture must be between 0 and 1"),
        ({"divergence": "sampled_kl", "exploration_fraction": 0.5}, "set reward_mixture"),
        ({"num_generations": 7}, "must be a multiple of num_generations"),
        ({"gradient_accumulation_steps": 4}, "must be a multiple of gradient_accumulation_steps"),
    ],
)
def test_impossible_settings_have_one_clear_line(changes, message):
    algo = DistillAlgo(**changes)
    with pytest.raises(ValueError, match=message) as caught:
        check(algo)
    assert "\n" not in str(caught.value)


def test_budgets():
    algo = DistillAlgo()
    check(algo)
    assert (algo.rollout_size, algo.num_prompts, algo.sampled_completions) == (128, 1024, 8192)
    gold = DistillAlgo(
        num_generations=1, on_policy_fraction=0.3, per_device_train_batch_size=5, num_rollouts=3
    )
    check(gold)
    assert (gold.rollout_size, gold.num_prompts, gold.sampled_completions) == (10, 30, 9)
