"""Tokens to text, segments and subtitles: nothing lost, no special tokens, times within the audio."""

import json
import re
from itertools import pairwise

import pytest

from hf_distil_whisper.inference.output import (
    Segment,
    Transcription,
    TranscriptionStatistics,
    compression_ratio,
    plain_text,
    segments_of,
    timed_tokens,
    timestamped_text,
    to_json,
    to_srt,
    to_vtt,
)
from toy_models import toy_processor

TOKENIZER = toy_processor().tokenizer
BEGIN = TOKENIZER.convert_tokens_to_ids("<|0.00|>")


def encode(text: str) -> list[int]:
    """Tokens of a transcript with timestamps, without Whisper's prefix and end."""
    return TOKENIZER(text, add_special_tokens=False).input_ids


def test_transcript_with_timestamps_survives_decoding_and_encoding() -> None:
    """Labels are stored as text: a token that does not come back is a label that the teacher never gave."""
    text = "<|0.00|> the quick fox<|1.20|><|1.24|> jumps<|30.00|>"
    assert timestamped_text(encode(text), TOKENIZER, BEGIN) == text
    assert plain_text(encode(text), TOKENIZER, BEGIN) == "the quick fox jumps"


def test_special_tokens_never_reach_the_text() -> None:
    """A stored <|nospeech|> or <|endoftext|> would be learnt as a word."""
    tokens = [*encode(" the"), TOKENIZER.convert_tokens_to_ids("<|nospeech|>"), TOKENIZER.eos_token_id]
    assert plain_text(tokens, TOKENIZER, BEGIN) == "the"
    assert timestamped_text([BEGIN, *tokens], TOKENIZER, BEGIN) == "<|0.00|> the"


def test_segments_carry_the_window_offset_and_end_with_the_audio() -> None:
    """Times relative to the window, or behind the end of the file, are wrong by up to 30 s and look right."""
    tokens = encode("<|0.00|> the quick<|1.20|><|1.40|> fox<|9.00|><|9.00|> jumps")
    parts = timed_tokens(tokens, BEGIN, offset=30.0, end=35.0)
    assert segments_of(parts, TOKENIZER, BEGIN) == [
        Segment(30.0, 31.2, "the quick"),
        Segment(31.4, 35.0, "fox"),
        Segment(35.0, 35.0, "jumps"),
    ]
    without = timed_tokens(encode(" the fox"), BEGIN, offset=2.0, end=5.0)  # the text is not lost
    assert segments_of(without, TOKENIZER, BEGIN) == [Segment(2.0, 5.0, "the fox")]


def test_compression_ratio_tells_repetition_from_speech() -> None:
    """The sign of a hallucination loop: OpenAI's threshold is 2.4."""
    assert compression_ratio("thank you. " * 40) > 2.4 > compression_ratio("How vexingly quick daft zebras jump!") > 0
    assert compression_ratio("") == 0.0
    assert compression_ratio("aaaaaaaaaa") == pytest.approx(10 / 11)


def spoken(*segments: tuple[float, float, str]) -> Transcription:
    return Transcription(" ".join(text for *_, text in segments), [Segment(*segment) for segment in segments])


def test_srt_of_hours_is_what_players_expect() -> None:
    """A comma before the milliseconds, two digits of hours, and an empty line between cues; worked by hand."""
    srt = to_srt(spoken((0.0, 1.2, "Hello."), (3661.04, 3662.5, "An hour later"), (360_000.0, 360_001.0, "and 100.")))
    assert srt == (
        "1\n00:00:00,000 --> 00:00:01,200\nHello.\n\n"
        "2\n01:01:01,040 --> 01:01:02,500\nAn hour later\n\n"
        "3\n100:00:00,000 --> 100:00:01,000\nand 100.\n"
    )


def test_vtt_has_its_heading_and_escapes_what_looks_like_a_tag() -> None:
    """A `<` opens a tag that swallows the text behind it, and `-->` ends the cue."""
    vtt = to_vtt(spoken((1.0, 2.0, "a < b && b --> c")))
    assert vtt == "WEBVTT\n\n00:00:01.000 --> 00:00:02.000\na &lt; b &amp;&amp; b --&gt; c\n"


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
        ([(0.0, 1.0, "one\n\ntwo")], [(0, 1000, "one two")]),
    ],
)
def test_no_cue_overlaps_the_next_or_vanishes(segments: list, expected: list) -> None:
    """Two at once cover each other; one without length is never seen; a line break ends one early."""
    result = []
    for start, end, text in re.findall(r"(.*) --> (.*)\n(.*)\n", to_srt(spoken(*segments))):
        clocks = [re.split("[:,]", time) for time in (start, end)]
        ms = [
            sum(int(part) * size for part, size in zip(clock, (3_600_000, 60_000, 1000, 1), strict=True))
            for clock in clocks
        ]
        result.append((*ms, text))
    assert result == expected
    assert all(left[1] <= right[0] for left, right in pairwise(result))


def test_silence_gives_an_empty_file_and_a_text_without_times_is_refused() -> None:
    """An empty file for a recording that was transcribed without timestamps looks like silence."""
    assert to_srt(Transcription("")) == ""
    assert to_vtt(Transcription("")) == "WEBVTT\n"
    for write in (to_srt, to_vtt):
        with pytest.raises(ValueError, match="return_timestamps=True"):
            write(Transcription("Hello."))


def test_json_holds_all_of_a_transcription() -> None:
    facts = {"num_tokens": 3, "num_windows": 1, "truncated": False, "compression_ratio": 0.8, "mean_log_prob": -0.2}
    facts |= {"no_speech_prob": 0.01, "drafts": None}
    transcription = Transcription("Grüß Gott", [Segment(0.0, 1.0, "Grüß Gott")], TranscriptionStatistics(**facts))
    line = to_json(transcription, audio="a.wav")
    assert "Grüß" in line
    assert "\n" not in line
    assert json.loads(line) == {
        "audio": "a.wav",
        "text": "Grüß Gott",
        "segments": [{"start": 0.0, "end": 1.0, "text": "Grüß Gott"}],
        "statistics": facts,
    }
    assert json.loads(to_json(Transcription(""), audio="b.wav"))["statistics"] is None
