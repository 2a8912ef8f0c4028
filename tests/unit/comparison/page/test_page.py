"""report.html without a browser: what goes into it, what does not, and that bytes repeat."""

import base64
import gzip
import json
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.report_folders import POLICIES, make_page, make_run
from tests.support.scripts import execute_stage
from utils.comparison.page import page as html_report
from utils.comparison.page.page_data import BLOCK, dequantise, encode, page_data, quantise
from utils.documents.document import Paragraph, Section, Table, strong
from utils.frame.files import UserError, read_json, read_jsonl, write_jsonl

HOSTILE = "</script><img src=x onerror=alert(1)><b>\u202e`*[a](javascript:alert(1))"


def chunks_of(page):
    """Name -> decoded data block of a page; what is not UTF-8 is replaced, as a browser does."""
    found = re.findall(r'<script type="text/plain" id="chunk-([a-z]+(?:-\d+)?)">([^<]*)</script>', page)
    unpacked = {name: gzip.decompress(base64.b64decode(text)) for name, text in found}
    return {name: json.loads(text.decode(errors="replace")) for name, text in unpacked.items()}


def one_run(folders):
    return {name: [folder] for name, folder in folders.items()}


@given(st.lists(st.one_of(st.none(), st.floats(-40, 40).map(lambda v: round(v, 4))), min_size=1, max_size=60))
def test_a_stored_value_keeps_its_sign_and_the_stated_error(values):
    array = np.array(values, dtype=np.float64)
    known = array[~np.isnan(array)]
    largest = float(np.abs(known).max(initial=0.0))
    back = dequantise(quantise(array, largest), largest)
    assert (np.isnan(back) == np.isnan(array)).all()
    back = back[~np.isnan(back)]
    assert (back * known >= 0).all()
    # Half a step of the square scale: d(max q^2) = 2 max q dq, and dq^2 next to zero.
    bound = np.sqrt(np.abs(known) * largest) / 127 + largest / 127**2
    assert (np.abs(back - known) <= bound + 1e-12).all()
    letters = encode(values, largest)
    assert [ord(letter) - 0x180 for letter in letters] == quantise(array, largest).tolist()


def test_colours_are_not_spent_on_values_next_to_nothing(tmp_path):
    def edit(policy, row, tokens):
        length = len(tokens["tokens"])
        right = row["id"] != "test-0"
        tokens["values"] = {
            "intrinsic": [-0.0007] * length if right else [-10.0] * length,
            "x": [0.0] * length,
        }

    data = page_data(one_run(make_run(tmp_path, items=200, edit=edit)), [""])
    shown = {each["name"]: each["shown"] for each in data.index["measures"]}
    assert shown == {"intrinsic": 10.0, "x": 0.0}


def test_every_answer_and_token_value_is_in_the_page(tmp_path):
    folders = make_run(tmp_path / "run", items=BLOCK + 7)
    page = make_page(folders, tmp_path / "report.html").read_text()
    chunks = chunks_of(page)
    index = chunks["index"]
    scale = {each["name"]: each for each in index["measures"]}
    assert list(scale) == ["intrinsic", "advantage", "log_ratio", "kl_teacher", "kl_reference", "log_prob"]
    for place, policy in enumerate(POLICIES):
        rows = read_jsonl(folders[policy] / "samples" / "predictions.jsonl")
        tokens = read_jsonl(folders[policy] / "samples" / "tokens.jsonl")
        assert index["answers"][place][0]["correct"] == "".join(str(int(row["correct"])) for row in rows)
        for item, (row, of_tokens) in enumerate(zip(rows, tokens, strict=True)):
            block, within = divmod(item, BLOCK)
            answer = chunks[f"answers-{block}"][within][place][0]
            assert (answer["response"], answer["rewards"]) == (row["response"], row["rewards"])
            reason = index["answers"][place][0]["reasons"][item]
            assert (index["reasons"][reason] if reason >= 0 else "") == row["failure_reason"]
            stored = chunks[f"tokens-{block}"][within][place][0]
            assert stored["pieces"] == of_tokens["tokens"]
            for name, values in of_tokens["values"].items():
                largest, error = scale[name]["largest"], scale[name]["error"]
                for letter, value in zip(stored["values"][name], values, strict=True):
                    q = ord(letter) - index["first_code"]
                    if value is None:
                        assert q == index["unknown"]
                    else:
                        assert abs(math.copysign(largest * (q / 127) ** 2, q) - value) <= error + 1e-9
    assert chunks["prompts-1"][0]["prompt"].startswith("report: ")
    assert chunks["samples-0"][0][0][0][1]["correct"] is True


def test_the_same_inputs_give_the_same_bytes(tmp_path, monkeypatch):
    make = []
    for name, now in (("a", 1e9), ("b", 2e9)):
        monkeypatch.setattr("gzip.time.time", lambda now=now: now)
        make.append(make_page(make_run(tmp_path / name / "run", items=30), tmp_path / name / "report.html"))
    assert make[0].read_bytes() == make[1].read_bytes()
    assert str(tmp_path) not in make[0].read_text()


def test_hostile_text_is_never_markup(tmp_path):
    def edit(policy, row, tokens):
        for key in ("question", "response", "value", "gold", "failure_reason", "type"):
            row[key] = HOSTILE
        row["response"] += "\ud800"
        row["rewards"] = {HOSTILE: 1.0, "__proto__": 2.0}
        tokens["tokens"][0] = HOSTILE

    folders = make_run(tmp_path / "run", items=4, edit=edit)
    section = Section("<i>head", [Table(["<i>"], [[HOSTILE], [strong(HOSTILE)]]), Paragraph(HOSTILE)])
    page = make_page(folders, tmp_path / "report.html", section, claim=HOSTILE).read_text()
    assert "<img src=x" not in page and "<i>" not in page
    assert page.count("javascript:") == page.count("[a](javascript:alert(1))") == 4  # text, and no address
    assert page.count("</script>") == len(chunks_of(page)) + 1
    assert chunks_of(page)["answers-0"][0][0][0]["response"] == HOSTILE + "\ufffd" * 3


def test_the_policy_lets_nothing_in_and_nothing_out(tmp_path):
    page = make_page(make_run(tmp_path / "run", items=4), tmp_path / "report.html").read_text()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[1]
    assert policy.startswith("default-src 'none'; img-src data:; ") and "unsafe" not in policy
    for tag in ("style", "script"):
        text = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert len(text) == 1
        assert f"{tag}-src '{html_report.csp_hash(text[0])}'" in policy
    assert not re.search(r'(src|href)="(?!data:|#|[\w.-]+")', page)


def test_early_evaluations_are_shown_and_what_they_lack_is_named(tmp_path):
    folders = make_run(tmp_path / "run", items=4, bare=True)
    (folders["ppo"] / "samples" / "predictions.jsonl").unlink()
    page = make_page(folders, tmp_path / "report.html").read_text()
    chunks = chunks_of(page)
    assert {name.split("-")[0] for name in chunks} == {"index", "answers"}
    assert chunks["answers-0"][0][1][0]["value"] in ("0", "1")
    for words in (
        "No responses of ppo",
        "No token values of any policy",
        "No reward components",
        "No prompts",
        "No sampled answers",
    ):
        assert words in page


def test_what_does_not_fit_is_left_out_in_words(tmp_path, monkeypatch):
    folders = make_run(tmp_path / "run", items=3 * BLOCK)
    whole = make_page(folders, tmp_path / "whole.html")
    text = whole.read_text()
    size = sum(map(len, re.findall(r'id="chunk-[^"]*">([^<]*)<', text)))
    limit = len(text.encode()) - size // 2 + html_report.RESERVE
    monkeypatch.setattr(html_report, "LIMIT", limit)
    page = make_page(folders, tmp_path / "report.html").read_text()
    left_out = set(chunks_of(text)) - set(chunks_of(page))
    assert {"tokens-2", "prompts-2"} & left_out
    assert not left_out & {"index", "answers-0", "answers-1", "answers-2", "tokens-0"}
    assert re.search(rf"Tokens of items \d+ to {3 * BLOCK} are left out", page)
    assert len(page.encode()) <= limit


@pytest.mark.parametrize("value", [math.nan, math.inf, "x", [1.0]])
def test_a_token_value_that_is_no_finite_number_is_an_error(tmp_path, value):
    def edit(policy, row, tokens):
        tokens["values"]["intrinsic"][0] = value

    with pytest.raises(UserError, match="'intrinsic' of item 'test-0' is not a finite number"):
        page_data(one_run(make_run(tmp_path, items=2, edit=edit)), [""])


def test_damaged_rows_are_errors_that_name_file_and_row(tmp_path):
    def fewer(policy, row, tokens):
        tokens["values"]["intrinsic"].pop()

    def reward(policy, row, tokens):
        row["rewards"]["total"] = math.nan

    with pytest.raises(UserError, match="tokens.jsonl: row 1 needs an id, tokens"):
        page_data(one_run(make_run(tmp_path / "a", items=2, edit=fewer)), [""])
    with pytest.raises(UserError, match="rewards 'total' of item 'test-0' is nan"):
        page_data(one_run(make_run(tmp_path / "b", items=2, edit=reward)), [""])
    folders = make_run(tmp_path / "c", items=2)
    (folders["sft"] / "samples" / "predictions.jsonl").write_text('{"id": "test-0"}\n')
    with pytest.raises(UserError, match="predictions.jsonl: row 1 needs an id and whether it is correct"):
        page_data(one_run(folders), [""])


def test_fixed_and_broken_are_counted_over_all_seeds():
    answers = [[{"correct": "0011"}, {"correct": "01-1"}], [{"correct": "1010"}, {"correct": "1111"}]]
    index = {"policies": ["a", "b"], "answers": answers}
    assert html_report._changed(index, "a", "b") == {"fixed": 2, "broken": 1}
    assert html_report._changed(index, "b", "a") == {"fixed": 1, "broken": 2}


@pytest.mark.usefixtures("unrendered")
def test_stage_11_writes_the_page_and_lists_it(tmp_path):
    write_jsonl(
        tmp_path / "gsm8k" / "test.jsonl",
        [{"question": f"what is {i} + 1?", "answer": f"{i} + 1.\n#### {i + 1}"} for i in range(6)],
    )
    out = ["--outputs_root", str(tmp_path / "outputs")]
    data = ["--dataset_config", "configs/datasets/gsm8k.yaml", "--data_root", str(tmp_path / "gsm8k")]
    for policy, step in (("one", 1), ("two", 2)):
        file = tmp_path / f"{policy}.jsonl"
        write_jsonl(file, [{"index": i, "response": f"#### {i + i % step + 1}"} for i in range(6)])
        argv = ["--predictions", str(file), "--policy", policy, *data, *out]
        assert execute_stage("10_evaluate.py", argv) == 0
    assert execute_stage("11_compare_runs.py", out) == 0
    folder = tmp_path / "outputs" / "run_001" / "11_comparison"
    assert "11_comparison/report.html" in read_json(folder / "manifest.json")["outputs"]
    index = chunks_of((folder / "report.html").read_text())["index"]
    assert [of[0]["correct"] for of in index["answers"]] == ["111111", "101010"]
    assert index["ids"] == [f"test-{i}" for i in range(6)]
