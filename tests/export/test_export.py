"""All exports: a complete folder or none, students of every kind, texts compared with those of transformers."""

import sys
from functools import partial
from pathlib import Path

import ctranslate2
import numpy as np
import pytest
import torch
from transformers import WhisperForConditionalGeneration

from hf_distil_whisper.checkpoints import load_model
from hf_distil_whisper.data.sources import RowErrors
from hf_distil_whisper.export import check_export, greedy_texts
from hf_distil_whisper.export.ctranslate2 import QUANTIZATIONS, export_ctranslate2
from hf_distil_whisper.export.ggml import export_ggml
from hf_distil_whisper.export.onnx import export_onnx
from hf_distil_whisper.inference.ctranslate2 import Ctranslate2Generator
from hf_distil_whisper.inference.generation import generate_tokens
from hf_distil_whisper.inference.output import plain_text
from hf_distil_whisper.training.lora import LoraSettings, LoraStudent
from official_models import official_whisper
from talking_models import multilingual_whisper, talking_whisper, toy_windows, with_own_head
from toy_models import toy_audio, toy_processor

RECORDINGS = [toy_audio(1 + row, seed=row) for row in range(4)]


def with_heads_of_the_teacher() -> WhisperForConditionalGeneration:
    model = talking_whisper(4, decoder_layers=2)
    model.generation_config.alignment_heads = [[0, 1], [3, 0]]
    return model


def lora_merged(folder: Path) -> WhisperForConditionalGeneration:
    model = talking_whisper(4)
    settings = model.generation_config
    student = LoraStudent(model, LoraSettings(r=2))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.05)
    student.save_merged(folder)
    merged = load_model(folder)
    merged.generation_config = settings
    return merged


@pytest.fixture(params=["cut encoder, own head", "multilingual", "LoRA-merged", "heads of the teacher"])
def student(request: pytest.FixtureRequest, tmp_path: Path) -> WhisperForConditionalGeneration:
    makers = {
        "cut encoder, own head": lambda: with_own_head(talking_whisper(4, encoder_layers=1, decoder_layers=2)),
        "multilingual": lambda: multilingual_whisper(3),
        "LoRA-merged": lambda: lora_merged(tmp_path / "lora"),
        "heads of the teacher": with_heads_of_the_teacher,
    }
    return makers[request.param]()


def test_ctranslate2_runs_students_of_every_kind(student: WhisperForConditionalGeneration, tmp_path: Path) -> None:
    """Heads of layers that a student lacks crash the runtime, at the first word timestamp only."""
    features = toy_windows(student)
    folder = export_ctranslate2(student, toy_processor(), tmp_path / "export")
    result = Ctranslate2Generator(student, toy_processor(), folder=folder, max_new_tokens=12)(features)
    expected = generate_tokens(student, features, max_new_tokens=12)
    assert [one.tokens for one in result] == [one.tokens for one in expected]
    assert len({tuple(one.tokens) for one in expected}) > 1
    start = [student.generation_config.decoder_start_token_id]
    window = ctranslate2.StorageView.from_array(features[:1].numpy())
    (aligned,) = ctranslate2.models.Whisper(str(folder), device="cpu").align(window, start, [[5, 6, 7]], [100])
    assert len(aligned.text_token_probs) == 3


def test_quantizations_are_those_of_ctranslate2() -> None:
    """A type that a new version adds or drops would be refused, or fail after the model has been loaded."""
    from ctranslate2.specs.model_spec import ACCEPTED_MODEL_TYPES

    assert sorted(QUANTIZATIONS) == sorted(ACCEPTED_MODEL_TYPES)


def test_differing_texts_are_named() -> None:
    """A check that compares an export with itself never fails."""
    model, processor = talking_whisper(4), toy_processor()
    rows = [{"audio": (samples, 16_000), "id": f"clip-{row}"} for row, samples in enumerate(RECORDINGS)]
    rows.append({"audio": "gone.wav", "id": "gone"})
    expected = greedy_texts(model, processor, rows, errors=(errors := RowErrors()))
    assert (list(expected), len(errors)) == ([0, 1, 2, 3], 1)

    def wrong(input_features: torch.Tensor) -> list:
        return generate_tokens(model, input_features, max_new_tokens=3)

    check = check_export(model, processor, wrong, rows)
    assert check.num_recordings == 4
    assert check.differing
    for name, text, reference in check.differing:
        assert expected[int(name.removeprefix("clip-"))] == reference != text
    same = check_export(model, processor, partial(generate_tokens, model), rows, expected=expected)
    assert str(same) == "4 of 4 texts equal to those of transformers (100.0%)"


def test_faster_whisper_writes_the_same_text(tmp_path: Path) -> None:
    """It has its own list of suppressed tokens unless it gets one, and pads the features of a window with zeros.

    Zeros are not the features of silence: recordings are padded to the window here, so that both get the same.
    """
    from faster_whisper import WhisperModel

    model = talking_whisper(4)
    folder = export_ctranslate2(model, toy_processor(), tmp_path / "export")
    runtime = WhisperModel(str(folder), device="cpu", compute_type="float32")
    first_timestamp = model.generation_config.no_timestamps_token_id + 1
    expected = generate_tokens(model, toy_windows(model))
    always = [*model.generation_config.suppress_tokens, *range(first_timestamp, model.config.vocab_size)]
    for samples, sequence in zip(RECORDINGS, expected, strict=True):
        padded = np.pad(samples, (0, 30 * 16_000 - len(samples)))
        segments, _ = runtime.transcribe(
            padded, language="en", beam_size=1, temperature=0.0, without_timestamps=True, suppress_tokens=always,
            suppress_blank=False, no_speech_threshold=None, log_prob_threshold=None, compression_ratio_threshold=None,
        )  # fmt: skip
        text = "".join(segment.text for segment in segments).strip()
        assert text == plain_text(sequence.tokens, toy_processor().tokenizer, first_timestamp)


EXPORTS = {"ctranslate2": export_ctranslate2, "ggml": export_ggml, "onnx": export_onnx}


@pytest.mark.parametrize("name", EXPORTS)
def test_folders_in_use_and_unknown_precisions_are_refused(name: str, tmp_path: Path) -> None:
    """An old model's files are loaded beside a new one's."""
    model, processor = official_whisper()
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"`folder`: .* not an empty folder.*Choose a new folder, or empty"):
        EXPORTS[name](model, processor, tmp_path)
    with pytest.raises(FileExistsError, match="`folder`"):
        EXPORTS[name](model, processor, tmp_path / "notes.txt")
    with pytest.raises(ValueError, match=r"`quantization`: expected one of .*float16.*, got 'int5'"):
        EXPORTS[name](model, processor, tmp_path / "export", quantization="int5")
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_an_export_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a model loads and says nonsense."""

    def fail(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(ctranslate2.converters.TransformersConverter, "convert", fail)
    with pytest.raises(OSError, match="no space left"):
        export_ctranslate2(talking_whisper(4), toy_processor(), tmp_path / "export")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "extra"), [("ctranslate2", "ct2"), ("onnx", "onnx")])
def test_a_missing_runtime_names_its_extra(
    name: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    message = rf"'{name}' is not installed: pip install 'hf-distil-whisper\[{extra}\]'"
    with pytest.raises(ImportError, match=message):
        EXPORTS[name](talking_whisper(4), toy_processor(), tmp_path / "export")
