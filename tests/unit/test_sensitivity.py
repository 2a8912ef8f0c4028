"""The study of learning rates: the rates it asks for, and the table of what came of them."""

import pytest

from runs import sensitivity
from utils.frame.files import write_json


def write_run(root, name, accuracies, rate):
    """A run with evaluated policies, and the manifest of GRPO's training."""
    for policy, value in accuracies.items():
        metrics = {"accuracy": {"value": value, "ci95": [value - 0.1, value + 0.1], "n": 100}}
        write_json(root / name / "10_evaluation" / policy / "metrics.json", metrics)
    config = {"algo": {"learning_rate": rate}}
    write_json(root / name / "06_grpo" / "manifest.json", {"outputs": {}, "config": config})


def test_rates_are_multiples_of_the_methods_own():
    own = {name: sensitivity.learning_rate(name) for name in ("grpo", "vapo", "opd", "dpo")}
    words = sensitivity.rates("thrice", list(own))
    assert words[::2] == [f"--{name}.learning_rate" for name in own]
    assert [float(word) for word in words[1::2]] == [pytest.approx(3 * rate) for rate in own.values()]
    assert own["grpo"] == 1e-3


def test_a_table_and_a_figure_over_rates_and_seeds(tmp_path, capsys, unrendered):
    for factor, value in (("third", 0.5), ("once", 0.8), ("thrice", 0.7)):
        for seed in (0, 1):
            accuracies = {"base": 0.0, "sft": 0.4, "grpo": value + 0.1 * seed}
            write_run(tmp_path, f"s_{factor}_seed_{seed}", accuracies, 1e-3 * sensitivity.FACTORS[factor])
    assert sensitivity.main(["table", str(tmp_path / "s")]) == 0
    text = (tmp_path / "s" / "sensitivity.md").read_text()
    assert text in capsys.readouterr().out
    [row] = [line for line in text.splitlines() if line.startswith("| grpo |")]
    assert [cell.split(" ")[1] for cell in row.split("|")[2:5]] == ["55.0", "85.0", "75.0"]
    assert "at 0.00033" in row and "at 0.001 " in row and "sft" not in text
    assert (tmp_path / "s" / "sensitivity.png").is_file()


def test_a_study_that_did_not_run_is_one_line(tmp_path, capsys):
    write_run(tmp_path, "s_third", {"grpo": 0.5}, 1e-3)
    for words, said in (
        (["table", str(tmp_path / "s")], "no evaluation in s_once[_seed_S]: run runs/sensitivity.sh"),
        (["rates", "twice", "grpo"], "give 'rates third|once|thrice METHOD …'"),
        (["rates", "once", "unknown"], "give 'rates"),
    ):
        assert sensitivity.main(words) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and said in error and error.count("\n") == 1
