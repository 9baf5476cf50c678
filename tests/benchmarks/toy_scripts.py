"""What the tests of scripts share; a new process imports the functions that it measures from here."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

Printed, Refused = Callable[..., str], Callable[..., None]
"""Types of the fixtures `printed` and `refused`."""


def write_texts(corpus: str, text: str | None) -> str:
    """Gives every row this reference; returns the path."""
    file = Path(corpus, "metadata.jsonl")
    rows = [{**json.loads(line), "text": text} for line in file.read_text().splitlines()]
    file.write_text("\n".join(map(json.dumps, rows)))
    return corpus


MEGABYTE = 2**20


def hold(megabytes: int) -> float:
    buffers = [np.ones(MEGABYTE, dtype=np.uint8) for _ in range(megabytes)]
    time.sleep(0.1)  # to be looked at
    return float(sum(map(len, buffers)))


def free(megabytes: int) -> float:
    """Buffers one after the other, none of which fits where the one before was, each behind a little that stays."""
    little = [np.ones(8 * MEGABYTE, dtype=np.uint8)[:1000].tobytes()]  # glibc holds on to this size from now on
    for number in range(megabytes):
        buffer = np.ones(MEGABYTE + 65536 * number, dtype=np.uint8)
        little.append(buffer[:2000].tobytes())
    return float(len(little))


def read_mapped(path: str) -> float:
    return float(np.memmap(path, dtype=np.uint8, mode="r").sum())


def fail() -> float:
    os._exit(3)


def killed(*_: object) -> float:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0.0
