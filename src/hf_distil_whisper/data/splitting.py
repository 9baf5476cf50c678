"""Recordings longer than a window, cut where nobody speaks: between words whose times are known, else in silence.

Nothing is dropped: the pieces make up the recording (the reference scripts cut the audio at 30 s and kept the text).
Knows samples and timed words; which pieces share a window is `packing.py`'s business.
"""

import itertools
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hf_distil_whisper.data.audio import SAMPLING_RATE

FRAME = 320
"""Samples of a frame of 20 ms, the finest step that Whisper's timestamps know."""

QUIET = 0.05
"""A frame is silent below this share of the loud frames' level (their 95th percentile): 26 dB under it."""

_SLACK = 0.1
"""Seconds by which the times of two words may overlap."""

_STOP, _PAUSE = 1.0, 0.3
"""Seconds of silence that a full stop and a comma are worth, so that sentences stay whole where they can."""


class TimedText(NamedTuple):
    """A word, or a segment of several, with its time in seconds."""

    start: float
    end: float
    text: str


class Piece(NamedTuple):
    """A part of a recording: its samples, and what is said in it, None where that is not known."""

    samples: np.ndarray
    text: str | None


class _Cut(NamedTuple):
    position: int
    worth: float


def split_recording(
    samples: np.ndarray,
    *,
    max_duration: float = 30.0,
    max_words: int | None = None,
    text: str | None = None,
    timed: Sequence[TimedText] = (),
) -> list[Piece]:
    """Cuts a recording into pieces of at most `max_duration` seconds, in time linear in its length.

    Each cut is the best one of the second half of what a piece may hold: the longest silence; between words, a
    sentence's end before a comma before a plain gap. Without any silence it is the quietest frame. The recipes of the
    paper's appendix A are 20 s (Earnings-22) and 30 words (AMI).

    Args:
        samples (`np.ndarray`): mono at 16 kHz.
        max_duration (`float`, *optional*, defaults to 30.0): seconds of a piece; exactly so many fit.
        max_words (`int`, *optional*): words of a piece, where their times are known: cut behind the last punctuation
            that leaves no more, or behind the next one where a sentence part is longer.
        text (`str`, *optional*): of the whole recording; goes along where nothing has to be cut.
        timed (`Sequence[TimedText]`, *optional*): words or segments in order; go along with their pieces.

    Returns:
        `list[Piece]`: in order; their samples make up the recording. Without times, pieces have no text.

    Example:
        ```python
        >>> pieces = split_recording(np.zeros(70 * 16_000, dtype=np.float32))
        >>> sum(len(piece.samples) for piece in pieces) == 70 * 16_000
        True
        ```
    """
    limit = round(max_duration * SAMPLING_RATE)
    sentences = [] if max_words is None else _cuts_by_words(timed, max_words, len(samples))
    if len(samples) <= limit and not sentences:
        whole = " ".join(unit.text.strip() for unit in timed) if timed else None
        return [Piece(samples, text if text is not None else whole)]
    levels = _frame_levels(samples)
    cuts = _cuts_between(timed, len(samples)) if timed else _cuts_in_silence(levels)
    parts = itertools.pairwise([0, *sentences, len(samples)])
    borders = [0, *(border for start, end in parts for border in (*_choose(cuts, levels, start, end, limit), end))]
    return [
        Piece(samples[start:end], _text_between(timed, start / SAMPLING_RATE, end / SAMPLING_RATE))
        for start, end in itertools.pairwise(borders)
    ]


def timed_text(row: Mapping[str, Any]) -> list[TimedText]:
    """The words, or else the segments, of a row that carries their times; empty where it does not.

    Args:
        row (`Mapping`): `words` or `segments`, lists of dictionaries with `start`, `end` and `word` or `text`.
    """
    for column in ("words", "segments"):
        units = row.get(column)
        if isinstance(units, list) and units and all(isinstance(unit, dict) for unit in units):
            found = [(unit.get("start"), unit.get("end"), unit.get("word", unit.get("text"))) for unit in units]
            if all(None not in unit for unit in found):
                return [TimedText(float(start), float(end), str(text)) for start, end, text in found]
    return []


def _frame_levels(samples: np.ndarray) -> np.ndarray:
    frames = samples[: len(samples) // FRAME * FRAME].reshape(-1, FRAME)
    return np.sqrt(np.einsum("nf,nf->n", frames, frames, dtype=np.float64) / FRAME)


def _cuts_in_silence(levels: np.ndarray) -> list[_Cut]:
    """The middle of every run of silent frames, worth its seconds."""
    silent = np.concatenate([[False], levels < QUIET * np.quantile(levels, 0.95), [False]])
    edges = np.flatnonzero(np.diff(silent.astype(np.int8)))
    return [
        _Cut(int(first + last) // 2 * FRAME, float(last - first) * FRAME / SAMPLING_RATE)
        for first, last in zip(edges[::2], edges[1::2], strict=True)
    ]


def _cuts_between(timed: Sequence[TimedText], length: int) -> list[_Cut]:
    """The middle of the gap behind every unit but the last, worth its seconds and its punctuation."""
    cuts = []
    for unit, following in itertools.pairwise(timed):
        middle = _middle(unit, following)
        if 0 < middle < length:
            cuts.append(_Cut(middle, _worth_of_mark(unit.text) + max(0.0, following.start - unit.end)))
    return sorted(cuts)


def _cuts_by_words(timed: Sequence[TimedText], max_words: int, length: int) -> list[int]:
    """Positions behind punctuation, between which there are at most `max_words` words wherever that is possible."""
    chosen, marked = [], 0
    words = words_at_mark = 0
    for unit, following in itertools.pairwise(timed):
        words += len(unit.text.split())
        if _worth_of_mark(unit.text) and 0 < _middle(unit, following) < length:
            marked, words_at_mark = _middle(unit, following), words
        if words_at_mark and words + len(following.text.split()) > max_words:
            chosen.append(marked)
            words, words_at_mark = words - words_at_mark, 0
    return chosen


def _middle(unit: TimedText, following: TimedText) -> int:
    return round((unit.end + following.start) / 2 * SAMPLING_RATE)


def _worth_of_mark(text: str) -> float:
    mark = unicodedata.normalize("NFKC", text.rstrip("\"')]” ")[-1:])  # full-width marks become plain ones
    return _STOP if mark in tuple(".?!。।") else _PAUSE if mark in tuple(",;:、") else 0.0


def _choose(cuts: Sequence[_Cut], levels: np.ndarray, start: int, end: int, limit: int) -> list[int]:
    """Positions between `start` and `end`, at most `limit` samples from one to the next."""
    chosen, first = [], 0
    while end - start > limit:
        while first < len(cuts) and cuts[first].position <= start + limit // 2:
            first += 1
        last = first
        while last < len(cuts) and cuts[last].position <= start + limit:
            last += 1
        if last > first:
            start = max(cuts[first:last], key=lambda cut: cut.worth).position
        else:
            low, high = (start + limit // 2) // FRAME + 1, (start + limit) // FRAME
            start = (low + int(np.argmin(levels[low:high]))) * FRAME
        chosen.append(start)
    return chosen


def _text_between(timed: Sequence[TimedText], start: float, end: float) -> str | None:
    """What is said in a piece; None without times, or where one of its ends goes through a unit."""
    if not timed:
        return None
    heard = [unit for unit in timed if unit.start < end - _SLACK and unit.end > start + _SLACK]
    if any(unit.start < start - _SLACK or unit.end > end + _SLACK for unit in heard):
        return None
    return " ".join(unit.text.strip() for unit in timed if start <= (unit.start + unit.end) / 2 < end)
