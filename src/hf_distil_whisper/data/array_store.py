"""A mapping from content keys to named arrays, in memory or in memory-mapped shards that processes share."""

import hashlib
import uuid
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from transformers.utils import logging

from hf_distil_whisper.data.shards import ShardStore

logger = logging.get_logger(__name__)

SHARD_BYTES = 256 * 2**20
"""Approximate size of a shard: the work that is lost when a run is killed."""

_ARRAY = "array-"


def content_key(*parts: bytes | np.ndarray) -> bytes:
    """A 16-byte key of the parts: the same on every machine for the same parts, and different for all others."""
    digest = hashlib.sha256()
    for part in parts:
        data = np.ascontiguousarray(part).tobytes() if isinstance(part, np.ndarray) else part
        digest.update(len(data).to_bytes(8, "little"))  # ("ab", "c") is not ("a", "bc")
        digest.update(data)
    return digest.digest()[:16]


class _Block(NamedTuple):
    """The entries of one shard: entry `i` of array `a` is `arrays()[a][offsets[a, i] : offsets[a, i + 1]]`.

    Args:
        keys (`np.ndarray` of shape `(entries, 2)`): as two uint64 each.
        offsets (`np.ndarray` of shape `(arrays, entries + 1)`): in the order of the sorted names.
        content (`dict[str, np.ndarray]` or `str`): the concatenated arrays by sorted name, or the shard's folder.
    """

    keys: np.ndarray
    offsets: np.ndarray
    content: dict[str, np.ndarray] | str

    def arrays(self) -> dict[str, np.ndarray]:
        return _map_arrays(self.content) if isinstance(self.content, str) else self.content

    def write(self, folder: Path) -> None:
        arrays = {f"{_ARRAY}{name}": array for name, array in self.arrays().items()}
        for name, array in {"keys": self.keys, "offsets": self.offsets, **arrays}.items():
            np.save(folder / f"{name}.npy", array, allow_pickle=False)


class ArrayStore:
    """A mapping from content keys to named arrays that survives the run and is shared by processes.

    Entries are collected and committed in shards of `SHARD_BYTES`; other processes see them after `reload`. Without a
    folder they stay in memory.

    Args:
        folder (`str` or `Path`, *optional*): on a local disk, since shards are memory-mapped.
        identity (`Mapping`, *optional*): what the entries are computed from, as for [`ShardStore.open_run`].

    Raises:
        ValueError: if the folder is a URL.
        StaleRunError: if the folder holds entries of another identity.

    Example:
        ```python
        >>> store = ArrayStore("cache/states", {"encoder": fingerprint})
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
            self._shards.open_run(identity or {})
        self._blocks: list[_Block] = []
        self._loaded: set[str] = set()
        self._pending: dict[bytes, dict[str, np.ndarray]] = {}
        self._pending_bytes = 0
        self.reload()

    def __len__(self) -> int:
        return len(self._sorted_keys)

    def __contains__(self, key: bytes) -> bool:
        return key in self._pending or self._find(key) is not None

    def get(self, key: bytes) -> dict[str, np.ndarray] | None:
        """The arrays of an entry, not to be written to; None if there is no such entry."""
        location = self._find(key)
        if location is None:
            return self._pending.get(key)
        block, entry = self._blocks[location[0]], location[1]
        return {
            name: array[offsets[entry] : offsets[entry + 1]]
            for offsets, (name, array) in zip(block.offsets, block.arrays().items(), strict=True)
        }

    def add(self, key: bytes, arrays: Mapping[str, np.ndarray]) -> None:
        """Adds an entry, of the same names, types and trailing dimensions as all others."""
        self._pending[key] = dict(sorted(arrays.items()))
        self._pending_bytes += sum(array.nbytes for array in arrays.values())
        if self._pending_bytes >= SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Commits the pending entries, which then outlive the process.

        Raises:
            OSError: if the disk is full; all shards committed before remain.
        """
        if not self._pending:
            return
        block = _join(self._pending)
        self._pending, self._pending_bytes = {}, 0
        if self._shards is None:
            self._blocks.append(block)
        else:
            name = uuid.uuid4().hex  # processes that write at once need not agree on numbers
            try:
                self._shards.commit(name, block.write, info={"entries": len(block.keys)})
            except OSError as error:
                raise OSError(
                    f"{self._shards.root}: a shard could not be written ({error}). What was written before is kept, "
                    "and a run with the same folder goes on from it: free some space, or name a folder on a larger "
                    "disk (--teacher_cache_dir, or a sweep's --output_dir), or set --teacher_cache none."
                ) from error
            self._blocks.append(_open(self._shards.path(name)))
            self._loaded.add(name)
        self._index()

    def reload(self) -> None:
        """Loads the shards that other processes have committed in the meantime."""
        if self._shards is not None:
            for shard in self._shards.shards():
                if shard.name not in self._loaded:
                    self._blocks.append(_open(self._shards.path(shard.name)))
                    self._loaded.add(shard.name)
        self._index()

    def remove_damaged(self) -> int:
        """Removes shards whose checksum is wrong, so that they are computed again; returns how many."""
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
        """Sorts the keys of all blocks: 24 bytes an entry, which the workers of a loader share, unlike a dict."""
        sizes = [len(block.keys) for block in self._blocks]
        keys = np.concatenate([block.keys for block in self._blocks]) if sizes else np.empty((0, 2), np.uint64)
        self._order = np.lexsort((keys[:, 1], keys[:, 0]))  # by first half, then second
        self._sorted_keys = keys[self._order]
        self._block_starts = np.cumsum([0, *sizes])

    def _find(self, key: bytes) -> tuple[int, int] | None:
        """Block and entry of a key."""
        first, second = np.frombuffer(key, np.uint64)
        # Binary search for the first half; of 2⁶⁴ values it hardly ever has more than one entry.
        position = int(np.searchsorted(self._sorted_keys[:, 0], first))
        while position < len(self._sorted_keys) and self._sorted_keys[position, 0] == first:
            if self._sorted_keys[position, 1] == second:
                entry = int(self._order[position])  # counted over all blocks
                block = int(np.searchsorted(self._block_starts, entry, side="right")) - 1
                return block, entry - int(self._block_starts[block])
            position += 1
        return None


def _join(entries: Mapping[bytes, Mapping[str, np.ndarray]]) -> _Block:
    keys = np.frombuffer(b"".join(entries), np.uint64).reshape(-1, 2)
    names = next(iter(entries.values())).keys()
    columns = {name: [entry[name] for entry in entries.values()] for name in names}
    offsets = np.stack([np.cumsum([0, *map(len, column)]) for column in columns.values()])
    return _Block(keys, offsets, {name: np.concatenate(column) for name, column in columns.items()})


def _open(folder: str) -> _Block:
    return _Block(np.load(Path(folder, "keys.npy")), np.load(Path(folder, "offsets.npy")), folder)


@lru_cache(maxsize=128)  # each array of a shard takes a file descriptor
def _map_arrays(folder: str) -> dict[str, np.ndarray]:
    paths = sorted(Path(folder).glob(f"{_ARRAY}*.npy"))
    return {path.stem.removeprefix(_ARRAY): np.load(path, mmap_mode="r", allow_pickle=False) for path in paths}
