"""Long-form evaluation: the method asked for, repetitions counted, and a stuck model scored instead of waited for."""

import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from hf_distil_whisper.evaluation import long_form
from hf_distil_whisper.evaluation.long_form import evaluate_long_form
from hf_distil_whisper.inference.sequential import StuckTranscriptionError, TemperatureFallback
from hf_distil_whisper.inference.transcribe import transcribe_chunked, transcribe_sequential
from hf_distil_whisper.metrics import WordErrors, get_normalizer
from talking_models import talking_whisper
from toy_models import toy_audio, toy_processor


def recordings(texts: list[str]) -> list[dict]:
    """Two recordings of 36 s."""
    audio = [np.concatenate([toy_audio(9, seed=4 * row + part) for part in range(4)]) for row in range(2)]
    return [{"id": str(row), "audio": audio[row], "text": text} for row, text in enumerate(texts)]


@pytest.mark.parametrize("method", ["chunked", "sequential"])
def test_each_method_scores_its_own_text(method: str) -> None:
    """A method that is parsed and ignored gives two equal columns in the table."""
    model, processor = talking_whisper(4), toy_processor()
    transcribe, options = transcribe_sequential, {}
    if method == "chunked":
        transcribe, options = transcribe_chunked, {"chunk_length": 10.0, "stride": 1.0}
    texts = [transcribe(model, processor, row["audio"], **options).text for row in recordings(["", ""])]
    result = evaluate_long_form(model, recordings(texts), processor, method=method, **options)
    assert [row["prediction"] for row in result.rows] == texts
    assert all(texts)
    assert (result.wer, result.audio_seconds, result.seconds > 0) == (0.0, 72.0, True)


def test_stuck_recording_counts_as_missed(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Left out, the worst transcripts would improve the rate; waited for, the run never ends."""

    def stuck(*_: object, **__: object) -> None:
        raise StuckTranscriptionError("does not move on")

    monkeypatch.setattr(long_form, "transcribe_sequential", stuck)
    rows = recordings(["the quick fox", "jumps"])
    with caplog.at_level("WARNING", logger="hf_distil_whisper"):
        result = evaluate_long_form(talking_whisper(), rows, toy_processor(), method="sequential")
    assert result.errors == WordErrors(deletions=4)
    assert [row["truncated"] for row in result.rows] == [True, True]
    assert "does not move on" in caplog.text


def test_what_a_row_samples_depends_on_its_id_alone() -> None:
    """Drawn one after another, texts would hang on the order of models and on the share of a process."""
    model, audio = talking_whisper(4), toy_audio(20)
    rows = [{"id": name, "audio": audio, "text": "the fox"} for name in ("a", "b", "c")]
    options = {"method": "sequential", "temperature_fallback": TemperatureFallback(temperatures=(1.0,))}
    before = torch.get_rng_state()
    texts = [row["prediction"] for row in evaluate_long_form(model, rows, toy_processor(), **options).rows]
    assert torch.equal(torch.get_rng_state(), before)
    assert len(set(texts)) == 3  # the same recording each time: it is sampled
    torch.rand(3)
    share = evaluate_long_form(model, rows[:0:-1], toy_processor(), **options)
    assert [row["prediction"] for row in share.rows] == texts[:0:-1]


def test_rows_hold_counts_and_rates_that_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hallucinating recording hides in a mean; worked by hand: two of 4 words are others."""
    monkeypatch.setattr(long_form, "transcribe_chunked", lambda *_, **__: long_form.Transcription("a x c e"))
    rows = [*recordings(["a b c d", ""]), {**recordings(["", ""])[0], "text": None}]
    result = evaluate_long_form(talking_whisper(), rows, toy_processor(), normalizer=get_normalizer("basic"))
    names = ("wer", "hits", "substitutions", "deletions", "insertions", "ier", "ser", "der")
    first, *others = [[row[name] for name in names] for row in result.rows]
    assert first == [0.5, 2, 2, 0, 0, 0.0, 0.5, 0.0]
    assert others == [[None] * 8] * 2
    assert (result.errors, result.empty_references) == (WordErrors(hits=2, substitutions=2), 1)
    assert (result.non_speech.rows, result.non_speech.words) == (1, 4)


def test_silence_clips_stereo_and_empty_recordings_are_scored_or_listed() -> None:
    """The oddest recording of a set must neither end the run nor get lost without a word."""
    odd = {
        "silence": (np.zeros(40 * 16_000, dtype=np.float32), 16_000),
        "10 ms": (np.zeros(160, dtype=np.float32), 16_000),
        "stereo": (np.stack([toy_audio(9)] * 2, axis=1), 44_100),
        "empty": (np.zeros(0, dtype=np.float32), 16_000),
        "none": None,
        "gone": "nowhere.wav",
    }
    rows = [{"id": name, "audio": audio, "text": "the fox"} for name, audio in odd.items()]
    for options in ({"chunk_length": 15.0}, {"method": "sequential"}):
        result = evaluate_long_form(talking_whisper(4), rows, toy_processor(), **options)
        assert [row["id"] for row in result.rows] == ["silence", "10 ms", "stereo"]
        assert [row["duration"] for row in result.rows] == pytest.approx([40.0, 0.01, 9 * 16_000 / 44_100], abs=1e-4)
        assert result.errors.num_words == 6
        assert [row for row, _ in result.row_errors] == ["empty", "none", "gone"]
        for (_, message), reason in zip(result.row_errors, ("0 samples", "got nothing", "nowhere.wav"), strict=True):
            assert reason in message


def test_time_for_decoding_is_not_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoded as it is transcribed, a slow disk would make the model slow."""
    decode = long_form.audio_blocks

    def slowly(*args: object, **options: object) -> Iterator[np.ndarray]:
        time.sleep(0.5)
        yield from decode(*args, **options)

    monkeypatch.setattr(long_form, "audio_blocks", slowly)
    monkeypatch.setattr(
        long_form, "transcribe_chunked", lambda *args, **_: long_form.Transcription(str(len([*args[2]])))
    )
    result = evaluate_long_form(talking_whisper(), recordings(["1", "1"]), toy_processor())
    assert result.audio_seconds == 72.0
    assert result.seconds < 0.5


@pytest.mark.parametrize(
    "options", [{"method": "parallel"}, {"temperature_fallback": True}, {"method": "sequential", "stride": 2.0}]
)
def test_options_without_effect_are_refused(options: dict) -> None:
    """A figure measured with an ignored option is attributed to the option."""
    with pytest.raises(ValueError, match=r"`method`|method="):
        evaluate_long_form(talking_whisper(), recordings(["the", "the"]), toy_processor(), **options)
