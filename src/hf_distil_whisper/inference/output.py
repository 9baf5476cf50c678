"""Transcriptions: segments and words with their times, statistics, and SubRip (SRT), WebVTT and JSON."""

import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from transformers import WhisperTokenizer

from hf_distil_whisper.inference.speculative import DraftCounts

TIME_PRECISION = 0.02
"""Seconds between two neighbouring timestamp tokens."""


@dataclass(frozen=True)
class Segment:
    """A stretch of text between two timestamps, stripped; times are in seconds from the start of the recording."""

    start: float
    end: float
    text: str


@dataclass(frozen=True)
class Word:
    """A word with the punctuation around it, its times in seconds, and the mean probability of its tokens."""

    start: float
    end: float
    text: str
    probability: float


@dataclass(frozen=True)
class TranscriptionStatistics:
    """Signs of hallucination, and counts of the work.

    Args:
        num_tokens (`int`): generated in all windows, before overlaps are joined.
        num_windows (`int`): passes of the encoder.
        truncated (`bool`): whether a window reached its maximum length before `<|endoftext|>`.
        compression_ratio (`float`): see [`compression_ratio`]; OpenAI's Whisper takes more than 2.4 as repetition.
        mean_log_prob (`float`, *optional*): per token, over all windows. None from [`transcribe_sequential`].
        no_speech_prob (`float`, *optional*): minimum over all windows: high only if none has speech. None from
            [`transcribe_sequential`].
        drafts ([`DraftCounts`], *optional*): how many drafted tokens were accepted, with an assistant.
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
        segments (`list[Segment]`): if timestamps were requested; else empty.
        statistics (`TranscriptionStatistics`): signs of hallucination.
        words (`list[Word]`): if word timestamps were requested; else empty.
    """

    text: str
    segments: list[Segment] = field(default_factory=list)
    statistics: TranscriptionStatistics | None = None
    words: list[Word] = field(default_factory=list)


def compression_ratio(text: str) -> float:
    """Bytes of the text in UTF-8 over bytes of its zlib compression, as in OpenAI's Whisper: high for repetitions."""
    raw = text.encode("utf-8")
    return len(raw) / len(zlib.compress(raw))


NO_SPEECH_PROB, LOW_LOG_PROB = 0.6, -1.0
"""Thresholds of OpenAI's Whisper: above the one and below the other, a window has no speech."""


def no_speech(no_speech_prob: float | None, mean_log_prob: float | None) -> bool:
    """Whether OpenAI's Whisper would skip the window as one without speech; False where a probability is missing."""
    if no_speech_prob is None or mean_log_prob is None:
        return False
    return no_speech_prob > NO_SPEECH_PROB and mean_log_prob < LOW_LOG_PROB


def plain_text(tokens: Sequence[int], tokenizer: WhisperTokenizer, timestamp_begin: int) -> str:
    """The text of tokens without timestamps (ids from `timestamp_begin` on) and special tokens, stripped."""
    words = [token for token in tokens if token < timestamp_begin]
    return str(tokenizer.decode(words, skip_special_tokens=True)).strip()


def timestamped_text(tokens: Sequence[int], tokenizer: WhisperTokenizer, timestamp_begin: int) -> str:
    """The text with its timestamp tokens written out, "<|0.00|> Hello.<|1.20|>", and no other special tokens."""
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


def open_end(tokens: Sequence[int], timestamp_begin: int) -> float | None:
    """Seconds at which a window's tokens leave off: a pair of timestamps at their end opens a segment that is missing.

    OpenAI's Whisper goes on from there in its next window. None where the last segment is closed.
    """
    if len(tokens) < 3 or min(tokens[-2:]) < timestamp_begin:
        return None
    return (tokens[-2] - timestamp_begin) * TIME_PRECISION


def timed_tokens(
    tokens: Sequence[int], timestamp_begin: int, offset: float, end: float
) -> list[tuple[float, float, list[int]]]:
    """Start, end and text tokens of the stretches between the timestamps of one window.

    The window's audio lies between `offset` and `end`, in seconds of the recording: no time exceeds the end, and text
    without a closing timestamp ends there.
    """
    stretches: list[tuple[float, float, list[int]]] = []
    text_tokens: list[int] = []
    start = offset
    for token in tokens:
        if token < timestamp_begin:
            text_tokens.append(token)
            continue
        time = min(offset + (token - timestamp_begin) * TIME_PRECISION, end)
        if text_tokens:
            stretches.append((start, time, text_tokens))
            text_tokens = []
        start = time
    if text_tokens:
        stretches.append((start, end, text_tokens))
    return stretches


def segments_of(
    stretches: Sequence[tuple[float, float, Sequence[int]]], tokenizer: WhisperTokenizer, timestamp_begin: int
) -> list[Segment]:
    """Decodes the stretches of [`timed_tokens`]; those without text are left out."""
    decoded = [(start, end, plain_text(tokens, tokenizer, timestamp_begin)) for start, end, tokens in stretches]
    return [Segment(round(start, 2), round(end, 2), text) for start, end, text in decoded if text]


_MIN_CUE_MS = round(1000 * TIME_PRECISION)
"""Length of the shortest subtitle: players do not show one without length."""


def to_srt(transcription: Transcription) -> str:
    """The segments as SubRip subtitles, without overlaps; "" for an empty transcription.

    Raises:
        ValueError: for a text without segments: transcribe with `return_timestamps=True`.
    """
    blocks = [
        f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{text}\n"
        for number, (start, end, text) in enumerate(_cues(transcription), 1)
    ]
    return "\n".join(blocks)


def to_vtt(transcription: Transcription) -> str:
    """The segments as WebVTT subtitles, as in [`to_srt`]; `&`, `<` and `>` are escaped."""
    blocks = ["WEBVTT\n"]
    for start, end, text in _cues(transcription):
        escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        blocks.append(f"{_clock(start, '.')} --> {_clock(end, '.')}\n{escaped}\n")
    return "\n".join(blocks)


def to_json(transcription: Transcription, *, audio: str, indent: int | None = None) -> str:
    """Text, segments, statistics and, if there are any, words of the recording `audio` as JSON."""
    facts = asdict(transcription)
    if not transcription.words:
        del facts["words"]
    return json.dumps({"audio": audio, **facts}, ensure_ascii=False, indent=indent)


def _cues(transcription: Transcription) -> list[tuple[int, int, str]]:
    """Start, end (ms) and text of the subtitles in order, each ending before the next one starts."""
    if transcription.text and not transcription.segments:
        raise ValueError(
            "Subtitles need segments with times, the transcription has none: transcribe with return_timestamps=True."
        )
    cues: list[tuple[int, int, str]] = []
    for segment in sorted(transcription.segments, key=lambda segment: segment.start):
        start, end, text = round(1000 * segment.start), round(1000 * segment.end), " ".join(segment.text.split())
        if not text:
            continue
        previous_start, previous_end, previous_text = cues[-1] if cues else (-1, -1, "")
        # Without time of its own, a segment shares the previous subtitle.
        if start == previous_start or (end <= start <= previous_end):
            cues[-1] = (previous_start, max(previous_end, end), f"{previous_text} {text}")
            continue
        if cues:
            cues[-1] = (previous_start, min(previous_end, start), previous_text)
        cues.append((start, max(end, start + _MIN_CUE_MS), text))
    return cues


def _clock(milliseconds: int, decimal: str) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{decimal}{rest:03d}"
