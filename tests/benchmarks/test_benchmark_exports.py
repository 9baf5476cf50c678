"""The table of exports beside transformers."""

from pathlib import Path

from toy_scripts import Printed, Refused

import exports
from hf_distil_whisper import save_checkpoint
from talking_models import multilingual_whisper
from toy_models import toy_processor


def _rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_a_row_for_transformers_and_each_export(toys: Path, printed: Printed) -> None:
    """The first row is what the others are compared with: all texts equal, as fast as itself."""
    flags = ["--model_name_or_path", toys / "teacher", "--dataset", toys / "corpus", "--repeats", 1]
    rows = _rows(printed(exports.main, *flags, "--exports", "ctranslate2/float32", "onnx/float32", "ctranslate2/int8"))
    assert [row[:2] for row in rows] == [
        ["transformers", "float32"], ["ctranslate2", "float32"], ["onnx", "float32"], ["ctranslate2", "int8"],
    ]  # fmt: skip
    assert rows[0][2] == rows[1][2] == rows[2][2] == "6 (100.0%)"
    assert rows[0][3] == rows[1][3] == rows[2][3]
    assert rows[0][6] == "1.00"
    assert float(rows[3][4]) < float(rows[1][4])


def test_a_multilingual_model_is_told_the_language_in_every_runtime(
    toys: Path, tmp_path: Path, printed: Printed, refused: Refused
) -> None:
    save_checkpoint(multilingual_whisper(), toy_processor(), tmp_path)
    flags = ["--model_name_or_path", tmp_path, "--dataset", toys / "corpus", "--repeats", 1]
    refused(exports.main, [str(flag) for flag in flags], "--language is missing: ")
    flags += ["--language", "de"]
    rows = _rows(printed(exports.main, *flags, "--exports", "ctranslate2/float32", "onnx/float32"))
    assert {row[2] for row in rows} == {"6 (100.0%)"}
