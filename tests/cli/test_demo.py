"""`demo`: what it checks before it loads, and how it opens the page."""

import sys
from pathlib import Path

import gradio
import pytest


@pytest.fixture
def argv(toys: Path) -> list[object]:
    return ["demo", "--model_name_or_path", toys / "student", "--teacher_model_name_or_path", toys / "teacher"]


def test_a_dry_run_says_what_would_be_shown_where(argv, printed):
    said = printed(*argv, "--port", "8123", "--dry_run")
    assert "show both on a page at 127.0.0.1, port 8123" in said
    assert "public" not in said
    assert "memory: " in said


def test_everything_that_is_wrong_is_said_at_once(toys, argv, refused):
    said = refused("demo", "--model_name_or_path", toys / "none", "--port", "70000")
    assert "--model_name_or_path: no model at" in said
    assert "--teacher_model_name_or_path is missing" in said
    assert "--port: expected a number from 1 to 65535, got 70000" in said
    assert "--language: " in refused(*argv, "--language", "tlh", "--dry_run")


def test_without_the_extra_the_command_names_it(monkeypatch, argv, refused):
    """Models of gigabytes were loaded before an import failed."""
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert "pip install 'hf-distil-whisper[demo]'" in refused(*argv)


def test_the_page_is_private_unless_asked_otherwise(monkeypatch, argv, printed):
    """A public address for a microphone in an office is not to be a default."""
    opened: list[dict] = []
    monkeypatch.setattr(gradio.Blocks, "launch", lambda page, **options: opened.append(options))
    printed(*argv)
    printed(*argv, "--share", "--host", "0.0.0.0", "--port", "8123")
    private, public = opened
    assert (private["server_name"], private["server_port"], private["share"]) == ("127.0.0.1", None, False)
    assert (public["server_name"], public["server_port"], public["share"]) == ("0.0.0.0", 8123, True)
    assert not private["run_history"]
