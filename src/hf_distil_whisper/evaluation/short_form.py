"""Word error rate of a model on recordings of up to one window (paper, section 6.2): counts, rows and speed.

Knows how each row is heard and how long that takes; counting is `scoring.py`'s, long recordings are `long_form.py`'s,
exact timing is `latency.py`'s.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from datasets import Dataset
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from hf_distil_whisper.data.audio import load_audio
from hf_distil_whisper.data.samples import row_id
from hf_distil_whisper.data.sources import RowErrors, without_decoder
from hf_distil_whisper.evaluation.scoring import EvaluationResult, Heard, score
from hf_distil_whisper.inference.generation import (
    TokenSequence,
    generate_tokens,
    scoring_language,
    timestamp_begin,
    window_features,
)
from hf_distil_whisper.inference.results import plain_text
from hf_distil_whisper.inference.rows import generate_rows


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
    load: Callable[..., np.ndarray] = load_audio,
    generate: Callable[..., list[TokenSequence]] | None = None,
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
        load (`Callable[..., np.ndarray]`, *optional*, defaults to [`load_audio`]): what the model hears of a row,
            given its `audio` and its id as `name`: samples at 16 kHz, as many as there are.
        generate (`Callable[..., list[TokenSequence]]`, *optional*): the search of another runtime, which has its own
            beams and lengths: features (batch, mel bins, frames) to tokens.

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
    if generate is None:
        generate = partial(
            generate_tokens, model, num_beams=num_beams, max_new_tokens=max_new_tokens, language=language
        )
        _warm_up(model, processor, language)
    found = generate_rows(model, processor, dataset, errors, generate, load=load, batch_size=batch_size)
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


def _warm_up(model: WhisperForConditionalGeneration, processor: WhisperProcessor, language: str | None) -> None:
    """One token of silence, so that the first batch's time holds no set-up of the runtime."""
    silence = window_features(model, processor, [np.zeros(1_600, dtype=np.float32)])
    generate_tokens(model, silence, max_new_tokens=1, language=language)
