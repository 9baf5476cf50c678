"""A measurement in a process of its own, so that the memory it takes is that of nothing else."""

import multiprocessing
import os
import resource
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


class ProcessEndedError(RuntimeError):
    """A process ended without a result, as one does that the system kills for its memory.

    Args:
        message (`str`): what ended.
        killed (`bool`): whether by a signal, and not by an error of its own.
    """

    def __init__(self, message: str, killed: bool):
        super().__init__(message)
        self.killed = killed


_GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": str(128 * 1024), "ARROW_DEFAULT_MEMORY_POOL": "system"}
"""Has glibc and Arrow give buffers back as soon as they are freed: else they keep tens of MB, the more the longer a
process runs."""


def peak_bytes() -> int:
    """The most memory that this process has taken so far, libraries included."""
    if Path("/proc/self/status").is_file():  # `ru_maxrss` begins at what the parent took when it started this process
        return _from_status("VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def resident_bytes() -> int:
    """The memory that this process takes now; where the system does not tell, the most it has taken so far."""
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[1]) * resource.getpagesize() if pages.is_file() else peak_bytes()


def in_own_process(measure: Callable[..., float], *arguments: Any) -> tuple[float, int]:
    """Runs a function of a module in a new process.

    Args:
        measure (`Callable`): gives a number.
        arguments: of it; they are sent to the process.

    Returns:
        `tuple[float, int]`: what it gave, and the most memory that the process held meanwhile, looked at every 20 ms.
            Files that are mapped into memory do not count: the system takes their pages back whenever it wants to. Nor
            does what nothing holds any more: the process gives it back.

    Raises:
        ProcessEndedError: if the process ends without a result, as one does that the system kills for its memory.
    """
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(sending, measure, *arguments))
    with _environment(**_GIVE_BACK):
        process.start()
    sending.close()
    try:
        found = receiving.recv()
    except EOFError:
        process.join()
        message = f"{measure.__name__.strip('_')}: the process ended with {process.exitcode}."
        raise ProcessEndedError(message, killed=(process.exitcode or 0) < 0) from None
    process.join()
    return found


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Variables for processes that are started meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def peak_while(work: Callable[[], T]) -> tuple[T, int]:
    """The result of some work, and the most memory ([`own_bytes`]) that this process held meanwhile.

    Args:
        work (`Callable`): takes nothing.
    """
    peaks, done = [own_bytes()], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peaks.append(max(peaks.pop(), own_bytes()))

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        value = work()
    finally:
        done.set()
        watching.join()
    return value, max(*peaks, own_bytes())


def own_bytes() -> int:
    """The memory that is this process' alone: without files that are mapped into it, where the system tells."""
    status = Path("/proc/self/status")
    return _from_status("RssAnon") if status.is_file() else peak_bytes()


def _report(sending: Any, measure: Callable[..., float], *arguments: Any) -> None:
    sending.send(peak_while(partial(measure, *arguments)))


def _from_status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
