"""The Hub on loopback, and the client's settings that make this process use it and nothing else."""

import types
from collections.abc import Iterator
from pathlib import Path

import datasets.config
import huggingface_hub.constants as settings
import pytest
import transformers.utils.hub
from huggingface_hub import HfFileSystem, close_session, hf_api
from huggingface_hub.utils import _http

from hub_server import ALICE, HubServer
from toy_files import write_toy_corpus, write_toy_model


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """An empty Hub, alice logged in, an empty cache. The client does not wait between its retries."""
    with HubServer() as server:
        home = tmp_path / "hf-home"
        # For processes that a test starts.
        environment = {"HF_ENDPOINT": server.endpoint, "HF_TOKEN": ALICE, "HF_HOME": str(home)}
        environment |= dict.fromkeys(("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY"), "1")
        environment |= dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1")
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(settings, "ENDPOINT", server.endpoint)
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(settings, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(settings, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(settings, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(settings, "HF_HUB_DISABLE_TELEMETRY", True)
        monkeypatch.setattr(settings, "HF_HOME", str(home))
        monkeypatch.setattr(settings, "HF_TOKEN_PATH", str(home / "token"))
        monkeypatch.setattr(settings, "HF_HUB_CACHE", str(home / "hub"))
        monkeypatch.setattr(hf_api.api, "endpoint", server.endpoint)
        monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.endpoint)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")
        monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", False)
        impatient = types.SimpleNamespace(**{**vars(_http.time), "sleep": lambda seconds: None})
        monkeypatch.setattr(_http, "time", impatient)
        HfFileSystem.clear_instance_cache()
        close_session()
        yield server
        HfFileSystem.clear_instance_cache()
        close_session()  # the next test's server may listen on the same port


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher and a corpus."""
    folder = tmp_path_factory.mktemp("toys")
    write_toy_model(folder / "teacher")
    write_toy_corpus(folder / "corpus")
    return folder
