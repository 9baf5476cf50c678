"""A Hub on loopback: speaks the protocol of the `huggingface_hub` client and refuses what the real one refuses.

Starts, stops and holds everything in memory; a test switches faults on here. The routes are in `hub_handler`. The
client's side, that is the environment, is set by the fixture `hub` in `tests/hub/conftest.py`.
"""

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import ThreadingHTTPServer
from typing import Any

from hub_handler import HubHandler
from hub_store import Account, Blob, Fault, Repo

ALICE = "hf_aliceTokenToRecogniseInLogs0123456789"
READER = "hf_readerTokenToRecogniseInLogs012345678"


class HubServer:
    """The server; a context manager.

    Attributes:
        tokens (`dict[str, Account]`): who may do what; by default `hf_alice...`, who writes to `alice` and `team`, and
            `hf_reader...`, who writes nowhere.
        repos (`dict[tuple[str, str], Repo]`): by type ("model", "dataset") and id.
        requests (`list[str]`): "METHOD /path" of every request, in order.
        part_size (`int`, *optional*): large files above this size are uploaded in parts of it.

    Example:
        ```python
        with HubServer() as hub:
            hub.fail("PUT /lfs", cut=True)
            HfApi(endpoint=hub.endpoint, token=ALICE).upload_file(...)
        ```
    """

    def __init__(self) -> None:
        self.tokens = {ALICE: Account("alice", ("alice", "team")), READER: Account("reader", ())}
        self.repos: dict[tuple[str, str], Repo] = {}
        self.objects: dict[tuple[str, str, str], bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.requests: list[str] = []
        self.faults: list[Fault] = []
        self.part_size: int | None = None
        self.lock = threading.RLock()
        self.connections: set[socket.socket] = set()
        self.port = 0
        self._server: ThreadingHTTPServer | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listens, on the same port again after a `stop`."""
        handler = type("Handler", (HubHandler,), {"hub": self})
        self._server = Server(("127.0.0.1", self.port), handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        """From here on connections are refused; what was stored stays."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        for connection in list(self.connections):  # a client would go on over a connection that is kept alive
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> "HubServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        for fault in self.faults:
            if fault.released is not None:
                fault.released.set()
        self.stop()

    def fail(self, pattern: str, status: int | None = None, times: int = 1, **how: Any) -> Fault:
        """The next requests that match fail: with a status, or cut off in the middle of their body (`cut=True`)."""
        self.faults.append(Fault(pattern, status, times, **how))
        return self.faults[-1]

    @contextmanager
    def hold(self, pattern: str) -> Iterator[threading.Event]:
        """Requests that match wait until the block ends, or the event is set."""
        released = threading.Event()
        fault = self.fail(pattern, times=10**6, released=released)
        try:
            yield released
        finally:
            released.set()
            self.faults.remove(fault)

    def repo(self, repo_id: str, repo_type: str = "model") -> Repo:
        return self.repos[repo_type, repo_id]

    def create(self, repo_id: str, repo_type: str = "model", private: bool = False) -> Repo:
        repo = Repo(repo_type, repo_id, private)
        repo.add("main", "initial commit", {".gitattributes": Blob(b"*.safetensors filter=lfs\n", lfs=False)})
        self.repos[repo_type, repo_id] = repo
        return repo

    def take_fault(self, request: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.pattern, request):
                    fault.times -= 1
                    return fault
        return None


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        pass  # a client that goes away in mid-request is one of the things to test
