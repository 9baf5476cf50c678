"""Subtitles as players read them: right clocks, one cue at a time, nothing that a text could break."""

import json
import re
from itertools import pairwise

import pytest

from hf_distil_whisper.inference.output import (
    Segment,
    Transcription,
    TranscriptionStatistics,
    to_json,
    to_srt,
    to_vtt,
)


def spoken(*segments: tuple[float, float, str]) -> Transcription:
    return Transcription(" ".join(text for *_, text in segments), [Segment(*segment) for segment in segments])


def test_srt_of_hours_is_what_players_expect() -> None:
    """A comma before the milliseconds, two digits of hours, and an empty line between cues; worked by hand."""
    found = to_srt(
        spoken((0.0, 1.2, "Hello."), (3661.04, 3662.5, "An hour later"), (360_000.0, 360_001.0, "and 100."))
    )
    assert found == (
        "1\n00:00:00,000 --> 00:00:01,200\nHello.\n\n"
        "2\n01:01:01,040 --> 01:01:02,500\nAn hour later\n\n"
        "3\n100:00:00,000 --> 100:00:01,000\nand 100.\n"
    )


def test_vtt_has_its_heading_and_escapes_what_looks_like_a_tag() -> None:
    """A `<` opens a tag that swallows the text behind it, and `-->` ends the cue."""
    found = to_vtt(spoken((1.0, 2.0, "a < b && b --> c")))
    assert found == "WEBVTT\n\n00:00:01.000 --> 00:00:02.000\na &lt; b &amp;&amp; b --&gt; c\n"


def test_line_breaks_in_a_text_do_not_end_the_cue() -> None:
    assert to_srt(spoken((0.0, 1.0, "one\n\ntwo"))).splitlines()[2:] == ["one two"]


@pytest.mark.parametrize(
    ("segments", "expected"),
    [
        ([(0.0, 5.0, "a"), (4.0, 6.0, "b")], [(0, 4000, "a"), (4000, 6000, "b")]),
        ([(4.0, 6.0, "b"), (0.0, 5.0, "a")], [(0, 4000, "a"), (4000, 6000, "b")]),
        ([(0.0, 5.0, "a"), (0.0, 4.0, "b")], [(0, 5000, "a b")]),
        ([(30.0, 35.0, "a"), (35.0, 35.0, "b")], [(30_000, 35_000, "a b")]),
        ([(0.0, 0.0, "a"), (0.0, 3.0, "b")], [(0, 3000, "a b")]),
        ([(0.0, 2.0, "a"), (35.0, 35.0, "b")], [(0, 2000, "a"), (35_000, 35_020, "b")]),
        ([(0.0, 9.0, "a"), (1.0, 2.0, "b"), (3.0, 4.0, "c")], [(0, 1000, "a"), (1000, 2000, "b"), (3000, 4000, "c")]),
        ([(1.0, 2.0, " ")], []),
    ],
)
def test_no_cue_overlaps_the_next_or_vanishes(segments: list, expected: list) -> None:
    """Two at once cover each other; one without length is never seen."""
    found = []
    for start, end, text in re.findall(r"(.*) --> (.*)\n(.*)\n", to_srt(spoken(*segments))):
        clocks = [re.split("[:,]", time) for time in (start, end)]
        ms = [
            sum(int(part) * size for part, size in zip(clock, (3_600_000, 60_000, 1000, 1), strict=True))
            for clock in clocks
        ]
        found.append((*ms, text))
    assert found == expected
    assert all(left[1] <= right[0] for left, right in pairwise(found))


def test_silence_gives_an_empty_file_and_a_text_without_times_is_refused() -> None:
    """An empty file for a recording that was transcribed without timestamps looks like silence."""
    assert to_srt(Transcription("")) == ""
    assert to_vtt(Transcription("")) == "WEBVTT\n"
    for write in (to_srt, to_vtt):
        with pytest.raises(ValueError, match="return_timestamps=True"):
            write(Transcription("Hello."))


def test_json_holds_all_of_a_transcription() -> None:
    statistics = TranscriptionStatistics(3, 1, False, 0.8, -0.2, 0.01)
    transcription = Transcription("Grüß Gott", [Segment(0.0, 1.0, "Grüß Gott")], statistics)
    line = to_json(transcription, audio="a.wav")
    assert "Grüß" in line
    assert "\n" not in line
    assert json.loads(line) == {
        "audio": "a.wav",
        "text": "Grüß Gott",
        "segments": [{"start": 0.0, "end": 1.0, "text": "Grüß Gott"}],
        "statistics": {
            "num_tokens": 3,
            "num_windows": 1,
            "truncated": False,
            "compression_ratio": 0.8,
            "mean_log_prob": -0.2,
            "no_speech_prob": 0.01,
            "drafts": None,
        },
    }
    assert json.loads(to_json(Transcription(""), audio="b.wav"))["statistics"] is None
