"""A measurement in a process of its own, so that the memory it takes is that of nothing else."""

import multiprocessing
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def peak_bytes() -> int:
    """The most memory that this process has taken so far, libraries included."""
    status = Path("/proc/self/status")
    if status.is_file():  # `ru_maxrss` begins at what the parent took when it started this process
        return next(
            1024 * int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM:")
        )
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
        `tuple[float, int]`: what it gave, and the process's [`peak_bytes`].

    Raises:
        RuntimeError: if the process ends without a result, as one does that the system kills for its memory.
    """
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(sending, measure, *arguments))
    process.start()
    sending.close()
    try:
        found = receiving.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"{measure.__name__.strip('_')}: the process ended with {process.exitcode}.") from None
    process.join()
    return found


def _report(sending: Any, measure: Callable[..., float], *arguments: Any) -> None:
    value = measure(*arguments)
    sending.send((value, peak_bytes()))
