"""`export`: the folders that it writes, the texts that it compares, and what it refuses before it writes."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from hf_distil_whisper.checkpoints import save_checkpoint
from hf_distil_whisper.cli import export
from hf_distil_whisper.inference.generation import TokenSequence
from official_models import needs_files, official_whisper
from toy_files import spoil, write_toy_corpus


@pytest.fixture
def argv(toys: Path, tmp_path: Path) -> list[str]:
    """Of an export of the student into the folder `out`."""
    return ["export", str(toys / "student"), "--format", "ctranslate2", "--output_dir", str(tmp_path / "out")]


def test_every_quantization_is_written_and_compared(tmp_path, toys, argv, printed):
    """An export that nobody has run is a guess."""
    said = printed(*argv, "--quantization", "float32", "int8", "--dataset", toys / "corpus")
    assert "ctranslate2 float32: 2 of 2 texts equal to those of transformers (100.0%)\n" in said
    assert "ctranslate2 int8: " in said
    for name in ("float32", "int8"):
        files = {file.name for file in (tmp_path / "out" / name).iterdir()}
        assert {"model.bin", "tokenizer.json", "preprocessor_config.json"} <= files


def test_texts_that_differ_are_printed(tmp_path, monkeypatch, toys, argv, printed):
    """A share alone does not tell rounding from a broken export."""
    wrong = [TokenSequence([0, 1, 2], False)] * 2
    monkeypatch.setattr(
        export.Ctranslate2Generator, "__call__", lambda self, input_features: wrong[: len(input_features)]
    )
    said = printed(*argv, "--dataset", toys / "corpus")
    assert "0 of 2 texts equal" in said
    assert said.count(" instead of ") == 2


def test_clips_need_no_text_and_a_bad_one_costs_itself(tmp_path, argv, printed):
    """One quantization goes to the folder itself; files that cannot be read are left out of the comparison."""
    corpus = write_toy_corpus(tmp_path / "corpus", train=3, test=1)
    spoil(corpus, 0)
    clips = [str(tmp_path / "corpus" / f"0{index}.wav") for index in range(4)]
    said = printed(*argv, "--audio", *clips)
    assert "ctranslate2 float32: 2 of 2 texts equal" in said
    assert "2 rows left out" in said
    assert (tmp_path / "out" / "model.bin").is_file()


def test_a_dry_run_writes_nothing(tmp_path, toys, argv, printed):
    said = printed(*argv, "--quantization", "int8", "float16", "--dataset", toys / "corpus", "--dry_run")
    assert f"1. export {toys / 'student'} to ctranslate2 in int8: {tmp_path / 'out' / 'int8'}" in said
    assert not (tmp_path / "out").exists()


@needs_files
def test_whisper_cpp_runs_an_official_vocabulary(tmp_path, printed):
    model, processor = official_whisper()
    model.generation_config.max_length = 10
    save_checkpoint(model, processor, tmp_path / "model")
    corpus = write_toy_corpus(tmp_path / "corpus")
    argv = ["export", str(tmp_path / "model"), "--format", "ggml", "--dataset", corpus]
    assert "ggml float16: " in printed(*argv, "--output_dir", tmp_path / "out")
    assert (tmp_path / "out" / "ggml-model.bin").is_file()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--quantization", "int5"], "--quantization: expected some of float32, float16"),
        (["--format", "ggml"], "--format ggml: whisper.cpp has the official vocabularies built in"),
        (["--format", "ggml", "--quantization", "float32"], "for --format ggml, got 'float32'"),
        (["--language", "de"], "--language: "),
        (["--audio", "nowhere.wav"], "--audio: nowhere.wav does not exist"),
        (["--batch_size", "0"], "--batch_size: expected a whole number above 0, got 0"),
        (["--dataset.split", "none"], "no split 'none'"),
        # Files of two models in one folder are loaded together.
        (["--output_dir", "TOYS"], "toys0 holds another run already"),
    ],
)
def test_wrong_input_is_refused_first(more, message, tmp_path, toys, argv, refused):
    more = [word.replace("TOYS", str(toys)) for word in more]
    assert message in refused(*argv, "--dataset", toys / "corpus", *more)
    assert not (tmp_path / "out").exists()


def test_missing_flags_are_named(refused):
    said = refused("export")
    assert all(f"--{flag} is missing" in said for flag in ("model_name_or_path", "format", "output_dir", "audio"))


def test_a_missing_runtime_names_its_extra(tmp_path, monkeypatch, toys, argv, refused):
    """Found out before the model is loaded, not after it was converted."""
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxscript" else find_spec(name))
    said = refused(*argv, "--format", "onnx", "--dataset", toys / "corpus")
    assert "--format onnx needs onnxscript, which is not installed: pip install 'hf-distil-whisper[onnx]'" in said
