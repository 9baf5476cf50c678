"""One call from audio to text: short recordings in batches, longer ones window by window.

The three ways to transcribe are found here: [`transcribe`], [`transcribe_chunked`], [`transcribe_sequential`].
"""

from dataclasses import replace
from typing import Literal

import numpy as np
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from hf_distil_whisper.data.audio import (
    SAMPLING_RATE,
    audio_duration,
    load_audio,
)
from hf_distil_whisper.inference.chunked import (
    chunk_statistics,
    transcribe_chunked,
)
from hf_distil_whisper.inference.dataset import batches_by_length
from hf_distil_whisper.inference.decoder import Assistant
from hf_distil_whisper.inference.encoder import (
    encode,
    window_features,
    window_seconds,
)
from hf_distil_whisper.inference.generation import (
    TokenSequence,
    generate_tokens,
)
from hf_distil_whisper.inference.output import (
    Segment,
    Transcription,
    Word,
    plain_text,
    segments_of,
    timed_tokens,
)
from hf_distil_whisper.inference.prompt import timestamp_begin
from hf_distil_whisper.inference.sequential import (
    TemperatureFallback,
    transcribe_sequential,
)
from hf_distil_whisper.inference.word_timestamps import (
    alignment_heads,
    join_words,
    time_windows,
)

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
    draft_length: int | None = None,
    batch_size: int = 1,
    return_timestamps: bool | Literal["word"] = False,
    language: str | None = None,
    task: str = "transcribe",
    num_beams: int = 1,
    max_new_tokens: int | None = None,
) -> list[Transcription]:
    """Transcribes one recording or a list of them.

    Recordings of up to one window (30 s) go through the model in batches of like length, each with one pass of the
    encoder; longer ones go through [`transcribe_sequential`] one after another. Greedy by default, as in the paper.

    Args:
        model (`WhisperForConditionalGeneration`): student or teacher, in eval mode.
        processor (`WhisperProcessor`): of the model.
        audio: path, bytes, float array at 16 kHz, (array, rate), or a list of any of these.
        assistant (`WhisperForCausalLM` or `WhisperForConditionalGeneration`, *optional*): from [`create_assistant`],
            to speed up a teacher by its student, in batches too; needs `num_beams=1`, and leaves the text as it is.
        draft_length (`int`, *optional*): tokens that it drafts at a time; by default chosen by how many are accepted.
        batch_size (`int`, *optional*, defaults to 1): short recordings per pass.
        return_timestamps (`bool` or `"word"`, *optional*, defaults to `False`): also predict times and fill
            `segments`, which long recordings always have; `"word"` fills `words` too, by the model's alignment heads
            (`docs/word_timestamps.md`).
        language (`str`, *optional*): None: English, or detected by a multilingual model.
        task (`str`, *optional*, defaults to `"transcribe"`): or "translate".
        num_beams (`int`, *optional*, defaults to 1): beams of the search.
        max_new_tokens (`int`, *optional*): per short recording; by default as many as the decoder has room for.

    Returns:
        `list[Transcription]`: in the order of `audio`; one entry for a single recording.

    Raises:
        AudioError: if a recording cannot be read; the message names it.
        ValueError: for an assistant with beams, a batch size or draft length below 1, an unknown language, or words
            of a model without alignment heads.

    Example:
        ```python
        >>> name = "distil-whisper/distil-small.en"
        >>> model, processor = load_model(name), load_processor(name)
        >>> transcribe(model, processor, ["one.wav", "two.flac"], batch_size=2)[0].text
        ```
    """
    if return_timestamps == "word":
        alignment_heads(model)  # none, or wrong ones, fail before the work
    recordings = audio if isinstance(audio, list) else [audio]
    short = _short_recordings(recordings, window_seconds(processor))
    numbers, results = list(short), dict[int, Transcription]()
    for batch in batches_by_length([len(samples) for samples in short.values()], batch_size):
        indices = [numbers[position] for position in batch]
        features = window_features(model, processor, [short[index] for index in indices])
        states = encode(model, features)
        found = generate_tokens(
            model,
            features,
            encoder_hidden_states=states,
            num_beams=num_beams,
            max_new_tokens=max_new_tokens,
            return_timestamps=bool(return_timestamps),
            language=language,
            task=task,
            assistant=assistant,
            draft_length=draft_length,
            statistics=True,
        )
        for index, sequence in zip(indices, found, strict=True):
            seconds = len(short[index]) / SAMPLING_RATE
            results[index] = _transcription(
                sequence, processor, timestamp_begin(model), seconds, bool(return_timestamps)
            )
        if return_timestamps == "word":
            tokens = [sequence.tokens for sequence in found]
            samples = [len(short[index]) for index in indices]
            timed = time_windows(model, processor, states, tokens, samples, language=language, task=task)
            for index, (own, spoken) in zip(indices, timed, strict=True):
                words = join_words(own, processor.tokenizer, timestamp_begin(model), spoken)
                results[index] = replace(results[index], words=words)
    for index in sorted(set(range(len(recordings))) - set(short)):
        results[index] = transcribe_sequential(
            model,
            processor,
            recordings[index],
            assistant=assistant,
            draft_length=draft_length,
            language=language,
            task=task,
            num_beams=num_beams,
            word_timestamps=return_timestamps == "word",
        )
    return [results[index] for index in range(len(recordings))]


def _short_recordings(recordings: list, window: float) -> dict[int, np.ndarray]:
    """Samples of those that fit into a window, by number; the others stay where they lie. Each is looked at."""
    short = {}
    for index, recording in enumerate(recordings):
        if audio_duration(recording) <= window + 1:  # a header may be off by a little
            samples = load_audio(recording)
            if len(samples) <= window * SAMPLING_RATE:
                short[index] = samples
    return short


def _transcription(
    sequence: TokenSequence, processor: WhisperProcessor, begin: int, seconds: float, return_timestamps: bool
) -> Transcription:
    text = plain_text(sequence.tokens, processor.tokenizer, begin)
    parts = timed_tokens(sequence.tokens, begin, 0.0, seconds) if return_timestamps else []
    return Transcription(text, segments_of(parts, processor.tokenizer, begin), chunk_statistics([sequence], text))
