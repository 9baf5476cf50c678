"""Tar archives of recordings in the layout of WebDataset, read as rows.

The files of a sample share their path up to its first dot: `0001.flac`, `0001.txt`, `0001.json`. Knows tar archives on
any file system of fsspec; which of them make a split is found out in `source_files`.
"""

import json
import posixpath
import tarfile
from collections.abc import Iterator
from itertools import islice
from typing import Any, cast

import fsspec
import pyarrow as pa
from datasets import Features, Value

AUDIO_SUFFIXES = ("wav", "flac", "mp3", "ogg", "opus", "oga")
PLAIN_AUDIO = {"bytes": Value("binary"), "path": Value("string")}
"""The feature of the audio column: what `datasets` stores for `Audio`, without its decoder."""
_PROBES = 20


def tar_rows(files: list[str], columns: tuple[str, ...] | None = None) -> Iterator[dict[str, Any]]:
    """The samples of several archives, one after the other; only one sample is in memory at a time.

    Args:
        files (`list[str]`): paths or URLs.
        columns (`tuple[str, ...]`, *optional*): which columns each row has, `None` where a sample lacks one.

    Yields:
        `dict`: `id` (what the names of its files begin with), `audio` (`{"bytes", "path"}`), `text` (of a `.txt`
        file) and every field of a `.json` file. Files of other kinds are passed over.

    Raises:
        ValueError: if an archive is damaged or cut short, or a `.json` file in it holds no JSON object.
    """
    for file in files:
        for row in _samples(file):
            yield row if columns is None else {name: row.get(name) for name in columns}


def tar_features(files: list[str]) -> Features:
    """The columns of the rows, by a look at the first samples; fields that only later samples have are left out.

    Args:
        files (`list[str]`): paths or URLs.

    Raises:
        ValueError: as [`tar_rows`], and if there is no audio in these samples.
    """
    rows = list(islice(tar_rows(files), _PROBES))
    if not any("audio" in row for row in rows):
        raise ValueError(
            f"{files[0]}: expected samples with audio (.{', .'.join(AUDIO_SUFFIXES)}), found none in the first "
            f"{len(rows)}. Names must be alike up to the first dot: 0001.flac, 0001.txt, 0001.json."
        )
    features: dict[str, Any] = {"id": Value("string"), "audio": PLAIN_AUDIO}
    for name in dict.fromkeys(name for row in rows for name in row):
        if name not in features:
            found = pa.array([row.get(name) for row in rows])
            known = found if found.type != pa.null() else found.cast(pa.string())
            features[name] = Features.from_arrow_schema(pa.schema([(name, known.type)]))[name]
    return Features(features)


def _samples(file: str) -> Iterator[dict[str, Any]]:
    try:
        with fsspec.open(file, "rb") as raw:
            stream = _Watched(raw)
            with tarfile.open(fileobj=cast(Any, stream), mode="r|") as archive:
                row: dict[str, Any] = {}
                for member in archive:
                    content = archive.extractfile(member)
                    if content is None:
                        continue  # a folder or a link
                    key, suffix = _split_name(member.name)
                    if row and row["id"] != key:
                        yield row
                        row = {}
                    row.setdefault("id", key)
                    _add(row, suffix, content.read(), f"{file}, {member.name}")
                if row:
                    yield row
            stream.check_end()
    except tarfile.TarError as error:
        raise ValueError(f"{file}: no sound tar archive ({error}). Was it copied whole? Copy it again.") from error


class _Watched:
    """A stream that knows what came last: `tarfile` takes an archive that is cut within a header for a whole one."""

    def __init__(self, stream: Any):
        self.stream, self.last = stream, b""

    def read(self, size: int = -1) -> bytes:
        content: bytes = self.stream.read(size)
        self.last = (self.last + content)[-2 * tarfile.BLOCKSIZE :]
        return content

    def check_end(self) -> None:
        """Raises if the two empty blocks at the end are missing, or something follows them."""
        follows = False
        while rest := self.read(1 << 20):
            follows |= any(rest)
        if follows:
            raise tarfile.ReadError("a second archive follows the first one in this file")
        if any(self.last) or len(self.last) < 2 * tarfile.BLOCKSIZE:
            raise tarfile.ReadError("its end is missing")


def _split_name(name: str) -> tuple[str, str]:
    """`"train/0001.16k.flac"` → `("train/0001", "16k.flac")`, as WebDataset has it."""
    folder, base = posixpath.split(name)
    key, _, suffix = base.partition(".")
    return posixpath.join(folder, key), suffix.lower()


def _add(row: dict[str, Any], suffix: str, content: bytes, where: str) -> None:
    if suffix.rpartition(".")[2] in AUDIO_SUFFIXES:
        row["audio"] = {"bytes": content, "path": f"{row['id']}.{suffix}"}
    elif suffix == "txt":
        row["text"] = content.decode("utf-8", errors="replace").strip()
    elif suffix == "json":
        fields = _read_json(content, where)
        row |= {name: value for name, value in fields.items() if name not in row}


def _read_json(content: bytes, where: str) -> dict[str, Any]:
    try:
        fields = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{where}: expected JSON, got {content[:60]!r} ({error}).") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{where}: expected a JSON object, got {content[:60]!r}.")
    return fields
