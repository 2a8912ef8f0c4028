"""Errors of a full disk, of a limit on files and of memory, as Python, torch and safetensors raise them."""

import errno
import resource
import signal

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from utils.frame.shortages import refusal, shortage

WEIGHTS = {"weight": torch.zeros(100_000)}


@pytest.fixture
def small_files():
    """No file can grow beyond 4,096 bytes; Python has the signal that says so ignored."""
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def in_parts(path):
    with open(path, "wb") as file:
        file.write(bytes(100_000))


@pytest.mark.parametrize(
    "write",
    [in_parts, lambda path: torch.save(WEIGHTS, path), lambda path: save_file(WEIGHTS, path)],
    ids=["python", "torch", "safetensors"],
)
def test_a_file_that_may_not_grow_is_one_line_whoever_writes_it(tmp_path, small_files, write):
    with pytest.raises((OSError, RuntimeError, SafetensorError)) as raised:
        write(tmp_path / "weights")
    said = refusal(raised.value)
    assert "limit on file sizes (ulimit -f)" in said and "\n" not in said


def test_memory_that_is_not_there_is_one_line():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert "out of memory" in shortage(raised.value)
    with pytest.raises(MemoryError) as raised:
        bytearray(1 << 62)
    assert shortage(raised.value).startswith("out of memory; free memory")


def test_what_a_library_raises_in_place_of_the_system_s_error_is_known_by_it():
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "weights.bin")
        except OSError as error:
            raise ValueError("cannot save") from error
    except ValueError as error:
        assert shortage(error).startswith("weights.bin: no space left on device; free space or")


def test_compiled_code_that_fails_without_a_word_is_out_of_memory_where_that_is_limited(monkeypatch):
    """Seen of matplotlib under `ulimit -v`."""
    error = SystemError("error return without exception set")
    assert shortage(error) is None
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1 << 30, 1 << 30))
    assert shortage(error).startswith("out of memory (error return without exception set); free memory")


def test_a_bug_stays_one():
    for error in (ValueError("no space"), KeyError("memory"), RuntimeError("shapes"), OSError("odd")):
        assert refusal(error) is None
    denied = OSError(errno.EACCES, "Permission denied", "a")
    assert "a: permission denied; mend" in refusal(denied) and shortage(denied) is None
    try:
        try:
            raise denied
        except OSError:
            raise KeyError("a bug in what mends it") from None
    except KeyError as error:
        assert refusal(error) is None
