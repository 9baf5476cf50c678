"""CTC models are scored as Whisper is: the same rows, counts and normaliser, short and long."""

from pathlib import Path

import numpy as np
import pytest

from ctc import transcribe_ctc
from evaluate_ctc import evaluate_ctc
from hf_distil_whisper.data.audio import encode_flac
from toy_ctc import toy_ctc, toy_ctc_processor
from toy_models import toy_audio


def test_texts_stand_beside_their_references_whatever_the_length(tmp_path: Path) -> None:
    """Capitals without punctuation are the model's alphabet and no error."""
    model, processor = toy_ctc(3), toy_ctc_processor(tmp_path)
    audio = [toy_audio(2), np.concatenate([toy_audio(9, seed=seed) for seed in range(4)]), toy_audio(0.01)]
    texts = [transcribe_ctc(model, processor, samples, chunk_length=10.0) for samples in audio]
    rows = [{"id": str(n), "audio": audio[n], "text": text.lower()} for n, text in enumerate(texts)]
    rows.insert(1, {"id": "gone", "audio": "nowhere.wav", "text": "the"})
    result = evaluate_ctc(model, rows, processor, language="en", chunk_length=10.0)
    assert [row["id"] for row in result.rows] == ["0", "1", "2"]
    assert [row["prediction"] for row in result.rows] == texts
    assert result.wer == 0.0
    assert result.errors.hits > 5
    assert result.orthographic_errors.hits == 0
    assert [row for row, _ in result.row_errors] == ["gone"]
    assert result.audio_seconds == pytest.approx(38.01)


def test_stored_recordings_and_missing_columns(tmp_path: Path) -> None:
    model, processor = toy_ctc(), toy_ctc_processor(tmp_path)
    stored = [{"audio": {"bytes": encode_flac(toy_audio(1)), "path": None}, "text": "the"}]
    assert len(evaluate_ctc(model, stored, processor, language="en").rows) == 1
    with pytest.raises(ValueError, match="no column 'text'"):
        evaluate_ctc(model, [{"audio": toy_audio(1)}], processor, language="en")
