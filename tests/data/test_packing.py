"""Which utterances are joined, and what the joined rows say of themselves."""

from pathlib import Path

import numpy as np
import pytest
from datasets import Audio, Dataset

from hf_distil_whisper.data.audio import (
    SAMPLING_RATE,
    encode_flac,
    load_audio,
)
from hf_distil_whisper.data.packing import pack_utterances
from hf_distil_whisper.data.sources import (
    RowErrors,
    load_source,
)
from toy_models import toy_rows

SPEECH = Path(__file__).parents[2].parent / "shared" / "speech"
needs_speech = pytest.mark.skipif(not SPEECH.is_dir(), reason="../shared/speech with real recordings is missing")


def row(number: int, seconds: float, speaker: str | None = "a", text: str | None = "") -> dict:
    """A recording whose samples all hold its number."""
    samples = np.full(round(seconds * SAMPLING_RATE), number / 128, dtype=np.float32)
    return {
        "id": f"r{number}",
        "audio": samples,
        "text": f"Text {number}." if text == "" else text,
        "speaker": speaker,
    }


def ids(rows: list[dict], **options: object) -> list[list[str]]:
    return [window["ids"] for window in pack_utterances(rows, **options)]


def test_neighbours_of_one_speaker_are_joined_in_order_as_long_as_they_fit():
    """Text and audio in a different order, or one sample lost at a seam, would teach the wrong alignment."""
    rows = [row(1, 10), row(2, 15), row(3, 6), row(4, 3), row(5, 3, "b")]
    windows = list(pack_utterances(rows))
    assert [window["ids"] for window in windows] == [["r1", "r2"], ["r3", "r4"], ["r5"]]
    assert [window["text"] for window in windows] == ["Text 1. Text 2.", "Text 3. Text 4.", "Text 5."]
    assert [window["duration"] for window in windows] == [25.0, 9.0, 3.0]
    assert [window["id"] for window in windows] == ["r1", "r3", "r5"]
    assert [window["speaker"] for window in windows] == ["a", "a", "b"]
    samples = load_audio(windows[0]["audio"])
    assert len(samples) == 25 * SAMPLING_RATE
    np.testing.assert_array_equal(samples[[0, 159_999, 160_000, -1]] * 128, [1, 1, 2, 2])


def test_a_window_of_exactly_30_seconds_is_kept():
    """The reference packs up to 480,000 samples and then drops what is not below 480,000."""
    assert ids([row(1, 30.0)]) == [["r1"]]
    assert ids([row(1, 10.1), row(2, 9.9), row(3, 10.0)]) == [["r1", "r2", "r3"]]
    assert ids([row(1, 20.0), row(2, 10.0 + 1 / SAMPLING_RATE)]) == [["r1"], ["r2"]]


def test_only_windows_that_go_on_say_so():
    """A flag that is compared with `is False` makes every row the continuation of another speaker's."""
    rows = [row(1, 20), row(2, 20), row(3, 20, "b"), row(4, 20, "a"), row(5, 20, "a")]
    flags = [window["condition_on_prev"] for window in pack_utterances(rows)]
    assert flags == [False, True, False, False, True]
    assert all(type(flag) is bool for flag in flags)


@pytest.mark.parametrize("missing", ["null", "no column", "no speaker wanted"])
def test_unknown_speakers_are_not_the_same_speaker(missing: str):
    """`None == None` joins strangers in one window and calls each the continuation of the last."""
    rows = [row(number, 5, None if missing == "null" else "a") for number in range(3)]
    if missing == "no column":
        for item in rows:
            del item["speaker"]
    windows = list(pack_utterances(rows, speaker_column=None if missing == "no speaker wanted" else "speaker"))
    assert [window["ids"] for window in windows] == [["r0"], ["r1"], ["r2"]]
    assert not any(window["condition_on_prev"] for window in windows)


def test_utterances_of_two_recordings_are_not_joined():
    """A chapter of one book that goes on in another one is a text that nobody has said."""
    rows = [{**row(number, 5), "recording": book} for number, book in enumerate("xxyyx")]
    windows = list(pack_utterances(rows))
    assert [window["ids"] for window in windows] == [["r0", "r1"], ["r2", "r3"], ["r4"]]
    assert not any(window["condition_on_prev"] for window in windows)
    long = [{**row(number, 20), "recording": book} for number, book in enumerate("xxy")]
    assert [window["condition_on_prev"] for window in pack_utterances(long)] == [False, True, False]
    assert ids(rows, recording_column=None) == [["r0", "r1", "r2", "r3", "r4"]]
    renamed = [{**row(number, 5), "book": book} for number, book in enumerate("xy")]
    assert ids(renamed, recording_column="book") == [["r0"], ["r1"]]


def test_utterances_in_two_languages_are_not_joined():
    """A window has one language token: the half in the other language would be labelled as translated or made up."""
    rows = [{**row(number, 5), "language": code} for number, code in enumerate(["de", "de", "en", None, None])]
    windows = list(pack_utterances(rows))
    assert [window["ids"] for window in windows] == [["r0", "r1"], ["r2"], ["r3", "r4"]]
    assert [window["language"] for window in windows] == ["de", "en", None]
    assert not any(window["condition_on_prev"] for window in windows)


def test_a_bad_row_costs_that_row_and_breaks_the_text_there():
    """Joined over the hole, the previous text would be missing a sentence that the audio's speaker has said."""
    errors = RowErrors()
    rows = [row(1, 2), {**row(2, 2), "audio": None}, row(3, 2), {**row(6, 2), "audio": b""}]
    rows += [{**row(7, 2), "audio": np.float32([np.nan])}, {**row(8, 2), "audio": "gone.wav"}, row(9, 2), row(10, 2)]
    windows = list(pack_utterances(rows, errors=errors))
    assert [window["ids"] for window in windows] == [["r1"], ["r3"], ["r9", "r10"]]
    assert not any(window["condition_on_prev"] for window in windows)
    assert [name for name, _ in errors] == ["r2", "r6", "r7", "r8"]
    messages = [message for _, message in errors]
    for message, part in zip(messages, ["got nothing", "empty", "NaN", "no such"], strict=True):
        assert part in message


def test_lost_rows_are_logged_where_nobody_collects_them(caplog: pytest.LogCaptureFixture):
    """A generator that swallows rows without a word turns a wrong path into a small corpus."""
    assert ids([row(1, 1), {**row(2, 1), "audio": None}]) == [["r1"]]
    assert "1 row left out" in caplog.text


def test_a_window_has_a_text_only_if_all_of_its_parts_have_one():
    """A text that leaves out what one of the utterances says teaches the student to skip words."""
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


def test_data_sets_and_other_column_names_are_packed():
    """An `Audio` feature would be decoded by torchcodec, and a misspelt speaker column would join nothing."""
    audio = [{"bytes": encode_flac(item["audio"]["array"]), "path": None} for item in toy_rows(3)]
    rows = Dataset.from_dict({"audio": audio, "voice": [1, 1, 2]}).cast_column("audio", Audio())
    windows = list(pack_utterances(rows, speaker_column="voice"))
    assert [window["ids"] for window in windows] == [["0", "1"], ["2"]]
    assert windows[0]["text"] is None
    with pytest.raises(ValueError, match="no column 'talker'; there are audio, voice"):
        next(pack_utterances(rows, speaker_column="talker"))
    with pytest.raises(ValueError, match="no column 'audio'"):
        next(pack_utterances(rows.remove_columns("audio")))


@pytest.mark.parametrize("options", [{"max_duration": 0}, {"gap": -0.1}])
def test_impossible_limits_are_refused(options: dict):
    """With a limit of 0 every row would be lost as too long."""
    with pytest.raises(ValueError, match="expected max_duration > 0 and gap >= 0"):
        next(pack_utterances([], **options))


@needs_speech
def test_real_recordings_fill_windows_to_30_seconds():
    """Digits at 8 kHz and read sentences, from the folder to rows that a labeller takes."""
    errors = RowErrors()
    for folder, split in (("fsdd", "test"), ("librispeech", "train"), ("ljspeech", "train")):
        rows = load_source(SPEECH / folder, split=split, max_samples=40)
        windows = list(pack_utterances(rows, errors=errors))
        assert sum(len(window["ids"]) for window in windows) + len(errors) == len(rows)
        assert sum(window["duration"] for window in windows) == pytest.approx(sum(rows["duration"]), abs=0.2)
        assert max(window["duration"] for window in windows) <= 30.0
        assert len(windows) < len(rows)
        words = " ".join(window["text"] for window in windows).split()
        assert words == " ".join(rows["text"]).split()
        assert all(len({rows["speaker"][list(rows["id"]).index(part)] for part in w["ids"]}) == 1 for w in windows[:3])
        window = windows[0]
        assert len(load_audio(window["audio"])) == pytest.approx(window["duration"] * SAMPLING_RATE)
    assert not errors
