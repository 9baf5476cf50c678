"""`train --streaming`: the rows are read as they come, filtered as they come, and gone on with after a stop."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_distil_whisper.cli.main import main
from toy_files import write_toy_corpus, write_toy_model


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `teacher` and two sources, `read` and `spoken`, as `pseudo-label` writes them."""
    folder = tmp_path_factory.mktemp("toys")
    write_toy_model(folder / "teacher")
    for name, rows in (("read", 6), ("spoken", 2)):
        corpus = write_toy_corpus(folder / f"{name} corpus", train=rows)
        argv = ["--teacher_model_name_or_path", str(folder / "teacher"), "--dataset", corpus]
        assert main(["pseudo-label", *argv, "--output_dir", str(folder / name)]) == 0
    return folder


def training(toys: Path, folder: Path, *more: str, weights: bool = True) -> list[str]:
    argv = ["train", "--teacher_model_name_or_path", str(toys / "teacher"), "--output_dir", str(folder)]
    argv += ["--decoder_layers", "2", "--per_device_train_batch_size", "2", "--disable_tqdm", "true", "--use_cpu"]
    for name, weight in (("read", "2"), ("spoken", "1")):
        argv += [f"--train_dataset.{name}.path", str(toys / name), f"--train_dataset.{name}.wer_threshold", "99"]
        argv += [f"--train_dataset.{name}.weight", weight] if weights else []
    return [*argv, "--streaming", "true", "--shuffle_buffer", "2", "--save_steps", "2", *more]


def test_a_stopped_training_ends_with_the_student_of_an_undisturbed_one(
    toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    settings = ["--max_steps", "4", "--learning_rate", "0.01", "--lr_scheduler_type", "constant"]
    assert main(training(toys, whole, *settings)) == 0
    said = capsys.readouterr().out
    assert "keep the rows of read with WER ≤ 9900.0%, as they come" in said
    assert "train 4 steps of 2 rows: 0.8 · KL + 1 · PL" in said
    assert main(training(toys, broken, *settings, "--max_steps", "2")) == 0
    assert main(training(toys, broken, *settings, "--resume_from_checkpoint", "true")) == 0
    expected = load_file(whole / "model.safetensors")
    for name, weight in load_file(broken / "model.safetensors").items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=0)
    assert (whole / "README.md").is_file()


def test_what_a_stream_cannot_do_is_said_before_anything_is_read(
    toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = training(toys, tmp_path, "--teacher_cache", "both", weights=False)
    assert main([*argv, "--train_dataset.read.transcript_column", "label"]) == 2
    said = capsys.readouterr().err
    assert "--streaming true: a teacher cache is read again in every epoch" in said
    assert "--max_steps is missing: a stream has no end" in said
    assert "--train_dataset.spoken.weight is missing: the number of rows of a stream is not known" in said
    assert "--train_dataset.read: " in said
    assert "has no column 'label'; it has: " in said


def test_a_filter_that_leaves_nothing_ends_the_training(
    toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(training(toys, tmp_path, "--max_steps", "9", "--train_dataset.read.wer_threshold", "0")) == 2
    assert "read: this worker's part of it holds no row that can be used" in capsys.readouterr().err
