"""Word error rate on recordings of minutes and hours, chunked or sequential (paper, sections 5 and 8.2)."""

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

from hf_distil_whisper.data.audio import SAMPLING_RATE, AudioError, audio_blocks
from hf_distil_whisper.data.dataset import row_id
from hf_distil_whisper.data.sources import RowErrors
from hf_distil_whisper.evaluation.evaluate import (
    KINDS,
    EvaluationResult,
    TranscribedRow,
    readable_rows,
    score,
    spoken_languages,
)
from hf_distil_whisper.inference.chunked import transcribe_chunked
from hf_distil_whisper.inference.output import Transcription
from hf_distil_whisper.inference.sequential import StuckTranscriptionError, transcribe_sequential
from hf_distil_whisper.metrics import WordErrors

logger = logging.get_logger(__name__)

_OPTIONS = {
    "chunked": ("chunk_length", "stride", "batch_size"),
    "sequential": ("temperature_fallback", "condition_on_prev_tokens"),
}
"""Options of each method; a batch size that the sequential one does not use is ignored."""


def evaluate_long_form(
    model: WhisperForConditionalGeneration,
    dataset: Dataset | Sequence[Mapping],
    processor: WhisperProcessor,
    *,
    method: str = "chunked",
    language: str | None = None,
    normalizer: Callable[[str], str] | None = None,
    unit: str | None = None,
    text_column: str = "text",
    **options: Any,
) -> EvaluationResult:
    """Scores a model on long recordings; files are decoded while they are transcribed.

    A recording that cannot be read, or is empty, is left out and listed. One without a reference (None, or nothing
    but punctuation) is transcribed, and its repeated 5-grams show what the model made up, but it counts in no rate.

    Args:
        model (`WhisperForConditionalGeneration`): student or teacher, in eval mode.
        dataset (`Dataset` or `Sequence[Mapping]`): rows with `audio` of any length and a reference, optionally `id`.
        processor (`WhisperProcessor`): the model's processor.
        method (`str`, *optional*, defaults to `"chunked"`): [`transcribe_chunked`], as in the paper's tables, or
            `"sequential"`, [`transcribe_sequential`].
        language (`str`, *optional*): see [`evaluate_model`].
        normalizer (`Callable[[str], str]`, *optional*): see [`evaluate_model`].
        unit (`str`, *optional*): see [`evaluate_model`].
        text_column (`str`, *optional*, defaults to `"text"`): column of the references.
        options: of the method. Chunked: `chunk_length` and `stride` in seconds, `batch_size` (16) in chunks.
            Sequential: `temperature_fallback` (`bool` or [`TemperatureFallback`]) and `condition_on_prev_tokens`.
            Sampling is seeded by the row's id: the text does not depend on the order of models and rows.

    Returns:
        [`EvaluationResult`]: its rows also hold `ier`, `ser` and `der` (None without a reference), and the
            `repeated_5grams` of the normalised prediction (Table 8).

    Raises:
        ValueError: for an unknown method, an option of the other method, 0 rows, a missing column, or if no row could
            be read.
    """
    _check_options(method, options)
    dataset = readable_rows(dataset, text_column)
    transcribed, errors, seconds = [], RowErrors(), 0.0
    languages = spoken_languages(model, dataset, errors, language, normalizer)
    for index, spoken in logging.tqdm(languages.items(), desc=f"{method} transcription", unit="recording"):
        row = dataset[index]
        name = row_id(row, index)
        recording = _TimedBlocks(row["audio"], name)
        start = time.perf_counter()
        try:
            if method == "chunked":
                transcription = transcribe_chunked(model, processor, recording, language=spoken, **options)
            else:
                with _seeded_by(name, model.device):
                    transcription = transcribe_sequential(model, processor, recording, language=spoken, **options)
        except AudioError as error:
            errors.add(name, str(error))
            continue
        except StuckTranscriptionError as error:
            # The model failed, not the recording: an empty transcript, all words deleted.
            logger.warning(f"{name}: {error}")
            transcription = Transcription("")
        # Decoding of the file happens inside, block by block, and is no part of the real-time factor.
        seconds += time.perf_counter() - start - recording.decoding_seconds
        truncated = transcription.statistics is None or transcription.statistics.truncated
        transcribed.append(
            TranscribedRow(name, row[text_column], transcription.text, recording.duration, truncated, spoken)
        )
    result = score(transcribed, errors, seconds, normalizer=normalizer, unit=unit)
    for scored in result.rows:
        counts = WordErrors(*(scored[kind] or 0 for kind in KINDS))
        for rate in ("ier", "ser", "der"):
            scored[rate] = None if scored["wer"] is None else getattr(counts, rate)
    return result


class _TimedBlocks(Iterator[np.ndarray]):
    """Blocks of a recording (float32 at 16 kHz), with the duration read so far and the time that decoding took."""

    def __init__(self, audio: Any, name: str):
        self._blocks = audio_blocks(audio, name=name)
        self.duration, self.decoding_seconds = 0.0, 0.0
        self._samples = 0

    def __next__(self) -> np.ndarray:
        start = time.perf_counter()
        block = next(self._blocks)
        self.decoding_seconds += time.perf_counter() - start
        self._samples += len(block)
        self.duration = self._samples / SAMPLING_RATE
        return block


@contextmanager
def _seeded_by(name: str, device: torch.device) -> Iterator[None]:
    """Seeds sampling by the row's id, and restores torch's random state afterwards."""
    with torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type):
        torch.manual_seed(zlib.crc32(name.encode()))
        yield


def _check_options(method: str, options: dict[str, Any]) -> None:
    """Removes options of the other method that are off; refuses those that are on."""
    if method not in _OPTIONS:
        raise ValueError(f"`method` is {method!r}, expected one of {', '.join(_OPTIONS)}.")
    others = {name: other for other, names in _OPTIONS.items() if other != method for name in names}
    for name in list(options):
        if name in others and name != "batch_size" and options[name] not in (None, False):
            raise ValueError(
                f"`{name}` belongs to method={others[name]!r} and would have no effect on method={method!r}. Choose "
                "the method or leave it out."
            )
        if name in others:
            del options[name]
