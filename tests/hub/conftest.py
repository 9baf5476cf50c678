"""The Hub on loopback, and the client's settings that make this process use it and nothing else."""

import logging
import types
from collections.abc import Iterator
from pathlib import Path

import datasets.config
import huggingface_hub.constants
import pytest
import transformers.utils.hub
from huggingface_hub import HfFileSystem, close_session, hf_api
from huggingface_hub.utils import _http

from hf_distil_whisper.hub import push
from hub_server import ALICE, HubServer


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> Iterator[HubServer]:
    """An empty Hub, alice logged in, an empty cache. Nobody waits between retries; all that is logged is captured."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(push, "RETRY_WAITS", (0.01, 0.02, 0.03))
    with HubServer() as server:
        home = tmp_path / "hf-home"
        environment = {"HF_ENDPOINT": server.endpoint, "HF_TOKEN": ALICE, "HF_HOME": str(home)}
        environment |= dict.fromkeys(("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY"), "1")
        environment |= dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1")
        for name, value in environment.items():  # for processes that a test starts
            monkeypatch.setenv(name, value)
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        of_client = {"ENDPOINT": server.endpoint, "HF_HUB_OFFLINE": False, "HF_HOME": str(home)}
        of_client |= {"HF_HUB_DISABLE_XET": True, "HF_HUB_DISABLE_TELEMETRY": True}
        of_client |= {"HF_TOKEN_PATH": str(home / "token"), "HF_HUB_CACHE": str(home / "hub")}
        of_client["HUGGINGFACE_CO_URL_TEMPLATE"] = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        of_datasets = {"HF_ENDPOINT": server.endpoint, "HF_HUB_OFFLINE": False, "HF_UPDATE_DOWNLOAD_COUNTS": False}
        of_datasets["HF_DATASETS_CACHE"] = home / "datasets"
        for module, values in ((huggingface_hub.constants, of_client), (datasets.config, of_datasets)):
            for name, value in values.items():
                monkeypatch.setattr(module, name, value)
        monkeypatch.setattr(hf_api.api, "endpoint", server.endpoint)
        monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)
        impatient = types.SimpleNamespace(**{**vars(_http.time), "sleep": lambda seconds: None})
        monkeypatch.setattr(_http, "time", impatient)
        HfFileSystem.clear_instance_cache()
        close_session()
        yield server
        HfFileSystem.clear_instance_cache()
        close_session()  # the next test's server may listen on the same port
