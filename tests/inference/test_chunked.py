"""Chunked transcription: every sample is transcribed, no word lost or doubled at a seam, whatever the batch size."""

from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
from transformers.models.whisper.tokenization_whisper import _find_longest_common_sequence

from hf_distil_whisper.data.audio import AudioError, audio_blocks, encode_flac, load_audio
from hf_distil_whisper.inference import chunked
from hf_distil_whisper.inference.chunked import (
    Chunk,
    chunk_length_after,
    cut_chunks,
    default_chunk_length,
    join_spans,
    transcribe_chunked,
)
from hf_distil_whisper.inference.generation import TokenSequence
from hf_distil_whisper.inference.prompt import timestamp_begin
from hf_distil_whisper.inference.transcribe import transcribe
from talking_models import talking_whisper
from toy_models import toy_audio, toy_processor, toy_whisper
from toy_training import small_processor


def joined(sequences: list[list[int]]) -> list[int]:
    return [token for index, start, stop in join_spans(sequences) for token in sequences[index][start:stop]]


def test_joined_tokens_are_those_of_transformers() -> None:
    """Another choice of the overlap gives other texts than the pipeline, with which users compare."""
    rng = np.random.default_rng(0)
    for _ in range(100):
        words = rng.integers(0, 12, 60).tolist()
        cuts = [words[:25], words[15 : 15 + rng.integers(0, 30)], words[35:], rng.integers(0, 12, 8).tolist()]
        for cut in cuts:
            if cut and rng.random() < 0.5:
                cut[rng.integers(len(cut))] = 99  # one token differs
        cuts = [cut for cut in cuts if cut]
        assert joined(cuts) == _find_longest_common_sequence(cuts)


@pytest.mark.parametrize(
    ("sequences", "expected"),
    [
        ([[1, 2, 3, 4, 5, 91], [92, 4, 5, 6, 7, 8]], [1, 2, 3, 4, 5, 6, 7, 8]),
        ([], []),
        ([[]], []),
        ([[1, 2]], [1, 2]),
        ([[1, 2], [], [3]], [1, 2, 3]),
    ],
)
def test_overlap_and_silence_join_to_what_was_said(sequences: list[list[int]], expected: list[int]) -> None:
    """A word cut in two must come from the chunk that has all of it; chunks of silence have no token."""
    assert joined(sequences) == expected


def test_chunks_overlap_by_two_strides_and_cover_every_sample() -> None:
    """A recording that ends between two chunks would lose its last words."""
    recording = np.arange(40 * 16_000, dtype=np.float32)
    starts, stops = (0, 160_000, 320_000, 480_000), (240_000, 400_000, 560_000, 640_000)
    expected = [Chunk(*bounds) for bounds in zip(starts, stops, strict=True)]
    assert [chunk for chunk, _ in cut_chunks([recording], 15.0, 2.5)] == expected
    for samples, block in product((1, 239_999, 240_000, 240_001, 400_000, 400_001), (997, 160_000, 10**6)):
        blocks = [recording[start : min(start + block, samples)] for start in range(0, samples, block)]
        cut = list(cut_chunks(blocks, 15.0, 2.5))
        assert all(np.array_equal(samples, recording[chunk.start : chunk.stop]) for chunk, samples in cut)
        chunks = [chunk for chunk, _ in cut]
        assert chunks[0].start == 0
        assert chunks[-1].stop == samples
        assert all(left.stop - right.start == 80_000 for left, right in pairwise(chunks))


def test_empty_recording_has_no_chunk() -> None:
    """An iterator that gives nothing must say so instead of giving an empty text."""
    assert not list(cut_chunks([], 15.0, 2.5))
    with pytest.raises(AudioError, match="got none"):
        transcribe_chunked(talking_whisper(), toy_processor(), iter(()))


@pytest.mark.parametrize(("chunk_length", "stride"), [(10.0, 5.0), (10.0, -1.0), (31.0, None), (0.0, None)])
def test_impossible_chunks_are_refused(chunk_length: float, stride: float | None) -> None:
    """A stride of half a chunk never moves on; a chunk above the window is cut off unheard."""
    with pytest.raises(ValueError, match=r"`stride`|`chunk_length`"):
        transcribe_chunked(talking_whisper(), toy_processor(), toy_audio(1), chunk_length=chunk_length, stride=stride)


def test_text_depends_neither_on_batch_size_nor_on_blocks(tmp_path: Path) -> None:
    """Padding or order that leaks into the text, or samples lost where a block ends, change long files only."""
    model, audio = talking_whisper(4), np.concatenate([toy_audio(9, seed=index) for index in range(8)])
    path = tmp_path / "long.flac"
    path.write_bytes(encode_flac(audio))
    options = {"chunk_length": 10.0, "return_timestamps": True}
    expected = transcribe_chunked(model, toy_processor(), load_audio(path), batch_size=16, **options)
    assert expected.text
    for source, batch_size in ((path, 1), (path, 3), (path, 16), (audio_blocks(path, block_seconds=0.7), 16)):
        result = transcribe_chunked(model, toy_processor(), source, batch_size=batch_size, **options)
        assert (result.text, result.segments) == (expected.text, expected.segments)
        assert result.statistics.num_windows == expected.statistics.num_windows == 11


@pytest.mark.parametrize("stereo", [False, True])
@pytest.mark.parametrize("seconds", [0.01, 3.0])
def test_silence_and_clips_of_milliseconds_are_one_chunk(seconds: float, stereo: bool) -> None:
    """What comes out of silence is the model's affair; that something comes out is ours."""
    frames = round(44_100 * seconds)
    audio = (np.zeros((frames, 2) if stereo else frames, dtype=np.float32), 44_100)
    result = transcribe_chunked(talking_whisper(4), toy_processor(), audio, return_timestamps=True)
    assert result.statistics.num_windows == 1
    assert 0 <= result.statistics.no_speech_prob <= 1
    assert all(0 <= part.start <= part.end <= seconds for part in result.segments)


def test_recording_of_one_chunk_reads_as_a_short_one() -> None:
    """Chunking must change nothing where there is nothing to cut."""
    model, audio = talking_whisper(4), toy_audio(3, seed=2)
    short = transcribe(model, toy_processor(), audio, return_timestamps=True)[0]
    chunk = transcribe_chunked(model, toy_processor(), audio, return_timestamps=True)
    assert chunk == short
    assert short.text


def test_times_follow_the_words_over_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times of a joined text must count from the start of the recording, and a sentence over a seam is one segment."""
    model, processor = talking_whisper(), toy_processor()
    first_timestamp = timestamp_begin(model)

    def tokens(text: str) -> list[int]:
        return processor.tokenizer(text, add_special_tokens=False).input_ids

    first = tokens("<|0.00|> the quick<|4.00|><|5.00|> brown fox jumps over<|10.00|>")
    second = tokens("<|0.00|> fox jumps over the lazy dog<|8.00|>")
    sequences = [TokenSequence(row, False, -0.5, 0.1) for row in (first, second)]
    monkeypatch.setattr(chunked, "generate_tokens", lambda *_, **__: sequences)
    audio = np.zeros(16 * 16_000, dtype=np.float32)
    result = transcribe_chunked(model, processor, audio, chunk_length=10, stride=2, return_timestamps=True)
    assert result.text == "the quick brown fox jumps over the lazy dog"
    assert [(part.start, part.end, part.text) for part in result.segments] == [
        (0.0, 4.0, "the quick"),
        (5.0, 14.0, "brown fox jumps over the lazy dog"),
    ]
    assert first_timestamp not in tokens(result.text)


def test_statistics_sum_up_all_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A truncated window or a silent one must be seen in the statistics of the whole recording."""
    sequences = [TokenSequence([5, 6, 7], False, -1.0, 0.9), TokenSequence([8, 9], True, -2.5, 0.2)]
    monkeypatch.setattr(chunked, "generate_tokens", lambda *_, **__: sequences)
    audio = np.zeros(16 * 16_000, dtype=np.float32)
    statistics = transcribe_chunked(talking_whisper(), toy_processor(), audio, chunk_length=10, stride=2).statistics
    assert (statistics.num_tokens, statistics.num_windows, statistics.truncated) == (5, 2, True)
    assert statistics.mean_log_prob == pytest.approx((4 * -1.0 + 2 * -2.5) / 6)
    assert statistics.no_speech_prob == 0.2


def test_the_chunk_length_has_both_points_of_table_23() -> None:
    """Distil-Whisper's mean of 7.1 s: 15 s; Whisper's windows of 30 s: 30 s."""
    assert [chunk_length_after(mean) for mean in (7.1, 15.0, 15.1, 30.0)] == [15.0, 15.0, 30.0, 30.0]


def test_recordings_are_cut_to_the_length_of_the_model_unless_another_is_given() -> None:
    """A default that wins over what was asked for makes a sweep of equal rows."""
    model, audio = talking_whisper(4), toy_audio(40)
    windows = {}
    for entry in (None, 15.0, 10):
        model.generation_config.chunk_length_s = entry
        windows[entry] = [
            transcribe_chunked(model, toy_processor(), audio, chunk_length=length).statistics.num_windows
            for length in (None, 30.0)
        ]
    assert windows == {None: [2, 2], 15.0: [4, 2], 10: [6, 2]}


def test_no_default_exceeds_the_window_and_no_entry_is_guessed_at() -> None:
    """A model with windows of 1 s would get chunks of 30 s and never see their ends."""
    model = toy_whisper()
    assert default_chunk_length(model, small_processor()) == 1.0
    model.generation_config.chunk_length_s = "fifteen"
    with pytest.raises(ValueError, match=r"`chunk_length_s` .* is 'fifteen'"):
        default_chunk_length(model, toy_processor())
