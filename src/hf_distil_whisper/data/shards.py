"""Shards that are there whole or not at all: what labelling and the teacher cache write, and read back after a crash.

A store is a folder with a `run.json`, which says what the shards were computed from, and one folder a shard. A shard's
folder holds its files and a `manifest.json` with their sizes and SHA-256 sums. Locally it is written under another
name, flushed to the disk and renamed: one atomic step commits the files together with their manifest. On other file
systems (fsspec: s3://, gs://, hf://), which have no such rename, the manifest is written last and makes the shard
count. Knows files and folders; what the shards hold is known by those who write them.
"""

import hashlib
import json
import os
import posixpath
import shutil
import tempfile
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from transformers.utils import logging

logger = logging.get_logger(__name__)

MANIFEST, RUN = "manifest.json", "run.json"
_UNFINISHED = ".unfinished-"


@dataclass(frozen=True)
class Shard:
    """A committed shard.

    Args:
        name (`str`): of its folder.
        files (`dict[str, dict]`): name of each file, with its `size` in bytes and its `sha256`.
        info (`dict`): what the writer wanted to know of it without reading it, for example row ids and hours.
    """

    name: str
    files: dict[str, dict[str, Any]]
    info: dict[str, Any] = field(default_factory=dict)


class StaleRunError(FileExistsError):
    """The folder holds shards that were computed from something else."""


class ShardStore:
    """A folder of shards, on this machine or on any file system of fsspec.

    Several processes may write at once, each its own shards. A process killed at any moment leaves at most an
    unfinished folder, which nobody reads.

    Args:
        folder (`str` or `Path`): a path or URL; is created when the first thing is written.

    Example:
        ```python
        >>> store = ShardStore("labels")
        >>> store.begin({"teacher": "openai/whisper-large-v3", "num_beams": 1})
        >>> store.commit("00000", lambda folder: write_rows(folder / "rows.parquet"), info={"rows": 512})
        >>> [shard.info["rows"] for shard in store.shards()]
        [512]
        ```
    """

    def __init__(self, folder: str | Path):
        self.fs, root = fsspec.core.url_to_fs(str(folder))
        self.root = root.rstrip("/")
        self.local = isinstance(self.fs, LocalFileSystem)

    def path(self, *parts: str) -> str:
        """A path within the store, as its file system takes it."""
        return posixpath.join(self.root, *parts)

    def url(self, *parts: str) -> str:
        """The same with its protocol; a plain path on this machine."""
        path = self.path(*parts)
        return path if self.local else self.fs.unstrip_protocol(path)

    # The run

    def begin(self, identity: Mapping[str, Any]) -> None:
        """Says what the shards are computed from, or makes sure that it is what it was.

        Args:
            identity (`Mapping`): all that decides what the shards hold, as JSON takes it: the same values, the same
                shards.

        Raises:
            StaleRunError: if the folder holds shards of another identity (names the entries that differ), or files
                that are no store at all.
        """
        wanted = json.loads(json.dumps(identity))
        there = self.identity()
        if there is None:
            self._write_atomically(RUN, json.dumps(wanted, indent=2, sort_keys=True))
            there = self.identity() or {}  # of several processes that begin at once, the last one has written it
        if there != wanted:
            names = sorted(name for name in {*there, *wanted} if there.get(name) != wanted.get(name))
            pairs = [f"{name}: {there.get(name)!r} there, {wanted.get(name)!r} asked for" for name in names]
            raise StaleRunError(
                f"{self.root} holds shards of another run ({'; '.join(pairs)}). Shards of two runs must not mix: go "
                "on with the settings of that run, or name another folder."
            )

    def identity(self) -> dict[str, Any] | None:
        """What `begin` was told; None for a new or empty folder.

        Raises:
            StaleRunError: if the folder holds files, but no `run.json`.
        """
        others = [name for name in self._names() if not name.startswith(_UNFINISHED)]
        if self.fs.exists(self.path(RUN)):  # asked after the look around: another process may begin in between
            return json.loads(self.fs.cat_file(self.path(RUN)))
        if others:
            raise StaleRunError(
                f"{self.root} holds something already ({', '.join(others[:3])}), but no {RUN}: it is no store of "
                "shards. Name another folder, or remove this one if it is not needed."
            )
        return None

    # Shards

    def commit(self, name: str, write: Callable[[Path], None], info: Mapping[str, Any] | None = None) -> Shard:
        """Writes a shard, whole or not at all.

        Args:
            name (`str`): of the shard, new in this store.
            write (`Callable[[Path], None]`): writes the files into the local folder that it is given.
            info (`Mapping`, *optional*): kept in the manifest, as JSON takes it.

        Raises:
            FileExistsError: if there is a shard of this name.
            OSError: if the disk is full, for example; nothing is left behind then.
        """
        if self._is_committed(name):
            raise FileExistsError(f"{self.path(name)}: there is such a shard already; a shard is written once.")
        with self._new_folder(name) as folder:
            write(folder)
            files = {path.name: _sealed(path) for path in sorted(folder.iterdir())}
            shard = Shard(name, files, dict(info or {}))
            (folder / MANIFEST).write_text(json.dumps(asdict(shard)))
            _sealed(folder / MANIFEST)
            if self.local:
                _flush(folder)
                self._rename(folder, name)
                _flush(Path(self.root))
            else:
                for file in [*files, MANIFEST]:
                    self.fs.put_file(str(folder / file), self.path(name, file))
        return shard

    def shards(self, prefix: str = "") -> list[Shard]:
        """The committed shards whose names begin with `prefix`, by name.

        A shard with a file missing or of another size is no shard: it is left out with a warning; `damaged` looks at
        the contents too.
        """
        found = []
        for name in self._names():
            if name.startswith(prefix) and self._is_committed(name):
                shard = self._manifest(name)
                if wrong := self._wrong_sizes(shard):
                    logger.warning(f"shard {self.path(name)} is left out: {wrong}. Remove it to have it written anew.")
                else:
                    found.append(shard)
        return sorted(found, key=lambda shard: shard.name)

    def names(self) -> set[str]:
        """Of the committed shards, without a look at their files."""
        return {name for name in self._names() if self._is_committed(name)}

    def damaged(self) -> dict[str, str]:
        """Shards whose files are missing, cut short or changed, with what is wrong. Reads every byte."""
        found = {}
        for name in self.names():
            shard = self._manifest(name)
            wrong = self._wrong_sizes(shard)
            for file, expected in shard.files.items():
                if not wrong and self._sha256(self.path(name, file)) != expected["sha256"]:
                    wrong = f"{file} is not what was written (its SHA-256 differs)"
            if wrong:
                found[name] = wrong
        return found

    def remove(self, name: str) -> None:
        """Takes a shard out of the store, if it is there: first what makes it count, then its files.

        What a process that was killed has left of it goes too, so only the one process that writes it may call this.
        """
        if self._is_committed(name):
            self.fs.rm_file(self.path(name, MANIFEST))
        for found in self._names():
            if found == name or found.startswith(f"{_UNFINISHED}{name}-"):
                self.fs.rm(self.path(found), recursive=True)

    # Within

    def _is_committed(self, name: str) -> bool:
        return not name.startswith(_UNFINISHED) and self.fs.exists(self.path(name, MANIFEST))

    def _manifest(self, name: str) -> Shard:
        return Shard(**json.loads(self.fs.cat_file(self.path(name, MANIFEST))))

    def _rename(self, folder: Path, name: str) -> None:
        try:
            os.rename(folder, self.path(name))
        except OSError as error:
            if self._is_committed(name):  # by another process, between our look and now
                raise FileExistsError(f"{self.path(name)}: there is such a shard already.") from error
            raise

    def _names(self) -> list[str]:
        if not self.fs.isdir(self.root):
            return []
        self.fs.invalidate_cache(self.root)
        return [posixpath.basename(path.rstrip("/")) for path in self.fs.ls(self.root, detail=False)]

    def _new_folder(self, name: str) -> Any:
        if self.local:
            os.makedirs(self.root, exist_ok=True)
            return _TemporaryFolder(Path(self.root, f"{_UNFINISHED}{name}-{uuid.uuid4().hex[:8]}"))
        return _TemporaryFolder(Path(tempfile.mkdtemp()))

    def _write_atomically(self, name: str, text: str) -> None:
        if not self.local:
            self.fs.pipe_file(self.path(name), text.encode())
            return
        os.makedirs(self.root, exist_ok=True)
        unfinished = Path(self.root, f"{_UNFINISHED}{name}-{uuid.uuid4().hex[:8]}")
        unfinished.write_text(text)
        _sealed(unfinished)
        os.replace(unfinished, self.path(name))

    def _wrong_sizes(self, shard: Shard) -> str | None:
        for file, expected in shard.files.items():
            path = self.path(shard.name, file)
            if not self.fs.exists(path):
                return f"{file} is missing"
            if (size := self.fs.size(path)) != expected["size"]:
                return f"{file} has {size} bytes, {expected['size']} were written"
        return None

    def _sha256(self, path: str) -> str:
        with self.fs.open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


class _TemporaryFolder:
    """A folder that is gone afterwards, unless it was renamed."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> Path:
        self.path.mkdir(exist_ok=True)
        return self.path

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def _sealed(path: Path) -> dict[str, Any]:
    """Flushes a file to the disk; its size and checksum."""
    _flush(path)
    with open(path, "rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _flush(path: Path) -> None:
    """Without this, a machine that loses power can keep the new name of a file and lose its content."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
