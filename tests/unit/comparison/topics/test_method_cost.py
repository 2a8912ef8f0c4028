"""What methods cost: sums made by hand, one budget or not, and seconds kept out of manifests."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.finished_runs import (
    KEYS,
    RIGHT,
    compare_methods,
    folders_in,
    trained,
    write_methods,
    write_stage,
)
from utils.comparison.failed_policies import failed_policies
from utils.comparison.report import summary_table, table_by_run
from utils.comparison.seed_runs import find_seed_runs
from utils.comparison.topic import Comparison
from utils.comparison.topics import method_cost
from utils.comparison.topics.method_cost import MethodCost, cost_section, costs_of, tuning_trials
from utils.comparison.topics.timing import PHASES, Seconds, times_of, timing_document, timing_rows
from utils.documents.document import section_markdown
from utils.evaluation.policy_names import find_evaluations
from utils.frame.failures import Failure, forget_failures, read_failures, write_failures
from utils.frame.files import UserError, read_csv, write_json
from utils.frame.manifest import is_output

# -------------------------------------------------------------------------------------------- counts


def test_cost_is_the_sum_over_the_stages_after_sft_that_a_policy_rests_on(outputs):
    found = trained(outputs / "s0", outputs / "s2")
    assert [list(each.stages) for each in (found[name][0] for name in RIGHT)] == [
        [],
        ["03_sft"],
        ["05_ppo"],  # the run holds candidates too, but PPO does not rest on them
        ["06_grpo"],
        ["04_candidates", "08_preferences", "09_dpo"],
    ]
    costs = costs_of(found)
    assert costs["sft"] == [MethodCost(0, 0, 500), MethodCost(0, 2, 520)]
    assert costs["ppo"] == [MethodCost(64, 1200, 4800), MethodCost(64, 1202, 4820)]
    assert costs["dpo"] == [MethodCost(64, 1300, 700), MethodCost(64, 1304, 740)]
    assert costs["base"][0].problem == "not trained in its run"


@pytest.mark.parametrize("bad", [None, (64, 1200, -1), (64, 1.5, 3), (True, 1, 2)])
def test_a_stage_that_did_not_count_leaves_blanks_and_no_zero(tmp_path, bad):
    run = write_methods(tmp_path / "old", 0, counts={"04_candidates": bad})
    found = trained(run)
    cost = costs_of(found)["dpo"][0]
    assert (cost.sampled_completions, cost.generated_tokens, cost.trained_tokens) == (None, None, None)
    assert cost.problem.startswith("04_candidates was run by code that did not count")
    assert costs_of(found)["ppo"][0] == MethodCost(64, 1200, 4800)
    text = section(found)
    assert "| dpo | 04_candidates + 08_preferences + 09_dpo | – | – | – |" in text
    assert "No counts (–) for dpo: 04_candidates was run by code" in text
    assert "ppo and grpo sampled 64 completions each. How many dpo sampled is not known." in text
    rows, columns = table(run)
    assert columns == [*KEYS, "tuning_trials"] and rows["dpo"] == dict.fromkeys(columns, "")


def test_how_many_settings_were_tried_stands_beside_the_cost(outputs):
    found = trained(outputs / "s0", outputs / "s2")
    for each, said in zip(found["grpo"], (3, 3), strict=True):
        each.stages["06_grpo"]["config"]["algo"] = {"tuning": {"trials": said}}
    assert tuning_trials(found["grpo"]) == 3 and tuning_trials(found["ppo"]) is None
    lines = section(found).splitlines()
    assert next(line for line in lines if line.startswith("| grpo |")).endswith("| 3 |")
    assert next(line for line in lines if line.startswith("| ppo |")).endswith("| – |")
    found["grpo"][1].stages["06_grpo"]["config"]["algo"] = {"tuning": {"trials": 4}}
    assert tuning_trials(found["grpo"]) is None


def section(found, items=None, **more):
    items = items or {name: ["a", "b"] for name in found}
    return section_markdown(cost_section(found, more.pop("costs", costs_of(found)), items, False))


def table(*runs):
    """What the topic puts in summary.csv: policy -> its row, and the columns."""
    topic = method_cost.topic(Comparison(folders_in(*runs), {}, {}, []))
    rows, columns = summary_table({"method_cost": topic})
    return dict(zip(topic.columns, rows, strict=True)), columns


def test_counts_over_seeds_are_means_with_each_seeds_beside(outputs):
    found = trained(*(outputs / f"s{seed}" for seed in range(3)))
    text = section(found)
    assert "| ppo | 05_ppo | 64 | 1,201 (1,200 / 1,201 / 1,202) | 4,810 (4,800 / 4,810 / 4,820) |" in text
    assert "| base | – | – | – | – |" in text
    runs = [outputs / f"s{seed}" for seed in range(3)]
    rows, _ = table(*runs)
    assert rows["dpo"] == dict(zip(KEYS, (64, 1302, 720), strict=True)) | {"tuning_trials": ""}
    rows, _ = table_by_run({"": method_cost.topic(Comparison(folders_in(*runs), {}, {}, []))})
    assert [row["trained_tokens"] for row in rows[6:9]] == [4800, 4810, 4820]
    assert rows[0]["trained_tokens"] == ""


def budget(found, **sampled):
    costs = {name: [MethodCost(n, 1, 1) for n in counts] for name, counts in sampled.items()}
    return section({name: found[name] for name in sampled}, costs=costs).split("\n\n")[1]


def test_one_budget_is_said_only_where_it_is_so(outputs):
    found = trained(outputs / "s0", outputs / "s1")
    same = budget(found, sft=(0, 0), ppo=(64, 64), dpo=(64, 64))
    assert same.startswith("**One budget**: ppo and dpo sampled 64 completions each with every seed.")
    assert same.endswith("All 3 policies answered the same 2 test items.")
    other = budget(found, ppo=(64, 64), grpo=(4096, 64), dpo=(64, 64))
    assert other.startswith("**Not one budget**: the methods sampled different numbers of completions")
    assert "(ppo 64; grpo 4,096 / 64; dpo 64)" in other
    # Every method lacks the same completions with one seed: not one budget either.
    assert budget(found, ppo=(64, 32), grpo=(64, 32)).startswith("**Not one budget**")
    assert "ppo samples completions: 64." in budget(found, sft=(0, 0), ppo=(64, 64))
    assert budget(found, sft=(0, 0)) == "No method that is compared samples completions to learn from."


def test_other_test_items_are_told(outputs):
    found = trained(outputs / "s0", policies=("sft", "ppo"))
    text = section(found, items={"sft": ["a", "b"], "ppo": ["a", "c", "d"]})
    assert "**Not the same test items**: the policies answered different ones (sft 2; ppo 3)." in text
    # The same number of others is no equal set.
    assert "**Not the same" in section(found, items={"sft": ["a", "b"], "ppo": ["a", "c"]})
    assert "same 2 test items" in section(found, items={"sft": ["a", "b"], "ppo": ["b", "a"]})


def test_of_a_checkpoint_the_whole_training_is_counted_and_that_is_said(outputs):
    inputs = ["01_preprocessing/test.jsonl", "06_grpo/ckpt_grpo/step_8"]
    write_stage(outputs / "s0", "10_evaluation/grpo_step_8", 0, inputs=inputs)
    found = trained(outputs / "s0", policies=("grpo", "grpo_step_8"))
    assert costs_of(found)["grpo_step_8"] == costs_of(found)["grpo"]
    assert "Of grpo_step_8, one checkpoint of a training, the whole training is counted." in section(found)


# ------------------------------------------------------------------------------------------- seconds


def test_seconds_are_summed_and_what_the_phases_leave_is_other(outputs):
    found = trained(outputs / "s0")
    times = times_of(found)
    assert times["ppo"] == [Seconds(8.0, 10.0, 20.0, 45.0)] and times["ppo"][0].other == 7.0
    # 04 + 08 + 09; 08 has no phases and is none of the others' fault.
    assert times["dpo"] == [Seconds(9.0, 4.0, 6.0, 29.0)] and times["dpo"][0].other == 10.0
    rows = timing_rows(found, times)
    assert [row["seconds"] for row in rows] == ["", 50.0, 45.0, 30.0, 29.0]
    text = timing_document(found, times, figure=False).markdown()
    assert "| dpo | 9 | 4 | 6 | 10 | 29 |" in text and "base of `s0`: not trained in its run" in text


def test_seconds_that_are_not_known_are_said_not_guessed(outputs):
    def rewrite(stage, **changes):
        path = outputs / "s0" / stage / "runtime.json"
        write_json(path, json.loads(path.read_text()) | changes)

    rewrite("05_ppo", seconds_by_phase={})
    rewrite("06_grpo", sessions=["a", "b"], seconds=4.0)
    (outputs / "s0" / "08_preferences" / "runtime.json").unlink()
    (outputs / "s0" / "03_sft" / "runtime.json").write_text("{")
    times = {name: of[0] for name, of in times_of(trained(outputs / "s0")).items()}
    assert (times["ppo"].total, times["ppo"].sampling, times["ppo"].other) == (45.0, None, None)
    assert times["grpo"].total == 23.5 and times["grpo"].note == "06_grpo was interrupted: at least so many"
    assert times["dpo"] == Seconds(note="08_preferences has no runtime.json that can be read")
    assert times["sft"].total is None and "03_sft" in times["sft"].note


def test_phases_are_those_that_trainers_measure():
    from utils.training import cost

    assert PHASES == cost.PHASES and set(KEYS) == set(cost.Cost().counts())


def test_only_a_stages_own_timing_is_no_output():
    assert not any(is_output(Path(f"timing.{kind}")) for kind in ("csv", "md", "png"))
    assert all(is_output(Path(name)) for name in ("timing.json", "timings.csv", "a/timing.csv", "report.md"))


# --------------------------------------------------------------------------------------------- stage


@pytest.mark.slow
@pytest.mark.usefixtures("unrendered")
def test_the_comparison_is_the_same_whatever_the_seconds(outputs, capsys):
    assert compare_methods(outputs) == 0
    out = outputs / "seeds" / "11_comparison"
    first = {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and path.name not in ("stage.log", ".lock")
    }
    listed = json.loads(first["manifest.json"])["outputs"]
    assert {name.split("/", 1)[1] for name in listed} - {"report.html"} == {
        *(
            "summary.csv",
            "summary.json",
            "by_seed.csv",
            "pairs.csv",
            "curves.csv",
            "changes.jsonl",
            "report.md",
        ),
        *("comparison.png", "level_heatmap.png", "curves.png", "plots/efficiency_vs_quality.png"),
    }
    assert {"timing.csv", "timing.md", "timing.png"} <= set(first)
    for path in outputs.glob("s*/0*/runtime.json"):
        runtime = json.loads(path.read_text())
        write_json(path, runtime | {"seconds": 3 * runtime["seconds"]})
    assert compare_methods(outputs) == 0 and "up to date" in capsys.readouterr().out
    assert compare_methods(outputs, "--overwrite") == 0
    changed = {name for name, data in first.items() if (out / name).read_bytes() != data}
    assert changed == {"timing.csv", "timing.md", "timing.png", "runtime.json"}
    (out / "timing.md").unlink()  # not an output, so its loss is no damage
    assert compare_methods(outputs) == 0 and "up to date" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("unrendered")
def test_the_report_and_summary_hold_the_counts(outputs):
    assert compare_methods(outputs) == 0
    out = outputs / "seeds" / "11_comparison"
    report = (out / "report.md").read_text()
    assert "**One budget**: ppo, grpo and dpo sampled 64 completions each with every seed." in report
    assert "All 5 policies answered the same 60 test items." in report
    assert "(plots/efficiency_vs_quality.png)" in report and "(timing.md)" in report
    assert report.lower().count("seconds") == 1
    rows = {row["policy"]: row for row in read_csv(out / "summary.csv")}
    assert [rows["dpo"][key] for key in KEYS] == ["64", "1302", "720"] and rows["base"][
        "trained_tokens"
    ] == ""
    assert {row["status"] for row in rows.values()} == {"ok"}
    by_seed = [row["trained_tokens"] for row in read_csv(out / "by_seed.csv") if row["policy"] == "ppo"]
    assert by_seed == ["4800", "4810", "4820"]


@pytest.mark.usefixtures("unrendered")
def test_a_run_that_was_copied_without_its_runtimes_is_compared_all_the_same(outputs):
    for path in outputs.glob("s0/0*/runtime.json"):
        path.unlink()
    assert compare_methods(outputs, seeds=False) == 0
    out = outputs / "s0" / "11_comparison"
    assert "05_ppo has no runtime.json that can be read" in (out / "timing.md").read_text()
    assert not (out / "timing.png").exists()
    report = (out / "report.md").read_text()
    assert "| ppo | 05_ppo | 64 | 1,200 | 4,800 |" in report and "each seed" not in report


# ------------------------------------------------------------------------------------------- failures


def note(run_dir, *failures):
    """Write what the driver would: policy, reason and, of several runs, the run."""
    write_failures(run_dir, [Failure(policy, "08_preferences", *rest) for policy, *rest in failures])


def asked(**options):
    return SimpleNamespace(**{"runs": [], "policies": [], "metrics": [], "results": [], **options})


def test_failures_are_those_of_the_runs_and_policies_that_are_asked_for(tmp_path):
    assert failed_policies(tmp_path, asked()) == {}
    note(tmp_path, ("rloo", "loss is nan: step 7"), ("dpo", "no pairs"))
    assert list(failed_policies(tmp_path, asked()).items()) == [
        ("rloo", "loss is nan: step 7"),
        ("dpo", "no pairs"),
    ]
    assert failed_policies(tmp_path, asked(policies=["sft", "dpo"])) == {"dpo": "no pairs"}
    # Failures of this run say nothing of other runs, nor of metrics from elsewhere.
    assert failed_policies(tmp_path, asked(runs=["a", "b"])) == {}
    assert failed_policies(tmp_path, asked(metrics=["m.json"])) == {}
    assert failed_policies(tmp_path, asked(metrics=["m.json"], policies=["dpo"])) == {"dpo": "no pairs"}


def test_a_policy_that_failed_in_any_run_names_the_runs(tmp_path):
    runs = asked(runs=["x_s0", "x_s1", "x_s2"], policies=["sft", "dpo"])
    note(tmp_path, ("dpo", "too few pairs", "s1"), ("dpo", "no pairs", "s0"), ("ppo", "nan", "s0"))
    assert failed_policies(tmp_path, runs) == {"dpo": "too few pairs (s1); no pairs (s0)"}
    note(tmp_path, ("dpo", "no pairs", "s1"), ("dpo", "no pairs", "s0"), ("", "no data", "s2"))
    assert failed_policies(tmp_path, runs) == {"dpo": "no pairs (s1, s0)", "s2": "no data"}


def test_a_stage_that_finishes_has_not_failed(tmp_path):
    note(tmp_path, ("dpo", "no pairs"), ("dpo", "no pairs", "s0"))
    forget_failures(tmp_path, "09_dpo")
    assert len(read_failures(tmp_path)) == 2
    forget_failures(tmp_path, "08_preferences")  # of this run; another's stays
    assert [each.name for each in read_failures(tmp_path)] == ["s0/dpo"]
    note(tmp_path)
    assert not (tmp_path / "failed.json").exists()


@pytest.mark.parametrize("text", ["{", "[1]", '[{"policy": "dpo"}]', "{}3", "3"])
def test_a_damaged_note_is_refused(tmp_path, text):
    (tmp_path / "failed.json").write_text(text)
    with pytest.raises(UserError, match="failed.json"):
        failed_policies(tmp_path, asked())


def test_a_failed_policy_may_be_missing_and_no_other(outputs):
    failures = {"rloo": "loss is nan"}
    found = find_seed_runs(outputs / "x", ["s0", "s1"], ["sft", "rloo", "ppo"], failures)
    assert list(found.folders) == ["sft", "ppo"] and found.failed == {"rloo": "loss is nan"}
    assert list(find_evaluations(outputs / "s0", [], ["sft", "rloo"], {"rloo"})) == ["sft"]
    for policies in (["sft", "rloo", "distill"], ["distill"]):
        with pytest.raises(UserError, match="no finished evaluation of 'distill'"):
            find_seed_runs(outputs / "x", ["s0", "s1"], policies, failures)
    with pytest.raises(UserError, match="nothing to compare in .*: rloo failed") as error:
        find_evaluations(outputs / "s0", [], ["rloo"], {"rloo"})
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.usefixtures("unrendered")
def test_a_policy_that_failed_with_one_seed_is_compared_with_none(outputs, capsys):
    note(outputs / "seeds", ("dpo", "3 pairs, needs 8", "s1"))
    assert compare_methods(outputs) == 0
    out = outputs / "seeds" / "11_comparison"
    rows = read_csv(out / "summary.csv")
    assert [(row["policy"], row["status"]) for row in rows][-1] == ("dpo", "failed")
    assert rows[-1]["reason"] == "3 pairs, needs 8 (s1)" and rows[-1]["accuracy"] == ""
    report = (out / "report.md").read_text()
    assert "| dpo | – failed: 3 pairs, needs 8 (s1) |" in report
    assert "- Failed, and compared in no run: dpo: 3 pairs, needs 8 (s1)." in report
    assert "sft → dpo" not in report and "6 pairs of this comparison" in report
    assert "dpo                  failed: 3 pairs, needs 8 (s1)" in capsys.readouterr().out
    metrics = json.loads((out / "manifest.json").read_text())["metrics"]
    assert metrics["dpo"] == {"failed": "3 pairs, needs 8 (s1)"} and metrics["ppo"]["seeds"] == 3


@pytest.mark.usefixtures("unrendered")
def test_failures_of_one_run_are_shown_and_an_old_evaluation_is_not(outputs, capsys):
    note(outputs / "s0", ("dpo", "too few pairs"), ("rloo", "not written"))
    assert compare_methods(outputs, seeds=False) == 0
    out = outputs / "s0" / "11_comparison"
    rows = [(row["policy"], row["status"], row["n"]) for row in read_csv(out / "summary.csv")]
    assert rows[-2:] == [("rloo", "failed", ""), ("dpo", "failed", "")] and rows[2] == ("ppo", "ok", "60")
    report = (out / "report.md").read_text()
    assert "| rloo |  | – failed: not written |" in report and "ppo → dpo" not in report
    assert "failed.json" in json.loads((out / "manifest.json").read_text())["inputs"]
    capsys.readouterr()
    note(outputs / "s0", ("rloo", "not written"))
    assert compare_methods(outputs, seeds=False) == 2  # what was compared has changed
    assert "holds other work (input 09_dpo" in capsys.readouterr().err
    assert compare_methods(outputs, "--overwrite", seeds=False) == 0
    assert "ppo → dpo" in (out / "report.md").read_text()
