"""`align-heads` on toy models: what it stores and prints, and which inputs it refuses before any work."""

import json
from pathlib import Path

import pytest
import soundfile

from hf_distil_whisper.checkpoints import (
    load_model,
    save_checkpoint,
)
from hf_distil_whisper.cli.main import main
from hf_distil_whisper.inference.word_timestamps import set_alignment_heads
from talking_models import talking_whisper
from toy_models import toy_audio, toy_processor


@pytest.fixture
def toys(tmp_path: Path) -> Path:
    """A teacher with a head, a student without, and four recordings, one of them unreadable."""
    teacher = talking_whisper(4)
    save_checkpoint(teacher, toy_processor(), tmp_path / "student")
    set_alignment_heads(teacher, [[2, 1]])
    save_checkpoint(teacher, toy_processor(), tmp_path / "teacher")
    lines = []
    for split in ("validation", "test"):
        for number in range(2):
            name = f"{split}-{number}.flac"
            lines.append(json.dumps({"file_name": name, "text": "", "split": split}))
            (tmp_path / "speech").mkdir(exist_ok=True)
            soundfile.write(tmp_path / "speech" / name, toy_audio(6, seed=number), 16_000)
    (tmp_path / "speech" / "test-1.flac").write_bytes(b"no audio")
    (tmp_path / "speech" / "metadata.jsonl").write_text("\n".join(lines))
    return tmp_path


def command(toys: Path, *more: str) -> list[str]:
    return [
        "align-heads", "--model_name_or_path", str(toys / "student"), "--teacher_model_name_or_path",
        str(toys / "teacher"), "--dataset", str(toys / "speech"), *more,
    ]  # fmt: skip


def test_heads_are_stored_and_printed(
    toys: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Heads that are only printed are lost; a bad row that is not named is not missed."""
    assert main(command(toys, "--test_dataset", str(toys / "speech"), "--max_samples", "1")) == 0
    said = capsys.readouterr().out
    assert "alignment heads [layer, head]: [2, 1]" in said
    assert "in 1 recordings: median error 0.00 s" in said
    assert "median 0.00 s, 90 % within 0.00 s" in said
    assert "within 0.1 s: 100.0%" in said
    assert "test-1" in caplog.text
    assert load_model(toys / "student").generation_config.alignment_heads == [[2, 1]]
    audio = str(toys / "speech" / "test-0.flac")
    argv = ["transcribe", audio, "--model_name_or_path", str(toys / "student"), "--word_timestamps"]
    assert main(argv) == 0
    assert capsys.readouterr().out.startswith("[    0.00 - ")
    assert main([*argv, "--output_format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["words"]
    assert main([*argv, "--output_format", "srt"]) == 2
    assert "--word_timestamps: srt holds segments" in capsys.readouterr().err


def test_a_dry_run_stores_nothing(toys: Path) -> None:
    before = (toys / "student" / "generation_config.json").read_text()
    assert main(command(toys, "--dry_run")) == 0
    assert (toys / "student" / "generation_config.json").read_text() == before


def test_inputs_are_checked_before_any_work(toys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_checkpoint(talking_whisper(4, num_mel_bins=128), toy_processor(), toys / "other")
    assert main(command(toys, "--teacher_model_name_or_path", str(toys / "other"), "--language", "de")) == 2
    said = capsys.readouterr().err
    assert "--teacher_model_name_or_path: The student has 80 mel bins, the teacher 128" in said
    assert "--language: The model is English-only" in said
    assert main(["align-heads"]) == 2
    said = capsys.readouterr().err
    assert all(
        f"--{flag} is missing" in said for flag in ("model_name_or_path", "teacher_model_name_or_path", "dataset")
    )
    assert main(command(toys, "--max_samples", "0")) == 2
    assert "--max_samples: expected a whole number above 0" in capsys.readouterr().err
    audio = str(toys / "speech" / "test-0.flac")
    assert main(["transcribe", audio, "--model_name_or_path", str(toys / "student"), "--word_timestamps"]) == 2
    assert "--word_timestamps: The model's generation_config has no `alignment_heads`" in capsys.readouterr().err
