"""Tokens to text: nothing lost, nothing special left, times where they belong."""

import pytest

from hf_distil_whisper.inference.output import (
    Segment,
    compression_ratio,
    plain_text,
    segments_of,
    timed_tokens,
    timestamped_text,
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


def test_text_without_any_timestamp_is_one_segment() -> None:
    """A model that forgets its timestamps must not lose its text."""
    parts = timed_tokens(encode(" the fox"), BEGIN, offset=2.0, end=5.0)
    assert segments_of(parts, TOKENIZER, BEGIN) == [Segment(2.0, 5.0, "the fox")]


def test_compression_ratio_tells_repetition_from_speech() -> None:
    """The sign of a hallucination loop: OpenAI's threshold is 2.4."""
    assert compression_ratio("thank you. " * 40) > 2.4 > compression_ratio("How vexingly quick daft zebras jump!") > 0
    assert compression_ratio("") == 0.0
    assert compression_ratio("aaaaaaaaaa") == pytest.approx(10 / 11)
