"""How long the chunks of a long recording should be: what follows from the recordings a model was trained on.

Knows the rule and where a model keeps what follows from it (paper, appendix D.4).
"""

from transformers import WhisperForConditionalGeneration, WhisperProcessor

from hf_distil_whisper.inference.generation import window_seconds

CHUNK_LENGTH_ENTRY = "chunk_length_s"
"""Entry of a student's generation config, in seconds; named after the argument of the speech recognition pipeline,
which does not read it."""

LONG_CHUNK, SHORT_CHUNK = 30.0, 15.0
"""Seconds that Table 23 found best for Whisper, trained on 30 s, and Distil-Whisper, trained on 7.1 s in the mean."""


def chunk_length_after(mean_duration: float) -> float:
    """The chunk length for a model that was trained on recordings of this mean duration.

    The paper (appendix D.4, Table 23) has two points: a model trained on windows of 30 s is best with chunks of 30 s,
    one trained on utterances of 7.1 s with chunks of 15 s. A chunk of 15 s is no longer than most of what the model
    knows once the mean is above 15 s, so that is where the rule changes.

    Args:
        mean_duration (`float`): seconds, over the rows of the training.

    Returns:
        `float`: 15.0 up to a mean of 15 s (corpora of single utterances), else 30.0 (utterances packed to windows).
    """
    return SHORT_CHUNK if mean_duration <= SHORT_CHUNK else LONG_CHUNK


def default_chunk_length(model: WhisperForConditionalGeneration, processor: WhisperProcessor) -> float:
    """The chunk length of a model where none is asked for.

    Args:
        model (`WhisperForConditionalGeneration`): its generation config says `chunk_length_s`, where a training with
            this library has written it.
        processor (`WhisperProcessor`): of the model; no chunk is longer than its window.

    Returns:
        `float`: seconds; 30.0 for a model that does not say, as every Whisper of OpenAI.

    Raises:
        ValueError: if the entry is no length.
    """
    seconds = model.generation_config.to_dict().get(CHUNK_LENGTH_ENTRY)
    if seconds is None:
        seconds = LONG_CHUNK
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
        raise ValueError(
            f"`{CHUNK_LENGTH_ENTRY}` in the model's generation_config is {seconds!r}, expected seconds above 0. "
            "Correct it, or pass `chunk_length`."
        )
    return min(float(seconds), window_seconds(processor))
