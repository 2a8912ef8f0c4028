"""Training health: each rule fires on its sickness and is silent on healthy and on merely noisy curves."""

import json
import re
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from utils.frame.files import REPO_ROOT
from utils.frame.typed_settings import leaf_keys
from utils.methods.grpo.settings import GrpoAlgo
from utils.methods.ppo.settings import PpoAlgo
from utils.models.settings import ModelConfig
from utils.rewards.spec import RewardSpec
from utils.training.health.diagnose import diagnose_command
from utils.training.health.health_callback import TrainingHealth
from utils.training.health.health_rules import RULES, checks, findings
from utils.training.health.log_curves import POINTS, History, LogCurve

STEPS = 100
EXPLAINED = "explained_variance/lambda_1"  # too long for a keyword


def noise(seed, size=STEPS, correlation=0.0):
    """Standard normal noise; neighbours correlate."""
    fresh = np.random.default_rng(seed).normal(size=size)
    for index in range(1, size):
        fresh[index] = correlation * fresh[index - 1] + np.sqrt(1 - correlation**2) * fresh[index]
    return fresh


def run(seed=0, steps=STEPS, correlation=0.0, validation=20, **changed):
    """A log of stationary, noisy, healthy curves, with some replaced; None leaves a key out."""
    z = iter(noise((seed, index), steps, correlation) for index in range(20))
    right = 0.4 + 0.05 * next(z)
    curves = {
        "train_accuracy": right,
        "reward": 0.9 * right + 0.02 * next(z),
        "rewards/intrinsic/mean": 0.1 * next(z),
        "kl": 0.05 * np.exp(0.4 * next(z)),
        "entropy": 0.3 * np.exp(0.2 * next(z)),
        "grad_norm": 0.4 * np.exp(0.4 * next(z)),
        "completions/mean_length": 22 + 3 * next(z),
        "completions/clipped_ratio": np.clip(0.02 + 0.02 * next(z), 0, 1),
        "explained_variance": 0.3 + 0.2 * next(z),
        "loss": 0.05 * next(z),
        "loss/value": 0.1 * np.exp(0.4 * next(z)),
        "clip_ratio/policy": np.clip(0.1 + 0.04 * next(z), 0, 1),
        "updates_skipped": (next(z) > 1).astype(float),
        "advantages/phantom": np.clip(0.3 + 0.1 * next(z), 0, 1),
    } | changed
    curves[EXPLAINED] = curves.pop("explained_variance")
    curves = {key: np.broadcast_to(curve, steps) for key, curve in curves.items() if curve is not None}
    rows = []
    for index in range(steps):
        rows.append({"step": index + 1} | {key: float(curve[index]) for key, curve in curves.items()})
        if (index + 1) % validation == 0:
            accuracy = 0.6 + 0.03 * float(noise((seed, 99, index), 1)[0])
            rows.append({"step": index + 1, "val_accuracy": accuracy, "val_reward": accuracy})
    return rows


def line(start, end, spread=0.0, seed=50, steps=STEPS):
    return np.linspace(start, end, steps) + spread * noise(seed, steps)


def names(rows):
    return [finding.name for finding in findings(rows)]


def only(rows):
    """The one finding of these rows."""
    found = findings(rows)
    assert len(found) == 1, [finding.name for finding in found]
    return found[0]


# ------------------------------------------------------------------------------------------------- trends


@given(st.lists(st.integers(-5, 5), min_size=5, max_size=POINTS))
def test_a_trend_is_mann_kendall_and_theil_sen(values):
    """Slow reference: Kendall's tau from all pairs, the slope as the median of all pairwise slopes."""
    x, y = np.arange(len(values)) * 3.0 + 1, np.array(values, dtype=float)
    trend = LogCurve(x, y).trend()
    if len(set(values)) == 1:
        assert (trend.change, trend.p_value) == (0.0, 1.0)
        return
    pairs = [(i, j) for j in range(len(x)) for i in range(j)]
    slopes = [(y[j] - y[i]) / (x[j] - x[i]) for i, j in pairs]
    assert trend.change == pytest.approx(np.median(slopes) * (x[-1] - x[0]), abs=1e-9)
    assert trend.p_value == pytest.approx(stats.kendalltau(x, y).pvalue)
    concordant = sum(np.sign(slope) for slope in slopes)
    if trend.p_value < 0.05:
        assert np.sign(concordant) == np.sign(stats.kendalltau(x, y).statistic)


def test_a_long_curve_is_averaged_before_it_is_tested():
    """Twice the points of the same slow wave are no more evidence."""
    wave = np.cumsum(noise(3, 400)) / 20
    twice = np.repeat(wave, 2)
    p = [LogCurve(np.arange(len(y), dtype=float), y).trend().p_value for y in (wave, twice)]
    assert p[0] == pytest.approx(p[1])


def test_values_that_are_not_numbers_are_left_out_of_curves():
    rows = [{"step": 1, "kl": 0.5}, {"step": 2, "kl": None}, {"step": 3, "kl": float("nan")}, {"step": 4}]
    curve = History(rows).curve("kl")
    assert (curve.steps.tolist(), curve.values.tolist()) == ([1.0], [0.5])
    assert len(History(rows).curve("entropy")) == 0


# ---------------------------------------------------------------------------------- healthy logs are healthy


@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_stationary_noise_rarely_fires(correlation):
    """All rules together on 60 noisy but healthy logs: at most one finding."""
    fired = Counter(name for seed in range(60) for name in names(run(seed, correlation=correlation)))
    assert fired.total() <= 1, fired


def test_a_run_that_learns_is_healthy():
    """Everything moves, as it does in a good run."""
    right = line(0.3, 0.6, 0.04)
    rows = run(
        train_accuracy=right,
        reward=right + line(0, 0, 0.02, seed=1),
        kl=line(0.0, 0.15, 0.01, seed=2),
        entropy=np.geomspace(0.5, 0.2, STEPS),
        explained_variance=line(-2.0, 0.7, 0.1, seed=3) - 5.0 * (np.arange(STEPS) < 10),
        **{
            "completions/mean_length": line(15, 40, 2, seed=4),
            "loss/value": np.geomspace(1.0, 0.1, STEPS),
            "grad_norm": np.geomspace(5.0, 0.3, STEPS),
        },
    )
    for row in rows:
        if "val_accuracy" in row:
            row["val_accuracy"] = 0.5 + 0.003 * row["step"]
    assert [n for n in names(rows) if n != "explained_variance"] == []


def test_an_sft_log_is_healthy_and_judged_by_its_own_rules():
    rows = [
        {"step": step, "loss": 5.0 / step, "grad_norm": 3.0 / step + 0.2, "entropy": 2.0 / step, "epoch": 1.0}
        for step in range(1, 127)
    ]
    assert [check.name for check in checks(rows)] == ["non_finite", "gradient_spikes", "supervised_loss"]
    assert names(rows) == []


@pytest.mark.parametrize("rows", [[], [{"step": 1, "other": 3.0}], run(steps=1), run(steps=4, validation=99)])
def test_short_and_empty_logs_are_not_judged(rows):
    assert names(rows) == []


def test_rules_apply_where_their_keys_are():
    assert {check.name for check in checks(run(steps=120))} == {
        *(rule.__name__ for rule in RULES if rule.__name__ not in ("accuracy", "supervised_loss")),
        "train_accuracy",
        "val_accuracy",
    }
    assert [check.name for check in checks(run(kl=None))].count("kl_runaway") == 0


# -------------------------------------------------------------------------------------- each rule, on and off


def test_reward_rises_while_accuracy_falls():
    falling = line(0.5, 0.3, 0.05)
    finding = only(run(train_accuracy=falling, reward=line(0.2, 0.6, 0.05, seed=1)))
    assert (finding.name, finding.severity) == ("reward_without_accuracy", "serious")
    assert re.search(r"train_accuracy fell by (1[5-9]|2[0-5])\.\d points from step 1 to 100", finding.message)
    assert "while reward rose from 0.2" in finding.message
    assert "reward.weights.intrinsic" in finding.remedy


def test_the_intrinsic_part_alone_can_rise():
    rows = run(
        train_accuracy=line(0.5, 0.3, 0.05),
        reward=line(0.4, 0.4, 0.05, seed=1),
        **{"rewards/intrinsic/mean": line(-0.3, 0.1, 0.05, seed=2)},
    )
    assert "rewards/intrinsic/mean rose" in only(rows).message


def test_a_rise_before_the_fall_does_not_hide_it():
    hill = np.concatenate([np.linspace(0.3, 0.6, 50), np.linspace(0.6, 0.4, 50)]) + 0.03 * noise(7)
    finding = only(run(train_accuracy=hill, reward=line(0.2, 0.9, 0.03, seed=1)))
    assert finding.name == "reward_without_accuracy" and "from step 51 to 100" in finding.message


def test_accuracy_that_falls_with_the_reward_is_another_thing():
    falling = line(0.5, 0.3, 0.03)
    finding = only(run(train_accuracy=falling, reward=falling))
    assert (finding.name, finding.severity) == ("train_accuracy_falls", "warning")


def test_two_noisy_points_are_no_fall():
    """Reward up and accuracy down from the first to the last log, and nothing in between."""
    right, reward = np.full(STEPS, 0.4) + 0.05 * noise(1), np.full(STEPS, 0.4) + 0.05 * noise(2)
    right[0], right[-1], reward[0], reward[-1] = 0.7, 0.1, 0.1, 0.9
    assert names(run(train_accuracy=right, reward=reward)) == []


def test_validation_accuracy_alone_can_fall():
    rows = run(reward=line(0.3, 0.8, 0.02), train_accuracy=None, validation=10)
    for row in rows:
        if "val_accuracy" in row:
            row["val_accuracy"] = 0.8 - 0.002 * row["step"]
    assert only(rows).message.startswith("val_accuracy fell by 18.0 points from step 10 to 100")
    for row in rows:  # flat: nothing
        if "val_accuracy" in row:
            row["val_accuracy"] = 0.8
    assert names(rows) == []


def test_accuracy_lost_in_one_update():
    """No trend, and all the worse: here after the first log, as a learning rate far too high does it."""
    lost = np.where(np.arange(STEPS) < 1, 0.28, 0.0)
    finding = only(run(train_accuracy=lost))
    assert (finding.name, finding.severity) == ("accuracy_lost", "serious")
    assert finding.message == "train_accuracy has been 28.0 % and is 0.0 % at step 100"
    assert names(run(train_accuracy=np.where(np.arange(STEPS) < 50, 0.6, 0.15))) != []
    assert (
        names(run(train_accuracy=np.where(np.arange(STEPS) < 1, 0.2, 0.1))) == []
    )  # hardly anything to lose
    rows = [{"step": 0, "val_accuracy": 1.0}, {"step": 180, "val_accuracy": 0.0}]
    assert names(rows) == ["accuracy_lost"]
    assert names([rows[0], rows[1] | {"val_accuracy": 0.5}]) == []


def test_no_signal():
    assert names(run(frac_reward_zero_std=0.95)) == ["no_signal"]
    assert names(run(frac_reward_zero_std=0.6)) == []
    assert names(run(reward_std=0.0)) == ["no_signal"]
    assert names(run(reward_std=0.1)) == []
    constant = run(reward=-0.2, train_accuracy=0.0)
    assert "the mean reward has been -0.2 in each of the last 10 logs" in only(constant).message
    # A quick test of four steps has it in black and white.
    assert names(run(steps=4, reward=-0.2, reward_std=1e-9)) == ["no_signal"]


def test_kl_level():
    finding = only(run(kl=line(0.0, 0.9, 0.01)))
    assert finding.name == "kl_runaway" and "nats per token at step 100" in finding.message
    assert names(run(kl=line(0.0, 0.45, 0.01))) == []


def test_kl_growth():
    finding = only(run(kl=np.geomspace(0.001, 0.4, STEPS)))
    assert "multiplies" in finding.message and "at steps 26 to 51" in finding.message
    assert names(run(kl=np.geomspace(1e-5, 4e-3, STEPS))) == []  # multiplies, but far from mattering


def test_entropy():
    assert only(run(entropy=np.geomspace(0.4, 0.01, STEPS))).name == "entropy_collapse"
    assert only(run(entropy=np.geomspace(0.4, 4.0, STEPS))).name == "entropy_rises"
    assert names(run(entropy=np.geomspace(0.4, 0.15, STEPS))) == []


@pytest.mark.parametrize("end", [60, 8])
def test_length_drift(end):
    lengths = line(22, end, 1.0)
    finding = only(run(**{"completions/mean_length": lengths}))
    assert finding.name == "length_drift" and "while accuracy did not rise" in finding.message
    # Longer reasoning that makes answers right is what training is for.
    right = line(0.3, 0.6, 0.03)
    assert names(run(train_accuracy=right, reward=right, **{"completions/mean_length": lengths})) == []


def test_prompts_that_get_harder_excuse_falling_accuracy_and_longer_answers():
    """Under a curriculum the rollouts' accuracy falls because the prompts change; validation still counts."""
    right = line(0.6, 0.3, 0.03)
    harder = {"train_accuracy": right, "reward": 0.9 * right, "completions/mean_length": line(15, 30, 1.0)}
    assert {"train_accuracy_falls", "length_drift"} <= set(names(run(**harder)))
    levels = {"prompts/mean_level": line(1, 3, 0.1)}
    assert names(run(**harder, **levels)) == []
    assert "val_accuracy_falls" in names(run(**harder, **levels, val_accuracy=line(0.6, 0.3, 0.01)))
    assert "length_drift" in names(run(**harder, **{"prompts/mean_level": line(2, 2, 0.1)}))


def test_truncation():
    assert names(run(**{"completions/clipped_ratio": 0.4})) == ["truncation"]
    rising = line(0.0, 0.18, 0.01)
    assert "17 % of completions are cut" in only(run(**{"completions/clipped_ratio": rising})).message
    assert names(run(**{"completions/clipped_ratio": 0.1})) == []


def test_explained_variance():
    finding = only(run(explained_variance=line(-0.5, -0.5, 0.2)))
    assert finding.name == "explained_variance" and "to 100, median -0." in finding.message
    early = np.where(np.arange(STEPS) < 25, -3.0, 0.4)
    assert names(run(explained_variance=early)) == []  # the head has to learn first
    assert names(run(explained_variance=0.2 * noise(5) + 0.1)) == []


def test_value_loss():
    growing = {"loss/value": np.geomspace(0.05, 5.0, STEPS)}
    assert names(run(**growing)) == ["value_loss"] or names(run(**growing, explained_variance=0.1)) == [
        "value_loss"
    ]
    assert names(run(**growing, explained_variance=0.8)) == []  # returns grow, and the critic follows
    assert names(run(**{"loss/value": line(0.1, 0.2, 0.01)})) == []


def test_phantom_advantage():
    """Where accuracy rises, groups become all right, and what is left of the advantages is theirs."""
    share = {"advantages/phantom": np.clip(line(0.4, 0.8, 0.05), 0, 1)}
    found = only(run(**share))
    assert found.name == "phantom_advantage" and "algo.group_filter outcome" in found.remedy
    assert re.match(
        r"7\d % of the advantages are in groups all right or all wrong at step 100", found.message
    )
    assert names(run(train_accuracy=line(0.3, 0.8, 0.05), **share)) == []
    assert names(run(**{"advantages/phantom": np.clip(line(0.3, 0.3, 0.1), 0, 1)})) == []


def test_clip_fraction_of_ppo_and_of_grpo():
    assert names(run(**{"clip_ratio/policy": 0.5})) == ["clip_fraction"]
    grpo = {"clip_ratio/policy": None, "clip_ratio/region_mean": 0.5}
    assert "50 % of the tokens" in only(run(**grpo)).message
    assert names(run(**(grpo | {"clip_ratio/region_mean": 0.2}))) == []


def test_gradient_spikes():
    norms = 0.4 * np.exp(0.3 * noise(8))
    norms[[40, 60, 80]] = 20.0, 90.0, 30.0
    finding = only(run(grad_norm=norms))
    assert "3 gradient norms" in finding.message and "the largest is 90 at step 61" in finding.message
    norms[[40, 80]] = 0.4
    assert only(run(grad_norm=norms)).name == "gradient_spikes"  # one, but two hundred times the median
    norms[60] = 8.0
    assert names(run(grad_norm=norms)) == []


def test_updates_skipped():
    assert "in 75 % of the last 20 rollouts" in only(run(updates_skipped=np.arange(STEPS) % 4)).message
    assert names(run(updates_skipped=(np.arange(STEPS) % 4 == 0) * 3.0)) == []


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["loss", "kl", "rewards/intrinsic/mean", "loss/value"])
def test_non_finite(key, value):
    rows = run(steps=12)
    rows[7][key] = value
    finding = only(rows)
    assert (finding.name, finding.severity) == ("non_finite", "serious")
    assert finding.message.startswith(f"{key} is not a finite number at step 8 (1 such values")


def test_explained_variance_may_have_no_value():
    rows = run(steps=12)
    rows[7][EXPLAINED] = None  # all returns alike
    rows[7]["rewards/exact_match/std"] = None  # of one completion
    assert names(rows) == []


def test_supervised_loss():
    rows = [{"step": step + 1, "loss": value} for step, value in enumerate(line(0.1, 1.0, 0.02))]
    assert names(rows) == ["supervised_loss"]
    assert (
        names([row | {"reward": 0.1 * row["step"]} for row in rows]) == []
    )  # a surrogate's level says nothing


def test_the_order_is_that_of_consequence():
    rows = run(
        train_accuracy=line(0.5, 0.3, 0.03),
        reward=line(0.2, 0.6, 0.03, seed=1),
        kl=1.0,
        entropy=np.geomspace(0.4, 0.01, STEPS),
    )
    assert names(rows) == ["reward_without_accuracy", "kl_runaway", "entropy_collapse"]
    assert [finding.severity for finding in findings(rows)] == ["serious", "serious", "warning"]


def test_every_remedy_names_keys_that_exist():
    sick = [
        run(train_accuracy=line(0.5, 0.3, 0.03), reward=line(0.2, 0.6, 0.03), kl=1.0, updates_skipped=1.0),
        run(entropy=np.geomspace(0.4, 0.01, STEPS), grad_norm=np.where(np.arange(STEPS) % 30 == 29, 99, 0.4)),
        run(entropy=np.geomspace(0.4, 4.0, STEPS), explained_variance=-1.0, reward_std=0.0),
        run(**{"completions/mean_length": line(20, 80), "completions/clipped_ratio": 0.5}),
        run(
            **{"loss/value": np.geomspace(0.05, 5.0, STEPS), "clip_ratio/policy": 0.5}, explained_variance=0.1
        ),
        run(train_accuracy=line(0.5, 0.3, 0.03), reward=line(0.5, 0.3, 0.03)),
        run(steps=12, loss=float("nan"), train_accuracy=np.arange(12) < 1),
        [{"step": step, "loss": value} for step, value in enumerate(line(0.1, 1.0))],
    ]
    found = {finding.name: finding for rows in sick for finding in findings(rows)}
    assert len(found) == 16, sorted(found)
    known = {f"algo.{name}" for tier in (GrpoAlgo, PpoAlgo) for name in leaf_keys(tier)}
    known |= {f"model.{name}" for name in leaf_keys(ModelConfig)}
    known |= {f"reward.{name}" for name in leaf_keys(RewardSpec)}
    for finding in found.values():
        keys = re.findall(r"\b(?:algo|model|reward)\.[a-z_.]*[a-z]", finding.remedy)
        for key in keys:  # any ending of a full key is an option
            assert any(full.endswith(key) for full in known), (finding.name, key)
        assert keys, finding.name
        assert re.search(r"\d", finding.message), finding.message  # the figures are in it


# ------------------------------------------------------------------------------------------ while training


class Log:
    def __init__(self):
        self.lines = []
        self.metrics, self.runtime = {}, {}

    def log(self, line):
        self.lines.append(line)


def follow(rows, ctx, main=True, start=0):
    health = TrainingHealth(ctx)
    state = SimpleNamespace(log_history=list(rows[:start]), is_world_process_zero=main, global_step=0)
    for row in rows[start:]:
        state.log_history.append(row)
        health.on_log(None, state, None, logs=row)
    health.on_train_end(None, state, None)


def test_the_callback_says_each_finding_once():
    ctx = Log()
    follow(run(kl=line(0.0, 2.0, 0.01), entropy=np.geomspace(0.4, 0.01, STEPS)), ctx)
    assert [line.split(":")[0] for line in ctx.lines] == ["warning", "warning"]
    assert (
        ctx.lines[0].startswith("warning: the KL to the reference")
        and ". Try: raise algo.kl_coef" in ctx.lines[0]
    )
    assert (ctx.metrics, ctx.runtime) == ({}, {})  # nothing that a manifest would hold


def test_the_callback_is_silent_on_noise():
    """It looks every ten logs, which gives chance ten times as many chances."""
    lines = []
    for seed in range(8):
        ctx = Log()
        follow(run(seed, correlation=0.3), ctx)
        lines += ctx.lines
    assert lines == []


def test_what_one_look_sees_and_the_next_does_not_is_not_said():
    rows = run()
    for row in rows[10:20]:
        row["reward"] = 0.5
    assert names(rows[:20]) == ["no_signal"] and names(rows[:30]) == []
    ctx = Log()
    follow(rows, ctx)
    assert ctx.lines == []


def test_the_callback_says_at_the_end_what_it_saw_once():
    ctx = Log()
    follow(run(steps=4, reward=-0.2, reward_std=0.0), ctx)
    assert len(ctx.lines) == 1


@pytest.mark.parametrize(("warm_up", "said"), [(24, 1), (100, 1), (23, 0)])
def test_a_warm_up_longer_than_the_training_is_said(warm_up, said):
    ctx = Log()
    args = SimpleNamespace(get_warmup_steps=lambda steps: warm_up, learning_rate=2e-4)
    state = SimpleNamespace(max_steps=24, is_world_process_zero=True)
    TrainingHealth(ctx).on_train_begin(args, state, None)
    assert len(ctx.lines) == said
    assert all("never reaches 0.0002. Try: lower algo.warmup_steps" in line for line in ctx.lines)


def test_only_the_main_process_speaks():
    ctx = Log()
    follow(run(kl=2.0), ctx, main=False)
    assert ctx.lines == []


# ------------------------------------------------------------------------------------------------ --diagnose


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_state(path, rows, step=60, goal=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"log_history": rows, "global_step": step, "max_steps": goal}))


def test_diagnose_a_healthy_stage(tmp_path, capsys):
    write_rows(tmp_path / "05_ppo" / "logs" / "metrics.jsonl", run())
    (tmp_path / "05_ppo" / "manifest.json").write_text("{}")
    assert diagnose_command(["--diagnose", str(tmp_path / "05_ppo")]) == 0
    out = capsys.readouterr().out.replace("\n", " ").replace("  ", " ")
    assert "finished, 105 logs, steps 1 to 100" in out
    assert "kl runaway" in out and "serious" not in out and "healthy by 14 rules" in out


def test_diagnose_a_dead_run_of_few_steps(tmp_path, capsys):
    """Every group without signal is no health, however short the run."""
    dead = {"reward": -0.2, "reward_std": 0.0, "frac_reward_zero_std": 1.0, "loss": 0.0, "grad_norm": 0.0}
    write_rows(tmp_path / "metrics.jsonl", [{"step": 4, "kl": 0.0, "entropy": 1.0} | dead])
    assert diagnose_command(["--diagnose", str(tmp_path)]) == 1
    out = capsys.readouterr().out.replace("\n", " ")
    assert "warning: in 100 % of the prompts all completions get the same reward" in out
    assert "too few" in out and "1 logged, 10 needed" in out
    assert "1 problem by 2 rules; 3 had too few rows to tell" in out


def test_diagnose_few_rows_without_a_problem_says_what_it_could_not_tell(tmp_path, capsys):
    write_rows(tmp_path / "metrics.jsonl", run(steps=2))
    assert diagnose_command(["--diagnose", str(tmp_path)]) == 0
    out = capsys.readouterr().out.replace("\n", " ")
    assert "3 logs needed" in out and "healthy by 1 rule; 12 had too few rows to tell" in out


def test_diagnose_a_sick_one(tmp_path, capsys):
    write_rows(tmp_path / "metrics.jsonl", run(kl=2.0))
    file = tmp_path / "out" / "diagnosis.json"
    assert diagnose_command(["--diagnose", str(tmp_path), f"--json={file}"]) == 1
    out = capsys.readouterr().out
    assert "serious: the KL to the reference is 2.00 nats per token at step 100." in out
    assert "try: raise algo.kl_coef" in out and "1 problem by 14 rules" in out
    written = json.loads(file.read_text())
    assert (written["healthy"], written["first_step"], written["last_step"], written["logs"]) == (
        False,
        1,
        100,
        105,
    )
    sick = [check["finding"] for check in written["checks"] if check["finding"]]
    assert [finding["name"] for finding in sick] == ["kl_runaway"]
    assert set(sick[0]) == {"name", "severity", "message", "remedy"}


def test_diagnose_an_interrupted_stage_from_its_latest_resume_point(tmp_path, capsys):
    resume = tmp_path / "resume"
    write_state(resume / "checkpoint-9" / "trainer_state.json", run(kl=2.0), step=9)
    write_state(resume / "checkpoint-60" / "trainer_state.json", run())
    assert diagnose_command(["--diagnose", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "checkpoint-60" in out and "interrupted after step 60 of 100" in out


@pytest.mark.parametrize("place", ["trainer_state.json", "checkpoint-100/trainer_state.json"])
def test_diagnose_what_transformers_leaves(tmp_path, capsys, place):
    write_state(tmp_path / place, run(), step=100)
    assert diagnose_command(["--diagnose", str(tmp_path)]) == 0
    assert "finished" in capsys.readouterr().out


def test_diagnose_a_trackers_log(tmp_path, capsys):
    """Keys with "train/" before them, steps by another name, NaN written as Python does."""
    rows = [
        {"_step": row["step"], **{f"train/{key}": value for key, value in row.items() if key != "step"}}
        for row in run(steps=15)
    ]
    rows[5]["train/loss"] = float("nan")
    write_rows(tmp_path / "metrics.jsonl", rows)
    assert diagnose_command(["--diagnose", str(tmp_path)]) == 1
    assert "loss is not a finite number at step 6" in capsys.readouterr().out


@pytest.mark.slow
def test_the_script_diagnoses(tmp_path):
    write_rows(tmp_path / "metrics.jsonl", run(kl=2.0))
    command = [sys.executable, "05_train_ppo.py"]
    done = subprocess.run([*command, f"--diagnose={tmp_path}"], cwd=REPO_ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "") and "1 problem by 14 rules" in done.stdout
    helped = subprocess.run([*command, "--diagnose", "--help"], cwd=REPO_ROOT, capture_output=True, text=True)
    assert helped.returncode == 0 and "--diagnose DIR" in helped.stdout


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (lambda p: None, ["--diagnose", "{}/absent"], "no such folder"),
        (lambda p: None, ["--diagnose", "{}"], "no training log with a row in it"),
        (lambda p: write_rows(p / "metrics.jsonl", []), ["--diagnose", "{}"], "no training log with a row"),
        (lambda p: write_rows(p / "metrics.jsonl", [{"a": 1}]), ["--diagnose", "{}"], "none of the keys"),
        (lambda p: (p / "metrics.jsonl").write_text("{"), ["--diagnose", "{}"], "metrics.jsonl:1: not valid"),
        (
            lambda p: (p / "trainer_state.json").write_text("[]"),
            ["--diagnose", "{}"],
            "not a trainer's state",
        ),
        (lambda p: write_rows(p / "06_grpo/logs/metrics.jsonl", run()), ["--diagnose", "{}"], "06_grpo"),
        (lambda p: None, ["--diagnose"], "takes one training folder"),
        (lambda p: None, ["--diagnose", "{}", "--kl", "3"], "takes one training folder"),
        (lambda p: None, ["--diagnose", "{}", "extra"], "takes one training folder"),
        (lambda p: None, ["--diagnose", "{}", "--json"], "takes one training folder"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, capsys, make, arguments, message):
    make(tmp_path)
    assert diagnose_command([word.format(tmp_path) for word in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert message in captured.err
