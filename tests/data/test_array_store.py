"""Committed arrays are returned under their keys, to every process, and nothing else is."""

import errno

import numpy as np
import pytest

from hf_distil_whisper.data import array_store
from hf_distil_whisper.data.array_store import ArrayStore, content_key


def key(number: int) -> bytes:
    return content_key(str(number).encode())


def entry(number: int) -> dict[str, np.ndarray]:
    """Arrays of different lengths, so that a wrong offset shows."""
    return {
        "values": np.full((number % 4 + 1, 3), number, np.float16),
        "ids": np.arange(number % 3 + 1, dtype=np.uint16) + number,
    }


def filled(store: ArrayStore, numbers: range) -> ArrayStore:
    """The entries, in shards of four."""
    for number in numbers:
        store.add(key(number), entry(number))
        if number % 4 == 3:
            store.flush()
    store.flush()
    return store


def assert_holds(store: ArrayStore, numbers: range) -> None:
    for number in numbers:
        arrays = store.get(key(number))
        assert arrays is not None, number
        for name, array in entry(number).items():
            np.testing.assert_array_equal(arrays[name], array, strict=True)


@pytest.mark.parametrize("in_memory", [True, False])
def test_entries_are_returned_under_their_keys_and_there_before_they_are_committed(tmp_path, in_memory):
    """Hidden states of another row would train silently on nonsense; a killed run goes on from its last shard."""
    folder = None if in_memory else tmp_path / "cache"
    store = filled(ArrayStore(folder), range(22))
    store.add(key(22), entry(22))
    assert_holds(store, range(23))
    assert key(22) in store
    assert store.get(key(23)) is None
    assert key(23) not in store
    again = ArrayStore(folder)
    assert len(again) == (0 if in_memory else 22)
    assert key(22) not in again


def test_a_key_depends_on_where_one_part_ends_and_the_next_begins():
    """Labels that take over the end of a prompt would otherwise have the key of other labels."""
    arrays = (np.array([1, 2]),), (np.array([1]), np.array([2]))
    keys = {content_key(*parts) for parts in ((b"ab", b"c"), (b"a", b"bc"), (b"abc",), *arrays)}
    assert len(keys) == 5
    assert all(len(key) == 16 for key in keys)


def test_keys_that_share_their_first_half_are_distinguished():
    """The search goes by the first half alone."""
    store, keys = ArrayStore(), [b"\x07" * 8 + bytes([second]) * 8 for second in range(4)]
    for number in range(3):
        store.add(keys[number], {"values": np.full(1, number)})
    store.flush()
    assert [int(store.get(key)["values"][0]) for key in keys[:3]] == [0, 1, 2]
    assert store.get(keys[3]) is None


def test_a_reload_shows_what_other_processes_have_committed(tmp_path):
    """Each process fills its share; all of them train on everything."""
    first, second = ArrayStore(tmp_path), ArrayStore(tmp_path)
    filled(first, range(5))
    filled(second, range(5, 9))
    first.reload()
    assert_holds(first, range(9))


def test_a_shard_is_committed_when_enough_bytes_are_pending(tmp_path, monkeypatch):
    """One shard for everything would lose everything when the run is killed."""
    monkeypatch.setattr(array_store, "SHARD_BYTES", 100)
    store = ArrayStore(tmp_path)
    for number in range(40):
        store.add(key(number), entry(number))
    assert 30 < len(ArrayStore(tmp_path)) < 40


def test_a_url_is_refused():
    """Shards are mapped into memory."""
    with pytest.raises(ValueError, match="--teacher_cache_dir to a local folder"):
        ArrayStore("memory://cache")


def test_a_full_disk_is_named_and_what_was_written_stays(tmp_path, monkeypatch):
    """A bare errno does not say what remains of hours of the teacher's work, nor what to do."""
    store = filled(ArrayStore(tmp_path), range(4))

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    store.add(key(4), entry(4))
    with pytest.raises(OSError, match=r"No space left.*written before is kept.*--teacher_cache_dir"):
        store.flush()
    monkeypatch.undo()
    assert_holds(ArrayStore(tmp_path), range(4))
