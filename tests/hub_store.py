"""What the Hub on loopback keeps: accounts, files, commits, repositories, and faults to come."""

import hashlib
import secrets
import threading
from dataclasses import dataclass, field
from typing import Any

DATE = "2025-01-01T00:00:00.000Z"


@dataclass(frozen=True)
class Account:
    """Who a token belongs to, and in which namespaces it may write."""

    name: str
    writes: tuple[str, ...]


@dataclass(frozen=True)
class Blob:
    """One file: its content, and whether it lies in large file storage."""

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
        commit, found = self.commit(revision), []
        while commit is not None:
            found.append(commit)
            commit = self.commits.get(commit.parent or "")
        return found

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
