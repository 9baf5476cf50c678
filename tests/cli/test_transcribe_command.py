"""`transcribe` on toy models and files: the formats that it writes, what it leaves out, settings that it hands on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml

from hf_distil_whisper.checkpoints import save_checkpoint
from hf_distil_whisper.cli import transcribe
from hf_distil_whisper.evaluation import long_form
from hf_distil_whisper.inference.sequential import StuckTranscriptionError
from hf_distil_whisper.inference.transcribe import TemperatureFallback, transcribe_sequential
from hf_distil_whisper.student import create_student
from talking_models import talking_whisper
from toy_files import write_toy_corpus
from toy_models import toy_audio, toy_processor


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says words, and two recordings of 12 s, one of them in stereo at 44.1 kHz."""
    folder = tmp_path_factory.mktemp("toys")
    save_checkpoint(talking_whisper(4), toy_processor(), folder / "model")
    soundfile.write(folder / "one.flac", toy_audio(12, seed=1), 16_000)
    soundfile.write(folder / "two.wav", np.stack([toy_audio(33, seed=2)] * 2, axis=1), 44_100)
    return folder


def command(toys: Path, *more: str, files: tuple[str, ...] = ("one.flac", "two.wav")) -> list[str]:
    recordings = [str(toys / file) for file in files]
    return ["transcribe", *recordings, "--model_name_or_path", str(toys / "model"), "--method", "chunked", *more]


@pytest.mark.parametrize(
    ("form", "start"), [("srt", "1\n00:00:0"), ("vtt", "WEBVTT\n\n00:00:0"), ("txt", ""), ("json", '{\n  "audio"')]
)
def test_one_file_a_recording_in_every_form(form, start, tmp_path, toys, printed, refused):
    """Subtitles without times are empty; a form that is parsed and ignored gives text under another name."""
    argv = command(toys, "--output_format", form, "--output_dir", str(tmp_path / "out"))
    assert str(tmp_path / "out" / f"one.{form}") in printed(*argv)
    texts = [(tmp_path / "out" / f"{name}.{form}").read_text(encoding="utf-8") for name in ("one", "two")]
    for text in texts:
        assert text.startswith(start)
        assert text.strip() > start.strip()
        assert ("-->" in text) == (form in ("srt", "vtt"))
    assert texts[0] != texts[1]
    if form == "json":
        assert set(json.loads(texts[0])) == {"audio", "text", "segments", "statistics"}
    assert f"one.{form} exists already" in refused(*argv)


def test_without_a_folder_json_is_a_line_each_and_subtitles_are_of_one_recording(toys, printed, refused):
    """Two SubRip files in a row are none."""
    text = printed(*command(toys, "--output_format", "json", "--return_timestamps"))
    lines = [json.loads(line) for line in text.splitlines()]
    assert [Path(line["audio"]).name for line in lines] == ["one.flac", "two.wav"]
    assert all(line["segments"] for line in lines)
    assert printed(*command(toys)).startswith(f"{toys / 'one.flac'}: ")
    assert "--output_dir is missing" in refused(*command(toys, "--output_format", "srt"))
    assert printed(*command(toys, "--output_format", "srt", files=("one.flac",))).startswith("1\n")


def test_recordings_of_one_name_would_overwrite_each_other(tmp_path, toys, refused):
    argv = command(toys, "--output_dir", str(tmp_path), files=("one.flac", "other/one.wav"))
    assert "2 recordings would be written to" in refused(*argv)
    assert "is a file, expected a folder" in refused(*command(toys, "--output_dir", str(toys / "one.flac")))


def test_a_recording_that_is_missing_or_without_end_or_samples_is_left_out(tmp_path, monkeypatch, toys, refused):
    """A model that does not move on in one file ended the command with a traceback."""
    soundfile.write(toys / "empty.wav", np.zeros(0), 16_000)
    whole = transcribe.transcribe_chunked

    def stuck(model: object, processor: object, file: str, **options: object) -> object:
        if file.endswith("one.flac"):
            raise StuckTranscriptionError("does not move on")
        return whole(model, processor, file, **options)

    monkeypatch.setattr(transcribe, "transcribe_chunked", stuck)
    argv = command(toys, "--output_dir", str(tmp_path), files=("one.flac", "empty.wav", "none.wav", "two.wav"))
    message = refused(*argv)
    assert "3 of 4 files could not be transcribed" in message
    assert "one.flac: does not move on" in message
    assert "empty.wav: expected audio, got 0 samples" in message
    assert "none.wav" in message
    assert [file.name for file in tmp_path.iterdir()] == ["two.txt"]


@pytest.mark.parametrize("method", ["chunked", "sequential"])
def test_an_assistant_drafts_by_both_algorithms(method, tmp_path, toys, printed):
    """Chunks come in batches: the assistant drafts there too, and the text stays the model's."""
    save_checkpoint(create_student(talking_whisper(4), decoder_layers=1), toy_processor(), tmp_path / "student")
    outputs = []
    for more in ([], ["--assistant_model_name_or_path", str(tmp_path / "student")]):
        text = printed(*command(toys, "--output_format", "json", *more), "--method", method)
        outputs.append([json.loads(line) for line in text.splitlines()])
    alone, assisted = outputs
    assert [one["text"] for one in assisted] == [one["text"] for one in alone]
    assert all(one["statistics"]["drafts"]["drafted"] > 0 for one in assisted)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The options of every sequential transcription."""
    options: list[dict[str, Any]] = []

    def recorded(*parts: Any, **more: Any) -> Any:
        options.append(more)
        return transcribe_sequential(*parts, **more)

    monkeypatch.setattr(transcribe, "transcribe_sequential", recorded)
    monkeypatch.setattr(long_form, "transcribe_sequential", recorded)
    return options


def test_settings_of_long_form_are_handed_on(tmp_path, calls, toys, printed):
    """A threshold that is parsed and ignored looks like one that is never reached."""
    model = ["--model_name_or_path", str(toys / "model")]
    printed("transcribe", toys / "two.wav", *model, "--temperature_fallback", "--prompt", "The quick brown fox")
    options = calls.pop()
    assert (options["temperature_fallback"], options["prompt"]) == (True, "The quick brown fox")
    texts = [printed(*command(toys, *more)) for more in ([], ["--prompt", "The quick brown fox"])]
    assert texts[0] != texts[1]
    recipe, corpus = tmp_path / "recipe.yaml", write_toy_corpus(tmp_path / "corpus")
    settings = {
        "long_form_method": "sequential",
        "temperature_fallback": {"compression_ratio_threshold": 2.0},
        "condition_on_prev_tokens": True,
        "long_form_datasets": {"long": {"path": corpus, "split": "train", "max_samples": 1}},
    }
    recipe.write_text(yaml.safe_dump(settings))
    printed("evaluate", recipe, *model)
    assert calls[-1]["temperature_fallback"] == TemperatureFallback(compression_ratio_threshold=2.0)
    assert calls[-1]["condition_on_prev_tokens"] is True


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method", "chunked", "--temperature_fallback", "true"], "belongs to --method sequential"),
        (["--stride", "2"], "--stride: belongs to --method chunked"),
        (
            ["--temperature_fallback", "true", "--assistant_model_name_or_path", "MODEL"],
            "drafts for greedy decoding only",
        ),
    ],
)
def test_settings_of_the_other_algorithm_are_refused(flags, message, toys, refused):
    """They would have no effect, unnoticed."""
    flags = [str(toys / "model") if flag == "MODEL" else flag for flag in flags]
    assert message in refused("transcribe", toys / "one.flac", "--model_name_or_path", toys / "model", *flags)
