"""The readers: counts of the published files, every kind of damage, and rows that survive it."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.raw_rows import finqa_item, math_item
from utils.data.boxed import last_boxed
from utils.data.readers import all_readers
from utils.data.readers.finqa import count_steps
from utils.data.readers.gsm8k import strip_marks
from utils.data.reading import FILE, MAX_ROW_CHARS
from utils.data.settings import DatasetConfig
from utils.data.sources import raw_files, read_split


def read(tmp_path: Path, content: bytes | str, name: str = "train.json"):
    """Write one raw file and read it with the reader its name calls for."""
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    form = "finqa" if name.endswith(".json") else name.removesuffix(".jsonl")
    return all_readers()[form].read(path, "train")


def found(problems) -> list[tuple[str, str, str]]:
    return [(problem.severity, problem.code, problem.place.partition(" (")[0]) for problem in problems]


# ------------------------------------------------------------------------------------ published files


# Rows of MATH whose question asks for several answers, boxed one by one: 12 of train, 8 of test.
SEVERAL_BOXES = (
    *(335, 505, 3461, 3695, 3998, 6781, 6817, 6844, 6923, 7226, 7322, 7415),
    *(415, 2153, 2550, 2657, 2704, 4560, 4563, 4861),
)


@pytest.mark.parametrize(
    ("dataset", "counts"),
    [
        ("finqa", {"train": 1677, "val": 450, "test": 431}),
        ("gsm8k", {"train": 7473, "test": 1319}),
        ("math", {"train": 7500, "test": 5000}),
    ],
)
def test_published_counts(shared_data, dataset, counts):
    config = DatasetConfig(dataset=dataset, data_root=str(shared_data / dataset))
    splits = {split: read_split(config, split, path) for split, path in raw_files(config).items()}
    assert {split: raw.items for split, raw in splits.items()} == counts
    problems = [p for raw in splits.values() for p in raw.problems]
    if dataset == "math":
        assert sorted(found(problems)) == [
            ("error", "unparsable_gold", "line 5342"),
            ("error", "unparsable_gold", "line 5344"),
            ("warning", "no_level", "line 2774"),
            ("warning", "no_level", "line 2833"),
            *(("warning", "several_boxes", f"line {number}") for number in sorted(SEVERAL_BOXES, key=str)),
        ]
        assert sum(problem.file == "train.jsonl" for problem in problems) == 4 + 12
    else:
        assert problems == []


def test_published_quirks(shared_data):
    rows, _ = all_readers()["finqa"].read(shared_data / "finqa" / "dataset" / "train.json", "train")
    answers = [row.answer for row in rows]
    assert sum(answer in ("yes", "no") for answer in answers) == 19
    assert sum("id ending in -xN" in row.traits for row in rows) == 415
    assert sum("no qa.answer" in row.traits for row in rows) == 1677 - 322
    assert rows[0].id == "ETR/2009/page_107.pdf-2" and rows[0].answer == "0.34719"
    rows, _ = all_readers()["gsm8k"].read(shared_data / "gsm8k" / "train.jsonl", "train")
    assert sum("answer with thousands separators" in row.traits for row in rows) == 79
    assert not any("," in row.answer for row in rows)
    assert (rows[0].id, rows[0].answer, rows[0].level, rows[0].source) == (
        "train-0",
        "72",
        2,
        "train.jsonl#0",
    )


# ------------------------------------------------------------------------------------- damaged arrays


def test_whole_array(tmp_path):
    rows, problems = read(tmp_path, json.dumps([finqa_item(1), finqa_item(2)]))
    assert problems == [] and [row.row for row in rows] == [0, 1]
    assert rows[1].source == "train.json#1" and rows[1].level == 1 and rows[1].answer == "2"
    assert rows[0].report == "ABC/2010/page_1.pdf"


def test_truncated_array_keeps_whole_items(tmp_path):
    text = json.dumps([finqa_item(n) for n in range(5)])
    rows, problems = read(tmp_path, text[: len(text) - 40])
    assert [row.row for row in rows] == [0, 1, 2, 3]
    assert found(problems) == [("error", "bad_json", "row 4"), ("error", "truncated_file", FILE)]
    rows, problems = read(tmp_path, text[:-1])
    assert len(rows) == 5 and found(problems) == [("error", "truncated_file", FILE)]


def test_syntax_error_names_line_and_column_and_reading_goes_on(tmp_path):
    lines = [json.dumps(finqa_item(n)) for n in range(3)]
    lines[1] = lines[1].replace('"program": ', '"program" ', 1)
    rows, problems = read(tmp_path, "[\n" + ",\n".join(lines) + "\n]")
    assert [row.row for row in rows] == [0, 2]
    assert found(problems) == [("error", "bad_json", "row 1")]
    column = lines[1].index('"program" ') + len('"program" ') + 1
    assert f"line 3 column {column}" in problems[0].message


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda items: items.__setitem__(1, [1, 2]), "not_an_object"),
        (lambda items: items.__setitem__(1, "text"), "not_an_object"),
        (lambda items: items[1].pop("id"), "missing_key"),
        (lambda items: items[1].pop("pre_text"), "missing_key"),
        (lambda items: items[1].pop("table"), "missing_key"),
        (lambda items: items[1].pop("qa"), "missing_key"),
        (lambda items: items[1]["qa"].pop("exe_ans"), "missing_key"),
        (lambda items: items[1].update(qa=[]), "wrong_type"),
        (lambda items: items[1].update(table={"a": 1}), "wrong_type"),
        (lambda items: items[1].update(table=["a row"]), "wrong_type"),
        (lambda items: items[1].update(table=[["a", {}]]), "wrong_type"),
        (lambda items: items[1].update(pre_text=5), "wrong_type"),
        (lambda items: items[1]["qa"].update(question=""), "empty_value"),
        (lambda items: items[1]["qa"].update(program=7), "wrong_type"),
        (lambda items: items[1]["qa"].update(program="five"), "unparsable_gold"),
        (lambda items: items[1]["qa"].update(exe_ans=float("nan")), "not_finite"),
        (lambda items: items[1]["qa"].update(exe_ans=float("-inf")), "not_finite"),
        (lambda items: items[1]["qa"].update(exe_ans="many"), "unparsable_gold"),
        (lambda items: items[1]["qa"].update(exe_ans=True), "wrong_type"),
        (lambda items: items[1]["qa"].update(exe_ans=10**400), "unparsable_gold"),
        (lambda items: items[1].update(id=items[0]["id"]), "duplicate_id"),
        (lambda items: items[1]["qa"].update(question="half \ud800 pair"), "not_unicode"),
    ],
)
def test_damaged_item_is_an_error_at_its_row_and_the_rest_is_used(tmp_path, change, code):
    items = [finqa_item(n) for n in range(3)]
    change(items)
    rows, problems = read(tmp_path, json.dumps(items))
    assert [row.row for row in rows] == [0, 2]
    assert ("error", code, "row 1") in found(problems)
    assert {problem.place for problem in problems} == {"row 1 (line 1)"}


@pytest.mark.parametrize(
    ("item", "code"),
    [
        (finqa_item(exe_ans="2.0"), "text_for_number"),
        (finqa_item(table=[["", "2010"], ["cash", 5]]), "number_for_text"),
        (finqa_item(table=[["", "2010"], ["cash", None]]), "number_for_text"),
        (finqa_item(table=[]), "empty_table"),
        (finqa_item(table=[[]]), "empty_table"),
        (finqa_item(table=[["", "2010"], ["cash"]]), "ragged_table"),
        (finqa_item(pre_text="one text ."), "text_for_list"),
        (finqa_item(id=17), "number_for_text"),
        (finqa_item(answer=float("nan")), "not_finite"),
    ],
)
def test_readable_oddity_is_a_warning_and_the_row_is_used(tmp_path, item, code):
    rows, problems = read(tmp_path, json.dumps([item]))
    assert len(rows) == 1 and found(problems) == [("warning", code, "row 0")]
    assert rows[0].answer == "2"


def test_byte_order_mark_and_utf16_are_read_with_a_warning(tmp_path):
    text = json.dumps([finqa_item()])
    for content, code in ((b"\xef\xbb\xbf" + text.encode(), "bom"), (text.encode("utf-16"), "utf16")):
        rows, problems = read(tmp_path, content)
        assert len(rows) == 1 and found(problems) == [("warning", code, FILE)]


def test_latin1_bytes_are_an_error_of_their_row_alone(tmp_path):
    items = [finqa_item(1), finqa_item(2, question="what is the café ?"), finqa_item(3)]
    rows, problems = read(tmp_path, json.dumps(items, ensure_ascii=False).encode("latin-1"))
    assert [row.row for row in rows] == [0, 2]
    assert found(problems) == [("error", "wrong_encoding", "row 1")]
    assert problems[0].id == items[1]["id"] and "0xe9" in problems[0].message


@pytest.mark.parametrize("content", [b"", b" \n", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("name", ["train.json", "gsm8k.jsonl"])
def test_empty_file(tmp_path, content, name):
    rows, problems = read(tmp_path, content, name)
    assert rows == [] and ("error", "empty_file", FILE) in found(problems)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("[]", "no_rows"),
        ("[" + json.dumps([finqa_item(1), finqa_item(2)]) + "]", "text_after_end"),
        ("null", "not_an_array"),
        (json.dumps({"rows": [finqa_item()]}), "not_an_array"),
        (json.dumps([finqa_item()]) + "]", "text_after_end"),
        (json.dumps([finqa_item()]) + json.dumps([finqa_item(2)]), "text_after_end"),
        (json.dumps([finqa_item(1), finqa_item(2)]).replace('}, {"qa"', '} {"qa"'), "bad_json"),
    ],
)
def test_damaged_structure_is_an_error_of_the_file_and_whole_items_are_used(tmp_path, text, code):
    rows, problems = read(tmp_path, text)
    assert len(rows) == text.count('"exe_ans"')
    assert ("error", code, FILE) in found(problems)


def test_over_long_and_over_deep_items(tmp_path):
    huge = finqa_item(2, extra="x" * (MAX_ROW_CHARS + 1))
    deep = json.dumps(finqa_item(3)).replace('"2010"', "[" * 100_000)
    text = f"[{json.dumps(finqa_item(1))}, {json.dumps(huge)}, {deep}, {json.dumps(finqa_item(4))}]"
    rows, problems = read(tmp_path, text)
    assert [row.row for row in rows] == [0, 3]
    assert found(problems) == [("error", "too_long", "row 1"), ("error", "bad_json", "row 2")]


def test_the_search_for_whole_items_is_bounded(tmp_path):
    rows, problems = read(tmp_path, "[" + json.dumps(finqa_item()) + ", x" + "{" * 30_000)
    assert len(rows) == 1 and ("error", "gave_up", FILE) in found(problems)


def test_50_mb_line(tmp_path):
    lines = ['{"question": "a ?", "answer": "b\\n#### 1"}'] * 2
    lines.insert(1, '{"question": "' + "x" * 50_000_000 + '", "answer": "b\\n#### 1"}')
    rows, problems = read(tmp_path, "\n".join(lines), "gsm8k.jsonl")
    assert [row.id for row in rows] == ["train-0", "train-2"]
    assert found(problems) == [("error", "too_long", "line 2")] and "50.0 million" in problems[0].message


DAMAGE = st.binary(max_size=4) | st.sampled_from(
    [b"}", b"{", b"]", b"[", b",", b'"', b"\\", b"}]", b"\n", b'"qa"']
)


@given(
    data=st.data(), victim=st.integers(0, 4), damage=DAMAGE, width=st.integers(0, 30), indent=st.booleans()
)
def test_random_damage_to_one_item_leaves_the_others(tmp_path_factory, data, victim, damage, width, indent):
    items = [json.dumps(finqa_item(n), indent=1 if indent else None).encode() for n in range(5)]
    whole = {row.id: row for row in read(tmp_path_factory.getbasetemp(), b"[" + b", ".join(items) + b"]")[0]}
    start = data.draw(st.integers(0, len(items[victim])))
    items[victim] = items[victim][:start] + damage + items[victim][start + width :]
    rows, problems = read(tmp_path_factory.getbasetemp(), b"[" + b", ".join(items) + b"]")
    survivors = {row.id: row for row in rows}
    for number in set(range(5)) - {victim}:
        id_ = f"ABC/2010/page_{number}.pdf-1"
        for name in ("question", "program", "answer", "pre_text", "post_text", "table"):
            assert getattr(survivors[id_], name) == getattr(whole[id_], name)
    if len(survivors) < 5:
        assert any(problem.severity == "error" for problem in problems)


@given(content=st.binary(max_size=200), keep=st.integers(0, 2000))
def test_any_bytes_give_problems_and_never_an_exception(tmp_path_factory, content, keep):
    folder = tmp_path_factory.getbasetemp()
    whole = json.dumps([finqa_item(1), finqa_item(2)]).encode()
    for name in ("train.json", "gsm8k.jsonl", "math.jsonl"):
        for raw in (content, whole[:keep] + content):
            rows, problems = read(folder, raw, name)
            assert rows or any(problem.severity == "error" for problem in problems)
            json.dumps([problem.to_json() for problem in problems], ensure_ascii=False).encode()


# ---------------------------------------------------------------------------------------- GSM8K, MATH


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("[1, 2]", "not_an_object"),
        ('{"question": "q ?"}', "missing_key"),
        ('{"question": "q ?", "answer": 5}', "wrong_type"),
        ('{"question": "q ?", "answer": NaN}', "not_finite"),
        ('{"question": "q ?", "answer": "no final number"}', "unparsable_gold"),
        ('{"question": "q ?", "answer": "x\\n#### many"}', "unparsable_gold"),
        ('{"question": "q ?", "answer": "x\\n#### .,"}', "unparsable_gold"),
        ('{"question": "q ?", "answer": "x\\n#### 1/2"}', "unparsable_gold"),  # read in part: 1
        ('{"question": "q ?", "answer": "x\\n#### 10:30"}', "unparsable_gold"),
        ('{"question": "q ?", "answer": "x\\n#### 5-7"}', "unparsable_gold"),
        ('{"question": "q ?", "answer": "x\\n#### 9{,}500"}', "unparsable_gold"),
        ('{"question": "q ?", "answer": "x\\n#### 12,34"}', "unparsable_gold"),
        ('{"question": "q ?", "answer": "x\\n#### 3"', "bad_json"),
        ('{"id": "train-0", "question": "q ?", "answer": "x\\n#### 3"}', "duplicate_id"),
    ],
)
def test_gsm8k_damage(tmp_path, line, code):
    good = '{"question": "a ?", "answer": "b = <<1*1=1>>1\\nc\\n#### 1,250"}'
    rows, problems = read(tmp_path, f"{good}\n\n{line}\r\n{good}\n", "gsm8k.jsonl")
    assert [(row.row, row.place, row.answer, row.level) for row in rows] == [
        (0, "line 1", "1250", 2),
        (2, "line 4", "1250", 2),
    ]
    assert ("error", code, "line 3") in found(problems)


def test_calculator_marks_are_stripped():
    assert strip_marks("16-3 = <<16-3=13>>13 << 2") == "16-3 = 13 << 2"


@pytest.mark.parametrize(
    ("item", "answer", "level", "codes"),
    [
        (math_item(), r"\frac{1}{2}", 3, []),
        (math_item(answer=r"\frac{1}{2}", level=5), r"\frac{1}{2}", 5, []),
        (math_item(level="2"), r"\frac{1}{2}", 2, []),
        (math_item(level="Level ?"), r"\frac{1}{2}", None, ["no_level"]),
        (math_item(level=[]), r"\frac{1}{2}", None, ["no_level"]),
        (math_item(answer="0.5"), "0.5", 3, ["answer_differs"]),
        (math_item(solution=r"none \boxed{}"), None, None, ["unparsable_gold"]),
        (math_item(solution="no box"), None, None, ["unparsable_gold"]),
        (math_item(solution=r"open \boxed{3"), None, None, ["unparsable_gold"]),
        (math_item(answer=3), "3", 3, ["answer_differs"]),
        (math_item(answer=0.5, solution=r"so \boxed{0.5}"), "0.5", 3, []),
        (math_item(answer=True), None, None, ["wrong_type"]),
        (math_item(type=3), None, None, ["wrong_type"]),
    ],
)
def test_math_rows(tmp_path, item, answer, level, codes):
    rows, problems = read(tmp_path, json.dumps(item), "math.jsonl")
    assert [problem.code for problem in problems] == codes
    assert [(row.answer, row.level) for row in rows] == ([] if answer is None else [(answer, level)])


def test_math_original_folders(tmp_path):
    for number, type_ in ((10, "algebra"), (2, "algebra"), (1, "geometry")):
        folder = tmp_path / "train" / type_
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.json").write_text(json.dumps(math_item(problem=f"{type_} {number} ?")))
    (tmp_path / "train" / "geometry" / "2.json").write_text('{"problem": ')
    (tmp_path / "train" / "geometry" / "3.json").write_text("")
    rows, problems = all_readers()["math"].read(tmp_path / "train", "train")
    assert [(row.id, row.question, row.source) for row in rows] == [
        ("train-0", "algebra 2 ?", "train/algebra/2.json#0"),
        ("train-1", "algebra 10 ?", "train/algebra/10.json#1"),
        ("train-2", "geometry 1 ?", "train/geometry/1.json#2"),
    ]
    assert [(p.file, p.code, p.place) for p in problems] == [
        ("train/geometry/2.json", "bad_json", "row 3"),
        ("train/geometry/3.json", "empty_file", "row 4"),
    ]
    (tmp_path / "empty").mkdir()
    assert all_readers()["math"].read(tmp_path / "empty", "train")[1][0].code == "empty_folder"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{\left\{1\right\}}", r"\left\{1\right\}"),
        (r"$\boxed 7$", "7"),
        (r"\fbox{a{b}c} end", "a{b}c"),
        (r"\boxed{unclosed", None),
        ("", None),
    ],
)
def test_last_boxed(text, answer):
    assert last_boxed(text) == answer


@pytest.mark.parametrize(
    ("program", "steps"),
    [
        ("subtract(5, 3), divide(#0, 3)", 2),
        ("table_max(add (net), none)", 1),
        ("greater(1, 2)", 1),
        ("answer", 0),
    ],
)
def test_count_steps(program, steps):
    assert count_steps(program) == steps
