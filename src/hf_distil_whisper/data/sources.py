"""Loads recordings from folders, manifests, Parquet, Arrow and tar files, URLs and the Hub.

Whatever they come from, rows and streams have the same columns.
"""

import csv
import dataclasses
import hashlib
import json
import os
import posixpath
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, overload

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Audio, ClassLabel, Dataset, Features, IterableDataset, Value, concatenate_datasets, load_dataset
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from datasets.fingerprint import Hasher
from datasets.table import InMemoryTable
from pyarrow.dataset import ParquetFragmentScanOptions
from tqdm.auto import tqdm

from hf_distil_whisper.data.audio import AudioError, audio_duration
from hf_distil_whisper.data.shards import RUN, ShardStore

Rows = TypeVar("Rows", Dataset, IterableDataset)

PLAIN_AUDIO = {"bytes": Value("binary"), "path": Value("string")}
"""The feature of the audio column: what `datasets` stores for `Audio`, without its decoder."""
AUDIO_SUFFIXES = ("wav", "flac", "mp3", "ogg", "opus", "oga")
METADATA_FILES = ("metadata.jsonl", "metadata.csv")
MANIFESTS = (".jsonl", ".csv")
SHARD_SUFFIXES = (".parquet", ".arrow", ".tar")
"""Files whose rows hold their audio."""
SPLIT_FOLDERS = ("train", "validation", "valid", "val", "dev", "test")
INDEX, ROWS = "row_index.json", "rows.npy"
"""Files of a row index: the data set that the rows were chosen from, and their indices."""
ROWS_FILE = "rows.parquet"
"""The rows of a labelled shard."""
END_OF_FILE = "-end"
"""Suffix of the name of the shard that holds the last rows of a stream's file."""
STREAM_SHARDS = 64
"""Shards that a data set without files is split into when it is streamed."""
PROBES = 200
"""Rows whose headers are read to estimate a mean duration."""


@dataclass
class RowErrors:
    """Rows that were left out, each with its reason: a bad row costs that row and never the run.

    Args:
        rows (`list[tuple[str, str]]`, *optional*): pairs of row id and message.
    """

    rows: list[tuple[str, str]] = field(default_factory=list)

    def add(self, row: object, message: object) -> None:
        """Adds a row that was left out and the reason."""
        self.rows.append((str(row), str(message)))

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self.rows)

    def summary(self, limit: int = 20) -> str:
        """The count and the first `limit` rows as text, for the end of a run. Empty if no row was left out."""
        if not self.rows:
            return ""
        lines = [f"{len(self)} row{'s' if len(self) > 1 else ''} left out:"]
        for row, message in self.rows[:limit]:
            # Messages about audio start with the row's id and need it no second time.
            lines.append(f"  {message}" if message.startswith(row) else f"  {row}: {message}")
        if len(self) > limit:
            lines.append(f"  ... and {len(self) - limit} more")
        return "\n".join(lines)


@dataclass(frozen=True)
class Columns:
    """Names that the columns have in a data set. [`load_source`] renames them to the names of these fields.

    Args:
        audio (`str`, *optional*, defaults to `"audio"`): the recording.
        text (`str`, *optional*, defaults to `"text"`): its transcript; `None` for recordings without transcripts.
        speaker (`str`, *optional*): by default the column `speaker`, if there is one.
        recording (`str`, *optional*): what an utterance was cut from; by default the column `recording`, if there is
            one.
        language (`str`, *optional*): code or name of the language of each row, null where it is not known; by default
            the column `language`, if there is one. Labelling, filter and training use it row by row.
        id (`str`, *optional*): by default the column `id`, else split and row number.
    """

    audio: str = "audio"
    text: str | None = "text"
    speaker: str | None = None
    recording: str | None = None
    language: str | None = None
    id: str | None = None

    def renaming(self) -> dict[str, str | None]:
        """For [`name_columns`]. The text comes last: another column may have been called `text` before."""
        names = dataclasses.asdict(self)
        return {name: names[name] for name in ("audio", "speaker", "recording", "language", "id", "text")}


@overload
def load_source(
    name_or_path: str | Path,
    *,
    split: str = ...,
    config: str | None = ...,
    revision: str | None = ...,
    columns: Columns | None = ...,
    max_samples: int | None = ...,
    streaming: Literal[False] = ...,
    **column_names: str | None,
) -> Dataset: ...


@overload
def load_source(
    name_or_path: str | Path,
    *,
    split: str = ...,
    config: str | None = ...,
    revision: str | None = ...,
    columns: Columns | None = ...,
    max_samples: int | None = ...,
    streaming: Literal[True],
    **column_names: str | None,
) -> IterableDataset: ...


def load_source(
    name_or_path: str | Path,
    *,
    split: str = "train",
    config: str | None = None,
    revision: str | None = None,
    columns: Columns | None = None,
    max_samples: int | None = None,
    streaming: bool = False,
    **column_names: str | None,
) -> Dataset | IterableDataset:
    """Loads one split of recordings and renames its columns to the names that the rest of the library uses.

    Args:
        name_or_path (`str` or `Path`):
            A folder or URL written by [`pseudo_label_dataset`]; one written by the command `filter`; a folder written
            by `save_to_disk`; a folder with `metadata.jsonl` or `metadata.csv` (column `file_name`; splits by a column
            `split` or by sub-folders); Parquet, Arrow or tar files in the layout of WebDataset: one, a folder of them,
            or a URL with wildcards; a `.jsonl` or `.csv` manifest with paths; or a data set on the Hub.
        split (`str`, *optional*, defaults to `"train"`): name of the split, unchanged; several joined by `+`. Where
            nothing is split, everything is `"train"`.
        config (`str`, *optional*): configuration of a data set on the Hub, or sub-folder with Parquet, Arrow or tar.
        revision (`str`, *optional*): of a data set on the Hub.
        columns ([`Columns`], *optional*): names of the columns in the data set.
        max_samples (`int`, *optional*): only the first `max_samples` rows; by default all.
        streaming (`bool`, *optional*, defaults to `False`): whether to return a stream: nothing is downloaded or
            copied before it is read. Rows without an id are named after their audio, since a stream has no row
            numbers.
        **column_names (`str`, *optional*): fields of [`Columns`] as keywords, such as `text_column="sentence"`.

    Returns:
        `Dataset` or `IterableDataset`: `id` (string), `audio` (`{"bytes", "path"}`, not decoded), `text` (string or
        null), `speaker`, `recording` and `language` if known, and every other column as it was. Columns renamed to one
        of these replace a column that had the name before. The labelled data sets of the reference scripts
        (`whisper_transcript`, `condition_on_prev`) are read as they are. The shards of a stream are the files of the
        source; processes and workers share them.

    Raises:
        FileNotFoundError: if there is neither such a path nor such a data set.
        ValueError: for a missing split, configuration or column (the message lists those that exist) and for 0 rows.

    Example:
        ```python
        >>> load_source("my_recordings", split="train", text_column="sentence")
        >>> next(iter(load_source("s3://speech/train-*.tar", streaming=True)))["text"]
        ```
    """
    if max_samples is not None and max_samples < 1:
        raise ValueError(f"max_samples: expected a number of rows of at least 1, got {max_samples}.")
    columns = _merge_column_names(columns or Columns(), column_names)
    parts: list[Any] = []
    for name in split.split("+"):
        where = f"{name_or_path}, split {name!r}"
        rows = _open_split(name_or_path, name, config, revision, columns.audio, streaming)
        if isinstance(rows, Dataset) and not len(rows):
            raise ValueError(f"{where}: 0 rows; expected at least one. Check the path, the split and what made it.")
        if streaming:
            parts.append(_standard_stream(rows, columns, where))
            continue
        rows = _plain_audio(name_columns(cast(Dataset, rows), columns.renaming(), where))
        if columns.text is not None:
            rows = _as_strings(rows, "text")
        if "language" in rows.column_names:
            rows = _as_strings(rows, "language")
        parts.append(_with_ids(rows, name))
    joined = parts[0] if len(parts) == 1 else concatenate_datasets(parts)
    if max_samples is None:
        return joined
    return joined.take(max_samples if streaming else min(max_samples, len(joined)))


def _merge_column_names(columns: Columns, names: Mapping[str, str | None]) -> Columns:
    options = {f"{column.name}_column": column.name for column in dataclasses.fields(Columns)}
    for name in names:
        if name not in options:
            existing = ", ".join(options)
            raise TypeError(f"load_source() got an unexpected keyword argument {name!r}; the columns are {existing}.")
    changes: dict[str, Any] = {options[name]: column for name, column in names.items()}
    return dataclasses.replace(columns, **changes)


# From a name or path to one split, with the columns as they are


def _open_split(
    name_or_path: str | Path, split: str, config: str | None, revision: str | None, audio_column: str, streaming: bool
) -> Dataset | IterableDataset:
    """One split as it is stored; with `streaming` a stream where the rows hold their audio and need no index."""
    path = Path(name_or_path).expanduser()
    remote = "://" in str(name_or_path)
    if (path / INDEX).is_file():
        if split != "train":
            raise _no_split(path, split, ["train"])
        return _load_row_index(path)
    if (remote and path.suffix not in SHARD_SUFFIXES) or (path / RUN).is_file():
        store = ShardStore(name_or_path)
        if store.identity() is None:
            raise FileNotFoundError(f"{name_or_path}: no labelled shards there. Correct the path of the data set.")
        if split != "train":
            raise _no_split(path, split, ["train"])
        return _stream_files(shard_files(store), split) if streaming else load_shards(store)
    if not path.exists() and not remote:
        return _load_from_hub(str(name_or_path), split, config, revision, streaming)
    if revision is not None:
        raise ValueError(f"{path}: `revision` is for data sets on the Hub, this one is a path.")
    if path.is_dir() and config is None:
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            return _load_saved(path, split)
        for file in METADATA_FILES:
            if (path / file).exists():
                return _load_metadata(path / file, split, audio_column)
        by_split = {file.parent.name: file for name in METADATA_FILES for file in sorted(path.glob(f"*/{name}"))}
        if by_split and split not in by_split:
            raise _no_split(path, split, by_split)
        if by_split:
            return _load_metadata(by_split[split], None, audio_column)
    if path.suffix in MANIFESTS:
        return _load_metadata(path, split, audio_column)
    files = _find_files(name_or_path if remote else path, split, config)
    if streaming:
        return _stream_files(files, split)
    # Arrow files are memory-mapped, rows of the others copied into the cache of `datasets` once.
    if files[0].endswith(".arrow"):
        return concatenate_datasets([Dataset.from_file(file) for file in files])
    return _read_parquet(files, split) if files[0].endswith(".parquet") else _read_tar(files, split)


def _no_split(where: Path, split: str, names: Iterable[object]) -> ValueError:
    existing = ", ".join(map(str, names))
    return ValueError(f"{where}: no split {split!r}; there is {existing}. Set `split` to one of them.")


def _load_from_hub(
    name: str, split: str, config: str | None, revision: str | None, streaming: bool
) -> Dataset | IterableDataset:
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).suffix in MANIFESTS + SHARD_SUFFIXES:
        raise FileNotFoundError(f"{name}: no such folder or file. Correct the path of the data set.")
    try:
        return load_dataset(name, config, split=split, revision=revision, streaming=streaming)
    except (DatasetNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(
            f"{name}: neither a folder or file here nor a data set that can be reached on the Hub ({error})."
        ) from error
    except ValueError as error:
        raise ValueError(f"{name} (`config` {config!r}, `split` {split!r}): {error}") from error


def _load_saved(path: Path, split: str) -> Dataset:
    """A split of what `save_to_disk` has written, of a `Dataset` or `DatasetDict`."""
    folder = path
    if (path / "dataset_dict.json").exists():
        splits = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        if split not in splits:
            raise _no_split(path, split, splits)
        folder = path / split
    # `load_from_disk` raises a bare IndexError for 0 rows.
    if not json.loads((folder / "state.json").read_text(encoding="utf-8"))["_data_files"]:
        return Dataset.from_dict({})
    saved = Dataset.load_from_disk(str(folder))
    # A data set without siblings is what the default split means, whatever it was called when it was saved.
    if folder == path and split not in ("train", str(saved.split)):
        raise _no_split(path, split, ["train" if saved.split is None else str(saved.split)])
    return saved


# Metadata and manifests


def _load_metadata(file: Path, split: str | None, audio_column: str) -> Dataset:
    """Rows of a `metadata.*` file or manifest, of all splits if `split` is None; paths are relative to its folder."""
    rows = _read_csv(file) if file.suffix == ".csv" else _read_jsonl(file)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    if not rows:
        return Dataset.from_dict({})
    path_column = audio_column if audio_column in columns else "file_name"
    if path_column not in columns:
        raise ValueError(
            f"{file}: expected the path of each recording in a column {audio_column!r} (`audio_column`) or "
            f"'file_name', got the columns {columns}."
        )
    if split is not None:
        rows = _rows_of_split(file, rows, split, path_column)
    table = {}
    for column in columns:
        if column != audio_column:
            try:
                table[column] = pa.array([row.get(column) for row in rows])
            except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                raise ValueError(f"{file}: column {column!r} holds values of different kinds: {error}.") from error
    audio = [{"bytes": None, "path": _absolute_path(row.get(path_column), file.parent)} for row in rows]
    table[audio_column] = pa.array(audio, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    return Dataset.from_dict(table)


def _rows_of_split(file: Path, rows: list[dict], split: str, path_column: str) -> list[dict]:
    """By the column `split`, else by the first folder of the paths if all of them are called like splits."""
    if any("split" in row for row in rows):
        names = [row.get("split") for row in rows]
    else:
        names = [Path(str(row.get(path_column))).parts[0] for row in rows]
        if not set(names) <= set(SPLIT_FOLDERS):
            names = ["train"] * len(rows)
    if split not in names:
        raise _no_split(file, split, sorted({str(name) for name in names}))
    return [row for row, name in zip(rows, names, strict=True) if name == split]


def _read_jsonl(file: Path) -> list[dict]:
    # Not `splitlines`, which also splits at the line separators (U+2028) that a transcript may hold.
    lines = enumerate(file.read_text(encoding="utf-8-sig").split("\n"), start=1)
    expected = "one JSON object per line"
    return [_parse_json_object(line, f"{file}, line {number}", expected) for number, line in lines if line.strip()]


def _read_csv(file: Path) -> list[dict]:
    # Not pandas, which takes a spoken "null" or "NA" for a missing text.
    with file.open(newline="", encoding="utf-8-sig") as handle:
        rows = list(csv.DictReader(handle))
    return [{key: value or None for key, value in row.items() if key is not None} for row in rows]


def _parse_json_object(content: str | bytes, where: str, expected: str) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{where}: expected {expected}, got {content[:60]!r} ({error}).") from error
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected a JSON object, got {content[:60]!r}.")
    return value


def _absolute_path(value: object, folder: Path) -> str | None:
    if isinstance(value, dict):
        value = value.get("path")
    return os.path.abspath(folder / value) if isinstance(value, str) and value else None


# Parquet, Arrow and tar files


def _find_files(name_or_path: str | Path, split: str, config: str | None) -> list[str]:
    """Files of a split, by their names (`test-00000-of-00002.parquet`, `test-00000.tar`) or folders.

    `datasets` finds files by patterns too, but renames splits ("dev" to "validation") and joins what it does not know,
    such as folders of two configurations, to one "train".
    """
    by_split: dict[str, list[str]] = {}
    configs = set()
    root = Path(name_or_path) if config is None else Path(name_or_path, config)
    if "://" in str(name_or_path):
        filesystem, pattern = fsspec.core.url_to_fs(str(name_or_path))
        for path in sorted(filesystem.glob(pattern)):
            by_split.setdefault(_split_of(Path(path)), []).append(filesystem.unstrip_protocol(path))
        if not by_split:
            raise FileNotFoundError(f"{name_or_path}: no such files. Correct the URL of the data set.")
    elif root.is_file():
        if root.suffix not in SHARD_SUFFIXES:
            raise ValueError(
                f"{root}: expected a folder or a {', '.join(SHARD_SUFFIXES)}, .jsonl or .csv file, got "
                f"{root.suffix or 'no suffix'}."
            )
        by_split = {name: [str(root)] for name in {"train", _split_of(root)}}
    else:
        patterns = [folder + suffix for suffix in SHARD_SUFFIXES for folder in ("*", "*/*")]
        for file in sorted(file for pattern in patterns for file in root.glob(pattern)):
            name, folder = _split_of(file), file.parent.name
            if file.parent == root or folder in ("data", name):
                by_split.setdefault(name, []).append(str(file))
            elif re.search(r"-of-\d+", file.stem):
                configs.add(folder)
            else:
                by_split.setdefault(folder, []).append(str(file))
    if not by_split:
        hint = f"it has the configurations {sorted(configs)}: set `config`" if configs else "there is nothing of that"
        raise ValueError(
            f"{root}: expected a folder of `save_to_disk`, a metadata.jsonl or metadata.csv (one for all or one for "
            f"each split's sub-folder), or {', '.join(SHARD_SUFFIXES)} files; {hint}."
        )
    if split not in by_split:
        raise _no_split(root, split, sorted(by_split))
    kinds = sorted({Path(file).suffix for file in by_split[split]})
    if len(kinds) > 1:
        raise ValueError(f"{root}, split {split!r}: files of several kinds ({', '.join(kinds)}); expected one kind.")
    return by_split[split]


def _split_of(file: Path) -> str:
    """`train-00000-of-00002` → `train`, `test_003` → `test`; without such a name, `train`."""
    if sharded := re.fullmatch(r"(.+?)-\d+-of-\d+.*", file.stem):
        return sharded[1]
    name = re.sub(r"[-_.]\d+$", "", file.stem)
    return name if name in SPLIT_FOLDERS else "train"


def _read_parquet(files: list[str], split: str = "train", features: Features | None = None) -> Dataset:
    # Every record batch of the cache costs 5 KB of memory for as long as it is open: with 100 rows each, the default
    # for audio, ten million rows would take half a gigabyte.
    options = ParquetFragmentScanOptions(pre_buffer=False)
    return Dataset.from_parquet(
        files, split=split, features=features, writer_batch_size=1000, fragment_scan_options=options
    )


def _read_tar(files: list[str], split: str) -> Dataset:
    features = tar_features(files)
    # The cache identifies a generator by its arguments, and archives of the same names may have been rewritten.
    state = [repr(features)]
    for file in files:
        state.append(file if "://" in file else f"{file} {os.stat(file).st_size} {os.stat(file).st_mtime_ns}")
    try:
        return Dataset.from_generator(
            tar_rows,
            features=features,
            gen_kwargs={"files": files, "columns": (*features,)},
            split=split,
            fingerprint=hashlib.sha256("\n".join(state).encode()).hexdigest()[:16],
        )
    except DatasetGenerationError as error:  # hides the message that names the archive
        raise ValueError(str(error.__cause__)) from error


def _stream_files(files: list[str], split: str) -> IterableDataset:
    """Rows of Parquet, Arrow or tar files, one after the other; nothing is copied. Each file is a shard."""
    suffix = Path(files[0]).suffix
    if suffix != ".tar":
        return load_dataset(suffix.removeprefix("."), data_files={split: files}, split=split, streaming=True)
    features = tar_features(files)
    return IterableDataset.from_generator(
        tar_rows, features=features, gen_kwargs={"files": files, "columns": (*features,)}, split=split
    )


def tar_rows(files: list[str], columns: tuple[str, ...] | None = None) -> Iterator[dict[str, Any]]:
    """Samples of archives in the layout of WebDataset, one after the other; only one is in memory at a time.

    Yields:
        `dict`: `id` (the common prefix of the names of its files), `audio` (`{"bytes", "path"}`), `text` (of a `.txt`
        file) and every field of a `.json` file, or `columns` alone, `None` where a sample lacks one.

    Raises:
        ValueError: if an archive is damaged or truncated, or a `.json` file in it holds no JSON object.
    """
    # Not the `webdataset` builder of `datasets`: it refuses archives where one of the first samples has no text, and
    # takes one that is cut within a header for a complete one.
    for file in files:
        try:
            for row in _tar_samples(file):
                yield row if columns is None else {name: row.get(name) for name in columns}
        except tarfile.TarError as error:
            raise ValueError(f"{file}: no sound tar archive ({error}). Was it copied whole? Copy it again.") from error


def tar_features(files: list[str]) -> Features:
    """Features of [`tar_rows`], inferred from the first 20 samples; a `ValueError` if there is no audio in these."""
    rows = list(islice(tar_rows(files), 20))
    if not any("audio" in row for row in rows):
        raise ValueError(
            f"{files[0]}: expected samples with audio (.{', .'.join(AUDIO_SUFFIXES)}), got none in the first "
            f"{len(rows)}. Names must be alike up to the first dot: 0001.flac, 0001.txt, 0001.json."
        )
    features: dict[str, Any] = {"id": Value("string"), "audio": PLAIN_AUDIO}
    for name in dict.fromkeys(name for row in rows for name in row):
        if name not in features:
            values = pa.array([row.get(name) for row in rows])
            kind = pa.string() if values.type == pa.null() else values.type
            features[name] = Features.from_arrow_schema(pa.schema([(name, kind)]))[name]
    return Features(features)


def _tar_samples(file: str) -> Iterator[dict[str, Any]]:
    with fsspec.open(file, "rb") as raw:
        stream = _EndCheckingStream(raw)
        with tarfile.open(fileobj=cast(Any, stream), mode="r|") as archive:
            row: dict[str, Any] = {}
            for member in archive:
                content = archive.extractfile(member)
                if content is None:
                    continue  # a folder or a link
                # "train/0001.16k.flac" → "train/0001" and "16k.flac", as WebDataset has it
                folder, base = posixpath.split(member.name)
                key, _, suffix = base.partition(".")
                key, suffix = posixpath.join(folder, key), suffix.lower()
                if row and row["id"] != key:
                    yield row
                    row = {}
                row.setdefault("id", key)
                if suffix.rpartition(".")[2] in AUDIO_SUFFIXES:
                    row["audio"] = {"bytes": content.read(), "path": f"{key}.{suffix}"}
                elif suffix == "txt":
                    row["text"] = content.read().decode("utf-8", errors="replace").strip()
                elif suffix == "json":
                    fields = _parse_json_object(content.read(), f"{file}, {member.name}", "JSON")
                    row |= {name: value for name, value in fields.items() if name not in row}
            if row:
                yield row
        stream.check_end()


class _EndCheckingStream:
    """Remembers the last two blocks, since `tarfile` takes an archive that is cut within a header for a whole one."""

    def __init__(self, stream: Any):
        self.stream, self.tail = stream, b""

    def read(self, size: int = -1) -> bytes:
        content: bytes = self.stream.read(size)
        self.tail = (self.tail + content)[-2 * tarfile.BLOCKSIZE :]
        return content

    def check_end(self) -> None:
        """Raises if the two empty blocks at the end are missing, or something follows them."""
        is_followed = False
        while rest := self.read(1 << 20):
            is_followed |= any(rest)
        if is_followed:
            raise tarfile.ReadError("a second archive follows the first one in this file")
        if any(self.tail) or len(self.tail) < 2 * tarfile.BLOCKSIZE:
            raise tarfile.ReadError("its end is missing")


# Labelled shards


def load_shards(store: ShardStore, features: Features | None = None) -> Dataset:
    """The labelled rows of all shards of [`pseudo_label_dataset`], in the order of their source.

    Raises:
        ValueError: if the labelling is not complete, or a shard has been damaged since.
    """
    files = shard_files(store)
    return _read_parquet(files, features=features) if files else Dataset.from_dict({})


def shard_files(store: ShardStore) -> list[str]:
    """Paths or URLs of the Parquet files behind [`load_shards`], which raises the same."""
    shards, run = store.shards(), store.identity() or {}
    if "files" in run:
        count, expected, unit = sum(shard.name.endswith(END_OF_FILE) for shard in shards), run["files"], "files"
    else:
        count, expected, unit = sum(shard.info["source_rows"] for shard in shards), run.get("rows", 0), "rows"
    if count != expected:
        raise ValueError(
            f"{store.root}: labels of {count} {unit} are there, {expected} were to be labelled. Start the labelling "
            "again with the same settings: it goes on where it was."
        )
    return [store.url(shard.name, ROWS_FILE) for shard in shards if shard.info["rows"]]


# Row indices


def write_row_index(
    folder: str | Path, source: Mapping[str, Any], num_rows: int, rows: Sequence[int] | np.ndarray
) -> None:
    """Writes a selection of rows of a data set as a folder that [`load_source`] reads, without copying the rows.

    Args:
        folder (`str` or `Path`): is created.
        source (`Mapping`): arguments of [`load_source`] by name; a path is made absolute.
        num_rows (`int`): of the data set, to notice when it has changed.
        rows (`Sequence[int]`): indices of the selected rows.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = Path(str(source["name_or_path"])).expanduser()
    name = str(path.resolve() if path.exists() else source["name_or_path"])
    np.save(folder / ROWS, np.asarray(rows, dtype=np.int64))
    facts = {"source": {**source, "name_or_path": name}, "num_rows": num_rows}
    (folder / INDEX).write_text(json.dumps(facts, indent=2), encoding="utf-8")  # last: it makes the folder an index


def read_row_index(folder: str | Path) -> tuple[dict[str, Any], int]:
    """Arguments of [`load_source`] for the data set that an index was made of, and how many rows it had."""
    facts = json.loads(Path(folder, INDEX).read_text(encoding="utf-8"))
    return facts["source"], facts["num_rows"]


def _load_row_index(folder: Path) -> Dataset:
    source, num_rows = read_row_index(folder)
    dataset = load_source(**source)
    if len(dataset) != num_rows:
        raise ValueError(
            f"{folder} selects among {num_rows} rows of {source['name_or_path']}, which has {len(dataset)} now: its "
            "row indices would select other rows. Filter it again."
        )
    return select_rows(dataset, np.load(Path(folder, ROWS), mmap_mode="r"))


def select_rows(dataset: Dataset, rows: np.ndarray) -> Dataset:
    """`dataset.select(rows)` without the list of Python integers that it makes, 85 bytes a row.

    Args:
        dataset (`Dataset`): with any columns.
        rows (`np.ndarray` of shape `(num_rows,)`): int64 indices; a memory-mapped file stays one.
    """
    if dataset._indices is not None or not len(rows):
        return dataset.select(rows)
    return Dataset(
        dataset.data,
        dataset.info,
        dataset.split,
        indices_table=InMemoryTable(pa.table({"indices": pa.array(rows.view(np.uint64))})),
        fingerprint=Hasher.hash([dataset._fingerprint, hashlib.sha256(rows.data).hexdigest()]),
    )


# From the columns of a data set to those of the library


def name_columns(dataset: Rows, columns: Mapping[str, str | None], where: str) -> Rows:
    """Renames columns to the library's names; one that had such a name before is replaced.

    Args:
        dataset (`Dataset` or `IterableDataset`): with any columns.
        columns (`Mapping[str, str | None]`): from the library's names to those in the data set; None leaves it.
        where (`str`): name of the data set in errors.

    Raises:
        ValueError: if a column is missing; names the option and the columns that exist.
    """
    for new, old in columns.items():
        existing = dataset.column_names or []
        if old is not None and old not in existing:
            hint = " Recordings without transcripts need `text_column` to be None." if new == "text" else ""
            raise ValueError(f"{where}: no column {old!r} (`{new}_column`); there are {', '.join(existing)}.{hint}")
        if old is not None and old != new:
            dataset = (dataset.remove_columns(new) if new in existing else dataset).rename_column(old, new)
    return dataset


def without_decoder(dataset: Rows, column: str = "audio") -> Rows:
    """The same rows with `{"bytes", "path"}` instead of audio that `datasets` decodes, which needs torchcodec.

    Nothing is copied. `column` need not be an `Audio` feature.
    """
    if isinstance((dataset.features or {}).get(column), Audio):
        return dataset.cast_column(column, Audio(decode=False))
    return dataset


def _plain_audio(dataset: Dataset) -> Dataset:
    feature = dataset.features["audio"]
    if isinstance(feature, Audio):
        # Only the schema changes: `cast_column` would write all the audio a second time.
        features = Features({**dataset.features, "audio": PLAIN_AUDIO})
        info = dataset.info.copy()
        info.features = features
        return Dataset(dataset.data.cast(features.arrow_schema), info=info, split=dataset.split)
    if isinstance(feature, Value) and feature.dtype in ("string", "large_string"):
        audio = [{"bytes": None, "path": _absolute_path(path, Path.cwd())} for path in dataset["audio"]]
        return dataset.remove_columns("audio").add_column("audio", audio, feature=PLAIN_AUDIO)
    return dataset


def _as_strings(dataset: Dataset, column: str) -> Dataset:
    feature = dataset.features[column]
    if isinstance(feature, Value) and feature.dtype in ("string", "large_string"):
        return dataset
    convert = _to_string(feature)
    texts = [None if value is None else convert(value) for value in dataset[column]]
    return dataset.remove_columns(column).add_column(column, texts, feature=Value("string"))


def _to_string(feature: Any) -> Callable[[Any], str]:
    return feature.int2str if isinstance(feature, ClassLabel) else str


def _with_ids(dataset: Dataset, split: str) -> Dataset:
    if "id" not in dataset.column_names:
        return dataset.add_column("id", [f"{split}-{row:06d}" for row in range(len(dataset))])
    dataset = _as_strings(dataset, "id")
    batches = dataset.select_columns(["id"]).with_format("arrow").iter(batch_size=10_000)
    if not any(batch["id"].null_count for batch in batches):  # without a list of millions of texts
        return dataset
    ids = [f"{split}-{row:06d}" if name is None else name for row, name in enumerate(dataset["id"])]
    return dataset.remove_columns("id").add_column("id", ids, feature=Value("string"))


def _standard_stream(rows: Dataset | IterableDataset, columns: Columns, where: str) -> IterableDataset:
    if isinstance(rows, Dataset):
        rows = rows.to_iterable_dataset(num_shards=min(STREAM_SHARDS, len(rows)))
    elif rows.column_names is None:
        rows = rows._resolve_features()  # from the first row, where the source has no schema
    stream = name_columns(without_decoder(rows, columns.audio), columns.renaming(), where)
    features = stream.features or {}
    texts = ["text"] * (columns.text is not None) + ["language"] * ("language" in features)
    converters = {name: _to_string(features[name]) for name in texts}
    standard = {"id": Value("string"), "audio": PLAIN_AUDIO, **{name: Value("string") for name in texts}}
    return stream.map(_standard_row, fn_kwargs={"converters": converters}, features=Features({**features, **standard}))


def _standard_row(row: dict[str, Any], converters: dict[str, Callable[[Any], str]]) -> dict[str, Any]:
    audio, name = row["audio"], row.get("id")
    if isinstance(audio, str):
        audio = {"bytes": None, "path": str(Path(audio).expanduser().absolute())}
    if name is None:
        content = (audio or {}).get("bytes") or str((audio or {}).get("path")).encode()
        name = hashlib.sha256(content).hexdigest()[:16]
    texts = {column: None if row[column] is None else convert(row[column]) for column, convert in converters.items()}
    return {"audio": audio, "id": str(name), **texts}


# Durations


def mean_duration(rows: Dataset | IterableDataset) -> float | None:
    """Mean duration of the recordings in seconds, None if it is not known.

    Args:
        rows (`Dataset` or `IterableDataset`): with `duration` (seconds): the mean of all rows that have one; else with
            `audio`: estimated from the headers of 200 rows spread over the data set. Of a stream, the first 200 rows.
    """
    if isinstance(rows, IterableDataset):
        return _mean_of(without_decoder(rows).take(PROBES))
    if "duration" in rows.column_names:
        total, known = 0.0, 0
        for batch in rows.select_columns(["duration"]).with_format("arrow").iter(batch_size=10_000):
            column = batch["duration"]
            total += pc.sum(column).as_py() or 0.0
            known += len(column) - column.null_count
        if known:
            return total / known
    if "audio" not in rows.column_names or not len(rows):
        return None
    probes = without_decoder(rows).select(range(0, len(rows), max(1, len(rows) // PROBES)))
    return _mean_of(tqdm(probes, desc="reading durations", unit="row", leave=False, delay=2))


def weighted_mean(parts: Iterable[tuple[float | None, float]]) -> float | None:
    """Weighted mean of pairs of value and weight; pairs without a value do not count. None if none has one."""
    known = [(value, weight) for value, weight in parts if value is not None]
    return sum(value * weight for value, weight in known) / sum(weight for _, weight in known) if known else None


def _mean_of(rows: Iterable[Mapping[str, Any]]) -> float | None:
    durations = []
    for row in rows:
        seconds = row.get("duration")
        # A row whose audio cannot be read will be counted and listed when it is needed.
        with suppress(AudioError):
            durations.append(audio_duration(row["audio"]) if seconds is None else seconds)
    return sum(durations) / len(durations) if durations else None
