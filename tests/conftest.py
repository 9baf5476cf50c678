"""Nothing in the tests may reach a network, every one starts from the same seed, and one set of toys serves most."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

import pytest
import torch

from toy_files import write_toy_corpus, write_toy_model


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `teacher`, `student` (2 decoder layers) and `corpus`; tests read it only."""
    folder = tmp_path_factory.mktemp("toys")
    write_toy_model(folder / "teacher")
    write_toy_model(folder / "student", decoder_layers=2)
    write_toy_corpus(folder / "corpus")
    return folder
