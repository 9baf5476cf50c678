"""The ready-made Space: its metadata is read by the Hub, its app builds the page from two models."""

import ast
import importlib.util
import re
from pathlib import Path

import gradio
import pytest
from huggingface_hub import SpaceCard

import hf_distil_whisper
from toy_files import write_toy_model

ROOT = Path(__file__).parents[1]
SPACE = ROOT / "examples" / "space"


def test_the_metadata_is_what_the_hub_reads() -> None:
    """A Space whose header does not parse is shown as a text file."""
    data = SpaceCard.load(SPACE / "README.md").data
    assert (data.sdk, data.app_file, data.license) == ("gradio", "app.py", "apache-2.0")
    assert (SPACE / data.app_file).is_file()
    assert f"gradio=={data.sdk_version}\n" in (ROOT / "constraints.txt").read_text()
    assert data.python_version == "3.11"
    assert len(data.short_description) <= 60
    assert data.models == data.preload_from_hub


def test_the_models_of_the_metadata_are_those_of_the_app() -> None:
    """A model that is not fetched while the Space is built is fetched at every start."""
    defaults = re.findall(r'_MODEL", "(.*?)"', (SPACE / "app.py").read_text())
    assert defaults == SpaceCard.load(SPACE / "README.md").data.models


def test_the_app_is_short_and_uses_public_names_only() -> None:
    text = (SPACE / "app.py").read_text()
    assert len(text.splitlines()) <= 40
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            assert node.module == "hf_distil_whisper"
            assert {alias.name for alias in node.names} <= set(hf_distil_whisper.__all__)


def test_the_requirements_name_the_extra() -> None:
    lines = (SPACE / "requirements.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == ["hf-distil-whisper[demo]"]


def test_the_app_builds_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_toy_model(tmp_path / "teacher")
    write_toy_model(tmp_path / "student", decoder_layers=2)
    monkeypatch.setenv("STUDENT_MODEL", str(tmp_path / "student"))
    monkeypatch.setenv("TEACHER_MODEL", str(tmp_path / "teacher"))
    spec = importlib.util.spec_from_file_location("space_app", SPACE / "app.py")
    app = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(app)
    assert isinstance(app.demo, gradio.Blocks)
