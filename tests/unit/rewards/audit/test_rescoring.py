"""The audit judges the reward that is named: after a change it rewards candidates anew, or is refused."""

import shutil
from dataclasses import asdict, replace

import pytest

from tests.support.scripts import execute_stage
from utils.data.records import load_records
from utils.frame import manifest as manifests
from utils.frame.agreement import check_reward
from utils.frame.files import UserError, read_json, read_jsonl, write_jsonl
from utils.frame.stage_plan import load_script, make_plan
from utils.grading.tasks import task_of
from utils.rewards.audit.audit_candidates import paid_otherwise, read_candidates
from utils.rewards.audit.rescoring import rescored, rewarded_otherwise
from utils.rewards.spec import RewardSpec, load_reward_spec, weights_in_force, write_reward_spec
from utils.rewards.task_reward import task_reward

BREVITY = "def own(record, completion):\n    return -len(completion) / 1000\n"
REWARD = "weights: {correctness: 1.0, format: 1.0, intrinsic: 0.5}\nown: {own: {file: FILE, weight: 0.2}}\n"


@pytest.fixture
def work(finished, tmp_path):
    """A copy of the run, to be changed."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    (tmp_path / "reward.yaml").write_text(REWARD.replace("FILE", str(tmp_path / "own.py")))
    return tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with data, a reward of one's own, and candidates as 04 would leave them: a right and a longer,
    wrong one a prompt, with a teacher's reward of -1 and -2."""
    tmp_path = tmp_path_factory.mktemp("rescored")
    (tmp_path / "own.py").write_text(BREVITY)
    (tmp_path / "reward.yaml").write_text(REWARD.replace("FILE", str(tmp_path / "own.py")))
    assert stage(tmp_path, "01_prepare_dataset.py", "--quick_test") == 0
    assert stage(tmp_path, "02_build_rewards.py", "--quick_test", *named(tmp_path)) == 0
    run_dir = tmp_path / "outputs" / "run_001"
    path, spec = run_dir / "02_rewards" / "reward_spec.yaml", spec_of(tmp_path)
    rows = []
    for record in load_records(run_dir / "01_preprocessing" / "train.jsonl")[:12]:
        gold = task_of(record.dataset).gold_completion(record)
        texts = (gold, f"no answer, and longer than {gold}")
        rows.append({"id": record.id, "level": None, "prompt": "", "candidates": []})
        for number, text in enumerate(texts, start=1):
            paid = task_reward(record, text, spec) | {"reasoning": 0.0, "own": 0.2 * -len(text) / 1000}
            paid["intrinsic"] = -0.5 * number
            raw = {"intrinsic": -1.0 * number, "reasoning": 0.0, "own": -len(text) / 1000}
            facts = {"text": text, "tokens": len(text), "truncated": False, "correct": number == 1}
            paid["total"] = sum(value for name, value in paid.items() if name != "total")
            rows[-1]["candidates"].append(facts | {"parsed": number == 1, "reward": paid, "raw": raw})
    folder = run_dir / "04_candidates"
    write_jsonl(folder / "candidates.jsonl", rows)
    inputs = manifests.describe_inputs({"reward_spec": path}, run_dir)
    config = {"options": {"split": "train", "reward": "combined"}}
    metrics = {
        "reward_weights": weights_in_force(spec, "combined"),
        "intrinsic_reward": asdict(spec.intrinsic),
    }
    made = manifests.identity("04_candidates", "", 0, config, inputs)
    outputs = manifests.describe_outputs(folder, run_dir)
    manifests.write_manifest(folder / "manifest.json", made | {"outputs": outputs, "metrics": metrics})
    return tmp_path


def stage(work, script, *argv):
    return execute_stage(script, [*argv, "--outputs_root", work / "outputs"])


def named(work):
    return ["--reward_config", str(work / "reward.yaml")]


def spec_of(work):
    return load_reward_spec(work / "outputs" / "run_001" / "02_rewards" / "reward_spec.yaml")


def audited(work):
    """The audit's figures by component."""
    return read_json(work / "outputs" / "run_001" / "02_rewards_audit" / "reward_audit.json")["components"]


def rewarded(work, spec):
    run_dir = work / "outputs" / "run_001"
    records = {each.id: each for each in load_records(run_dir / "01_preprocessing" / "train.jsonl")}
    return rescored(candidates(work), records, spec, run_dir / "04_candidates")


def candidates(work):
    return read_jsonl(work / "outputs" / "run_001" / "04_candidates" / "candidates.jsonl")


def test_an_edited_component_is_refused_until_02_has_it_and_then_computed_anew(work, capfd):
    assert stage(work, "02_build_rewards.py", "--audit", *named(work)) == 0
    assert audited(work)["own"]["pair_accuracy"]["value"] == 1.0 and "anew" not in capfd.readouterr().out
    (work / "own.py").write_text(BREVITY.replace("-len", "len"))
    assert stage(work, "02_build_rewards.py", "--audit", *named(work)) == 2
    err = capfd.readouterr().err
    assert "is not the reward that is named (input external/own.py: content changed): run `python 02_" in err
    assert stage(work, "02_build_rewards.py", "--quick_test", *named(work), "--overwrite") == 0
    assert stage(work, "02_build_rewards.py", "--audit", *named(work)) == 2  # holds the old values
    assert stage(work, "02_build_rewards.py", "--audit", *named(work), "--overwrite") == 0
    assert audited(work)["own"]["pair_accuracy"]["value"] == 0.0
    assert "the candidates are rewarded anew" in capfd.readouterr().out


@pytest.mark.parametrize("option", [["--reward.exact_match", "2"], ["--reward.weights.reasoning", "1"]])
def test_another_reward_than_the_runs_is_refused(work, capfd, option):
    assert stage(work, "02_build_rewards.py", "--audit", *named(work), *option) == 2
    assert f"({option[0][2:]}: " in capfd.readouterr().err
    assert not (work / "outputs" / "run_001" / "02_rewards_audit").exists()


def test_every_stage_that_reads_a_reward_refuses_another_that_is_named(work):
    (work / "other.yaml").write_text("exact_match: 2.0\n")
    spec = work / "outputs" / "run_001" / "02_rewards" / "reward_spec.yaml"
    for file, refused in (("other.yaml", True), ("reward.yaml", False)):
        plan = make_plan(
            load_script("04_generate_candidates.py").STAGE, ["--reward_config", str(work / file)]
        )
        plan.inputs = {"reward_spec": spec}
        if refused:
            with pytest.raises(UserError, match="not the reward that is named.*--reward_config"):
                check_reward(plan)
        else:
            check_reward(plan)


def test_options_that_the_audit_does_not_use_are_refused(work, capfd):
    assert stage(work, "02_build_rewards.py", "--audit", "--cases_per_split", "5") == 2
    assert "not for --audit" in capfd.readouterr().err


@pytest.mark.parametrize("exact", [1.0, 2.0])
def test_what_04_was_given_by_another_name_is_known_by_its_content(tmp_path, exact):
    run_dir, other = tmp_path / "run_001", tmp_path / "mine.yaml"
    spec, candidates = run_dir / "02_rewards" / "reward_spec.yaml", run_dir / "04_candidates" / "x.jsonl"
    write_reward_spec(spec, RewardSpec())
    write_reward_spec(other, RewardSpec(exact_match=exact))
    inputs = manifests.describe_inputs({"reward_spec": other}, run_dir)
    made = manifests.identity("04_candidates", "", 0, {}, inputs) | {"outputs": {}}
    manifests.write_manifest(candidates.with_name("manifest.json"), made)
    assert rewarded_otherwise(candidates, spec) == (exact != 1.0)


def test_rewards_anew_are_those_of_the_specification(work):
    """The same one gives what 04 paid; others what follows from them."""
    spec = spec_of(work)
    before = read_candidates(candidates(work)).scores
    for name, scores in read_candidates(rewarded(work, spec)).scores.items():
        assert scores == pytest.approx(before[name], abs=1e-6) or name == "reasoning", name
    heavier = replace(spec, exact_match=2.0, weights=replace(spec.weights, intrinsic=1.0))
    heavier.own["own"] = replace(spec.own["own"], weight=0.7)
    rows = rewarded(work, heavier)
    assert paid_otherwise(rows, heavier) is None
    for each in (row["candidates"][0] for row in rows):
        assert each["reward"]["exact_match"] == 2.0 and each["reward"]["intrinsic"] == -1.0
        assert each["reward"]["own"] == pytest.approx(0.7 * -len(each["text"]) / 1000)
        parts = [value for name, value in each["reward"].items() if name != "total"]
        assert each["reward"]["total"] == pytest.approx(sum(parts))


def test_what_only_the_teacher_knows_is_not_judged_by_another_reward(work):
    spec = spec_of(work)
    colder = replace(spec, intrinsic=replace(spec.intrinsic, alpha=0.5))
    scores = read_candidates(rewarded(work, colder)).scores
    assert scores["intrinsic"] == "no teacher scored the candidates" and "run 04" in scores["total"]
    alone = replace(colder, weights=replace(spec.weights, intrinsic=0.0))
    assert not isinstance(read_candidates(rewarded(work, alone)).scores["total"], str)


def test_the_warning_covers_components_and_weights(work):
    rows, spec = candidates(work), spec_of(work)
    assert paid_otherwise(rows, spec) is None
    spec.own["own"] = replace(spec.own["own"], weight=0.7)
    assert "own is -" in paid_otherwise(rows, spec)
    weights = replace(spec.weights, intrinsic=0.1)
    assert "intrinsic is -0.5" in paid_otherwise(rows, replace(spec_of(work), weights=weights))
    assert "measured by the own rewards" in paid_otherwise(rows, replace(spec, own={}))


def test_a_record_that_is_not_there_is_one_line(work):
    with pytest.raises(UserError, match="the run has no such record.*run `python 04_generate"):
        rescored(candidates(work), {}, spec_of(work), work / "r" / "04_candidates")
