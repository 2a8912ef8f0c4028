"""The one-file methods of examples/: what the stages compute on the same completions, and that they run."""

import ast
import inspect
import sys

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples import grpo_plain, ppo_plain
from tests.support.group_stub import (
    SIZE,
    WEIGHT,
    completions_of,
    group_trainer,
    move,
    outcome,
    rollout_inputs,
    token_reward,
)
from tests.support.ppo_stub import ppo_trainer
from utils.data.records import Record
from utils.methods.grpo.trainer import SharedPrefixGRPOTrainer
from utils.models.teacher import Teacher
from utils.rewards.reward_pipeline import RewardPipeline
from utils.rewards.spec import IntrinsicSection, RewardSpec, RewardWeights

EXAMPLES = (grpo_plain, ppo_plain)
# Weights, logits and losses are float64; rotary embeddings, which Transformers computes in float32, are not.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
RATE = 0.5  # of plain gradient descent, in the tests of whole updates


# -------------------------------------------------------------------------------------- what both compare


def completions_in(rollout: dict) -> tuple[Tensor, Tensor, Tensor]:
    """A stage's completions as the examples hold them: tokens_B_T, attended_B_T, mask_B_C."""
    ids, mask = (
        torch.cat([rollout[f"prompt_{kind}"], rollout[f"completion_{kind}"]], dim=1)
        for kind in ("ids", "mask")
    )
    return ids, mask, rollout["completion_mask"]


def assert_close(found: Tensor, expected: Tensor, mask: Tensor) -> None:
    """Equal wherever there is a token, and not all the same."""
    kept = mask.bool()
    torch.testing.assert_close(found[kept], expected[kept].to(found.dtype), **CLOSE)
    assert found[kept].std() > 1e-2


def gradients(*modules: nn.Module) -> dict[str, Tensor]:
    """Of every parameter that has one, by name; they are taken off."""
    parameters = [pair for module in modules for pair in module.named_parameters()]
    found = {name: value.grad for name, value in parameters if value.grad is not None}
    for _, parameter in parameters:
        parameter.grad = None
    return found


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys() and len(found) > 10
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, **CLOSE, msg=lambda text, name=name: name + text)
    assert max(float(gradient.abs().max()) for gradient in expected.values()) > 1e-2


def assert_same_way(before: dict[str, Tensor], found: nn.Module, expected: dict[str, Tensor]) -> None:
    """Two trainings from `before` went the same way, to 1e-5 of it, and went somewhere."""
    way = max(float((expected[name] - start).abs().max()) for name, start in before.items())
    assert way > 1e-3 and len(before) > 10
    for name, value in found.named_parameters():
        assert float((value - expected[name]).abs().max()) < 1e-5 * way, name


def plain_copy(model: nn.Module) -> nn.Module:
    """The same policy as Transformers makes it. (A deep copy's forward would still run the first model.)"""
    own = {name: value for name, value in model.state_dict().items() if "value_head" not in name}
    copied = AutoModelForCausalLM.from_config(model.config).double()
    copied.load_state_dict(own)
    return copied


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def kept_rollouts(trainer) -> list[dict]:
    """A list that every rollout of the trainer will be put into."""
    made, rollout = [], trainer._generate_and_score_completions

    def keep(inputs):
        made.append(rollout(inputs))
        return made[-1]

    trainer._generate_and_score_completions = keep
    return made


# ------------------------------------------------------------------------------------------------- GRPO


@pytest.fixture
def grpo(tiny_models, tmp_path):
    """A factory of GRPO trainers in float64 whose policy has left its reference."""
    folder = tiny_models("llama")
    return lambda **changes: group_trainer(SharedPrefixGRPOTrainer, folder, tmp_path / "out", **changes)


def grpo_args(trainer) -> grpo_plain.Args:
    args = trainer.args
    return grpo_plain.Args(
        num_generations=SIZE,
        temperature=trainer.temperature,
        num_iterations=args.num_iterations,
        num_mini_batches=args.steps_per_generation,
        max_grad_norm=args.max_grad_norm,
        epsilon=args.epsilon,
        beta=args.beta,
    )


def grpo_scored(trainer, model, rollout: dict) -> grpo_plain.Rollout:
    """A stage's completions scored by the example, on the stub's rewards."""
    rewards = [outcome(ids) + WEIGHT * sum(map(token_reward, ids)) for ids in completions_of(rollout)]
    sampled = grpo_plain.Rollout(*completions_in(rollout))
    return grpo_plain.score(model, trainer.ref_model, sampled, torch.tensor(rewards), grpo_args(trainer))


def test_grpo_scores_loss_and_gradients_are_the_stages(grpo):
    """Both mini-batches of a rollout, after the policy has moved so far that some tokens are clipped."""
    trainer = grpo(per_device_train_batch_size=8, steps_per_generation=2)
    model, parts = trainer.model, []
    for step in range(2):
        trainer._step = step
        parts.append(trainer._prepare_inputs(rollout_inputs()))
    batches = [grpo_scored(trainer, model, part) for part in parts]
    for part, batch in zip(parts, batches, strict=True):
        assert_close(batch.old_B_C, part["old_per_token_logps"], batch.mask_B_C)
        assert_close(batch.ref_B_C, part["ref_per_token_logps"], batch.mask_B_C)
        assert_close(batch.advantages_B, part["advantages"], torch.ones(8))
        assert ((batch.old_B_C - batch.ref_B_C) * batch.mask_B_C).abs().max() > 1e-2

    move(model, 0.02, 2)
    args, tokens = grpo_args(trainer), sum(batch.mask_B_C.sum() for batch in batches) / 2
    for part, batch in zip(parts, batches, strict=True):
        expected = trainer._compute_loss(model, part)
        expected.backward()
        wanted = gradients(model)
        new = grpo_plain.log_probs(model, batch, args.temperature)
        loss, logged = grpo_plain.grpo_loss(new, batch, tokens, args)
        loss.backward()
        torch.testing.assert_close(loss, expected, **CLOSE)
        assert_same_gradients(gradients(model), wanted)
        ref = part["ref_per_token_logps"]
        kl = ((new.detach() - ref) * batch.mask_B_C).sum() / tokens
        assert logged["kl"] == pytest.approx(kl.item(), abs=1e-5) and abs(logged["kl"]) > 1e-3
        assert abs(loss.item()) > 1e-3 and 0.02 < logged["clipped"] < 0.9


def test_a_grpo_update_is_the_stages(grpo):
    """From the completions to the weights: the clipping of the gradient and the optimizer's step as well."""
    trainer = grpo(num_iterations=1, max_steps=1, optim="sgd", learning_rate=RATE, max_grad_norm=0.05)
    policy, rollouts = plain_copy(trainer.model), kept_rollouts(trainer)
    trainer.train()
    before, batch = weights(policy), grpo_scored(trainer, policy, rollouts[0])
    grpo_plain.update(policy, torch.optim.SGD(policy.parameters(), RATE), batch, grpo_args(trainer))
    assert_same_way(before, policy, weights(trainer.model))


# -------------------------------------------------------------------------------------------------- PPO


ROWS = [0, 0, 0, 0, 1, 1, 3, 4]  # of the stub's prompts
COMPLETIONS = [[50, 60, 1], [70], [1], [51, 52, 53, 54, 55, 56], [61, 1], [80, 1], [90, 91, 92, 1], [93]]


@pytest.fixture
def ppo(tiny_models, tmp_path):
    """A factory of PPO trainers in float64, paid by the reward pipeline of 05 on a teacher's logits."""

    def build(**changes):
        folder = tiny_models("llama")
        settings = {
            "per_device_train_batch_size": 8,
            "num_mini_batches": 1,
            "gamma": 0.98,
            "lam": 0.9,
            **changes,
        }
        trainer = ppo_trainer(folder, tmp_path / "out", **settings)
        trainer.teacher = AutoModelForCausalLM.from_pretrained(folder)
        for model in (trainer.model, trainer.ref_model, trainer.critic, trainer.teacher):
            model.double()
        move(trainer.teacher, 0.05, 3)
        move(trainer.model, 0.02, 1)
        trainer.pipeline = RewardPipeline(
            [Record(str(row), "gsm8k", "", "", "", "1") for row in range(5)],
            RewardSpec(weights=RewardWeights(intrinsic=0.3), intrinsic=IntrinsicSection(form="bellman")),
            "intrinsic",
            Teacher(trainer.teacher, len(trainer.processing_class)),
            gamma=trainer.args.gamma,
        )
        trainer._generate_single_turn = lambda prompt_ids, *_: (COMPLETIONS[: len(prompt_ids)], None)
        trainer.model.train()
        return trainer

    return build


def ppo_args(trainer) -> ppo_plain.Args:
    args = trainer.args
    return ppo_plain.Args(
        temperature=trainer.temperature,
        num_epochs=args.num_ppo_epochs,
        num_mini_batches=args.num_mini_batches,
        max_grad_norm=args.max_grad_norm,
        gamma=args.gamma,
        lam=args.lam,
        epsilon=args.cliprange,
        value_epsilon=args.cliprange_value,
        vf_coef=args.vf_coef,
        kl_coef=args.kl_coef,
        weight=0.3,
        target_kl=float("inf") if args.target_kl is None else args.target_kl,
    )


def ppo_parts(trainer) -> tuple[nn.Module, nn.Linear]:
    """Copies of the policy, its value head taken off, and of the head."""
    model = plain_copy(trainer.model)
    head = nn.Linear(model.config.hidden_size, 1, dtype=torch.float64)
    head.load_state_dict(trainer.critic.state_dict())
    return model, head


def ppo_scored(trainer, model, head, rollout: dict) -> tuple[ppo_plain.Rollout, dict[str, float]]:
    sampled = ppo_plain.Rollout(*completions_in(rollout))
    return ppo_plain.score(model, head, trainer.ref_model, trainer.teacher, sampled, ppo_args(trainer))


def test_ppo_rewards_advantages_loss_and_gradients_are_the_stages(ppo):
    """A rollout, and an update on it after policy and critic have moved so far that both are clipped."""
    trainer = ppo()
    data = trainer.train_dataset
    rollout = trainer._generate_and_score_completions([dict(data[row]) for row in ROWS])
    model, head = ppo_parts(trainer)
    batch, logged = ppo_scored(trainer, model, head, rollout)
    for name, found in (
        ("old_log_probs", batch.old_B_C),
        ("old_values", batch.values_B_C),
        ("advantages", batch.advantages_B_C),
        ("returns", batch.returns_B_C),
    ):
        assert_close(found, rollout[name], batch.mask_B_C)
    recorded = trainer._metrics["train"]
    explained = ("explained", "explained_variance/lambda_1")
    for name, key in (("reward", "reward"), ("kl", "kl_sequence"), explained):
        assert logged[name] == pytest.approx(recorded[key][0], rel=1e-5, abs=1e-5)
    assert abs(logged["kl"]) > 1e-2

    move(trainer.model, 0.02, 2)
    model, head = ppo_parts(trainer)
    expected = trainer._compute_loss(trainer.model, rollout | {"tokens": batch.mask_B_C.sum()})
    expected.backward()
    wanted = gradients(trainer.model)
    args = ppo_args(trainer)
    loss, logged = ppo_plain.ppo_loss(*ppo_plain.judge(model, head, batch, args.temperature), batch, args)
    loss.backward()
    torch.testing.assert_close(loss, expected, **CLOSE)
    found = gradients(model) | {f"value_head.{name}": value for name, value in gradients(head).items()}
    assert_same_gradients(found, wanted)
    update = trainer._updates[0]
    for name, key in (("moved", "approx_kl"), ("clipped", "clip_ratio/policy")):
        assert logged[name] == pytest.approx(update[key], rel=1e-4) and logged[name] > 0.01
    assert update["clip_ratio/value"] > 0


@pytest.mark.parametrize("target_kl", [None, 1e-4], ids=["all", "stopped"])
def test_ppo_updates_are_the_stages(ppo, target_kl):
    """From the completions to the weights, over four passes, and as far as `target_kl` lets them go."""
    trainer = ppo(
        num_ppo_epochs=4, max_steps=4, optim="sgd", learning_rate=RATE, lr_scheduler_type="constant",
        max_grad_norm=0.05, target_kl=target_kl,
    )  # fmt: skip
    model, head = ppo_parts(trainer)
    rollouts = kept_rollouts(trainer)
    trainer.train()
    before = weights(model)
    batch, _ = ppo_scored(trainer, model, head, rollouts[0])
    optimizer = torch.optim.SGD([*model.parameters(), *head.parameters()], RATE)
    logged = ppo_plain.update(model, head, optimizer, batch, ppo_args(trainer))
    assert logged["updates"] == len(trainer._updates) and (logged["updates"] < 4) == (target_kl is not None)
    wanted = weights(trainer.model)
    assert_same_way(
        before, model, {name: value for name, value in wanted.items() if "value_head" not in name}
    )
    for name, value in head.named_parameters():
        torch.testing.assert_close(value, wanted[f"value_head.{name}"], **CLOSE)


# ------------------------------------------------------------------------------ that they run, and are short


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.__name__)
def test_greedy_sampling_is_that_of_transformers(example, tiny_models):
    """Prompts of several lengths; a completion ends with its end of sequence, and nothing follows."""
    folder = tiny_models("llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():  # an end of sequence here and there
        model.get_output_embeddings().weight[tokenizer.eos_token_id] *= 3
    prompts = ["2+2=", "a longer prompt: 7*6=", "x", "why?", "because", "12 34"]
    rollout = example.sample(model, tokenizer, prompts, 12, 0.0)
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
    expected = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert rollout.tokens_B_T.tolist() == expected.tolist()
    completions = zip(
        rollout.tokens_B_T[:, -rollout.mask_B_C.shape[1] :], rollout.mask_B_C.bool(), strict=True
    )
    kept = [ids[mask].tolist() for ids, mask in completions]
    ended = [ids[-1] == tokenizer.eos_token_id for ids in kept]
    assert True in ended and False in ended
    assert all(tokenizer.eos_token_id not in ids[:-1] for ids in kept)
    assert all(end or len(ids) == 12 for end, ids in zip(ended, kept, strict=True))


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_samples_follow_the_policys_probabilities(temperature, tiny_models):
    """The first token of 4,000 completions, against the softmax of the logits: a chi-square test."""
    from scipy.stats import chisquare

    folder = tiny_models("llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(0)
    rollout = grpo_plain.sample(model, tokenizer, ["2+2="] * 4000, 1, temperature)
    ids = torch.tensor([tokenizer("2+2=", add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        wanted = (model(ids).logits[0, -1].double() / temperature).softmax(-1) * 4000
    counts = torch.bincount(rollout.tokens_B_T[:, -1], minlength=len(wanted)).double()
    common = wanted >= 5
    observed = [*counts[common].tolist(), counts[~common].sum().item()]
    assert chisquare(observed, [*wanted[common].tolist(), wanted[~common].sum().item()]).pvalue > 1e-3


@pytest.mark.parametrize(
    ("example", "size"),
    [(grpo_plain, {"num_prompts": 2, "num_generations": 4}), (ppo_plain, {"num_completions": 8})],
    ids=["grpo", "ppo"],
)
def test_an_example_trains_and_keeps_its_policy(example, size, tmp_path, capsys):
    args = example.Args(num_rollouts=1, eval_items=4, save_to=str(tmp_path), seed=1, **size)
    assert example.main(args) in (0, 0.25, 0.5, 0.75, 1)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["before:", "rollout", "after"]
    trained, start = (AutoModelForCausalLM.from_pretrained(path) for path in (tmp_path, args.model))
    away = [(a - b).abs().max() for a, b in zip(trained.parameters(), start.parameters(), strict=True)]
    assert 0 < max(away) < 0.01
    assert len(AutoTokenizer.from_pretrained(tmp_path)) == 850


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.__name__)
def test_an_example_is_one_short_file(example):
    """At most 300 lines, on PyTorch and Transformers without its Trainer; of utils/ only data and grades."""
    source = inspect.getsource(example)
    assert len(source.splitlines()) <= 300
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    own = {name for name in names if name.partition(".")[0] not in sys.stdlib_module_names}
    allowed = ("torch", "transformers.Auto", "utils.data.", "utils.grading.", "utils.frame.")
    assert own and all(name.startswith(allowed) for name in own), own


def test_what_both_examples_hold_is_the_same():
    for name in ("sample", "positions", "graded", "accuracy"):
        first, second = (inspect.getsource(getattr(example, name)) for example in EXAMPLES)
        assert first == second, f"{name} differs: copy the change into the other example"
