"""A store of shards that are complete or absent: the output of labelling and the teacher cache, also after a crash.

A store is a folder with a `run.json`, which records what the shards are computed from, and one folder per shard. A
shard's folder holds its files and a `manifest.json` with their sizes and SHA-256 sums. Locally it is written under a
temporary name, flushed to the disk and renamed: one atomic step commits the files together with their manifest. File
systems without such a rename (fsspec: s3://, gs://, hf://) get the manifest last, which makes the shard count.
"""

import hashlib
import json
import os
import posixpath
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
        info (`dict`): facts of the writer that need no reading of the files, for example row ids and hours.
    """

    name: str
    files: dict[str, dict[str, Any]]
    info: dict[str, Any] = field(default_factory=dict)


class StaleRunError(FileExistsError):
    """The folder holds shards that were computed from something else."""


class ShardStore:
    """A folder of shards, on this machine or on any file system of fsspec.

    Several processes may write at once, each other shards. A process killed at any moment leaves at most an
    unfinished folder, which is never read.

    Args:
        folder (`str` or `Path`): a path or URL; is created by the first write.

    Example:
        ```python
        >>> store = ShardStore("labels")
        >>> store.open_run({"teacher": "openai/whisper-large-v3", "num_beams": 1})
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

    def open_run(self, identity: Mapping[str, Any]) -> None:
        """Records what the shards are computed from, or checks that it is the same as before.

        Args:
            identity (`Mapping`): all that decides the content of the shards, as JSON takes it.

        Raises:
            StaleRunError: if the folder holds shards of another identity (names the entries that differ), or other
                files.
        """
        expected = json.loads(json.dumps(identity))
        existing = self.identity()
        if existing is None:
            self._write_run(json.dumps(expected, indent=2, sort_keys=True))
            existing = self.identity() or {}  # of several processes that start at once, the last one has written it
        if existing != expected:
            names = sorted(name for name in {*existing, *expected} if existing.get(name) != expected.get(name))
            pairs = [f"{name}: {existing.get(name)!r} there, {expected.get(name)!r} asked for" for name in names]
            raise StaleRunError(
                f"{self.root} holds shards of another run ({'; '.join(pairs)}). Shards of two runs must not mix: go "
                "on with the settings of that run, or name another folder."
            )

    def identity(self) -> dict[str, Any] | None:
        """The identity given to [`open_run`], None for a new folder; a `StaleRunError` for one of other files."""
        others = [name for name in self._entries() if not name.startswith(_UNFINISHED)]
        if self.fs.exists(self.path(RUN)):  # after listing: another process may create it in between
            return json.loads(self.fs.cat_file(self.path(RUN)))
        if others:
            raise StaleRunError(
                f"{self.root} holds something already ({', '.join(others[:3])}), but no {RUN}: it is no store of "
                "shards. Name another folder, or remove this one if it is not needed."
            )
        return None

    def commit(self, name: str, write: Callable[[Path], None], info: Mapping[str, Any] | None = None) -> Shard:
        """Writes a shard, completely or not at all.

        Args:
            name (`str`): of the shard, new in this store.
            write (`Callable[[Path], None]`): writes the files into the local folder that it gets.
            info (`Mapping`, *optional*): stored in the manifest, as JSON takes it.

        Raises:
            FileExistsError: if there is a shard of this name.
            OSError: if the disk is full, for example; nothing is left behind then.
        """
        if self._is_committed(name):
            raise FileExistsError(f"{self.path(name)}: there is such a shard already; a shard is written once.")
        with self._staging_folder(name) as folder:
            write(folder)
            files = {}
            for path in sorted(folder.iterdir()):
                _flush(path)
                files[path.name] = {"size": path.stat().st_size, "sha256": _sha256(path.open("rb"))}
            shard = Shard(name, files, dict(info or {}))
            (folder / MANIFEST).write_text(json.dumps(asdict(shard)))
            _flush(folder / MANIFEST)
            if self.local:
                # The rename commits the files together with their manifest. Both folders are flushed as well, or a
                # machine that loses power could keep the new name and lose what is behind it.
                _flush(folder)
                try:
                    os.rename(folder, self.path(name))
                except OSError as error:
                    if self._is_committed(name):  # by another process, since the look above
                        raise FileExistsError(f"{self.path(name)}: there is such a shard already.") from error
                    raise
                _flush(Path(self.root))
            else:
                # Without an atomic rename the manifest comes last: a shard counts from then on.
                for file in [*files, MANIFEST]:
                    self.fs.put_file(str(folder / file), self.path(name, file))
        return shard

    def shards(self) -> list[Shard]:
        """The committed shards, sorted by name; one with a file missing or cut short is left out with a warning."""
        shards = []
        for name in sorted(self.names()):
            shard = self._manifest(name)
            if fault := self._wrong_size(shard):
                logger.warning(f"shard {self.path(name)} is left out: {fault}. Remove it to have it written anew.")
            else:
                shards.append(shard)
        return shards

    def names(self) -> set[str]:
        """Names of the committed shards, without a look at their files."""
        return {name for name in self._entries() if self._is_committed(name)}

    def damaged(self) -> dict[str, str]:
        """Shards whose files are missing, truncated or changed, with the fault. Reads every byte."""
        faults = {}
        for name in self.names():
            shard = self._manifest(name)
            fault = self._wrong_size(shard)
            for file, expected in shard.files.items():
                if not fault and _sha256(self.fs.open(self.path(name, file), "rb")) != expected["sha256"]:
                    fault = f"{file} is not what was written (its SHA-256 differs)"
            if fault:
                faults[name] = fault
        return faults

    def remove(self, name: str) -> None:
        """Removes a shard, if it exists: first its manifest, then its files.

        Unfinished folders of killed processes go too, so only the process that writes this shard may call it.
        """
        if self._is_committed(name):
            self.fs.rm_file(self.path(name, MANIFEST))
        for entry in self._entries():
            if entry == name or entry.startswith(f"{_UNFINISHED}{name}-"):
                self.fs.rm(self.path(entry), recursive=True)

    def _is_committed(self, name: str) -> bool:
        return not name.startswith(_UNFINISHED) and self.fs.exists(self.path(name, MANIFEST))

    def _manifest(self, name: str) -> Shard:
        return Shard(**json.loads(self.fs.cat_file(self.path(name, MANIFEST))))

    def _entries(self) -> list[str]:
        if not self.fs.isdir(self.root):
            return []
        self.fs.invalidate_cache(self.root)  # other processes write here
        return [posixpath.basename(path.rstrip("/")) for path in self.fs.ls(self.root, detail=False)]

    @contextmanager
    def _staging_folder(self, name: str) -> Iterator[Path]:
        """A local folder that is removed afterwards unless it was renamed; beside the shards if they are local."""
        if self.local:
            folder = Path(self.root, f"{_UNFINISHED}{name}-{uuid.uuid4().hex[:8]}")
            folder.mkdir(parents=True)
        else:
            folder = Path(tempfile.mkdtemp())
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _write_run(self, text: str) -> None:
        if not self.local:
            self.fs.pipe_file(self.path(RUN), text.encode())
            return
        os.makedirs(self.root, exist_ok=True)
        unfinished = Path(self.root, f"{_UNFINISHED}{RUN}-{uuid.uuid4().hex[:8]}")
        unfinished.write_text(text)
        _flush(unfinished)
        os.replace(unfinished, self.path(RUN))

    def _wrong_size(self, shard: Shard) -> str | None:
        for file, expected in shard.files.items():
            path = self.path(shard.name, file)
            if not self.fs.exists(path):
                return f"{file} is missing"
            if (size := self.fs.size(path)) != expected["size"]:
                return f"{file} has {size} bytes, {expected['size']} were written"
        return None


def _sha256(file: Any) -> str:
    with file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
