"""download.sh: copies from a mirror, refuses damaged files and leaves what was there."""

import contextlib
import json
import subprocess
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from utils.data import download
from utils.frame.files import REPO_ROOT, UserError, sha256_of

ROWS = {
    "finqa": {"id": "a", "pre_text": [], "post_text": [], "table": [["x"]], "qa": {"question": "?"}},
    "gsm8k": {"question": "1 + 1?", "answer": "#### 2"},
    "math": {"problem": "1 + 1?", "level": "Level 1", "type": "Algebra", "solution": "\\boxed{2}"},
}


@pytest.fixture
def mirror(tmp_path) -> Path:
    """A small mirror: two rows a file, and one model."""
    folder = tmp_path / "mirror"
    for name, data_set in download.DATA_SETS.items():
        for file in data_set.rows:
            path = folder / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = [ROWS[name]] * 2
            text = json.dumps(rows) if file.endswith(".json") else "".join(json.dumps(r) + "\n" for r in rows)
            path.write_text(text)
    model = folder / "models" / "org" / "tiny"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "tokenizer.json").write_text("{}")
    (model / "notes.bin").write_text("not wanted")
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (model / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    return folder


@pytest.fixture
def get(tmp_path, capsys):
    """Run the command on a datasets folder of its own; returns (exit code, output, last error line)."""

    def call(*argv: str) -> tuple[int, str, str]:
        code = download.main(list(argv), tmp_path / "datasets")
        out, err = capsys.readouterr()
        return code, out, err.splitlines()[-1] if err else ""

    return call


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_mirror_is_copied_checked_and_summed(get, mirror, tmp_path):
    code, out, _ = get("--from", str(mirror))
    assert code == 0
    assert "finqa/dataset/train.json: 2 rows (note: the official file has 6,251)" in out.splitlines()
    root = tmp_path / "datasets"
    for name, data_set in download.DATA_SETS.items():
        for file in data_set.rows:
            assert (root / name / file).read_bytes() == (mirror / name / file).read_bytes()
        done = subprocess.run(["sha256sum", "--check", "CHECKSUMS"], cwd=root / name, capture_output=True)
        assert done.returncode == 0 and done.stdout.count(b": OK") == len(data_set.rows)
    assert sorted(path.name for path in root.iterdir()) == ["finqa", "gsm8k", "math"]


def test_official_counts_get_no_note(get, shared_data):
    code, out, _ = get("--from", str(shared_data), "gsm8k", "math")
    assert code == 0
    assert out.splitlines() == [
        "gsm8k/train.jsonl: 7,473 rows",
        "gsm8k/test.jsonl: 1,319 rows",
        "math/train.jsonl: 7,500 rows",
        "math/test.jsonl: 5,000 rows",
    ]


@pytest.mark.parametrize(
    "file, content, words",
    [
        ("finqa/dataset/dev.json", lambda b: b[:-20], "finqa/dataset/dev.json:1: not valid JSON"),
        ("finqa/dataset/dev.json", lambda b: b"[]", "dev.json: holds no rows"),
        ("finqa/dataset/dev.json", lambda b: b'{"a": 1}', "dev.json: must hold a list of rows"),
        ("finqa/dataset/dev.json", lambda b: b"[1]", "dev.json: row 0 is not an object"),
        ("finqa/dataset/dev.json", lambda b: b.replace(b'"qa"', b'"qb"'), 'dev.json: row 0 has no "qa"'),
        ("gsm8k/test.jsonl", lambda b: b[:-5], "gsm8k/test.jsonl:2: not valid JSON"),
        ("gsm8k/test.jsonl", lambda b: b"", "test.jsonl: holds no rows"),
        ("gsm8k/test.jsonl", lambda b: b"<html>404</html>", "test.jsonl:1: not valid JSON"),
        ("math/train.jsonl", lambda b: b"\xff" + b, "math/train.jsonl:1: not UTF-8"),
        ("math/train.jsonl", None, "math/train.jsonl: no such file in the mirror"),
    ],
)
def test_a_damaged_mirror_is_named_and_changes_nothing(get, mirror, tmp_path, file, content, words):
    assert get("--from", str(mirror))[0] == 0
    before = everything(tmp_path / "datasets")
    path = mirror / file
    path.unlink() if content is None else path.write_bytes(content(path.read_bytes()))
    code, out, err = get("--from", str(mirror), file.split("/")[0])
    assert code == 2 and err.startswith("error: ") and str(mirror) in err and words in err and out == ""
    assert everything(tmp_path / "datasets") == before


def test_a_file_cut_at_a_row_is_caught_by_the_mirror_s_checksums(get, mirror, tmp_path):
    path = mirror / "gsm8k" / "train.jsonl"
    (mirror / "gsm8k" / "CHECKSUMS").write_text(f"{sha256_of(path)}  train.jsonl\n")
    assert get("--from", str(mirror), "gsm8k")[0] == 0
    path.write_text(path.read_text().splitlines()[0] + "\n")
    code, _, err = get("--from", str(mirror), "gsm8k")
    assert code == 2 and "train.jsonl: is not what" in err


def test_a_model_is_copied_without_what_could_carry_code(get, mirror, tmp_path):
    code, out, _ = get("--from", str(mirror), "model", "org/tiny")
    assert code == 0 and "--model.name_or_path datasets/models/org/tiny" in out
    names = {path.name for path in (tmp_path / "datasets/models/org/tiny").iterdir()}
    assert names == {"config.json", "tokenizer.json", "model.safetensors", "CHECKSUMS"}


@pytest.mark.parametrize(
    "file, content, words",
    [
        ("model.safetensors", lambda b: b[:-1], "model.safetensors is truncated ("),
        ("model.safetensors", lambda b: b + b"x", "model.safetensors is truncated ("),
        ("model.safetensors", lambda b: b[:30], "model.safetensors is truncated (30 bytes)"),
        ("model.safetensors", lambda b: b"", "model.safetensors is truncated (0 bytes)"),
        ("model.safetensors", lambda b: b[:8] + b"?" + b[9:], "model.safetensors is not a safetensors file"),
        ("model.safetensors", None, "has no .safetensors weights"),
        ("config.json", lambda b: b"{", "config.json:1: not valid JSON"),
        ("config.json", None, "has no config.json"),
        ("tokenizer.json", None, "has no tokenizer"),
    ],
)
def test_a_damaged_model_is_named(get, mirror, tmp_path, file, content, words):
    path = mirror / "models" / "org" / "tiny" / file
    path.unlink() if content is None else path.write_bytes(content(path.read_bytes()))
    code, _, err = get("--from", str(mirror), "model", "org/tiny")
    assert code == 2 and err.startswith("error: model org/tiny: ") and words in err
    assert not everything(tmp_path / "datasets")


def test_a_missing_shard_is_named(get, mirror):
    index = {"weight_map": {"w": "model.safetensors", "v": "model-2.safetensors"}}
    (mirror / "models/org/tiny/model.safetensors.index.json").write_text(json.dumps(index))
    assert "shard model-2.safetensors is missing" in get("--from", str(mirror), "model", "org/tiny")[2]


@pytest.mark.parametrize(
    "argv, words",
    [
        (["finqqa"], '"finqqa" is not a data set (finqa, gsm8k, math); for a hub model: model finqqa'),
        (["--to", "x"], "unknown option --to"),
        (["--from"], "--from needs a folder"),
        (["--from", "/no/such/folder"], "--from /no/such/folder: no such folder"),
        (["model"], "or a hub model's name"),
        (["model", "../../etc"], '"../../etc" is not a hub name'),
    ],
)
def test_wrong_use_is_one_line(get, argv, words):
    code, out, err = get(*argv)
    assert code == 2 and words in err and out == ""


# ------------------------------------------------------------------------------ over the network


class Handler(BaseHTTPRequestHandler):
    """Serves one body at every path; /cut promises more than it sends, /absent is a 404."""

    def do_GET(self):
        body = json.dumps(ROWS["gsm8k"]).encode() + b"\n"
        self.send_response(404 if "absent" in self.path else 200)
        self.send_header("Content-Length", str(len(body) + (9 if "cut" in self.path else 0)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=partial(httpd.serve_forever, 0.01), daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}/"
        httpd.shutdown()


@pytest.mark.parametrize(
    "path, words", [("", ""), ("cut/", "broke off after"), ("absent/", "the server answered 404")]
)
def test_fetching_over_http(get, monkeypatch, tmp_path, path, words):
    with server() as address:
        served = download.DataSet(rows={"train.jsonl": 1}, keys=("question", "answer"), url=address + path)
        monkeypatch.setitem(download.DATA_SETS, "gsm8k", served)
        code, out, err = get("gsm8k")
    if words:
        assert code == 2 and words in err and not everything(tmp_path / "datasets")
    else:
        assert code == 0 and out == "gsm8k/train.jsonl: 1 rows\n"


def test_without_a_network_it_says_so(tmp_path):
    with pytest.raises(UserError, match="cannot be reached .*--from FOLDER"):
        download.fetch_url("http://127.0.0.1:1/x", tmp_path / "x")


def test_math_from_parquet(tmp_path, monkeypatch):
    import pyarrow
    import pyarrow.parquet

    def fetch(name, target, kind, patterns, revision=None):
        (target / "data").mkdir(parents=True)
        for split in ("train", "test"):
            table = pyarrow.Table.from_pylist([ROWS["math"] | {"extra": 1}] * 3)
            pyarrow.parquet.write_table(table, target / "data" / f"{split}-00000-of-00001.parquet")

    monkeypatch.setattr(download, "fetch_hub", fetch)
    assert download.get_data_set("math", tmp_path, None)[0].startswith("math/train.jsonl: 3 rows (note")
    rows = [json.loads(line) for line in (tmp_path / "math/test.jsonl").read_text().splitlines()]
    assert rows == [ROWS["math"] | {"answer": "2"}] * 3


def test_help_of_the_script():
    done = subprocess.run(
        ["bash", str(REPO_ROOT / "download.sh"), "--help"], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0 and "--from FOLDER" in done.stdout and "#!" not in done.stdout
