"""`demo`: what it checks before it loads, and how it opens the page."""

import sys
from pathlib import Path

import gradio
import pytest

from hf_distil_whisper.cli.main import main


def command(toys: Path, *more: str) -> list[str]:
    models = ["--model_name_or_path", str(toys / "student"), "--teacher_model_name_or_path", str(toys / "teacher")]
    return ["demo", *models, *more]


def test_a_dry_run_says_what_would_be_shown_where(toys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(toys, "--port", "8123", "--dry_run")) == 0
    said = capsys.readouterr().out
    assert "show both on a page at 127.0.0.1, port 8123" in said
    assert "public" not in said
    assert "memory: " in said


def test_everything_that_is_wrong_is_said_at_once(toys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--model_name_or_path", str(toys / "none"), "--port", "70000"]) == 2
    said = capsys.readouterr().err
    assert "--model_name_or_path: no model at" in said
    assert "--teacher_model_name_or_path is missing" in said
    assert "--port: expected a number from 1 to 65535, got 70000" in said


def test_a_language_that_a_model_does_not_know(toys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(toys, "--language", "tlh", "--dry_run")) == 2
    assert "--language: " in capsys.readouterr().err


def test_without_the_extra_the_command_names_it(
    toys: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Models of gigabytes were loaded before an import failed."""
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(command(toys)) == 2
    assert "pip install 'hf-distil-whisper[demo]'" in capsys.readouterr().err


def test_the_page_is_private_unless_asked_otherwise(toys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A public address for a microphone in an office is not to be a default."""
    opened: list[dict] = []
    monkeypatch.setattr(gradio.Blocks, "launch", lambda page, **options: opened.append(options))
    assert main(command(toys)) == 0
    assert main(command(toys, "--share", "--host", "0.0.0.0", "--port", "8123")) == 0
    private, public = opened
    assert (private["server_name"], private["server_port"], private["share"]) == ("127.0.0.1", None, False)
    assert (public["server_name"], public["server_port"], public["share"]) == ("0.0.0.0", 8123, True)
    assert not private["run_history"]
