"""Recordings that are odd but no error: silence, a click, studio formats. All are scored by every model."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from evaluate_ctc import evaluate_ctc
from hf_distil_whisper.evaluation.evaluate import EvaluationResult, evaluate_model
from hf_distil_whisper.evaluation.long_form import evaluate_long_form
from talking_models import talking_whisper
from toy_ctc import toy_ctc, toy_ctc_processor
from toy_models import toy_audio, toy_processor

Evaluate = Callable[[list[dict]], EvaluationResult]


@pytest.fixture(params=["short form", "chunked", "sequential", "CTC"])
def evaluate(request: pytest.FixtureRequest, tmp_path: Path) -> Evaluate:
    """Each way to score rows."""
    if request.param == "CTC":
        model, processor = toy_ctc(), toy_ctc_processor(tmp_path)
        return lambda rows: evaluate_ctc(model, rows, processor, language="en")
    model, processor = talking_whisper(4), toy_processor()
    if request.param == "short form":
        return lambda rows: evaluate_model(model, rows, processor)
    return lambda rows: evaluate_long_form(model, rows, processor, method=request.param)


def test_silence_and_clicks_have_a_text_and_a_duration(evaluate: Evaluate) -> None:
    """Normalising silence divides by zero, a click is shorter than a frame: either would end the run."""
    rows = [
        {"id": "silence", "audio": np.zeros(32_000, dtype=np.float32), "text": "the fox"},
        {"id": "click", "audio": toy_audio(0.01), "text": "the"},
        {"id": "nothing said", "audio": np.zeros(16_000, dtype=np.float32), "text": ""},
        {"id": "unknown", "audio": toy_audio(1), "text": None},
    ]
    result = evaluate(rows)
    assert [row["duration"] for row in result.rows] == [2.0, 0.01, 1.0, 1.0]
    assert all(isinstance(row["prediction"], str) for row in result.rows)
    assert result.errors.num_words == 3
    assert result.empty_references == 2
    assert not len(result.row_errors)
    assert np.isfinite(result.wer)
    assert np.isfinite(result.rtf)


def test_stereo_at_44_100_hz_counts_the_seconds_of_the_recording(evaluate: Evaluate) -> None:
    """Two channels read as one after the other, or samples taken for 16 kHz, make every real-time factor wrong."""
    mono = np.interp(np.arange(44_100 * 2) / 44_100, np.arange(32_000) / 16_000, toy_audio(2)).astype(np.float32)
    file = io.BytesIO()
    soundfile.write(file, np.stack([mono, mono], axis=1), 44_100, format="WAV")
    result = evaluate([{"id": "a", "audio": {"bytes": file.getvalue(), "path": None}, "text": "the"}])
    assert result.audio_seconds == pytest.approx(2.0, abs=1e-3)
    assert result.errors.num_words == 1


def test_no_sample_at_all_costs_the_row(evaluate: Evaluate) -> None:
    """An empty recording is a broken one, not silence."""
    empty = {"id": "empty", "audio": np.zeros(0, dtype=np.float32), "text": "the"}
    result = evaluate([empty, {"id": "a", "audio": toy_audio(1), "text": "the"}])
    assert [row for row, _ in result.row_errors] == ["empty"]
    assert [row["id"] for row in result.rows] == ["a"]
