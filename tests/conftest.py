"""Nothing in the tests may reach a network, every one starts from the same seed, and one set of toys serves most."""

import os
import subprocess
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

import pytest
import torch

from hf_distil_whisper import load_model, load_processor
from inputs import LoadedModel
from toy_files import write_toy_corpus, write_toy_model

FETCH = Path(__file__).parents[1] / "examples" / "quickstart" / "fetch_whisper.py"


def fetched_whisper(name: str, config: pytest.Config) -> LoadedModel:
    """A published model, fetched once and kept in pytest's cache; its tests are skipped where nothing answers."""
    assert config.cache
    folder = config.cache.mkdir("whisper") / name
    network = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    result = subprocess.run([sys.executable, FETCH, name, folder], env=network, capture_output=True, text=True)
    if result.returncode:
        pytest.skip(result.stderr[-1000:])
    return LoadedModel(load_model(folder), load_processor(folder))


@pytest.fixture(scope="session")
def base(request: pytest.FixtureRequest) -> LoadedModel:
    return fetched_whisper("base", request.config)


@pytest.fixture(scope="session")
def tiny_en(request: pytest.FixtureRequest) -> LoadedModel:
    return fetched_whisper("tiny.en", request.config)


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
