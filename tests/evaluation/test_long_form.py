"""Long-form evaluation: the method asked for, repetitions counted, and a stuck model scored instead of waited for."""

import numpy as np
import pytest

from hf_distil_whisper.evaluation import long_form
from hf_distil_whisper.evaluation.long_form import evaluate_long_form
from hf_distil_whisper.inference.sequential import StuckTranscriptionError
from hf_distil_whisper.inference.transcribe import transcribe_chunked, transcribe_sequential
from hf_distil_whisper.metrics import WordErrors, get_normalizer, repeated_ngrams
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
    rows = recordings(["", ""])
    if method == "chunked":
        options = {"chunk_length": 10.0, "stride": 1.0}
        texts = [transcribe_chunked(model, processor, row["audio"], **options).text for row in rows]
    else:
        options = {}
        texts = [transcribe_sequential(model, processor, row["audio"]).text for row in rows]
    result = evaluate_long_form(model, recordings(texts), processor, method=method, **options)
    assert [row["prediction"] for row in result.rows] == texts
    assert all(texts)
    assert result.wer == 0.0
    assert result.audio_seconds == 72.0


def test_repetitions_are_counted_on_the_normalised_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Table 8's measure of hallucination: one loop in an hour hardly moves the WER."""
    text = "The cat sat down here. " * 3
    monkeypatch.setattr(long_form, "transcribe_chunked", lambda *_, **__: long_form.Transcription(text.strip()))
    result = evaluate_long_form(talking_whisper(), recordings(["the cat sat down here"] * 2), toy_processor())
    expected = repeated_ngrams(get_normalizer("en")(text))
    assert [row["repeated_5grams"] for row in result.rows] == [expected, expected]
    assert expected == 6


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


def test_unreadable_recording_is_listed() -> None:
    """One broken recording must not end the evaluation of all the others."""
    rows = [recordings(["the", "the"])[0], {"id": "gone", "audio": "nowhere.wav", "text": "the"}]
    result = evaluate_long_form(talking_whisper(4), rows, toy_processor(), chunk_length=15.0)
    assert [row for row, _ in result.row_errors] == ["gone"]
    assert len(result.rows) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"method": "parallel"},
        {"method": "chunked", "temperature_fallback": True},
        {"method": "sequential", "stride": 2.0},
    ],
)
def test_options_without_effect_are_refused(options: dict) -> None:
    """A figure measured with an ignored option is attributed to the option."""
    with pytest.raises(ValueError, match=r"`method`|method="):
        evaluate_long_form(talking_whisper(), recordings(["the", "the"]), toy_processor(), **options)
