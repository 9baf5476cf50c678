"""The kinds of files that recordings come in, as a `Dataset` or a stream of rows, with the columns as they are.

Folders of `save_to_disk`, metadata and manifests, Parquet, tar, and the Hub. `sources` names the columns.
"""

import csv
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
from datasets import Dataset, IterableDataset, concatenate_datasets, load_dataset
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from pyarrow.dataset import ParquetFragmentScanOptions

from hf_distil_whisper.data.tar_shards import tar_features, tar_rows

METADATA_FILES = ("metadata.jsonl", "metadata.csv")
SPLIT_FOLDERS = ("train", "validation", "valid", "val", "dev", "test")
MANIFESTS = (".jsonl", ".csv")
SHARD_SUFFIXES = (".parquet", ".arrow", ".tar")
"""Files whose rows hold their audio."""
_STRETCH = 1000
"""Rows that a cache reads at once."""


def load_from_hub(
    name: str, split: str, config: str | None, revision: str | None, streaming: bool = False
) -> Dataset | IterableDataset:
    """A split of a data set on the Hub, downloaded whole or read as it comes."""
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


def load_saved(path: Path, split: str) -> Dataset:
    """A split of what `save_to_disk` has written, of one data set or of several."""
    folder = path
    if (path / "dataset_dict.json").exists():
        splits = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        if split not in splits:
            raise no_split(path, split, splits)
        folder = path / split
    # `load_from_disk` has nothing to say about 0 rows but an IndexError.
    if not json.loads((folder / "state.json").read_text(encoding="utf-8"))["_data_files"]:
        return Dataset.from_dict({})
    saved = Dataset.load_from_disk(str(folder))
    # One data set without siblings is what the default split means, whatever it was called when it was saved.
    if folder == path and split not in ("train", str(saved.split)):
        raise no_split(path, split, ["train" if saved.split is None else str(saved.split)])
    return saved


def load_metadata(file: Path, split: str, audio_column: str, whole_file: bool) -> Dataset:
    """Rows of a `metadata.*` file or a manifest, with absolute paths; relative ones begin at the file's folder."""
    rows = _read_csv(file) if file.suffix == ".csv" else _read_jsonl(file)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    if not rows:
        return Dataset.from_dict({})
    source = audio_column if audio_column in columns else "file_name"
    if source not in columns:
        raise ValueError(
            f"{file}: expected the path of each recording in a column {audio_column!r} (`audio_column`) or "
            f"'file_name', got the columns {columns}."
        )
    if not whole_file:
        rows = _rows_of_split(file, rows, split, source)
    table = {}
    for column in columns:
        if column != audio_column:
            table[column] = _arrow(file, column, [row.get(column) for row in rows])
    paths = [absolute_path(row.get(source), file.parent) for row in rows]
    storage = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table[audio_column] = pa.array([{"bytes": None, "path": path} for path in paths], storage)
    return Dataset.from_dict(table)


def _rows_of_split(file: Path, rows: list[dict], split: str, source: str) -> list[dict]:
    if any("split" in row for row in rows):
        names = [row.get("split") for row in rows]
    else:
        names = [Path(str(row.get(source))).parts[0] for row in rows]
        if not set(names) <= set(SPLIT_FOLDERS):
            names = ["train"] * len(rows)
    if split not in names:
        raise no_split(file, split, sorted({str(name) for name in names}))
    return [row for row, name in zip(rows, names, strict=True) if name == split]


def find_shards(name_or_path: str | Path, split: str, config: str | None = None) -> list[str]:
    """The Parquet, Arrow or tar files of a split: of a folder, one file, or a URL that may hold wildcards.

    Args:
        name_or_path (`str` or `Path`): where they are.
        split (`str`): by the files' names (`test-00000-of-00002.parquet`, `test-00000.tar`) or folders; else "train".
        config (`str`, *optional*): sub-folder.

    Raises:
        FileNotFoundError: if a URL leads to nothing.
        ValueError: if there are no such files, several kinds of them, or none of that split.
    """
    by_split: dict[str, list[str]] = {}
    configs = set()
    root = Path(name_or_path) if config is None else Path(name_or_path, config)
    if "://" in str(name_or_path):
        filesystem, path = fsspec.core.url_to_fs(str(name_or_path))
        for file in sorted(filesystem.glob(path)):
            by_split.setdefault(_split_of(Path(file)), []).append(filesystem.unstrip_protocol(file))
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
        for file in sorted(file for suffix in SHARD_SUFFIXES for file in _in_folder(root, suffix)):
            name, folder = _split_of(file), file.parent.name
            if file.parent == root or folder in ("data", name):
                by_split.setdefault(name, []).append(str(file))
            elif re.search(r"-of-\d+", file.stem):
                configs.add(folder)
            else:
                by_split.setdefault(folder, []).append(str(file))
    if not by_split:
        there = f"it has the configurations {sorted(configs)}: set `config`" if configs else "there is nothing of that"
        raise ValueError(
            f"{root}: expected a folder of `save_to_disk`, a metadata.jsonl or metadata.csv (one for all or one for "
            f"each split's sub-folder), or {', '.join(SHARD_SUFFIXES)} files; {there}."
        )
    if split not in by_split:
        raise no_split(root, split, sorted(by_split))
    kinds = sorted({Path(file).suffix for file in by_split[split]})
    if len(kinds) > 1:
        raise ValueError(f"{root}, split {split!r}: files of several kinds ({', '.join(kinds)}); expected one kind.")
    return by_split[split]


def read_parquet(files: list[str], split: str = "train") -> Dataset:
    """The rows of Parquet files, copied into the library's cache once.

    Every stretch of rows in that cache costs 5 KB of memory for as long as it is open; the library's own stretches of
    100 rows with audio would make that half a gigabyte for ten million rows.
    """
    options = ParquetFragmentScanOptions(pre_buffer=False)
    return Dataset.from_parquet(files, split=split, writer_batch_size=_STRETCH, fragment_scan_options=options)


def read_shards(files: list[str], split: str) -> Dataset:
    """The rows of Parquet or tar files, copied into the library's cache once, or of Arrow files as they lie there."""
    suffix = Path(files[0]).suffix
    if suffix == ".arrow":
        return concatenate_datasets([Dataset.from_file(file) for file in files])
    if suffix == ".parquet":
        return read_parquet(files, split)
    # The cache knows a generator by its arguments; archives of the same names may hold something else by now.
    state = [
        file if "://" in file else f"{file} {os.stat(file).st_size} {os.stat(file).st_mtime_ns}" for file in files
    ]
    features = tar_features(files)
    try:
        return Dataset.from_generator(
            tar_rows,
            features=features,
            gen_kwargs={"files": files, "columns": (*features,)},
            split=split,
            fingerprint=hashlib.sha256("\n".join([*state, repr(features)]).encode()).hexdigest()[:16],
        )
    except DatasetGenerationError as error:
        raise ValueError(str(error.__cause__)) from error


def stream_shards(files: list[str], split: str) -> IterableDataset:
    """The rows of Parquet, Arrow or tar files, one after the other; nothing is copied. Each file is a shard."""
    suffix = Path(files[0]).suffix
    if suffix != ".tar":
        kind = {".arrow": "arrow", ".parquet": "parquet"}[suffix]
        return load_dataset(kind, data_files={split: files}, split=split, streaming=True)
    features = tar_features(files)
    return IterableDataset.from_generator(
        tar_rows, features=features, gen_kwargs={"files": files, "columns": (*features,)}, split=split
    )


def _in_folder(root: Path, suffix: str) -> list[Path]:
    return [*root.glob(f"*{suffix}"), *root.glob(f"*/*{suffix}")]


def _split_of(file: Path) -> str:
    """`train-00000-of-00002` → `train`, `test_003` → `test`; without such a name, `train`."""
    sharded = re.fullmatch(r"(.+?)-\d+-of-\d+.*", file.stem)
    if sharded:
        return sharded[1]
    name = re.sub(r"[-_.]\d+$", "", file.stem)
    return name if name in SPLIT_FOLDERS else "train"


def no_split(where: Path, split: str, names: Any) -> ValueError:
    """What to raise for a split that is not there."""
    return ValueError(
        f"{where}: no split {split!r}; there is {', '.join(map(str, names))}. Set `split` to one of them."
    )


# Reading of metadata


def _read_jsonl(file: Path) -> list[dict]:
    rows = []
    # Not by `splitlines`: it also splits at the line separators (U+2028) that a transcript may hold.
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{file}, line {number}: expected one JSON object per line, got {line[:60]!r} ({error})."
            ) from error
        if not isinstance(row, dict):
            raise ValueError(f"{file}, line {number}: expected a JSON object, got {line[:60]!r}.")
        rows.append(row)
    return rows


def _read_csv(file: Path) -> list[dict]:
    # Not by pandas: it takes a spoken "null" or "NA" for a missing text.
    with file.open(newline="", encoding="utf-8-sig") as handle:
        return [
            {key: value or None for key, value in row.items() if key is not None} for row in csv.DictReader(handle)
        ]


def _arrow(file: Path, column: str, values: list) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(f"{file}: column {column!r} holds values of different kinds: {error}.") from error


def absolute_path(value: object, folder: Path) -> str | None:
    """Where a recording lies that metadata name in relation to their folder."""
    if isinstance(value, dict):
        value = value.get("path")
    return os.path.abspath(folder / value) if isinstance(value, str) and value else None
