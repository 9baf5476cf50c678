"""CTC models: the text of transformers' own pipeline, at any length, and a refusal of what is no such model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, Wav2Vec2Model, pipeline

from ctc import (
    is_ctc,
    load_ctc,
    transcribe_ctc,
)
from toy_ctc import toy_ctc, toy_ctc_processor, write_toy_ctc
from toy_files import write_toy_model
from toy_models import toy_audio


def test_a_short_recording_has_the_text_of_the_pipeline(tmp_path: Path) -> None:
    """Blanks and repetitions that stay in would be read as insertions: hallucinations that are none."""
    model, processor = load_ctc(write_toy_ctc(tmp_path))
    recognise = pipeline(
        "automatic-speech-recognition",
        model=model,
        tokenizer=processor.tokenizer,
        feature_extractor=processor.feature_extractor,
    )
    audio = toy_audio(3.3)
    text = transcribe_ctc(model, processor, audio)
    assert text == recognise({"raw": audio, "sampling_rate": 16_000})["text"].strip()
    assert len(text) > 5


def test_chunks_lose_and_repeat_no_frame(tmp_path: Path) -> None:
    """A frame heard twice is a doubled letter at every seam, one too few a letter that is gone.

    Without layers of attention each frame depends on its surroundings only, so that chunks must give the very text of
    the whole.
    """
    model, processor = toy_ctc(num_hidden_layers=0), toy_ctc_processor(tmp_path, do_normalize=False)
    audio = np.concatenate([toy_audio(4, seed=seed) for seed in range(3)])[: 11 * 16_000 + 77]
    whole = transcribe_ctc(model, processor, audio)
    assert len(whole) > 20
    for chunk_length, stride in ((3.0, 0.5), (2.5, 0.33), (4.1, 1.0)):
        found = transcribe_ctc(model, processor, audio, chunk_length=chunk_length, stride=stride)
        assert found == whole, (chunk_length, stride)
    with pytest.raises(ValueError, match="`stride` is"):
        transcribe_ctc(model, processor, audio, chunk_length=2.0, stride=1.0)


@pytest.mark.parametrize("seconds", [1 / 16_000, 0.01, 0.11])
def test_a_clip_shorter_than_a_frame_has_a_text(tmp_path: Path, seconds: float) -> None:
    """wav2vec2's convolutions raise below 25 ms, which would end the run at one click."""
    audio = toy_audio(seconds)
    assert len(audio) >= 1
    assert isinstance(transcribe_ctc(toy_ctc(), toy_ctc_processor(tmp_path), audio), str)
    assert isinstance(transcribe_ctc(toy_ctc(), toy_ctc_processor(tmp_path), np.zeros_like(audio)), str)


def test_only_ctc_models_with_a_trained_head_are_loaded(tmp_path: Path) -> None:
    """A random head transcribes, too: the comparison would show how bad wav2vec2 is."""
    path = write_toy_ctc(tmp_path / "ctc")
    assert is_ctc(AutoConfig.from_pretrained(path))
    model, _ = load_ctc(path, dtype=torch.float32)
    assert not model.training
    headless = Wav2Vec2Model(model.config)
    headless.save_pretrained(tmp_path / "headless")
    toy_ctc_processor(tmp_path / "headless").save_pretrained(tmp_path / "headless")
    with pytest.raises(ValueError, match=r"lm_head.*would be random"):
        load_ctc(tmp_path / "headless")
    whisper = write_toy_model(tmp_path / "whisper")
    assert not is_ctc(AutoConfig.from_pretrained(whisper))
    with pytest.raises(ValueError, match=r"expected a CTC model.*'whisper'"):
        load_ctc(whisper)
