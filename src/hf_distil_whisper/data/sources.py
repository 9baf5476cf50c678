"""Loads recordings from folders, manifests, Parquet, Arrow and tar files, URLs and the Hub.

Whatever they come from, rows and streams have the same columns.
"""

import codecs
import csv
import dataclasses
import hashlib
import io
import json
import os
import posixpath
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
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
from transformers.utils import logging

from hf_distil_whisper.data.audio import AudioError, audio_duration, num_channels
from hf_distil_whisper.data.shards import RUN, ShardStore

logger = logging.get_logger(__name__)

Rows = TypeVar("Rows", Dataset, IterableDataset)

PLAIN_AUDIO = {"bytes": Value("binary"), "path": Value("string")}
"""The feature of the audio column: what `datasets` stores for `Audio`, without its decoder."""
AUDIO_SUFFIXES = (
    *("wav", "flac", "mp3", "ogg", "opus", "oga", "m4a", "mp4", "webm", "aac", "3gp", "amr", "wma", "mka"),
    *("aiff", "aif", "au", "caf", "sph"),
)
METADATA_FILES = ("metadata.jsonl", "metadata.csv", "metadata.tsv", "wav.scp")
"""Files that make their folder a data set; `wav.scp` is Kaldi's, beside `segments`, `text` and `utt2spk`."""
MANIFESTS = (".jsonl", ".csv", ".tsv", ".json")
PATH_COLUMNS = ("file_name", "audio_filepath", "path")
"""Names of the column with the path of the recording: of `datasets`, of NeMo, of Common Voice."""
PART = {"offset": pa.float64(), "duration": pa.float64(), "channel": pa.int64()}
"""Columns of a manifest that pick a part of the recording, by their type in the audio column; see [`load_audio`]."""
ALIASES = {"text": "sentence", "speaker": "client_id"}
"""Columns of Common Voice that are given under the library's names too."""
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
_NEXT_ROW = re.compile(rf"\n.*\.(?:{'|'.join(AUDIO_SUFFIXES)})\b", re.IGNORECASE)
"""The name of a recording behind a line break, in one field: a quote was not closed before."""


class MissingSplit(ValueError):
    """A split was asked for that a data set does not have.

    Args:
        where (`str` or `Path`): the data set.
        split (`str`): what was asked for.
        splits (`Iterable[str]`): those that it has.
    """

    def __init__(self, where: str | Path, split: str, splits: Iterable[object]):
        self.splits = [str(name) for name in splits]
        existing = ", ".join(self.splits)
        super().__init__(f"{where}: no split {split!r}; there is {existing}. Set `split` to one of them.")


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
        text (`str`, *optional*, defaults to `"text"`): its transcript; `None` for recordings without transcripts, as
            where there is no column `text`.
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
    split: str | None = ...,
    config: str | None = ...,
    revision: str | None = ...,
    columns: Columns | None = ...,
    max_samples: int | None = ...,
    channel: int | Literal["each"] | None = ...,
    streaming: Literal[False] = ...,
    **column_names: str | None,
) -> Dataset: ...


@overload
def load_source(
    name_or_path: str | Path,
    *,
    split: str | None = ...,
    config: str | None = ...,
    revision: str | None = ...,
    columns: Columns | None = ...,
    max_samples: int | None = ...,
    channel: int | Literal["each"] | None = ...,
    streaming: Literal[True],
    **column_names: str | None,
) -> IterableDataset: ...


def load_source(
    name_or_path: str | Path,
    *,
    split: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    columns: Columns | None = None,
    max_samples: int | None = None,
    channel: int | Literal["each"] | None = None,
    streaming: bool = False,
    **column_names: str | None,
) -> Dataset | IterableDataset:
    """Loads one split of recordings and renames its columns to the names that the rest of the library uses.

    Args:
        name_or_path (`str` or `Path`):
            A folder of recordings, each with its text in a `.txt` of the same name, or with a `metadata.jsonl` or
            `metadata.csv` (column `file_name`; splits by a column `split` or by sub-folders); a `.jsonl`, `.json`,
            `.csv` or `.tsv` manifest with paths, as of NeMo and Common Voice, or a folder of them, called like their
            splits; a Kaldi data folder; Parquet, Arrow or tar files in the layout of WebDataset: one, a folder of
            them, or a URL with wildcards; a data set on the Hub; a folder or URL written by [`pseudo_label_dataset`];
            a folder written by the command `filter` or by `save_to_disk`.

            In manifests, `offset` and `duration` (seconds) and `channel` (from 0) pick a part of the recording; a
            duration alone, without offsets in any row, picks nothing.
        split (`str`, *optional*): name of the split, unchanged; several joined by `+`. By default `"train"`, or the
            only one there is. Where nothing is split, everything is `"train"`.
        config (`str`, *optional*): configuration of a data set on the Hub, or sub-folder with Parquet, Arrow or tar.
        revision (`str`, *optional*): of a data set on the Hub.
        columns ([`Columns`], *optional*): names of the columns in the data set.
        max_samples (`int`, *optional*): only the first `max_samples` rows; by default all.
        channel (`int` or `"each"`, *optional*): of recordings whose row does not name one, counted from 0; "each"
            makes a row of every channel, its number behind the id, without the text, which belongs to all of them. By
            default channels are mixed.
        streaming (`bool`, *optional*, defaults to `False`): whether to return a stream: nothing is downloaded or
            copied before it is read. Rows without an id are named after their audio, since a stream has no row
            numbers.
        **column_names (`str`, *optional*): fields of [`Columns`] as keywords, such as `text_column="sentence"`.

    Returns:
        `Dataset` or `IterableDataset`: `id` (string), `audio` (`{"bytes", "path"}`, not decoded; with `offset`,
        `duration` and `channel` where they pick a part), `text` (string or null), `speaker`, `recording` and
        `language` if known, and every other column as it was. Columns renamed to one of these replace a column that
        had the name before. The labelled data sets of the reference scripts
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
    open_split = partial(
        _open_split, name_or_path, config=config, revision=revision, audio_column=columns.audio, streaming=streaming
    )
    for name in (split or "train").split("+"):
        try:
            rows = open_split(split=name)
        except MissingSplit as error:
            if split is not None or len(error.splits) > 1:
                raise
            (name,) = error.splits  # nothing to choose
            rows = open_split(split=name)
        where = f"{name_or_path}, split {name!r}"
        if isinstance(rows, Dataset) and not len(rows):
            raise ValueError(f"{where}: 0 rows; expected at least one. Check the path, the split and what made it.")
        if streaming:
            parts.append(_standard_stream(rows, columns, where))
            continue
        existing = _existing(columns, rows.column_names, where)
        rows = _plain_audio(name_columns(cast(Dataset, rows), existing.renaming(), where))
        if existing.text is not None:
            rows = _as_strings(rows, "text")
        if "language" in rows.column_names:
            rows = _as_strings(rows, "language")
        parts.append(_with_ids(rows, name))
    joined = parts[0] if len(parts) == 1 else concatenate_datasets(parts)
    if max_samples is not None:
        joined = joined.take(max_samples if streaming else min(max_samples, len(joined)))
    return joined if channel is None else _by_channel(joined, channel)


def _by_channel(rows: Any, channel: int | str) -> Dataset | IterableDataset:
    if channel != "each" and not (isinstance(channel, int) and channel >= 0):
        raise ValueError(f'`channel`: expected a number from 0 on, or "each", got {channel!r}.')
    audio = rows.features["audio"] if isinstance(rows.features["audio"], dict) else PLAIN_AUDIO
    features = Features({**rows.features, "audio": {**audio, "channel": Value("int64")}})
    return rows.map(_pick_channels, batched=True, batch_size=100, fn_kwargs={"channel": channel}, features=features)


def _pick_channels(batch: dict[str, list], channel: int | str) -> dict[str, list]:
    picked: dict[str, list] = {name: [] for name in batch}
    for row in (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)):
        numbers: list[int | None] = [None if channel == "each" else int(channel)]
        if (row["audio"] or {}).get("channel") is not None:
            numbers = [row["audio"]["channel"]]
        elif channel == "each":
            try:
                count = num_channels(row["audio"])
            except AudioError:  # whoever reads the row lists it
                count = 1
            if count > 1:
                numbers = [*range(count)]
        for number in numbers:
            changed = {**row, "audio": row["audio"] and {**row["audio"], "channel": number}}
            if len(numbers) > 1:
                changed |= {"id": f"{row['id']}-{number}"} | ({"text": None} if "text" in row else {})
            for name, values in picked.items():
                values.append(changed[name])
    return picked


def _merge_column_names(columns: Columns, names: Mapping[str, str | None]) -> Columns:
    options = {f"{column.name}_column": column.name for column in dataclasses.fields(Columns)}
    for name in names:
        if name not in options:
            existing = ", ".join(options)
            raise TypeError(f"load_source() got an unexpected keyword argument {name!r}; the columns are {existing}.")
    changes: dict[str, Any] = {options[name]: column for name, column in names.items()}
    return dataclasses.replace(columns, **changes)


def _existing(columns: Columns, names: Sequence[str] | None, where: str) -> Columns:
    """The columns, without a `text` that was not asked for by another name and is not there."""
    if columns.text != "text" or "text" in (names or ()):
        return columns
    of_audio = {columns.audio, *dataclasses.asdict(Columns()), "split", *PATH_COLUMNS, *PART}
    if names and not of_audio.issuperset(names):
        existing = ", ".join(names)
        logger.warning_once(f"{where}: no column 'text' (`text_column`), so no references; there are {existing}.")
    return dataclasses.replace(columns, text=None)


# From a name or path to one split, with the columns as they are


def _open_split(
    name_or_path: str | Path, split: str, config: str | None, revision: str | None, audio_column: str, streaming: bool
) -> Dataset | IterableDataset:
    """One split as it is stored; with `streaming` a stream where the rows hold their audio and need no index."""
    path = Path(name_or_path).expanduser()
    remote = "://" in str(name_or_path)
    if (path / INDEX).is_file():
        if split != "train":
            raise MissingSplit(path, split, ["train"])
        return _load_row_index(path)
    if (remote and path.suffix not in SHARD_SUFFIXES) or (path / RUN).is_file():
        store = ShardStore(name_or_path)
        if store.identity() is None:
            raise FileNotFoundError(f"{name_or_path}: no labelled shards there. Correct the path of the data set.")
        if split != "train":
            raise MissingSplit(path, split, ["train"])
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
            raise MissingSplit(path, split, by_split)
        if by_split:
            return _load_metadata(by_split[split], None, audio_column)
        if (rows := _load_folder(path, split, audio_column)) is not None:
            return rows
    if path.suffix.lower() in MANIFESTS or path.name in METADATA_FILES:
        return _load_metadata(path, split, audio_column)
    files = _find_files(name_or_path if remote else path, split, config)
    if streaming:
        return _stream_files(files, split)
    # Arrow files are memory-mapped, rows of the others copied into the cache of `datasets` once.
    if files[0].endswith(".arrow"):
        return concatenate_datasets([Dataset.from_file(file) for file in files])
    return _read_parquet(files, split) if files[0].endswith(".parquet") else _read_tar(files, split)


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
        if splits := re.findall(r"'([^']+)'", str(error)) if re.match("(Unknown|Bad) split", str(error)) else []:
            raise MissingSplit(name, split, splits) from error
        raise ValueError(f"{name} (`config` {config!r}, `split` {split!r}): {error}") from error


def _load_saved(path: Path, split: str) -> Dataset:
    """A split of what `save_to_disk` has written, of a `Dataset` or `DatasetDict`."""
    folder = path
    if (path / "dataset_dict.json").exists():
        splits = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        if split not in splits:
            raise MissingSplit(path, split, splits)
        folder = path / split
    # `load_from_disk` raises a bare IndexError for 0 rows.
    if not json.loads((folder / "state.json").read_text(encoding="utf-8"))["_data_files"]:
        return Dataset.from_dict({})
    saved = Dataset.load_from_disk(str(folder))
    # A data set without siblings is what the default split means, whatever it was called when it was saved.
    if folder == path and split not in ("train", str(saved.split)):
        raise MissingSplit(path, split, ["train" if saved.split is None else str(saved.split)])
    return saved


# Metadata, manifests and bare recordings


@dataclass
class _Ignored:
    """What a source holds and its rows do not, for one warning."""

    where: Path
    notes: list[str] = field(default_factory=list)
    rows: RowErrors = field(default_factory=RowErrors)

    def warn(self) -> None:
        if notes := [*self.notes, *[self.rows.summary()] * bool(self.rows)]:
            logger.warning_once("\n  ".join([f"{self.where}:", *notes]))


def _load_folder(folder: Path, split: str, audio_column: str) -> Dataset | None:
    """Rows of a folder of manifests, called like their splits, or of bare recordings; None if it has neither."""
    files = [file for file in sorted(folder.iterdir()) if not file.name.startswith(".")]
    manifests = {file.stem: file for file in files if file.suffix.lower() in MANIFESTS}
    if split in manifests:
        return _load_metadata(manifests[split], None, audio_column)
    if _shard_files(folder):
        return None
    # A .json file may be anything.
    manifests = {name: file for name, file in manifests.items() if file.suffix != ".json" or "manifest" in name}
    if len(manifests) == 1:
        return _load_metadata(next(iter(manifests.values())), split, audio_column)
    if manifests:
        raise MissingSplit(folder, split, manifests)
    ignored = _Ignored(folder)
    rows = _read_recordings(folder, ignored)
    return _path_rows(rows, split, audio_column, ignored) if rows or ignored.rows else None


def _load_metadata(file: Path, split: str | None, audio_column: str) -> Dataset:
    """Rows of a `metadata.*` file, manifest or Kaldi folder, of all splits if `split` is None."""
    ignored = _Ignored(file)
    if file.name == "wav.scp":
        rows = _read_kaldi(file.parent, ignored.rows)
    else:
        rows = _read_json(file) if "json" in file.suffix.lower() else _read_csv(file, ignored.rows)
    return _path_rows(rows, split, audio_column, ignored)


def _path_rows(rows: list[dict], split: str | None, audio_column: str, ignored: _Ignored) -> Dataset:
    """A data set of rows that name the path of their recording."""
    where = ignored.where
    columns = list(dict.fromkeys(column for row in rows for column in row))
    path_column = next((name for name in (audio_column, *PATH_COLUMNS) if name in columns), "")
    if rows and not path_column:
        raise ValueError(
            f"{where}: expected the path of each recording in a column {audio_column!r} (`audio_column`) or one "
            f"called {' or '.join(map(repr, PATH_COLUMNS))}, got the columns {columns}. Of a .csv or .tsv, the first "
            "line names them."
        )
    rows = [row for row in rows if _has_seconds(row, path_column, ignored.rows)]
    if not rows:
        if ignored.rows:
            raise ValueError(f"{where}: no row can be read. {ignored.rows.summary()}")
        return Dataset.from_dict({})
    if split is not None:
        rows = _rows_of_split(where, rows, split, path_column)
    folder = _audio_folder(where if where.is_dir() else where.parent, rows, path_column)
    paths = [_absolute_path(row.get(path_column), folder) for row in rows]
    picked = _picked(rows, paths, ignored.notes)
    audio = [
        {"bytes": None, "path": path, **{key: row.get(key) for key in picked}}
        for row, path in zip(rows, paths, strict=True)
    ]
    table = {name: _column(where, name, [row.get(name) for row in rows]) for name in columns if name != audio_column}
    table |= {name: table[alias] for name, alias in ALIASES.items() if alias in table and name not in table}
    types = {"bytes": pa.binary(), "path": pa.string(), **{key: PART[key] for key in picked}}
    table[audio_column] = pa.array(audio, pa.struct(types))
    ignored.warn()
    return Dataset.from_dict(table)


def _has_seconds(row: dict, path_column: str, errors: RowErrors) -> bool:
    """Makes numbers of `offset` and `duration`; a row where they are none is added to `errors`."""
    for key in ("offset", "duration"):
        try:
            row.update({key: float(row[key])} if row.get(key) is not None else {})
        except (TypeError, ValueError):
            errors.add(row.get("id") or row.get(path_column), f"{key}: expected seconds, got {row[key]!r}")
            return False
    return True


def _picked(rows: list[dict], paths: list[str | None], notes: list[str]) -> list[str]:
    """Which of the columns `offset`, `duration` and `channel` pick a part of each recording.

    A duration ends a part only where there are offsets: alone it is a fact about the row, as labels have it too.
    """
    picked = ["offset", "duration"] if any(row.get("offset") is not None for row in rows) else []
    channels = {str(row["channel"]) for row in rows if row.get("channel") is not None}
    if channels and all(re.fullmatch(r"\d+(\.0)?", channel) for channel in channels):
        picked.append("channel")
        for row in rows:
            row["channel"] = None if row.get("channel") is None else int(float(row["channel"]))
    elif channels:
        notes.append(f"channel: expected numbers from 0, got {min(channels)!r}; all channels are mixed to one.")
    if picked:
        return picked
    if len(set(paths)) < len(paths):
        notes.append(
            f"{len(paths)} rows share {len(set(paths))} recordings, and each gets all of its own: parts are picked by "
            "the columns `offset` and `duration` (seconds) or `channel`."
        )
    for row, path in list(zip(rows, paths, strict=True))[:: len(rows) // 10 + 1]:
        # A row whose audio cannot be read will be counted and listed when it is needed.
        with suppress(AudioError):
            if row.get("duration") and (seconds := audio_duration(path)) > row["duration"] + 1:
                notes.append(
                    f"{path} is {seconds:.2f} s long and its row says {row['duration']:g} s: all of it is read. A "
                    "duration ends a part only beside a column `offset` (0: from the start)."
                )
                break
    return picked


def _column(where: Path, name: str, values: list) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        if any(isinstance(value, list | dict) for value in values):
            raise ValueError(f"{where}: column {name!r} holds values of different kinds: {error}.") from error
        # Numbers among texts, such as the transcript 5
        return pa.array([value if value is None or isinstance(value, str) else json.dumps(value) for value in values])


def _rows_of_split(file: Path, rows: list[dict], split: str, path_column: str) -> list[dict]:
    """By the column `split`, else by the first folder of the paths if all of them are called like splits."""
    if any("split" in row for row in rows):
        names = [row.get("split") for row in rows]
    else:
        names = [Path(str(row.get(path_column) or None)).parts[0] for row in rows]
        if not set(names) <= set(SPLIT_FOLDERS):
            names = ["train"] * len(rows)
    if split not in names:
        raise MissingSplit(file, split, sorted({str(name) for name in names}))
    return [row for row, name in zip(rows, names, strict=True) if name == split]


def _read_text(file: Path) -> str:
    content = file.read_bytes()
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line, start = content.count(b"\n", 0, error.start) + 1, max(0, error.start - 10)
        raise ValueError(
            f"{file}, line {line}: expected UTF-8, got {content[start : error.end]!r}, which is another encoding. "
            "Save it as UTF-8."
        ) from error
    if "\0" in text:
        raise ValueError(f"{file}: expected UTF-8, got null characters, as UTF-16 has them. Save it as UTF-8.")
    return text


def _read_json(file: Path) -> list[dict]:
    text = _read_text(file)
    with suppress(ValueError):
        rows = json.loads(text)
        if isinstance(rows, list) and all(isinstance(row, dict) for row in rows):
            return rows
    # Not `splitlines`, which also splits at the line separators (U+2028) that a transcript may hold.
    lines, expected = enumerate(text.split("\n"), start=1), "one JSON object per line, or one list of them"
    return [_parse_json_object(line, f"{file}, line {number}", expected) for number, line in lines if line.strip()]


def _read_csv(file: Path, errors: RowErrors) -> list[dict]:
    # Not pandas, which takes a spoken "null" or "NA" for a missing text.
    text, is_tsv = _read_text(file), file.suffix.lower() == ".tsv"
    header = text.partition("\n")[0]
    # Common Voice writes the quotes of its sentences as they are: read as quoting, they swallow the next rows.
    as_they_are = is_tsv and not header.startswith('"')
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter="\t" if is_tsv else max(",;\t|", key=header.count),
        quoting=csv.QUOTE_NONE if as_they_are else csv.QUOTE_MINIMAL,
        skipinitialspace=True,
        strict=True,
    )
    rows, line = [], 1
    try:
        names = [name.strip() for name in next(reader, [])]
        line = reader.line_num + 1
        for fields in reader:
            if any(_NEXT_ROW.search(field) for field in fields):
                raise csv.Error("it runs into the next row")
            if len(fields) == len(names):
                values = map(_without_quotes, fields) if as_they_are else fields
                rows.append({name: value or None for name, value in zip(names, values, strict=True) if name})
            elif fields:
                errors.add(
                    f"line {line}", f"{len(fields)} fields, the header has {len(names)}. Quote texts with commas."
                )
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"{file}, line {line}: a quoted text does not end where its field does ({error}). Close the quote and "
            'double those inside ("She said ""no"""), or save it as .tsv, where quotes are plain characters.'
        ) from error
    return rows


def _without_quotes(field: str) -> str:
    """Undoes what old versions of Common Voice did to a sentence with quotes, and new ones do not."""
    inner = field[1:-1]
    is_quoted = field[:1] == field[-1:] == '"' and '""' in inner and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if is_quoted else field


def _read_kaldi(folder: Path, errors: RowErrors) -> list[dict]:
    """Rows of `wav.scp`, or of `segments` where there is one, with `text` and `utt2spk`."""

    def table(name: str) -> dict[str, str]:
        lines = _read_text(folder / name).split("\n") if (folder / name).exists() else []
        parts = [line.split(maxsplit=1) for line in lines if line.strip()]
        return {key: "".join(rest).strip() for key, *rest in parts}

    recordings, segments, texts, speakers = map(table, ("wav.scp", "segments", "text", "utt2spk"))
    rows: list[dict] = []
    for key in segments or recordings:
        row: dict[str, Any] = {"id": key} | ({"text": texts.get(key)} if texts else {})
        row |= {"speaker": speakers.get(key)} if speakers else {}
        name = key
        try:
            if segments:
                name, start, end, *channel = segments[key].split()
                seconds = float(end) - float(start) if float(end) > 0 else None  # -1: to the end
                row |= {"recording": name, "offset": float(start), "duration": seconds}
                row |= {"channel": channel[0]} if channel else {}
            row["file_name"] = recordings[name]
        except KeyError:
            errors.add(key, f"its recording {name!r} is not in wav.scp")
        except ValueError:
            errors.add(key, f"expected a recording, start and end in segments, got {segments[key]!r}")
        else:
            if row["file_name"].endswith("|"):
                errors.add(key, f"the command {row['file_name']!r} is not run: write its output to a file, name that")
            else:
                rows.append(row)
    return rows


def _read_recordings(folder: Path, ignored: _Ignored) -> list[dict]:
    """Rows of all recordings below a folder, in natural order, each with the text of the `.txt` beside it."""
    files: list[Path] = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(parent, name) for name in names if not name.startswith(".")]
    recordings = sorted((file for file in files if file.suffix[1:].lower() in AUDIO_SUFFIXES), key=_natural_order)
    texts = {file for file in files if file.suffix == ".txt"} & {file.with_suffix(".txt") for file in recordings}
    rows = []
    for file in recordings:
        name = file.relative_to(folder).as_posix()
        row, text = {"id": name, "file_name": name}, file.with_suffix(".txt")
        try:
            rows.append(row | ({"text": " ".join(_read_text(text).split())} if text in texts else {}))
        except ValueError as error:
            ignored.rows.add(name, error)
    without_text = sum(file.with_suffix(".txt") not in texts for file in recordings)
    if texts and without_text:
        ignored.notes.append(f"{without_text} of {len(recordings)} recordings have no .txt: their text is not known.")
    others = Counter(file.suffix or file.name for file in {*files} - {*recordings} - texts)
    if others:
        unread = ", ".join(f"{count} {kind}" for kind, count in sorted(others.items()))
        ignored.notes.append(f"not read: {unread} (recordings and a .txt of the same name are).")
    return rows


def _natural_order(file: Path) -> list[int | str]:
    """`2.wav` before `10.wav`."""
    return [int(part) if index % 2 else part.lower() for index, part in enumerate(re.split(r"(\d+)", str(file)))]


def _audio_folder(folder: Path, rows: list[dict], path_column: str) -> Path:
    """What the paths are relative to: the folder of their manifest, its `clips` as in Common Voice, or this one."""
    paths = [path for row in rows[:10] if isinstance(path := row.get(path_column), str)]
    candidates = (folder, folder / "clips", Path.cwd())
    return next((base for base in candidates if any((base / path).is_file() for path in paths)), folder)


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
    return os.path.abspath(folder / os.path.expanduser(value)) if isinstance(value, str) and value else None


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
                f"{root}: expected a folder or a {', '.join(MANIFESTS + SHARD_SUFFIXES)} file, got "
                f"{root.suffix or 'no suffix'}. Of recordings, name the folder."
            )
        by_split = {name: [str(root)] for name in {"train", _split_of(root)}}
    else:
        for file in sorted(_shard_files(root)):
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
            f"each split's sub-folder), {', '.join(SHARD_SUFFIXES)} files, or recordings; {hint}."
        )
    if split not in by_split:
        raise MissingSplit(root, split, sorted(by_split))
    kinds = sorted({Path(file).suffix for file in by_split[split]})
    if len(kinds) > 1:
        raise ValueError(f"{root}, split {split!r}: files of several kinds ({', '.join(kinds)}); expected one kind.")
    return by_split[split]


def _shard_files(root: Path) -> list[Path]:
    files = [file for suffix in SHARD_SUFFIXES for folder in ("*", "*/*") for file in root.glob(folder + suffix)]
    return [file for file in files if not file.name.startswith(".")]


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
    columns = _existing(columns, rows.column_names, where)
    stream = name_columns(without_decoder(rows, columns.audio), columns.renaming(), where)
    features = stream.features or {}
    texts = ["text"] * (columns.text is not None) + ["language"] * ("language" in features)
    converters = {name: _to_string(features[name]) for name in texts}
    audio = features["audio"] if isinstance(features["audio"], dict) else PLAIN_AUDIO  # with the part that it picks
    standard = {"id": Value("string"), "audio": audio, **{name: Value("string") for name in texts}}
    return stream.map(_standard_row, fn_kwargs={"converters": converters}, features=Features({**features, **standard}))


def _standard_row(row: dict[str, Any], converters: dict[str, Callable[[Any], str]]) -> dict[str, Any]:
    audio, name = row["audio"], row.get("id")
    if isinstance(audio, str):
        audio = {"bytes": None, "path": str(Path(audio).expanduser().absolute())}
    if name is None:
        facts = dict(audio or {})
        content = facts.pop("bytes", None) or " ".join(str(one) for one in facts.values() if one is not None).encode()
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
