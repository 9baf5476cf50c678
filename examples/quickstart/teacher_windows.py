"""Windows for the teacher's training: utterances of one speaker put together, with the times of their words.

Works on log10 mel frames of 10 ms as `teacher_speech.py` stores them: joining, re-levelling, adding noise, warping
time and frequency are then a few operations on small arrays.
"""

import functools
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from teacher_alignment import clean
from teacher_speech import RATE, log_mel

FRAME = 0.01
SILENCE = -10.0
"""log10 mel power of digital silence, as Whisper's feature extractor clamps it."""


@dataclass
class Word:
    """A word with its time in the window, in frames of 10 ms."""

    text: str
    start: float
    end: float


@dataclass
class Window:
    """`mel` (frames, 80) before scaling, its segments (one a sentence) as lists of words, and the text before it."""

    mel: np.ndarray
    segments: list[list[Word]] = field(default_factory=list)
    cut_start: float | None = None
    """Where a last segment begins that the window's end cuts, if there is one."""
    previous: str = ""

    @property
    def text(self) -> str:
        """All words that are heard whole."""
        return " ".join(word.text for segment in self.segments for word in segment)


class Speech:
    """The rendered utterances by speaker; `timed`: with the times of their words, and only those that have them."""

    def __init__(self, folder: Path, timed: bool, held_out: int = 256):
        self.mel = np.memmap(folder / "mel.f16", dtype=np.float16, mode="r").reshape(-1, 80)
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


def _stretch(mel: np.ndarray, factor: float) -> np.ndarray:
    """Linear interpolation to `factor` times as many frames."""
    position = np.linspace(0, len(mel) - 1, max(2, round(len(mel) * factor)))
    low = np.minimum(position.astype(int), len(mel) - 2)
    part = (position - low)[:, None].astype(np.float32)
    return mel[low] * (1 - part) + mel[low + 1] * part


def _digit_string(speech: Speech, rows: list[dict], rng: np.random.Generator) -> tuple[np.ndarray, list[Word]]:
    """Three to ten digits of one speaker with short gaps, as one sentence in lower case."""
    parts, words, length = [], [], 0
    for row in rng.choice(rows, size=rng.integers(2, 11)):
        mel = speech.frames(row)
        words.append(Word(row["text"], length, length + len(mel)))
        gap = np.full((int(rng.integers(0, 35)), 80), SILENCE if rng.random() < 0.5 else mel.min(), dtype=np.float32)
        parts += [mel, gap]
        length += len(mel) + len(gap)
    return np.concatenate(parts), words


def _sentence(
    speech: Speech, rows: list[dict], digits: bool, rng: np.random.Generator
) -> tuple[np.ndarray, list[Word]]:
    if digits:
        return _digit_string(speech, rows, rng)
    row = rows[rng.integers(len(rows))]
    mel, factor = speech.frames(row), 1.0
    if rng.random() < 0.25:
        factor = float(rng.uniform(0.88, 1.15))
        mel = _stretch(mel, factor)
    return mel, _words(row, 0, factor)


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
    window = Window(np.full((length, 80), SILENCE, dtype=np.float32))
    if rng.random() < 0.07:
        if rng.random() < 0.8:
            window.mel = _noise(length, float(rng.uniform(-7, 0.7)), rng)
        return window
    digits = bool(speech.digits) and rng.random() < 0.13
    name = rng.choice(speech.digits) if digits else rng.choice(speech.voices, p=speech.voice_weights)
    rows = speech.by_speaker[name]
    one = rng.random() < single
    cuts = not one and rng.random() < cut
    gap = (lambda: 0) if rng.random() < 0.5 else (lambda: int(rng.integers(0, 120)))
    position = int(rng.integers(0, 150)) if rng.random() < 0.5 else 0
    if not one and rng.random() < 0.5 * cut:
        position = -int(rng.integers(0, 250))
    too_long = 0
    while position < length and too_long < 4:
        mel, words = _sentence(speech, rows, digits, rng)
        if position + len(mel) > length and not cuts:
            too_long += 4 if window.segments else 1
            continue
        _place(window, mel, words, position)
        position += len(mel) + gap()
        if one:
            break
    if name.startswith("flite") and rng.random() < 0.5:
        window.mel = _warp_frequencies(window.mel, float(rng.uniform(0.8, 1.2)))
    if rng.random() < previous:
        before = [_sentence(speech, rows, digits, rng)[1] for _ in range(rng.integers(1, 6))]
        window.previous = " ".join(word.text for words in before for word in words)
    return window


def _place(window: Window, mel: np.ndarray, words: list[Word], position: int) -> None:
    """Puts a sentence at `position`; words that either end of the window cuts are left out of the segments."""
    length = len(window.mel)
    first, last = max(position, 0), min(position + len(mel), length)
    if last <= first:
        return
    window.mel[first:last] = mel[first - position : last - position]
    moved = [Word(word.text, word.start + position, word.end + position) for word in words]
    inside = [word for word in moved if word.start >= -2 and word.end <= length + 2]
    if position + len(mel) > length + 2:
        window.cut_start = max(position, 0)
    if inside:
        window.segments.append(inside)


def augment(mel: np.ndarray, rng: np.random.Generator, share: float = 0.35) -> np.ndarray:
    """Changes the level, and for a `share` of the windows microphone, room and voice.

    That is colouring, noise, warped frequencies and a telephone's band.
    """
    length = len(mel)
    silent = mel <= SILENCE + 0.01
    if rng.random() >= share:
        return np.where(silent, SILENCE, np.maximum(mel + np.float32(rng.uniform(-0.8, 0.4)), SILENCE))
    if rng.random() < 0.6:
        mel = _warp_frequencies(mel, float(rng.uniform(0.91, 1.1)))
    colour = np.interp(np.arange(80), np.linspace(0, 79, 6), rng.normal(0, 0.18, 6)).astype(np.float32)
    mel = np.where(silent, SILENCE, mel + colour + np.float32(rng.uniform(-1.2, 0.6)))
    if rng.random() < 0.12:
        mel[:, 57:] = np.minimum(mel[:, 57:], np.percentile(mel[:, 57:], 10) - 2)
    if rng.random() < 0.6:
        floor = _noise(length, np.percentile(mel.max(axis=1), 90) - rng.uniform(1.8, 4.5), rng)
        mel = np.logaddexp(mel * 2.302585, floor * 2.302585) / 2.302585
    return np.maximum(mel, SILENCE).astype(np.float32)


def _noise(length: int, level: float, rng: np.random.Generator) -> np.ndarray:
    """Log-mel frames of noise from white to brown, steady or swelling, whose loudest band has `level` on average."""
    clip = _noises()[rng.integers(len(_noises()))].astype(np.float32)
    clip = np.roll(clip, rng.integers(len(clip)), axis=0)[:length]
    if rng.random() < 0.3:
        marks = np.linspace(0, len(clip) - 1, 2 + len(clip) // 50)
        clip = clip + np.interp(np.arange(len(clip)), marks, rng.normal(0, 0.4, len(marks)))[:, None]
    return (clip + level).astype(np.float32)


@functools.cache
def _noises(count: int = 32) -> list[np.ndarray]:
    """30 s each of noise whose power falls with frequency as f^0 to f^-2, as log-mel frames at level 0.

    From waveforms, since the wide upper bands flicker much less than the narrow lower ones.
    """
    rng = np.random.default_rng(0)
    clips = []
    for power in np.linspace(0.0, 1.0, count):
        spectrum = np.fft.rfft(rng.standard_normal(30 * RATE))
        spectrum *= np.maximum(np.arange(len(spectrum)), 1000) ** -power
        wave = np.fft.irfft(spectrum)
        mel = log_mel((0.1 * wave / wave.std()).astype(np.float32)).astype(np.float32)
        clips.append((mel - mel.mean(axis=0).max()).astype(np.float16))
    return clips


def _warp_frequencies(mel: np.ndarray, factor: float) -> np.ndarray:
    position = np.clip(np.arange(80) * factor, 0, 79)
    low = np.minimum(position.astype(int), 78)
    part = (position - low).astype(np.float32)
    return mel[:, low] * (1 - part) + mel[:, low + 1] * part


def mask(mel: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """SpecAugment on scaled features: up to one band and, every six seconds, one short gap filled with the mean."""
    mean = mel.mean()
    for _ in range(rng.integers(0, 2)):
        low = rng.integers(0, 70)
        mel[:, low : low + rng.integers(1, 12)] = mean
    for _ in range(rng.integers(0, len(mel) // 600 + 1)):
        start = rng.integers(0, len(mel) - 12)
        mel[start : start + rng.integers(1, 12)] = mean
    return mel


def pad_with_zeros(features: np.ndarray, window: Window, rng: np.random.Generator, share: float = 0.2) -> np.ndarray:
    """For a `share` of the windows, zeros instead of silence behind the last sound.

    `generate` fills the last window of a long recording so: with zeros in the scaled features, not in the audio.
    """
    if rng.random() < share:
        sounding = np.flatnonzero((window.mel > SILENCE + 0.01).any(axis=1))
        features[:, sounding[-1] + 1 if len(sounding) else 0 :] = 0.0
    return features


def scale(mel: np.ndarray) -> np.ndarray:
    """Whisper's normalisation: eight decades below the maximum at most, then (x + 4) / 4. Returns (80, frames)."""
    return ((np.maximum(mel, mel.max() - 8.0) + 4.0) / 4.0).T.astype(np.float32)
