"""Toy models and data for the commands, and commands that are expected to work or to be refused."""

from collections.abc import Callable
from pathlib import Path

import pytest

from hf_distil_whisper.checkpoints import save_checkpoint
from hf_distil_whisper.cli.main import main
from hf_distil_whisper.data.sources import load_source
from talking_models import multilingual_whisper
from toy_models import toy_processor

Command = Callable[..., str]


@pytest.fixture(scope="session")
def labelled(toys: Path) -> Path:
    """The toy corpus as `pseudo-label` writes it."""
    argv = ["--teacher_model_name_or_path", str(toys / "teacher"), "--dataset", str(toys / "corpus")]
    assert main(["pseudo-label", *argv, "--output_dir", str(toys / "labelled")]) == 0
    return toys / "labelled"


@pytest.fixture(scope="session")
def right(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of labelled rows whose labels are their texts: those of a random teacher are wrong, and never end."""
    rows = load_source(labelled).remove_columns("truncated")
    folder = str(tmp_path_factory.mktemp("right"))
    rows.map(lambda row: {"whisper_transcript": row["text"]}).save_to_disk(folder)
    return folder


@pytest.fixture(scope="session")
def multilingual(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model whose prefix names a language."""
    folder = str(tmp_path_factory.mktemp("multilingual"))
    save_checkpoint(multilingual_whisper(), toy_processor(), folder)
    return folder


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command that works; returns what it prints."""

    def run(*argv: object) -> str:
        assert main([str(word) for word in argv]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    return run


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command that is refused; returns its message."""

    def run(*argv: object) -> str:
        assert main([str(word) for word in argv]) == 2
        return capsys.readouterr().err

    return run


@pytest.fixture(scope="session")
def training(toys: Path) -> Callable[..., list[str]]:
    """Arguments of `train`: two steps on the text of the toy corpus, into a folder."""

    def arguments(folder: Path, *more: str) -> list[str]:
        return [
            *("train", "--teacher_model_name_or_path", str(toys / "teacher"), "--output_dir", str(folder)),
            *("--train_dataset.path", str(toys / "corpus"), "--train_dataset.transcript_column", "text", "--use_cpu"),
            *("--max_steps", "2", "--per_device_train_batch_size", "2", "--logging_steps", "1"),
            *("--disable_tqdm", "true", *more),
        ]

    return arguments
