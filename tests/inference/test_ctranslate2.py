"""Generation by CTranslate2: the same tokens as transformers."""

import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from hf_distil_whisper.data.audio import encode_flac
from hf_distil_whisper.inference import ctranslate2 as module
from hf_distil_whisper.inference.ctranslate2 import Ctranslate2Generator
from hf_distil_whisper.inference.encoder import encode
from hf_distil_whisper.inference.generation import generate_tokens
from hf_distil_whisper.pseudo_labels.labeller import pseudo_label_dataset
from official_models import needs_files, small_official_whisper
from talking_models import multilingual_whisper, talking_whisper, toy_windows
from toy_models import toy_audio, toy_processor


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Converted models go to a temporary folder."""
    monkeypatch.setattr(module, "HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize("settings", [{}, {"return_timestamps": True}, {"max_new_tokens": 7}], ids=str)
def test_tokens_and_statistics_are_those_of_transformers(settings: dict) -> None:
    """A student would be taught by another teacher than the one that was scored."""
    model = talking_whisper(4)
    features, generate = toy_windows(model), Ctranslate2Generator(model, toy_processor(), **settings)
    expected = generate_tokens(model, features, **settings, statistics=True)
    result, from_states = generate(features), generate(encoder_hidden_states=encode(model, features))
    assert len({tuple(one.tokens) for one in expected}) > 1
    assert [one.tokens for one in from_states] == [one.tokens for one in expected]
    for ours, theirs in zip(result, expected, strict=True):
        assert ours.tokens == theirs.tokens
        assert ours.truncated == theirs.truncated
        assert ours.no_speech_prob == pytest.approx(theirs.no_speech_prob, rel=1e-3, abs=1e-6)


def test_the_runtime_leaves_the_threads_of_torch_alone() -> None:
    """It sets one number of threads for the process: the encoder beside it would run on one core from then on."""
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        Ctranslate2Generator(talking_whisper(4), toy_processor())
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


def test_a_model_is_converted_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """large-v3 takes minutes to convert: that is for the first run only."""
    model = talking_whisper(4)
    Ctranslate2Generator(model, toy_processor())
    (folder,) = (cache / "hf_distil_whisper" / "ctranslate2").iterdir()
    assert {"model.bin", "tokenizer.json", "preprocessor_config.json"} <= {path.name for path in folder.iterdir()}
    monkeypatch.setattr(module, "convert_to_ctranslate2", lambda *_: pytest.fail("converted again"))
    Ctranslate2Generator(model, toy_processor())


def test_the_language_is_asked_for_or_detected() -> None:
    """A prefix without it makes a multilingual model write any language."""
    model = multilingual_whisper(3)
    features = toy_windows(model)
    for settings in ({"language": "de"}, {"language": "de", "task": "translate"}, {}):
        expected = [one.tokens for one in generate_tokens(model, features, max_new_tokens=10, **settings)]
        generate = Ctranslate2Generator(model, toy_processor(), max_new_tokens=10, **settings)
        assert [one.tokens for one in generate(features)] == expected, settings
        states = encode(model, features)
        assert [one.tokens for one in generate(encoder_hidden_states=states)] == expected, settings


@needs_files
@pytest.mark.parametrize("name", ["whisper-tiny.en", "whisper-tiny"])
def test_official_vocabularies_work(name: str) -> None:
    """With them the runtime detects the language by itself, and knows lists of suppressed tokens."""
    model, processor = small_official_whisper(name, init_std=1.0)
    windows = toy_windows(model, 3)
    for timestamps in (False, True):
        settings = {"max_new_tokens": 8, "return_timestamps": timestamps}
        expected = generate_tokens(model, windows, **settings)
        result = Ctranslate2Generator(model, processor, **settings)(windows)
        assert [one.tokens for one in result] == [one.tokens for one in expected]


def test_labels_are_the_same_table(tmp_path: Path) -> None:
    """What comes after labelling must not know which runtime it was."""
    audio = [{"bytes": encode_flac(toy_audio(2 + row, seed=row)), "path": None} for row in range(3)]
    rows = Dataset.from_dict({"id": list("abc"), "audio": audio, "text": ["the quick", None, "jumps over"]})
    tables = []
    for name in ("ctranslate2", "transformers"):
        options = {"backend": name, "teacher_cache_dir": tmp_path / f"{name}-cache", "output_dir": tmp_path / name}
        tables.append(pseudo_label_dataset(rows, talking_whisper(4), toy_processor(), **options))
    ours, theirs = tables
    assert ours.features == theirs.features
    for column in ("id", "whisper_transcript", "duration", "truncated", "compression_ratio", "wer", "hits"):
        assert ours[column][:] == theirs[column][:], column


def test_what_the_runtime_cannot_do_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each says which flag to change."""
    model, processor = talking_whisper(4), toy_processor()
    rows = Dataset.from_dict({"audio": [{"bytes": encode_flac(toy_audio(1)), "path": None}]})
    settings = {"output_dir": tmp_path / "labels"}
    with pytest.raises(ValueError, match=r"`compute_type` is 'int8'.*only backend='ctranslate2'"):
        pseudo_label_dataset(rows, model, processor, compute_type="int8", **settings)
    with pytest.raises(ValueError, match="int5"):
        Ctranslate2Generator(model, processor, compute_type="int5")
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    with pytest.raises(ImportError, match=r"pip install 'hf-distil-whisper\[ct2\]'"):
        Ctranslate2Generator(model, processor)
