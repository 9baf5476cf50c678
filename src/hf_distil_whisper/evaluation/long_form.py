"""Word error rate on recordings of minutes and hours, chunked or sequential (paper, sections 5 and 8.2).

Knows which algorithm to run on each recording, and counts what hallucinations leave behind (section 8.4); scoring is
`short_form.py`'s.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from datasets import Dataset
from transformers import WhisperForConditionalGeneration, WhisperProcessor
from transformers.utils import logging

from hf_distil_whisper.evaluation.recordings import hear_recordings
from hf_distil_whisper.evaluation.scoring import EvaluationResult, score
from hf_distil_whisper.evaluation.short_form import readable_rows
from hf_distil_whisper.inference.chunked import transcribe_chunked
from hf_distil_whisper.inference.generation import scoring_language
from hf_distil_whisper.inference.results import Transcription
from hf_distil_whisper.inference.sequential import StuckTranscriptionError, transcribe_sequential

logger = logging.get_logger(__name__)

METHODS = ("chunked", "sequential")


def evaluate_long_form(
    model: WhisperForConditionalGeneration,
    dataset: Dataset | Sequence[Mapping],
    processor: WhisperProcessor,
    *,
    method: str = "chunked",
    chunk_length: float = 30.0,
    stride: float | None = None,
    batch_size: int = 16,
    temperature_fallback: bool = False,
    condition_on_prev_tokens: bool = False,
    language: str | None = None,
    normalizer: Callable[[str], str] | None = None,
    text_column: str = "text",
) -> EvaluationResult:
    """Scores a model on long recordings.

    Args:
        model (`WhisperForConditionalGeneration`): student or teacher, in eval mode; left as it is.
        dataset (`Dataset` or `Sequence[Mapping]`): rows with `audio` of any length and a reference, possibly `id`.
        processor (`WhisperProcessor`): of the model.
        method (`str`, *optional*, defaults to `"chunked"`): [`transcribe_chunked`], as in the paper's tables, or
            "sequential", [`transcribe_sequential`].
        chunk_length (`float`, *optional*, defaults to 30.0): seconds; chunked only. Table 23: 30 for Whisper, 15 for
            students.
        stride (`float`, *optional*, defaults to `chunk_length / 6`): seconds at either side; chunked only.
        batch_size (`int`, *optional*, defaults to 16): chunks per pass; chunked only.
        temperature_fallback (`bool`, *optional*, defaults to `False`): sequential only.
        condition_on_prev_tokens (`bool`, *optional*, defaults to `False`): sequential only.
        language (`str`, *optional*): see [`evaluate_model`].
        normalizer (`Callable[[str], str]`, *optional*): see [`evaluate_model`].
        text_column (`str`, *optional*, defaults to `"text"`): holds the references.

    Returns:
        `EvaluationResult`: its rows hold `repeated_5grams` of the normalised prediction (Table 8).

    Raises:
        ValueError: for an unknown method, an option of the other method, 0 rows, a missing column, or if no row could
            be read.
    """
    _check_method(method, temperature_fallback or condition_on_prev_tokens, chunk_length != 30.0 or stride is not None)
    dataset = readable_rows(dataset, text_column)

    def transcribe(samples: np.ndarray, name: str) -> tuple[str, bool]:
        try:
            if method == "chunked":
                transcription = transcribe_chunked(
                    model,
                    processor,
                    samples,
                    chunk_length=chunk_length,
                    stride=stride,
                    batch_size=batch_size,
                    language=language,
                )
            else:
                transcription = transcribe_sequential(
                    model,
                    processor,
                    samples,
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
    return score(heard, errors, seconds, language=scoring_language(model, language), normalizer=normalizer)


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
