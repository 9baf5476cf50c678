"""Which recordings share a pass of the model. Knows their lengths, nothing of models."""

from collections.abc import Sequence

TOKENS_PER_SECOND, PREFIX_TOKENS = 6.0, 6
"""What a transcript is expected to have: fast English speech with timestamps, and the tokens around it."""


def batches_by_length(lengths: Sequence[float], batch_size: int, token_budget: int | None = None) -> list[list[int]]:
    """Groups the indices of `lengths` into batches of like length, longest first.

    A batch runs until its longest transcript ends, so neighbours should be of one length; with the longest first, a
    batch that does not fit into memory fails at once instead of after hours.

    Args:
        lengths (`Sequence[float]`): seconds of each recording.
        batch_size (`int`): recordings in a batch at most.
        token_budget (`int`, *optional*): tokens in a batch at most, each recording counted with those that the longest
            is expected to have: short recordings come in larger batches than long ones then.

    Raises:
        ValueError: for a limit below 1.
    """
    for name, limit in (("batch_size", batch_size), ("token_budget", token_budget)):
        if limit is not None and limit < 1:
            raise ValueError(f"`{name}` is {limit}, expected at least 1.")
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    batches, start = [], 0
    while start < len(order):
        size = batch_size
        if token_budget is not None:
            size = max(1, min(size, int(token_budget / (PREFIX_TOKENS + TOKENS_PER_SECOND * lengths[order[start]]))))
        batches.append(order[start : start + size])
        start += size
    return batches
