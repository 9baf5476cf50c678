"""Word timestamps: the times of transformers' `generate`, in short, chunked and sequential transcription."""

import copy
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import run
import torch
from transformers import WhisperForConditionalGeneration, pipeline

from hf_distil_whisper.checkpoints import load_model, save_checkpoint
from hf_distil_whisper.data.audio import load_audio
from hf_distil_whisper.data.sources import load_source
from hf_distil_whisper.export.ctranslate2 import export_ctranslate2
from hf_distil_whisper.inference.chunked import transcribe_chunked
from hf_distil_whisper.inference.encoder import encode, window_features
from hf_distil_whisper.inference.output import Word, to_json
from hf_distil_whisper.inference.sequential import transcribe_sequential
from hf_distil_whisper.inference.transcribe import transcribe
from hf_distil_whisper.inference.word_timestamps import (
    TimedToken,
    _first_positions,
    alignment_heads,
    cross_attention_weights,
    in_order,
    join_words,
    num_positions,
    set_alignment_heads,
    time_tokens,
)
from inputs import LoadedModel
from talking_models import count_encoder_windows, multilingual_whisper, talking_whisper
from toy_models import toy_audio, toy_processor

HEADS = [[1, 0], [3, 1], [2, 1]]


def timed_whisper(seed: int = 4) -> WhisperForConditionalGeneration:
    model = talking_whisper(seed)
    set_alignment_heads(model, HEADS)
    return model


def as_tuples(words: list[Word]) -> list[tuple[float, float, str]]:
    return [(word.start, word.end, word.text) for word in words]


def letters(words: list[Word]) -> str:
    """All that was tokens: toys write timestamps in the middle of words."""
    return "".join(word.text.replace(" ", "") for word in words)


def test_positions_of_an_alignment_worked_by_hand() -> None:
    """Three tokens, five positions: the second token is reached at position 1, the third at position 4."""
    weights = torch.tensor([[[0.8, 0.1, 0.1, 0.1, 0.1], [0.1, 0.8, 0.8, 0.8, 0.1], [0.1, 0.1, 0.1, 0.1, 0.8]]])
    assert _first_positions(weights, 1).tolist() == [0, 1, 4]


def test_a_single_token_and_positions_that_all_tokens_attend_to_alike_have_times() -> None:
    """The deviation over tokens is 0 there: transformers' NaN would spread over the path."""
    weights = torch.rand(2, 6, 50).softmax(dim=-1)
    assert _first_positions(weights[:, :1], 7).tolist() == [0]
    assert _first_positions(weights[:, :, :2], 7)[-1] <= 1  # shorter than the filter
    weights[..., 20] = 0.5
    positions = _first_positions(weights, 7)
    assert (np.diff(positions) >= 0).all()
    assert positions[0] == 0 < positions[-1]


def test_weights_are_those_of_eager_attention_and_the_model_stays_as_it_is() -> None:
    """Transformers leaves a model on eager attention for good; a hook that stays slows every later call."""
    model = timed_whisper()
    states, prefix, tokens = torch.randn(1, 1500, 16), [5, 6], [7, 8, 9]
    weights, probabilities = cross_attention_weights(model, states, prefix, tokens, [(1, 0), (3, 1)])
    assert model.config._attn_implementation == "sdpa"
    assert not any(module._forward_hooks for module in model.modules())
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    inputs = torch.tensor([prefix + tokens])
    with torch.no_grad():
        decoder = eager.get_decoder()(input_ids=inputs, encoder_hidden_states=states, output_attentions=True)
        logits = eager.proj_out(decoder.last_hidden_state)[0].softmax(dim=-1)
    for result, (layer, head) in zip(weights, [(1, 0), (3, 1)], strict=True):
        assert torch.allclose(result, decoder.cross_attentions[layer][0, head, 2:], atol=1e-6)
    assert np.allclose(probabilities, [logits[1, 7], logits[2, 8], logits[3, 9]], atol=1e-6)


@pytest.mark.parametrize(("seconds", "seed"), [(0.5, 1), (1.0, 3), (12.34, 3), (12.34, 5), (30.0, 2)])
def test_token_times_are_those_of_transformers(seconds: float, seed: int) -> None:
    """What is measured with these heads has to be what transformers computes with them later."""
    model, processor, audio = timed_whisper(), toy_processor(), toy_audio(seconds, seed=seed)
    features = processor.feature_extractor(
        audio, sampling_rate=16_000, return_tensors="pt", return_attention_mask=True
    )
    expected = copy.deepcopy(model).generate(
        **features, return_timestamps=True, return_token_timestamps=True, force_unique_generate_call=True
    )
    row, times = expected["sequences"][0].tolist(), expected["token_timestamps"][0].tolist()
    states = encode(model, window_features(model, processor, [audio]))
    result = time_tokens(model, states, row[:1], row[1:-1], num_positions(processor, len(audio)))
    assert [one.token for one in result] == row[1:-1]
    assert np.allclose([one.end for one in result], times[1:-1])
    assert np.allclose([one.start for one in result], [0.0, *times[1:-2]])


def test_words_of_short_recordings_are_the_same_in_batches() -> None:
    model, audio = timed_whisper(), [toy_audio(12, seed=3), toy_audio(2, seed=1), toy_audio(8, seed=5)]
    result = [transcribe(model, toy_processor(), one, return_timestamps="word")[0] for one in audio]
    batch = transcribe(model, toy_processor(), audio, batch_size=3, return_timestamps="word")
    timed = transcribe(model, toy_processor(), audio, return_timestamps=True)
    for one, together, other in zip(result, batch, timed, strict=True):
        assert as_tuples(one.words) == as_tuples(together.words)
        assert (other.text, other.segments, other.words) == (one.text, one.segments, [])
        assert all(0 <= word.start <= word.end <= 12 and 0 < word.probability < 1 for word in one.words)
        assert letters(one.words) == one.text.replace(" ", "")
    words = json.loads(to_json(result[0], audio="a"))["words"]
    assert set(words[0]) == {"start", "end", "text", "probability"}
    assert "words" not in json.loads(to_json(timed[0], audio="a"))


@pytest.mark.parametrize("fallback", [False, True])
def test_words_of_long_recordings_are_those_of_generate(fallback: bool) -> None:
    """A window's words with the offset of another are wrong by half a minute."""
    model, processor, audio = timed_whisper(), toy_processor(), toy_audio(75, seed=5)
    count = count_encoder_windows(model)
    torch.manual_seed(0)
    result = transcribe_sequential(model, processor, audio, word_timestamps=True, temperature_fallback=fallback)
    encoded = count()
    torch.manual_seed(0)
    plain = transcribe_sequential(model, processor, audio, temperature_fallback=fallback)
    assert (plain.text, plain.segments, plain.words) == (result.text, result.segments, [])
    assert count() == 2 * encoded
    assert letters(result.words) == result.text.replace(" ", "")
    assert max(word.end for word in result.words) > 40
    if fallback:
        return
    options = {"truncation": False, "padding": "longest", "return_attention_mask": True, "return_tensors": "pt"}
    features = processor.feature_extractor(audio, sampling_rate=16_000, **options)
    options = {"return_timestamps": True, "return_token_timestamps": True, "return_segments": True}
    segments = copy.deepcopy(model).generate(**features, **options)["segments"][0]
    first_timestamp = processor.tokenizer.convert_tokens_to_ids("<|0.00|>")
    ends = [
        round(float(time), 2)
        for segment in segments
        for token, time in zip(segment["tokens"].tolist(), segment["token_timestamps"].tolist(), strict=True)
        if token < first_timestamp
    ]
    assert {word.end for word in result.words} <= set(ends)
    assert result.words[-1].end == max(ends)  # windows may overlap; no word goes back behind the one before it


def test_words_of_chunks_are_joined_with_their_text() -> None:
    """Words of the overlap twice, or times that go back, where chunks are joined."""
    model, processor, audio = timed_whisper(), toy_processor(), toy_audio(40, seed=2)
    options = {"chunk_length": 15, "stride": 2.5}
    result = transcribe_chunked(model, processor, audio, return_timestamps="word", **options)
    plain = transcribe_chunked(model, processor, audio, return_timestamps=True, **options)
    assert (result.text, result.segments) == (plain.text, plain.segments)
    assert letters(result.words) == result.text.replace(" ", "")
    times = [time for word in result.words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert times[-1] > 25
    one = transcribe_chunked(model, processor, toy_audio(10), chunk_length=30, return_timestamps="word")
    short = transcribe(model, processor, toy_audio(10), return_timestamps="word")[0]
    assert (one.words[-1].end, letters(one.words)) == (short.words[-1].end, letters(short.words))


def test_words_come_with_a_language() -> None:
    """A multilingual prefix is longer by two: times read behind another prefix are those of other tokens."""
    model, audio = multilingual_whisper(4), toy_audio(4, seed=1)
    set_alignment_heads(model, HEADS)
    result = transcribe(model, toy_processor(), audio, return_timestamps="word", language="de")[0]
    assert letters(result.words) == result.text.replace(" ", "")
    by_character = transcribe(model, toy_processor(), audio, return_timestamps="word", language="zh")[0]
    assert all(" " not in word.text for word in by_character.words)


def test_nothing_said_has_no_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """A path through no tokens, or through no frames of a recording of one sample, ends in an exception."""
    model, processor = timed_whisper(), toy_processor()
    assert time_tokens(model, torch.zeros(1, 1500, 16), [5], [], 10) == []
    assert [num_positions(processor, samples) for samples in (0, 1, 320, 16_000, 480_000, 999_999)] == [
        1, 1, 1, 50, 1500, 1500
    ]  # fmt: skip
    words = transcribe(model, processor, np.zeros(1, dtype=np.float32), return_timestamps="word")[0].words
    assert all(0 <= word.start <= word.end <= 0.02 for word in words)
    model.generation_config.suppress_tokens = list(range(300))
    silent = transcribe(model, processor, toy_audio(1), return_timestamps="word", max_new_tokens=2)[0]
    assert (silent.text, silent.words) == ("", [])


def test_words_are_split_at_timestamps_keep_their_punctuation_and_never_go_back() -> None:
    tokenizer = toy_processor().tokenizer
    first_timestamp = tokenizer.convert_tokens_to_ids("<|0.00|>")
    tokens = [*tokenizer.encode(" lazy dog.", add_special_tokens=False), first_timestamp + 50, first_timestamp + 50]
    tokens += tokenizer.encode(" fox", add_special_tokens=False)
    timed = [TimedToken(token, float(index), index + 1.0, 0.5) for index, token in enumerate(tokens)]
    words = join_words(timed, tokenizer, first_timestamp, None, offset=30.0)
    assert [word.text for word in words] == ["lazy", "dog.", "fox"]
    assert words[0].start == 30.0
    assert words[-1].end == 30.0 + len(tokens)
    assert all(left.end <= right.start for left, right in pairwise(words))
    overlapping = [Word(0, 2, "a", 1), Word(1, 1.5, "b", 1), Word(3, 4, "c", 1)]  # of two windows
    assert as_tuples(in_order(overlapping)) == [(0, 2, "a"), (2, 2, "b"), (3, 4, "c")]
    assert in_order([]) == []


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ([], "at least one pair"),
        ([[4, 0]], r"holds \[4, 0\], expected .* layers 0 to 3 and heads 0 to 1"),
        ([[0, 0], [1, 2]], r"holds \[1, 2\]"),
        ([[-1, 0]], r"holds \[-1, 0\]"),
        ([[1]], r"holds \[1\]"),
    ],
)
def test_heads_that_the_decoder_lacks_are_refused(heads: list, message: str) -> None:
    """Indices beyond the decoder crash other runtimes; negative ones name another head without a word."""
    with pytest.raises(ValueError, match=message):
        set_alignment_heads(talking_whisper(), heads)


@pytest.mark.parametrize("call", [transcribe, transcribe_chunked, transcribe_sequential])
def test_a_model_without_heads_is_told_where_to_get_them(call: object) -> None:
    """Default heads would give times that look fine and are not."""
    model = talking_whisper()
    options = {"word_timestamps": True} if call is transcribe_sequential else {"return_timestamps": "word"}
    with pytest.raises(ValueError, match="set_alignment_heads"):
        call(model, toy_processor(), toy_audio(1), **options)
    model.generation_config.alignment_heads = [[9, 0]]
    with pytest.raises(ValueError, match=r"holds \[9, 0\]"):
        call(model, toy_processor(), toy_audio(1), **options)
    set_alignment_heads(model, HEADS)
    assert alignment_heads(model) == [(1, 0), (3, 1), (2, 1)]


@pytest.mark.real
def test_words_are_those_of_other_runtimes(tiny_en: LoadedModel, tmp_path: Path) -> None:
    """Heads that a checkpoint loses or another runtime reads in another way give times that look right."""
    model, processor = tiny_en
    save_checkpoint(model, processor, tmp_path / "saved")
    audio = load_audio(load_source(run.CORPUS, split="test_kathleen", max_samples=1)[0]["audio"])
    words = transcribe(load_model(tmp_path / "saved"), processor, audio, return_timestamps="word")[0].words
    recognise = pipeline("automatic-speech-recognition", model=str(tmp_path / "saved"))
    chunks = recognise({"raw": audio, "sampling_rate": 16_000}, return_timestamps="word")["chunks"]
    assert [(*one["timestamp"], one["text"].strip()) for one in chunks] == as_tuples(words)
    faster_whisper = pytest.importorskip("faster_whisper")
    export_ctranslate2(model, processor, tmp_path / "exported")
    runtime = faster_whisper.WhisperModel(str(tmp_path / "exported"), compute_type="float32", cpu_threads=1)
    segments, _ = runtime.transcribe(audio, language="en", beam_size=1, word_timestamps=True)
    theirs = [word for part in segments for word in part.words]
    # It pads the features in another way and shortens long last words, so the times are not equal to the frame.
    common = [(ours, other) for ours, other in zip(words, theirs, strict=False) if ours.text == other.word.strip()]
    assert len(common) >= len(words) - 2
    assert np.median([abs(ours.start - other.start) for ours, other in common]) <= 0.1
