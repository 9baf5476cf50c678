"""`evaluate algorithms` on toy models and files: the table, what it writes, what it refuses."""

import json
from pathlib import Path

import pytest

from hf_distil_whisper.cli.main import main


def command(toys: Path, *more: str) -> list[str]:
    models = ["--model_name_or_path", str(toys / "student"), "--teacher_model_name_or_path", str(toys / "teacher")]
    return ["evaluate", "algorithms", *models, "--dataset", str(toys / "corpus"), "--repeats", "1", *more]


def test_table_and_counts_are_written(toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(toys, "--output_dir", str(tmp_path / "out"))) == 0
    said = capsys.readouterr().out
    assert (tmp_path / "out" / "table.md").read_text() in said
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["dataset"]
    assert [(row["algorithm"], row["model"]) for row in rows] == [
        ("sequential", "teacher"),
        ("sequential", "model"),
        ("chunked", "teacher"),
        ("chunked", "model"),
    ]
    assert "| teacher | sequential | " in said
    assert "times as fast as teacher, sequential" in said


def test_several_sets_are_shown_one_by_one(toys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = command(toys)
    argv[argv.index("--dataset")] = "--dataset.first"
    assert main([*argv, "--dataset.second", str(toys / "corpus")]) == 0
    said = capsys.readouterr().out
    assert "| Dataset | teacher sequential | model sequential | teacher chunked | model chunked |" in said
    assert [
        line.split()[1] for line in said.splitlines() if line.startswith(("| first", "| second", "| Average"))
    ] == [
        "first",
        "second",
        "Average",
    ]


def test_all_problems_are_told_at_once(toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["evaluate", "algorithms", "--dataset.path", str(tmp_path / "gone"), "--output_dir", str(toys / "corpus")]
    assert main(argv) == 2
    said = capsys.readouterr().err
    for problem in ("--model_name_or_path is missing", "--dataset: ", "--output_dir: "):
        assert problem in said
    assert main(command(toys, "--repeats", "0")) == 2
    assert "--repeats: expected a whole number above 0, got 0" in capsys.readouterr().err
