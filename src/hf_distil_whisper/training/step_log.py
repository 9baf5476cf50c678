"""What a training logs beside its loss: the loss's parts, and how long the steps waited for their batches."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator

from hf_distil_whisper.training.validation import PARTS


class StepLog:
    """Adds up over the steps between two logs.

    Args:
        device (`torch.device`): of the sums: nothing is read from an accelerator before it is logged.
    """

    def __init__(self, device: torch.device):
        self._sums = torch.zeros(len(PARTS), device=device)
        self._steps = 0
        self._waited = 0.0
        self._notes: dict[str, float] = {}
        self._begin: float | None = None

    def add(self, parts: torch.Tensor, ends_step: bool) -> None:
        """Adds the parts of one batch.

        Args:
            parts (`torch.Tensor` of shape `(3,)`): in the order of `PARTS`.
            ends_step (`bool`): whether it is the last batch of an accumulated one.
        """
        self._sums += parts
        self._steps += int(ends_step)

    def note(self, **values: float) -> None:
        """Adds what was measured once to the next log."""
        self._notes |= values

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the fetching of batches."""
        begin = time.perf_counter()
        if self._begin is None:  # the first batch: what came before, such as the filling of a cache, is no training
            self._begin = begin
        yield
        self._waited += time.perf_counter() - begin

    def take(self, accelerator: Accelerator) -> dict[str, float]:
        """Means since the last call, and a new beginning; to be called by every process.

        Returns:
            `dict[str, float]`: the parts by name, a mean over steps and processes, and `data_wait`: the share of the
            time, from 0 to 1, that this process waited for batches; then what was noted. Empty without a step.
        """
        if not self._steps or self._begin is None:
            return {}
        means = (accelerator.reduce(self._sums, reduction="mean") / self._steps).tolist()
        now = time.perf_counter()
        taken = dict(zip(PARTS, means, strict=True)) | {"data_wait": self._waited / (now - self._begin)} | self._notes
        self._sums.zero_()
        self._notes = {}
        self._steps, self._waited, self._begin = 0, 0.0, now
        return taken
