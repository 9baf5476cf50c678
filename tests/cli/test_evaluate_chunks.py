"""`evaluate chunks` on toy models and files: what it writes, what it refuses."""

import json
from pathlib import Path

import pytest

from hf_distil_whisper.cli.main import main
from toy_files import write_toy_corpus, write_toy_model


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toys")
    write_toy_model(folder / "student", decoder_layers=2)
    write_toy_corpus(folder / "corpus", train=1, test=2, seconds=3.0)
    return folder


def sweep(toys: Path, *more: str) -> list[str]:
    model, corpus = str(toys / "student"), str(toys / "corpus")
    return ["evaluate", "chunks", "--model_name_or_path", model, "--dataset", corpus, *more]


def test_rows_table_and_figure_are_written(toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = ["--teacher_model_name_or_path", str(toys / "student")]
    argv = sweep(toys, *teacher, "--chunk_lengths", "2", "1", "--strides", "0", "0.25", "--output_dir")
    assert main([*argv, str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "| Chunk length / s | Stride / s | teacher | model |" in said
    heading, table = (tmp_path / "out" / "table.md").read_text().split("\n\nWER / %.\n\n")
    assert heading == "Length and overlap of chunks (Table 23)"
    assert table.strip() in said
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [(row["model"], row["chunk_length"], row["stride"]) for row in rows[4:]] == [
        ("model", 2.0, 0.0),
        ("model", 2.0, 0.25),
        ("model", 1.0, 0.0),
        ("model", 1.0, 0.25),
    ]
    assert {"hits", "substitutions", "deletions", "insertions"} == set(rows[0]["errors"])
    assert (tmp_path / "out" / "wer.png").stat().st_size > 1000


def test_all_problems_are_told_before_a_model_is_loaded(
    toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = sweep(toys, "--chunk_lengths", "40", "--dataset.split", "gone", "--output_dir", str(toys / "corpus"))
    assert main(argv) == 2
    said = capsys.readouterr().err
    for problem in ("--chunk_lengths, --strides: `chunk_length` is 40.0 s", "--dataset: ", "--output_dir: "):
        assert problem in said


def test_a_dry_run_says_how_many_settings_there_are(
    toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(sweep(toys, "--dry_run", "--output_dir", str(tmp_path / "out"))) == 0
    assert "in chunks of 5 lengths and overlaps" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
