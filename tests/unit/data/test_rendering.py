"""Rendering: what the model sees and is taught, and what cutting may and may not touch."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.data.reading import RawRow
from utils.data.records import Record, load_records
from utils.data.rendering import approximate_tokens, split_sentences, table_lines
from utils.data.settings import DatasetConfig
from utils.frame.files import UserError

ROW = RawRow(
    file="train.json",
    row=3,
    place="row 3",
    id="a-1",
    question="what was the change in  cash from 2009 to 2010 ?",
    answer="2",
    program="subtract(5, 3)",
    demonstration="subtract(3, 5)",
    evidence=("cash 2010 5", "cash 2009 3"),
    pre_text=("the company grew . it sold cats .", "cash was held in banks .", "."),
    post_text=("dogs were not sold .",),
    table=(("( in millions )", "2010", "2009"), ("cash", "5", "3"), ("cats", "", "$ 7 ( 7 )")),
    gold_places=("table_1",),
    level=1,
)


def render(
    row: RawRow = ROW, dataset: str = "finqa", style: str = "rows", limit: int | None = None, **options
):
    counting = {"count_tokens": options.pop("count_tokens")} if "count_tokens" in options else {}
    config = DatasetConfig(dataset=dataset, table_style=style, max_input_tokens=limit, **options)
    return config.form.record(row, config, **counting)


def test_rows_style_is_the_whole_report_with_the_question_last():
    record, cut = render(instruction="Answer with\na program.")
    assert record.input_text == (
        "Answer with a program.\nthe company grew .\nit sold cats .\ncash was held in banks .\n"
        "( in millions ) | 2010 | 2009\ncash | 5 | 3\ncats |  | $ 7 ( 7 )\ndogs were not sold .\n"
        "question: what was the change in cash from 2009 to 2010 ?"
    )
    assert cut is None and record.source == "train.json#3"
    assert record.table == [
        ["( in millions )", "2010", "2009"],
        ["cash", "5", "3"],
        ["cats", "", "$ 7 ( 7 )"],
    ]


def test_facts_style_is_a_line_per_cell_without_headings():
    assert [text for _, text in table_lines(ROW.table, "facts")] == [
        "cash 2010 5\ncash 2009 3",
        "cats 2009 $ 7 ( 7 )",
    ]
    ragged = (("", "2010"), ("cash", "5", "6"), ("heading",), ("", ""), ())
    assert [text for _, text in table_lines(ragged, "facts")] == ["cash 2010 5\ncash 6", "heading"]
    assert table_lines((), "facts") == table_lines((), "rows") == []


def test_targets_teach_the_demonstration_and_grade_the_gold():
    record, _ = render(response_fields=("evidence", "program"))
    assert record.target_text == '{"evidence": "cash 2010 5 ; cash 2009 3", "program": "subtract(3, 5)"}'
    assert (record.target_program, record.target_answer) == ("subtract(5, 3)", "2")
    assert json.loads(render()[0].target_text) == {"program": "subtract(3, 5)", "answer": "2"}
    gsm8k = RawRow("t", 0, "line 1", "train-0", "how many ?", "13", solution="16-3 = <<16-3=13>>13\n#### 13")
    record, _ = render(gsm8k, "gsm8k", instruction="Think.")
    assert (record.input_text, record.target_text) == ("how many ?\nThink.", "16-3 = 13\n#### 13")
    assert render(gsm8k, "gsm8k", calculator_marks=True)[0].target_text == gsm8k.solution


def test_sentences_joined_in_one_string_are_split():
    joined = "net sales rose 2.5% ( 2.5 % ) . they fell in 2009 . why ? ."
    assert split_sentences(joined) == ["net sales rose 2.5% ( 2.5 % ) .", "they fell in 2009 .", "why ?"]
    assert split_sentences(" . ") == []


def test_least_related_goes_first():
    order = []
    for limit in range(60, 10, -1):
        lines = render(limit=limit)[0].input_text.split("\n")
        order += [line for line in render()[0].input_text.split("\n") if line not in lines + order]
    # The first two share no word with the question: the one farther from the table goes first.
    assert order[:3] == ["it sold cats .", "dogs were not sold .", "the company grew ."]
    assert order[3:] == ["cash was held in banks .", "cats |  | $ 7 ( 7 )", "cash | 5 | 3"]


def test_cut_counts_what_went():
    record, cut = render(limit=1)
    assert record.input_text == "( in millions ) | 2010 | 2009\nquestion: " + " ".join(ROW.question.split())
    assert (cut.sentences, cut.rows, cut.evidence_lost, cut.still_over) == (4, 2, 1, True)
    assert cut.tokens_after == approximate_tokens(record.input_text) < cut.tokens_before


VOCABULARY = ["cash", "debt", "sold", "in", "2009", "2010", "5", "3,100", "the", ".", "( )", "%"]
WORDS = st.lists(st.sampled_from(VOCABULARY), max_size=8)
TEXT = WORDS.map(" ".join)
ROWS = st.builds(
    RawRow,
    file=st.just("f"),
    row=st.just(0),
    place=st.just("row 0"),
    id=st.just("i"),
    question=TEXT.map("what ? {}".format),
    answer=st.just("1"),
    program=st.just("add(1, 1)"),
    pre_text=st.lists(TEXT, max_size=5).map(tuple),
    post_text=st.lists(TEXT, max_size=5).map(tuple),
    table=st.lists(st.lists(TEXT, max_size=4).map(tuple), max_size=5).map(tuple),
)


@given(row=ROWS, limit=st.integers(1, 120), style=st.sampled_from(["rows", "facts"]), gold=st.booleans())
def test_cutting_keeps_question_and_header_and_never_looks_at_the_gold(row, limit, style, gold):
    whole = render(row, style=style)[0].input_text.split("\n")
    record, cut = render(row, style=style, limit=limit)
    lines = record.input_text.split("\n")
    assert lines[-1] == whole[-1] == "question: " + " ".join(row.question.split())
    remaining = iter(whole)
    assert all(line in remaining for line in lines)  # a subsequence: order kept, nothing added
    header = dict(table_lines(row.table, "rows")).get("table_0")
    assert style == "facts" or header is None or header in lines
    assert approximate_tokens(record.input_text) <= limit or cut.still_over
    assert (cut is None) == (lines == whole) or cut.still_over
    other = dataclasses.replace(row, answer="7", program="add(2, 2)", gold_places=("text_0", "table_1"))
    assert render(other, style=style, limit=limit)[0].input_text == record.input_text


def test_limit_is_held_for_any_tokenizer():
    def characters(text: str) -> int:
        return len(text)

    record, _ = render(limit=150, count_tokens=characters)
    assert len(record.input_text) <= 150 and record.input_text.endswith("2010 ?")


def test_a_retrieved_context_is_the_most_related_within_its_budget():
    record, cut = render(context="retrieved", context_tokens=20)
    assert record.input_text.split("\n") == [
        "( in millions ) | 2010 | 2009",  # 15 of the 20 tokens
        "cash | 5 | 3",
        "question: what was the change in cash from 2009 to 2010 ?",
    ]
    assert (cut.evidence_lost, cut.still_over, record.evidence) == (0, False, "")
    # The row of cats does not fit any more; a shorter sentence that is less related does.
    assert render(context="retrieved", context_tokens=24)[0].input_text.startswith("it sold cats .\n( in")
    assert render(context="retrieved", context_tokens=16)[1].evidence_lost == 1
    assert render(context="retrieved", context_tokens=1000)[1] is None


@given(row=ROWS, budget=st.integers(1, 80), limit=st.integers(1, 120))
def test_a_retrieved_context_keeps_its_budget_and_the_limit_and_never_looks_at_the_gold(row, budget, limit):
    lines = render(row, context="retrieved", context_tokens=budget)[0].input_text.split("\n")
    header = dict(table_lines(row.table, "rows")).get("table_0", "")
    context = sum(map(approximate_tokens, lines[:-1]))
    assert context <= max(budget, approximate_tokens(header))
    record, cut = render(row, context="retrieved", context_tokens=budget, limit=limit)
    assert approximate_tokens(record.input_text) <= limit or cut.still_over
    other = dataclasses.replace(row, answer="7", program="add(2, 2)", gold_places=("text_0", "table_1"))
    assert render(other, context="retrieved", context_tokens=budget)[0].input_text.split("\n") == lines


def test_a_gold_context_is_header_evidence_and_question_and_says_whose_evidence():
    gold = dataclasses.replace(ROW, gold_places=("table_2", "text_0"), places_derived=True)
    record, cut = render(gold, context="gold")
    assert record.input_text.split("\n")[:-1] == [
        "the company grew .",
        "it sold cats .",
        "( in millions ) | 2010 | 2009",
        "cats |  | $ 7 ( 7 )",
    ]
    assert (record.evidence, cut.evidence_lost, cut.rows, cut.sentences) == ("derived", 0, 1, 2)
    assert render(context="gold")[0].evidence == "annotated"
    with pytest.raises(ValueError, match="context must be full for gsm8k"):
        DatasetConfig(dataset="gsm8k", context="gold").validate()


def test_each_line_is_tokenised_once_where_lines_add_up():
    counted = []

    def words(text: str) -> int:  # every word and every line break is a token
        counted.append(text)
        return len(text.replace("\n", " . ").split())

    render(limit=30, count_tokens=words)
    lines = [text for text in counted if "cash was held" in text]
    assert lines == ["cash was held in banks .\n"]  # neither alone again, nor within the whole


def test_the_whole_decides_where_lines_do_not_add_up():
    def marked(text: str) -> int:  # every text begins with a token of its own
        return 1 + approximate_tokens(text)

    for limit in range(36, 80):
        record, cut = render(limit=limit, count_tokens=marked)
        assert marked(record.input_text) <= limit
        assert cut is None or cut.tokens_after == marked(record.input_text)


# ---------------------------------------------------------------------------------- records, prompts


def test_records_survive_the_file(tmp_path):
    record = dataclasses.replace(render()[0], question="naïve “q”\u2028 ?")
    (tmp_path / "r.jsonl").write_text(
        json.dumps(record.to_json(), ensure_ascii=False) + "\n\n", encoding="utf-8"
    )
    assert load_records(tmp_path / "r.jsonl") == [record]
    assert list(record.to_json()) == [field.name for field in dataclasses.fields(Record)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"level": "3"}, "'level' must be an integer"),
        ({"level": True}, "'level' must be an integer"),
        ({"table": [["a", 1]]}, "'table' must be"),
        ({"id": 5}, "'id' must be text"),
        ({"surprise": 1}, "unknown key 'surprise'"),
        ({"target_answer": None}, "'target_answer' must be text"),
    ],
)
def test_a_bad_record_is_named_by_line(tmp_path, change, message):
    good = render()[0].to_json()
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(good) + "\n" + json.dumps(good | {"id": "b"} | change) + "\n")
    with pytest.raises(UserError, match=r"r\.jsonl:2: .*" + message):
        load_records(path)


def test_a_repeated_id_and_a_broken_line_are_named(tmp_path):
    good = json.dumps(render()[0].to_json())
    path = tmp_path / "r.jsonl"
    for second, message in (
        (good, "already used in line 1"),
        ("{", "not valid JSON"),
        ("[]", "expected an object"),
    ):
        path.write_text(f"{good}\n{second}\n")
        with pytest.raises(UserError, match=rf"r\.jsonl:2: .*{message}"):
            load_records(path)
