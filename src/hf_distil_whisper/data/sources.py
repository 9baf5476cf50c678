"""How long the recordings of a data set are, without decoding them."""

import csv
import hashlib
import json
import os
import posixpath
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
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

from hf_distil_whisper.data.audio import (
    AudioError,
    audio_duration,
)
from hf_distil_whisper.data.shards import (
    RUN,
    ShardStore,
)

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


INDEX, ROWS = "row_index.json", "rows.npy"


def write_row_index(
    folder: str | Path, source: Mapping[str, Any], num_rows: int, rows: Sequence[int] | np.ndarray
) -> None:
    """Writes a choice of rows.

    Args:
        folder (`str` or `Path`): is created; [`load_source`] reads it as a data set.
        source (`Mapping`): arguments of [`load_source`] by name, `name_or_path` among them; a path is made absolute.
        num_rows (`int`): of the data set, to notice when it has changed.
        rows (`Sequence[int]`): numbers of the chosen rows.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    place = str(source["name_or_path"])
    if Path(place).expanduser().exists():
        place = str(Path(place).expanduser().resolve())
    np.save(folder / ROWS, np.asarray(rows, dtype=np.int64))
    facts = {"source": {**source, "name_or_path": place}, "num_rows": num_rows}
    (folder / INDEX).write_text(json.dumps(facts, indent=2), encoding="utf-8")  # last: it makes the folder an index


def read_row_index(folder: str | Path) -> tuple[dict[str, Any], int]:
    """The data set that an index was made of: arguments of [`load_source`], and how many rows it had."""
    facts = json.loads(Path(folder, INDEX).read_text(encoding="utf-8"))
    return facts["source"], facts["num_rows"]


def choose_rows(folder: str | Path, dataset: Dataset) -> Dataset:
    """The chosen rows of a data set that was loaded as [`read_row_index`] says.

    Raises:
        ValueError: if the data set has another number of rows than when they were chosen.
    """
    source, num_rows = read_row_index(folder)
    if len(dataset) != num_rows:
        raise ValueError(
            f"{folder} holds a choice among {num_rows} rows of {source['name_or_path']}, which has {len(dataset)} "
            "now: the numbers would name other rows. Filter it again."
        )
    return select_rows(dataset, np.load(Path(folder, ROWS), mmap_mode="r"))


def select_rows(dataset: Dataset, rows: np.ndarray) -> Dataset:
    """`dataset.select(rows)`, which makes a list of the numbers, 85 bytes a row; here they stay where they are.

    Args:
        dataset (`Dataset`): any.
        rows (`np.ndarray`): int64; a mapped file stays one.
    """
    if dataset._indices is not None or not len(rows):
        return dataset.select(rows)
    table = InMemoryTable(pa.table({"indices": pa.array(rows.view(np.uint64))}))
    return Dataset(
        dataset.data,
        dataset.info,
        dataset.split,
        indices_table=table,
        fingerprint=Hasher.hash([dataset._fingerprint, sha256(rows.data).hexdigest()]),
    )


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


Rows = TypeVar("Rows", Dataset, IterableDataset)

ROWS_FILE = "rows.parquet"
"""The rows of a shard, as labelling writes them."""
END_OF_FILE = "-end"
"""With what the name of a shard ends that holds the last rows of a stream's file."""


@dataclass
class RowErrors:
    """The rows that were left out, each with its reason: a bad row costs that row and never the run.

    Args:
        rows (`list[tuple[str, str]]`, *optional*): pairs of row id and message.
    """

    rows: list[tuple[str, str]] = field(default_factory=list)

    def add(self, row: object, message: object) -> None:
        """Notes that a row was left out."""
        self.rows.append((str(row), str(message)))

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self.rows)

    def summary(self, limit: int = 20) -> str:
        """A text with the count and the first `limit` rows, for the end of a run. Empty if no row was left out."""
        if not self.rows:
            return ""
        lines = [f"{len(self)} row{'s' if len(self) > 1 else ''} left out:"]
        # Messages that begin with the row's name (as those about audio do) need it no second time.
        lines += [
            f"  {message}" if message.startswith(row) else f"  {row}: {message}" for row, message in self.rows[:limit]
        ]
        if len(self) > limit:
            lines.append(f"  ... and {len(self) - limit} more")
        return "\n".join(lines)


def load_source(
    name_or_path: str | Path,
    *,
    split: str = "train",
    config: str | None = None,
    revision: str | None = None,
    audio_column: str = "audio",
    text_column: str | None = "text",
    speaker_column: str | None = None,
    recording_column: str | None = None,
    language_column: str | None = None,
    id_column: str | None = None,
    max_samples: int | None = None,
) -> Dataset:
    """Loads one split of recordings and gives its columns the names that the rest of the library uses.

    Args:
        name_or_path (`str` or `Path`):
            A folder or URL that [`pseudo_label_dataset`] has filled; one that the command `filter` has written; a
            folder written by `save_to_disk`; a folder with
            `metadata.jsonl` or `metadata.csv` (column `file_name`; splits by a column `split` or by sub-folders);
            Parquet, Arrow or tar files ([`tar_rows`]): one, a folder of them, or a URL with wildcards; a `.jsonl` or
            `.csv` manifest with paths; or a data set on the Hub.
        split (`str`, *optional*, defaults to `"train"`): its name, unchanged; several joined by `+`. Where nothing is
            split, everything is `"train"`.
        config (`str`, *optional*): configuration of a data set on the Hub, or sub-folder with Parquet, Arrow or tar.
        revision (`str`, *optional*): of a data set on the Hub.
        audio_column (`str`, *optional*, defaults to `"audio"`): becomes `audio`.
        text_column (`str`, *optional*, defaults to `"text"`): becomes `text`; `None` for recordings without
            transcripts.
        speaker_column (`str`, *optional*): becomes `speaker`; by default the column of that name, if there is one.
        recording_column (`str`, *optional*): what an utterance was cut from; becomes `recording`, by default the
            column of that name, if there is one.
        language_column (`str`, *optional*): code or name of the language that each row is in, null where it is not
            known; becomes `language`, by default the column of that name, if there is one. Labelling, filter and
            training go by it row by row.
        id_column (`str`, *optional*): becomes `id`; by default the column of that name, else split and row number.
        max_samples (`int`, *optional*): the first so many rows; by default all.

    Returns:
        `Dataset`: `id` (string), `audio` (`{"bytes", "path"}`, not decoded), `text` (string or null), `speaker`,
        `recording` and `language` if known, and every other column as it was. Columns renamed to one of these replace
        a column that had the name before. The labelled data sets of the reference scripts (`whisper_transcript`,
        `condition_on_prev`) are read as they are.

    Raises:
        FileNotFoundError: if there is neither such a path nor such a data set.
        ValueError: for a missing split, configuration or column (the message names those that exist) and for 0 rows.

    Example:
        ```python
        >>> load_source("my_recordings", split="train", text_column="sentence")
        ```
    """
    if max_samples is not None and max_samples < 1:
        raise ValueError(f"max_samples: expected a number of rows of at least 1, got {max_samples}.")
    names = {
        "audio": audio_column,
        "speaker": speaker_column,
        "recording": recording_column,
        "language": language_column,
        "id": id_column,
    }
    parts = []
    for name in split.split("+"):
        dataset = open_split(name_or_path, name, config, revision, audio_column)
        where = f"{name_or_path}, split {name!r}"
        if not len(dataset):
            raise ValueError(f"{where}: 0 rows; expected at least one. Check the path, the split and what made it.")
        dataset = _plain_audio(name_columns(dataset, {**names, "text": text_column}, where))
        for column in ("text",) * (text_column is not None) + ("language",) * ("language" in dataset.column_names):
            dataset = _as_strings(dataset, column)
        parts.append(_with_ids(dataset, name))
    dataset = parts[0] if len(parts) == 1 else concatenate_datasets(parts)
    return dataset if max_samples is None else dataset.select(range(min(max_samples, len(dataset))))


def load_shards(store: ShardStore) -> Dataset:
    """The labelled rows of all shards, in the order of their source.

    Args:
        store ([`ShardStore`]): that [`pseudo_label_dataset`] has filled.

    Raises:
        ValueError: if the labelling has not come to its end, or a shard has been damaged since.
    """
    files = shard_files(store)
    return read_parquet(files) if files else Dataset.from_dict({})


def shard_files(store: ShardStore) -> list[str]:
    """Paths or URLs of the Parquet files behind [`load_shards`], which raises the same."""
    shards, run = store.shards(), store.identity() or {}
    if "files" in run:
        there, wanted, unit = sum(shard.name.endswith(END_OF_FILE) for shard in shards), run["files"], "files"
    else:
        there, wanted, unit = sum(shard.info["source_rows"] for shard in shards), run.get("rows", 0), "rows"
    if there != wanted:
        raise ValueError(
            f"{store.root}: labels of {there} {unit} are there, {wanted} were to be labelled. Start the labelling "
            "again with the same settings: it goes on where it was."
        )
    return [store.url(shard.name, ROWS_FILE) for shard in shards if shard.info["rows"]]


def without_decoder(dataset: Rows, column: str = "audio") -> Rows:
    """The same rows with `{"bytes", "path"}` instead of what `datasets` would decode (and cannot, without torchcodec).

    Args:
        dataset (`Dataset` or `IterableDataset`): with or without an `Audio` feature in `column`.
        column (`str`, *optional*, defaults to `"audio"`): which.

    Returns:
        `Dataset` or `IterableDataset`: nothing is copied.
    """
    if isinstance((dataset.features or {}).get(column), Audio):
        return dataset.cast_column(column, Audio(decode=False))
    return dataset


# From a name or path to one split, with the columns as they are


@overload
def open_split(
    name_or_path: str | Path, split: str, config: str | None, revision: str | None, audio_column: str
) -> Dataset: ...


@overload
def open_split(
    name_or_path: str | Path,
    split: str,
    config: str | None,
    revision: str | None,
    audio_column: str,
    streaming: Literal[True],
) -> Dataset | IterableDataset: ...


def open_split(
    name_or_path: str | Path,
    split: str,
    config: str | None,
    revision: str | None,
    audio_column: str,
    streaming: bool = False,
) -> Dataset | IterableDataset:
    """One split as it is stored; with `streaming` a stream where the rows hold their audio and need no index."""
    path = Path(name_or_path).expanduser()
    if (path / INDEX).is_file():
        if split != "train":
            raise no_split(path, split, ["train"])
        return choose_rows(path, load_source(**read_row_index(path)[0]))
    remote = "://" in str(name_or_path)
    if (remote and path.suffix not in SHARD_SUFFIXES) or (path / RUN).is_file():
        store = ShardStore(name_or_path)
        if store.identity() is None:
            raise FileNotFoundError(f"{name_or_path}: no labelled shards there. Correct the path of the data set.")
        if split != "train":
            raise no_split(path, split, ["train"])
        return stream_shards(shard_files(store), split) if streaming else load_shards(store)
    if not path.exists() and not remote:
        return load_from_hub(str(name_or_path), split, config, revision, streaming)
    if revision is not None:
        raise ValueError(f"{path}: `revision` is for data sets on the Hub, this one is a path.")
    if path.is_dir() and config is None:
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            return load_saved(path, split)
        for file in METADATA_FILES:
            if (path / file).exists():
                return load_metadata(path / file, split, audio_column, whole_file=False)
        by_split = {file.parent.name: file for name in METADATA_FILES for file in sorted(path.glob(f"*/{name}"))}
        if by_split and split not in by_split:
            raise no_split(path, split, by_split)
        if by_split:
            return load_metadata(by_split[split], split, audio_column, whole_file=True)
    if path.suffix in MANIFESTS:
        return load_metadata(path, split, audio_column, whole_file=False)
    files = find_shards(name_or_path if remote else path, split, config)
    return stream_shards(files, split) if streaming else read_shards(files, split)


# Columns


def name_columns(dataset: Rows, columns: Mapping[str, str | None], where: str) -> Rows:
    """Gives columns the library's names; one that had such a name before is replaced.

    Args:
        dataset (`Dataset` or `IterableDataset`): with any columns.
        columns (`Mapping[str, str | None]`): from the library's names to those in the data set; None leaves it.
        where (`str`): names the data set in errors.

    Raises:
        ValueError: if a column is not there; names the option and those that are.
    """
    for new, old in columns.items():
        there = dataset.column_names or []
        if old is not None and old not in there:
            hint = " Recordings without transcripts need `text_column` to be None." if new == "text" else ""
            raise ValueError(f"{where}: no column {old!r} (`{new}_column`); there are {', '.join(there)}.{hint}")
        if old is not None and old != new:
            dataset = (dataset.remove_columns(new) if new in there else dataset).rename_column(old, new)
    return dataset


def _plain_audio(dataset: Dataset) -> Dataset:
    """The audio column as struct. Only the schema changes: casting would write all the audio a second time."""
    feature = dataset.features["audio"]
    if isinstance(feature, Audio):
        features = Features({**dataset.features, "audio": PLAIN_AUDIO})
        info = dataset.info.copy()
        info.features = features
        return Dataset(dataset.data.cast(features.arrow_schema), info=info, split=dataset.split)
    if isinstance(feature, Value) and feature.dtype in ("string", "large_string"):
        audio = [{"bytes": None, "path": absolute_path(path, Path.cwd())} for path in dataset["audio"]]
        return dataset.remove_columns("audio").add_column("audio", audio, feature=PLAIN_AUDIO)
    return dataset


def _as_strings(dataset: Dataset, column: str) -> Dataset:
    feature = dataset.features[column]
    if isinstance(feature, Value) and feature.dtype in ("string", "large_string"):
        return dataset
    spell = feature.int2str if isinstance(feature, ClassLabel) else str
    texts = [None if value is None else spell(value) for value in dataset[column]]
    return dataset.remove_columns(column).add_column(column, texts, feature=Value("string"))


def _with_ids(dataset: Dataset, split: str) -> Dataset:
    if "id" not in dataset.column_names:
        return dataset.add_column("id", [_row_name(split, row) for row in range(len(dataset))])
    dataset = _as_strings(dataset, "id")
    parts = dataset.select_columns(["id"]).with_format("arrow").iter(batch_size=10_000)
    if not any(part["id"].null_count for part in parts):  # without a list of millions of texts
        return dataset
    ids = [_row_name(split, number) if row is None else row for number, row in enumerate(dataset["id"])]
    return dataset.remove_columns("id").add_column("id", ids, feature=Value("string"))


def _row_name(split: str, row: int) -> str:
    return f"{split}-{row:06d}"


STREAM_SHARDS = 64
"""Parts of a source that has no files of its own to be shared among processes and workers."""


def stream_source(
    name_or_path: str | Path,
    *,
    split: str = "train",
    config: str | None = None,
    revision: str | None = None,
    audio_column: str = "audio",
    text_column: str | None = "text",
    speaker_column: str | None = None,
    recording_column: str | None = None,
    language_column: str | None = None,
    id_column: str | None = None,
    max_samples: int | None = None,
) -> IterableDataset:
    """Like [`load_source`], with the same arguments, but nothing is downloaded or copied before it is read.

    A source of metadata, a saved data set and a row index are read as they lie. Rows without an id are named after
    their audio, since a stream has no row numbers.

    Returns:
        `IterableDataset`: its shards are the files of the source; processes and workers share them.

    Raises:
        FileNotFoundError: as [`load_source`].
        ValueError: as [`load_source`]; whether there are any rows is only found out by reading.

    Example:
        ```python
        >>> stream = stream_source("s3://speech/train-*.tar")
        >>> next(iter(stream))["text"]
        ```
    """
    if max_samples is not None and max_samples < 1:
        raise ValueError(f"max_samples: expected a number of rows of at least 1, got {max_samples}.")
    names = {
        "audio": audio_column,
        "speaker": speaker_column,
        "recording": recording_column,
        "language": language_column,
        "id": id_column,
    }
    parts = []
    for name in split.split("+"):
        rows = open_split(name_or_path, name, config, revision, audio_column, streaming=True)
        if not isinstance(rows, IterableDataset):
            rows = rows.to_iterable_dataset(num_shards=max(1, min(STREAM_SHARDS, len(rows))))
        elif rows.column_names is None:
            rows = rows._resolve_features()  # by the first row, where the source says nothing of its columns
        rows = without_decoder(rows, audio_column)
        rows = name_columns(rows, {**names, "text": text_column}, f"{name_or_path}, split {name!r}")
        parts.append(_plain(rows, with_text=text_column is not None))
    stream = parts[0] if len(parts) == 1 else concatenate_datasets(parts)
    return stream if max_samples is None else stream.take(max_samples)


def _plain(rows: IterableDataset, with_text: bool) -> IterableDataset:
    there = rows.features or {}
    texts = ["text"] * with_text + ["language"] * ("language" in there)
    names = {name: there[name] for name in texts if isinstance(there[name], ClassLabel)}
    changed = {"id": Value("string"), "audio": PLAIN_AUDIO, **{name: Value("string") for name in texts}}
    return rows.map(_plain_row, fn_kwargs={"texts": texts, "names": names}, features=Features({**there, **changed}))


def _plain_row(row: dict[str, Any], texts: list[str], names: dict[str, ClassLabel]) -> dict[str, Any]:
    audio = row["audio"]
    if isinstance(audio, str):
        audio = {"bytes": None, "path": str(Path(audio).expanduser().absolute())}
    row_id = row.get("id")
    plain = {"audio": audio, "id": _name_of(audio) if row_id is None else str(row_id)}
    for name in texts:
        spell = names[name].int2str if name in names else str
        plain[name] = None if row[name] is None else spell(row[name])
    return plain


def _name_of(audio: dict[str, Any] | None) -> str:
    audio = audio or {}
    content = audio.get("bytes") or str(audio.get("path")).encode()
    return hashlib.sha256(content).hexdigest()[:16]


PROBES = 200
"""Rows whose headers are read where no column tells durations."""


def mean_duration(rows: Dataset | IterableDataset) -> float | None:
    """Seconds of a recording in the mean.

    Args:
        rows (`Dataset` or `IterableDataset`): with `duration` (seconds), or with `audio`.

    Returns:
        `float | None`: of all rows of a data set whose durations are known; else estimated from the headers of 200
        rows spread over it. Of a stream, that of its first 200 rows. None where nothing tells.
    """
    if isinstance(rows, IterableDataset):
        return _mean_of(without_decoder(rows).take(PROBES))
    if "duration" in rows.column_names:
        total, known = 0.0, 0
        for part in rows.select_columns(["duration"]).with_format("arrow").iter(batch_size=10_000):
            column = part["duration"]
            total += pc.sum(column).as_py() or 0.0
            known += len(column) - column.null_count
        if known:
            return total / known
    if "audio" not in rows.column_names or not len(rows):
        return None
    probes = without_decoder(rows).select(range(0, len(rows), max(1, len(rows) // PROBES)))
    return _mean_of(tqdm(probes, desc="reading durations", unit="row", leave=False, delay=2))


def weighted_mean(parts: Iterable[tuple[float | None, float]]) -> float | None:
    """Of pairs of value and weight; values that are None do not count, and of nothing else it is None."""
    known = [(value, weight) for value, weight in parts if value is not None]
    return sum(value * weight for value, weight in known) / sum(weight for _, weight in known) if known else None


def _mean_of(rows: Iterable[Mapping[str, Any]]) -> float | None:
    found = []
    for row in rows:
        seconds = row.get("duration")
        try:
            found.append(audio_duration(row["audio"]) if seconds is None else seconds)
        except AudioError:
            continue  # the row will be counted and listed when its audio is needed
    return sum(found) / len(found) if found else None
