"""Settings of long form: read from flags and recipes, handed to the algorithm that they belong to, else refused."""

from pathlib import Path
from typing import Any

import pytest
import soundfile
import yaml

from hf_distil_whisper.checkpoints import save_checkpoint
from hf_distil_whisper.cli import transcribe
from hf_distil_whisper.cli.config import InputError
from hf_distil_whisper.cli.inputs import as_fallback
from hf_distil_whisper.cli.main import main
from hf_distil_whisper.evaluation import long_form
from hf_distil_whisper.inference.transcribe import (
    TemperatureFallback,
    transcribe_sequential,
)
from talking_models import talking_whisper
from toy_files import write_toy_corpus
from toy_models import toy_audio, toy_processor


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says words, a recording of two windows, and a corpus."""
    folder = tmp_path_factory.mktemp("toys")
    save_checkpoint(talking_whisper(4), toy_processor(), folder / "model")
    soundfile.write(folder / "long.flac", toy_audio(33, seed=2), 16_000)
    write_toy_corpus(folder / "corpus")
    return folder


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The options of every sequential transcription."""
    options: list[dict[str, Any]] = []

    def noted(*parts: Any, **more: Any) -> Any:
        options.append(more)
        return transcribe_sequential(*parts, **more)

    monkeypatch.setattr(transcribe, "transcribe_sequential", noted)
    monkeypatch.setattr(long_form, "transcribe_sequential", noted)
    return options


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, False),
        ("false", False),
        (False, False),
        ("true", True),
        (True, True),
        ("{logprob_threshold: -0.8}", TemperatureFallback(logprob_threshold=-0.8)),
        ({"temperatures": [0.0, 0.5]}, TemperatureFallback(temperatures=(0.0, 0.5))),
        ({"temperatures": 0.0, "no_speech_threshold": None}, TemperatureFallback((0.0,), no_speech_threshold=None)),
    ],
)
def test_a_fallback_is_a_switch_or_its_settings(value: object, expected: object) -> None:
    assert as_fallback(value) == expected


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("talk.wav", "expected true, false or a mapping"),
        ("{logprob_treshold: -1}", "did you mean 'logprob_threshold'"),
        ("{logprob_threshold: low}", "logprob_threshold: expected a number or null, got 'low'"),
        ("{temperatures: [0, warm]}", "temperatures: expected numbers such as"),
        ("{temperatures: [-1]}", "at least 0"),
    ],
)
def test_what_is_no_fallback_is_named(value: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        as_fallback(value)


def test_transcribe_and_evaluate_hand_them_on(toys: Path, tmp_path: Path, heard: list[dict[str, Any]]) -> None:
    """A threshold that is parsed and ignored looks like one that is never reached."""
    model = ["--model_name_or_path", str(toys / "model")]
    assert main(["transcribe", str(toys / "long.flac"), *model, "--temperature_fallback"]) == 0
    assert heard.pop()["temperature_fallback"] is True
    recipe = tmp_path / "recipe.yaml"
    settings = {
        "long_form_method": "sequential",
        "temperature_fallback": {"compression_ratio_threshold": 2.0},
        "condition_on_prev_tokens": True,
        "long_form_datasets": {"long": {"path": str(toys / "corpus"), "split": "train", "max_samples": 1}},
    }
    recipe.write_text(yaml.safe_dump(settings))
    assert main(["evaluate", str(recipe), *model]) == 0
    assert heard[-1]["temperature_fallback"] == TemperatureFallback(compression_ratio_threshold=2.0)
    assert heard[-1]["condition_on_prev_tokens"] is True


@pytest.mark.parametrize(
    ("command", "flags", "words"),
    [
        ("transcribe", ["--method", "chunked", "--temperature_fallback", "true"], "belongs to --method sequential"),
        ("transcribe", ["--stride", "2"], "--stride: belongs to --method chunked"),
        ("evaluate", ["--condition_on_prev_tokens"], "belongs to --long_form_method sequential"),
        (
            "transcribe",
            ["--temperature_fallback", "true", "--assistant_model_name_or_path", "MODEL"],
            "drafts for greedy decoding only",
        ),
    ],
)
def test_settings_of_the_other_algorithm_are_refused(
    command: str, flags: list[str], words: str, toys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They would have no effect, and nobody would know."""
    what = {"transcribe": [str(toys / "long.flac")], "evaluate": ["--long_form_datasets.long", str(toys / "corpus")]}
    flags = [str(toys / "model") if flag == "MODEL" else flag for flag in flags]
    assert main([command, *what[command], "--model_name_or_path", str(toys / "model"), *flags]) == 2
    assert words in capsys.readouterr().err
