"""How long models take for the same work: in turn, warmed up, medians (paper, appendix B.2).

Knows features and generation; reading and decoding of files is no part of a model's latency. Tables over batch sizes,
attention and caches are `latency_grid.py`'s.
"""

import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration

from hf_distil_whisper.inference.generation import generate_tokens


@dataclass(frozen=True)
class Latency:
    """Time of one model.

    Args:
        seconds (`list[float]`): per window, one entry per repetition over all inputs.
        batch_size (`int`): windows per pass.
        num_tokens (`float`): generated per window, in the mean.
    """

    seconds: list[float]
    batch_size: int
    num_tokens: float

    @property
    def median(self) -> float:
        """Seconds per window, median over the repetitions: a single disturbed run does not count."""
        return statistics.median(self.seconds)

    @property
    def fastest(self) -> float:
        """Seconds per window of the fastest repetition."""
        return min(self.seconds)

    def speedup_over(self, baseline: "Latency") -> float:
        """How many times faster than `baseline`: the ratio of the medians.

        Args:
            baseline (`Latency`): of the same inputs, usually the teacher's.
        """
        return baseline.median / self.median


def measure_latency(
    models: Mapping[str, WhisperForConditionalGeneration],
    inputs: Tensor,
    *,
    batch_size: int = 1,
    num_tokens: int | None = None,
    repeats: int = 5,
    language: str | None = None,
) -> dict[str, Latency]:
    """Times models on the same windows: encoder, decoder and the search, greedy and without timestamps.

    Every model first runs once unmeasured; then they take turns in every repetition, so that a slow minute of the
    machine falls on all of them. Fixing `num_tokens` separates the speed of a model from what it happens to say: a
    student that is not trained yet may stop at once, or never.

    Args:
        models (`Mapping[str, WhisperForConditionalGeneration]`): by name, in eval mode, all on one device.
        inputs (`Tensor`): log-mel windows of shape (windows, mel bins, frames), as of [`window_features`].
        batch_size (`int`, *optional*, defaults to 1): windows per pass; 1 is the paper's short-form setting.
        num_tokens (`int`, *optional*): exactly so many tokens per window; None lets each model end by itself.
        repeats (`int`, *optional*, defaults to 5): repetitions over all inputs.
        language (`str`, *optional*): for multilingual models; without it they also spend time on detecting one.

    Returns:
        `dict[str, Latency]`: by name, in the order of `models`.

    Raises:
        ValueError: for no models, no windows, or a number below 1.

    Example:
        ```python
        >>> times = measure_latency({"teacher": teacher, "student": student}, windows, num_tokens=100)
        >>> times["student"].speedup_over(times["teacher"])
        ```
    """
    if not models or len(inputs) == 0 or min(batch_size, repeats) < 1:
        raise ValueError(
            f"Expected at least one model, window, batch and repetition to measure, got {len(models)} models, "
            f"{len(inputs)} windows, batch_size={batch_size}, repeats={repeats}."
        )
    batches = list(inputs.split(batch_size))
    for model in models.values():
        timed_pass(model, batches[:1], num_tokens=num_tokens, language=language)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    tokens: dict[str, int] = {}
    for _ in range(repeats):
        for name, model in models.items():
            spent, lengths = timed_pass(model, batches, num_tokens=num_tokens, language=language)
            seconds[name].append(spent / len(inputs))
            tokens[name] = sum(lengths)
    return {name: Latency(seconds[name], batch_size, tokens[name] / len(inputs)) for name in models}


def timed_pass(
    model: WhisperForConditionalGeneration,
    batches: Iterable[Tensor],
    *,
    num_tokens: int | None = None,
    language: str | None = None,
    return_timestamps: bool = False,
) -> tuple[float, list[int]]:
    """Runs encoder, decoder and search over batches of windows.

    Args:
        model (`WhisperForConditionalGeneration`): in eval mode.
        batches (`Iterable[Tensor]`): log-mel, (windows, mel bins, frames) each. Making them in an
            iterator, and their way to the device, is not counted.
        num_tokens (`int`, *optional*): exactly so many tokens per window.
        language (`str`, *optional*): for multilingual models.
        return_timestamps (`bool`, *optional*, defaults to `False`): with timestamps.

    Returns:
        `tuple[float, list[int]]`: seconds, from an idle device to an idle one; tokens of each window.
    """
    seconds, lengths = 0.0, []
    for batch in batches:
        features = batch.to(model.device, model.dtype)
        synchronise(model.device)
        start = time.perf_counter()
        found = generate_tokens(
            model, features, max_new_tokens=num_tokens, min_new_tokens=num_tokens, language=language,
            return_timestamps=return_timestamps,
        )  # fmt: skip
        synchronise(model.device)
        seconds += time.perf_counter() - start
        lengths += [len(sequence.tokens) for sequence in found]
    return seconds, lengths


def synchronise(device: torch.device) -> None:
    """Waits until a GPU has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
