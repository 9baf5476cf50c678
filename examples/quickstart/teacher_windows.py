"""Windows for the teacher's training: utterances of one speaker put together, with the times of their words.

A window is a plan, drawn at random: which log10 mel frame of 10 ms stands where, and what the recording adds to it.
`teacher_render.py` makes features of many plans at once.
"""

import functools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from teacher_alignment import clean

SILENCE = -10.0
"""log10 mel power of digital silence, as Whisper's feature extractor clamps it."""
NOISES = 32
"""Clips of noise that a window can have, 30 s each."""


@dataclass
class Word:
    """A word with its time in the window, in frames of 10 ms."""

    text: str
    start: float
    end: float


class Frames(NamedTuple):
    """Where each frame comes from: `low`, a frame of the speech, -1 for none; `part` of the way to the next one.

    Where there is none, `fill` says the log10 mel power of all bands. All are arrays of (frames).
    """

    low: np.ndarray
    part: np.ndarray
    fill: np.ndarray

    @classmethod
    def silent(cls, length: int, level: float = SILENCE) -> "Frames":
        """`length` frames without speech."""
        return cls(np.full(length, -1, np.int64), np.zeros(length, np.float32), np.full(length, level, np.float32))


@dataclass
class Noise:
    """Which clip, rolled by how many frames, louder or quieter by `swell` (frames), at which level.

    The level is that of its loudest band in log10 mel power, or where there is speech how far it stays below that.
    """

    clip: int
    roll: int
    swell: np.ndarray
    level: float


@dataclass
class Recording:
    """What is changed of a window: its level, and of some the voice (`warp`), the microphone (`colour`) and the room.

    `zero_from` is the first frame that is zero in the features, `gaps` and `bands` those that are masked.
    """

    level: float = 0.0
    warp: float = 1.0
    colour: np.ndarray = field(default_factory=lambda: np.zeros(80, np.float32))
    telephone: bool = False
    noise: Noise | None = None
    gaps: list[tuple[int, int]] = field(default_factory=list)
    bands: list[tuple[int, int]] = field(default_factory=list)
    zero_from: int | None = None


@dataclass
class Window:
    """Its frames, its segments (one a sentence) as lists of words, and the text before it."""

    frames: Frames
    recording: Recording
    segments: list[list[Word]] = field(default_factory=list)
    cut_start: float | None = None
    """Where a last segment begins that the window's end cuts, if there is one."""
    previous: str = ""

    @property
    def text(self) -> str:
        """All words that are complete."""
        return " ".join(word.text for segment in self.segments for word in segment)

    @property
    def empty(self) -> bool:
        """Nothing is said, not even a part of a sentence."""
        return not self.segments and self.cut_start is None


class Speech:
    """The rendered utterances by speaker; `timed`: with the times of their words, and only those that have them."""

    def __init__(self, folder: Path, timed: bool, held_out: int = 256):
        self.mel = np.memmap(folder / "mel.f16", dtype=np.float16, mode="c").reshape(-1, 80)
        rows = [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()[:-1]]
        rows = [row for row in rows if row["start"] + row["frames"] <= len(self.mel) and row["frames"] >= 20]
        if timed:
            times = (folder / "times.jsonl").read_text().splitlines()
            known = {row["start"]: row["words"] for row in map(json.loads, times)}
            rows = [
                row | {"words": _to_the_ends(known[row["start"]], row["frames"])}
                for row in rows
                if row["start"] in known
            ]
        self.rows, self.held_out = rows[:-held_out], rows[-held_out:]
        self.by_speaker: dict[str, list[dict]] = {}
        for row in self.rows:
            self.by_speaker.setdefault(row["speaker"], []).append(row)
        self.digits = [name for name in self.by_speaker if name.startswith("fsdd")]
        self.voices = [name for name in self.by_speaker if not name.startswith("fsdd")]
        counts = np.array([len(self.by_speaker[name]) for name in self.voices], dtype=float)
        # flite's voices are made of human recordings and harder to read than the formants of espeak-ng.
        counts *= [1.5 if name.startswith("flite") else 1.0 for name in self.voices]
        self.voice_weights = counts / counts.sum()

    def words(self) -> list[str]:
        """All words that are said, spelt as `clean` spells them."""
        return sorted({clean(word) for row in self.rows for word in row["text"].split()})

    def frames(self, row: dict) -> np.ndarray:
        """The log-mel frames of one utterance, (frames, 80) float32."""
        return self.mel[row["start"] : row["start"] + row["frames"]].astype(np.float32)

    @functools.cached_property
    def quietest(self) -> dict[int, float]:
        """The least log10 mel power of each human digit, by the start of its row."""
        rows = (row for name in self.digits for row in self.by_speaker[name])
        return {row["start"]: float(self.frames(row).min()) for row in rows}


def _to_the_ends(times: list[list[int]], frames: int) -> list[list[int]]:
    """The recordings have no silence at their ends, so the first word starts at 0 and the last one ends with them."""
    times[0][0], times[-1][1] = 0, frames
    return times


def _words(row: dict, offset: float, scale: float) -> list[Word]:
    times = row.get("words") or [(0, row["frames"])] * len(row["text"].split())
    return [
        Word(text, offset + scale * start, offset + scale * end)
        for text, (start, end) in zip(row["text"].split(), times, strict=True)
    ]


def _said(row: dict, factor: float = 1.0) -> Frames:
    """An utterance, stretched to `factor` times as many frames."""
    count = row["frames"]
    position = np.linspace(0, count - 1, max(2, round(count * factor)))
    low = np.minimum(position.astype(np.int64), count - 2)
    return Frames(row["start"] + low, (position - low).astype(np.float32), np.zeros(len(low), np.float32))


def _digit_string(speech: Speech, rows: list[dict], rng: np.random.Generator) -> tuple[Frames, list[Word]]:
    """Three to ten digits of one speaker with short gaps, as one sentence in lower case."""
    parts, words, length = [], [], 0
    for number in rng.integers(len(rows), size=rng.integers(2, 11)):
        row = rows[number]
        words.append(Word(row["text"], length, length + row["frames"]))
        level = SILENCE if rng.random() < 0.5 else speech.quietest[row["start"]]
        gap = Frames.silent(int(rng.integers(0, 35)), level)
        parts += [_said(row), gap]
        length += row["frames"] + len(gap.low)
    return Frames(*map(np.concatenate, zip(*parts, strict=True))), words


def _sentence(speech: Speech, rows: list[dict], digits: bool, rng: np.random.Generator) -> tuple[Frames, list[Word]]:
    if digits:
        return _digit_string(speech, rows, rng)
    row = rows[rng.integers(len(rows))]
    factor = float(rng.uniform(0.88, 1.15)) if rng.random() < 0.25 else 1.0
    return _said(row, factor), _words(row, 0, factor)


def compose(
    speech: Speech, rng: np.random.Generator, length: int, single: float = 0.3, cut: float = 0.5, previous: float = 0.3
) -> Window:
    """Fills a window of `length` frames with sentences of one speaker.

    Args:
        speech (`Speech`): what there is to say.
        rng (`np.random.Generator`): draws everything.
        length (`int`): frames of 10 ms.
        single (`float`, *optional*, defaults to 0.3): share of windows with one sentence and silence behind it.
        cut (`float`, *optional*, defaults to 0.5): share of full windows whose last sentence the end cuts; half as
            often the start cuts the first one.
        previous (`float`, *optional*, defaults to 0.3): share of windows with text before them.
    """
    window = Window(Frames.silent(length), Recording())
    if rng.random() < 0.07:
        if rng.random() < 0.8:
            window.recording.noise = _noise(length, float(rng.uniform(-7, 0.7)), rng)
        return window
    digits = bool(speech.digits) and rng.random() < 0.13
    name = str(rng.choice(speech.digits) if digits else rng.choice(speech.voices, p=speech.voice_weights))
    rows = speech.by_speaker[name]
    one = rng.random() < single
    cuts = not one and rng.random() < cut
    gap = (lambda: 0) if rng.random() < 0.5 else (lambda: int(rng.integers(0, 120)))
    position = int(rng.integers(0, 150)) if rng.random() < 0.5 else 0
    if not one and rng.random() < 0.5 * cut:
        position = -int(rng.integers(0, 250))
    too_long = 0
    while position < length and too_long < 4:
        frames, words = _sentence(speech, rows, digits, rng)
        if position + len(frames.low) > length and not cuts:
            too_long += 4 if window.segments else 1
            continue
        _place(window, frames, words, position)
        position += len(frames.low) + gap()
        if one:
            break
    if name.startswith("flite") and rng.random() < 0.5:
        window.recording.warp = float(rng.uniform(0.8, 1.2))
    if rng.random() < previous:
        before = [_sentence(speech, rows, digits, rng)[1] for _ in range(rng.integers(1, 6))]
        window.previous = " ".join(word.text for words in before for word in words)
    return window


def _place(window: Window, frames: Frames, words: list[Word], position: int) -> None:
    """Puts a sentence at `position`; words that either end of the window cuts are left out of the segments."""
    length, count = len(window.frames.low), len(frames.low)
    first, last = max(position, 0), min(position + count, length)
    if last <= first:
        return
    for place, source in zip(window.frames, frames, strict=True):
        place[first:last] = source[first - position : last - position]
    moved = [Word(word.text, word.start + position, word.end + position) for word in words]
    inside = [word for word in moved if word.start >= -2 and word.end <= length + 2]
    if position + count > length + 2:
        window.cut_start = max(position, 0)
    if inside:
        window.segments.append(inside)


def augment(window: Window, rng: np.random.Generator, share: float = 0.35) -> None:
    """Changes the level, and for a `share` of the windows microphone, room and voice.

    That is colouring, noise, warped frequencies and a telephone's band.
    """
    recording, length = window.recording, len(window.frames.low)
    if rng.random() >= share:
        recording.level = float(rng.uniform(-0.8, 0.4))
        return
    if rng.random() < 0.6:
        recording.warp *= float(rng.uniform(0.91, 1.1))
    recording.colour = np.interp(np.arange(80), np.linspace(0, 79, 6), rng.normal(0, 0.18, 6)).astype(np.float32)
    recording.level = float(rng.uniform(-1.2, 0.6))
    if rng.random() < 0.12:
        recording.telephone = True
    if rng.random() < 0.6 and recording.noise is None:
        recording.noise = _noise(length, float(rng.uniform(1.8, 4.5)), rng)


def _noise(length: int, level: float, rng: np.random.Generator) -> Noise:
    """Noise from white to brown, steady or swelling."""
    swell = np.zeros(length, np.float32)
    if rng.random() < 0.3:
        marks = np.linspace(0, length - 1, 2 + length // 50)
        swell = np.interp(np.arange(length), marks, rng.normal(0, 0.4, len(marks))).astype(np.float32)
    return Noise(int(rng.integers(NOISES)), int(rng.integers(3000)), swell, level)


def mask(window: Window, rng: np.random.Generator) -> None:
    """SpecAugment: up to one band and, every six seconds, one short gap filled with the mean."""
    length = len(window.frames.low)
    for _ in range(rng.integers(0, 2)):
        low = int(rng.integers(0, 70))
        window.recording.bands.append((low, low + int(rng.integers(1, 12))))
    for _ in range(rng.integers(0, length // 600 + 1)):
        start = int(rng.integers(0, length - 12))
        window.recording.gaps.append((start, start + int(rng.integers(1, 12))))


def pad_with_zeros(window: Window, rng: np.random.Generator, share: float = 0.2) -> None:
    """For a `share` of the windows, zeros instead of silence behind the last sound.

    `generate` fills the last window of a long recording so: with zeros in the scaled features, not in the audio.
    """
    noise_alone = window.empty and window.recording.noise is not None  # sounds up to the end
    if rng.random() < share and not noise_alone:
        frames = window.frames
        sounding = np.flatnonzero((frames.low >= 0) | (frames.fill > SILENCE + 0.01))
        window.recording.zero_from = int(sounding[-1]) + 1 if len(sounding) else 0
