"""Measurements in a process of their own: what is held counts, what was freed or is only mapped does not."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from own_process import (
    ProcessEndedError,
    in_own_process,
)

MEGABYTE = 2**20


def nothing() -> float:
    return 0.0


def hold(megabytes: int) -> float:
    held = [np.ones(MEGABYTE, dtype=np.uint8) for _ in range(megabytes)]
    time.sleep(0.1)  # to be looked at
    return float(sum(map(len, held)))


def free(megabytes: int) -> float:
    """Buffers one after the other, none of which fits where the one before was, each behind a little that stays."""
    little = [np.ones(8 * MEGABYTE, dtype=np.uint8)[:1000].tobytes()]  # glibc keeps up to this size from now on
    for number in range(megabytes):
        buffer = np.ones(MEGABYTE + 65536 * number, dtype=np.uint8)
        little.append(buffer[:2000].tobytes())
    return float(len(little))


def read_mapped(path: str) -> float:
    return float(np.memmap(path, dtype=np.uint8, mode="r").sum())


def fail() -> float:
    os._exit(3)


def test_what_is_held_counts_and_what_is_freed_or_mapped_does_not(tmp_path: Path) -> None:
    np.ones(100 * MEGABYTE, dtype=np.uint8).tofile(tmp_path / "file")
    least = in_own_process(nothing)[1]
    assert in_own_process(hold, 100)[1] - least > 99 * MEGABYTE
    assert in_own_process(free, 100)[1] - least < 16 * MEGABYTE
    assert in_own_process(read_mapped, str(tmp_path / "file"))[1] - least < 10 * MEGABYTE


def test_the_environment_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARROW_DEFAULT_MEMORY_POOL", "mimalloc")
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    in_own_process(nothing)
    assert os.environ["ARROW_DEFAULT_MEMORY_POOL"] == "mimalloc"
    assert "MALLOC_MMAP_THRESHOLD_" not in os.environ


def test_a_process_that_ends_without_a_result_is_an_error() -> None:
    with pytest.raises(ProcessEndedError, match="fail: the process ended with 3"):
        in_own_process(fail)
