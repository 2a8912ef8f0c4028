"""The acceptance criteria of a training, from its log."""

from utils.frame.pipeline import METHODS
from utils.training.training_criteria import training_criteria


def verdicts(method, rows, **metrics):
    found = training_criteria(METHODS[method], rows, metrics)
    return {name: each["passed"] for name, each in found.items()}


def validated(step, reward, valid=1.0):
    return {"step": step, "val_reward": reward, "val_format_valid": valid}


def test_fine_tuning():
    good = [validated(0, -0.2, 0.0), validated(4, 0.5, 0.95)]
    assert verdicts("sft", good) == {
        "answers of valid form": True,
        "validation reward over the start": True,
        "demonstrations left out": True,
    }
    bad = [validated(0, 0.5, 0.5), validated(4, 0.4, 0.95)]
    assert set(verdicts("sft", bad, left_out=3, demonstrations=7).values()) == {False}


def test_rollouts():
    rows = [validated(0, 0.1)] + [
        {"step": n, "reward": 0.1 * n, "kl": 0.01 * n, "completions/clipped_ratio": 0.0} for n in range(1, 9)
    ]
    rows.append(validated(8, 0.4))
    assert set(verdicts("grpo", rows).values()) == {True} and len(verdicts("grpo", rows)) == 4
    worse = [{**row, "reward": -row["step"], "kl": 3.0, "completions/clipped_ratio": 0.5} for row in rows]
    assert [name for name, passed in verdicts("ppo", worse).items() if not passed] == [
        "reward, last over first quarter",
        "KL to the reference, nats per token",
        "completions cut off",
    ]


def test_pairs():
    def row(step, accuracy, margin):
        return {"step": step, "val_preference_accuracy": accuracy, "val_preference_margin": margin}

    assert verdicts("dpo", [row(0, 0.5, 0.0), row(4, 0.8, 0.2)]) == {
        "preference accuracy over the start": True,
        "preference margin": True,
    }
    assert set(verdicts("dpo", [row(0, 0.5, 0.0), row(4, 0.4, -0.2)]).values()) == {False}


def test_a_log_without_validation_has_fewer():
    assert list(verdicts("sft", [{"step": 1, "loss": 1.0}])) == ["demonstrations left out"]
