"""All scripts: public names only, nothing compared under two normalisers, names of models that differ."""

import ast
import importlib
from pathlib import Path

import pytest
from toy_scripts import Refused

import hf_distil_whisper
from hf_distil_whisper import save_checkpoint
from tables import short_names
from talking_models import multilingual_whisper
from toy_models import toy_processor

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("path", sorted(BENCHMARKS.rglob("*.py")), ids=lambda path: path.stem)
def test_only_public_names_are_imported(path: Path) -> None:
    """A script on private names breaks with the next change of structure, when nobody runs it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "hf_distil_whisper":
            for name in (alias.name for alias in node.names):
                assert not any(part.startswith("_") for part in (*node.module.split("."), name))
                at_top = node.module == "hf_distil_whisper"
                assert at_top == (name in hf_distil_whisper.__all__), f"import {name} from the top level"
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("script", ["noise", "chunk_length", "algorithms", "report"])
def test_models_under_different_normalisers_are_not_compared(
    script: str, toys: Path, tmp_path: Path, refused: Refused
) -> None:
    """Their rates would differ by what counts as an error."""
    save_checkpoint(multilingual_whisper(), toy_processor(), tmp_path / "multilingual")
    main = importlib.import_module(script).main
    models = ["--model_name_or_path", str(toys / "student"), "--teacher_model_name_or_path"]
    argv = [*models, str(tmp_path / "multilingual"), "--dataset", str(toys / "corpus")]
    if script == "report":
        names = f"{{teacher: {tmp_path / 'multilingual'}, student: {toys / 'student'}}}"
        argv = ["--models", names, "--eval_datasets", str(toys / "corpus"), "--output_dir", str(tmp_path / "out")]
    refused(main, argv, "the models would be normalised differently")
    refused(main, [*argv, "--language", "klingon"], "--language: ")
    main([*argv, "--normalizer", "basic", "--dry_run"])


def test_short_names_are_as_long_as_it_takes_to_be_different(tmp_path: Path) -> None:
    """With two models under one name, the second replaces the first in the table."""
    paths = ["openai/whisper-tiny.en", "runs/a/student", "runs/b/student/", "/mnt/a/student", "."]
    assert short_names(paths) == {
        "whisper-tiny.en": "openai/whisper-tiny.en",
        "runs/a/student": "runs/a/student",
        "b/student": "runs/b/student/",
        "mnt/a/student": "/mnt/a/student",
        ".": ".",
    }
    assert short_names(["teacher", "runs/teacher", "teacher"]) == {
        "teacher": "teacher",
        "runs/teacher": "runs/teacher",
    }
    files = [str(tmp_path / name) for name in ("pub.flac", "street.wav", "street.flac")]
    for file in files[1:]:
        Path(file).touch()
    assert list(short_names(files[:2])) == ["pub.flac", "street"]  # the name of a missing file stays whole
    assert list(short_names(files[1:])) == files[1:]
    assert short_names([]) == {}
