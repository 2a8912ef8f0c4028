"""The reward audit: figures against slow references, intervals against a plain bootstrap, what is null."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tests.support.scripts import execute_stage
from utils.frame import manifest as manifests
from utils.frame.files import UserError, read_json, write_jsonl
from utils.rewards.audit.audit import FEWEST_PROMPTS, RESAMPLES, audit, audit_lines, write_audit
from utils.rewards.audit.audit_candidates import paid_otherwise
from utils.rewards.spec import RewardSpec, RewardWeights, write_reward_spec
from utils.statistics.ranking import auroc, within_group_accuracy
from utils.statistics.ranking_intervals import (
    all_alike_bound,
    draw_prompts,
    over_resamples,
    percentile_interval,
    weighted_auroc,
    weighted_spearman,
)

COMPONENTS = ("exact_match", "numeric_match", "program_partial", "format_penalty")


def candidate(correct, tokens=10, intrinsic=None, **reward):
    paid = (
        dict.fromkeys((*COMPONENTS, "reasoning", "intrinsic"), 0.0) | {"exact_match": float(correct)} | reward
    )
    return {
        "text": "",
        "tokens": tokens,
        "truncated": False,
        "correct": bool(correct),
        "parsed": True,
        "reward": paid | {"total": sum(paid.values())},
        "raw": {"intrinsic": intrinsic, "reasoning": 0.0},
    }


def rows_of(prompts, levels=None):
    levels = levels or [None] * len(prompts)
    return [
        {"id": f"p{index}", "level": level, "prompt": "", "candidates": list(candidates)}
        for index, (candidates, level) in enumerate(zip(prompts, levels, strict=True))
    ]


def noisy_rows(seed=0, prompts=40, group=6, skill=1.0, length_effect=0.0, levels=None):
    """Random right and wrong candidates; intrinsic = skill * right - length_effect * tokens + noise."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(prompts):
        right, tokens = rng.random(group) < 0.5, rng.integers(5, 40, group)
        intrinsic = skill * right - length_effect * tokens + rng.normal(size=group)
        made.append([candidate(*values) for values in zip(right, tokens.tolist(), intrinsic, strict=True)])
    return rows_of(made, levels)


def flat(rows, key):
    return np.array([key(c) for row in rows for c in row["candidates"]])


def prompt_numbers(rows):
    return np.repeat(np.arange(len(rows)), [len(row["candidates"]) for row in rows])


# ------------------------------------------------------------------------------------- weighted statistics

small = st.integers(-3, 3)
weighted = st.lists(st.tuples(small, small, st.booleans(), st.integers(0, 3)), min_size=2, max_size=12)


@given(weighted)
def test_weights_count_candidates_as_often_as_they_say(items):
    """A weight of 3 is the same as three copies, for which scipy and a double loop are the truth."""
    x, y, right, weight = (np.array(column) for column in zip(*items, strict=True))
    weights = np.column_stack([weight, np.ones(len(x))]).astype(float)
    aurocs = weighted_auroc(x.astype(float), right.astype(bool), weights)
    correlations = weighted_spearman(x, y, weights)
    for column, counts in enumerate((weight, np.ones(len(x), dtype=int))):
        a, b, c = (np.repeat(values, counts) for values in (x, y, right.astype(bool)))
        pairs = [(p > n) + (p == n) / 2 for p in a[c] for n in a[~c]]
        if pairs:
            assert aurocs[column] == pytest.approx(np.mean(pairs), abs=1e-12)
        else:
            assert np.isnan(aurocs[column])
        if len(set(a)) > 1 and len(set(b)) > 1:
            assert correlations[column] == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-9)
        else:
            assert np.isnan(correlations[column])


def test_blocks_of_resamples_are_invisible(monkeypatch):
    rng = np.random.default_rng(0)
    prompt = np.repeat(np.arange(9), 4)
    draws, x, y = draw_prompts(9, 50, rng), rng.normal(size=36), rng.normal(size=36)
    whole = over_resamples(lambda w: weighted_spearman(x, y, w), draws, prompt)
    monkeypatch.setattr("utils.statistics.ranking_intervals._BLOCK", 36 * 7)
    assert np.array_equal(whole, over_resamples(lambda w: weighted_spearman(x, y, w), draws, prompt))
    assert whole.shape == (50,) and draws.sum(axis=0).tolist() == [9] * 50


def test_the_interval_is_a_bootstrap_over_prompts():
    """Against scipy's bootstrap of the ratio of pairs won to pairs, prompts drawn as wholes."""
    rows = noisy_rows(prompts=60)
    won, pairs = [], []
    for row in rows:
        scores = [(c["raw"]["intrinsic"], c["correct"]) for c in row["candidates"]]
        above = [p > n for p, right in scores if right for n, wrong in scores if not wrong]
        won.append(sum(above))
        pairs.append(len(above))
    expected = stats.bootstrap(
        (np.array(won), np.array(pairs)),
        lambda a, b, axis: a.sum(axis=axis) / b.sum(axis=axis),
        paired=True,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    figure = audit(rows, seed=0, resamples=5_000)["components"]["intrinsic"]["pair_accuracy"]
    assert figure["value"] == pytest.approx(sum(won) / sum(pairs), abs=1e-6)
    assert figure["ci95"] == pytest.approx([expected.low, expected.high], abs=0.006)


def test_candidates_of_one_prompt_are_not_taken_as_independent():
    """The same eight answers copied: no new information, so the interval must not shrink."""
    rows = noisy_rows(prompts=30)
    copied = [row | {"candidates": row["candidates"] * 4} for row in rows]
    one, four = (audit(given, 0)["components"]["intrinsic"]["auroc"] for given in (rows, copied))
    width = [high - low for low, high in (one["ci95"], four["ci95"])]
    assert four["value"] == pytest.approx(one["value"], abs=1e-6)
    assert width[1] == pytest.approx(width[0], rel=0.05)


def test_intervals_cover_the_truth():
    """A score that knows the prompt alone ranks at 0.5: about 190 of 200 intervals hold it
    (here within 3.5 standard deviations of the binomial)."""
    covered = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        prompt, right = np.repeat(np.arange(40), 6), rng.random(240) < 0.5
        score = np.repeat(rng.normal(size=40), 6) + rng.normal(size=240)
        draws = draw_prompts(40, 200, rng)
        values = over_resamples(lambda w, s=score, r=right: weighted_auroc(s, r, w), draws, prompt)
        low, high = percentile_interval(values)
        covered += low <= 0.5 <= high
    assert 179 <= covered <= 199


def test_bound_of_all_alike_is_the_exact_binomial_one():
    for units in (10, 40, 310):
        exact = stats.binomtest(units, units).proportion_ci(0.95, method="exact").low
        assert all_alike_bound(units) == pytest.approx(exact, abs=1e-12)


def test_percentile_interval_leaves_out_resamples_without_a_value():
    values = np.r_[np.arange(1001.0), np.full(50, np.nan)]
    assert percentile_interval(values) == pytest.approx((25, 975))


# ----------------------------------------------------------------------------------------------- the audit


def test_values_are_those_of_the_ranking_functions_and_scipy():
    rows = noisy_rows(skill=0.7, length_effect=0.05)
    right = flat(rows, lambda c: c["correct"])
    tokens = flat(rows, lambda c: c["tokens"])
    raw = flat(rows, lambda c: c["raw"]["intrinsic"])
    components = audit(rows, 0)["components"]
    for name, score in (("intrinsic", raw), ("intrinsic_per_token", raw / tokens), ("brevity", -tokens)):
        found = components[name]
        assert found["auroc"]["value"] == pytest.approx(auroc(score, right), abs=1e-6)
        expected = within_group_accuracy(score, right, prompt_numbers(rows).tolist())
        assert found["pair_accuracy"]["value"] == pytest.approx(expected, abs=1e-6)
        expected = stats.spearmanr(score, right).statistic
        assert found["correctness"]["value"] == pytest.approx(expected, abs=1e-6)
        if name != "brevity":
            expected = stats.spearmanr(score, tokens).statistic
            assert found["length"]["all"]["value"] == pytest.approx(expected, abs=1e-6)
            expected = stats.spearmanr(score[~right], tokens[~right]).statistic
            assert found["length"]["wrong"]["value"] == pytest.approx(expected, abs=1e-6)


def test_phantom_advantage_is_that_of_grpo():
    """Against advantages by loops; of a reward by verdicts alone there is none."""
    rows = noisy_rows(skill=0.7)
    inside = whole = 0.0
    for row in rows:
        scores = [each["raw"]["intrinsic"] for each in row["candidates"]]
        right = {each["correct"] for each in row["candidates"]}
        mass = sum(abs(score - np.mean(scores)) / (np.std(scores, ddof=1) + 1e-4) for score in scores)
        whole += mass
        inside += mass * (len(right) == 1)
    components = audit(rows, 0)["components"]
    assert components["intrinsic"]["phantom"]["value"] == pytest.approx(inside / whole, abs=1e-6)
    assert 0.02 < inside / whole < 0.98
    assert components["exact_match"]["phantom"]["value"] == 0.0
    assert_null(components["reasoning"]["phantom"], "no prompt's candidates differ in it")
    assert "% of its advantages are in prompts all right or all wrong" in components["total"]["sentence"]


def test_within_prompt_differs_from_overall_where_prompts_differ():
    """Easy prompts score high for right and wrong alike: AUROC is fooled, pairs of one prompt are not."""
    easy = [candidate(True, intrinsic=10.0)] * 7 + [candidate(False, intrinsic=10.0)]
    hard = [candidate(True, intrinsic=1.0)] + [candidate(False, intrinsic=1.0)] * 7
    found = audit(rows_of([easy, hard] * 10), 0)["components"]["intrinsic"]
    assert found["pair_accuracy"]["value"] == 0.5
    assert found["auroc"]["value"] == pytest.approx(0.875)
    assert found["verdict"] == "no_evidence"


def test_levels_are_audited_apart_and_counted():
    good = noisy_rows(1, prompts=20, skill=8.0)
    bad = noisy_rows(2, prompts=20, skill=-8.0)
    rows = [row | {"level": 1} for row in good] + [row | {"level": 10} for row in bad]
    result = audit(rows, 0)
    levels = result["components"]["intrinsic"]["levels"]
    assert levels["1"]["pair_accuracy"]["value"] > 0.95 > 0.05 > levels["10"]["pair_accuracy"]["value"]
    assert list(levels) == ["1", "10"]
    for key in ("prompts", "candidates", "right", "wrong", "pairs", "mixed_prompts"):
        assert result["counts"][key] == sum(counts[key] for counts in result["levels"].values())
    assert result["levels"]["1"]["prompts"] == 20
    right = sum(c["correct"] for row in rows for c in row["candidates"])
    assert (result["counts"]["right"], result["counts"]["candidates"]) == (right, 240)


def test_one_level_alone_is_not_repeated():
    assert audit(noisy_rows(levels=[2] * 40), 0)["levels"] == {}


@pytest.mark.parametrize(
    ("options", "verdict"),
    [
        ({"skill": 3.0}, "worth_optimising"),
        ({"skill": 0.0}, "no_evidence"),
        ({"skill": -3.0}, "misleading"),
        ({"skill": 1.0, "length_effect": 0.1}, "length_proxy"),
    ],
)
def test_verdicts(options, verdict):
    result = audit(noisy_rows(3, prompts=150, **options), 0)
    found = result["components"]["intrinsic"]
    assert found["verdict"] == verdict
    warned = any(line.startswith("intrinsic:") for line in result["warnings"])
    assert warned == (verdict != "worth_optimising")


def test_the_task_rewards_parts_are_judged_by_what_they_are():
    near = candidate(False, numeric_match=0.8)
    prompts = [[candidate(True), near, candidate(False, format_penalty=-0.2)]] * 12
    components = audit(rows_of(prompts), 0)["components"]
    verdicts = {name: found["verdict"] for name, found in components.items()}
    assert verdicts["exact_match"] == "verification"
    assert verdicts["numeric_match"] == "partial_credit"
    assert components["numeric_match"]["pair_accuracy"]["value"] == 0.25
    assert components["format_penalty"]["pair_accuracy"]["value"] == 0.75
    assert components["total"]["pair_accuracy"] == {"value": 1.0, "ci95": [0.735352, 1.0], "reason": None}


def test_sentences_say_the_figures():
    rows = rows_of([[candidate(True, 10, 1.0), candidate(False, 20, 2.0), candidate(False, 30, 0.0)]] * 20)
    sentence = audit(rows, 0)["components"]["intrinsic"]["sentence"]
    assert sentence == (
        "intrinsic: ranks right above wrong in 50 % of pairs (50 to 50), strongly tracks length (-0.50); "
        "not told from chance: not worth optimising on this evidence"
    )


def test_no_rounding_to_certainty():
    found = audit(noisy_rows(5, prompts=200, skill=4.0), 0)["components"]["intrinsic"]
    assert found["pair_accuracy"]["value"] < 1
    assert "in 100 %" not in found["sentence"]


# ------------------------------------------------------------------------------- what cannot be computed


def assert_null(figure, reason):
    assert figure == {"value": None, "ci95": None, "reason": reason}


@pytest.mark.parametrize(
    ("right", "reason"),
    [((True, True), "every candidate is right"), ((False, False), "no candidate is right")],
)
def test_all_right_or_all_wrong(right, reason, tmp_path):
    made = [candidate(value, tokens, 0.1 * tokens) for value, tokens in zip(right, (5, 9), strict=True)]
    result = write_audit(rows_of([made] * 15, [1, 2, 3] * 5), tmp_path, 0)
    for found in result["components"].values():
        assert_null(found["pair_accuracy"], reason)
        assert_null(found["auroc"], reason)
        assert found["verdict"] in ("not_auditable", "reference")
    assert result["components"]["intrinsic"]["length"]["all"]["value"] == 1.0
    assert (tmp_path / "reward_audit.png").stat().st_size > 1000


def test_constant_component():
    components = audit(rows_of([[candidate(True), candidate(False)]] * 12), 0)["components"]
    assert_null(components["reasoning"]["pair_accuracy"], "every candidate gets 0")
    assert_null(components["reasoning"]["length"]["all"], "every candidate gets 0")
    assert "cannot be audited (every candidate gets 0)" in components["reasoning"]["sentence"]
    assert_null(components["brevity"]["auroc"], "every candidate gets -10")
    assert_null(components["exact_match"]["length"]["all"], "every candidate has the same length")


def test_no_mixed_prompt():
    """AUROC over all candidates exists, pairs of one prompt do not."""
    prompts = [[candidate(True, 5, 1.0)] * 2, [candidate(False, 9, 0.0)] * 2] * 12
    found = audit(rows_of(prompts), 0)["components"]["intrinsic"]
    assert found["auroc"]["value"] == 1.0
    assert_null(found["pair_accuracy"], "no prompt has both right and wrong candidates")
    assert found["verdict"] == "not_auditable"


def test_no_teacher():
    rows = rows_of([[candidate(True), candidate(False)]] * 12)
    for absent in (rows, [json.loads(json.dumps(row).replace('"raw"', '"other"')) for row in rows]):
        components = audit(absent, 0)["components"]
        for name in ("intrinsic", "intrinsic_per_token"):
            assert_null(components[name]["pair_accuracy"], "no teacher scored the candidates")
            assert_null(components[name]["length"]["wrong"], "no teacher scored the candidates")


def test_too_few_prompts_for_an_interval(tmp_path):
    """A figure, but no interval and no verdict from nine prompts."""
    rows = noisy_rows(prompts=FEWEST_PROMPTS - 1, skill=9.0)
    found = write_audit(rows, tmp_path, 0)["components"]["intrinsic"]
    assert found["pair_accuracy"]["value"] > 0.9 and found["pair_accuracy"]["ci95"] is None
    assert found["pair_accuracy"]["reason"].startswith("no interval: it rests on 9 prompts")
    assert found["verdict"] == "too_few"


def test_a_single_candidate(tmp_path):
    result = write_audit(rows_of([[candidate(True, intrinsic=-1.0)]]), tmp_path, 0)
    assert result["counts"]["candidates"] == 1
    assert_null(result["components"]["intrinsic"]["length"]["all"], "fewer than three candidates")


def test_an_empty_completion_has_a_per_token_score():
    rows = rows_of([[candidate(False, 0, 0.0), candidate(True, 4, -2.0), candidate(False, 4, -8.0)]] * 12)
    found = audit(rows, 0)["components"]["intrinsic_per_token"]
    assert found["pair_accuracy"]["value"] == 0.5  # below the empty one, above the other


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["reward"].pop("total"), "candidates of p3: no 'total'"),
        (lambda c: c.pop("tokens"), "candidates of p3: no 'tokens'"),
        (lambda c: c.update(reward=None), "candidates of p3: "),
        (lambda c: c["reward"].update(total=None), "candidates of p3: "),
        (lambda c: c["reward"].update(total=float("nan")), "candidates of p3: total is nan"),
        (lambda c: c["raw"].update(intrinsic=float("-inf")), "candidates of p3: intrinsic is -inf"),
        (lambda c: c["raw"].update(intrinsic=None), "candidates of p3: no raw intrinsic, others have one"),
    ],
)
def test_rows_that_are_not_candidates_with_rewards(change, message):
    rows = noisy_rows(prompts=5)
    change(rows[3]["candidates"][1])
    with pytest.raises(UserError) as error:
        audit(rows, 0)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


@pytest.mark.parametrize("rows", [[], [{"id": "p", "level": None, "candidates": []}]])
def test_no_candidates(rows):
    with pytest.raises(UserError, match="no candidates to audit"):
        audit(rows, 0)


# ---------------------------------------------------------------------------------------------- the files


@pytest.mark.slow
def test_equal_rows_and_seed_give_equal_bytes(tmp_path):
    rows = noisy_rows(levels=[1, 2] * 20)
    written = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_audit(rows, tmp_path / name, 0)
        files = sorted((tmp_path / name).iterdir())
        assert [file.name for file in files] == ["reward_audit.json", "reward_audit.png"]
        written.append([file.read_bytes() for file in files])
    assert written[0] == written[1]
    assert json.loads(written[0][0]) != audit(rows, 1)
    result = json.loads(written[0][0])
    assert (result["schema_version"], result["seed"], result["resamples"]) == (1, 0, RESAMPLES)
    assert written[0][1].startswith(b"\x89PNG")


# -------------------------------------------------------------------------------- 02_build_rewards.py --audit


def stage_run(tmp_path, rows, **weights):
    """A run with a finished 02 and 04 as far as the audit looks at them."""
    run_dir = tmp_path / "run_001"
    spec = replace(RewardSpec(), weights=RewardWeights(**weights))
    write_reward_spec(run_dir / "02_rewards" / "reward_spec.yaml", spec)
    write_jsonl(run_dir / "04_candidates" / "candidates.jsonl", rows)
    for folder in ("02_rewards", "04_candidates"):
        identity = manifests.identity(folder, "", 0, {}, {})
        outputs = manifests.describe_outputs(run_dir / folder, run_dir)
        manifests.write_manifest(
            run_dir / folder / "manifest.json",
            identity | {"run_id": "run_001", "metrics": {}, "outputs": outputs, "environment": {}},
        )
    return run_dir


def audit_stage(tmp_path, *options):
    return execute_stage("02_build_rewards.py", ["--audit", "--outputs_root", tmp_path, *options])


def test_what_cannot_be_audited_is_said_once(tmp_path):
    rows = noisy_rows()
    for row in rows:
        row["candidates"] = [each | {"correct": False} for each in row["candidates"]]
    components = audit(rows, 0, resamples=10)["components"]
    [line] = audit_lines(components)
    assert line.endswith(": cannot be audited (no candidate is right)")
    assert line.count(", ") + 1 == len(components) - 1 and "brevity" not in line  # which is no reward


@pytest.mark.usefixtures("unrendered")
def test_stage_audits_the_runs_candidates(tmp_path, capsys):
    run_dir = stage_run(tmp_path, noisy_rows(levels=[1, 2] * 20))
    assert audit_stage(tmp_path) == 0
    out = run_dir / "02_rewards_audit"
    result = read_json(out / "reward_audit.json")
    said = capsys.readouterr().out
    able = [each for each in result["components"].values() if each["verdict"] != "not_auditable"]
    assert len(able) > 3 and all(f"  {each['sentence']}\n" in said for each in able)
    assert said.count("cannot be audited (every candidate gets 0)") == 1
    assert "warning" not in said
    manifest = read_json(out / "manifest.json")
    assert set(manifest["inputs"]) == {"02_rewards/reward_spec.yaml", "04_candidates/candidates.jsonl"}
    assert set(manifest["outputs"]) == {f"02_rewards_audit/reward_audit.{kind}" for kind in ("json", "png")}
    value = result["components"]["intrinsic"]["auroc"]["value"]
    assert manifest["metrics"]["intrinsic"]["auroc"] == value > 0.5


@pytest.mark.usefixtures("unrendered")
def test_stage_audits_a_file(tmp_path):
    run_dir = stage_run(tmp_path, noisy_rows(0))
    write_jsonl(tmp_path / "mine.jsonl", noisy_rows(1))
    assert audit_stage(tmp_path, "--candidates", str(tmp_path / "mine.jsonl")) == 0
    written = read_json(run_dir / "02_rewards_audit" / "reward_audit.json")
    assert written == audit(noisy_rows(1), 0)


@pytest.mark.usefixtures("unrendered")
def test_stage_says_if_the_specification_is_not_what_paid(tmp_path, capsys):
    stage_run(tmp_path, noisy_rows(), correctness=0.5)
    assert audit_stage(tmp_path) == 0
    assert re.search(r"warning: candidates of p\d+: exact_match is 1, .* gives 0.5", capsys.readouterr().out)


def test_a_part_that_was_not_paid_is_no_contradiction():
    rows = rows_of([[candidate(True, exact_match=0.0), candidate(False, format_penalty=-0.2)]])
    assert paid_otherwise(rows, RewardSpec()) is None
    assert "format_penalty is -0.2" in paid_otherwise(rows, RewardSpec(format_penalty=-0.5))


def test_stage_without_candidates_says_what_to_run(tmp_path, capsys):
    run_dir = stage_run(tmp_path, noisy_rows())
    shutil.rmtree(run_dir / "04_candidates")
    assert audit_stage(tmp_path) == 2
    assert "run `python 04_generate_candidates.py --run_id run_001" in capsys.readouterr().err


def test_candidates_without_audit_is_a_mistake(tmp_path, capsys):
    arguments = ["--candidates", "mine.jsonl", "--outputs_root", str(tmp_path)]
    assert execute_stage("02_build_rewards.py", arguments) == 2
    assert "candidates is for --audit alone" in capsys.readouterr().err
