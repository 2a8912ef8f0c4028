"""Preference pairs: from real candidates of an embedded model, and from any candidates at all."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.tiny_models import make_tiny_tokenizer
from utils.data.settings import DatasetConfig
from utils.data.sources import gold_records
from utils.frame.config import StageConfig, load_tier
from utils.frame.files import REPO_ROOT, UserError, read_jsonl, write_json, write_jsonl
from utils.frame.stage import StageContext
from utils.frame.stage_plan import load_script
from utils.frame.typed_settings import check
from utils.grading.tasks import task_of
from utils.grading.tasks.finqa import FinqaTask, parse_completion
from utils.methods.dpo.pairs import (
    REASONS,
    RULE_OF_GOLD,
    Answer,
    build_preferences,
    candidate_answers,
    gold_answers,
    pair_prompt,
    remedies,
    reward_under,
    rules_in_force,
    similarity,
    split_by_prompt,
)
from utils.methods.dpo.pairs_report import describe, length_warning, longer_chosen, plot_margins
from utils.methods.dpo.sampled import check_components
from utils.methods.dpo.settings import PreferencesAlgo
from utils.models.loading import load_tokenizer
from utils.models.settings import GenerationSection, ModelConfig
from utils.rewards.spec import RewardSpec, RewardWeights, write_reward_spec
from utils.rollouts import candidates as sampling
from utils.rollouts.reward_state import open_pipeline

SPEC = RewardSpec()
ALGO = PreferencesAlgo(min_pairs=1)
BYTES = make_tiny_tokenizer()


def candidate(text, correct=False, parsed=True, intrinsic=0.0, truncated=False, **changes) -> dict:
    """A candidate as 04 writes it; every byte is a token."""
    task = 1.0 * correct - 0.2 * (not parsed)
    reward = {
        "exact_match": 1.0 * correct,
        "format_penalty": -0.2 * (not parsed),
        "intrinsic": intrinsic,
        "total": task + intrinsic,
    }
    ids = BYTES(text)["input_ids"] + [BYTES.eos_token_id] * (not truncated)
    return {
        "text": text,
        "tokens": len(ids),
        "token_ids": ids,
        "truncated": truncated,
        "correct": correct,
        "parsed": parsed,
        "reward": reward,
        "raw": {"intrinsic": 10 * intrinsic, "reasoning": 0.0},
    } | changes


def row(number, *candidates, prompt=None, level=1) -> dict:
    return {
        "id": f"train-{number}",
        "level": level,
        "prompt": prompt or f"prompt {number}",
        "candidates": [*candidates],
    }


def build(rows, algo=ALGO, reward="combined", golds=None, seed=0):
    golds = golds or [None] * len(rows)
    return build_preferences(rows, golds, algo, SPEC, reward, seed)


RIGHT, WRONG = candidate("right", correct=True), candidate("wrong")
BROKEN = candidate("broken {", parsed=False, truncated=True)


# --------------------------------------------------------------------------------------- real candidates


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """What 04 writes for 24 training prompts of the embedded set, with the tokens that were sampled. The
    policy is the embedded teacher, so hot that it errs in every way.
    """
    folder = tmp_path_factory.mktemp("real")
    overrides = {"data_root": str(folder / "data")}
    records = gold_records(
        load_tier(DatasetConfig, REPO_ROOT / "configs/datasets/sample.yaml", overrides), "train"
    )
    config = load_tier(ModelConfig, REPO_ROOT / "configs/models/sample.yaml")
    config.generation = GenerationSection(max_new_tokens=40, temperature=1.7, batch_size=96)
    sampled, graded = [], []
    generate, grade = sampling.generate, FinqaTask.grade
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            FinqaTask,
            "grade",
            lambda task, record, text, *more, **options: (
                graded.append((record.id, text)) or grade(task, record, text, *more, **options)
            ),
        )
        patch.setattr(
            sampling, "generate", lambda *args, **kwargs: sampled.extend(generate(*args, **kwargs)) or sampled
        )
        ctx = StageContext(
            StageConfig(model=config),
            "run",
            folder,
            folder,
            False,
            {"checkpoint": REPO_ROOT / "assets/teacher"},
        )
        bars = []
        patch.setattr(
            StageContext, "progress", lambda _, items, description: bars.append(description) or items
        )
        rows = sampling.sample_candidates(ctx, records[:24], SPEC, 8, "combined")
    for each, completion in zip((c for row in rows for c in row["candidates"]), sampled, strict=True):
        assert each["text"] == completion.text
        assert each["token_ids"] == list(completion.token_ids)
    tokenizer = load_tokenizer(REPO_ROOT / "assets/teacher")
    return SimpleNamespace(
        rows=rows, records=records[:24], tokenizer=tokenizer, config=config, ctx=ctx, graded=graded, bars=bars
    )


@pytest.mark.slow
def test_real_candidates_are_of_every_kind(real):
    """Otherwise the tests below would show little."""
    every = [each for row in real.rows for each in row["candidates"]]
    kinds = Counter((each["correct"], each["parsed"], each["truncated"]) for each in every)
    assert {(True, True, False), (False, True, False), (False, False, False), (False, False, True)} <= set(
        kinds
    )


def test_what_takes_long_has_a_bar(real):
    assert real.bars == ["sampling", "teacher", "grading"]
    shown = []

    def progress(items, description):
        shown.append((description, len(items)))
        return items

    pipeline = open_pipeline(real.records, SPEC, "combined", real.config.__class__(), real.tokenizer)
    prompts = [row["prompt"] for row in real.rows]
    golds = gold_answers(real.records, prompts, SPEC, pipeline, real.tokenizer, 60, progress)
    build_preferences(real.rows, golds, ALGO, SPEC, "combined", 0, progress)
    usable = sum(gold is not None for gold in golds)
    assert shown == [("grading golds", 24), ("teacher", 1), ("grading", usable), ("pairing", 24)]


def test_a_candidate_is_graded_once(real):
    texts = {(row["id"], each["text"]) for row in real.rows for each in row["candidates"]}
    assert len(real.graded) == len(texts) and set(real.graded) == texts
    for record, row in zip(real.records, real.rows, strict=True):
        for each in row["candidates"]:
            graded = task_of("sample").grade(record, each["text"])
            assert (each["correct"], each["parsed"]) == (graded.correct, graded.format_valid)


@pytest.mark.parametrize("reward", ["combined", "task", "intrinsic"])
@pytest.mark.parametrize("rules", [["correct_over_wrong", "valid_over_invalid"], ["higher_reward"]])
def test_pairs_of_real_candidates(real, reward, rules):
    """All pass the parse check, none is rewarded the wrong way round, no prompt is in both splits."""
    algo = replace(ALGO, rules=rules, pairs_per_prompt=6, val_fraction=0.3)
    golds = [None] * len(real.rows)
    found = build_preferences(real.rows, golds, algo, SPEC, reward, seed=0)
    assert len(found.train) > 20 and len(found.held_out) > 5
    assert {pair.prompt for pair in found.train}.isdisjoint(pair.prompt for pair in found.held_out)
    candidates = {row["prompt"]: {c["text"]: c for c in row["candidates"]} for row in real.rows}
    for pair in [*found.train, *found.held_out]:
        row = pair.row()
        assert row["chosen_reward"] >= row["rejected_reward"]
        assert row["margin"] == round(row["chosen_reward"] - row["rejected_reward"], 6) >= algo.min_margin
        assert parse_completion(row["chosen"], ("program",))[1] == ""
        chosen, rejected = (candidates[row["prompt"]][row[side]] for side in ("chosen", "rejected"))
        assert chosen["parsed"] and not chosen["truncated"] and chosen is not rejected
        if pair.rule != "higher_reward":
            assert chosen["correct"] >= rejected["correct"]
    assert found.reasons.keys() <= set(REASONS)
    assert all(bool(each.pairs) != bool(each.reason) for each in found.prompts)
    assert sum(found.reasons.values()) + sum(bool(each.pairs) for each in found.prompts) == len(real.rows)


def test_what_is_learnt_from_is_what_was_sampled(real):
    """No candidate is lost to its text: its tokens are kept, also where the text would give others."""
    respelt = 0
    for row in real.rows:
        answers = candidate_answers(row, "combined")
        sampled = {(each["text"], tuple(each["token_ids"])) for each in row["candidates"]}
        assert {(each.text, each.ids) for each in answers} <= sampled
        assert {each.text for each in answers} == {each["text"] for each in row["candidates"]}
        again = real.tokenizer([each.text for each in answers], add_special_tokens=False)["input_ids"]
        respelt += sum(
            tuple(ids) not in (each.ids, each.ids[:-1]) for ids, each in zip(again, answers, strict=True)
        )
    assert respelt > 5  # otherwise this would show little


def test_gold_answers_are_right_and_rewarded_as_04_would(real):
    """Demonstrations with a planted slip are no gold; the others get the task reward and the teacher's."""
    pipeline = open_pipeline(real.records, SPEC, "combined", real.config.__class__(), real.tokenizer)
    prompts = [row["prompt"] for row in real.rows]
    golds = gold_answers(real.records, prompts, SPEC, pipeline, real.tokenizer, max_tokens=60)
    assert None in golds and len([gold for gold in golds if gold]) > 5
    for record, gold, row in zip(real.records, golds, real.rows, strict=True):
        program = json.loads(record.target_text)["program"]
        slipped = program != record.target_program  # the data set's own gold program is right
        if gold is None:
            assert slipped
            continue
        assert (
            gold.text == record.target_text
            and gold.ids[-1] == real.tokenizer.eos_token_id
            and gold.gold
            and gold.correct
        )
        same = [each for each in row["candidates"] if each["text"] == record.target_text]
        if same:  # sampled as well
            assert gold.reward == pytest.approx(same[0]["reward"]["total"], abs=1e-4)
            assert gold.tokens == same[0]["tokens"]
    tight = gold_answers(real.records, prompts, SPEC, pipeline, real.tokenizer, max_tokens=12)
    assert all(gold is None or gold.tokens <= 12 for gold in tight) and any(
        gold and not short for gold, short in zip(golds, tight, strict=True)
    )


# ------------------------------------------------------------------------------------ any candidates


texts = st.sampled_from(["a b c", "a b  c", "a b d", "x", "", "{", "y z", "long " * 9, "é", "1 2 3"])
rewards = st.floats(-3, 3, allow_nan=False).map(lambda value: round(value, 6))
any_candidate = st.builds(
    lambda text, correct, parsed, cut, intrinsic: candidate(text, correct, parsed, intrinsic, cut),
    texts,
    st.booleans(),
    st.booleans(),
    st.booleans(),
    rewards,
)
any_rows = st.lists(st.lists(any_candidate, max_size=6), min_size=1, max_size=8).flatmap(
    lambda groups: st.lists(
        st.sampled_from(["p", "q", "r", "s"]), min_size=len(groups), max_size=len(groups)
    ).map(
        lambda prompts: [row(n, *g, prompt=p) for n, (g, p) in enumerate(zip(groups, prompts, strict=True))]
    )
)
any_algo = st.builds(
    PreferencesAlgo,
    rules=st.lists(
        st.sampled_from(["correct_over_wrong", "valid_over_invalid", "higher_reward"]),
        min_size=1,
        max_size=3,
        unique=True,
    ),
    min_margin=st.sampled_from([0.0, 0.1, 1.0]),
    pairs_per_prompt=st.integers(1, 5),
    selection=st.sampled_from(["random", "largest_margin", "smallest_margin"]),
    max_similarity=st.sampled_from([0.5, 0.9, 1.0]),
    max_repeat_similarity=st.sampled_from([0.5, 1.0]),
    val_fraction=st.sampled_from([0.0, 0.25, 0.5]),
    min_pairs=st.just(1),
)


@given(any_rows, any_algo, st.sampled_from(["combined", "task", "intrinsic"]), st.integers(0, 3))
def test_whatever_the_candidates(rows, algo, reward, seed):
    """The rules hold for every pair; a set that is too small is one line."""
    try:
        found = build(rows, algo, reward, seed=seed)
    except UserError as error:
        assert "\n" not in str(error) and "too few preference pairs" in str(error)
        return
    pairs = [*found.train, *found.held_out]
    assert build(rows, algo, reward, seed=seed) == found
    assert {pair.prompt for pair in found.train}.isdisjoint(pair.prompt for pair in found.held_out)
    assert bool(found.held_out) == (algo.val_fraction > 0)
    assert len({pair.id for pair in pairs}) == len(pairs)
    assert len({(pair.id.split("/")[0], pair.chosen.text, pair.rejected.text) for pair in pairs}) == len(
        pairs
    )
    assert max(Counter(pair.id.split("/")[0] for pair in pairs).values()) <= algo.pairs_per_prompt
    rules = rules_in_force(algo.rules, RewardWeights() if reward != "intrinsic" else INTRINSIC)
    for pair in pairs:
        chosen, rejected = pair.chosen, pair.rejected
        assert chosen.reward >= rejected.reward and pair.margin >= algo.min_margin
        assert chosen.valid and pair.rule in rules
        assert similarity(chosen.text, rejected.text) < algo.max_similarity
        if pair.rule == "correct_over_wrong":
            assert chosen.correct and not rejected.correct
        elif pair.rule == "valid_over_invalid":
            assert not rejected.valid and chosen.correct >= rejected.correct
        else:
            assert chosen.reward > rejected.reward


INTRINSIC = RewardWeights(intrinsic=0.1, correctness=0.0, reasoning=0.0, format=0.0)


# ------------------------------------------------------------------------------------------- by hand


def pairs_of(found) -> set[tuple[str, str, str]]:
    return {(pair.chosen.text, pair.rejected.text, pair.rule) for pair in [*found.train, *found.held_out]}


NO_SPLIT = replace(ALGO, val_fraction=0.0)


def test_a_rows_pairs_and_their_fields():
    found = build([row(7, RIGHT, WRONG, BROKEN, level=3)], NO_SPLIT)
    assert pairs_of(found) == {
        ("right", "wrong", "correct_over_wrong"),
        ("right", "broken {", "correct_over_wrong"),
        ("wrong", "broken {", "valid_over_invalid"),
    }
    rows = {pair.row()["rejected"]: pair.row() for pair in found.train if pair.row()["chosen"] == "right"}
    assert rows["broken {"] == {  # which was cut off: it has no end
        "id": rows["broken {"]["id"],
        "prompt": "prompt 7",
        "chosen": "right",
        "rejected": "broken {",
        "chosen_ids": RIGHT["token_ids"],
        "rejected_ids": BROKEN["token_ids"],
        "chosen_reward": 1.0,
        "rejected_reward": -0.2,
        "margin": 1.2,
        "rule": "correct_over_wrong",
        "level": 3,
    }
    assert sorted(pair.id for pair in found.train) == ["train-7/0", "train-7/1", "train-7/2"]


def test_a_right_answer_is_never_rejected_for_its_form():
    """Nor is it chosen over a wrong one in the right form."""
    broken_but_right = candidate("the answer is 4", correct=True, parsed=False)
    found = build([row(0, broken_but_right, WRONG), row(1, RIGHT, broken_but_right)], NO_SPLIT)
    assert pairs_of(found) == {("right", "the answer is 4", "valid_over_invalid")}
    assert found.reasons == {"no rule applies": 1}


def test_what_was_cut_off_is_not_chosen():
    """A right answer in the right form that never ended: training on it would teach not to end."""
    endless = candidate("endless", correct=True, intrinsic=-0.5, truncated=True)
    found = build([row(0, endless, WRONG), row(1, RIGHT, endless)], NO_SPLIT)
    assert pairs_of(found) == {("right", "endless", "valid_over_invalid")}


def test_rewards_are_summed_by_reward():
    """The teacher likes the wrong answer better: under combined no pair, under task one, under intrinsic the
    other way round, with the gold not looked at."""
    right, wrong = candidate("right", correct=True, intrinsic=-2.5), candidate("wrong", intrinsic=-0.5)
    rows = [row(0, right, wrong)]
    assert pairs_of(build(rows, NO_SPLIT, "task")) == {("right", "wrong", "correct_over_wrong")}
    assert pairs_of(build(rows, NO_SPLIT, "intrinsic")) == {("wrong", "right", "higher_reward")}
    with pytest.raises(UserError, match="1 below the margin.*lower algo.min_margin"):
        build(rows, NO_SPLIT, "combined")
    parts = {"exact_match": 1.0, "reasoning": 0.25, "format_penalty": -0.2, "intrinsic": -0.5, "total": 99.0}
    assert [reward_under(parts, name) for name in ("task", "intrinsic", "combined")] == [1.05, -0.5, 0.55]


def test_the_margin_is_met_exactly():
    rows = [row(0, candidate("right", correct=True, intrinsic=-0.9), WRONG)]
    assert len(build(rows, replace(NO_SPLIT, min_margin=0.1)).train) == 1
    with pytest.raises(UserError, match="1 below the margin"):
        build(rows, replace(NO_SPLIT, min_margin=0.100001))


@pytest.mark.parametrize(("selection", "expected"), [("largest_margin", "c"), ("smallest_margin", "a")])
def test_selection_by_margin(selection, expected):
    wrong = [candidate(name, intrinsic=value) for name, value in (("a", 0.5), ("b", 0.0), ("c", -0.5))]
    found = build([row(0, RIGHT, *wrong)], replace(NO_SPLIT, pairs_per_prompt=1, selection=selection))
    assert pairs_of(found) == {("right", expected, "correct_over_wrong")}


def test_answers_that_are_not_used_yet_come_first():
    """Two right and two wrong answers make four pairs; two of them, if only two are wanted, use all four."""
    answers = [candidate(name, correct=name.startswith("r")) for name in ("r 1", "r 2", "w 1", "w 2")]
    for seed in range(8):
        found = build([row(0, *answers)], replace(NO_SPLIT, pairs_per_prompt=2), seed=seed)
        assert {text for pair in pairs_of(found) for text in pair[:2]} == {"r 1", "r 2", "w 1", "w 2"}


def test_rules_that_come_first_are_filled_first():
    algo = replace(NO_SPLIT, pairs_per_prompt=2, rules=["valid_over_invalid", "correct_over_wrong"])
    found = build([row(0, RIGHT, WRONG, BROKEN)], algo)
    assert Counter(pair.rule for pair in found.train) == {"valid_over_invalid": 2}


def test_near_duplicates_are_left_out():
    """Texts of equal words, always; with a lower limit also those that differ in one word of five."""
    rows = [row(0, candidate("a b c d e", correct=True), candidate("a  b c d e"))]
    with pytest.raises(UserError, match="1 near-duplicates. Try: sample more in 04"):
        build(rows, NO_SPLIT)
    rows = [row(0, candidate("a b c d e", correct=True), candidate("a b c d f"))]
    assert len(build(rows, NO_SPLIT).train) == 1
    with pytest.raises(UserError, match="1 near-duplicates. Try: raise algo.max_similarity"):
        build(rows, replace(NO_SPLIT, max_similarity=0.8))
    wrong = [candidate(text) for text in ("a b c d f", "a b c d g", "x y")]
    found = build(
        [row(0, candidate("right", correct=True), *wrong)], replace(NO_SPLIT, max_repeat_similarity=0.8)
    )
    rejected = {pair[1] for pair in pairs_of(found)}
    assert "x y" in rejected and len(rejected) == 2


@pytest.mark.parametrize(
    ("a", "b", "share"),
    [("a b c", "a b c", 1.0), ("a b", "a  b", 1.0), ("a b", "c d", 0.0), ("a b c d", "a b c e", 0.75)],
)
def test_similarity_is_the_share_of_common_words(a, b, share):
    assert similarity(a, b) == similarity(b, a) == share


def test_gold_stands_in_where_nothing_right_was_sampled():
    gold = Answer("gold", (1, 2), 0.7, True, True, gold=True)
    rows = [row(0, WRONG, BROKEN), row(1, RIGHT, WRONG), row(2, RIGHT)]
    found = build(rows, NO_SPLIT, golds=[gold] * 3)
    assert pairs_of(found) == {
        ("gold", "wrong", RULE_OF_GOLD),
        ("gold", "broken {", RULE_OF_GOLD),
        ("wrong", "broken {", "valid_over_invalid"),
        ("right", "wrong", "correct_over_wrong"),
    }
    assert pairs_of(build(rows, NO_SPLIT)) == {
        ("wrong", "broken {", "valid_over_invalid"),
        ("right", "wrong", "correct_over_wrong"),
    }


def test_prompts_are_split_by_their_text():
    """Two records with the same prompt text go the same way; the seed decides which."""
    rows = [row(n, RIGHT, WRONG, BROKEN, prompt=f"prompt {n // 2}") for n in range(40)]
    found = build(rows, replace(ALGO, val_fraction=0.25))
    held_out = {pair.prompt for pair in found.held_out}
    assert len(held_out) == 5 and len(found.held_out) == 5 * 2 * 3
    assert held_out.isdisjoint(pair.prompt for pair in found.train)
    other = {pair.prompt for pair in build(rows, replace(ALGO, val_fraction=0.25), seed=1).held_out}
    assert other != held_out
    pairs = [*found.train, *found.held_out]
    assert split_by_prompt(pairs, 0.0, 0) == (pairs, [])
    train, held_out = split_by_prompt(
        [pair for pair in pairs if pair.prompt in ("prompt 0", "prompt 1")], 0.01, 0
    )
    assert len({pair.prompt for pair in train}) == len({pair.prompt for pair in held_out}) == 1


def test_candidates_of_an_earlier_version_are_refused():
    old = row(0, *({k: v for k, v in each.items() if k != "token_ids"} for each in (RIGHT, WRONG)))
    with pytest.raises(UserError, match="no token_ids; an older version made them"):
        build([old], NO_SPLIT)


def test_too_few_pairs_say_why():
    rows = [
        row(0, RIGHT),
        row(1, RIGHT, RIGHT),
        row(2, WRONG, WRONG),
        row(3, BROKEN, BROKEN),
        row(4, RIGHT, WRONG),
    ]
    rows += [row(5, candidate("\ufffd", token_ids=[3]), WRONG)]  # broken UTF-8 has tokens all the same
    with pytest.raises(UserError) as caught:
        build(rows, replace(NO_SPLIT, min_pairs=50))
    assert str(caught.value) == (
        "too few preference pairs: 1 to train on, algo.min_pairs is 50; 1 of 6 prompts (1 to 2 candidates "
        "each) have pairs, the others: 1 fewer than two candidates, 1 all right, 1 none in valid form, 2 all "
        "wrong. Try: set algo.gold_as_chosen true; sample more in 04 (--num_candidates); or lower "
        "algo.min_pairs"
    )


def test_one_prompt_with_pairs_is_the_cause_where_it_is():
    with pytest.raises(UserError) as caught:
        build([row(4, RIGHT, WRONG), row(5, RIGHT, RIGHT)])
    assert str(caught.value) == (
        "too few preference pairs: 1 to train on, algo.val_fraction holds one prompt out, and only one has "
        "pairs; 1 of 2 prompts (2 candidates each) have pairs, the others: 1 all right. Try: sample more in "
        "04 (--num_candidates, --max_items); or set algo.val_fraction 0"
    )


def test_no_remedy_is_what_is_set_already():
    done = replace(
        ALGO,
        gold_as_chosen=True,
        rules=["correct_over_wrong", "higher_reward"],
        min_margin=0.0,
        max_similarity=1.0,
        max_repeat_similarity=1.0,
    )
    for reason in REASONS:
        assert remedies(reason, done)
        assert "algo." not in " ".join(remedies(reason, done)), reason
    undone = replace(done, gold_as_chosen=False, rules=["correct_over_wrong"], min_margin=0.1)
    assert "algo.gold_as_chosen true" in remedies("all wrong", undone)[0]
    assert "higher_reward" in remedies("no rule applies", undone)[0]
    assert remedies("below the margin", undone) == ["lower algo.min_margin"]


@pytest.mark.parametrize(
    ("reward", "sampled_with", "missing"),
    [
        ("combined", "task", "intrinsic"),
        ("task", "intrinsic", "correctness"),
        ("intrinsic", "task", "intrinsic"),
    ],
)
def test_rewards_that_04_did_not_compute_are_asked_for(reward, sampled_with, missing):
    with pytest.raises(UserError, match=f"needs the {missing} reward.* 04_.* --reward combined") as caught:
        check_components(SPEC, reward, sampled_with, Path("r/04_candidates"))
    assert "\n" not in str(caught.value)
    check_components(SPEC, reward, "combined", Path())
    check_components(replace(SPEC, weights=RewardWeights(intrinsic=0.0)), "combined", "task", Path())


def test_why_a_prompt_has_no_pair():
    right, wrong = (Answer(text, (1,), 0.0, text == "r", True) for text in "rw")
    assert pair_prompt([right], NO_SPLIT, NO_SPLIT.rules, 0) == ([], "all right")
    assert pair_prompt([wrong], NO_SPLIT, NO_SPLIT.rules, 0) == ([], "all wrong")
    assert pair_prompt([right, wrong], NO_SPLIT, NO_SPLIT.rules, 0) == ([], "below the margin")


# ------------------------------------------------------------------------------------------ the stage


@pytest.fixture
def stage(tmp_path, real):
    """A factory: run 08 on the real candidates, as 04 of the given options left them; returns its context."""
    script = load_script("08_build_prefs.py")

    def run(name="out", algo=ALGO, options=None) -> StageContext:
        options = {"reward": "combined", "split": "train"} | (options or {})
        write_jsonl(tmp_path / "04" / "candidates.jsonl", real.rows)
        write_json(tmp_path / "04" / "manifest.json", {"config": {"options": options}, "outputs": {}})
        write_jsonl(tmp_path / "train.jsonl", [record.to_json() for record in real.records])
        write_reward_spec(tmp_path / "spec.yaml", SPEC)
        inputs = {
            "candidates": tmp_path / "04" / "candidates.jsonl",
            "train": tmp_path / "train.jsonl",
            "reward_spec": tmp_path / "spec.yaml",
            "checkpoint": REPO_ROOT / "assets/teacher",
        }
        config = StageConfig(ModelConfig(), algo, options=script.Options(), seed=0)
        (tmp_path / name).mkdir(exist_ok=True)
        ctx = StageContext(config, "run", tmp_path, tmp_path / name, False, inputs)
        script.run(ctx)
        return ctx

    return run


@pytest.mark.slow
def test_the_stage_writes_the_same_bytes_each_time(stage, real):
    gold = replace(ALGO, gold_as_chosen=True)
    first, again = stage("a", gold), stage("b", gold)
    names = ["margins.png", "pairs.jsonl", "stats.txt", "val_pairs.jsonl"]
    assert sorted(path.name for path in first.out.iterdir() if path.suffix != ".log") == names
    for name in names:
        assert (first.out / name).read_bytes() == (again.out / name).read_bytes()
    train, held_out = (read_jsonl(first.out / name) for name in ("pairs.jsonl", "val_pairs.jsonl"))
    assert {row["prompt"] for row in train}.isdisjoint(row["prompt"] for row in held_out)
    assert (len(train), len(held_out)) == (first.metrics["pairs"], first.metrics["held_out_pairs"])
    fields = ["id", "prompt", "chosen", "rejected", "chosen_ids", "rejected_ids", "chosen_reward"]
    assert all(list(row)[:7] == fields for row in train)
    for row in [*train, *held_out]:
        assert parse_completion(row["chosen"], ("program",))[1] == ""
        sampled = {tuple(c["token_ids"]) for each in real.rows for c in each["candidates"]}
        assert tuple(row["rejected_ids"]) in sampled
        assert row["chosen_reward"] >= row["rejected_reward"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "val"}, "holds prompts of the val split.*run `python .* --split train"),
        ({"reward": "task"}, "needs the intrinsic reward, and 04_candidates was made with --reward task"),
    ],
)
def test_unfit_candidates_have_one_clear_line(stage, options, message):
    with pytest.raises(UserError, match=message) as caught:
        stage(options=options)
    assert "\n" not in str(caught.value)


# -------------------------------------------------------------------------------------------- report


def test_the_report_counts_what_is_there(tmp_path):
    rows = [row(n, RIGHT, WRONG, BROKEN, level=n % 2) for n in range(4)] + [row(4, RIGHT, RIGHT, level=None)]
    found = build(rows, replace(ALGO, val_fraction=0.25))
    text = describe(found, "combined", ALGO.rules, ALGO)
    squeezed = " ".join(text.split())
    for part in (
        "prompts 5 with pairs 4",
        "candidates 14 different within their prompt 13",
        "pairs 12 to train on 9 of 3 prompts held out 3 of 1 other prompts",
        "correct_over_wrong 8 valid_over_invalid 4",
        "0 2 2 6 1 2 2 6 none 1 0 0",
        "prompts without a pair: 1 all right 1",
    ):
        assert part in squeezed, part
    pairs = [*found.train, *found.held_out]
    # right (6 tokens) over wrong (6) and broken (8); wrong over broken
    assert longer_chosen(pairs) == pytest.approx((0.5 + 0 + 0) / 3)
    assert "rejected completion is the longer one in 83 %" in length_warning(pairs) and "warning" in text
    assert length_warning([pair for pair in pairs if pair.rejected.text == "wrong"]) == ""
    for name in ("a", "b"):
        plot_margins(tmp_path / f"{name}.png", pairs, 0.1)
    first, second = ((tmp_path / f"{name}.png").read_bytes() for name in ("a", "b"))
    assert first == second and first.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rules": []}, "rules must name one rule at least"),
        ({"rules": ["higher_reward"] * 2}, "and none twice"),
        ({"min_margin": -0.1}, "min_margin must be at least 0"),
        ({"pairs_per_prompt": 0}, "pairs_per_prompt must be above 0"),
        ({"max_similarity": 1.1}, "max_similarity must be above 0 and at most 1"),
        ({"val_fraction": 0.6}, "val_fraction must be between 0 and 0.5"),
    ],
)
def test_impossible_settings_have_one_clear_line(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        check(replace(ALGO, **changes))
    assert "\n" not in str(caught.value)
