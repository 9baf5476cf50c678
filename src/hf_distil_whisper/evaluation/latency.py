"""Latency of models doing the same work: in turn, after a warm-up, medians (paper, appendix B.2)."""

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
        seconds (`list[float]`): seconds per window, one entry for each repetition over all inputs.
        batch_size (`int`): windows per forward pass.
        num_tokens (`float`): tokens generated per window, on average.
    """

    seconds: list[float]
    batch_size: int
    num_tokens: float

    @property
    def median(self) -> float:
        """Seconds per window, median over the repetitions."""
        return statistics.median(self.seconds)

    @property
    def fastest(self) -> float:
        """Seconds per window of the fastest repetition."""
        return min(self.seconds)

    def speedup_over(self, baseline: "Latency") -> float:
        """How many times faster than `baseline`, usually the teacher: the ratio of the medians."""
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
    """Times models on the same windows: encoder and greedy decoding without timestamps.

    After a warm-up the models take turns in every repetition, so that a slow minute of the machine affects all of
    them. A fixed `num_tokens` separates the speed of a model from the length of its transcripts: a student that is
    not trained yet may stop at once, or never.

    Args:
        models (`Mapping[str, WhisperForConditionalGeneration]`): by name, in eval mode, all on one device.
        inputs (`Tensor`): log-mel features of shape (windows, mel bins, frames), from [`window_features`].
        batch_size (`int`, *optional*, defaults to 1): windows per forward pass; 1 in the paper's short form.
        num_tokens (`int`, *optional*): exact number of tokens per window; None lets each model stop by itself.
        repeats (`int`, *optional*, defaults to 5): repetitions over all inputs.
        language (`str`, *optional*): for multilingual models, which otherwise spend time on detecting it.

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
    """Seconds that encoder and decoder take for batches of windows, and the number of tokens of each window.

    The time to compute the features (windows, mel bins, frames) in an iterator, and to move them to the device, is
    not counted. Arguments as for [`measure_latency`].
    """
    seconds, lengths = 0.0, []
    for batch in batches:
        features = batch.to(model.device, model.dtype)
        _synchronise(model.device)  # kernels run asynchronously: the copy would be timed, and the end be missed
        start = time.perf_counter()
        sequences = generate_tokens(
            model, features, max_new_tokens=num_tokens, min_new_tokens=num_tokens, language=language,
            return_timestamps=return_timestamps,
        )  # fmt: skip
        _synchronise(model.device)
        seconds += time.perf_counter() - start
        lengths += [len(sequence.tokens) for sequence in sequences]
    return seconds, lengths


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
