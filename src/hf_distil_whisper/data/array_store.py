"""What stands for a recording or for rows: equal content, equal key, on every machine.

Knows rows and extractors, nothing of what is kept under a key.
"""

import hashlib
import json
import uuid
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset
from transformers import WhisperProcessor
from transformers.utils import logging

from hf_distil_whisper.data.shards import ShardStore

logger = logging.get_logger(__name__)

SHARD_BYTES = 256 * 2**20
"""About what a shard holds: this much work is lost when a run is killed."""

_ARRAY = "array-"


def content_key(*parts: bytes | np.ndarray) -> bytes:
    """16 bytes that stand for the parts: equal for equal parts, different for all others one will ever meet."""
    digest = hashlib.sha256()
    for part in parts:
        data = np.ascontiguousarray(part).tobytes() if isinstance(part, np.ndarray) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.digest()[:16]


class _Block(NamedTuple):
    """The entries of one shard.

    Args:
        keys (`np.ndarray` of shape `(entries, 2)`): as two unsigned integers each.
        offsets (`np.ndarray` of shape `(arrays, entries + 1)`): where each entry begins in each array, and the end.
        content (`dict[str, np.ndarray]` or `str`): the arrays by name, sorted, or the shard's folder.
    """

    keys: np.ndarray
    offsets: np.ndarray
    content: dict[str, np.ndarray] | str

    def arrays(self) -> dict[str, np.ndarray]:
        return _mapped_arrays(self.content) if isinstance(self.content, str) else self.content


class CacheStore:
    """A mapping from content keys to named arrays that survives the run and is shared by processes.

    Entries are collected and committed in shards of `SHARD_BYTES`, from then on other processes find them after
    `reload`. Without a folder they stay in memory.

    Args:
        folder (`str` or `Path`, *optional*): on a local disk, since shards are memory-mapped.
        identity (`Mapping`, *optional*): what the entries were computed from, as for [`ShardStore.begin`].

    Raises:
        ValueError: if the folder is a URL.
        StaleRunError: if the folder holds entries of another identity.

    Example:
        ```python
        >>> store = CacheStore("cache/states", {"encoder": fingerprint})
        >>> store.add(content_key(recording), {"states": np.zeros((1500, 384), np.float16)})
        >>> store.flush()
        >>> store.get(content_key(recording))["states"].shape
        (1500, 384)
        ```
    """

    def __init__(self, folder: str | Path | None = None, identity: Mapping[str, Any] | None = None):
        self._shards = None if folder is None else ShardStore(folder)
        if self._shards is not None:
            if not self._shards.local:
                raise ValueError(
                    f"{folder}: expected a folder on a local disk, since the cache is mapped into memory, got a URL. "
                    "Set --teacher_cache_dir to a local folder."
                )
            self._shards.begin(identity or {})
        self._blocks: list[_Block] = []
        self._loaded: set[str] = set()
        self._waiting: dict[bytes, dict[str, np.ndarray]] = {}
        self._waiting_bytes = 0
        self.reload()

    def __len__(self) -> int:
        return len(self._sorted)

    def __contains__(self, key: bytes) -> bool:
        return key in self._waiting or self._find(key) is not None

    def get(self, key: bytes) -> dict[str, np.ndarray] | None:
        """The arrays of an entry, not to be written to; None if there is no such entry."""
        found = self._find(key)
        if found is None:
            return self._waiting.get(key)
        block, entry = self._blocks[found[0]], found[1]
        return {
            name: array[offsets[entry] : offsets[entry + 1]]
            for offsets, (name, array) in zip(block.offsets, block.arrays().items(), strict=True)
        }

    def add(self, key: bytes, arrays: Mapping[str, np.ndarray]) -> None:
        """Keeps an entry; commits a shard when enough have come together.

        Args:
            key (`bytes`): from [`content_key`].
            arrays (`Mapping[str, np.ndarray]`): the same names, types and trailing dimensions for all entries.
        """
        self._waiting[key] = dict(sorted(arrays.items()))
        self._waiting_bytes += sum(array.nbytes for array in arrays.values())
        if self._waiting_bytes >= SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Commits what has been added; from here on it outlives the process.

        Raises:
            OSError: if the disk is full; all shards committed before are kept.
        """
        if not self._waiting:
            return
        block = _joined(self._waiting)
        self._waiting, self._waiting_bytes = {}, 0
        if self._shards is None:
            self._blocks.append(block)
        else:
            # Its own name for each: processes that write at once need not agree on numbers.
            name = uuid.uuid4().hex
            try:
                self._shards.commit(name, lambda folder: _write(block, folder), info={"entries": len(block.keys)})
            except OSError as error:
                raise OSError(
                    f"{self._shards.root}: a shard could not be written ({error}). What was written before is kept, "
                    "and a run with the same folder goes on from it: make room, or name a folder on a larger disk "
                    "(--teacher_cache_dir, or a sweep's --output_dir), or set --teacher_cache none."
                ) from error
            self._blocks.append(_opened(self._shards.path(name)))
            self._loaded.add(name)
        self._index()

    def reload(self) -> None:
        """Finds what other processes have committed in the meantime."""
        if self._shards is not None:
            for shard in self._shards.shards():
                if shard.name not in self._loaded:
                    self._blocks.append(_opened(self._shards.path(shard.name)))
                    self._loaded.add(shard.name)
        self._index()

    def remove_damaged(self) -> int:
        """Takes shards out whose checksum is wrong, so that they are computed anew. Reads every byte.

        Returns:
            `int`: how many.
        """
        if self._shards is None:
            return 0
        damaged = self._shards.damaged()
        for name, reason in damaged.items():
            logger.warning(f"teacher cache: shard {self._shards.path(name)} is computed anew: {reason}")
            self._shards.remove(name)
        if damaged:
            self._blocks, self._loaded = [], set()
            self.reload()
        return len(damaged)

    def _index(self) -> None:
        """Keys of all blocks in order: 24 bytes an entry, shared with the workers of a loader."""
        sizes = [len(block.keys) for block in self._blocks]
        keys = np.concatenate([block.keys for block in self._blocks]) if sizes else np.empty((0, 2), np.uint64)
        order = np.lexsort((keys[:, 1], keys[:, 0]))
        self._sorted = keys[order]
        self._places = order
        self._starts = np.cumsum([0, *sizes])

    def _find(self, key: bytes) -> tuple[int, int] | None:
        """Block and entry of a key."""
        first, second = np.frombuffer(key, np.uint64)
        position = int(np.searchsorted(self._sorted[:, 0], first))
        while position < len(self._sorted) and self._sorted[position, 0] == first:
            if self._sorted[position, 1] == second:
                place = int(self._places[position])
                block = int(np.searchsorted(self._starts, place, side="right")) - 1
                return block, place - int(self._starts[block])
            position += 1
        return None


def _joined(entries: Mapping[bytes, Mapping[str, np.ndarray]]) -> _Block:
    names = next(iter(entries.values())).keys()
    keys = np.frombuffer(b"".join(entries), np.uint64).reshape(-1, 2)
    columns = {name: [entry[name] for entry in entries.values()] for name in names}
    return _Block(
        keys,
        np.stack([np.cumsum([0, *map(len, column)]) for column in columns.values()]),
        {name: np.concatenate(column) for name, column in columns.items()},
    )


def _write(block: _Block, folder: Path) -> None:
    for name, array in (("keys", block.keys), ("offsets", block.offsets)):
        np.save(folder / f"{name}.npy", array, allow_pickle=False)
    for name, array in block.arrays().items():
        np.save(folder / f"{_ARRAY}{name}.npy", array, allow_pickle=False)


def _opened(folder: str) -> _Block:
    return _Block(np.load(Path(folder, "keys.npy")), np.load(Path(folder, "offsets.npy")), folder)


@lru_cache(maxsize=128)
def _mapped_arrays(folder: str) -> dict[str, np.ndarray]:
    """The arrays of a shard; a bounded number of shards, since each array takes a file descriptor."""
    paths = sorted(Path(folder).glob(f"{_ARRAY}*.npy"))
    return {path.stem.removeprefix(_ARRAY): np.load(path, mmap_mode="r", allow_pickle=False) for path in paths}


def recording_key(audio: Any, settings: bytes, name: str) -> bytes:
    """The key of a row's recording, which is read as it is stored and not decoded.

    Args:
        audio (`dict`, `str` or `Path`): as [`load_source`] gives it.
        settings (`bytes`): from [`extractor_settings`].
        name (`str`): of the row; stands for a recording that cannot be read, which is found out when it is decoded.
    """
    if isinstance(audio, dict) and audio.get("bytes") is not None:
        return content_key(audio["bytes"], settings)
    try:
        return content_key(Path(audio["path"] if isinstance(audio, dict) else audio).read_bytes(), settings)
    except (OSError, TypeError, KeyError):
        return content_key(f"{name}: {audio!r}"[:1000].encode(), settings)


def extractor_settings(processor: WhisperProcessor) -> bytes:
    """What a processor does to audio.

    Args:
        processor (`WhisperProcessor`): of the model that listens.
    """
    return json.dumps(processor.feature_extractor.to_dict(), sort_keys=True, default=str).encode()


def rows_fingerprint(rows: Dataset) -> str:
    """What a data set says beside its audio, which is not read: ids, texts, labels and all else of every row.

    That of `datasets` depends on paths and times of files in a cache, and so on the machine.

    Args:
        rows (`Dataset`): any.

    Returns:
        `str`: 16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    told = rows.select_columns(sorted({*rows.column_names} - {"audio"}))
    for part in told.with_format("arrow").iter(batch_size=10_000):
        for row in part.to_pylist():
            digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()[:16]
