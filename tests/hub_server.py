"""A Hub on loopback: speaks the protocol of the `huggingface_hub` client and refuses what the real one refuses.

Everything is in memory; a test switches faults on. The client's environment is set by the fixture `hub` in
`tests/hub/conftest.py`.
"""

import base64
import hashlib
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

ALICE = "hf_aliceTokenToRecogniseInLogs0123456789"
READER = "hf_readerTokenToRecogniseInLogs012345678"
NAMESPACES = {ALICE: ("alice", "team"), READER: ()}
"""Where a token may write; the first one is the account's."""
DATE = "2025-01-01T00:00:00.000Z"


# State


@dataclass(frozen=True)
class Blob:
    """One file: its content, and whether it is in large file storage."""

    data: bytes
    lfs: bool

    @property
    def oid(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid


@dataclass(frozen=True)
class Commit:
    """One state of a repository."""

    oid: str
    parent: str | None
    title: str
    files: dict[str, Blob]


@dataclass
class Repo:
    """A repository of a model or a data set."""

    type: str
    id: str
    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def add(self, branch: str, title: str, files: dict[str, Blob]) -> Commit:
        commit = Commit(secrets.token_hex(20), self.branches.get(branch), title, files)
        self.commits[commit.oid] = commit
        self.branches[branch] = commit.oid
        return commit

    def commit(self, revision: str) -> Commit | None:
        return self.commits.get(self.branches.get(revision) or self.tags.get(revision) or revision)

    def history(self, revision: str = "main") -> list[Commit]:
        """Newest first."""
        commit, commits = self.commit(revision), []
        while commit is not None:
            commits.append(commit)
            commit = self.commits.get(commit.parent or "")
        return commits

    def files(self, revision: str = "main") -> dict[str, bytes]:
        commit = self.commit(revision)
        return {} if commit is None else {path: blob.data for path, blob in commit.files.items()}


@dataclass
class Fault:
    """What happens to requests whose "METHOD /path" matches, so many times."""

    pattern: str
    status: int | None = None
    times: int = 1
    retry_after: float | None = None
    cut: bool = False
    released: threading.Event | None = None


def entry_of(commit: Commit, path: str) -> dict[str, Any]:
    blob, last = commit.files.get(path), {"id": commit.oid, "title": commit.title, "date": DATE}
    if blob is None:
        oid = hashlib.sha1(path.encode()).hexdigest()
        return {"type": "directory", "path": path, "size": 0, "oid": oid, "lastCommit": last}
    entry = {"type": "file", "path": path, "size": len(blob.data), "oid": blob.oid, "lastCommit": last}
    lfs = {"lfs": {"oid": blob.sha256, "size": len(blob.data), "pointerSize": 130}} if blob.lfs else {}
    return entry | lfs


# What the Hub refuses in metadata and names


_LICENCES = ("apache-2.0", "mit", "cc-by-4.0", "cc-by-sa-4.0", "cc0-1.0", "gpl-3.0", "unknown", "other")
_NAME = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9_]([\w.-]{0,94}[A-Za-z0-9_])?", re.ASCII)


def metadata_errors(content: str) -> list[str]:
    """What is wrong with the metadata of a card: of the Hub's rules those that a card of this package could break."""
    block = re.match(r"\ufeff?---\s*\n(.*?)\n---\s*(\n|$)", content, re.DOTALL)
    try:
        data = yaml.safe_load(block[1]) if block else {}
    except yaml.YAMLError as error:
        return [f"YAML: {error}".splitlines()[0]]
    licences, languages = (data.get(key) or [] for key in ("license", "language"))
    errors = [f'"license" must be one of {_LICENCES}' for name in _listed(licences) if name not in _LICENCES]
    errors += [f'"language": {name!r}' for name in _listed(languages) if not re.fullmatch("[a-z]{2,3}", name)]
    for key in ("base_model", "datasets"):
        names = [part for name in _listed(data.get(key, [])) for part in name.split("/")]
        errors += [f'"{key}" with value {name!r} is not valid' for name in names if not _NAME.fullmatch(name)]
    errors += ['"model-index[].name" is required' for model in data.get("model-index", []) if not model.get("name")]
    errors += ['"configs[].config_name" is required' for one in data.get("configs", []) if "config_name" not in one]
    return errors


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


# Routes


_LFS_ENDINGS = (".safetensors", ".bin", ".pt", ".parquet")
_REPO = r"/(?P<kind>models|datasets)/(?P<id>[^/]+/[^/]+?)"
_PLAIN = r"(?P<prefix>/datasets)?/(?P<id>[^/]+/[^/]+?)"
_ROUTES: list[tuple[str, str, str]] = [
    ("POST", r"/api/validate-yaml", "validate_yaml"),
    ("POST", r"/api/repos/create", "create_repo"),
    ("POST", rf"/api{_REPO}/preupload/(?P<revision>.+)", "preupload"),
    ("POST", rf"/api{_REPO}/commit/(?P<revision>.+)", "commit"),
    ("POST", rf"/api{_REPO}/paths-info/(?P<revision>.+)", "paths_info"),
    ("GET", rf"/api{_REPO}/tree/(?P<revision>[^/]+)(/(?P<path>.+))?", "tree"),
    ("GET", rf"/api{_REPO}/refs", "refs"),
    ("POST", rf"/api{_REPO}/tag/(?P<revision>.+)", "add_tag"),
    ("DELETE", rf"/api{_REPO}/tag/(?P<revision>.+)", "delete_tag"),
    ("POST", rf"/api{_REPO}/branch/(?P<revision>.+)", "add_branch"),
    ("GET", rf"/api{_REPO}(/revision/(?P<revision>.+))?", "info"),
    ("POST", rf"{_PLAIN}\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", r"/lfs/(?P<oid>\w+)/(?P<key>.+)", "lfs_put"),
    ("GET", rf"{_PLAIN}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
]


class Refused(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, message: str, code: str | None = None, body: dict[str, Any] | None = None):
        super().__init__(message)
        self.status, self.code, self.body = status, code, body or {"error": message}


class HubHandler(BaseHTTPRequestHandler):
    """One request."""

    hub: "HubServer"
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.hub.connections.add(self.connection)

    def finish(self) -> None:
        self.hub.connections.discard(self.connection)
        with suppress(OSError, ValueError):
            super().finish()

    def log_message(self, *_: Any) -> None:
        pass

    def _serve(self) -> None:
        self.url = urlsplit(self.path)
        self.query = parse_qs(self.url.query)
        self.hub.requests.append(f"{self.command} {unquote(self.url.path)}")
        try:
            fault = self.hub.take_fault(self.hub.requests[-1])
            if fault is not None and self._suffer(fault):
                return
            self.body = self._read_body()
            method = "GET" if self.command == "HEAD" else self.command
            for wanted, pattern, name in _ROUTES:
                match = re.fullmatch(pattern, self.url.path)
                if wanted == method and match:
                    parts = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                    handle: Callable[..., None] = getattr(self, f"_{name}")
                    handle(**parts)
                    return
            raise Refused(404, f"no route {self.command} {self.url.path}")
        except Refused as refused:
            headers = {"X-Error-Message": str(refused)}
            if refused.code:
                headers["X-Error-Code"] = refused.code
            self._answer(refused.body, refused.status, headers)
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _suffer(self, fault: Fault) -> bool:
        if fault.cut:
            self.rfile.read(int(self.headers.get("Content-Length") or 2) // 2)
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return True
        if fault.released is not None:
            fault.released.wait(60)
        if fault.status is None:
            return False
        self._read_body()
        headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
        self._answer({"error": f"fault {fault.status}"}, fault.status, headers)
        return True

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if len(body) < length:
            raise ConnectionError("the client went away")
        return body

    def _answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value.encode("ascii", "replace").decode().replace("\n", " "))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # Who, and where

    def _namespaces(self) -> tuple[str, ...] | None:
        """Where the request may write; None without a token."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in NAMESPACES:
            raise Refused(401, "Invalid credentials in Authorization header")
        return NAMESPACES[token] if token else None

    def _repo(self, parts: dict[str, str], write: bool = False) -> Repo:
        kind = "dataset" if parts.get("kind") == "datasets" or parts.get("prefix") else "model"
        allowed, repo = self._namespaces(), self.hub.repos.get((kind, parts["id"]))
        writable = parts["id"].split("/")[0] in (allowed or ())
        if repo is None or (repo.private and not writable):
            raise Refused(401 if allowed is None else 404, "Repository not found", "RepoNotFound")
        if write and not writable:
            raise Refused(403, f"You don't have the rights to write to {parts['id']}")
        return repo

    def _at(self, repo: Repo, revision: str) -> Commit:
        commit = repo.commit(revision)
        if commit is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    # Accounts and repositories

    def _validate_yaml(self) -> None:
        errors = metadata_errors(json.loads(self.body)["content"])
        body = {"errors": [{"message": text} for text in errors], "warnings": []}
        self._answer(body, 400 if errors else 200)

    def _create_repo(self) -> None:
        allowed, asked = self._namespaces() or (), json.loads(self.body)
        namespace, kind = asked.get("organization") or "".join(allowed[:1]), asked.get("type") or "model"
        repo_id = f"{namespace}/{asked['name']}"
        if namespace not in allowed:
            raise Refused(403, f"You don't have the rights to create a {kind} under the namespace {namespace!r}")
        url = f"{self.hub.endpoint}/{'datasets/' * (kind == 'dataset')}{repo_id}"
        with self.hub.lock:
            if (kind, repo_id) in self.hub.repos:
                message = f"You already created this {kind} repo: {repo_id}"
                raise Refused(409, message, body={"error": message, "url": url})
            self.hub.create(repo_id, kind, private=asked.get("visibility") == "private" or bool(asked.get("private")))
        self._answer({"url": url, "id": repo_id, "name": repo_id})

    # Uploads

    def _preupload(self, revision: str, **parts: str) -> None:
        commit = self._at(self._repo(parts, write=True), revision)
        files = []
        for asked in json.loads(self.body)["files"]:
            path, known = asked["path"], commit.files.get(asked["path"])
            mode = "lfs" if path.endswith(_LFS_ENDINGS) else "regular"
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": known and known.etag})
        self._answer({"files": files, "commitOid": commit.oid})

    def _lfs_batch(self, **parts: str) -> None:
        repo, answers = self._repo(parts, write=True), []
        for asked in json.loads(self.body)["objects"]:
            oid, size = asked["oid"], asked["size"]
            key, answer = f"{size}/{repo.type}/{repo.id}", {"oid": oid, "size": size}
            if (repo.type, repo.id, oid) not in self.hub.objects:
                answer["actions"] = {"upload": {"href": f"{self.hub.endpoint}/lfs/{oid}/{key}"}}
            answers.append(answer)
        self._answer({"transfer": "basic", "objects": answers})

    def _lfs_put(self, oid: str, key: str) -> None:
        size, kind, repo_id = key.split("/", 2)
        if len(self.body) != int(size) or hashlib.sha256(self.body).hexdigest() != oid:
            raise Refused(400, f"The content does not match sha256 {oid} and size {size}")
        self.hub.objects[kind, repo_id, oid] = self.body
        self._answer({})

    def _commit(self, revision: str, **parts: str) -> None:
        repo = self._repo(parts, write=True)
        lines = [json.loads(line) for line in self.body.splitlines() if line]
        header = lines[0]["value"]
        with self.hub.lock:
            head = self._at(repo, revision)
            if header.get("parentCommit") not in (None, head.oid):
                raise Refused(412, "A commit has happened since. Please refresh and try again.")
            files = dict(head.files)
            for line in lines[1:]:
                self._apply(line["key"], line["value"], repo, files)
            if "README.md" in files:
                errors = metadata_errors(files["README.md"].data.decode())
                if errors:
                    raise Refused(400, f"Invalid metadata in README.md: {'; '.join(errors)}")
            commit = repo.add(revision, header["summary"], files)
        url = f"{self.hub.endpoint}/{'datasets/' * (repo.type == 'dataset')}{repo.id}/commit/{commit.oid}"
        self._answer({"success": True, "commitOid": commit.oid, "commitUrl": url, "hookOutput": ""})

    def _apply(self, operation: str, value: dict[str, Any], repo: Repo, files: dict[str, Blob]) -> None:
        path = value["path"]
        if operation == "file":
            files[path] = Blob(base64.b64decode(value["content"]), lfs=False)
        elif operation == "lfsFile":
            data = self.hub.objects.get((repo.type, repo.id, value["oid"]))
            if data is None:
                raise Refused(400, f"LFS pointer of {path} points to a file that does not exist: {value['oid']}")
            files[path] = Blob(data, lfs=True)
        elif operation == "deletedFile" and path in files:
            del files[path]
        else:
            raise Refused(404, f"{operation}: a file with this name doesn't exist: {path}", "EntryNotFound")

    # Reading

    def _info(self, revision: str = "main", **parts: str) -> None:
        repo = self._repo(parts)
        commit = self._at(repo, revision)
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        self._answer({"id": repo.id, "sha": commit.oid, "private": repo.private, "siblings": siblings})

    def _tree(self, revision: str, path: str = "", **parts: str) -> None:
        commit = self._at(self._repo(parts), revision)
        inside = [PurePosixPath(name) for name in sorted(commit.files) if not path or name.startswith(f"{path}/")]
        if path and not inside:
            raise Refused(404, f"{path} does not exist on {revision}", "EntryNotFound")
        recursive = self.query.get("recursive", [""])[0].lower() in ("true", "1")
        depth = len(PurePosixPath(path).parts) + 1
        entries = dict.fromkeys(
            str(PurePosixPath(*name.parts[:level]))
            for name in inside
            for level in range(depth, len(name.parts) + 1 if recursive else depth + 1)
        )
        self._answer([entry_of(commit, name) for name in entries])

    def _paths_info(self, revision: str, **parts: str) -> None:
        commit = self._at(self._repo(parts), revision)
        names = [path.strip("/") for path in parse_qs(self.body.decode()).get("paths", [])]
        names = [name for name in names if any(f"{path}/".startswith(f"{name}/") for path in commit.files)]
        self._answer([entry_of(commit, name) for name in names])

    def _refs(self, **parts: str) -> None:
        tags = self._repo(parts).tags.items()
        listed = [{"name": name, "ref": f"refs/tags/{name}", "targetCommit": at} for name, at in tags]
        self._answer({"branches": [], "tags": listed, "converts": [], "pullRequests": []})

    def _add_tag(self, revision: str, **parts: str) -> None:
        repo, tag = self._repo(parts, write=True), json.loads(self.body)["tag"]
        commit = self._at(repo, revision)
        if tag in repo.tags:
            raise Refused(409, f"Tag {tag} already exists")
        repo.tags[tag] = commit.oid
        self._answer({})

    def _delete_tag(self, revision: str, **parts: str) -> None:
        del self._repo(parts, write=True).tags[revision]
        self._answer({})

    def _add_branch(self, revision: str, **parts: str) -> None:
        repo = self._repo(parts, write=True)
        repo.branches[revision] = self._at(repo, "main").oid
        self._answer({})

    def _resolve(self, revision: str, path: str, **parts: str) -> None:
        commit = self._at(self._repo(parts), revision)
        blob = commit.files.get(path)
        headers = {"X-Repo-Commit": commit.oid}
        if blob is None:
            self._answer({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound", **headers})
            return
        headers |= {"ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes"}
        if blob.lfs:
            headers |= {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(len(blob.data))}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            self._answer(blob.data, 200, headers)
            return
        first, last = int(asked[1]), min(int(asked[2] or len(blob.data) - 1), len(blob.data) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(blob.data)}"
        self._answer(blob.data[first : last + 1], 206, headers)


# The server


class HubServer:
    """The server; a context manager. `repos` are by type and id, `requests` are "METHOD /path" in order."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.objects: dict[tuple[str, str, str], bytes] = {}
        self.requests: list[str] = []
        self.faults: list[Fault] = []
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
        self._server = _HttpServer(("127.0.0.1", self.port), handler)
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
    def hold(self, pattern: str, status: int | None = None) -> Iterator[threading.Event]:
        """Requests that match wait until the block ends, or the event is set, and fail then if there is a status."""
        released = threading.Event()
        fault = self.fail(pattern, status, times=10**6, released=released)
        try:
            yield released
        finally:
            released.set()
            self.faults.remove(fault)

    def wait_for_commit(self, process: subprocess.Popen | None = None) -> None:
        """Waits for a request to commit, of a process that must not end before."""
        while not any("/commit/" in request for request in self.requests):
            assert process is None or process.poll() is None, "the push has ended by itself"
            time.sleep(0.01)

    def kill_during_commit(self, code: str) -> None:
        """Runs Python code in a process that is killed while its first commit is under way."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        with self.hold("POST .*/commit/", 500):
            process = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL)
            self.wait_for_commit(process)
            process.kill()
            process.wait()

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


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        pass  # a client that goes away in mid-request is one of the things to test
