"""Recordings heard one after another, with bad ones set aside: the common ground of long-form and CTC evaluation.

Knows rows, their audio and the time that is counted; not how a text comes about.
"""

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from datasets import Dataset
from transformers.utils import logging

from hf_distil_whisper.data.audio import SAMPLING_RATE, AudioError, load_audio
from hf_distil_whisper.data.samples import row_id
from hf_distil_whisper.data.sources import RowErrors
from hf_distil_whisper.evaluation.scoring import Heard


def hear_recordings(
    dataset: Dataset | Sequence[Mapping],
    transcribe: Callable[[np.ndarray, str], tuple[str, bool]],
    *,
    text_column: str = "text",
    description: str = "transcription",
) -> tuple[list[Heard], RowErrors, float]:
    """Transcribes every recording that can be read, one in memory at a time.

    Args:
        dataset (`Dataset` or `Sequence[Mapping]`): rows with `audio` of any length and a reference, possibly `id`.
        transcribe (`Callable[[np.ndarray, str], tuple[str, bool]]`): takes samples at 16 kHz and the row's id, gives
            the text and whether it was cut short.
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
        try:
            samples = load_audio(row["audio"], name=name)
        except AudioError as error:
            errors.add(name, str(error))
            continue
        start = time.perf_counter()
        text, truncated = transcribe(samples, name)
        seconds += time.perf_counter() - start
        heard.append(Heard(name, row[text_column], text, len(samples) / SAMPLING_RATE, truncated))
    return heard, errors, seconds
