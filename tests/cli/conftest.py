"""What most commands are tried on."""

from pathlib import Path

import pytest

from toy_files import write_toy_corpus, write_toy_model


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `teacher`, `student` (2 decoder layers) and `corpus`."""
    folder = tmp_path_factory.mktemp("toys")
    write_toy_model(folder / "teacher")
    write_toy_model(folder / "student", decoder_layers=2)
    write_toy_corpus(folder / "corpus")
    return folder
