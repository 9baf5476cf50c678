"""Table 8, CTC: scored as Whisper is; chunks lose and repeat nothing; a random head is refused."""

from pathlib import Path

import numpy as np
import pytest
from toy_ctc import toy_ctc, write_toy_ctc
from toy_scripts import Refused
from transformers import Wav2Vec2Model

import ctc
from ctc import evaluate_ctc, load_ctc
from hf_distil_whisper import run_script
from toy_files import write_toy_model
from toy_models import toy_audio


def test_texts_are_scored_beside_their_references_whatever_the_length(tmp_path: Path) -> None:
    """Capitals without punctuation are the model's alphabet and no error; a click below 25 ms ends no run."""
    recognise = load_ctc(write_toy_ctc(tmp_path, toy_ctc(seed=3)), chunk_length=10.0)
    audio = [toy_audio(2), np.concatenate([toy_audio(9, seed=seed) for seed in range(4)]), toy_audio(0.01)]
    rows = [{"id": str(n), "audio": samples, "text": "the"} for n, samples in enumerate(audio)]
    rows.insert(1, {"id": "gone", "audio": "nowhere.wav", "text": "the"})
    first = evaluate_ctc(recognise, rows, language="en")
    assert [row["id"] for row in first.rows] == ["0", "1", "2"]
    assert [row for row, _ in first.row_errors] == ["gone"]
    assert first.audio_seconds == pytest.approx(38.01)
    again = evaluate_ctc(recognise, [{**rows[0], "text": first.rows[0]["prediction"].lower()}], language="en")
    assert again.wer == 0.0
    assert again.errors.hits > 0
    assert again.orthographic_errors.hits == 0


def test_chunks_lose_and_repeat_no_frame(tmp_path: Path) -> None:
    """Without layers of attention each frame depends on its surroundings only: chunks must give the whole's text."""
    write_toy_ctc(tmp_path, toy_ctc(num_hidden_layers=0), do_normalize=False)
    audio = np.concatenate([toy_audio(4, seed=seed) for seed in range(3)])[: 11 * 16_000]
    whole, parts = (load_ctc(str(tmp_path), length, 0.5) for length in (30.0, 3.0))
    texts = [recognise({"raw": audio, "sampling_rate": 16_000})["text"] for recognise in (whole, parts)]
    assert len(texts[0]) > 20
    assert texts[0] == texts[1]


def test_only_ctc_models_with_a_trained_head_are_loaded(tmp_path: Path) -> None:
    """A random head transcribes, too: the comparison would show how bad wav2vec2 is."""
    headless = write_toy_ctc(tmp_path / "headless", Wav2Vec2Model(toy_ctc().config))
    with pytest.raises(ValueError, match=r"lm_head.*would be random"):
        load_ctc(headless)
    with pytest.raises(ValueError, match="WhisperConfig"):
        load_ctc(write_toy_model(tmp_path / "whisper"))


def test_the_script_prints_the_columns_of_table_8(
    toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Refused
) -> None:
    argv = ["--model_name_or_path", write_toy_ctc(tmp_path, toy_ctc()), "--dataset", str(toys / "corpus")]
    assert run_script(ctc.main, [*argv, "--language", "en"]) == 0
    assert "| Model | 5-Dup. | IER | SER | DER | WER |" in capsys.readouterr().out
    refused(ctc.main, argv, "--language is missing")
