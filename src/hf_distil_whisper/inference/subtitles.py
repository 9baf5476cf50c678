"""Transcriptions as files that others read: SubRip (SRT), WebVTT and JSON. Knows segments, nothing of models."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from hf_distil_whisper.inference.results import TIME_PRECISION, Segment, Transcription

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
