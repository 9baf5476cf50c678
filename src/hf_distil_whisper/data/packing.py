"""Short utterances of one speaker joined into windows of up to 30 s in the order in which they came.

Whisper always computes 30 s: a window with one short utterance pays for silence. Knows rows, not models and labels.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset, Features, List, Value
from transformers.utils import logging

from hf_distil_whisper.data.audio import SAMPLING_RATE, AudioError, encode_flac, load_audio
from hf_distil_whisper.data.samples import row_id
from hf_distil_whisper.data.sources import RowErrors, without_decoder
from hf_distil_whisper.data.splitting import Piece, split_recording, timed_text

logger = logging.get_logger(__name__)

DECODED_AHEAD = 16
"""Rows whose audio may be in memory before its turn comes."""

PACKED_FEATURES = Features(
    {
        "id": Value("string"),
        "ids": List(Value("string")),
        "audio": {"bytes": Value("binary"), "path": Value("string")},
        "text": Value("string"),
        "speaker": Value("string"),
        "language": Value("string"),
        "duration": Value("float64"),
        "condition_on_prev": Value("bool"),
    }
)
"""Columns of the rows that [`pack_utterances`] yields."""


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

    Sort the rows by speaker first if the speakers alternate: only neighbours are joined, so that what follows another
    utterance in a window also followed it in the recording. A row longer than a window is split first, where nobody
    speaks ([`split_recording`]); its text goes along where the row carries times (`words` or `segments`), else its
    pieces have none.

    Args:
        rows (`Iterable[Mapping]`):
            With `audio` as [`load_audio`] takes it, and where known `id`, `text`, `language` and the speaker.
        max_duration (`float`, *optional*, defaults to 30.0): seconds of a window; one of exactly that length fits.
        max_words (`int`, *optional*): words of a row, where it carries their times; one with more is split at its
            punctuation, whatever its length ([`split_recording`]). By default only the length counts.
        speaker_column (`str`, *optional*, defaults to `"speaker"`):
            Rows with no speaker are not joined with anything: two unknown speakers are not the same one. `None` joins
            nothing.
        recording_column (`str`, *optional*, defaults to `"recording"`):
            Names what the utterances were cut from. Where rows have it, those of two recordings are not joined, and
            the one does not continue the other: between a speaker's readings lie days. `None` leaves it out.
        gap (`float`, *optional*, defaults to 0.0): seconds of silence between two utterances.
        errors (`RowErrors`, *optional*):
            Receives the rows that cannot be decoded. Without it they are logged at the end.

    Yields:
        `dict`: `id` (of the first utterance), `ids`, `audio` (`{"bytes": <FLAC at 16 kHz>, "path": None}`), `text`
        (joined by spaces; `None` if an utterance has none), `speaker`, `language`, `duration` in seconds, and
        `condition_on_prev`: whether the window goes on where the one before it ended (same speaker, recording and
        language, no row lost in between).

    Raises:
        ValueError: if `max_duration`, `max_words` or `gap` makes no sense, or a `Dataset` lacks the audio column or a
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
    lost = RowErrors() if errors is None else errors
    # In samples: 30 s are exactly 480,000 of them, while sums of seconds miss the limit by rounding.
    limit, silence = round(max_duration * SAMPLING_RATE), round(gap * SAMPLING_RATE)
    window, previous = _Window(silence), _UNKNOWN
    for row, name, decoding in _decoded_ahead(rows, max_duration, max_words):
        columns = (speaker_column, recording_column, "language")
        origin = _Origin(*(None if column is None else row.get(column) for column in columns))
        try:
            pieces = decoding.result()
        except AudioError as error:
            lost.add(name, error)
            if window.parts:
                yield window.row(previous)
            # Over the hole that the row leaves nothing is joined, and what follows does not continue what came before.
            window, previous = _Window(silence), _UNKNOWN
            continue
        for number, (samples, text) in enumerate(pieces):
            if window.parts and not (origin.goes_on_from(window.origin) and window.fits(samples, limit)):
                yield window.row(previous)
                window, previous = _Window(silence), window.origin
            window.add(name if len(pieces) == 1 else f"{name}-{number}", samples, text, origin)
    if window.parts:
        yield window.row(previous)
    if errors is None and lost:
        logger.warning(lost.summary())


class _Origin(NamedTuple):
    """Who speaks, in which recording and language."""

    speaker: Any
    recording: Any
    language: Any

    def goes_on_from(self, other: "_Origin") -> bool:
        """Whether both are of one speaker, who is known, and not of two recordings or languages."""
        return self.speaker is not None and self == other


_UNKNOWN = _Origin(None, None, None)


@dataclass
class _Window:
    """What has been joined so far."""

    silence: int
    origin: _Origin = _UNKNOWN
    ids: list[str] = field(default_factory=list)
    texts: list[str | None] = field(default_factory=list)
    parts: list[np.ndarray] = field(default_factory=list)
    length: int = 0

    def fits(self, samples: np.ndarray, limit: int) -> bool:
        return self.length + self.silence + len(samples) <= limit

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
            "condition_on_prev": self.origin.goes_on_from(previous),
        }


def _decoded_ahead(
    rows: Iterable[Mapping[str, Any]], max_duration: float, max_words: int | None
) -> Iterator[tuple[Mapping[str, Any], str, Future[list[Piece]]]]:
    """The rows in order, each with its name and its pieces to come: threads decode, without Python's lock, ahead."""
    waiting: deque[tuple[Mapping[str, Any], str, Future[list[Piece]]]] = deque()
    with ThreadPoolExecutor() as pool:
        for number, row in enumerate(rows):
            name = row_id(row, number)
            waiting.append((row, name, pool.submit(_pieces, row, name, max_duration, max_words)))
            if len(waiting) > DECODED_AHEAD:
                yield waiting.popleft()
        yield from waiting


def _pieces(row: Mapping[str, Any], row_id: str, max_duration: float, max_words: int | None) -> list[Piece]:
    return split_recording(
        load_audio(row.get("audio"), name=row_id),
        max_duration=max_duration,
        max_words=max_words,
        text=row.get("text"),
        timed=timed_text(row),
    )
