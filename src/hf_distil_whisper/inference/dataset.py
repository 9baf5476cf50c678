"""Every row of a data set through a model, in batches of like length, with bad rows set aside.

The common ground of labelling and short-form evaluation: knows rows and their audio, not what the tokens are for.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from torch import Tensor
from transformers import WhisperForConditionalGeneration, WhisperProcessor
from transformers.utils import logging

from hf_distil_whisper.data.audio import (
    SAMPLING_RATE,
    AudioError,
    audio_duration,
    load_audio,
)
from hf_distil_whisper.data.dataset import row_id
from hf_distil_whisper.data.sources import RowErrors
from hf_distil_whisper.inference.encoder import (
    encode,
    window_features,
    window_seconds,
)
from hf_distil_whisper.inference.generation import TokenSequence

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


class AudioProgress:
    """A progress bar over rows that also counts seconds of audio.

    Args:
        total (`int`, *optional*): rows; None where nobody knows.
        description (`str`): stands before the bar.
    """

    def __init__(self, total: int | None, description: str):
        self.bar = logging.tqdm(total=total, desc=description, unit="row")
        self.rows_per_window = 1.0
        """Rows that a window stands for: above 1 where utterances were joined."""
        self._total, self._shown = total, 0
        self._settled, self._open = 0, 0.0
        self._seconds, self._begin = 0.0, time.perf_counter()

    def update(self, windows: int, seconds: float) -> None:
        """Counts windows that are done, and the seconds of audio in them."""
        self._open += windows * self.rows_per_window
        self._seconds += seconds
        if self._seconds:
            factor = (time.perf_counter() - self._begin) / self._seconds
            self.bar.set_postfix_str(f"{self._seconds / 3600:.2f} h of audio, RTF {factor:.3f}", refresh=False)
        self._show()

    def settle(self, rows: int) -> None:
        """Counts rows as done, those among them whose windows were counted before only once."""
        self._settled, self._open = self._settled + rows, 0.0
        self._show()

    def skip(self, rows: int) -> None:
        """Counts rows that were done before: they tell nothing of the speed."""
        if not isinstance(self.bar, logging.EmptyTqdm):  # where progress bars are switched off
            self.bar.initial += rows
        self.settle(rows)

    def close(self) -> None:
        """Leaves the bar as it is."""
        self.bar.close()

    def _show(self) -> None:
        done = self._settled + int(self._open)
        done = done if self._total is None else min(done, self._total)
        self.bar.update(done - self._shown)
        self._shown = done


@dataclass(frozen=True)
class RowTokens:
    """What the model wrote for the rows of a data set.

    Args:
        sequences (`dict[int, TokenSequence]`): by row number, in order; rows that could not be read are missing.
        durations (`dict[int, float]`): seconds of audio, for the same rows.
        seconds (`float`): spent on features and generation, reading and decoding of files not counted.
    """

    sequences: dict[int, TokenSequence]
    durations: dict[int, float]
    seconds: float


def generate_rows(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    dataset: Dataset | Sequence[Mapping],
    errors: RowErrors,
    generate: Callable[..., list[TokenSequence]],
    *,
    load: Callable[..., np.ndarray] = load_audio,
    batch_size: int = 16,
    token_budget: int | None = None,
    progress: AudioProgress | None = None,
    keep: Callable[[int, Tensor], None] | None = None,
    languages: Mapping[int, str | None] | None = None,
) -> RowTokens:
    """Generates tokens for every row that can be read and fits into one window.

    Args:
        model (`WhisperForConditionalGeneration`): in eval mode.
        processor (`WhisperProcessor`): of the model.
        dataset (`Dataset` or `Sequence[Mapping]`): rows with `audio` as [`load_audio`] takes it, and possibly `id`.
        errors (`RowErrors`): takes the rows that cannot be read or are longer than the window.
        generate (`Callable[..., list[TokenSequence]]`): features (batch, mel bins, frames) to tokens, or with `keep`
            `encoder_hidden_states` (batch, frames, width): a `partial` of [`generate_tokens`], or another runtime's.
        load (`Callable[..., np.ndarray]`, *optional*, defaults to [`load_audio`]): a row's `audio`, and its id as
            `name`, to samples at 16 kHz, as many as there are.
        batch_size (`int`, *optional*, defaults to 16): windows per pass.
        token_budget (`int`, *optional*): tokens per pass; see [`batches_by_length`].
        progress ([`AudioProgress`], *optional*): told of every batch; by default a bar of its own.
        keep (`Callable[[int, Tensor], None]`, *optional*): takes a row's number and its encoder states, (frames,
            width). Its time is not counted.
        languages (`Mapping[int, str | None]`, *optional*): of rows by number, handed to `generate` as `languages`;
            rows that are not named are left out.

    Returns:
        `RowTokens`: by row number.
    """
    window = window_seconds(processor)
    lengths = _lengths(dataset, errors, window)
    rows = [row for row in lengths if languages is None or row in languages]
    found: dict[int, TokenSequence] = {}
    durations: dict[int, float] = {}
    seconds = 0.0
    bar = AudioProgress(len(rows), "transcribing") if progress is None else progress
    for batch in batches_by_length([lengths[row] for row in rows], batch_size, token_budget):
        recordings = _load([rows[position] for position in batch], dataset, errors, window, load)
        if recordings:
            start = time.perf_counter()
            features = window_features(model, processor, list(recordings.values()))
            states = None if keep is None else encode(model, features)
            heard: dict[str, Any] = (
                {"input_features": features} if states is None else {"encoder_hidden_states": states}
            )
            if languages is not None:
                heard["languages"] = [languages[row] for row in recordings]
            sequences = generate(**heard)
            seconds += time.perf_counter() - start
            if keep is not None and states is not None:
                for row, state in zip(recordings, states, strict=True):
                    keep(row, state)
            found |= dict(zip(recordings, sequences, strict=True))
            durations |= {index: len(samples) / SAMPLING_RATE for index, samples in recordings.items()}
        bar.update(len(batch), sum(durations.get(rows[position], 0.0) for position in batch))
    if progress is None:
        bar.close()
    return RowTokens({index: found[index] for index in sorted(found)}, durations, seconds)


def _lengths(dataset: Dataset | Sequence[Mapping], errors: RowErrors, window: float) -> dict[int, float]:
    """Seconds by row from the files' headers, to sort by; what is far too long is not even decoded."""
    lengths = {}
    for index, row in enumerate(dataset):
        try:
            length = audio_duration(row["audio"], name=row_id(row, index))
        except AudioError as error:
            errors.add(row_id(row, index), str(error))
            continue
        if length > window + 1.0:
            errors.add(row_id(row, index), _too_long(length, window))
        else:
            lengths[index] = length
    return lengths


def _load(
    rows: Sequence[int],
    dataset: Dataset | Sequence[Mapping],
    errors: RowErrors,
    window: float,
    load: Callable[..., np.ndarray],
) -> dict[int, np.ndarray]:
    recordings = {}
    for index in rows:
        row = dataset[index]
        try:
            samples = load(row["audio"], name=row_id(row, index))
        except AudioError as error:
            errors.add(row_id(row, index), str(error))
            continue
        if len(samples) > window * SAMPLING_RATE:
            errors.add(row_id(row, index), _too_long(len(samples) / SAMPLING_RATE, window))
        else:
            recordings[index] = samples
    return recordings


def _too_long(length: float, window: float) -> str:
    return (
        f"{length:.2f} s of audio, expected at most the model's window of {window:g} s: all behind it would be cut "
        "off unheard. Split the recording, or transcribe it with the chunked or sequential algorithm."
    )
