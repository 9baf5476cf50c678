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
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

ALICE = "hf_aliceTokenToRecogniseInLogs0123456789"
READER = "hf_readerTokenToRecogniseInLogs012345678"
NAMESPACES = {ALICE: "alice", READER: "reader"}
"""Where a token may write."""

LICENCES = "apache-2.0|mit|cc-by-4.0|cc-by-sa-4.0|cc0-1.0|unknown|other"
REPO = r"(\w[\w.-]*/)?\w[\w.-]*"
Files = dict[str, bytes]


# State


class Commit(NamedTuple):
    """One state of a repository."""

    oid: str
    title: str
    files: Files


@dataclass
class Repo:
    """A repository of a model or a data set; branches are lists of commits, tags name one."""

    type: str
    id: str
    private: bool = False
    branches: dict[str, list[Commit]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def add(self, title: str, files: Files, branch: str = "main") -> Commit:
        self.branches.setdefault(branch, []).append(Commit(secrets.token_hex(20), title, files))
        return self.branches[branch][-1]

    def commit(self, revision: str) -> Commit | None:
        if revision in self.branches:
            return self.branches[revision][-1]
        oid = self.tags.get(revision, revision)
        return next((commit for branch in self.branches.values() for commit in branch if commit.oid == oid), None)

    def history(self) -> list[Commit]:
        """Of `main`, newest first."""
        return self.branches["main"][::-1]

    def files(self, revision: str = "main") -> Files:
        return self.commit(revision).files


@dataclass
class Fault:
    """What happens to requests whose "METHOD /path" matches, so many times."""

    pattern: str
    status: int | None = None
    times: int = 1
    retry_after: float | None = None
    cut: bool = False
    action: Callable[[], object] | None = None


def is_large(path: str) -> bool:
    """Whether the Hub puts a file into large file storage."""
    return path.endswith((".safetensors", ".bin", ".pt", ".parquet"))


def etag(path: str, data: bytes) -> str:
    header = b"" if is_large(path) else b"blob %d\0" % len(data)
    return (hashlib.sha256 if is_large(path) else hashlib.sha1)(header + data).hexdigest()


def entries(files: Files) -> dict[str, dict[str, Any]]:
    """Folders and files of a commit, by their path."""
    listed = {}
    for path, data in sorted(files.items()):
        for folder in map(str, list(PurePosixPath(path).parents)[:-1]):
            listed[folder] = {"type": "directory", "path": folder, "size": 0, "oid": etag("", folder.encode())}
        listed[path] = {"type": "file", "path": path, "size": len(data), "oid": etag(path, data)}
    return listed


def metadata_errors(content: str) -> list[str]:
    """What is wrong with the metadata of a card: of the Hub's rules those that a card of this package could break."""
    block = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
    data = yaml.safe_load(block[1]) if block else {}
    errors = []
    for key, rule in (("license", LICENCES), ("language", "[a-z]{2,3}"), ("base_model", REPO), ("datasets", REPO)):
        values = data.get(key) or []
        values = values if isinstance(values, list) else [values]
        errors += [f'"{key}" with value {value!r} is not valid' for value in values if not re.fullmatch(rule, value)]
    return errors


# Requests


class Refused(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, message: str, code: str = "", **body: str):
        super().__init__(message)
        self.status, self.body = status, {"error": message, **body}
        self.headers = {"X-Error-Message": message, "X-Error-Code": code}


class HubHandler(BaseHTTPRequestHandler):
    """One request."""

    hub: "HubServer"

    def log_message(self, *_: Any) -> None:
        pass

    def _serve(self) -> None:
        url = urlsplit(self.path)
        path, self.query = unquote(url.path), parse_qs(url.query)
        self.hub.requests.append(f"{self.command} {path}")
        fault = self.hub.take_fault(self.hub.requests[-1])
        if fault is not None and fault.cut:
            self.rfile.read(int(self.headers.get("Content-Length") or 2) // 2)
            return
        if fault is not None and fault.action is not None:
            fault.action()
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if fault is not None and fault.status is not None:
            headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
            self._answer({"error": f"fault {fault.status}"}, fault.status, headers)
            return
        try:
            with self.hub.lock:
                self._route("get" if self.command == "HEAD" else self.command.lower(), path)
        except Refused as refused:
            self._answer(refused.body, refused.status, refused.headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _route(self, method: str, path: str) -> None:
        name = r"([^/]+/[^/]+)"
        if path in ("/api/validate-yaml", "/api/repos/create"):
            self._validate_yaml() if "yaml" in path else self._create_repo()
        elif match := re.fullmatch(r"/lfs/(\w+)/(\w+)/(.+)", path):
            self._lfs_put(*match.groups())
        elif match := (
            re.fullmatch(rf"/api/(models|datasets)/{name}(?:/([a-z-]+))?(?:/([^/]+))?(?:/(.+))?", path)
            or re.fullmatch(rf"/(?:(datasets)/)?{name}\.git/info/lfs/objects/(batch)", path)
            or re.fullmatch(rf"/(?:(datasets)/)?{name}/(resolve)/([^/]+)/(.+)", path)
        ):
            kind, repo_id, verb, *where = match.groups()
            verb = "info" if verb in (None, "revision") else verb.replace("-", "_")
            getattr(self, f"_{method}_{verb}")(self._repo(kind, repo_id), *filter(None, where))
        else:
            raise Refused(404, f"no route {method} {path}")

    def _answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # Who, and where

    def _namespace(self) -> str | None:
        """Where the request may write; None without a token."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in NAMESPACES:
            raise Refused(401, "Invalid credentials in Authorization header")
        return NAMESPACES.get(token)

    def _repo(self, kind: str | None, repo_id: str) -> Repo:
        repo = self.hub.repos.get(("dataset" if kind == "datasets" else "model", repo_id))
        if repo is None or (repo.private and self._namespace() != repo_id.split("/")[0]):
            raise Refused(404 if self._namespace() else 401, "Repository not found", "RepoNotFound")
        return repo

    def _at(self, repo: Repo, revision: str) -> Commit:
        commit = repo.commit(revision)
        if commit is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def _validate_yaml(self) -> None:
        errors = metadata_errors(json.loads(self.body)["content"])
        body = {"errors": [{"message": text} for text in errors], "warnings": []}
        self._answer(body, 400 if errors else 200)

    def _create_repo(self) -> None:
        asked = json.loads(self.body)
        namespace, kind = asked.get("organization") or self._namespace(), asked.get("type") or "model"
        repo_id = f"{namespace}/{asked['name']}"
        if namespace != self._namespace():
            raise Refused(403, f"You don't have the rights to create a {kind} under the namespace {namespace!r}")
        url = self.hub.url(kind, repo_id)
        if (kind, repo_id) in self.hub.repos:
            raise Refused(409, f"You already created this {kind} repo: {repo_id}", url=url)
        self.hub.create(repo_id, kind, private=asked.get("visibility") == "private" or bool(asked.get("private")))
        self._answer({"url": url, "id": repo_id, "name": repo_id})

    # Uploads

    def _post_preupload(self, repo: Repo, revision: str) -> None:
        commit, files = self._at(repo, revision), []
        for path in (asked["path"] for asked in json.loads(self.body)["files"]):
            known = etag(path, commit.files[path]) if path in commit.files else None
            mode = "lfs" if is_large(path) else "regular"
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": known})
        self._answer({"files": files, "commitOid": commit.oid})

    def _post_batch(self, repo: Repo) -> None:
        answers = []
        for asked in json.loads(self.body)["objects"]:
            oid = asked["oid"]
            answers.append({"oid": oid, "size": asked["size"]})
            if (repo.type, repo.id, oid) not in self.hub.objects:
                href = f"{self.hub.endpoint}/lfs/{oid}/{repo.type}/{repo.id}"
                answers[-1]["actions"] = {"upload": {"href": href}}
        self._answer({"transfer": "basic", "objects": answers})

    def _lfs_put(self, oid: str, kind: str, repo_id: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refused(400, f"The content does not match sha256 {oid}")
        self.hub.objects[kind, repo_id, oid] = self.body
        self._answer({})

    def _post_commit(self, repo: Repo, branch: str) -> None:
        header, *operations = [json.loads(line) for line in self.body.splitlines() if line]
        head = self._at(repo, branch)
        if header["value"].get("parentCommit") not in (None, head.oid):
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        files = dict(head.files)
        for operation in operations:
            name, value = operation["key"], operation["value"]
            if name == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif name == "lfsFile":
                files[value["path"]] = self.hub.objects[repo.type, repo.id, value["oid"]]
            else:
                assert name == "deletedFile"
                del files[value["path"]]
        commit = repo.add(header["value"]["summary"], files, branch)
        url = f"{self.hub.url(repo.type, repo.id)}/commit/{commit.oid}"
        self._answer({"success": True, "commitOid": commit.oid, "commitUrl": url, "hookOutput": ""})

    def _post_tag(self, repo: Repo, revision: str) -> None:
        tag = json.loads(self.body)["tag"]
        if tag in repo.tags:
            raise Refused(409, f"Tag {tag} already exists")
        repo.tags[tag] = self._at(repo, revision).oid
        self._answer({})

    def _delete_tag(self, repo: Repo, tag: str) -> None:
        del repo.tags[tag]
        self._answer({})

    def _post_branch(self, repo: Repo, branch: str) -> None:
        repo.branches[branch] = repo.branches["main"][-1:]
        self._answer({})

    # Reading

    def _get_info(self, repo: Repo, revision: str = "main") -> None:
        commit = self._at(repo, revision)
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        self._answer({"id": repo.id, "sha": commit.oid, "private": repo.private, "siblings": siblings})

    def _get_tree(self, repo: Repo, revision: str, folder: str = ".") -> None:
        listed = entries(self._at(repo, revision).files)
        if folder not in (".", *listed):
            raise Refused(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        recursive = self.query.get("recursive", [""])[0].lower() in ("true", "1")
        parents = {path: list(map(str, PurePosixPath(path).parents)) for path in listed}
        self._answer([listed[path] for path in listed if folder in parents[path][: None if recursive else 1]])

    def _get_refs(self, repo: Repo) -> None:
        tags = [{"name": name, "ref": f"refs/tags/{name}", "targetCommit": at} for name, at in repo.tags.items()]
        self._answer({"branches": [], "tags": tags, "converts": [], "pullRequests": []})

    def _get_resolve(self, repo: Repo, revision: str, path: str) -> None:
        commit = self._at(repo, revision)
        if path not in commit.files:
            raise Refused(404, "Entry not found", "EntryNotFound")
        data = commit.files[path]
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{etag(path, data)}"', "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            self._answer(data, 200, headers)
            return
        first, last = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        self._answer(data[first : last + 1], 206, headers)


# The server


class HubServer:
    """The server; a context manager. `repos` are by type and id, `requests` are "METHOD /path" in order."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.objects: dict[tuple[str, str, str], bytes] = {}
        self.requests: list[str] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        self.port = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def url(self, kind: str, repo_id: str) -> str:
        return f"{self.endpoint}/{'datasets/' * (kind == 'dataset')}{repo_id}"

    def start(self) -> None:
        """Listens, on the same port again after a `stop`."""
        handler = type("Handler", (HubHandler,), {"hub": self})
        self._server = _HttpServer(("127.0.0.1", self.port), handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        """From here on connections are refused; what was stored stays."""
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> "HubServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def fail(self, pattern: str, status: int | None = None, times: int = 1, **how: Any) -> Fault:
        """The next requests that match fail, by a status or `cut` off in their middle; an `action` is done before."""
        self.faults.append(Fault(pattern, status, times, **how))
        return self.faults[-1]

    @contextmanager
    def hold(self, pattern: str, status: int | None = None) -> Iterator[threading.Event]:
        """Requests that match wait until the block ends, or the event is set, and fail then if there is a status."""
        released = threading.Event()
        fault = self.fail(pattern, status, times=10**6, action=lambda: released.wait(60))
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
        repo.add("initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"})
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
