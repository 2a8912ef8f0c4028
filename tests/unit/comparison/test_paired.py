"""Comparison of policies: numbers against hand counts, and no claim that the test does not support."""

import csv
import json
import re
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from tests.support.comparisons import comparison_of, text_of
from tests.support.policy_results import result
from utils.comparison.experiment_facts import experiment_facts
from utils.comparison.lineage import Trained
from utils.comparison.paired import PolicyResult, compare_all, compare_pair, load_result
from utils.comparison.report import _detectable, conclusions, report_of, summary_table
from utils.comparison.topic import topics_of
from utils.comparison.topics import accuracy, difference_tests
from utils.comparison.topics.levels import levels_of
from utils.documents.document import block_markdown
from utils.documents.text import p_cell, p_text, points_interval
from utils.frame.files import UserError, read_csv
from utils.frame.pipeline import policy_order
from utils.statistics.accuracy_tests import holm, rate
from utils.statistics.seed_tests import sign_flip_test

# 60 items: 30 right for both, 4 broken, 16 fixed, 10 wrong for both.
OLD = result("sft", [1] * 30 + [1] * 4 + [0] * 16 + [0] * 10, levels=[1, 2] * 30)
NEW = result("grpo", [1] * 30 + [0] * 4 + [1] * 16 + [0] * 10, levels=[1, 2] * 30)
SAME = result("rloo", [1] * 30 + [1] * 5 + [0] * 15 + [0] * 10, levels=[1, 2] * 30)


def report(*results):
    comparison = comparison_of({each.name: [each] for each in results})
    return report_of(comparison, topics_of(comparison), experiment_facts(comparison)).markdown()


def concluded(*results):
    return block_markdown(conclusions(comparison_of({each.name: [each] for each in results})))


def test_pair_counts_items():
    pair = compare_pair(OLD, NEW, seed=0)
    assert (pair.n, pair.accuracy_a, pair.accuracy_b) == (60, 34 / 60, 46 / 60)
    assert pair.difference == pytest.approx(0.2)
    assert pair.fixed == [f"test-{i}" for i in range(34, 50)]
    assert pair.broken == [f"test-{i}" for i in range(30, 34)]
    assert pair.p_value == pytest.approx(2 * stats.binom.cdf(4, 20, 0.5))
    assert pair.ci95[0] < 0.2 < pair.ci95[1]


def test_order_of_items_does_not_matter_and_only_shared_items_count():
    back = PolicyResult("grpo", NEW.items[::-1], NEW.metrics)
    assert compare_pair(OLD, back, seed=0) == compare_pair(OLD, NEW, seed=0)
    half = PolicyResult("grpo", NEW.items[:40], NEW.metrics)
    assert (compare_pair(OLD, half, seed=0).n, len(compare_pair(OLD, half, seed=0).fixed)) == (40, 6)


@pytest.mark.parametrize(
    ("sizes", "said"), [([0.573, None, 0.5731], "be 57.3 points"), ([0.13, 0.113], "be 11.3 to 13.0 points")]
)
def test_what_could_have_been_found_is_said_once_where_it_is_alike(sizes, said):
    pairs = [SimpleNamespace(detectable=size) for size in sizes]
    assert said in _detectable(pairs)


def test_all_pairs_are_corrected_together():
    pairs = compare_all([OLD, NEW, SAME], seed=0)
    assert [(p.a, p.b) for p in pairs] == [("sft", "grpo"), ("sft", "rloo"), ("grpo", "rloo")]
    assert [p.p_holm for p in pairs] == pytest.approx(holm([p.p_value for p in pairs]))
    # The level at which a difference must be detectable is Holm's strictest step, so more is needed.
    assert pairs[0].detectable > compare_pair(OLD, NEW, seed=0).detectable


@pytest.mark.parametrize(
    "other,message",
    [
        (result("b", [1] * 60, dataset="finqa"), "dataset is 'sample' for one and 'finqa'"),
        (result("b", [1] * 60, split="val"), "split is 'test' for one and 'val'"),
        (PolicyResult("b", NEW.items.add_prefix("x-", axis=0), NEW.metrics), "0 items in common"),
        (PolicyResult("b", NEW.items.assign(gold="4"), NEW.metrics), "'test-0' has gold '3'"),
    ],
)
def test_different_data_are_not_compared(other, message):
    with pytest.raises(UserError, match=message):
        compare_pair(OLD, other, seed=0)


def test_conclusion_only_where_the_test_supports_it():
    found = concluded(OLD, NEW, SAME)
    assert "**grpo** answers more items correctly than **sft**: 76.7 % against 56.7 %" in found
    assert "than **rloo**" in found and found.count("answers more") == 2
    assert "For the other 1 of 3 pairs the test supports no difference" in found
    assert re.search(r"a true difference has to be [0-9.]+ points to be found with 80 % power\.", found)
    none = concluded(OLD, SAME)
    assert "supports no difference" in none and "more items" not in none
    # Seen from the worse policy the same sentence names the same winner with the same signs.
    back = concluded(NEW, OLD)
    assert "**grpo** answers more items correctly than **sft**" in back and "20.0 points" in back
    assert "interval -" not in back


def test_findings_of_many_policies_share_a_sentence_by_winner():
    many = [result(f"p{n}", [0] * (60 - 10 * n) + [1] * 10 * n) for n in range(7)]
    lines = concluded(*many).splitlines()
    assert lines[0].startswith(
        "- **p6** answers more items correctly than 6 others: **p0** by 100.0, **p1** by 83.3"
    )
    assert lines[5].startswith(
        "- **p1** answers more items correctly than one other: **p0** by 16.7 points (exact McNemar"
    )
    assert len(lines) == 6
    six = concluded(*many[:6]).splitlines()
    assert len(six) == 15 and all("a difference of" in line for line in six)


def test_uncorrected_significance_is_no_conclusion():
    # 6 fixed against none: p = 0.031 alone, but not after correction for three pairs.
    a, b, c = (result(n, [1] * 50 + [0] * k) for n, k in (("sft", 6), ("ppo", 6), ("grpo", 6)))
    b = result("ppo", [1] * 56)
    pairs = compare_all([a, b, c], seed=0)
    assert pairs[0].p_value < 0.05 <= pairs[0].p_holm
    assert "more items" not in concluded(a, b, c)


def test_report_names_numbers_and_items():
    text = report(OLD, NEW)
    assert "| sft → grpo | 60 | +20.0 |" in text and "| 16 | 4 | 0.012 | 0.012 * |" in text
    assert "- fixed, 16: `test-34`, `test-35`" in text and "and 6 more" in text
    assert "- broken, 4: `test-30`, `test-31`, `test-32`, `test-33`\n" in text
    assert "level 1 (n = 30)" in text and "![Accuracy" in text and "(comparison.png)" in text
    assert text == report(OLD, NEW)


def test_report_on_one_policy_claims_nothing():
    text = report(OLD)
    assert "Only one policy, sft" in text and "Paired tests" not in text


def test_policies_come_in_the_order_of_the_pipeline():
    names = ["zeta", "run_002/grpo", "grpo", "distill_sec", "base", "ppo_intrinsic", "ppo", "teacher"]
    expected = ["base", "teacher", "distill_sec", "ppo", "ppo_intrinsic", "grpo", "run_002/grpo", "zeta"]
    assert sorted(names, key=policy_order) == expected


def test_summary_has_one_row_per_policy_and_blank_where_a_rate_is_absent():
    official = result("finqa", [1, 0], program_accuracy=rate(1, 2))
    comparison = comparison_of({"sft": [OLD], "finqa": [official]}, pairs=[])
    rows, columns = summary_table({"accuracy": accuracy.topic(comparison)})
    assert columns[:5] == ["policy", "dataset", "split", "n", "correct"]
    assert [row["policy"] for row in rows] == ["sft", "finqa"]
    assert [row["program_accuracy"] for row in rows] == ["", 0.5]
    assert rows[1]["program_accuracy_low"] == rate(1, 2)["ci95"][0]
    assert all(set(row) <= set(columns) for row in rows)


def write_evaluation(folder, rows):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(OLD.metrics))
    with open(folder / "breakdown.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows(rows)
    return folder / "metrics.json", folder / "breakdown.csv"


def test_results_are_read_from_the_files_of_an_evaluation(tmp_path):
    rows = [
        ["id", "correct", "level", "gold", "report"],
        ["test-0", 1, "", "3", "A/1"],
        ["a,\nb", 0, 2, 'say "3"'],
    ]
    read = load_result("sft", *write_evaluation(tmp_path, rows))
    items = {name: column.tolist() for name, column in read.items.items()}
    assert read.items.index.tolist() == ["test-0", "a,\nb"]
    assert items == {
        "correct": [True, False],
        "level": [None, 2],
        "gold": ["3", 'say "3"'],
        "report": ["A/1", ""],
    }


@pytest.mark.parametrize("bad", [["test-0", "yes", "", "3"], ["test-0", 1, "high", "3"], ["test-0"]])
def test_damaged_breakdown_names_the_line(tmp_path, bad):
    rows = [["id", "correct", "level", "gold"], ["test-9", 1, "", "3"], bad]
    with pytest.raises(UserError, match=r"breakdown.csv:3: not a row"):
        load_result("sft", *write_evaluation(tmp_path, rows))


def test_plot_is_the_same_bytes_and_holds_no_date_or_version(tmp_path):
    drawn = comparison_of({each.name: [each] for each in (OLD, NEW, result("base", [0] * 60))})
    for name in ("a.png", "b.png"):
        accuracy.topic(drawn).files["comparison.png"](tmp_path / name)
    data = (tmp_path / "a.png").read_bytes()
    assert data == (tmp_path / "b.png").read_bytes()
    chunks, position = {}, 8
    while position < len(data):
        length, kind = struct.unpack(">I4s", data[position : position + 8])
        body = data[position + 8 : position + 8 + length]
        assert zlib.crc32(kind + body) == struct.unpack(">I", data[position + 8 + length :][:4])[0]
        chunks[kind] = body
        position += 12 + length
    assert not {b"tEXt", b"iTXt", b"zTXt", b"tIME"} & set(chunks)
    width, height = struct.unpack(">II", chunks[b"IHDR"][:8])
    assert width > 1000 and height > 400


# ------------------------------------------------------------------------------ items that share a report

REPORTS = [f"page_{number // 4}" for number in range(60)]
BY_REPORT = [
    result(each.name, each.items["correct"], levels=[1, 2] * 30, reports=REPORTS) for each in (OLD, NEW)
]


def test_items_that_share_a_report_are_tested_by_report():
    pair, plain = compare_pair(*BY_REPORT, seed=0), compare_pair(OLD, NEW, seed=0)
    d = BY_REPORT[1].items["correct"].to_numpy().astype(int) - BY_REPORT[0].items["correct"]
    clusters = np.arange(60) // 4
    assert (pair.clusters, plain.clusters) == (15, None)
    assert pair.p_value == sign_flip_test([d], clusters) > pair.p_plain == plain.p_value
    assert (pair.plain95, plain.ci95) == (plain.plain95, plain.plain95)
    assert pair.ci95[1] - pair.ci95[0] > plain.ci95[1] - plain.ci95[0]
    assert pair.detectable > plain.detectable
    # An older evaluation names no reports; the other's hold for both.
    assert compare_pair(OLD, BY_REPORT[1], seed=0) == pair


def test_the_report_gives_the_test_by_report_first_and_the_plain_one_beside_it(tmp_path):
    better = result("grpo", [1] * 50 + [0] * 10, levels=[1, 2] * 30, reports=REPORTS)
    worse = result("sft", [1] * 14 + [0] * 46, levels=[1, 2] * 30, reports=REPORTS)
    pair = compare_all([worse, better], seed=0)[0]
    text = report(worse, better)
    assert f"exact test by report, Holm-corrected p {p_text(pair.p_holm)}; n = 60 of 15 reports" in text
    assert "p by report" in text and "The items come from 15 reports" in text
    assert f"| 15 | {points_interval(pair.plain95)} | {p_cell(pair.p_plain)} |" in text
    assert "by report" not in report(OLD, NEW) and "reports" not in report(OLD, NEW)
    comparison = comparison_of({each.name: [each] for each in (worse, better)})
    topics_of(comparison)["difference_tests"].files["pairs.csv"](tmp_path / "pairs.csv")
    [row] = read_csv(tmp_path / "pairs.csv")
    assert (float(row["p"]), float(row["p_plain"])) == (pair.p_value, pair.p_plain)
    assert (row["reports"], row["fixed"], row["broken"]) == ("15", "36", "0")


def test_levels_count_reports_as_well():
    levels = levels_of(comparison_of({each.name: [each] for each in BY_REPORT}))
    plain = levels_of(comparison_of({each.name: [each] for each in (OLD, NEW)}))
    assert levels.parts[1]["sft"].ci95[0] < plain.parts[1]["sft"].ci95[0]


def test_planned_looks_multiply_what_is_corrected():
    once, thrice = compare_all([OLD, NEW, SAME], 0), compare_all([OLD, NEW, SAME], 0, looks=3)
    assert [p.p_holm for p in thrice] == [min(1.0, 3 * p.p_holm) for p in once]
    assert thrice[0].detectable > once[0].detectable
    comparison = comparison_of({each.name: [each] for each in (OLD, NEW)}, looks=3)
    assert (
        "This is one of 3 looks"
        in report_of(comparison, topics_of(comparison), experiment_facts(comparison)).markdown()
    )
    assert "such sequential looks" in report(OLD, NEW) and "one of" not in report(OLD, NEW)


def test_checkpoints_of_one_training_are_named_as_looks_at_it():
    each = {"run_dir": Path("s0"), "seed": 0, "stages": {}, "after_sft": True}
    comparison = comparison_of({each.name: [each] for each in (OLD, NEW, SAME)})
    named = {"sft": ("03_sft", "best"), "grpo": ("06_grpo", "step_8"), "rloo": ("06_grpo", "step_16")}
    comparison.__dict__["trained"] = {
        name: [Trained(training=stage, checkpoint=checkpoint, **each)]
        for name, (stage, checkpoint) in named.items()
    }
    text = text_of(difference_tests.topic(comparison))
    assert "grpo and rloo are checkpoints of one training, looked at one after the other" in text
    assert "sft and" not in text and text.count("are checkpoints of") == 1
    assert "are checkpoints of" not in report(OLD, NEW)
