"""Transcription of recordings of any length: short ones in batches, longer ones window by window."""

from dataclasses import replace
from typing import Any

import numpy as np
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from hf_distil_whisper.checkpoints import check_compatible
from hf_distil_whisper.data.audio import SAMPLING_RATE, audio_duration, load_audio
from hf_distil_whisper.inference.chunked import WindowTokens, transcribe_chunked, transcribe_windows, window_statistics
from hf_distil_whisper.inference.dataset import batches_by_length
from hf_distil_whisper.inference.decoder import Assistant
from hf_distil_whisper.inference.encoder import window_seconds
from hf_distil_whisper.inference.generation import GenerationSettings
from hf_distil_whisper.inference.output import Segment, Transcription, Word, plain_text, segments_of, timed_tokens
from hf_distil_whisper.inference.prompt import initial_prompt, timestamp_begin
from hf_distil_whisper.inference.sequential import TemperatureFallback, transcribe_sequential
from hf_distil_whisper.inference.word_timestamps import alignment_heads, join_words

__all__ = [
    "Segment",
    "TemperatureFallback",
    "Transcription",
    "Word",
    "transcribe",
    "transcribe_chunked",
    "transcribe_sequential",
]


def transcribe(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    audio: object,
    *,
    assistant: Assistant | None = None,
    prompt: str | None = None,
    settings: GenerationSettings | None = None,
    **keywords: Any,
) -> list[Transcription]:
    """Transcribes one recording or a list of them.

    Recordings of up to one window (30 s) are transcribed in batches of similar length, longer ones one by one, with
    [`transcribe_sequential`]. Greedy by default, as in the paper.

    Args:
        model (`WhisperForConditionalGeneration`): student or teacher, in eval mode.
        processor (`WhisperProcessor`): of the model.
        audio: path, bytes, float array at 16 kHz, (array, rate), or a list of any of these.
        assistant (`WhisperForCausalLM` or `WhisperForConditionalGeneration`, *optional*): from [`create_assistant`],
            speeds up a teacher by its student; needs `num_beams=1`, and does not change the text.
        prompt (`str`, *optional*): text that the decoder reads as if it had been spoken before every window: hotwords
            ("Kubernetes, HuBERT"), names, or a style of writing. Its last tokens count, half of the decoder's
            positions at most (224); the transcript does not contain it.
        settings ([`GenerationSettings`], *optional*): language, task, beams, lengths; one recording per pass by
            default. `return_timestamps` fills `segments`, which long recordings always have; `"word"` also fills
            `words` (`docs/word_timestamps.md`). `max_new_tokens` bounds short recordings only.
        keywords: fields of [`GenerationSettings`], which replace those of `settings`.

    Returns:
        `list[Transcription]`: in the order of `audio`; one entry for a single recording.

    Raises:
        AudioError: if a recording cannot be read; the message names it.
        ValueError: for another model's processor, an assistant with beams, a batch size or draft length below 1, an
            unknown language, or word timestamps of a model without alignment heads.

    Example:
        ```python
        >>> name = "distil-whisper/distil-small.en"
        >>> model, processor = load_model(name), load_processor(name)
        >>> transcribe(model, processor, ["one.wav", "two.flac"], batch_size=2)[0].text
        ```
    """
    settings = replace(settings or GenerationSettings(batch_size=1), **keywords)
    check_compatible(model, None, processor)
    if settings.return_timestamps == "word":
        alignment_heads(model)  # missing or wrong ones fail before the work
    prompt_ids = initial_prompt(model, processor, prompt)
    recordings = audio if isinstance(audio, list) else [audio]
    short = _short_recordings(recordings, window_seconds(processor))
    results: dict[int, Transcription] = {}
    indices = list(short)
    seconds = [len(samples) / SAMPLING_RATE for samples in short.values()]
    for batch in batches_by_length(seconds, settings.batch_size, settings.token_budget):
        samples = [short[indices[position]] for position in batch]
        windows = transcribe_windows(model, processor, samples, settings, assistant, prompt_ids)
        for position, window in zip(batch, windows, strict=True):
            results[indices[position]] = _transcription(model, processor, window, seconds[position], settings)
    # Long recordings one by one: transformers' loop fails on batches of unequal length.
    for index in sorted(set(range(len(recordings))) - set(short)):
        results[index] = transcribe_sequential(
            model, processor, recordings[index], assistant=assistant, prompt=prompt, settings=settings
        )
    return [results[index] for index in range(len(recordings))]


def _short_recordings(recordings: list, window: float) -> dict[int, np.ndarray]:
    """Samples of the recordings that fit into a window, by index; longer ones are not decoded."""
    short = {}
    for index, recording in enumerate(recordings):
        if audio_duration(recording) <= window + 1:  # the duration in a file's header is not always exact
            samples = load_audio(recording)
            if len(samples) <= window * SAMPLING_RATE:
                short[index] = samples
    return short


def _transcription(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    window: WindowTokens,
    seconds: float,
    settings: GenerationSettings,
) -> Transcription:
    tokenizer, first_timestamp, tokens = processor.tokenizer, timestamp_begin(model), window.sequence.tokens
    text = plain_text(tokens, tokenizer, first_timestamp)
    stretches = timed_tokens(tokens, first_timestamp, 0.0, seconds) if settings.return_timestamps else []
    segments = segments_of(stretches, tokenizer, first_timestamp)
    words = join_words(window.timed, tokenizer, first_timestamp, window.language)
    return Transcription(text, segments, window_statistics([window.sequence], text), words)
