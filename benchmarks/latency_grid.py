"""Latency of several models over batch sizes, attention implementations and caches (paper, Tables 5, 12, 24 and 25).

Knows which speech is heard at which batch size and who takes turns with whom. The time of a pass is `latency.py`'s,
its memory `pass_memory.py`'s, the tables are `latency_rows.py`'s.
"""

import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import WhisperForConditionalGeneration, WhisperProcessor
from transformers.utils import is_flash_attn_2_available, logging

from hf_distil_whisper.data.audio import (
    SAMPLING_RATE,
    AudioError,
    load_audio,
)
from hf_distil_whisper.data.dataset import row_id
from hf_distil_whisper.data.sources import RowErrors
from hf_distil_whisper.evaluation.evaluate import readable_rows
from hf_distil_whisper.evaluation.latency import timed_pass
from hf_distil_whisper.inference.chunked import cut_chunks
from hf_distil_whisper.inference.decoder import greedy_search
from hf_distil_whisper.inference.encoder import (
    window_features,
    window_seconds,
)
from latency_rows import LatencyRow
from own_process import ProcessEndedError
from pass_memory import pass_bytes

logger = logging.get_logger(__name__)

ATTENTION = ("sdpa", "eager", "flash_attention_2")
CACHES = ("dynamic", "static")
PAPER_SAMPLES = 256
"""Of each test set (appendix B.2)."""


def latency_grid(
    models: Mapping[str, WhisperForConditionalGeneration],
    dataset: Dataset | Sequence[Mapping],
    processor: WhisperProcessor | Mapping[str, WhisperProcessor],
    *,
    teacher: str | None = None,
    batch_sizes: Sequence[int] = (1, 4, 16),
    attn_implementations: Sequence[str] = ("sdpa",),
    caches: Sequence[str] = ("dynamic",),
    num_tokens: int | None = None,
    chunked: bool = True,
    timestamps: Collection[str] = (),
    repeats: int = 3,
    language: str | None = None,
    memory: bool = True,
) -> list[LatencyRow]:
    """Times models on the same speech at every batch size, with every attention implementation and cache.

    The defaults are the paper's protocol (appendix B.2), with `PAPER_SAMPLES` rows of each test set and the Whisper
    models named in `timestamps`: batch size 1 hears the recordings one by one without timestamps, as in short-form
    evaluation; larger batches hear the same speech in a row, in overlapping chunks of one window, as in chunked
    long-form transcription. All models and settings of a batch size run once unmeasured and then take turns in every
    repetition. Flash attention has no place for a static cache: that setting is left out.

    Args:
        models (`Mapping[str, WhisperForConditionalGeneration]`): by name, in eval mode, all on one device.
        dataset (`Dataset` or `Sequence[Mapping]`): rows with `audio` of any length; what does not fit into a window is
            cut into chunks.
        processor (`WhisperProcessor` or `Mapping[str, WhisperProcessor]`): of all models, or of each by name.
        teacher (`str`, *optional*): the model that `relative_latency` compares with.
        batch_sizes (`Sequence[int]`, *optional*, defaults to `(1, 4, 16)`): windows per pass.
        attn_implementations (`Sequence[str]`, *optional*, defaults to `("sdpa",)`): also "eager", "flash_attention_2".
        caches (`Sequence[str]`, *optional*, defaults to `("dynamic",)`): also "static".
        num_tokens (`int`, *optional*): exactly so many tokens per window; None lets each model end by itself.
        chunked (`bool`, *optional*, defaults to `True`): whether larger batches hear chunks; else they hear the
            recordings one by one too, so that batch sizes can be compared.
        timestamps (`Collection[str]`, *optional*): models that predict timestamps in batches of more than one.
        repeats (`int`, *optional*, defaults to 3): repetitions over all recordings.
        language (`str`, *optional*): for multilingual models; without it they also spend time on detecting one.
        memory (`bool`, *optional*, defaults to `True`): also measure the peak memory, which on a CPU takes a process
            and some seconds for every row. A row whose process is killed has none.

    Returns:
        `list[LatencyRow]`: by batch size, attention, cache and model.

    Raises:
        ValueError: for settings that are unknown or cannot run here, or if no row could be read.

    Example:
        ```python
        >>> rows = latency_grid({"teacher": teacher, "student": student}, dataset, processor, teacher="teacher")
        >>> print(rtf_table(rows))
        ```
    """
    _check(models, teacher, batch_sizes, attn_implementations, caches, timestamps, repeats)
    processors = {name: processor if isinstance(processor, WhisperProcessor) else processor[name] for name in models}
    recordings = _recordings(dataset)
    before = {name: model.config._attn_implementation for name, model in models.items()}
    rows: list[LatencyRow] = []
    try:
        for batch_size in batch_sizes:
            contenders = [
                _Contender(
                    name, models[name], processors[name], attention, cache, batch_size, num_tokens, language,
                    batch_size > 1 and name in timestamps,
                )
                for attention, cache, name in product(attn_implementations, caches, models)
                if (attention, cache) != ("flash_attention_2", "static")
            ]  # fmt: skip
            for one in contenders:
                one.windows = _windows(recordings, window_seconds(one.processor), chunked and batch_size > 1)
            for repeat in range(repeats + 1):
                for one in contenders:
                    one.take_turn(warm_up=repeat == 0)
            if memory:
                for one in contenders:
                    one.measure_memory()
            rows += _rows(contenders, teacher, recordings)
    finally:
        for name, model in models.items():
            model.set_attn_implementation(before[name])
    return rows


@dataclass
class _Contender:
    """A model in one setting, and what has been measured of it."""

    name: str
    model: WhisperForConditionalGeneration
    processor: WhisperProcessor
    attention: str
    cache: str
    batch_size: int
    num_tokens: int | None
    language: str | None
    timestamps: bool
    windows: list[np.ndarray] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    peak_bytes: int | None = None

    def take_turn(self, warm_up: bool) -> None:
        """One pass over all windows, or over the first batch."""
        self.model.set_attn_implementation(self.attention)
        windows = self.windows[: self.batch_size] if warm_up else self.windows
        seconds, lengths = timed_pass(self.model, self._features(windows), **self._settings(self.num_tokens))
        if not warm_up:
            self.seconds.append(seconds)
            self.lengths = lengths

    def measure_memory(self) -> None:
        """With as many tokens as the longest window had."""
        self.model.set_attn_implementation(self.attention)
        size = min(self.batch_size, len(self.windows))
        try:
            self.peak_bytes = pass_bytes(self.model, size, **self._settings(max(1, *self.lengths)))
        except ProcessEndedError as error:  # the times are worth more than the memory, and measured by now
            if not error.killed:
                raise
            logger.warning(
                f"{self.name} at batch size {self.batch_size}: no peak memory. {error} That happens where there is no "
                "room for the model twice. The times stay; `memory=False` leaves the memory out."
            )

    def _settings(self, num_tokens: int | None) -> dict[str, Any]:
        search = partial(greedy_search, static_cache=self.cache == "static")
        return {
            "num_tokens": num_tokens,
            "language": self.language,
            "return_timestamps": self.timestamps,
            "search": search,
        }

    def _features(self, windows: list[np.ndarray]) -> Iterator[Tensor]:
        for start in range(0, len(windows), self.batch_size):
            yield window_features(self.model, self.processor, windows[start : start + self.batch_size])


def _recordings(dataset: Dataset | Sequence[Mapping]) -> list[np.ndarray]:
    rows = readable_rows(dataset, "audio")  # no text is needed
    errors, recordings = RowErrors(), []
    for index in range(len(rows)):
        row = rows[index]
        try:
            recordings.append(load_audio(row["audio"], name=row_id(row, index)))
        except AudioError as error:
            errors.add(row_id(row, index), str(error))
    if len(errors):
        logger.warning(errors.summary())
    if not recordings:
        raise ValueError(f"Expected recordings to measure on, could read none of {len(rows)}.\n{errors.summary()}")
    return recordings


def _windows(recordings: Sequence[np.ndarray], seconds: float, joined: bool) -> list[np.ndarray]:
    """Pieces of at most one window; what is longer is cut as [`transcribe_chunked`] does by default."""
    parts = [np.concatenate(recordings)] if joined else recordings
    return [samples for part in parts for _, samples in cut_chunks([part], seconds, seconds / 6)]


def _rows(contenders: Sequence[_Contender], teacher: str | None, recordings: Sequence[np.ndarray]) -> list[LatencyRow]:
    audio_seconds = sum(len(recording) for recording in recordings) / SAMPLING_RATE
    baselines = {
        (one.attention, one.cache): statistics.median(one.seconds) for one in contenders if one.name == teacher
    }
    return [
        LatencyRow(
            one.name, one.attention, one.cache, one.batch_size, one.timestamps, tuple(one.seconds), audio_seconds,
            len(recordings), len(one.windows), sum(one.lengths), one.model.num_parameters(), one.peak_bytes,
            baselines[one.attention, one.cache] / statistics.median(one.seconds) if baselines else None,
        )
        for one in contenders
    ]  # fmt: skip


def check_attention(attn_implementations: Sequence[str], device: torch.device, dtype: torch.dtype) -> None:
    """Raises a `ValueError` for attention implementations that are unknown or cannot run here.

    Args:
        attn_implementations (`Sequence[str]`): names.
        device (`torch.device`): of the models.
        dtype (`torch.dtype`): of their weights.
    """
    unknown = [name for name in attn_implementations if name not in ATTENTION]
    if unknown or not attn_implementations:
        raise ValueError(f"attn_implementations: expected some of {', '.join(ATTENTION)}, got {unknown or 'none'}.")
    if "flash_attention_2" in attn_implementations:
        lacking = [] if is_flash_attn_2_available() else ["the package flash-attn (extra `flash`)"]
        lacking += [] if device.type == "cuda" else ["a CUDA GPU"]
        lacking += [] if dtype in (torch.float16, torch.bfloat16) else ["float16 or bfloat16 weights"]
        if lacking:
            raise ValueError(
                f"attn_implementations: flash_attention_2 needs {' and '.join(lacking)}, got {dtype} weights on "
                f"{device.type}. Leave it out to measure the others."
            )


def _check(
    models: Mapping[str, WhisperForConditionalGeneration],
    teacher: str | None,
    batch_sizes: Sequence[int],
    attn_implementations: Sequence[str],
    caches: Sequence[str],
    timestamps: Collection[str],
    repeats: int,
) -> None:
    if not models or not batch_sizes or min(*batch_sizes, repeats) < 1:
        raise ValueError(
            f"Expected at least one model, batch size and repetition to measure, got {len(models)} models, "
            f"batch_sizes={list(batch_sizes)}, repeats={repeats}."
        )
    for name in [*([] if teacher is None else [teacher]), *timestamps]:
        if name not in models:
            raise ValueError(f"`teacher` and `timestamps` name {name!r}, expected one of {', '.join(models)}.")
    if not caches or not set(caches) <= set(CACHES):
        raise ValueError(f"`caches`: expected some of {', '.join(CACHES)}, got {list(caches)}.")
    if list(attn_implementations) == ["flash_attention_2"] and list(caches) == ["static"]:
        raise ValueError("`caches`: flash_attention_2 has no place for a static cache. Take the dynamic one.")
    for model in models.values():
        check_attention(attn_implementations, model.device, model.dtype)
