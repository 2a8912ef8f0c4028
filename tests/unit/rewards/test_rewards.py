"""Grades and rewards of completions, the reward specification, and stage 02."""

import importlib
import json
from dataclasses import asdict, astuple, replace
from typing import get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.data.records import Record
from utils.frame.config import StageConfig
from utils.frame.files import UserError, read_json
from utils.frame.stage import StageContext
from utils.grading.grade import grade
from utils.grading.tasks import task_of
from utils.grading.tasks.finqa import FinqaTask, parse_completion
from utils.rewards.intrinsic import FORMS
from utils.rewards.spec import (
    AdaptiveSection,
    IntrinsicSection,
    RewardSpec,
    RewardWeights,
    load_reward_spec,
    paid_weights,
    verified,
    write_reward_spec,
)
from utils.rewards.task_reward import COMPONENTS, task_reward
from utils.rewards.unit_cases import build_cases, run_case

FINQA = Record(
    id="A/2001/page_1.pdf-1",
    dataset="finqa",
    question="what was the growth?",
    input_text="",
    target_text='{"program": "subtract(120, 100), divide(#0, 100)", "answer": "0.2"}',
    target_answer="0.2",
    target_program="subtract(120, 100), divide(#0, 100)",
    table=[["", "2001"], ["cash", "7"]],
    source="train.json#0",
)
YES = replace(FINQA, target_program="greater(2, 1)", target_answer="yes")
SAMPLE = replace(
    FINQA,
    dataset="sample",
    target_text='{"evidence": "cash 120", "program": "subtract(100, 120), divide(#0, 100)"}',
)
GSM8K = Record("g", "gsm8k", "", "", "20-2=18\n#### 18", "18")
MATH = Record("m", "math", "", "", r"so $\boxed{\frac{1}{2}}$", r"\frac{1}{2}")
SPEC = RewardSpec()


def completion(program: str, answer: str = "0.2") -> str:
    return json.dumps({"program": program, "answer": answer})


# ------------------------------------------------------------------------------------------------ format


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('{"program": "add(1, 2)", "answer": "3"}', ""),
        (' \n{"answer": "3", "program": "add(1, 2)", "note": 5}\n', ""),
        ('{"program": "add(1, 2)"}', "missing_field:answer"),
        ('{"program": "", "answer": "3"}', "missing_field:program"),
        ('{"program": " ", "answer": "3"}', "missing_field:program"),
        ('{"program": "add(1, 2)", "answer": "N/A"}', "missing_field:answer"),
        ('{"program": "add(1, 2)", "answer": 3}', "missing_field:answer"),
        ('{"program": ["add(1, 2)"], "answer": "3"}', "missing_field:program"),
        ('{"program": "add(1, 2)", "answer": "3"} done', "not_json"),
        ('Sure: {"program": "add(1, 2)", "answer": "3"}', "not_json"),
        ('{"program": "add(1, 2)", "answer": "3"}{}', "not_json"),
        ('{"program": "add(1, 2)", "program": "x", "answer": "3"}', "not_json"),
        ('{"program": "add(1, 2)", "answer": "3", "n": NaN}', "not_json"),
        ("{'program': 'add(1, 2)', 'answer': '3'}", "not_json"),
        ('{"program": "add(1, 2)", "answer": "3"', "not_json"),
        ('[{"program": "add(1, 2)"}]', "not_json"),
        ('"add(1, 2)"', "not_json"),
        ("", "not_json"),
        ("[" * 10_000, "not_json"),
        ("x" * 50_000, "too_long"),
    ],
)
def test_the_form_of_a_completion(text, error):
    assert parse_completion(text, ("program", "answer"))[1] == error


# ----------------------------------------------------------------------------------------------- rewards


def rewards(record: Record, text: str, spec: RewardSpec = SPEC) -> tuple[float, ...]:
    paid = task_reward(record, text, spec)
    assert paid["total"] == pytest.approx(sum(paid[name] for name in COMPONENTS))
    return tuple(pytest.approx(paid[name]) for name in COMPONENTS)


@pytest.mark.parametrize(
    ("record", "text", "expected"),
    [
        # exact, numeric, partial, format
        (FINQA, FINQA.target_text, (1.0, 0, 0, 0)),
        (FINQA, completion("divide(1, 5)"), (1.0, 0, 0, 0)),  # by value, not by program
        (FINQA, completion("divide(1, 5)", "0.7"), (1.0, 0, 0, 0)),  # the answer field is not graded
        (FINQA, completion("divide(1, 2)", "0.2"), (0, 0, 0, 0)),
        (FINQA, completion("divide(1, 5.2)"), (0, 0.8, 0, 0)),  # 0.19231, 4 % off
        (FINQA, completion("divide(1, 5.3)"), (0, 0, 0, 0)),  # 0.18868, 6 % off
        (FINQA, completion("divide(20, 1)"), (0, 0, 0, 0)),  # percent for fraction: tolerant only
        (FINQA, completion("subtract(120, 100), divide(#0, 120)"), (0, 0, 0.15, 0)),
        (FINQA, completion("subtract(120, 100)"), (0, 0, 0.15, 0)),
        (FINQA, completion("subtract(100, 120), divide(#0, 100)"), (0, 0, 0.15, 0)),
        (FINQA, completion("subtract(120, 100), divide(#0, 0)"), (0, 0, 0.15, 0)),  # no value
        (FINQA, completion("divide(1,5)"), (0, 0, 0, 0)),
        (FINQA, '{"program": "divide(1, 5)"}', (1.0, 0, 0, -0.2)),
        (FINQA, '{"answer": "0.2"}', (0, 0, 0, -0.2)),
        (FINQA, FINQA.target_text + " x", (0, 0, 0, -0.2)),
        (FINQA, '{"program": "N/A", "answer": "N/A"}', (0, 0, 0, -0.2)),
        (FINQA, "", (0, 0, 0, -0.2)),
        (YES, completion("greater(5, 3)", "yes"), (1.0, 0, 0, 0)),
        (YES, completion("greater(3, 5)", "yes"), (0, 0, 0, 0)),
        (YES, completion("add(1, 0)", "yes"), (0, 0, 0, 0)),
        (SAMPLE, task_of("sample").gold_completion(SAMPLE), (1.0, 0, 0, 0)),
        (SAMPLE, SAMPLE.target_text, (0, 0, 0.15, 0)),  # a demonstration that slips
        (SAMPLE, '{"program": "divide(1, 5)"}', (1.0, 0, 0, 0)),  # evidence is not required
        (SAMPLE, '{"evidence": "cash 120"}', (0, 0, 0, -0.2)),
        (GSM8K, GSM8K.target_text, (1.0, 0, 0, 0)),
        (GSM8K, "#### 18.", (0, 0.8, 0, 0)),
        (GSM8K, "It is $18.", (0, 0.8, 0, -0.2)),
        (GSM8K, "#### 18.5", (0, 0.8, 0, 0)),
        (GSM8K, "#### 19", (0, 0, 0, 0)),
        (GSM8K, "", (0, 0, 0, -0.2)),
        (MATH, MATH.target_text, (1.0, 0, 0, 0)),
        (MATH, r"\boxed{0.5}", (1.0, 0, 0, 0)),
        (MATH, r"\boxed{0.6}", (0, 0, 0, 0)),
        (MATH, r"$\frac{1}{2}$", (0, 0, 0, -0.2)),
        (MATH, r"\boxed{}", (0, 0, 0, -0.2)),
        (replace(MATH, target_answer="100"), r"\boxed{99}", (0, 0.8, 0, 0)),
    ],
)
def test_components(record, text, expected):
    assert rewards(record, text) == expected


def test_weights_and_amounts_come_from_the_specification():
    spec = RewardSpec(
        exact_match=2.0,
        numeric_match=0.5,
        numeric_tolerance=0.1,
        weights=RewardWeights(correctness=0.5, format=3.0),
    )
    assert rewards(FINQA, FINQA.target_text, spec) == (1.0, 0, 0, 0)
    assert rewards(FINQA, completion("divide(1, 5.3)"), spec) == (0, 0.25, 0, 0)
    assert rewards(FINQA, completion("subtract(120, 100)"), spec) == (0, 0, 0.075, 0)
    assert rewards(FINQA, "", spec) == (0, 0, 0, pytest.approx(-0.6))


def test_what_has_no_weight_is_paid_plain_zeros():
    nothing = RewardSpec(weights=RewardWeights(correctness=0.0, format=0.0))
    for text in (FINQA.target_text, completion("subtract(120, 100)"), ""):
        assert str(list(task_reward(FINQA, text, nothing).values())) == str(
            [0.0] * 5
        )  # and none of them -0.0


def test_a_zero_gold_is_near_nothing_but_itself():
    zero = replace(FINQA, target_answer="0")
    assert rewards(zero, completion("subtract(1, 1)")) == (1.0, 0, 0, 0)
    assert rewards(zero, completion("divide(1, 10000)")) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    "record",
    [
        replace(FINQA, target_answer=""),
        replace(FINQA, target_answer="nan"),
        replace(GSM8K, target_answer="many"),
        replace(MATH, target_answer=" "),
        replace(MATH, dataset="aime"),
    ],
)
@pytest.mark.parametrize("text", ["", "#### 18", r"\boxed{}"])
def test_an_unusable_gold_is_an_error_naming_the_record(record, text):
    with pytest.raises(UserError, match=record.source or record.id):
        task_reward(record, text, SPEC)


def test_an_unreadable_gold_program_is_an_error_where_program_accuracy_is_asked_for():
    record = replace(FINQA, target_program="subtract(120,100)")
    assert grade(record, FINQA.target_text, program_accuracy=False).correct
    with pytest.raises(UserError, match=r"train\.json#0.*gold program"):
        grade(record, FINQA.target_text)


def test_grades_carry_official_measures_and_reasons():
    right = grade(FINQA, FINQA.target_text)
    assert right.official == {"execution_match": True, "program_match": True, "program_match_only": False}
    assert (right.failure, right.format_error, right.value, right.relative_error) == ("", "", 0.2, 0.0)
    by_value = grade(FINQA, completion("divide(1, 5)"))
    assert by_value.correct and not by_value.official["program_match"]
    percent = grade(FINQA, completion("divide(20, 1)"))
    assert percent.tolerant and not percent.correct and percent.failure == "wrong_value"
    assert grade(FINQA, completion("divide(1, 0)")).failure == "program:division_by_zero"
    assert grade(FINQA, "words").failure == "not_json"
    assert grade(GSM8K, "#### $18").failure == "wrong_form"
    assert grade(GSM8K, "no idea").failure == "no_number"
    assert grade(MATH, "no idea").failure == "no_box"
    assert grade(MATH, r"\boxed{" + "5" * 2000 + "}").failure == "not_comparable"


def test_a_matching_program_with_another_value_is_flagged():
    graded = grade(replace(FINQA, target_answer="0.3"), FINQA.target_text)
    assert graded.official == {"execution_match": False, "program_match": True, "program_match_only": True}


def test_official_token_predictions():
    tokens = ["subtract(", "120", "100", ")", "divide(", "#0", "100", ")"]
    assert task_of("finqa").grade_program(FINQA, [*tokens, "EOF"]).correct
    assert task_of("finqa").grade_program(FINQA, tokens).value == 20.0  # without EOF the last step is lost
    assert task_of("finqa").grade_program(FINQA, []).failure == "program:empty"


@given(
    st.sampled_from([FINQA, YES, SAMPLE, GSM8K, MATH]),
    st.one_of(
        st.text(max_size=40),
        st.text(alphabet='{}":, programnswe#$\\boxd18()', max_size=60),
        st.text(alphabet="ad(), #012%tble_sumcsh", max_size=40).map(lambda text: completion(text)),
    ),
)
def test_no_completion_raises_and_none_but_a_right_one_earns_the_most(record, text):
    paid = task_reward(record, text, SPEC)
    assert paid["total"] <= SPEC.exact_match
    right = grade(record, text, program_accuracy=False).correct
    assert (paid["exact_match"] > 0) == right
    assert right or paid["total"] < SPEC.exact_match


# ----------------------------------------------------------------------------------------- specification


def test_the_specification_is_written_and_read_back(tmp_path):
    spec = RewardSpec(
        numeric_match=0.4,
        weights=RewardWeights(intrinsic=0.3, correctness=0.7),
        intrinsic=IntrinsicSection(form="bellman", normaliser="robust", clip=2.0, missing_eos_penalty=0.5),
        adaptive=AdaptiveSection(enabled=True, rate=0.2),
        required_fields=["program"],
    )
    write_reward_spec(tmp_path / "reward_spec.yaml", spec)
    assert load_reward_spec(tmp_path / "reward_spec.yaml") == spec


def test_the_shipped_configurations():
    combined, task, intrinsic = (
        load_reward_spec(f"configs/rewards/{name}.yaml") for name in ("combined", "task", "intrinsic")
    )
    assert combined == RewardSpec() and combined.weights.intrinsic > 0
    assert task == replace(combined, weights=replace(combined.weights, intrinsic=0.0))
    assert intrinsic == replace(combined, weights=RewardWeights(1.0, 0.0, 0.0, 0.0))


def test_choices_are_those_of_the_modules_that_read_them():
    assert get_args(get_type_hints(IntrinsicSection)["form"]) == FORMS


def test_what_each_reward_pays():
    spec = RewardSpec(weights=RewardWeights(0.1, 0.2, 0.3, 0.4))
    paid = [astuple(paid_weights(spec, reward)) for reward in ("task", "intrinsic", "combined")]
    assert paid == [(0.0, 0.2, 0.3, 0.4), (0.1, 0.0, 0.0, 0.0), (0.1, 0.2, 0.3, 0.4)]


@pytest.mark.parametrize(
    ("weights", "tested"),
    [
        ((0.1, 0.2, 0.3, 0.4), (0.0, 0.2, 0.0, 0.4)),
        ((0.1, 0.2, 0.3, 0.0), (0.0, 0.2, 0.0, 0.0)),
        ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 1.0)),
    ],
)
def test_validation_pays_for_what_can_be_verified_and_for_nothing_else(weights, tested):
    """With the specification's weights, or where correctness has none, with the default ones."""
    spec = RewardSpec(exact_match=3.0, weights=RewardWeights(*weights))
    assert verified(spec) == replace(spec, weights=RewardWeights(*tested))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("exact_macth: 1.0", "exact_match"),
        ("exact_match: lots", "exact_match"),
        ("exact_match: 0", "exact_match"),
        ("numeric_match: 1.0", "numeric_match must be .* below exact_match"),
        ("program_partial: -0.1", "program_partial"),
        ("numeric_tolerance: 1.5", "numeric_tolerance"),
        ("format_penalty: 0.2", "format_penalty"),
        ("weights: {format: -1}", "format"),
        ("weights: {correctness: -1}", "correctness must be at least 0"),
        ("weights: {intrinsic: 0, correctness: 0, reasoning: 0, format: 0}", "at least one weight"),
        ("weights: {intrinsik: 1}", "weights.intrinsik.*intrinsic"),
        ("intrinsic: 0.5", "intrinsic.* must hold a mapping"),
        ("intrinsic: {form: belman}", "bellman"),
        ("intrinsic: {alpha: 0}", "alpha must be above 0"),
        ("intrinsic: {normaliser: zscore}", "z_score"),
        ("intrinsic: {scope: all}", "batch, running"),
        ("intrinsic: {clip: 0}", "clip must be above 0"),
        ("intrinsic: {missing_eos_penalty: -1}", "missing_eos_penalty must be at least 0"),
        ("adaptive: {rate: 0}", "rate must be above 0"),
        ("adaptive: {minimum_factor: 0.5, initial_factor: 0.4}", "minimum_factor <= initial_factor"),
        ("adaptive: {initial_factor: 1.5}", "initial_factor"),
        ("required_fields: program", "required_fields"),
    ],
)
def test_a_bad_specification_is_one_clear_error(tmp_path, text, message):
    path = tmp_path / "reward.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=f"reward.yaml.*{message}"):
        load_reward_spec(path)


# -------------------------------------------------------------------------------------------------- cases


@pytest.mark.parametrize("record", [FINQA, YES, SAMPLE, GSM8K, MATH], ids=lambda record: record.dataset)
@pytest.mark.parametrize(
    "weights", [RewardWeights(), RewardWeights(0.1, 0.5, 0.2, 2.0)], ids=["one", "other"]
)
def test_every_case_gets_what_it_expects(record, weights):
    fields = ["program"] if record is SAMPLE else ["program", "answer"]
    spec = replace(SPEC, weights=weights, required_fields=fields)
    cases = build_cases(record, spec)
    assert len({case.id for case in cases}) == len(cases) > 5
    assert [case.id for case in cases if not run_case(case, record, spec)["passed"]] == []


def test_expectations_are_weighted():
    spec = replace(
        SPEC, weights=RewardWeights(correctness=0.5, format=2.0), required_fields=["program", "answer"]
    )
    expected = {case.id.split("/")[-1]: case.expected for case in build_cases(FINQA, spec)}
    nothing = dict.fromkeys(COMPONENTS, 0.0)
    assert expected["gold"] == nothing | {"exact_match": 0.5}
    assert expected["near"] == nothing | {"numeric_match": 0.4}
    assert expected["refers_to_itself"] == nothing | {"program_partial": pytest.approx(0.1)}
    assert expected["without_answer"] == nothing | {"exact_match": 0.5, "format_penalty": -0.4}


def test_cases_catch_a_specification_that_pays_otherwise():
    cases = build_cases(FINQA, replace(SPEC, required_fields=["program", "answer"]))
    richer = replace(SPEC, numeric_match=0.9, required_fields=["program", "answer"])
    failed = [case.id for case in cases if not run_case(case, FINQA, richer)["passed"]]
    assert failed == [f"{FINQA.id}/near"]


# --------------------------------------------------------------------------------------------- stage 02


def run_stage(tmp_path, records: list[Record], spec=SPEC, **options) -> tuple[int, StageContext]:
    stage = importlib.import_module("02_build_rewards")
    tmp_path.mkdir(exist_ok=True)
    inputs = {}
    for split in stage.SPLITS:
        inputs[split] = tmp_path / f"{split}.jsonl"
        inputs[split].write_text("".join(json.dumps(record.to_json()) + "\n" for record in records))
    out = tmp_path / "02_rewards"
    out.mkdir(parents=True)
    config = StageConfig(reward=spec, options=stage.Options(**options))
    ctx = StageContext(config, "run_001", tmp_path, out, False, inputs)
    return stage.run(ctx), ctx


@pytest.mark.parametrize("taught", [["program"], ["program", "answer"], ["evidence", "answer", "program"]])
def test_the_fields_to_fill_are_those_that_are_taught(tmp_path, taught):
    target = json.loads(FINQA.target_text) | {"evidence": "cash 2010 5"}
    record = replace(FINQA, target_text=json.dumps({name: target[name] for name in taught}))
    code, ctx = run_stage(tmp_path, [record, replace(record, id="other")])
    wanted = [name for name in ("program", "answer") if name in taught]
    assert code == 0
    assert load_reward_spec(ctx.out / "reward_spec.yaml").required_fields == wanted
    assert grade(record, json.dumps({name: target[name] for name in wanted})).format_valid


def test_a_field_to_fill_that_is_not_taught_is_named(tmp_path):
    record = replace(FINQA, target_text=json.dumps({"program": FINQA.target_program}))
    with pytest.raises(UserError, match='no target has "answer"; dataset.response_fields .* gave program'):
        run_stage(tmp_path, [record], replace(SPEC, required_fields=["program", "answer"]))


@pytest.mark.parametrize("record", [FINQA, SAMPLE, GSM8K, MATH], ids=lambda record: record.dataset)
def test_stage_writes_the_specification_and_passes_its_tests(tmp_path, record):
    code, ctx = run_stage(tmp_path, [record, replace(record, id="other")])
    assert code == 0
    spec = load_reward_spec(ctx.out / "reward_spec.yaml")
    fields = {"finqa": ["program", "answer"], "sample": ["program"]}.get(record.dataset, [])
    assert asdict(spec) == asdict(replace(SPEC, required_fields=fields))
    cases = read_json(ctx.out / "unit_tests" / "test_cases.json")
    results = read_json(ctx.out / "unit_tests" / "test_results.json")
    assert results["cases"] == len(cases) > 0
    assert results["failed"] == results["gold_failures"] == []
    assert ctx.metrics["test"]["golds"] == 2
    assert {value for key, value in ctx.metrics["test"].items() if "only" not in key} == {2}


def test_stage_tests_grading_even_where_only_the_teacher_is_paid(tmp_path, monkeypatch):
    spec = load_reward_spec("configs/rewards/intrinsic.yaml")
    code, ctx = run_stage(tmp_path / "right", [FINQA], spec)
    assert code == 0
    assert load_reward_spec(ctx.out / "reward_spec.yaml").weights == spec.weights
    monkeypatch.setattr(FinqaTask, "partial_credit", lambda *_: 0.0)
    assert run_stage(tmp_path / "slip", [FINQA], spec)[0] == 1


def test_stage_fails_where_a_gold_does_not_execute_to_its_answer(tmp_path):
    wrong = replace(FINQA, id="wrong", target_answer="0.3", source="train.json#7")
    records = [replace(FINQA, id=str(number)) for number in range(30)] + [wrong]
    code, ctx = run_stage(tmp_path / "strict", records, cases_per_split=1)
    results = read_json(ctx.out / "unit_tests" / "test_results.json")
    assert (code, results["failed"]) == (1, [])
    assert results["gold_failures"] == ["train.json#7: wrong_value"] * 3
    code, _ = run_stage(tmp_path / "lenient", records, cases_per_split=1, gold_failures_allowed=0.05)
    assert code == 0


def test_stage_stops_at_a_gold_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"train\.json#0.*neither a number nor yes/no"):
        run_stage(tmp_path, [replace(FINQA, target_answer="many")])
