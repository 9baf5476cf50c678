"""Table 8, CTC: scored as Whisper is; chunks lose and repeat nothing; a random head is refused."""

import json
import string
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_scripts import Printed
from transformers import Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC, Wav2Vec2Model

import ctc
from ctc import evaluate_ctc, load_ctc
from toy_files import write_toy_model
from toy_models import toy_audio


def toy_ctc(seed: int = 0, **changes: object) -> Wav2Vec2ForCTC:
    """A wav2vec2 of width 16 whose frames are of 20 ms, in eval mode; `changes` are entries of `Wav2Vec2Config`."""
    sizes = {"vocab_size": 32, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    sizes |= {"num_hidden_layers": 1, "conv_dim": (8,) * 7}
    sizes |= {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
    torch.manual_seed(seed)
    config = Wav2Vec2Config(**{**sizes, "feat_extract_norm": "layer", "initializer_range": 1.0, **changes})
    return Wav2Vec2ForCTC(config).eval()


def write_toy_ctc(folder: Path, model: torch.nn.Module, do_normalize: bool = True) -> str:
    """Saves a model with a processor for the letters of LibriSpeech's models; returns the path."""
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *string.ascii_uppercase, "'"]
    model.save_pretrained(folder)
    vocabulary = Path(folder, "vocab.json")
    vocabulary.write_text(json.dumps({letter: number for number, letter in enumerate(letters)}))
    Wav2Vec2FeatureExtractor(do_normalize=do_normalize).save_pretrained(folder)
    Wav2Vec2CTCTokenizer(str(vocabulary)).save_pretrained(folder)
    return str(folder)


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


def test_the_script_prints_the_columns_of_table_8(toys: Path, tmp_path: Path, printed: Printed) -> None:
    argv = ["--model_name_or_path", write_toy_ctc(tmp_path, toy_ctc()), "--dataset", toys / "corpus"]
    assert "| Model | 5-Dup. | IER | SER | DER | WER |" in printed(ctc.main, *argv, "--language", "en")
