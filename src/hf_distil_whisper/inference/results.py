"""From tokens to text: transcriptions, their segments with times, and how far they may be trusted.

Knows the tokenizer and Whisper's timestamp tokens (steps of 0.02 s); nothing of models or audio.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import WhisperTokenizer

from hf_distil_whisper.inference.drafts import DraftCounts

TIME_PRECISION = 0.02
"""Seconds between two neighbouring timestamp tokens."""


@dataclass(frozen=True)
class Segment:
    """A stretch of text with its times.

    Args:
        start (`float`): seconds from the start of the recording.
        end (`float`): seconds from the start of the recording.
        text (`str`): without timestamp tokens, stripped.
    """

    start: float
    end: float
    text: str


@dataclass(frozen=True)
class Word:
    """A word with its times; see `word_timestamps.py`.

    Args:
        start (`float`): seconds from the start of the recording.
        end (`float`): seconds from the start of the recording.
        text (`str`): with the punctuation around it, stripped.
        probability (`float`): of its tokens, in the mean, as in faster-whisper.
    """

    start: float
    end: float
    text: str
    probability: float


@dataclass(frozen=True)
class TranscriptionStatistics:
    """What tells a good transcription from a hallucinated one.

    Args:
        num_tokens (`int`): generated over all windows, before overlaps are joined.
        num_windows (`int`): passes of the encoder.
        truncated (`bool`): whether a window ran out of length before it ended.
        compression_ratio (`float`): see [`compression_ratio`]; above 2.4 OpenAI's Whisper speaks of repetition.
        mean_log_prob (`float`, *optional*): per token, over all windows. None from [`transcribe_sequential`].
        no_speech_prob (`float`, *optional*): smallest of all windows, so high only where none holds speech. None from
            [`transcribe_sequential`].
        drafts ([`DraftCounts`], *optional*): what came of an assistant's drafts, where there was one.
    """

    num_tokens: int
    num_windows: int
    truncated: bool
    compression_ratio: float
    mean_log_prob: float | None = None
    no_speech_prob: float | None = None
    drafts: DraftCounts | None = None


@dataclass(frozen=True)
class Transcription:
    """The text of one recording.

    Args:
        text (`str`): without timestamps, stripped.
        segments (`list[Segment]`): with times, where timestamps were asked for; else empty.
        statistics (`TranscriptionStatistics`): how far to trust it.
        words (`list[Word]`): with times, where they were asked for; else empty.
    """

    text: str
    segments: list[Segment] = field(default_factory=list)
    statistics: TranscriptionStatistics | None = None
    words: list[Word] = field(default_factory=list)


def compression_ratio(text: str) -> float:
    """Bytes of the text over bytes of its zlib compression: high where phrases repeat; 0 for an empty text.

    Args:
        text (`str`): in UTF-8, as in OpenAI's Whisper.
    """
    raw = text.encode("utf-8")
    return len(raw) / len(zlib.compress(raw))


def plain_text(tokens: Sequence[int], tokenizer: WhisperTokenizer, timestamp_begin: int) -> str:
    """The text of tokens without timestamps and special tokens, stripped.

    Args:
        tokens (`Sequence[int]`): as generated.
        tokenizer (`WhisperTokenizer`): of the model.
        timestamp_begin (`int`): id of `<|0.00|>`.
    """
    words = [token for token in tokens if token < timestamp_begin]
    return str(tokenizer.decode(words, skip_special_tokens=True)).strip()


def timestamped_text(tokens: Sequence[int], tokenizer: WhisperTokenizer, timestamp_begin: int) -> str:
    """The text with its timestamp tokens written out, "<|0.00|> Hello.<|1.20|>", and no other special tokens.

    Args:
        tokens (`Sequence[int]`): as generated with timestamps.
        tokenizer (`WhisperTokenizer`): of the model.
        timestamp_begin (`int`): id of `<|0.00|>`.
    """
    pieces: list[str] = []
    words: list[int] = []
    for token in [*tokens, None]:
        if token is not None and token < timestamp_begin:
            words.append(token)
            continue
        if words:
            pieces.append(str(tokenizer.decode(words, skip_special_tokens=True)))
            words = []
        if token is not None:
            pieces.append(f"<|{(token - timestamp_begin) * TIME_PRECISION:.2f}|>")
    return "".join(pieces).strip()


def timed_tokens(
    tokens: Sequence[int], timestamp_begin: int, offset: float, end: float
) -> list[tuple[float, float, list[int]]]:
    """Splits generated tokens at their timestamps.

    Args:
        tokens (`Sequence[int]`): of one window, with timestamps.
        timestamp_begin (`int`): id of `<|0.00|>`.
        offset (`float`): where the window starts in the recording, seconds.
        end (`float`): where the window's audio ends in the recording, seconds; no time goes beyond it, and text
            without a closing timestamp ends there.

    Returns:
        `list[tuple[float, float, list[int]]]`: start, end and text tokens of every stretch that has any.
    """
    parts: list[tuple[float, float, list[int]]] = []
    words: list[int] = []
    start = offset
    for token in tokens:
        if token < timestamp_begin:
            words.append(token)
            continue
        time = min(offset + (token - timestamp_begin) * TIME_PRECISION, end)
        if words:
            parts.append((start, time, words))
            words = []
        start = time
    if words:
        parts.append((start, end, words))
    return parts


def segments_of(
    parts: Sequence[tuple[float, float, Sequence[int]]], tokenizer: WhisperTokenizer, timestamp_begin: int
) -> list[Segment]:
    """Decodes what [`timed_tokens`] split; stretches without text are left out.

    Args:
        parts (`Sequence[tuple[float, float, Sequence[int]]]`): start, end and tokens.
        tokenizer (`WhisperTokenizer`): of the model.
        timestamp_begin (`int`): id of `<|0.00|>`.
    """
    decoded = [(start, end, plain_text(tokens, tokenizer, timestamp_begin)) for start, end, tokens in parts]
    return [Segment(round(start, 2), round(end, 2), text) for start, end, text in decoded if text]
