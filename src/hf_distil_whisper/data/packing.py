"""Joins short utterances of one speaker to windows of up to 30 s, and splits longer recordings at silence.

Whisper always computes 30 s: a window with one short utterance is mostly computation on silence.
"""

import itertools
import unicodedata
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset, Features, List, Value
from transformers.utils import logging

from hf_distil_whisper.data.audio import SAMPLING_RATE, AudioError, encode_flac, load_audio
from hf_distil_whisper.data.dataset import row_id
from hf_distil_whisper.data.sources import PLAIN_AUDIO, RowErrors, without_decoder

logger = logging.get_logger(__name__)

FRAME = 320
"""Samples of a frame of 20 ms, the resolution of Whisper's timestamps."""

QUIET = 0.05
"""A frame is silent below this share of the level of the loud frames (their 95th percentile): 26 dB under it."""

DECODED_AHEAD = 16
"""Rows whose audio may be in memory before it is packed."""

PACKED_FEATURES = Features(
    {
        "id": Value("string"),
        "ids": List(Value("string")),
        "audio": PLAIN_AUDIO,
        "text": Value("string"),
        "speaker": Value("string"),
        "language": Value("string"),
        "duration": Value("float64"),
        "condition_on_prev": Value("bool"),
    }
)
"""Columns of the rows that [`pack_utterances`] yields."""

_TOLERANCE = 0.1
"""Seconds by which the times of two words may overlap."""

_SENTENCE_END, _COMMA = 1.0, 0.3
"""Seconds of silence that they are weighted as, so that sentences stay whole where possible."""


class TimedText(NamedTuple):
    """A word, or a segment of several, with its times in seconds."""

    start: float
    end: float
    text: str


class Piece(NamedTuple):
    """A part of a recording: its samples, shape (samples,), and its text, None where it is not known."""

    samples: np.ndarray
    text: str | None


class _Cut(NamedTuple):
    """A position in samples, and how good it is to cut there, in seconds of silence."""

    position: int
    weight: float


def split_recording(
    samples: np.ndarray,
    *,
    max_duration: float = 30.0,
    max_words: int | None = None,
    text: str | None = None,
    timed: Sequence[TimedText] = (),
) -> list[Piece]:
    """Splits a recording into pieces of at most `max_duration` seconds, in time linear in its length.

    Each cut is the best one in the second half of the longest possible piece: the longest silence; between words, the
    end of a sentence before a comma before a plain gap. Without any silence it is the quietest frame. The recipes of
    the paper's appendix A are 20 s (Earnings-22) and 30 words (AMI).

    Args:
        samples (`np.ndarray` of shape `(samples,)`): mono at 16 kHz.
        max_duration (`float`, *optional*, defaults to 30.0): of a piece in seconds, inclusive.
        max_words (`int`, *optional*): of a piece, where `timed` is given: cut behind the last punctuation up to there,
            or behind the next one where a part of a sentence is longer.
        text (`str`, *optional*): of the whole recording; used where nothing has to be cut.
        timed (`Sequence[TimedText]`, *optional*): words or segments in order; become the text of their pieces.

    Returns:
        `list[Piece]`: concatenated, their samples are the recording. Without times, pieces have no text.

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
    frames = samples[: len(samples) // FRAME * FRAME].reshape(-1, FRAME)
    # Root mean square of each frame, shape (frames,).
    levels = np.sqrt(np.einsum("nf,nf->n", frames, frames, dtype=np.float64) / FRAME)
    cuts = _cuts_between(timed, len(samples)) if timed else _cuts_in_silence(levels)
    borders = [0]
    for start, end in itertools.pairwise([0, *sentences, len(samples)]):
        borders += [*_choose_cuts(cuts, levels, start, end, limit), end]
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
            fields = [(unit.get("start"), unit.get("end"), unit.get("word", unit.get("text"))) for unit in units]
            if all(None not in unit for unit in fields):
                return [TimedText(float(start), float(end), str(text)) for start, end, text in fields]
    return []


def _cuts_in_silence(levels: np.ndarray) -> list[_Cut]:
    """The middle of every run of silent frames, weighted by its seconds."""
    silent = np.concatenate([[False], levels < QUIET * np.quantile(levels, 0.95), [False]])
    edges = np.flatnonzero(np.diff(silent.astype(np.int8)))  # first silent and first loud frame in turn
    return [
        _Cut(int(first + last) // 2 * FRAME, float(last - first) * FRAME / SAMPLING_RATE)
        for first, last in zip(edges[::2], edges[1::2], strict=True)
    ]


def _cuts_between(timed: Sequence[TimedText], length: int) -> list[_Cut]:
    """The middle of the gap behind every unit but the last, weighted by its seconds and its punctuation."""
    cuts = []
    for unit, following in itertools.pairwise(timed):
        middle = _middle(unit, following)
        if 0 < middle < length:
            cuts.append(_Cut(middle, _mark_weight(unit.text) + max(0.0, following.start - unit.end)))
    return sorted(cuts)


def _cuts_by_words(timed: Sequence[TimedText], max_words: int, length: int) -> list[int]:
    """Positions behind punctuation, with at most `max_words` words between two of them wherever possible."""
    positions, marked = [], 0
    words = words_at_mark = 0  # since the last position, and up to the last punctuation
    for unit, following in itertools.pairwise(timed):
        words += len(unit.text.split())
        if _mark_weight(unit.text) and 0 < _middle(unit, following) < length:
            marked, words_at_mark = _middle(unit, following), words
        if words_at_mark and words + len(following.text.split()) > max_words:
            positions.append(marked)
            words, words_at_mark = words - words_at_mark, 0
    return positions


def _middle(unit: TimedText, following: TimedText) -> int:
    return round((unit.end + following.start) / 2 * SAMPLING_RATE)


def _mark_weight(text: str) -> float:
    mark = unicodedata.normalize("NFKC", text.rstrip("\"')]” ")[-1:])  # full-width marks become plain ones
    return _SENTENCE_END if mark in tuple(".?!。।") else _COMMA if mark in tuple(",;:、") else 0.0


def _choose_cuts(cuts: Sequence[_Cut], levels: np.ndarray, start: int, end: int, limit: int) -> list[int]:
    """Positions between `start` and `end`, at most `limit` samples from one to the next."""
    positions, first = [], 0
    while end - start > limit:
        # cuts[first:last] lie in (start + limit / 2, start + limit]
        while first < len(cuts) and cuts[first].position <= start + limit // 2:
            first += 1
        last = first
        while last < len(cuts) and cuts[last].position <= start + limit:
            last += 1
        if last > first:
            start = max(cuts[first:last], key=lambda cut: cut.weight).position
        else:
            low, high = (start + limit // 2) // FRAME + 1, (start + limit) // FRAME
            start = (low + int(np.argmin(levels[low:high]))) * FRAME
        positions.append(start)
    return positions


def _text_between(timed: Sequence[TimedText], start: float, end: float) -> str | None:
    """The text of a piece; None without times, or where one of its ends cuts through a unit."""
    if not timed:
        return None
    units = [unit for unit in timed if unit.start < end - _TOLERANCE and unit.end > start + _TOLERANCE]
    if any(unit.start < start - _TOLERANCE or unit.end > end + _TOLERANCE for unit in units):
        return None
    return " ".join(unit.text.strip() for unit in timed if start <= (unit.start + unit.end) / 2 < end)


def pack_utterances(
    rows: Iterable[Mapping[str, Any]],
    *,
    max_duration: float = 30.0,
    max_words: int | None = None,
    speaker_column: str | None = "speaker",
    recording_column: str | None = "recording",
    gap: float = 0.0,
    errors: RowErrors | None = None,
) -> Iterator[dict[str, Any]]:
    """Joins neighbouring rows of the same speaker, recording and language as long as they fit (next fit).

    Sort the rows by speaker first if the speakers alternate: only neighbours are joined, so that utterances follow
    each other in a window as in the recording. A row longer than a window is split first, where nobody speaks
    ([`split_recording`]); its pieces have a text where the row has times (`words` or `segments`).

    Args:
        rows (`Iterable[Mapping]`): with `audio` as [`load_audio`] takes it, and where known `id`, `text`, `language`
            and the speaker.
        max_duration (`float`, *optional*, defaults to 30.0): of a window in seconds, inclusive.
        max_words (`int`, *optional*): of a row with the times of its words; one with more is split at its punctuation,
            whatever its length ([`split_recording`]). By default only the length counts.
        speaker_column (`str`, *optional*, defaults to `"speaker"`): rows without a speaker are not joined: two unknown
            speakers are not the same one. `None` joins nothing.
        recording_column (`str`, *optional*, defaults to `"recording"`): what utterances were cut from. Where rows have
            it, those of two recordings are neither joined nor continue each other. `None` ignores it.
        gap (`float`, *optional*, defaults to 0.0): silence between two utterances in seconds.
        errors ([`RowErrors`], *optional*): receives the rows that cannot be decoded. Without it they are logged.

    Yields:
        `dict`: `id` (of the first utterance), `ids`, `audio` (`{"bytes": <FLAC at 16 kHz>, "path": None}`), `text`
        (joined by spaces; `None` if an utterance has none), `speaker`, `language`, `duration` in seconds, and
        `condition_on_prev`: whether the window continues the one before (same speaker, recording and language, no row
        left out in between).

    Raises:
        ValueError: if `max_duration`, `max_words` or `gap` is out of range, or a `Dataset` lacks the audio column or a
            speaker column that was asked for.

    Example:
        ```python
        >>> rows = [{"audio": np.zeros(16_000, np.float32), "text": text, "speaker": "a"} for text in ("Yes.", "No.")]
        >>> [(window["text"], window["duration"]) for window in pack_utterances(rows)]
        [("Yes. No.", 2.0)]
        ```
    """
    if not max_duration > 0 or gap < 0 or (max_words is not None and max_words < 1):
        raise ValueError(
            f"expected max_duration > 0 and gap >= 0 seconds and max_words >= 1, got {max_duration}, {gap} and "
            f"{max_words}."
        )
    if isinstance(rows, Dataset):
        for column in {"audio", speaker_column, recording_column} - {None, "speaker", "recording"}:
            if column not in rows.column_names:
                raise ValueError(f"cannot pack: no column {column!r}; there are {', '.join(rows.column_names)}.")
        rows = without_decoder(rows)
    row_errors = RowErrors() if errors is None else errors
    # In samples: 30 s are exactly 480,000 of them, while sums of seconds miss the limit by rounding.
    limit, silence = round(max_duration * SAMPLING_RATE), round(gap * SAMPLING_RATE)
    # The window that is being filled, and the origin of the one before it.
    window, previous = _Window(silence), _UNKNOWN
    for row, name, decoding in _decoded_ahead(rows, max_duration, max_words):
        columns = (speaker_column, recording_column, "language")
        origin = _Origin(*(None if column is None else row.get(column) for column in columns))
        try:
            pieces = decoding.result()
        except AudioError as error:
            row_errors.add(name, error)
            if window.parts:
                yield window.row(previous)
            # Nothing is joined across a missing row, and the next window does not continue the one before it.
            window, previous = _Window(silence), _UNKNOWN
            continue
        for number, (samples, text) in enumerate(pieces):
            length = window.length + silence + len(samples)  # with this piece
            if window.parts and not (origin.continues(window.origin) and length <= limit):
                yield window.row(previous)
                window, previous = _Window(silence), window.origin
            window.add(name if len(pieces) == 1 else f"{name}-{number}", samples, text, origin)
    if window.parts:
        yield window.row(previous)
    if errors is None and row_errors:
        logger.warning(row_errors.summary())


class _Origin(NamedTuple):
    """Speaker, recording and language of an utterance."""

    speaker: Any
    recording: Any
    language: Any

    def continues(self, other: "_Origin") -> bool:
        """Whether both are of one speaker, who is known, and not of two recordings or languages."""
        return self.speaker is not None and self == other


_UNKNOWN = _Origin(None, None, None)


@dataclass
class _Window:
    """The utterances joined so far; `length` in samples."""

    silence: int
    origin: _Origin = _UNKNOWN
    ids: list[str] = field(default_factory=list)
    texts: list[str | None] = field(default_factory=list)
    parts: list[np.ndarray] = field(default_factory=list)
    length: int = 0

    def add(self, row_id: str, samples: np.ndarray, text: str | None, origin: _Origin) -> None:
        if self.parts and self.silence:
            self.parts.append(np.zeros(self.silence, dtype=np.float32))
            self.length += self.silence
        self.origin = origin
        self.ids.append(row_id)
        self.texts.append(text)
        self.parts.append(samples)
        self.length += len(samples)

    def row(self, previous: _Origin) -> dict[str, Any]:
        texts = [text.strip() for text in self.texts if text is not None]
        return {
            "id": self.ids[0],
            "ids": self.ids,
            "audio": {"bytes": encode_flac(np.concatenate(self.parts)), "path": None},
            "text": " ".join(filter(None, texts)) if len(texts) == len(self.texts) else None,
            "speaker": None if self.origin.speaker is None else str(self.origin.speaker),
            "language": self.origin.language,
            "duration": self.length / SAMPLING_RATE,
            "condition_on_prev": self.origin.continues(previous),
        }


def _decoded_ahead(
    rows: Iterable[Mapping[str, Any]], max_duration: float, max_words: int | None
) -> Iterator[tuple[Mapping[str, Any], str, Future[list[Piece]]]]:
    """The rows in order with their names and future pieces; threads decode ahead, which releases the GIL."""

    def pieces(row: Mapping[str, Any], name: str) -> list[Piece]:
        samples, text, timed = load_audio(row.get("audio"), name=name), row.get("text"), timed_text(row)
        return split_recording(samples, max_duration=max_duration, max_words=max_words, text=text, timed=timed)

    waiting: deque[tuple[Mapping[str, Any], str, Future[list[Piece]]]] = deque()
    with ThreadPoolExecutor() as pool:
        for number, row in enumerate(rows):
            name = row_id(row, number)
            waiting.append((row, name, pool.submit(pieces, row, name)))
            if len(waiting) > DECODED_AHEAD:
                yield waiting.popleft()
        yield from waiting
