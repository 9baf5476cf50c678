"""`benchmark early-exit`: its table and results, and what it refuses before anything is heard."""

import json
from pathlib import Path

import pytest

from cli_benchmark_early_exit import save_early_exits
from early_exit import EarlyExit
from hf_distil_whisper.cli.main import main
from hf_distil_whisper.evaluation.evaluate import EvaluationResult
from hf_distil_whisper.metrics import WordErrors
from toy_files import write_toy_corpus, write_toy_model


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `teacher`, `student` (1 decoder layer) and `corpus`."""
    folder = tmp_path_factory.mktemp("toys")
    write_toy_model(folder / "teacher")
    write_toy_model(folder / "student", decoder_layers=1)
    write_toy_corpus(folder / "corpus")
    return folder


def flags(toys: Path, *more: str) -> list[str]:
    model = ["--model_name_or_path", str(toys / "teacher")]
    return ["benchmark", "early-exit", *model, "--dataset", str(toys / "corpus"), *more]


def test_the_sweep_is_printed_and_written(toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags(toys, "--thresholds", "1", "0.5", "--output_dir", str(tmp_path / "out"))) == 0
    said = capsys.readouterr().out
    assert "| 1.0000 | 4.0 | 1.00 |" in said
    assert "2 recordings" in said
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [one["threshold"] for one in results["thresholds"]] == [1.0, 0.5]
    full = results["thresholds"][0]
    assert full["num_layers"] == 4 * full["num_tokens"]
    words = full["hits"] + full["substitutions"] + full["deletions"]
    assert words > 0
    assert full["wer"] == (words - full["hits"] + full["insertions"]) / words


def test_a_rate_without_references_is_none(tmp_path: Path) -> None:
    """0.0 would be the best model of all."""
    found = EarlyExit(0.9, 8, 4, 2.0, EvaluationResult(WordErrors(), [], 1.0, 4.0))
    save_early_exits([found], str(tmp_path))
    (row,) = json.loads((tmp_path / "results.json").read_text())["thresholds"]
    assert (row["wer"], row["hits"], row["mean_layers"]) == (None, 0, 2.0)


def test_the_papers_sweep_is_the_default(toys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags(toys, "--samples", "1", "--dry_run")) == 0
    said = capsys.readouterr().out
    assert "above 1, 0.9875, 0.975, 0.9625, 0.95, 0.9375, 0.925" in said
    assert "in 1 rows" in said


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--thresholds", "0.9", "1.5"], "--thresholds: expected numbers from 0 to 1, got [0.9, 1.5]"),
        (["--samples", "0"], "--samples: expected a whole number above 0, got 0"),
        (["--language", "de"], "--language: "),
        (["--model_name_or_path", "student"], "the decoder has 1 layer, expected more"),
        (["--dataset.text_column", "words"], "words"),
    ],
)
def test_wrong_input_is_refused_first(
    more: list[str], message: str, toys: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(toys)
    assert main(flags(toys, *more)) == 2
    assert message in capsys.readouterr().err
