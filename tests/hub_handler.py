"""The routes of the Hub on loopback: one request of the client, answered or refused as the real one does."""

import base64
import hashlib
import json
import re
import socket
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from hub_metadata import front_matter, metadata_errors, name_error, path_error
from hub_store import DATE, Account, Blob, Commit, Fault, Repo, described, entry_of

if TYPE_CHECKING:
    from hub_server import HubServer

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
                found = re.fullmatch(pattern, self.url.path)
                if wanted == method and found:
                    parts = {key: unquote(value) for key, value in found.groupdict().items() if value is not None}
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
            name for name in names if name in commit.files or any(at.startswith(f"{name}/") for at in commit.files)
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
