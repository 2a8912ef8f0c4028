"""Distillation through the stage: what is logged, where it starts, refusals, and the choice of 03."""

from dataclasses import replace

import pytest
import torch

from tests.support.scripts import execute_stage
from tests.support.training_stages import stage_context, stage_inputs
from utils.curricula.settings import CurriculumSettings, SignalWeights
from utils.frame.files import UserError, read_jsonl
from utils.frame.stage_plan import load_script, make_plan
from utils.methods.distill.build import build_distill_trainer
from utils.methods.distill.settings import DistillAlgo
from utils.methods.sft.settings import SftAlgo
from utils.models.loading import load_policy, save_policy
from utils.training.run import train_stage

GROUPS = DistillAlgo(
    learning_rate=2e-2,
    warmup_steps=0,
    num_rollouts=3,
    per_device_train_batch_size=4,
    steps_per_generation=2,
    num_generations=4,
    num_iterations=2,
)
MIXED = replace(
    GROUPS,
    num_generations=1,
    on_policy_fraction=0.5,
    ce_weight=0.2,
    top_k=5,
    divergence="jsd",
    temperature=2.0,
)
WEIGHTS = SignalWeights(confidence_gap=1, probe_kl_drop=1)
SEC = replace(GROUPS, curriculum=CurriculumSettings(weights=WEIGHTS, probe_size=2))
UPDATES = 4  # per rollout


@pytest.fixture
def context(tiny_models, tmp_path, unrendered):
    inputs = stage_inputs(tmp_path, tiny_models("llama"))

    def make(name="out", algo=GROUPS, teacher="qwen2", **options):
        options = {"start": "sft", "curriculum": "random", **options}
        ctx = stage_context(tmp_path / name, inputs, tiny_models("llama"), algo, **options)
        ctx.config.model.model = replace(
            ctx.config.model.model, teacher_name_or_path=str(tiny_models(teacher))
        )
        return ctx

    return make


def train(ctx, *callbacks):
    """The whole of the stage, below `ctx.out`."""
    built = []

    def build(records, spec):
        trainer, tokenizer = build_distill_trainer(ctx, records, spec)
        for callback in callbacks:
            trainer.add_callback(callback)
        built.append(trainer)
        return trainer, tokenizer

    train_stage(ctx, "distill", build, {"loss": ["loss"]}, UPDATES)
    return built[0]


def test_what_is_logged_and_costs_count_samples_alone(context):
    ctx = context(algo=MIXED)
    train(ctx)
    rows = read_jsonl(ctx.out / "logs" / "metrics.jsonl")
    start, first = rows[0], next(row for row in rows if "loss" in row)
    assert start["step"] == 0 and {"val_agreement", "val_forward_kl", "val_reverse_kl"} <= start.keys()
    assert {"divergence", "agreement", "train_accuracy", "sampled_completions"} <= first.keys()
    cost = ctx.metrics["cost"]
    assert cost["sampled_completions"] == MIXED.sampled_completions == 12
    assert cost["trained_tokens"] > 2 * cost["generated_tokens"]


def test_it_draws_nearer_to_the_teacher(context):
    algo = replace(GROUPS, num_rollouts=12, learning_rate=1e-2)
    ctx = context(algo=algo)
    train(ctx)
    rows = [row for row in read_jsonl(ctx.out / "logs" / "metrics.jsonl") if "divergence" in row]
    assert rows[-1]["divergence"] < 0.7 * rows[0]["divergence"]


def test_the_base_model_gets_a_fresh_adapter(context):
    """Before the first update it says what the base model says."""
    ctx = context(start="base")
    records = [record for record in _records(ctx)]
    trainer, _ = build_distill_trainer(ctx, records, _spec(ctx))
    base, _ = load_policy(ctx.config.model.model.name_or_path, ctx.config.model.model)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        torch.testing.assert_close(trainer.model.eval()(ids).logits, base(ids).logits)
    assert any(p.requires_grad for p in trainer.model.parameters())
    assert not all(p.requires_grad for p in trainer.model.parameters())


def test_an_adapter_on_the_head_is_refused(context):
    ctx = context(start="base")
    ctx.config.model.lora = replace(ctx.config.model.lora, target_modules=["lm_head", "q_proj"])
    with pytest.raises(UserError, match="leave lm_head out of lora.target_modules"):
        build_distill_trainer(ctx, _records(ctx), _spec(ctx))


def test_a_teacher_that_is_too_short_is_refused_at_once(context, tmp_path, tiny_models):
    model, tokenizer = load_policy(tiny_models("qwen2"), context().config.model.model)
    model.config.max_position_embeddings = 24
    save_policy(model, tokenizer, tmp_path / "short")
    ctx = context()
    ctx.config.model.model = replace(ctx.config.model.model, teacher_name_or_path=str(tmp_path / "short"))
    with pytest.raises(UserError, match="generation.max_new_tokens is 8 and the teacher has 24 positions"):
        build_distill_trainer(ctx, _records(ctx), _spec(ctx))


def test_gold_text_longer_than_a_sample_is_left_out_and_said(context, capsys):
    """In training where gold text is read, and in validation; an error where that is most of it."""
    ctx = context(algo=replace(MIXED, per_device_train_batch_size=2))
    records = _records(ctx)
    longer = [replace(record, target_text="{} " * 9) for record in records]
    some = [*longer[:2], *records[2:]]
    trainer, _ = build_distill_trainer(ctx, some, _spec(ctx))
    assert (
        ctx.metrics["left_out"] == 2 and len(trainer.gold) == len(trainer.train_dataset) == len(records) - 2
    )
    assert trainer.pipeline.records == records[2:]
    assert f"2 of {len(records)} records are left out" in capsys.readouterr().out
    found = trainer.validation_metrics(some)
    assert found.pop("val_gold_left_out") == 2
    assert found == trainer.validation_metrics(records[2:])
    assert trainer.validation_metrics(longer) == {"val_gold_left_out": len(longer)}
    with pytest.raises(UserError, match="demonstrations exceed"):
        build_distill_trainer(ctx, longer, _spec(ctx))
    on_policy = context()
    assert len(build_distill_trainer(on_policy, some, _spec(on_policy))[0].train_dataset) == len(records)


def _records(ctx):
    from utils.data.records import load_records

    return load_records(ctx.inputs["train"])


def _spec(ctx):
    from utils.rewards.spec import load_reward_spec

    return load_reward_spec(ctx.inputs["reward_spec"])


# ---------------------------------------------------------------------------------------- the choice of 03

SCRIPT = load_script("03_sft_train.py")


@pytest.mark.parametrize(
    ("argv", "folder", "algo"),
    [
        ([], "03_sft", SftAlgo),
        (["--objective", "sft"], "03_sft", SftAlgo),
        (["--objective", "distill"], "03_distill", DistillAlgo),
        (["--objective=distill", "--curriculum", "sec"], "03_distill_sec", DistillAlgo),
        (["--curriculum.tau", "0.2", "--objective", "distill", "--seed", "1"], "03_distill", DistillAlgo),
    ],
)
def test_the_objective_chooses_folder_and_settings(tmp_path, argv, folder, algo):
    plan = make_plan(SCRIPT.STAGE, [*argv, "--outputs_root", str(tmp_path)])
    assert plan.out == tmp_path / "run_001" / folder and isinstance(plan.config.algo, algo)
    assert "objective" not in str(plan.config.to_dict())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--objective", "dpo"],
            '--objective must be one of sft, distill, opd, exopd, vopd, reopold, rft, found "dpo"',
        ),
        (
            ["--objective"],
            '--objective must be one of sft, distill, opd, exopd, vopd, reopold, rft, found ""',
        ),
        (["--start", "base"], "unknown option --start"),
        (["--objective", "distill", "--num_train_epochs", "2"], "unknown option --num_train_epochs"),
        (["--objective", "distill", "--on_policy_fraction", "0.5"], "needs num_generations 1"),
    ],
)
def test_mistakes_have_one_line(argv, message, capsys):
    assert execute_stage("03_sft_train.py", argv) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_help_is_of_the_chosen_stage(capsys):
    for argv, key in (
        (["--help"], "--algo.num_train_epochs"),
        (["--objective", "distill", "--help"], "--start"),
    ):
        assert execute_stage("03_sft_train.py", argv) == 0
        text = capsys.readouterr().out
        assert key in text and "--objective" in text


def test_it_reads_the_start_and_the_teacher(tmp_path):
    for argv, wanted in (
        (["--objective", "distill"], "03_sft/ckpt_sft/best"),
        (["--objective", "distill", "--start", "base"], "assets/student"),
    ):
        plan = make_plan(SCRIPT.STAGE, [*argv, "--outputs_root", str(tmp_path)])
        found = plan.stage.inputs(plan.config, plan.run_dir)
        assert found["checkpoint"].as_posix().endswith(wanted)
        assert found["teacher"].as_posix().endswith("assets/teacher")
