"""The criteria of the stages behind a comparison: counted, and named where they are not met."""

from tests.support.finished_runs import compare_methods, write_methods
from utils.frame.criteria import judged
from utils.frame.files import read_json, write_json


def state(folder, **criteria):
    manifest = read_json(folder / "manifest.json")
    write_json(folder / "manifest.json", manifest | {"criteria": criteria})


def test_what_is_not_met_is_named_in_report_and_log(tmp_path, capsys, unrendered):
    run = write_methods(tmp_path / "s0", 0)
    state(run / "03_sft", form=judged(0.5, at_least=0.9), reward=judged(0.5, above=0.0))
    state(run / "10_evaluation" / "grpo", form=judged(0.7, at_least=0.9))
    assert compare_methods(tmp_path, "--policies", "sft,ppo", seeds=False) == 0
    page = (run / "11_comparison" / "report.md").read_text()
    assert "1 of 2 acceptance criteria of the stages are met." in page  # grpo is not compared
    assert "| s0 | 03_sft | form | 0.5 | at least 0.9 | FAIL |" in page
    assert "[FAIL] s0/03_sft: form: 0.5 (at least 0.9)" in capsys.readouterr().out


def test_runs_that_state_none_have_no_section(tmp_path, unrendered):
    run = write_methods(tmp_path / "s0", 0)
    assert compare_methods(tmp_path, seeds=False) == 0
    assert "Acceptance criteria" not in (run / "11_comparison" / "report.md").read_text()


def test_what_differs_between_seeds_is_a_result(tmp_path, unrendered):
    """Runs of other seeds may meet other criteria, and still are seeds of one experiment."""
    for seed in range(3):
        run = write_methods(tmp_path / f"s{seed}", seed)
        state(run / "03_sft", form=judged(0.85 + 0.05 * seed, at_least=0.9))
    assert compare_methods(tmp_path) == 0
    page = (tmp_path / "seeds" / "11_comparison" / "report.md").read_text()
    assert "2 of 3 acceptance criteria of the stages are met." in page
