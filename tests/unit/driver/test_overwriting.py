"""What --overwrite redoes, and that nothing finished is touched where a step holds other work."""

from dataclasses import replace

import pytest

from tests.support.driver import executed, parse, statuses
from tests.support.finished_runs import pretend_finished
from utils.driver.execution import Execution, exit_code
from utils.driver.goal import Goal, Overrides
from utils.driver.graph import build_graph
from utils.driver.overwriting import redone, refuse_stale, say_other_code
from utils.driver.run_readme import _command
from utils.frame import manifest
from utils.frame.files import UserError, sha256_of


def steps(words, *, curricula=(), seeds=()):
    """What --overwrite redoes of PPO and GRPO, "run/step"."""
    nodes = build_graph(Goal(("ppo", "grpo"), None, curricula), Overrides(), "r", 0, seeds)
    found = redone(nodes, words)
    return ["/".join(node.key) for node in nodes if node.key in found]


def test_a_step_is_redone_with_what_rests_on_it():
    assert steps(["grpo"]) == ["r/grpo", "r/evaluate grpo", "r/compare"]
    assert steps(["10_evaluation/ppo"]) == ["r/evaluate ppo", "r/compare"]
    assert steps(["rewards"])[0] == "r/rewards" and "r/evaluate base" in steps(["rewards"])
    assert steps(["grpo,ppo"])[:2] == ["r/ppo", "r/grpo"]
    assert steps(None) == [] and len(steps([])) == 12


def test_a_variant_and_a_seed_can_be_named():
    curricula = ("random", "sec")
    assert steps(["grpo"], curricula=curricula)[:2] == ["r/grpo", "r/grpo sec"]
    assert steps(["06_grpo_sec"], curricula=curricula)[0] == "r/grpo sec"
    assert steps(["r_seed_1/06_grpo"], seeds=(0, 1)) == [
        *("r_seed_1/grpo", "r_seed_1/evaluate grpo", "r_seed_1/compare", "r/compare")
    ]
    assert len(steps(["06_grpo"], seeds=(0, 1))) == 7


def test_a_name_that_is_no_step_is_one_line():
    with pytest.raises(UserError, match='--overwrite: there is no step "grop" here.*"?grpo"?'):
        steps(["grop"])


def test_names_are_words_of_the_option():
    assert parse("--overwrite", "grpo", "sft", "--method", "grpo")[0].overwrite == ["grpo", "sft"]
    assert parse("--method", "grpo", "--overwrite")[0].overwrite == []
    assert parse("--method", "grpo")[0].overwrite is None
    assert _command(["--overwrite", "grpo", "--method", "grpo", "--overwrite"]) == "--method grpo"


def with_seed(fake, name):
    """The steps, of which one is asked for another seed than it was run with."""
    return [replace(n, argv=(*n.argv, "--seed", "1")) if n.step.name == name else n for n in fake.nodes]


def test_other_work_stops_the_driver_before_anything_runs(fake):
    Execution(fake.nodes).run()
    before, calls = sha256_of(fake.out), fake.calls()
    assert set(refuse_stale(fake.nodes, ())) == {node.key for node in fake.nodes}
    nodes = with_seed(fake, "b")
    with pytest.raises(UserError, match=r"r/05_ppo_b holds other work \(seed: 0 -> 1\).*--overwrite b redo"):
        refuse_stale(nodes, ())
    assert sha256_of(fake.out) == before and fake.calls() == calls
    # What the advice names is enough.
    redo = redone(nodes, ["b"])
    known = refuse_stale(nodes, redo)
    outcomes = Execution(nodes, overwrite=redo, known=known).run()
    assert statuses(outcomes) == "a:up to date b:done c:up to date d:done"
    assert fake.calls() == [*calls, "b", "d"]


def test_a_step_whose_inputs_are_to_be_made_anew_is_judged_by_its_settings(fake):
    Execution(fake.nodes).run()
    (fake.out / "05_ppo_a" / "manifest.json").unlink()
    assert refuse_stale(fake.nodes, ()) == {}
    with pytest.raises(UserError, match=r"05_ppo_d holds other work \(seed: 0 -> 1\)"):
        refuse_stale(with_seed(fake, "d"), ())


def test_the_advice_names_the_first_of_what_follows_each_other(fake):
    Execution(fake.nodes).run()
    nodes = [replace(node, argv=(*node.argv, "--seed", "1")) for node in fake.nodes]
    with pytest.raises(UserError, match="--overwrite a redoes"):
        refuse_stale(nodes, ())
    with pytest.raises(UserError, match="--overwrite b c redoes"):
        refuse_stale([fake.nodes[0], *nodes[1:]], ())


def test_a_comparison_is_kept_where_a_step_turns_out_to_hold_other_work(stages, capsys):
    """Its inputs have changed while the driver ran."""
    stages.statuses = {"06_grpo": "stale: input 03_sft/ckpt_sft/best: content changed"}
    nodes, outcomes = executed(Goal(("ppo", "grpo")))
    assert outcomes["r/ppo"].ok and outcomes["r/compare"].status == "blocked"
    ran = [name for name, _ in stages.commands]
    assert "06_train_grpo.py" not in ran and "11_compare_runs.py" not in ran and stages.failed() == {}
    assert exit_code(nodes, {tuple(key.split("/")): each for key, each in outcomes.items()}) == 2
    assert "grpo failed: 06_grpo: holds other work (input 03_sft" in capsys.readouterr().err


def test_a_mistake_in_what_is_redone_keeps_the_step_and_the_comparison(stages, tmp_path):
    stages.codes = {"06_grpo": 2}
    pretend_finished(tmp_path / "r" / "06_grpo")
    _, outcomes = executed(Goal(("ppo", "grpo")), overwrite=True)
    assert outcomes["r/compare"].status == "blocked" and stages.failed() == {}
    stages.codes = {"06_grpo": 1}  # a crash is told in the comparison
    _, outcomes = executed(Goal(("ppo", "grpo")), overwrite=True)
    assert outcomes["r/compare"].ok and list(stages.failed()) == ["grpo"]


def test_a_step_that_cannot_be_redone_is_as_it_was(fake):
    Execution(fake.nodes).run()
    (fake.control / "b").write_text("mistake")
    outcomes = Execution(fake.nodes, overwrite=redone(fake.nodes, ["b"])).run()
    assert statuses(outcomes) == "a:up to date b:failed c:up to date d:blocked" and outcomes["r", "b"].stale
    assert set(refuse_stale(fake.nodes, ())) == {node.key for node in fake.nodes}


def test_what_other_code_ran_is_said_or_refused(fake, capsys, monkeypatch):
    Execution(fake.nodes).run()
    capsys.readouterr()
    say_other_code(fake.nodes, (), strict=True)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(manifest, "code_sha256", lambda: "0" * 64)
    redo = redone(fake.nodes, ["b"])
    say_other_code(fake.nodes, redo, strict=False)
    line = "the code has changed since these ran, which are kept (--strict_code refuses): 05_ppo_a, 05_ppo_c"
    assert capsys.readouterr().out == f"{line}\n"
    with pytest.raises(UserError, match="since 05_ppo_a, 05_ppo_c ran, .* --overwrite a redoes them"):
        say_other_code(fake.nodes, redo, strict=True)
