"""Word error rate of a CTC model, of short and of long recordings alike: the column beside Whisper in Table 8.

Knows which text belongs to which row; the model is `inference/ctc.py`'s, scoring is `scoring.py`'s.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel, Wav2Vec2Processor

from ctc import transcribe_ctc
from hf_distil_whisper.data.audio import SAMPLING_RATE
from hf_distil_whisper.evaluation.evaluate import (
    EvaluationResult,
    readable_rows,
    score,
)
from hf_distil_whisper.evaluation.long_form import (
    Recording,
    hear_recordings,
)


def evaluate_ctc(
    model: PreTrainedModel,
    dataset: Dataset | Sequence[Mapping],
    processor: Wav2Vec2Processor,
    *,
    language: str,
    chunk_length: float = 30.0,
    stride: float | None = None,
    normalizer: Callable[[str], str] | None = None,
    text_column: str = "text",
) -> EvaluationResult:
    """Scores a CTC model on recordings of any length, counted as [`evaluate_model`] counts.

    Args:
        model (`PreTrainedModel`): from [`load_ctc`].
        dataset (`Dataset` or `Sequence[Mapping]`): rows with `audio` of any length and a reference, possibly `id`.
        processor (`Wav2Vec2Processor`): of the model.
        language (`str`): of the model, whose checkpoint does not say it; chooses the normaliser.
        chunk_length (`float`, *optional*, defaults to 30.0): seconds; see [`transcribe_ctc`].
        stride (`float`, *optional*, defaults to `chunk_length / 6`): seconds at either side.
        normalizer (`Callable[[str], str]`, *optional*, defaults to that of the language): see [`evaluate_model`].
        text_column (`str`, *optional*, defaults to `"text"`): holds the references.

    Returns:
        `EvaluationResult`: rows in the order of the data set.

    Raises:
        ValueError: for 0 rows, a missing column, strides that leave nothing of a chunk, or if no row could be read.

    Example:
        ```python
        >>> model, processor = load_ctc("facebook/wav2vec2-large-960h")
        >>> result = evaluate_ctc(model, load_source("talks", split="test"), processor, language="en")
        >>> result.errors.ier, result.repeated_5grams
        ```
    """
    dataset = readable_rows(dataset, text_column)

    hear = partial(transcribe_ctc, model, processor, chunk_length=chunk_length, stride=stride)
    hear(np.zeros(SAMPLING_RATE, dtype=np.float32))  # the first row's time holds no set-up

    def transcribe(recording: Recording, _: str) -> tuple[str, bool]:
        return hear(recording.samples()), False

    heard, errors, seconds = hear_recordings(dataset, transcribe, text_column=text_column, description="CTC")
    return score(heard, errors, seconds, language=language, normalizer=normalizer)
