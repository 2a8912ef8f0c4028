"""The teacher-score cache: eviction against a slow reference, state over save and load, damage, sharing."""

import json
import logging
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from utils.frame.config import load_tier
from utils.frame.files import UserError
from utils.models import score_cache
from utils.models.score_cache import ENTRY_BYTES, EVICTION, SHARED_FILE, ScoreCache, open_cache, score_key
from utils.models.settings import ModelConfig, TeacherCacheSection

UNIT = ENTRY_BYTES + 8  # an entry of one token


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def scores(number: int, length: int = 1) -> np.ndarray:
    """Distinct scores for every key, so that a mix-up shows."""
    return np.arange(2 * length, dtype=np.float32).reshape(2, length) + 100 * number


class SlowCache:
    """The reference: one list of entries, searched from end to end, and each rule of eviction spelt out."""

    def __init__(self, capacity: int, eviction: str):
        self.capacity, self.eviction = capacity, eviction
        self.entries: list[dict] = []
        self.clock = 0
        self.counts = {"hits": 0, "misses": 0, "evictions": 0}

    def find(self, number: int) -> dict | None:
        return next((entry for entry in self.entries if entry["number"] == number), None)

    def get(self, number: int):
        self.clock += 1
        entry = self.find(number)
        self.counts["misses" if entry is None else "hits"] += 1
        if entry is None:
            return None
        entry["count"] += 1
        entry["used"] = entry["reached"] = self.clock
        return entry["scores"]

    def put(self, number: int, values: np.ndarray) -> None:
        self.clock += 1
        size = ENTRY_BYTES + values.nbytes
        if size > self.capacity or self.find(number):
            return
        while sum(entry["size"] for entry in self.entries) + size > self.capacity:
            self.entries.remove(min(self.entries, key=self.turn))
            self.counts["evictions"] += 1
        now = {"made": self.clock, "used": self.clock, "reached": self.clock, "count": 1}
        self.entries.append({"number": number, "scores": values, "size": size} | now)

    def turn(self, entry: dict):
        return {
            "lru": entry["used"],
            "fifo": entry["made"],
            "lfu": (entry["count"], entry["reached"]),
        }[self.eviction]

    def stats(self) -> dict[str, int]:
        held = {"entries": len(self.entries), "bytes": sum(entry["size"] for entry in self.entries)}
        return self.counts | held


def held(cache: ScoreCache) -> dict[bytes, list]:
    return {name: entry.scores.tolist() for name, entry in cache._listed()}


# Look a key up and store its scores where they are missing, as a teacher does; or save and load.
steps = st.lists(st.integers(0, 7) | st.just("reload"), max_size=60)


@given(
    steps,
    st.sampled_from(sorted(EVICTION)),
    st.integers(0, 5 * UNIT),
    st.lists(st.integers(1, 90), min_size=8, max_size=8),
)
def test_evictions_equal_a_slow_reference_also_after_saving_and_loading(
    tmp_path_factory, operations, eviction, capacity, lengths
):
    path = tmp_path_factory.getbasetemp() / "property.safetensors"
    cache, slow = ScoreCache(capacity, eviction), SlowCache(capacity, eviction)
    for step in operations:
        if step == "reload":
            cache.save(path)
            cache = ScoreCache(capacity, eviction)
            cache.load(path)
        elif capacity:
            found, wanted = cache.get(key(step)), slow.get(step)
            assert (found is None) == (wanted is None)
            if found is None:
                cache.put(key(step), scores(step, lengths[step]))
                slow.put(step, scores(step, lengths[step]))
            else:
                np.testing.assert_array_equal(found, wanted)
        assert cache.stats == slow.stats()
        assert cache.stats["bytes"] <= capacity
    wanted = {key(entry["number"]): entry["scores"].tolist() for entry in sorted(slow.entries, key=slow.turn)}
    assert list(held(cache).items()) == list(wanted.items())


def test_the_three_rules_drop_different_entries():
    dropped = {}
    for eviction in EVICTION:
        cache = ScoreCache(3 * UNIT, eviction)
        for number in (0, 1, 2):
            cache.put(key(number), scores(number))
        for number in (0, 0, 2, 1, 2):  # oldest 0, least often 1, longest ago 0... then 1
            cache.get(key(number))
        cache.put(key(3), scores(3))
        dropped[eviction] = {0, 1, 2} - {int.from_bytes(name, "big") for name in held(cache)}
    assert dropped == {"lru": {0}, "lfu": {1}, "fifo": {0}}


def test_capacity_0_is_off_and_returns(tmp_path):
    """The earlier implementation looped for ever here."""
    cache = ScoreCache(0)
    cache.put(key(1), scores(1))
    assert cache.get(key(1)) is None
    cache.save(tmp_path / "file")
    assert not cache.load(tmp_path / "file")
    cache.publish()
    assert cache.stats == {"hits": 0, "misses": 0, "evictions": 0, "entries": 0, "bytes": 0}
    assert open_cache(TeacherCacheSection(capacity_mb=0, folder=str(tmp_path / "no"))).capacity == 0
    assert not (tmp_path / "no").exists()


def test_an_entry_larger_than_the_capacity_is_not_stored_and_drops_nothing():
    cache = ScoreCache(2 * UNIT)
    cache.put(key(1), scores(1))
    cache.put(key(2), scores(2, 200))
    assert cache.get(key(2)) is None and cache.get(key(1)) is not None
    assert cache.stats["evictions"] == 0


def test_what_is_stored_is_a_copy_and_counts_its_bytes():
    cache, values = ScoreCache(10**6), scores(1, 5)
    cache.put(key(1), values)
    values[:] = -1
    np.testing.assert_array_equal(cache.get(key(1)), scores(1, 5))
    assert cache.stats["bytes"] == ENTRY_BYTES + 5 * 8
    cache.put(key(2), scores(2).astype(np.float64))
    assert cache.get(key(2)).dtype == np.float32


def test_keys_tell_apart_everything_scores_depend_on():
    prompt, completion = np.array([5, 6, 7]), np.array([8, 9])
    keys = {
        score_key("teacher", prompt, completion),
        score_key("other", prompt, completion),
        score_key("teacher", prompt[:2], np.array([7, 8, 9])),  # the same tokens, cut elsewhere
        score_key("teacher", prompt, completion[:1]),
        score_key("teacher", prompt + 256, completion),
    }
    assert len(keys) == 5 and all(len(name) == 32 for name in keys)
    assert score_key("teacher", prompt.astype(np.int32), completion.astype(np.int32)) in keys


# ------------------------------------------------------------------------------------------------ the file


def filled(eviction: str = "lru", capacity: int = 10**6) -> ScoreCache:
    cache = ScoreCache(capacity, eviction)
    for number in range(5):
        cache.get(key(number))
        cache.put(key(number), scores(number, number + 1))
    for number in (3, 0, 3):
        cache.get(key(number))
    return cache


@pytest.mark.parametrize("eviction", EVICTION)
def test_saving_leaves_the_cache_as_it_was_and_loading_gives_the_same(tmp_path, eviction):
    cache = filled(eviction)
    stats, entries = cache.stats, list(held(filled(eviction)).items())
    cache.save(tmp_path / "a")
    assert cache.stats == stats and list(held(cache).items()) == entries
    other = filled("fifo")  # what it held before is gone
    other.eviction = eviction
    assert other.load(tmp_path / "a")
    assert other.stats == stats and list(held(other).items()) == entries
    other.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_counts_of_use_survive_saving_in_full(tmp_path):
    cache = ScoreCache(2 * UNIT, "lfu")
    for number, hits in ((1, 3), (2, 1)):
        cache.put(key(number), scores(number))
        for _ in range(hits):
            cache.get(key(number))
    cache.save(tmp_path / "scores")
    cache = ScoreCache(2 * UNIT, "lfu")
    cache.load(tmp_path / "scores")
    cache.get(key(2))  # 3 uses now, against 4
    cache.put(key(3), scores(3))
    assert list(held(cache)) == [key(3), key(1)]


def test_the_file_is_safetensors_with_two_numbers_a_token(tmp_path):
    """The earlier implementation pickled full logits."""
    filled().save(tmp_path / "scores")
    with safe_open(tmp_path / "scores", framework="numpy") as file:
        assert file.get_tensor("scores").shape == (2, 1 + 2 + 3 + 4 + 5)


def test_a_smaller_cache_keeps_what_would_be_dropped_last(tmp_path):
    filled("lru").save(tmp_path / "scores")
    small = ScoreCache(2 * ENTRY_BYTES + 8 * 5)
    small.load(tmp_path / "scores")
    assert list(held(small)) == [key(0), key(3)]
    filled("lru").save(tmp_path / "scores")
    often = ScoreCache(1 * ENTRY_BYTES + 8 * 5, "lfu")
    often.load(tmp_path / "scores")
    assert list(held(often)) == [key(3)]  # used most


def rewrite(path: Path, change) -> None:
    """Write the file again with a right checksum, after `change(tensors, counts)`."""
    with safe_open(path, framework="numpy") as file:
        tensors = {name: file.get_tensor(name).copy() for name in ("keys", "lengths", "uses", "scores")}
        counts = json.loads(file.metadata()["about"])["counts"]
    tensors = change(tensors, counts) or tensors
    about = {"counts": counts, "checksum": score_cache._checksum(tensors, counts)}
    save_file(tensors, path, metadata={"about": json.dumps(about)})


def flip_byte(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def poison(tensors, counts):
    tensors["scores"][1, 3] = np.nan


def shorten(tensors, counts):
    tensors["lengths"][-1] += 1


def widen(tensors, counts):
    return tensors | {"scores": np.concatenate([tensors["scores"]] * 2)}


def negate(tensors, counts):
    tensors["lengths"][3:] += [-1, 1]  # the fourth entry has one token


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-4]),
    "no header": lambda path: path.write_bytes(path.read_bytes()[:6]),
    "not safetensors": lambda path: path.write_text("{}"),
    "a pickle": lambda path: path.write_bytes(b"\x80\x04\x95" + b"." * 200),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a number changed": lambda path: flip_byte(path, -1),
    "statistics changed": lambda path: path.write_bytes(
        path.read_bytes().replace(b'\\"hits\\": 3', b'\\"hits\\": 9')
    ),
    "of another program": lambda path: save_file({"weight": np.zeros(3, np.float32)}, path),
    "a tensor missing": lambda path: save_file({"keys": np.zeros(3)}, path, metadata={"about": "{}"}),
    "not a number": lambda path: rewrite(path, poison),
    "lengths beyond the scores": lambda path: rewrite(path, shorten),
    "scores of another shape": lambda path: rewrite(path, widen),
    "a length of 0": lambda path: rewrite(path, negate),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_one_warning_an_empty_cache_and_a_rebuilt_file(tmp_path, caplog, damage):
    path = tmp_path / "scores.safetensors"
    filled().save(path)
    before = path.read_bytes()
    DAMAGE[damage](path)
    assert path.is_dir() or path.read_bytes() != before
    cache = filled()
    with caplog.at_level(logging.WARNING):
        assert not cache.load(path)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "scores.safetensors: damaged (" in caplog.text and "\n" not in caplog.messages[0]
    assert cache.stats == {"hits": 0, "misses": 0, "evictions": 0, "entries": 0, "bytes": 0}
    if path.is_dir():
        path.rmdir()
    filled().save(path)
    assert path.read_bytes() == before and cache.load(path)


def test_a_missing_file_is_an_empty_cache_without_a_word(tmp_path, caplog):
    assert not ScoreCache(1000).load(tmp_path / "none")
    assert not caplog.records


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "scores"
    filled().save(path)
    before = path.read_bytes()

    def broken(tensors, temporary, metadata):
        Path(temporary).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(score_cache, "save_file", broken)
    with pytest.raises(OSError, match="disk full"):
        ScoreCache(1000).save(path)
    assert path.read_bytes() == before and [entry.name for entry in tmp_path.iterdir()] == ["scores"]


# ---------------------------------------------------------------------------------------- a shared folder


def section(folder: Path, **more) -> TeacherCacheSection:
    return TeacherCacheSection(folder=str(folder), **more)


def test_a_shared_folder_is_read_at_the_start_and_merged_into_at_the_end(tmp_path):
    first, second = (open_cache(section(tmp_path / "shared")) for _ in range(2))
    first.put(key(1), scores(1))
    second.put(key(2), scores(2))
    second.get(key(2))
    first.publish()
    second.publish()
    third = open_cache(section(tmp_path / "shared"))
    assert list(held(third)) == [key(1), key(2)]
    assert third.stats["hits"] == 0  # statistics are each run's own
    np.testing.assert_array_equal(third.get(key(1)), scores(1))


def test_what_a_run_used_counts_as_more_recent_than_what_others_left(tmp_path):
    limits = {"capacity_mb": 2 * UNIT / 1e6}
    one = open_cache(section(tmp_path, **limits))
    for number in (1, 2):
        one.put(key(number), scores(number))
    one.publish()
    two = open_cache(section(tmp_path, **limits))
    two.get(key(1))
    two.put(key(3), scores(3))  # drops 2
    two.publish()
    assert list(held(open_cache(section(tmp_path, **limits)))) == [key(1), key(3)]


def test_merging_under_lfu_keeps_what_is_used_most(tmp_path):
    limits = {"capacity_mb": 2 * UNIT / 1e6, "eviction": "lfu"}
    one, two = (open_cache(section(tmp_path, **limits)) for _ in range(2))
    one.put(key(1), scores(1))
    for _ in range(3):
        one.get(key(1))
    for number in (2, 3):
        two.put(key(number), scores(number))
    two.get(key(2))
    one.publish()
    two.publish()
    assert list(held(open_cache(section(tmp_path, **limits)))) == [key(2), key(1)]


def test_a_damaged_shared_file_is_rebuilt(tmp_path, caplog):
    (tmp_path / SHARED_FILE).write_bytes(b"broken")
    cache = open_cache(section(tmp_path))
    assert "damaged" in caplog.text and cache.stats["entries"] == 0
    cache.put(key(1), scores(1))
    cache.publish()
    assert list(held(open_cache(section(tmp_path)))) == [key(1)]


def publish_one(folder: str, number: int, barrier) -> None:
    cache = open_cache(TeacherCacheSection(folder=folder))
    barrier.wait()
    for step in range(5):
        cache.put(key(10 * number + step), scores(number))
        cache.publish()


def test_processes_that_publish_at_once_lose_nothing(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    processes = [
        context.Process(target=publish_one, args=(str(tmp_path), number, barrier)) for number in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    wanted = {key(10 * number + step) for number in range(4) for step in range(5)}
    assert set(held(open_cache(section(tmp_path)))) == wanted
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", SHARED_FILE]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"teacher_cache.folder: .*file/below cannot be made \(Not a directory\)"
    ):
        open_cache(section(tmp_path / "file" / "below"))


def test_a_folder_that_cannot_be_written_at_the_end_costs_a_warning_only(tmp_path, caplog):
    cache = open_cache(section(tmp_path / "shared"))
    cache.put(key(1), scores(1))
    (tmp_path / "shared").rmdir()
    (tmp_path / "shared").write_text("in the way")
    cache.publish()
    assert "the teacher cache could not be saved (" in caplog.text


def test_the_configuration_refuses_what_it_cannot_mean():
    with pytest.raises(UserError, match="teacher_cache.capacity_mb must be at least 0"):
        load_tier(ModelConfig, None, {"teacher_cache.capacity_mb": -1})
    with pytest.raises(UserError, match="must be one of lru, lfu, fifo"):
        load_tier(ModelConfig, None, {"teacher_cache.eviction": "mru"})
    with pytest.raises(ValueError, match="eviction in lru, lfu, fifo"):
        ScoreCache(1, "mru")
