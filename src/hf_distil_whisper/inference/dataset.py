"""Transcribe every row of a dataset: batches of similar length, progress in hours of audio, bad rows set aside."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from datasets import Dataset
from torch import Tensor
from transformers import WhisperForConditionalGeneration, WhisperProcessor
from transformers.utils import logging

from hf_distil_whisper.data.audio import SAMPLING_RATE, AudioError, audio_duration, load_audio
from hf_distil_whisper.data.dataset import row_id
from hf_distil_whisper.data.sources import RowErrors
from hf_distil_whisper.inference.encoder import window_features, window_seconds
from hf_distil_whisper.inference.generation import TokenSequence
from hf_distil_whisper.inference.prompt import resolve_language

TOKENS_PER_SECOND, PREFIX_TOKENS = 6.0, 6
"""Expected length of a transcript: fast English speech with timestamps, and the special tokens around it."""


@dataclass(frozen=True)
class RowTokens:
    """The tokens generated for the rows of a dataset."""

    sequences: dict[int, TokenSequence]  # by row index, in order; rows that could not be read are missing
    durations: dict[int, float]  # seconds of audio of the same rows
    seconds: float  # for features and generation, without reading and decoding the files


def generate_rows(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    dataset: Dataset | Sequence[Mapping],
    errors: RowErrors,
    generate: Callable[..., list[TokenSequence]],
    *,
    load: Callable[..., np.ndarray] = load_audio,
    languages: Mapping[int, str | None] | None = None,
    batch_size: int = 16,
) -> RowTokens:
    """Generates tokens for every row that can be read and fits into one window, with a progress bar.

    Rows have `audio` and optionally `id`; `load` turns the one into samples at 16 kHz and gets the other as `name`.
    `errors` receives the rows that are left out. `generate` is called with `input_features` (batch, mel bins, frames):
    a `partial` of [`generate_tokens`], or another runtime's generator. With `languages`, of [`row_languages`], it also
    gets those of the batch, and other rows are left out.
    """
    sequences: dict[int, TokenSequence] = {}
    durations: dict[int, float] = {}
    seconds = 0.0
    with closing(AudioProgress(len(dataset), "transcribing")) as progress:
        for batch in feature_batches(
            model, processor, dataset, errors, batch_size=batch_size, rows=languages, load=load
        ):
            of_batch = {} if languages is None else {"languages": [languages[row] for row in batch.rows]}
            start = time.perf_counter()
            sequences |= zip(batch.rows, generate(input_features=batch.input_features, **of_batch), strict=True)
            seconds += batch.seconds + time.perf_counter() - start
            durations |= zip(batch.rows, batch.durations, strict=True)
            progress.update(len(batch.rows), sum(batch.durations))
    return RowTokens(dict(sorted(sequences.items())), durations, seconds)


def row_languages(
    model: WhisperForConditionalGeneration,
    dataset: Dataset | Sequence[Mapping],
    errors: RowErrors,
    language: str | None = None,
    task: str = "transcribe",
) -> dict[int, str | None]:
    """The code of each row's column `language`, else of `language`, by row index; see [`resolve_language`].

    `errors` receives the rows in a language that the model does not know, which are missing.

    Raises:
        ValueError: without such a column, for a language or task that the model does not know.
    """
    names = [name for name in ("id", "language") if name in column_names(dataset)]
    if "language" not in names:
        return dict.fromkeys(range(len(dataset)), resolve_language(model, language, task))
    if isinstance(dataset, Dataset):  # all other columns would be decoded along with every row
        dataset = dataset.select_columns(names)
    codes = {}
    for index, row in enumerate(dataset):
        try:
            codes[index] = resolve_language(model, row.get("language") or language, task)
        except ValueError as error:
            errors.add(row_id(row, index), f"column 'language': {error}")
    return codes


def column_names(dataset: Dataset | Sequence[Mapping]) -> list[str]:
    """The columns of a dataset, or of the first of several rows."""
    return dataset.column_names if isinstance(dataset, Dataset) else list(dataset[0])


@dataclass(frozen=True)
class FeatureBatch:
    """Rows for one forward pass."""

    rows: list[int]  # indices
    durations: list[float]  # seconds of audio
    input_features: Tensor  # (batch, mel bins, frames), padded to the window
    seconds: float  # spent on the features


def feature_batches(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    dataset: Dataset | Sequence[Mapping],
    errors: RowErrors,
    *,
    batch_size: int = 16,
    token_budget: int | None = None,
    rows: Collection[int] | None = None,
    load: Callable[..., np.ndarray] = load_audio,
) -> Iterator[FeatureBatch]:
    """Features of all rows that can be read and fit into one window, in batches of similar length, longest first.

    Arguments as in [`generate_rows`] and [`batches_by_length`]; `rows` are the indices of the rows to read.
    """
    window = window_seconds(processor)
    lengths = _lengths(dataset, errors, window)
    indices = [row for row in lengths if rows is None or row in rows]
    for batch in batches_by_length([lengths[row] for row in indices], batch_size, token_budget):
        recordings = _load([indices[index] for index in batch], dataset, errors, window, load)
        if recordings:
            start = time.perf_counter()
            features = window_features(model, processor, list(recordings.values()))
            durations = [len(samples) / SAMPLING_RATE for samples in recordings.values()]
            yield FeatureBatch(list(recordings), durations, features, time.perf_counter() - start)


def batches_by_length(lengths: Sequence[float], batch_size: int, token_budget: int | None = None) -> list[list[int]]:
    """Groups the indices of `lengths`, in seconds, into batches of up to `batch_size`, longest first.

    `token_budget` limits the expected tokens of a batch, where each recording counts as the longest of its batch:
    short recordings come in larger batches than long ones.
    """
    for name, limit in (("batch_size", batch_size), ("token_budget", token_budget)):
        if limit is not None and limit < 1:
            raise ValueError(f"`{name}` is {limit}, expected at least 1.")
    # A batch runs until its longest transcript ends, so neighbours should be of similar length. With the longest
    # first, a batch that does not fit into memory fails at once instead of after hours.
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
    """A progress bar over rows that also shows hours of audio and the real-time factor.

    `initial` rows were done before and do not count for the speed; `total` is None if unknown.
    """

    def __init__(self, total: int | None, description: str, initial: int = 0):
        self.bar = logging.tqdm(total=total, initial=initial, desc=description, unit="row")
        self._total, self._shown = total, initial
        self._completed, self._pending = initial, 0.0
        self._seconds, self._start = 0.0, time.perf_counter()

    def update(self, rows: float, seconds: float) -> None:
        """Counts rows, fractions of them if utterances were joined, and seconds of audio."""
        self._pending += rows
        self._seconds += seconds
        if self._seconds:
            rtf = (time.perf_counter() - self._start) / self._seconds
            self.bar.set_postfix_str(f"{self._seconds / 3600:.2f} h of audio, RTF {rtf:.3f}", refresh=False)
        self._show()

    def complete(self, rows: int) -> None:
        """Replaces the rows counted since the last call by the exact number, unreadable ones included."""
        self._completed, self._pending = self._completed + rows, 0.0
        self._show()

    def close(self) -> None:
        """Ends the bar."""
        self.bar.close()

    def _show(self) -> None:
        done = self._completed + int(self._pending)
        done = done if self._total is None else min(done, self._total)
        self.bar.update(done - self._shown)
        self._shown = done


def _lengths(dataset: Dataset | Sequence[Mapping], errors: RowErrors, window: float) -> dict[int, float]:
    """Seconds by row from the files' headers; what is much too long is not even decoded."""
    lengths = {}
    for index, row in enumerate(dataset):
        try:
            length = audio_duration(row["audio"], name=row_id(row, index))
        except AudioError as error:
            errors.add(row_id(row, index), str(error))
            continue
        if length > window + 1.0:  # a header may be off by a little
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
        f"{length:.2f} s of audio, expected at most the model's window of {window:g} s: everything behind it would be "
        "cut off. Split the recording, or transcribe it with the chunked or sequential algorithm."
    )
