"""Transcriptions as files that others read: SubRip (SRT), WebVTT and JSON. Knows segments, nothing of models."""

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


_SHORTEST_CUE = round(1000 * TIME_PRECISION)


def to_srt(transcription: Transcription) -> str:
    """The segments as SubRip: numbered, `00:01:02,500 --> 00:01:04,000`, no two at once.

    Args:
        transcription ([`Transcription`]): with segments.

    Returns:
        `str`: the file's text; empty where nothing was said.

    Raises:
        ValueError: for a text without segments.
    """
    blocks = [
        f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{text}\n"
        for number, (start, end, text) in enumerate(_cues(transcription), 1)
    ]
    return "\n".join(blocks)


def to_vtt(transcription: Transcription) -> str:
    """The segments as WebVTT: a heading, then `00:01:02.500 --> 00:01:04.000`, no two at once; `&`, `<`, `>` escaped.

    Args:
        transcription ([`Transcription`]): with segments.

    Returns:
        `str`: the file's text; the heading alone where nothing was said.

    Raises:
        ValueError: for a text without segments.
    """
    blocks = ["WEBVTT\n"]
    for start, end, text in _cues(transcription):
        escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        blocks.append(f"{_clock(start, '.')} --> {_clock(end, '.')}\n{escaped}\n")
    return "\n".join(blocks)


def to_json(transcription: Transcription, *, audio: str, indent: int | None = None) -> str:
    """Text, segments (start and end in seconds, text), statistics and, where asked for, words of a recording.

    Args:
        transcription ([`Transcription`]): with or without segments.
        audio (`str`): the recording's name, for whoever reads several.
        indent (`int`, *optional*): spaces; None for one line.
    """
    facts = asdict(transcription)
    if not transcription.words:
        del facts["words"]
    return json.dumps({"audio": audio, **facts}, ensure_ascii=False, indent=indent)


def _cues(transcription: Transcription) -> list[tuple[int, int, str]]:
    """Start, end in ms and text, in order and apart from each other.

    A cue ends where the next one begins at the latest. Those that would have no time of their own share that of the
    one before, and none is shorter than a step of the model's timestamps: players would not show it.
    """
    segments: Sequence[Segment] = transcription.segments
    if transcription.text and not segments:
        raise ValueError(
            "Subtitles need segments with times, the transcription has none: transcribe with return_timestamps=True."
        )
    cues: list[tuple[int, int, str]] = []
    for part in sorted(segments, key=lambda segment: segment.start):
        start, end, text = round(1000 * part.start), round(1000 * part.end), " ".join(part.text.split())
        if not text:
            continue
        begun, ended, said = cues[-1] if cues else (-1, -1, "")
        if start == begun or (end <= start <= ended):
            cues[-1] = (begun, max(ended, end), f"{said} {text}")
            continue
        if cues:
            cues[-1] = (begun, min(ended, start), said)
        cues.append((start, max(end, start + _SHORTEST_CUE), text))
    return cues


def _clock(milliseconds: int, decimal: str) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{decimal}{rest:03d}"
