"""Long recordings are cut where nobody speaks, nothing of them is lost, and no text stands beside other words."""

import time

import numpy as np
import pytest

from hf_distil_whisper.data.packing import (
    TimedText,
    pack_utterances,
    split_recording,
    timed_text,
)

RATE = 16_000


def speech(*seconds: float) -> np.ndarray:
    """Noise and silence in turn."""
    rng, parts = np.random.default_rng(0), []
    for place, length in enumerate(seconds):
        parts.append((0.1 if place % 2 == 0 else 0.0005) * rng.standard_normal(round(length * RATE)))
    return np.concatenate(parts).astype(np.float32)


def lengths(pieces) -> list[float]:
    return [round(len(piece.samples) / RATE, 2) for piece in pieces]


def test_the_longest_silence_of_the_second_half_is_cut() -> None:
    """A cut within a word costs the word in both pieces; many short pieces cost 30 s of encoder each."""
    recording = speech(5, 3, 12, 0.2, 4, 0.8, 3, 0.3, 10)
    pieces = split_recording(recording)
    assert lengths(pieces) == [24.6, 13.7]
    assert np.array_equal(np.concatenate([piece.samples for piece in pieces]), recording)


def test_thirty_seconds_are_one_piece_and_keep_their_text() -> None:
    """The reference scripts dropped recordings of exactly 30 s."""
    (piece,) = split_recording(speech(30), text="all of it")
    assert (len(piece.samples), piece.text) == (30 * RATE, "all of it")
    assert [piece.text for piece in split_recording(speech(30.001), text="all of it")] == [None, None]


def test_noise_without_silence_is_cut_at_its_quietest_frame() -> None:
    """Music and crowds never pause; a piece must fit all the same."""
    recording = speech(70)
    quiet = slice(round(25.0 * RATE), round(25.02 * RATE))
    recording[quiet] *= 0.5
    pieces = split_recording(recording)
    assert lengths(pieces)[0] == 25.0
    assert max(lengths(pieces)) <= 30
    assert sum(len(piece.samples) for piece in pieces) == len(recording)


def test_words_go_along_and_sentences_stay_whole() -> None:
    """A full stop is worth more than a slightly longer pause within a sentence."""
    words = [TimedText(start, start + 0.8, f"w{start}") for start in range(40)]
    words[19] = TimedText(19, 19.8, "end.")
    words[24] = TimedText(24, 24.6, "and")
    pieces = split_recording(speech(40), timed=words)
    assert lengths(pieces) == [19.9, 20.1]
    assert pieces[0].text.split()[-1] == "end."
    assert pieces[1].text.split()[0] == "w20"
    assert " ".join(piece.text for piece in pieces).split() == [word.text for word in words]


def test_many_words_are_split_at_their_punctuation_whatever_their_length() -> None:
    """The recipe for AMI: utterances of more than 30 words at the times of their punctuation (appendix A)."""
    marks = {9: ",", 24: ".", 33: ",", 79: "."}
    words = [TimedText(0.2 * word, 0.2 * word + 0.15, f"w{word}{marks.get(word, '')}") for word in range(100)]
    recording = speech(20)
    pieces = split_recording(recording, max_words=30, text="w0 ... w99", timed=words)
    assert [len(piece.text.split()) for piece in pieces] == [25, 9, 46, 20]  # no punctuation in the third
    assert " ".join(piece.text for piece in pieces).split() == [word.text for word in words]
    assert np.array_equal(np.concatenate([piece.samples for piece in pieces]), recording)
    shorter = split_recording(recording, max_words=30, max_duration=5.0, timed=words)
    assert [len(piece.text.split()) for piece in shorter][:2] == [25, 9]
    assert max(lengths(shorter)) <= 5.0
    (whole,) = split_recording(recording, max_words=100, text="w0 ... w99", timed=words)
    assert whole.text == "w0 ... w99"
    rows = [{"id": "a", "audio": recording, "speaker": "x", "words": [word._asdict() for word in words]}]
    assert [window["ids"] for window in pack_utterances(rows, max_words=30, speaker_column=None)] == [
        ["a-0"], ["a-1"], ["a-2"], ["a-3"],
    ]  # fmt: skip


def test_a_segment_that_has_to_be_cut_leaves_both_pieces_without_text() -> None:
    """Half of its words beside all of its audio would teach the student to stop in the middle."""
    segments = [TimedText(0, 3, "short."), TimedText(3, 41, "long"), TimedText(41, 45, "short again.")]
    pieces = split_recording(speech(45), timed=segments)
    assert [piece.text is None for piece in pieces] == [True] * len(pieces)
    assert len(split_recording(speech(3, 1, 41), timed=[*segments[:1], *segments[2:]])) >= 2


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"words": [{"start": 0, "end": 1, "word": " a"}]}, [(0.0, 1.0, " a")]),
        ({"segments": [{"start": 0, "end": 1, "text": "a b"}]}, [(0.0, 1.0, "a b")]),
        ({"words": [{"start": None, "end": 1, "word": "a"}], "segments": None}, []),
        ({"words": ["a", "b"]}, []),
        ({}, []),
    ],
)
def test_times_are_taken_as_rows_write_them(row: dict, expected: list) -> None:
    assert timed_text(row) == expected


def test_packing_splits_long_rows_and_joins_their_pieces_with_neighbours() -> None:
    """Truncated at 30 s, the rest of a recording would be lost and its text would stand beside the wrong audio."""
    words = [{"start": start, "end": start + 0.8, "word": f"w{start}"} for start in range(40)]
    rows = [
        {"id": "a", "audio": speech(40), "words": words, "text": "all", "speaker": "x"},
        {"id": "b", "audio": speech(2), "text": "two.", "speaker": "x"},
        {"id": "c", "audio": speech(65), "text": "unheard", "speaker": "y"},
    ]
    windows = list(pack_utterances(rows))
    assert [window["ids"] for window in windows[:2]] == [["a-0"], ["a-1", "b"]]
    assert windows[1]["text"].endswith("w39 two.")
    assert [window["condition_on_prev"] for window in windows[:3]] == [False, True, False]
    assert all(window["text"] is None for window in windows[2:])
    assert sum(window["duration"] for window in windows) == pytest.approx(107)


def test_time_grows_with_the_length_and_not_faster() -> None:
    """The reference scripts' `np.append` made packing quadratic."""
    taken = []
    for minutes in (10, 80):
        recording = speech(*[2.0, 0.3] * round(minutes * 60 / 2.3))
        begin = time.process_time()
        split_recording(recording)
        taken.append(time.process_time() - begin)
    assert taken[1] < 30 * taken[0]
