"""A Hub on loopback: speaks the protocol of the `huggingface_hub` client and refuses what the real one refuses.

Everything is in memory; a test switches faults on. The client's environment is set by the fixture `hub` in
`tests/hub/conftest.py`.
"""

import base64
import hashlib
import json
import re
import secrets
import socket
import threading
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
DATE = "2025-01-01T00:00:00.000Z"


# State


@dataclass(frozen=True)
class Account:
    """Who a token belongs to, and in which namespaces it may write."""

    name: str
    writes: tuple[str, ...]


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


def described(blob: Blob) -> dict[str, Any]:
    described: dict[str, Any] = {"size": len(blob.data), "blobId": blob.oid}
    if blob.lfs:
        described["lfs"] = {"sha256": blob.sha256, "size": len(blob.data), "pointerSize": 130}
    return described


def entry_of(commit: Commit, path: str, expand: bool) -> dict[str, Any]:
    blob = commit.files.get(path)
    if blob is None:
        entry = {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}
    else:
        entry = {"type": "file", "path": path, "size": len(blob.data), "oid": blob.oid}
        if blob.lfs:
            entry["lfs"] = {"oid": blob.sha256, "size": len(blob.data), "pointerSize": 130}
    if expand:
        entry["lastCommit"] = {"id": commit.oid, "title": commit.title, "date": DATE}
    return entry


# What the Hub refuses in metadata and names


_LICENCES = (
    "apache-2.0 mit openrail bsd bsd-2-clause bsd-3-clause cc cc0-1.0 cc-by-2.0 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 "
    "cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-3.0 "
    "cc-by-nc-sa-4.0 cc-by-nd-4.0 gpl gpl-2.0 gpl-3.0 lgpl lgpl-3.0 agpl-3.0 mpl-2.0 llama2 llama3 gemma pddl odbl "
    "odc-by unlicense wtfpl zlib isc ms-pl artistic-2.0 bsl-1.0 eupl-1.1 unknown other"
).split()
_RELATIONS = ("adapter", "finetune", "merge", "quantized")
_TASKS = (
    "automatic-speech-recognition text-to-speech audio-classification text-classification text-generation "
    "translation summarization question-answering token-classification image-classification feature-extraction"
).split()
_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "n>1T", "unknown")
_NAME = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9_]([\w.-]{0,94}[A-Za-z0-9_])?", re.ASCII)


def name_error(name: str) -> str | None:
    """Why a repository may not be called so; None if it may."""
    if not _NAME.fullmatch(name) or name.endswith(".git"):
        return f"Invalid repo name: {name} - letters, digits, '-', '_' and '.', no '--' or '..', not first or last"
    return None


def path_error(path: str) -> str | None:
    """Why a file may not be called so; None if it may."""
    parts = path.split("/")
    if any(part in ("", ".", "..", ".git") for part in parts) or "\\" in path or len(path) > 1000:
        return f"Invalid file path: {path!r}"
    return None


def front_matter(content: str) -> dict[str, Any] | None:
    """The metadata of a card; None where there are none. Raises `yaml.YAMLError`."""
    block = re.match(r"\ufeff?---\s*\n(.*?)\n---\s*(\n|$)", content, re.DOTALL)
    return yaml.safe_load(block[1]) if block else None


def metadata_errors(content: str, repo_type: str) -> list[str]:
    """What is wrong with the metadata of a card; nothing for a card without."""
    try:
        data = front_matter(content)
    except yaml.YAMLError as error:
        return [f"YAML: {error}".splitlines()[0]]
    if data is None:
        return []
    if not isinstance(data, dict):
        return ["YAML metadata is not a mapping"]
    errors = _common_errors(data)
    return errors + (_model_errors(data) if repo_type == "model" else _dataset_errors(data))


def _strings(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _one_of(data: dict[str, Any], key: str, allowed: tuple[str, ...] | list[str]) -> list[str]:
    wrong = [value for value in _strings(data[key]) if value not in allowed] if key in data else []
    return [f'"{key}" must be one of [{", ".join(allowed)}], got {wrong[0]!r}'] if wrong else []


def _common_errors(data: dict[str, Any]) -> list[str]:
    errors = _one_of(data, "license", _LICENCES)
    for language in _strings(data.get("language", [])):
        if not isinstance(language, str) or not re.fullmatch(r"[a-z]{2,3}(-[\w-]+)?|multilingual|code", language):
            errors.append(f'"language" must only contain lowercase ISO codes, got {language!r}')
    for tag in _strings(data.get("tags", [])):
        if not isinstance(tag, str) or not tag:
            errors.append(f'"tags" must be an array of strings, got {tag!r}')
    return errors


def _model_errors(data: dict[str, Any]) -> list[str]:
    errors = _one_of(data, "base_model_relation", _RELATIONS) + _one_of(data, "pipeline_tag", _TASKS)
    for key in ("base_model", "datasets"):
        for name in _strings(data.get(key, [])):
            parts = name.split("/") if isinstance(name, str) else []
            if not 1 <= len(parts) <= 2 or any(name_error(part) for part in parts):
                errors.append(f'"{key}" with value {name!r} is not valid. Use a model id from https://hf.co/models.')
    for key in ("library_name",):
        if key in data and not isinstance(data[key], str):
            errors.append(f'"{key}" must be a string')
    if "model-index" in data:
        errors += _index_errors(data["model-index"])
    return errors


def _index_errors(index: Any) -> list[str]:
    errors = []
    if not isinstance(index, list) or not index:
        return ['"model-index" must be an array']
    for number, model in enumerate(index):
        model_path = f"model-index[{number}]"
        if not isinstance(model, dict) or not isinstance(model.get("name"), str):
            errors.append(f'"{model_path}.name" is required')
            continue
        for which, result in enumerate(model.get("results", [None])):
            result_path = f"{model_path}.results[{which}]"
            result = result if isinstance(result, dict) else {}
            if not isinstance(result.get("task"), dict) or not result["task"].get("type"):
                errors.append(f'"{result_path}.task.type" is required')
            dataset = result.get("dataset")
            for key in ("type", "name"):
                if not isinstance(dataset, dict) or not isinstance(dataset.get(key), str):
                    errors.append(f'"{result_path}.dataset.{key}" is required')
            metrics = result.get("metrics")
            if not isinstance(metrics, list) or any("type" not in one or "value" not in one for one in metrics):
                errors.append(f'"{result_path}.metrics" is required, each with type and value')
    return errors


def _dataset_errors(data: dict[str, Any]) -> list[str]:
    errors = _one_of(data, "task_categories", _TASKS) + _one_of(data, "size_categories", _SIZES)
    for config in _strings(data.get("configs", [])):
        if not isinstance(config, dict) or "config_name" not in config:
            errors.append('"configs[].config_name" is required')
    return errors


# Routes


_LFS_ENDINGS = (".safetensors", ".bin", ".pt", ".parquet", ".arrow", ".zip", ".gz", ".tar", ".wav", ".flac", ".npz")
_REGULAR_LIMIT = 10_000_000
_REPO = r"/(?P<kind>models|datasets)/(?P<id>[^/]+/[^/]+?)"
_PLAIN = r"(?P<prefix>/datasets)?/(?P<id>[^/]+/[^/]+?)"
_ROUTES: list[tuple[str, str, str]] = [
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/validate-yaml", "validate_yaml"),
    ("POST", r"/api/repos/create", "create_repo"),
    ("POST", rf"/api{_REPO}/preupload/(?P<revision>.+)", "preupload"),
    ("POST", rf"/api{_REPO}/commit/(?P<revision>.+)", "commit"),
    ("POST", rf"/api{_REPO}/paths-info/(?P<revision>.+)", "paths_info"),
    ("GET", rf"/api{_REPO}/tree/(?P<revision>[^/]+)(/(?P<path>.+))?", "tree"),
    ("GET", rf"/api{_REPO}/commits/(?P<revision>.+)", "commits"),
    ("GET", rf"/api{_REPO}/refs", "refs"),
    ("POST", rf"/api{_REPO}/tag/(?P<revision>.+)", "add_tag"),
    ("DELETE", rf"/api{_REPO}/tag/(?P<revision>.+)", "delete_tag"),
    ("POST", rf"/api{_REPO}/branch/(?P<revision>.+)", "add_branch"),
    ("GET", rf"/api{_REPO}(/revision/(?P<revision>.+))?", "info"),
    ("POST", rf"{_PLAIN}\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", r"/lfs/(?P<oid>\w+)/(?P<key>.+)", "lfs_put"),
    ("PUT", r"/lfs-part/(?P<oid>\w+)/(?P<part>\d+)", "lfs_part"),
    ("POST", r"/lfs-complete/(?P<oid>\w+)/(?P<key>.+)", "lfs_complete"),
    ("POST", r"/lfs-verify/(?P<key>.+)", "lfs_verify"),
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
        message = "Invalid credentials in Authorization header" if fault.status == 401 else f"fault {fault.status}"
        self._answer({"error": message}, fault.status, {"X-Error-Message": message, **headers})
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

    def _account(self) -> Account | None:
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        if not token:
            return None
        if scheme != "Bearer" or token not in self.hub.tokens:
            raise Refused(401, "Invalid credentials in Authorization header")
        return self.hub.tokens[token]

    def _repo(self, parts: dict[str, str], write: bool = False) -> Repo:
        kind = "dataset" if parts.get("kind") == "datasets" or parts.get("prefix") else "model"
        account, repo = self._account(), self.hub.repos.get((kind, parts["id"]))
        if write and account is None:
            raise Refused(401, "Invalid username or password.")
        namespace = parts["id"].split("/")[0]
        hidden = repo is not None and repo.private and (account is None or namespace not in account.writes)
        if repo is None or hidden:
            raise Refused(401 if account is None else 404, "Repository not found", "RepoNotFound")
        if write and account is not None and namespace not in account.writes:
            raise Refused(403, f"You don't have the rights to write to {parts['id']}")
        return repo

    def _at(self, repo: Repo, revision: str) -> Commit:
        commit = repo.commit(revision)
        if commit is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    # Accounts and repositories

    def _whoami(self) -> None:
        account = self._account()
        if account is None:
            raise Refused(401, "Invalid username or password.")
        orgs = [{"name": name, "type": "org"} for name in account.writes if name != account.name]
        role = "write" if account.writes else "read"
        auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": role}}
        self._answer({"type": "user", "id": account.name, "name": account.name, "orgs": orgs, "auth": auth})

    def _validate_yaml(self) -> None:
        asked = json.loads(self.body)
        errors = metadata_errors(asked["content"], asked.get("repoType") or "model")
        missing = not errors and front_matter(asked["content"]) is None
        warnings = [{"message": "empty or missing yaml metadata in repo card"}] if missing else []
        body = {"errors": [{"message": text} for text in errors], "warnings": warnings}
        self._answer(body, 400 if errors else 200)

    def _create_repo(self) -> None:
        account, asked = self._account(), json.loads(self.body)
        if account is None:
            raise Refused(401, "Invalid username or password.")
        namespace, kind = asked.get("organization") or account.name, asked.get("type") or "model"
        repo_id = f"{namespace}/{asked['name']}"
        if error := name_error(asked["name"]):
            raise Refused(400, error)
        if namespace not in account.writes:
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
            large = path.endswith(_LFS_ENDINGS) or asked["size"] > _REGULAR_LIMIT
            mode = "lfs" if large else "regular"
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": known and known.etag})
        self._answer({"files": files, "commitOid": commit.oid})

    def _lfs_batch(self, **parts: str) -> None:
        repo, answers = self._repo(parts, write=True), []
        for asked in json.loads(self.body)["objects"]:
            oid, size = asked["oid"], asked["size"]
            key, answer = f"{size}/{repo.type}/{repo.id}", {"oid": oid, "size": size}
            if (repo.type, repo.id, oid) not in self.hub.objects:
                at, limit = self.hub.endpoint, self.hub.part_size
                upload: dict[str, Any] = {"href": f"{at}/lfs/{oid}/{key}"}
                if limit is not None and size > limit:
                    count = -(-size // limit)
                    urls = {f"{part:05}": f"{at}/lfs-part/{oid}/{part}" for part in range(1, count + 1)}
                    upload = {"href": f"{at}/lfs-complete/{oid}/{key}", "header": {"chunk_size": str(limit), **urls}}
                answer["actions"] = {"upload": upload, "verify": {"href": f"{at}/lfs-verify/{repo.type}/{repo.id}"}}
            answers.append(answer)
        self._answer({"transfer": "basic", "objects": answers})

    def _lfs_put(self, oid: str, key: str) -> None:
        self._store(oid, key, self.body)

    def _lfs_part(self, oid: str, part: str) -> None:
        self.hub.parts[oid, int(part)] = self.body
        self._answer({}, headers={"ETag": f'"{hashlib.md5(self.body).hexdigest()}"'})

    def _lfs_complete(self, oid: str, key: str) -> None:
        numbers = [part["partNumber"] for part in json.loads(self.body)["parts"]]
        self._store(oid, key, b"".join(self.hub.parts.pop((oid, number), b"") for number in numbers))

    def _store(self, oid: str, key: str, data: bytes) -> None:
        size, kind, repo_id = key.split("/", 2)
        if len(data) != int(size) or hashlib.sha256(data).hexdigest() != oid:
            raise Refused(400, f"The content does not match sha256 {oid} and size {size}")
        self.hub.objects[kind, repo_id, oid] = data
        self._answer({})

    def _lfs_verify(self, key: str) -> None:
        asked, (kind, repo_id) = json.loads(self.body), key.split("/", 1)
        self._repo({"kind": f"{kind}s", "id": repo_id}, write=True)
        if len(self.hub.objects.get((kind, repo_id, asked["oid"]), b"")) != asked["size"]:
            raise Refused(404, "Object not found")
        self._answer({})

    def _commit(self, revision: str, **parts: str) -> None:
        repo = self._repo(parts, write=True)
        lines = [json.loads(line) for line in self.body.splitlines() if line]
        header = lines[0]["value"] if lines and lines[0]["key"] == "header" else {}
        if not header.get("summary"):
            raise Refused(400, "A commit needs a summary")
        with self.hub.lock:
            if revision not in repo.branches:
                raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            head = self._at(repo, revision)
            if header.get("parentCommit") not in (None, head.oid):
                raise Refused(412, "A commit has happened since. Please refresh and try again.")
            files = dict(head.files)
            for line in lines[1:]:
                self._apply(line["key"], line["value"], repo, files)
            if "README.md" in files:
                errors = metadata_errors(files["README.md"].data.decode(), repo.type)
                if errors:
                    raise Refused(400, f"Invalid metadata in README.md: {'; '.join(errors)}")
            commit = repo.add(revision, header["summary"], files)
        url = f"{self.hub.endpoint}/{'datasets/' * (repo.type == 'dataset')}{repo.id}/commit/{commit.oid}"
        self._answer({"success": True, "commitOid": commit.oid, "commitUrl": url, "hookOutput": ""})

    def _apply(self, operation: str, value: dict[str, Any], repo: Repo, files: dict[str, Blob]) -> None:
        path = value["path"].rstrip("/")
        if error := path_error(path):
            raise Refused(400, error)
        if operation == "file":
            files[path] = Blob(base64.b64decode(value["content"]), lfs=False)
        elif operation == "lfsFile":
            data = self.hub.objects.get((repo.type, repo.id, value["oid"]))
            if data is None or len(data) != value.get("size", len(data)):
                raise Refused(400, f"LFS pointer of {path} points to a file that does not exist: {value['oid']}")
            files[path] = Blob(data, lfs=True)
        elif operation in ("deletedFile", "deletedFolder"):
            gone = [name for name in files if name == path or name.startswith(f"{path}/")]
            if not gone:
                raise Refused(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            for name in gone:
                del files[name]
        else:
            raise Refused(400, f"Unknown operation {operation}")

    # Reading

    def _info(self, revision: str = "main", **parts: str) -> None:
        repo = self._repo(parts)
        commit = self._at(repo, revision)
        card = front_matter(commit.files["README.md"].data.decode()) if "README.md" in commit.files else None
        card = card or {}
        blobs = "blobs" in self.query
        siblings = [
            {"rfilename": path, **(described(blob) if blobs else {})} for path, blob in sorted(commit.files.items())
        ]
        results = [
            entry
            for path, blob in sorted(commit.files.items())
            if path.startswith(".eval_results/")
            for entry in yaml.safe_load(blob.data)
        ]
        self._answer(
            {
                "id": repo.id,
                "modelId": repo.id,
                "author": repo.id.split("/")[0],
                "sha": commit.oid,
                "createdAt": DATE,
                "lastModified": DATE,
                "private": repo.private,
                "gated": False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": card.get("tags") or [],
                "pipeline_tag": card.get("pipeline_tag"),
                "library_name": card.get("library_name"),
                "model-index": card.get("model-index"),
                "cardData": card,
                "evalResults": results,
                "siblings": siblings,
            }
        )

    def _tree(self, revision: str, path: str = "", **parts: str) -> None:
        commit = self._at(self._repo(parts), revision)
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        expand = self.query.get("expand", ["false"])[0].lower() in ("true", "1")
        inside = [PurePosixPath(name) for name in sorted(commit.files) if not path or name.startswith(f"{path}/")]
        if path and not inside:
            raise Refused(404, f"{path} does not exist on {revision}", "EntryNotFound")
        depth = len(PurePosixPath(path).parts)
        entries: dict[str, dict[str, Any]] = {}
        for name in inside:
            for level in range(depth + 1, len(name.parts) + 1 if recursive else depth + 2):
                part = str(PurePosixPath(*name.parts[:level]))
                entries[part] = entry_of(commit, part, expand)
        self._answer(list(entries.values()))

    def _paths_info(self, revision: str, **parts: str) -> None:
        commit = self._at(self._repo(parts), revision)
        asked = parse_qs(self.body.decode())
        if self.headers.get("Content-Type", "").startswith("application/json"):
            asked = json.loads(self.body)
        paths, expand = asked.get("paths", []), str(asked.get("expand", [""])).lower().find("true") >= 0
        names = [path.strip("/") for path in (paths if isinstance(paths, list) else [paths])]
        known = [
            name for name in names if name in commit.files or any(path.startswith(f"{name}/") for path in commit.files)
        ]
        self._answer([entry_of(commit, name, expand) for name in known])

    def _commits(self, revision: str, **parts: str) -> None:
        repo = self._repo(parts)
        self._at(repo, revision)
        listed = [
            {"id": commit.oid, "title": commit.title, "message": "", "authors": [{"user": "alice"}], "date": DATE}
            for commit in repo.history(revision)
        ]
        self._answer(listed)

    def _refs(self, **parts: str) -> None:
        repo = self._repo(parts)
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": at} for name, at in repo.branches.items()
        ]
        tags = [{"name": name, "ref": f"refs/tags/{name}", "targetCommit": at} for name, at in repo.tags.items()]
        self._answer({"branches": branches, "tags": tags, "converts": [], "pullRequests": []})

    def _add_tag(self, revision: str, **parts: str) -> None:
        repo, tag = self._repo(parts, write=True), json.loads(self.body)["tag"]
        commit = self._at(repo, revision)
        if tag in repo.tags:
            raise Refused(409, f"Tag {tag} already exists")
        repo.tags[tag] = commit.oid
        self._answer({})

    def _delete_tag(self, revision: str, **parts: str) -> None:
        repo = self._repo(parts, write=True)
        if repo.tags.pop(revision, None) is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        self._answer({})

    def _add_branch(self, revision: str, **parts: str) -> None:
        repo = self._repo(parts, write=True)
        start = json.loads(self.body or b"{}").get("startingPoint") or "main"
        if revision in repo.branches:
            raise Refused(409, f"Branch {revision} already exists")
        repo.branches[revision] = self._at(repo, start).oid
        self._answer({})

    def _resolve(self, revision: str, path: str, **parts: str) -> None:
        commit = self._at(self._repo(parts), revision)
        blob = commit.files.get(path)
        if blob is None:
            self._answer(
                {"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit.oid}
            )
            return
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes"}
        if blob.lfs:
            headers |= {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(len(blob.data))}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            self._answer(blob.data, 200, headers)
            return
        first, last = int(asked[1]), min(int(asked[2] or len(blob.data) - 1), len(blob.data) - 1)
        if first >= len(blob.data):
            self._answer(b"", 416, {**headers, "Content-Range": f"bytes */{len(blob.data)}"})
            return
        headers["Content-Range"] = f"bytes {first}-{last}/{len(blob.data)}"
        self._answer(blob.data[first : last + 1], 206, headers)


# The server


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


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        pass  # a client that goes away in mid-request is one of the things to test
