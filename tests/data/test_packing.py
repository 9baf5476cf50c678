"""Which utterances are joined, where long recordings are split, and which text and facts the windows have."""

import time

import numpy as np
import pytest
from datasets import Audio, Dataset

from hf_distil_whisper.data.audio import SAMPLING_RATE, encode_flac, load_audio
from hf_distil_whisper.data.packing import TimedText, pack_utterances, split_recording, timed_text
from hf_distil_whisper.data.sources import RowErrors
from toy_models import toy_rows


def row(number: int, seconds: float, speaker: str | None = "a", text: str | None = "") -> dict:
    """A recording whose samples all hold its number."""
    samples = np.full(round(seconds * SAMPLING_RATE), number / 128, dtype=np.float32)
    text = f"Text {number}." if text == "" else text
    return {"id": f"r{number}", "audio": samples, "text": text, "speaker": speaker}


def ids(rows: list[dict], **options: object) -> list[list[str]]:
    return [window["ids"] for window in pack_utterances(rows, **options)]


def test_neighbours_of_one_speaker_are_joined_in_order_as_long_as_they_fit():
    """Text and audio in a different order, or one sample missing at a seam, would teach the wrong alignment."""
    rows = [row(1, 10), row(2, 15), row(3, 6), row(4, 3), row(5, 3, "b")]
    windows = list(pack_utterances(rows))
    facts = [[window[name] for name in ("id", "ids", "text", "duration", "speaker")] for window in windows]
    assert facts == [
        ["r1", ["r1", "r2"], "Text 1. Text 2.", 25.0, "a"],
        ["r3", ["r3", "r4"], "Text 3. Text 4.", 9.0, "a"],
        ["r5", ["r5"], "Text 5.", 3.0, "b"],
    ]
    samples = load_audio(windows[0]["audio"])
    assert len(samples) == 25 * SAMPLING_RATE
    np.testing.assert_array_equal(samples[[0, 159_999, 160_000, -1]] * 128, [1, 1, 2, 2])
    many = [row(number, 0.1) for number in range(100)]  # more than are decoded ahead
    assert ids(many) == [[f"r{number}" for number in range(100)]]


def test_a_window_of_exactly_30_seconds_fits():
    """The reference packs up to 480,000 samples and then drops what is not below 480,000."""
    assert ids([row(1, 30.0)]) == [["r1"]]
    assert ids([row(1, 10.1), row(2, 9.9), row(3, 10.0)]) == [["r1", "r2", "r3"]]
    assert ids([row(1, 20.0), row(2, 10.0 + 1 / SAMPLING_RATE)]) == [["r1"], ["r2"]]


@pytest.mark.parametrize(
    ("column", "values", "seconds", "options", "joined", "continued"),
    [
        ("speaker", "aabaa", 20, {}, "0 1 2 3 4", [1, 4]),
        ("speaker", [None] * 3, 5, {}, "0 1 2", []),
        ("speaker", "aaa", 5, {"speaker_column": "talker"}, "0 1 2", []),
        ("speaker", "aaa", 5, {"speaker_column": None}, "0 1 2", []),
        ("recording", "xxyyx", 5, {}, "01 23 4", []),
        ("recording", "xxy", 20, {}, "0 1 2", [1]),
        ("recording", "xxyyx", 5, {"recording_column": None}, "01234", []),
        ("book", "xy", 5, {"recording_column": "book"}, "0 1", []),
        ("language", ["de", "de", "en", None, None], 5, {}, "01 2 34", []),
    ],
)
def test_only_what_a_known_speaker_says_in_one_recording_and_language_is_joined_and_continued(
    column: str, values: list, seconds: int, options: dict, joined: str, continued: list[int]
):
    """`None == None` joins strangers; a chapter that goes on in another book is a text that nobody has said."""
    rows = [{**row(number, seconds), column: value} for number, value in enumerate(values)]
    windows = list(pack_utterances(rows, **options))
    assert [window["ids"] for window in windows] == [[f"r{number}" for number in ids] for ids in joined.split()]
    assert [window["language"] for window in windows] == [rows[int(ids[0])].get("language") for ids in joined.split()]
    assert all(window["condition_on_prev"] is (number in continued) for number, window in enumerate(windows))


def test_a_bad_row_costs_that_row_and_breaks_the_text_there(caplog: pytest.LogCaptureFixture):
    """Joined across it, the previous text would lack a sentence that the speaker has said."""
    errors = RowErrors()
    rows = [row(1, 2), {**row(2, 2), "audio": None}, row(3, 2), {**row(6, 2), "audio": b""}]
    rows += [{**row(7, 2), "audio": np.float32([np.nan])}, {**row(8, 2), "audio": "gone.wav"}, row(9, 2), row(10, 2)]
    windows = list(pack_utterances(rows, errors=errors))
    assert [window["ids"] for window in windows] == [["r1"], ["r3"], ["r9", "r10"]]
    assert not any(window["condition_on_prev"] for window in windows)
    assert [name for name, _ in errors] == ["r2", "r6", "r7", "r8"]
    for (_, message), part in zip(errors, ["got nothing", "empty", "NaN", "no such"], strict=True):
        assert part in message
    # A generator that swallows rows without a word turns a wrong path into a small corpus.
    assert "left out" not in caplog.text
    assert ids([row(1, 1), {**row(2, 1), "audio": None}]) == [["r1"]]
    assert "1 row left out" in caplog.text


def test_a_window_has_a_text_only_if_all_of_its_parts_have_one():
    """A text without that of one utterance teaches the student to skip words."""
    windows = list(pack_utterances([row(1, 2), row(2, 2, text=None), row(3, 2, "b"), row(4, 2, "b", text="  ")]))
    assert [window["text"] for window in windows] == [None, "Text 3."]


def test_a_gap_of_silence_counts_towards_the_limit():
    """Silence that is added after the check of the length makes windows of more than 30 s."""
    assert ids([row(1, 15), row(2, 15)], gap=0.1) == [["r1"], ["r2"]]
    (window,) = pack_utterances([row(1, 15), row(2, 14.5)], gap=0.5)
    samples = load_audio(window["audio"])
    assert window["duration"] == len(samples) / SAMPLING_RATE == 30.0
    assert not samples[240_000:248_000].any()
    assert samples[239_999] > 0 < samples[248_000]


def test_data_sets_and_other_column_names_are_packed_and_what_cannot_be_is_refused():
    """An `Audio` feature would be decoded by torchcodec, and a misspelt speaker column would join nothing."""
    audio = [{"bytes": encode_flac(item["audio"]["array"]), "path": None} for item in toy_rows(3)]
    rows = Dataset.from_dict({"audio": audio, "voice": [1, 1, 2]}).cast_column("audio", Audio())
    windows = list(pack_utterances(rows, speaker_column="voice"))
    assert [(window["ids"], window["text"]) for window in windows] == [(["0", "1"], None), (["2"], None)]
    for dataset, options, message in (
        (rows, {"speaker_column": "talker"}, "no column 'talker'; there are audio, voice"),
        (rows.remove_columns("audio"), {}, "no column 'audio'"),
        (rows, {"max_duration": 0}, "expected max_duration > 0 and gap >= 0"),
        (rows, {"gap": -0.1}, "expected max_duration > 0 and gap >= 0"),
    ):
        with pytest.raises(ValueError, match=message):
            next(pack_utterances(dataset, **options))


def speech(*seconds: float) -> np.ndarray:
    """Noise and silence in turn."""
    lengths = [round(length * SAMPLING_RATE) for length in seconds]
    levels = np.resize([0.1, 0.0005], len(lengths)).repeat(lengths)
    return (levels * np.random.default_rng(0).standard_normal(sum(lengths))).astype(np.float32)


def lengths(pieces) -> list[float]:
    return [round(len(piece.samples) / SAMPLING_RATE, 2) for piece in pieces]


def test_the_longest_silence_of_the_second_half_is_cut() -> None:
    """A cut within a word costs the word in both pieces; many short pieces cost 30 s of encoder each."""
    recording = speech(5, 3, 12, 0.2, 4, 0.8, 3, 0.3, 10)
    pieces = split_recording(recording)
    assert lengths(pieces) == [24.6, 13.7]
    assert np.array_equal(np.concatenate([piece.samples for piece in pieces]), recording)


def test_thirty_seconds_are_one_piece_with_its_text() -> None:
    """The reference scripts dropped recordings of exactly 30 s."""
    assert [piece.text for piece in split_recording(speech(30), text="all of it")] == ["all of it"]
    assert [piece.text for piece in split_recording(speech(30.001), text="all of it")] == [None, None]


def test_noise_without_silence_is_cut_at_its_quietest_frame() -> None:
    """Music and crowds never pause; a piece must fit all the same."""
    recording = speech(70)
    quiet = slice(round(25.0 * SAMPLING_RATE), round(25.02 * SAMPLING_RATE))
    recording[quiet] *= 0.5
    pieces = split_recording(recording)
    assert lengths(pieces)[0] == 25.0
    assert max(lengths(pieces)) <= 30
    assert sum(len(piece.samples) for piece in pieces) == len(recording)


def test_pieces_have_their_words_and_sentences_stay_whole() -> None:
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
    assert ids(rows, max_words=30, speaker_column=None) == [["a-0"], ["a-1"], ["a-2"], ["a-3"]]


def test_a_segment_that_has_to_be_cut_leaves_both_pieces_without_text() -> None:
    """Half of its words beside all of its audio would teach the student to stop in the middle."""
    segments = [TimedText(0, 3, "short."), TimedText(3, 41, "long"), TimedText(41, 45, "short again.")]
    assert [piece.text for piece in split_recording(speech(45), timed=segments)] == [None, None]


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
    """Truncated at 30 s, a recording would lack the rest, and its text would stand beside the wrong audio."""
    words = [{"start": start, "end": start + 0.8, "word": f"w{start}"} for start in range(40)]
    rows = [
        {"id": "a", "audio": speech(40), "words": words, "text": "all", "speaker": "x"},
        {"id": "b", "audio": speech(2), "text": "two.", "speaker": "x"},
        {"id": "c", "audio": speech(65), "text": "long", "speaker": "y"},
    ]
    windows = list(pack_utterances(rows))
    assert [window["ids"] for window in windows[:2]] == [["a-0"], ["a-1", "b"]]
    assert windows[1]["text"].endswith("w39 two.")
    assert [window["condition_on_prev"] for window in windows[:3]] == [False, True, False]
    assert all(window["text"] is None for window in windows[2:])
    assert sum(window["duration"] for window in windows) == pytest.approx(107)


def test_splitting_takes_time_linear_in_the_length() -> None:
    """The reference scripts' `np.append` made packing quadratic."""
    seconds = []
    for minutes in (10, 80):
        recording = speech(*[2.0, 0.3] * round(minutes * 60 / 2.3))
        start = time.process_time()
        split_recording(recording)
        seconds.append(time.process_time() - start)
    assert seconds[1] < 30 * seconds[0]
