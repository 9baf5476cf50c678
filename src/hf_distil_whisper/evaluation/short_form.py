"""Word error rate of a model on recordings of up to one window (paper, section 6.2): counts, rows and speed.

Knows references, normalisers and what to leave out of a rate. Long recordings are `long_form.py`'s, exact timing
`latency.py`'s.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from datasets import Dataset
from transformers import WhisperForConditionalGeneration, WhisperProcessor
from transformers.utils import logging

from hf_distil_whisper.data.samples import row_id
from hf_distil_whisper.data.sources import RowErrors, without_decoder
from hf_distil_whisper.inference.generation import (
    generate_tokens,
    scoring_language,
    timestamp_begin,
    window_features,
)
from hf_distil_whisper.inference.results import plain_text
from hf_distil_whisper.inference.rows import generate_rows
from hf_distil_whisper.metrics import WordErrors, errors_in_language, get_normalizer, word_errors

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class EvaluationResult:
    """What a model made of a data set.

    Args:
        errors (`WordErrors`): over all rows with a reference; `.wer` is the micro average. Characters instead of words
            for languages without spaces.
        rows (`list[dict]`): per row that could be read, in order: id, reference, prediction, normalized_reference,
            normalized_prediction, wer (None without a reference), duration (seconds), truncated.
        seconds (`float`): spent on features and generation.
        audio_seconds (`float`): length of the recordings.
        empty_references (`int`): rows left out of `errors`, since their reference is missing or empty after
            normalising: a rate per word of nothing is none.
        row_errors (`RowErrors`): rows that could not be read.
    """

    errors: WordErrors
    rows: list[dict]
    seconds: float
    audio_seconds: float
    empty_references: int = 0
    row_errors: RowErrors = field(default_factory=RowErrors)

    @property
    def wer(self) -> float:
        """Word error rate, a fraction."""
        return self.errors.wer

    @property
    def rtf(self) -> float:
        """Real-time factor: seconds of work per second of audio; smaller is faster."""
        return self.seconds / self.audio_seconds


@dataclass(frozen=True)
class Heard:
    """A row as recognised, before it is scored.

    Args:
        id (`str`): of the row.
        reference (`str`, *optional*): what was spoken.
        prediction (`str`): what was recognised.
        duration (`float`): seconds.
        truncated (`bool`): whether a window ran out of length.
    """

    id: str
    reference: str | None
    prediction: str
    duration: float
    truncated: bool


def evaluate_model(
    model: WhisperForConditionalGeneration,
    dataset: Dataset | Sequence[Mapping],
    processor: WhisperProcessor,
    *,
    batch_size: int = 16,
    language: str | None = None,
    normalizer: Callable[[str], str] | None = None,
    num_beams: int = 1,
    max_new_tokens: int | None = None,
    text_column: str = "text",
) -> EvaluationResult:
    """Scores a model on short recordings: greedy, without timestamps, as the paper does.

    Args:
        model (`WhisperForConditionalGeneration`): student or teacher, in eval mode; left as it is.
        dataset (`Dataset` or `Sequence[Mapping]`): rows with `audio` and a reference, possibly `id`.
        processor (`WhisperProcessor`): of the model.
        batch_size (`int`, *optional*, defaults to 16): recordings per pass.
        language (`str`, *optional*): of the recordings. None: English for English-only models; a multilingual model
            detects it, and the basic normaliser scores.
        normalizer (`Callable[[str], str]`, *optional*, defaults to that of the language): from [`get_normalizer`];
            given explicitly, words are counted in any language. `get_normalizer("basic")` for digit strings.
        num_beams (`int`, *optional*, defaults to 1): greedy.
        max_new_tokens (`int`, *optional*): by default as many as the decoder has room for.
        text_column (`str`, *optional*, defaults to `"text"`): holds the references.

    Returns:
        `EvaluationResult`: rows in the order of the data set.

    Raises:
        ValueError: for 0 rows, a missing column, or if no row could be read.

    Example:
        ```python
        >>> result = evaluate_model(student, load_source("quickstart", split="test"), processor)
        >>> f"{result.errors.wer:.1%} of {result.errors.num_words} words, real-time factor {result.rtf:.3f}"
        ```
    """
    dataset = readable_rows(dataset, text_column)
    errors = RowErrors()
    _warm_up(model, processor, language)
    generate = partial(generate_tokens, model, num_beams=num_beams, max_new_tokens=max_new_tokens, language=language)
    found = generate_rows(model, processor, dataset, errors, generate, batch_size=batch_size)
    heard = []
    for index, sequence in found.sequences.items():
        text = plain_text(sequence.tokens, processor.tokenizer, timestamp_begin(model))
        row = dataset[index]
        heard.append(Heard(row_id(row, index), row[text_column], text, found.durations[index], sequence.truncated))
    return score(heard, errors, found.seconds, language=scoring_language(model, language), normalizer=normalizer)


def readable_rows(dataset: Dataset | Sequence[Mapping], text_column: str) -> Dataset | Sequence[Mapping]:
    """Checks that there is something to score; an `Audio` column is left to this package's own decoder.

    Args:
        dataset (`Dataset` or `Sequence[Mapping]`): rows with `audio` and a reference.
        text_column (`str`): holds the references.

    Raises:
        ValueError: for 0 rows or a missing column.
    """
    if len(dataset) == 0:
        raise ValueError("The data set to evaluate has 0 rows. Check the source and its split.")
    if isinstance(dataset, Dataset):
        dataset = without_decoder(dataset)
        columns = dataset.column_names
    else:
        columns = list(dataset[0])
    for column in ("audio", text_column):
        if column not in columns:
            raise ValueError(
                f"The data set to evaluate has no column {column!r}; it has {', '.join(columns)}. Name the right one "
                "with `audio_column` or `text_column` when loading it."
            )
    return dataset


def score(
    heard: Sequence[Heard],
    row_errors: RowErrors,
    seconds: float,
    *,
    language: str,
    normalizer: Callable[[str], str] | None = None,
) -> EvaluationResult:
    """Compares what was recognised with what was spoken.

    Args:
        heard (`Sequence[Heard]`): in the order of the data set.
        row_errors (`RowErrors`): rows that are missing in `heard`.
        seconds (`float`): of work.
        language (`str`): chooses the normaliser, and characters where there are no words.
        normalizer (`Callable[[str], str]`, *optional*): in place of the language's; words are counted then.

    Returns:
        `EvaluationResult`: with counts that add up.

    Raises:
        ValueError: if no row could be read.
    """
    if len(row_errors):
        logger.warning(row_errors.summary())
    if not heard:
        raise ValueError(f"No row could be read, so there is nothing to score.\n{row_errors.summary()}")
    normalize = get_normalizer(language) if normalizer is None else normalizer
    total, empty, rows = WordErrors(), 0, []
    for row in heard:
        spoken, recognised = normalize(row.reference or "").strip(), normalize(row.prediction).strip()
        rate = None
        if spoken:
            errors = (
                errors_in_language(row.reference or "", row.prediction, language)
                if normalizer is None
                else word_errors(spoken, recognised)
            )
            total, rate = total + errors, errors.wer
        else:
            empty += 1
        rows.append(
            {
                "id": row.id,
                "reference": row.reference,
                "prediction": row.prediction,
                "normalized_reference": spoken,
                "normalized_prediction": recognised,
                "wer": rate,
                "duration": row.duration,
                "truncated": row.truncated,
            }
        )
    return EvaluationResult(total, rows, seconds, sum(row.duration for row in heard), empty, row_errors)


def _warm_up(model: WhisperForConditionalGeneration, processor: WhisperProcessor, language: str | None) -> None:
    """One token of silence, so that the first batch's time holds no set-up of the runtime."""
    silence = window_features(model, processor, [np.zeros(1_600, dtype=np.float32)])
    generate_tokens(model, silence, max_new_tokens=1, language=language)
