"""Curricula by themselves: orders and pools against direct formulas, settings, states, refusals."""

import json
import math
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.records import records_of_levels
from utils.curricula.build import build_curriculum
from utils.curricula.curriculum import UNKNOWN
from utils.curricula.pacing import competence, pool_size
from utils.curricula.pass_rate import PassRate
from utils.curricula.settings import CurriculumSettings
from utils.data.settings import DatasetConfig
from utils.data.sources import raw_files, read_split
from utils.frame.command_line import help_text, parse, resolve
from utils.frame.config import build
from utils.frame.files import UserError
from utils.frame.pipeline import CURRICULA
from utils.frame.stage_plan import load_script
from utils.rollouts.curriculum_log import summary

DEFAULT = CurriculumSettings()
ORDERED = ("easy_to_hard", "hard_to_easy")


def paced(name, levels, num_rollouts=10, seed=0, **changes):
    chosen = replace(DEFAULT, **changes)
    return build_curriculum(name, chosen, records_of_levels(levels), seed=seed, num_rollouts=num_rollouts)


def through_json(state):
    return json.loads(json.dumps(state, sort_keys=True))


# ---------------------------------------------------------------------------------------------- pacing


def test_the_pool_grows_linearly_and_then_holds_everything():
    shares = [competence(t, 10, 0.2, 0.5) for t in range(10)]
    np.testing.assert_allclose(shares, [0.2, 0.36, 0.52, 0.68, 0.84, 1, 1, 1, 1, 1], rtol=1e-12)
    assert [pool_size(share, 25) for share in shares[:6]] == [5, 9, 13, 17, 21, 25]
    assert pool_size(0.07, 100) == 7 and 0.07 * 100 > 7  # not 8 for a rounding error


@given(
    levels=st.lists(st.integers(1, 6), min_size=12, max_size=60),
    name=st.sampled_from(ORDERED),
    start=st.floats(0.05, 1),
    pacing=st.floats(0.05, 1),
    rollouts=st.integers(1, 12),
    seed=st.integers(0, 1000),
)
def test_every_rollout_is_drawn_from_the_first_of_the_sorted_records(
    levels, name, start, pacing, rollouts, seed
):
    curriculum = paced(name, levels, rollouts, seed, start_fraction=start, pacing_fraction=pacing)
    ranked = sorted(levels, reverse=name == "hard_to_easy")
    for t in range(rollouts):
        chosen = curriculum.choose(6)
        share = min(1, start + (1 - start) * t / (pacing * rollouts))
        size = max(6, math.ceil(share * len(levels) - 1e-9))
        row = curriculum.row()
        assert row["pool"] == size
        available = Counter(ranked[:size])
        assert {arm: n["available"] for arm, n in row["arms"].items()} == {
            str(level): available[level] for level in sorted(set(levels))
        }
        assert len(set(chosen)) == 6
        assert all(
            Counter(levels[place] for place in chosen)[level] <= available[level] for level in range(9)
        )


def test_ties_are_in_an_order_that_the_seed_draws_and_every_prompt_of_the_pool_is_as_likely():
    orders = [paced("easy_to_hard", [1] * 40, seed=seed).order for seed in range(3)]
    assert orders[0] != orders[1] != orders[2] and all(sorted(order) == list(range(40)) for order in orders)
    curriculum = paced("easy_to_hard", [1, 2] * 20, num_rollouts=4000, start_fraction=0.5, pacing_fraction=1)
    curriculum.num_rollouts = 10**15  # the pool stays as it is at first
    drawn = Counter(place for _ in range(4000) for place in curriculum.choose(4))
    assert set(drawn) == set(range(0, 40, 2))  # the easy half
    expected = 4000 * 4 / 20
    assert sum((count - expected) ** 2 / expected for count in drawn.values()) < 60  # chi-square, 19 degrees


def test_records_without_a_level_are_never_chosen_and_counted():
    levels = [None if row % 3 == 0 else row % 5 for row in range(30)]
    curriculum = paced("hard_to_easy", levels, start_fraction=1)
    assert curriculum.left_out == 10
    assert {place for _ in range(20) for place in curriculum.choose(20)} == set(curriculum.usable)
    assert all(levels[place] is not None for place in curriculum.usable)
    with pytest.raises(UserError, match="21 prompts and --curriculum hard_to_easy can choose from 20 of 30"):
        curriculum.choose(21)


@pytest.mark.parametrize("name", ["easy_to_hard", "hard_to_easy", "sec"])
def test_curricula_over_levels_are_refused_where_there_are_none(name):
    with pytest.raises(
        UserError, match=f"--curriculum {name} goes by each record's level, and none of the 4"
    ):
        paced(name, [None] * 4)


# ------------------------------------------------------------------------------------------- real levels


@pytest.fixture(scope="module")
def real(shared_data):
    """Levels of the published training files, by data set."""

    def levels(dataset):
        config = DatasetConfig(dataset=dataset, data_root=str(shared_data / dataset))
        return [row.level for row in read_split(config, "train", raw_files(config)["train"]).rows]

    return {dataset: levels(dataset) for dataset in ("gsm8k", "math")}


@pytest.mark.parametrize("name", ORDERED)
@pytest.mark.parametrize("dataset", ["gsm8k", "math"])
def test_real_levels_are_drawn_as_the_pacing_formula_says(real, dataset, name):
    """Histogram of levels over a training: each rollout's expectation is count * (level's share of the first
    ceil(c(t) n) records in order), and the sums agree within sampling error."""
    levels = real[dataset]
    known = [level for level in levels if level is not None]
    assert len(set(known)) >= 5
    rollouts, count = 60, 64
    curriculum = paced(name, levels, rollouts, start_fraction=0.2, pacing_fraction=0.7)
    assert curriculum.left_out == len(levels) - len(known) == {"gsm8k": 0, "math": 2}[dataset]
    ranked = sorted(known, reverse=name == "hard_to_easy")
    for third in range(3):
        drawn, expected, variance = Counter(), Counter(), Counter()
        for t in range(third * 20, third * 20 + 20):
            pool = Counter(ranked[: math.ceil(min(1, 0.2 + 0.8 * t / (0.7 * 60)) * len(ranked) - 1e-9)])
            size = pool.total()
            for level, there in pool.items():
                expected[level] += count * there / size
                rest = (size - count) / (size - 1)  # without replacement
                variance[level] += count * there / size * (1 - there / size) * rest
            chosen = curriculum.choose(count)
            assert len(set(chosen)) == count
            drawn.update(levels[place] for place in chosen)
        assert set(drawn) <= set(expected)  # nothing outside the pool, ever
        for level in expected:
            assert abs(drawn[level] - expected[level]) <= 4.5 * math.sqrt(variance[level]) + 1e-9, level


@pytest.mark.parametrize("dataset", ["gsm8k", "math"])
def test_a_bandit_without_feedback_is_uniform_over_real_levels(real, dataset):
    curriculum = paced("sec", real[dataset])
    drawn = Counter(real[dataset][place] for _ in range(100) for place in curriculum.choose(64))
    expected = 6400 / len(curriculum.arms)
    assert all(abs(count - expected) < 5 * math.sqrt(expected) for count in drawn.values())
    assert len(drawn) == len(curriculum.arms) == len(set(real[dataset]) - {None})


# ---------------------------------------------------------------------------------------------- pass rate


def passes(curriculum: PassRate, rates: dict[int, float]) -> None:
    """Make the recent success of prompts known."""
    curriculum.chosen = list(rates)
    curriculum.observe({"success": list(rates.values())})


def test_recent_success_is_the_first_visits_and_then_an_exponential_mean():
    curriculum = paced("pass_rate", [1] * 4, success_alpha=0.25)
    passes(curriculum, {0: 1.0, 1: 0.5})
    passes(curriculum, {0: 0.0, 1: UNKNOWN, 2: UNKNOWN})
    passes(curriculum, {0: 0.5})
    assert curriculum.success == {0: 0.75 * 0.75 + 0.25 * 0.5, 1: 0.5}
    assert [curriculum.kind(place) for place in range(4)] == ["in_band", "in_band", "unseen", "unseen"]
    passes(curriculum, {2: 0.2, 3: 0.81})
    assert [curriculum.kind(place) for place in (2, 3)] == ["in_band", "outside"]  # bounds belong to the band


def test_success_that_nothing_grades_is_refused():
    with pytest.raises(UserError, match="pass_rate goes by the success of completions, and none"):
        passes(paced("pass_rate", [1] * 4), {0: UNKNOWN, 3: UNKNOWN})


def test_places_go_to_the_kinds_in_the_stated_shares():
    curriculum = paced("pass_rate", [None] * 300, exploration=0.1, unseen_share=0.3)
    passes(curriculum, {place: 0.5 for place in range(100)} | {place: 0.0 for place in range(100, 200)})
    assert curriculum.left_out == 0
    kinds, counted = Counter(), Counter()
    for _ in range(2000):
        chosen = curriculum.choose(5)
        assert len(set(chosen)) == 5
        kinds.update(curriculum.kind(place) for place in chosen)
        row = curriculum.row()
        counted.update({kind: numbers["count"] for kind, numbers in row["arms"].items()})
        assert row["pool"] == 200
    assert kinds == counted
    for kind, share in (("outside", 0.1), ("unseen", 0.9 * 0.3), ("in_band", 0.9 * 0.7)):
        assert abs(kinds[kind] / 10_000 - share) < 0.02


def test_where_too_few_are_eligible_the_others_fill_up():
    curriculum = paced("pass_rate", [1] * 10, exploration=0.0)
    passes(curriculum, {place: 0.5 for place in range(2)} | {place: 1.0 for place in range(2, 10)})
    chosen = curriculum.choose(6)
    assert {0, 1} < set(chosen) and len(set(chosen)) == 6
    assert curriculum.row()["arms"]["outside"] == {"count": 4, "available": 8}
    passes(curriculum, {place: 0.0 for place in range(10)})
    assert sorted(curriculum.choose(10)) == list(range(10))  # all outside: everything all the same


# ------------------------------------------------------------------------------- all of them: state, log


def feed(curriculum, chosen, draw):
    """Made-up feedback of whatever is asked for."""
    if curriculum.probes:
        curriculum.measure([draw.random() for _ in curriculum.probes])
    curriculum.observe({name: [draw.random() for _ in chosen] for name in curriculum.needs})


@pytest.mark.parametrize("name", CURRICULA[1:])
@settings(max_examples=20)
@given(at=st.integers(0, 9), seed=st.integers(0, 99), weighted=st.booleans())
def test_states_go_through_json_and_choices_go_on(name, at, seed, weighted):
    levels = [None if name != "pass_rate" and row % 7 == 0 else row % 12 for row in range(60)]
    chosen = DEFAULT
    if weighted:
        weights = {"abs_advantage": 1.0, "confidence_gap": 2.0, "probe_kl_drop": 1.0}
        chosen = build(CurriculumSettings, {"weights": weights, "probe_size": 3}, "here")
    make = lambda: build_curriculum(name, chosen, records_of_levels(levels), seed=seed, num_rollouts=10)  # noqa: E731

    def run(curriculum, first, last):
        rows = []
        for t in range(first, last):
            if curriculum.probes:
                curriculum.measure([random.Random(f"{t} {p}").random() for p in curriculum.probes])
            places = curriculum.choose(8)
            rows.append((places, through_json(curriculum.row())))
            draw = random.Random(t)
            curriculum.observe(
                {signal: [draw.random() for _ in places] for signal in sorted(curriculum.needs)}
            )
        return rows

    whole = run(make(), 0, 10)
    first, second = make(), make()
    rows = run(first, 0, at)
    second.load_state_dict(through_json(first.state_dict()))
    assert rows + run(second, at, 10) == whole


def test_another_curriculums_state_is_refused():
    state = paced("easy_to_hard", [1, 2, 3]).state_dict()
    with pytest.raises(UserError, match="name easy_to_hard, this run's sec.*--overwrite"):
        paced("sec", [1, 2, 3]).load_state_dict(state)
    with pytest.raises(UserError, match="num_records 3, this run's 4"):
        paced("easy_to_hard", [1, 2, 3, 4]).load_state_dict(state)


def test_random_is_no_curriculum_at_all_and_unknown_names_are_refused():
    assert paced("random", [None]) is None
    with pytest.raises(UserError, match="--curriculum must be one of random, easy_to_hard, .*, found hard"):
        paced("hard", [1])


def test_the_summary_counts_prompts():
    rows = [
        {"arms": {"1": {"count": 2}, "2": {"count": 0}}, "ids": ["a", "b"]},
        {"arms": {"1": {"count": 1}, "2": {"count": 1}}, "ids": ["a", "c"]},
    ]
    assert summary(rows) == {"prompts": 4, "distinct_prompts": 3, "prompts_by_arm": {"1": 3, "2": 1}}


# ----------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tau": 0}, "tau must be above 0"),
        ({"alpha": 1.5}, "alpha must be above 0 and at most 1"),
        ({"start_fraction": 0}, "start_fraction must be above 0"),
        ({"floor": -0.1}, "floor must be between 0 and 1"),
        ({"percentile": 101}, "percentile must be above 0 and at most 100"),
        ({"pass_rate_low": 0.9}, r"pass_rate_low \(0.9\) must not exceed pass_rate_high"),
        ({"weights": {"abs_advantage": -1}}, "weights.abs_advantage must be at least 0"),
        ({"weights": {"advantage": 1}}, 'unknown key "weights.advantage"; did you mean "abs_advantage"'),
        ({"tua": 1}, 'unknown key "tua"'),
        ({"arms": "levels"}, 'did you mean "level"'),
    ],
)
def test_impossible_settings_have_one_clear_line(changes, message):
    with pytest.raises(UserError, match=message):
        build(CurriculumSettings, changes, "x.yaml")


@pytest.mark.parametrize("script", ["05_train_ppo.py", "06_train_grpo.py", "07_train_rloo.py"])
def test_the_option_names_the_curriculum_and_the_section_holds_its_settings(script):
    stage = load_script(script).STAGE
    words = (
        "--curriculum sec --curriculum.tau 0.25 --algo.curriculum.weights.abs_advantage 2 --pacing_fraction 1"
    )
    config = resolve(stage, parse(stage, words.split()))
    assert config.options.curriculum == "sec" and stage.variant_of(config) == "sec"
    assert config.algo.curriculum.tau == 0.25 and config.algo.curriculum.pacing_fraction == 1
    assert config.algo.curriculum.weights.given() == {"abs_advantage": 2}
    plain = resolve(stage, parse(stage, []))
    assert plain.options.curriculum == "random" and stage.variant_of(plain) == ""
    both = resolve(stage, parse(stage, ["--curriculum", "pass_rate", "--reward", "intrinsic"]))
    assert stage.variant_of(both) == "intrinsic_pass_rate"
    text = help_text(stage, script)
    assert "--curriculum " in text and "--algo.curriculum.tau" in text and "docs/curricula.md" in text
    with pytest.raises(UserError, match="did you mean"):
        resolve(stage, parse(stage, ["--curriculum", "secs"]))
