"""Word error rate on recordings of minutes and hours, chunked or sequential (paper, sections 5 and 8.2).

Knows which algorithm to run on each recording, and counts what hallucinations leave behind (section 8.4); scoring is
`scoring.py`'s.
"""

import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import WhisperForConditionalGeneration, WhisperProcessor
from transformers.utils import logging

from hf_distil_whisper.data.audio import (
    SAMPLING_RATE,
    AudioError,
    audio_blocks,
)
from hf_distil_whisper.data.dataset import row_id
from hf_distil_whisper.data.sources import RowErrors
from hf_distil_whisper.evaluation.evaluate import (
    EvaluationResult,
    Heard,
    readable_rows,
    score,
)
from hf_distil_whisper.inference.chunked import transcribe_chunked
from hf_distil_whisper.inference.output import Transcription
from hf_distil_whisper.inference.prompt import scoring_language
from hf_distil_whisper.inference.sequential import (
    StuckTranscriptionError,
    TemperatureFallback,
    transcribe_sequential,
)
from hf_distil_whisper.metrics import WordErrors


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


logger = logging.get_logger(__name__)

METHODS = ("chunked", "sequential")


def evaluate_long_form(
    model: WhisperForConditionalGeneration,
    dataset: Dataset | Sequence[Mapping],
    processor: WhisperProcessor,
    *,
    method: str = "chunked",
    chunk_length: float | None = None,
    stride: float | None = None,
    batch_size: int = 16,
    temperature_fallback: bool | TemperatureFallback = False,
    condition_on_prev_tokens: bool = False,
    language: str | None = None,
    normalizer: Callable[[str], str] | None = None,
    text_column: str = "text",
) -> EvaluationResult:
    """Scores a model on long recordings, the files among them decoded as they are transcribed.

    A recording that cannot be read, an empty one included, is left out and listed. Silence and a clip of 10 ms are
    scored like any other recording. One without a reference (None, or nothing but punctuation) is transcribed and
    stands in the rows, where its repeated 5-grams show what the model made up; an error rate per word of nothing is
    none, so it does not count in `errors`.

    Args:
        model (`WhisperForConditionalGeneration`): student or teacher, in eval mode; left as it is.
        dataset (`Dataset` or `Sequence[Mapping]`): rows with `audio` of any length and a reference, possibly `id`.
        processor (`WhisperProcessor`): of the model.
        method (`str`, *optional*, defaults to `"chunked"`): [`transcribe_chunked`], as in the paper's tables, or
            "sequential", [`transcribe_sequential`].
        chunk_length (`float`, *optional*, defaults to [`default_chunk_length`]): seconds; chunked only. Table 23: 30
            for Whisper, 15 for students of single utterances.
        stride (`float`, *optional*, defaults to `chunk_length / 6`): seconds at either side; chunked only.
        batch_size (`int`, *optional*, defaults to 16): chunks per pass; chunked only.
        temperature_fallback (`bool` or [`TemperatureFallback`], *optional*, defaults to `False`): sequential only.
            What it samples depends on the row's id alone (its number, where it has none): the text is the same for any
            order of models and choice of rows, and torch's own random numbers go on as if none had been drawn.
        condition_on_prev_tokens (`bool`, *optional*, defaults to `False`): sequential only.
        language (`str`, *optional*): see [`evaluate_model`].
        normalizer (`Callable[[str], str]`, *optional*): see [`evaluate_model`].
        text_column (`str`, *optional*, defaults to `"text"`): holds the references.

    Returns:
        `EvaluationResult`: its rows also hold `ier`, `ser` and `der` (None without a reference), and
            `repeated_5grams` of the normalised prediction (Table 8), which the result sums up.

    Raises:
        ValueError: for an unknown method, an option of the other method, 0 rows, a missing column, or if no row could
            be read.
    """
    chunk_options = chunk_length is not None or stride is not None
    _check_method(method, bool(temperature_fallback) or condition_on_prev_tokens, chunk_options)
    dataset = readable_rows(dataset, text_column)

    def transcribe(recording: Recording, name: str) -> tuple[str, bool]:
        try:
            if method == "chunked":
                transcription = transcribe_chunked(
                    model,
                    processor,
                    recording,
                    chunk_length=chunk_length,
                    stride=stride,
                    batch_size=batch_size,
                    language=language,
                )
            else:
                with _random_numbers_of(name, model.device):
                    transcription = transcribe_sequential(
                        model,
                        processor,
                        recording,
                        language=language,
                        temperature_fallback=temperature_fallback,
                        condition_on_prev_tokens=condition_on_prev_tokens,
                    )
        except StuckTranscriptionError as error:
            # The model's failure, not the recording's: it counts as a transcript that lacks every word.
            logger.warning(f"{name}: {error}")
            transcription = Transcription("")
        return transcription.text, transcription.statistics is None or transcription.statistics.truncated

    heard, errors, seconds = hear_recordings(
        dataset, transcribe, text_column=text_column, description=f"{method} transcription"
    )
    result = score(heard, errors, seconds, language=scoring_language(model, language), normalizer=normalizer)
    for scored in result.rows:
        scored |= _rates(scored)
    return result


@contextmanager
def _random_numbers_of(name: str, device: torch.device) -> Iterator[None]:
    """What is drawn inside depends on a row's id alone, and changes nothing of what is drawn afterwards."""
    with torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type):
        torch.manual_seed(zlib.crc32(name.encode()))
        yield


def _rates(row: Mapping[str, Any]) -> dict[str, float | None]:
    if row["wer"] is None:
        return dict.fromkeys(("ier", "ser", "der"))
    errors = WordErrors(row["hits"], row["substitutions"], row["deletions"], row["insertions"])
    return {"ier": errors.ier, "ser": errors.ser, "der": errors.der}


def _check_method(method: str, sequential_options: bool, chunked_options: bool) -> None:
    if method not in METHODS:
        raise ValueError(f"`method` is {method!r}, expected one of {', '.join(METHODS)}.")
    if method == "chunked" and sequential_options:
        raise ValueError(
            "`temperature_fallback` and `condition_on_prev_tokens` belong to method='sequential' and would have no "
            "effect on the chunked one. Choose the method or leave them out."
        )
    if method == "sequential" and chunked_options:
        raise ValueError(
            "`chunk_length` and `stride` belong to method='chunked' and would have no effect on the sequential one. "
            "Choose the method or leave them out."
        )
