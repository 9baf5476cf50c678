"""`benchmark latency`: what it prints and writes, and what it refuses before anything is timed."""

import json
from pathlib import Path

import pytest

from hf_distil_whisper.cli.main import main
from toy_files import write_toy_model


def flags(toys: Path, *more: str) -> list[str]:
    models = ["--model_name_or_path", str(toys / "student"), "--teacher_model_name_or_path", str(toys / "teacher")]
    return ["benchmark", "latency", *models, "--dataset", str(toys / "corpus"), *more]


def test_models_are_timed_and_every_row_is_written(
    toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--batch_sizes", "1", "2", "--caches", "dynamic", "static", "--num_tokens", "3", "--repeats", "1"]
    assert main(flags(toys, *more, "--memory", "false", "--output_dir", str(tmp_path / "out"))) == 0
    said = capsys.readouterr().out
    assert "| RTF / 10⁻³ | sdpa, batch 1 | sdpa, batch 2 | sdpa, static cache, batch 1 |" in said
    assert "2 recordings of 2 s in all, medians of 1, float32" in said
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["dtype"] == "float32"
    assert [one["model"] for one in results["rows"]] == ["teacher", "student"] * 4
    assert all(one["num_tokens"] == 3 * one["num_windows"] for one in results["rows"])
    assert {one["timestamps"] for one in results["rows"] if one["model"] == "student"} == {False}
    assert results["rows"][1]["relative_latency"] > 0


def test_samples_are_taken_of_every_set(toys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """256 of the first set alone would be another protocol than the paper's."""
    corpus = toys / "corpus"
    sets = f"{{read: {{path: {corpus}, split: train}}, spoken: {corpus}}}"
    argv = flags(toys)
    argv[argv.index("--dataset") + 1] = sets
    assert main([*argv, "--samples", "2", "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert said.count("in 2 rows") == 2
    assert "time teacher and student, 3 times in turn, at batch sizes 1, 4, 16, with sdpa and a dynamic cache" in said


def test_models_of_one_name_keep_their_paths(toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two rows under one name would be one."""
    other = write_toy_model(tmp_path / "student")
    assert main(flags(toys, "--other_models", other, "--dry_run")) == 0
    names = f"teacher and {toys.name}/student and {tmp_path.name}/student"
    assert f"time {names}, 3 times in turn" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--samples", "0"], "--samples: expected a whole number above 0, got 0"),
        (["--batch_sizes", "1", "0"], "--batch_sizes: expected whole numbers above 0, got [1, 0]"),
        (["--caches", "both"], "--caches: expected some of dynamic, static, got ['both']"),
        (
            ["--attn_implementations", "flash"],
            "--attn_implementations: expected some of sdpa, eager, flash_attention_2",
        ),
        (["--num_tokens", "900"], "can write 1 to"),
        (["--language", "de"], "--language: "),
        (["--dataset.split", "none"], "no split 'none'"),
    ],
)
def test_wrong_input_is_refused_first(
    more: list[str], message: str, toys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags(toys, *more)) == 2
    assert message in capsys.readouterr().err


def test_missing_flags_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "latency"]) == 2
    said = capsys.readouterr().err
    assert "--model_name_or_path is missing" in said
    assert "--dataset is missing" in said
