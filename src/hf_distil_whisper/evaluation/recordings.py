"""Recordings heard one after another, with bad ones set aside: the common ground of long-form and CTC evaluation.

Knows rows, their audio and the time that is counted; not how a text comes about.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from transformers.utils import logging

from hf_distil_whisper.data.audio import SAMPLING_RATE, AudioError, audio_blocks
from hf_distil_whisper.data.samples import row_id
from hf_distil_whisper.data.sources import RowErrors
from hf_distil_whisper.evaluation.scoring import Heard


class Recording(Iterator[np.ndarray]):
    """Blocks of a recording; knows how long it is, as far as it was read, and how long decoding it took.

    Args:
        audio: as [`load_audio`] takes it.
        name (`str`): for messages.
    """

    def __init__(self, audio: Any, name: str):
        self._blocks = audio_blocks(audio, name=name)
        self._samples, self.decoding_seconds = 0, 0.0

    @property
    def duration(self) -> float:
        """Seconds of audio."""
        return self._samples / SAMPLING_RATE

    def samples(self) -> np.ndarray:
        """The whole recording, (samples,), float32 at 16 kHz."""
        return np.concatenate(list(self))

    def __next__(self) -> np.ndarray:
        start = time.perf_counter()
        block = next(self._blocks)
        self.decoding_seconds += time.perf_counter() - start
        self._samples += len(block)
        return block


def hear_recordings(
    dataset: Dataset | Sequence[Mapping],
    transcribe: Callable[[Recording, str], tuple[str, bool]],
    *,
    text_column: str = "text",
    description: str = "transcription",
) -> tuple[list[Heard], RowErrors, float]:
    """Transcribes every recording that can be read, files as they are decoded.

    Args:
        dataset (`Dataset` or `Sequence[Mapping]`): rows with `audio` of any length and a reference, possibly `id`.
        transcribe (`Callable[[Recording, str], tuple[str, bool]]`): takes blocks of samples at 16 kHz and the row's
            id, gives the text and whether it was cut short.
        text_column (`str`, *optional*, defaults to `"text"`): holds the references.
        description (`str`, *optional*, defaults to `"transcription"`): stands before the progress bar.

    Returns:
        `tuple[list[Heard], RowErrors, float]`: what was recognised, in order; the rows that could not be read; and the
        seconds of work, reading and decoding of files not counted.
    """
    heard, errors, seconds = [], RowErrors(), 0.0
    for index in logging.tqdm(range(len(dataset)), desc=description, unit="recording"):
        row = dataset[index]
        name = row_id(row, index)
        recording = Recording(row["audio"], name)
        start = time.perf_counter()
        try:
            text, truncated = transcribe(recording, name)
        except AudioError as error:
            errors.add(name, str(error))
            continue
        seconds += time.perf_counter() - start - recording.decoding_seconds
        heard.append(Heard(name, row[text_column], text, recording.duration, truncated))
    return heard, errors, seconds
