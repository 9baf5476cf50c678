"""Where recordings come from: the Hub, folders, Parquet and manifests, all as a `Dataset` of the same columns.

Audio is never decoded here and never kept as a feature that `datasets` decodes by itself: it stays a plain
`{"bytes", "path"}` struct for `data.audio.load_audio`. Also keeps the list of rows that were left out, and why.
"""

import csv
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Audio, Dataset, Features, Value, concatenate_datasets, load_dataset
from datasets.exceptions import DatasetNotFoundError

from hf_distil_whisper.data.row_index import INDEX, choose_rows, read_row_index
from hf_distil_whisper.shards import RUN, ShardStore

PLAIN_AUDIO = {"bytes": Value("binary"), "path": Value("string")}
"""The feature of the audio column: what `datasets` stores for `Audio`, without its decoder."""

METADATA_FILES = ("metadata.jsonl", "metadata.csv")
ROWS_FILE = "rows.parquet"
"""The rows of a shard, as labelling writes them."""
SPLIT_FOLDERS = ("train", "validation", "valid", "val", "dev", "test")


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
    id_column: str | None = None,
    max_samples: int | None = None,
) -> Dataset:
    """Loads one split of recordings and gives its columns the names that the rest of the library uses.

    Args:
        name_or_path (`str` or `Path`):
            A folder or URL that [`pseudo_label_dataset`] has filled; one that the command `filter` has written; a
            folder written by `save_to_disk`; a folder with
            `metadata.jsonl` or `metadata.csv` (column `file_name`; splits by a column `split` or by sub-folders); a
            file or folder of Parquet as `load_dataset` reads it; a
            `.jsonl` or `.csv` manifest with paths; or a data set on the Hub.
        split (`str`, *optional*, defaults to `"train"`): its name, unchanged; several joined by `+`. Where nothing is
            split, everything is `"train"`.
        config (`str`, *optional*): configuration of a data set on the Hub, or sub-folder of Parquet files.
        revision (`str`, *optional*): of a data set on the Hub.
        audio_column (`str`, *optional*, defaults to `"audio"`): becomes `audio`.
        text_column (`str`, *optional*, defaults to `"text"`): becomes `text`; `None` for recordings without
            transcripts.
        speaker_column (`str`, *optional*): becomes `speaker`; by default the column of that name, if there is one.
        recording_column (`str`, *optional*): what an utterance was cut from; becomes `recording`, by default the
            column of that name, if there is one.
        id_column (`str`, *optional*): becomes `id`; by default the column of that name, else split and row number.
        max_samples (`int`, *optional*): the first so many rows; by default all.

    Returns:
        `Dataset`: `id` (string), `audio` (`{"bytes", "path"}`, not decoded), `text` (string or null), `speaker` and
        `recording` if known, and every other column as it was. Columns renamed to one of these replace a column that
        had the name before. The labelled data sets of the reference scripts (`whisper_transcript`,
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
    parts = []
    for name in split.split("+"):
        dataset = _load_split(name_or_path, name, config, revision, audio_column)
        where = f"{name_or_path}, split {name!r}"
        if not len(dataset):
            raise ValueError(f"{where}: 0 rows; expected at least one. Check the path, the split and what made it.")
        dataset = _rename(dataset, "audio", audio_column, "audio_column", where)
        dataset = _plain_audio(dataset)
        if text_column is not None:
            hint = " Recordings without transcripts need `text_column` to be None."
            dataset = _rename(dataset, "text", text_column, "text_column", where, hint)
            dataset = _as_strings(dataset, "text")
        if speaker_column is not None:
            dataset = _rename(dataset, "speaker", speaker_column, "speaker_column", where)
        if recording_column is not None:
            dataset = _rename(dataset, "recording", recording_column, "recording_column", where)
        if id_column is not None:
            dataset = _rename(dataset, "id", id_column, "id_column", where)
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
    shards, wanted = store.shards(), (store.identity() or {}).get("rows", 0)
    there = sum(shard.info["source_rows"] for shard in shards)
    if there != wanted:
        raise ValueError(
            f"{store.root}: labels of {there} rows are there, {wanted} were to be labelled. Start the labelling again "
            "with the same settings: it goes on where it was."
        )
    files = [store.url(shard.name, ROWS_FILE) for shard in shards if shard.info["rows"]]
    return Dataset.from_parquet(files) if files else Dataset.from_dict({})


def without_decoder(dataset: Dataset, column: str = "audio") -> Dataset:
    """The same rows with `{"bytes", "path"}` instead of what `datasets` would decode (and cannot, without torchcodec).

    Args:
        dataset (`Dataset`): with or without an `Audio` feature in `column`.
        column (`str`, *optional*, defaults to `"audio"`): which.

    Returns:
        `Dataset`: nothing is copied.
    """
    if isinstance(dataset.features.get(column), Audio):
        return dataset.cast_column(column, Audio(decode=False))
    return dataset


# From a name or path to one split, with the columns as they are


def _load_split(
    name_or_path: str | Path, split: str, config: str | None, revision: str | None, audio_column: str
) -> Dataset:
    path = Path(name_or_path).expanduser()
    if (path / INDEX).is_file():
        if split != "train":
            raise _no_split(path, split, ["train"])
        return choose_rows(path, load_source(**read_row_index(path)[0]))
    if "://" in str(name_or_path) or (path / RUN).is_file():
        store = ShardStore(name_or_path)
        if store.identity() is None:
            raise FileNotFoundError(f"{name_or_path}: no labelled shards there. Correct the path of the data set.")
        if split != "train":
            raise _no_split(path, split, ["train"])
        return load_shards(store)
    if not path.exists():
        return _load_from_hub(str(name_or_path), split, config, revision)
    if revision is not None:
        raise ValueError(f"{path}: `revision` is for data sets on the Hub, this one is a path.")
    if path.is_dir() and config is None:
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            return _load_saved(path, split)
        for file in METADATA_FILES:
            if (path / file).exists():
                return _load_metadata(path / file, split, audio_column, whole_file=False)
        by_split = {file.parent.name: file for name in METADATA_FILES for file in sorted(path.glob(f"*/{name}"))}
        if by_split and split not in by_split:
            raise _no_split(path, split, by_split)
        if by_split:
            return _load_metadata(by_split[split], split, audio_column, whole_file=True)
    if path.suffix in (".jsonl", ".csv"):
        return _load_metadata(path, split, audio_column, whole_file=False)
    return _load_parquet(path, split, config)


def _load_from_hub(name: str, split: str, config: str | None, revision: str | None) -> Dataset:
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).suffix in (".jsonl", ".csv", ".parquet"):
        raise FileNotFoundError(f"{name}: no such folder or file. Correct the path of the data set.")
    try:
        return load_dataset(name, config, split=split, revision=revision)
    except (DatasetNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(
            f"{name}: neither a folder or file here nor a data set that can be reached on the Hub ({error})."
        ) from error
    except ValueError as error:
        raise ValueError(f"{name} (`config` {config!r}, `split` {split!r}): {error}") from error


def _load_saved(path: Path, split: str) -> Dataset:
    folder = path
    if (path / "dataset_dict.json").exists():
        splits = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        if split not in splits:
            raise _no_split(path, split, splits)
        folder = path / split
    # `load_from_disk` has nothing to say about 0 rows but an IndexError.
    if not json.loads((folder / "state.json").read_text(encoding="utf-8"))["_data_files"]:
        return Dataset.from_dict({})
    saved = Dataset.load_from_disk(str(folder))
    # One data set without siblings is what the default split means, whatever it was called when it was saved.
    if folder == path and split not in ("train", str(saved.split)):
        raise _no_split(path, split, ["train" if saved.split is None else str(saved.split)])
    return saved


def _load_metadata(file: Path, split: str, audio_column: str, whole_file: bool) -> Dataset:
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
    paths = [_path_in(row.get(source), file.parent) for row in rows]
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
        raise _no_split(file, split, sorted({str(name) for name in names}))
    return [row for row, name in zip(rows, names, strict=True) if name == split]


def _load_parquet(path: Path, split: str, config: str | None) -> Dataset:
    if path.is_file():
        if path.suffix != ".parquet":
            raise ValueError(
                f"{path}: expected a folder or a .parquet, .jsonl or .csv file, got {path.suffix or 'no suffix'}."
            )
        if split not in ("train", _parquet_split(path)):
            raise _no_split(path, split, [_parquet_split(path)])
        return Dataset.from_parquet([str(path)], split=split)
    root = path if config is None else path / config
    by_split: dict[str, list[str]] = {}
    configs = set()
    for file in sorted([*root.glob("*.parquet"), *root.glob("*/*.parquet")]):
        name, folder = _parquet_split(file), file.parent.name
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
            f"each split's sub-folder), or Parquet files; {there}."
        )
    if split not in by_split:
        raise _no_split(root, split, by_split)
    return Dataset.from_parquet(by_split[split], split=split)


def _parquet_split(file: Path) -> str:
    """`train-00000-of-00002` → `train`; without such a name, `train`."""
    sharded = re.fullmatch(r"(.+?)-\d+-of-\d+.*", file.stem)
    if sharded:
        return sharded[1]
    return file.stem if file.stem in SPLIT_FOLDERS else "train"


def _no_split(where: Path, split: str, names: Any) -> ValueError:
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


def _path_in(value: object, folder: Path) -> str | None:
    if isinstance(value, dict):
        value = value.get("path")
    return os.path.abspath(folder / value) if isinstance(value, str) and value else None


# Columns


def _rename(dataset: Dataset, new: str, old: str, option: str, where: str, hint: str = "") -> Dataset:
    if old not in dataset.column_names:
        raise ValueError(
            f"{where}: no column {old!r} (`{option}`); there are {', '.join(dataset.column_names)}.{hint}"
        )
    if old == new:
        return dataset
    if new in dataset.column_names:
        dataset = dataset.remove_columns(new)
    return dataset.rename_column(old, new)


def _plain_audio(dataset: Dataset) -> Dataset:
    """The audio column as struct. Only the schema changes: casting would write all the audio a second time."""
    feature = dataset.features["audio"]
    if isinstance(feature, Audio):
        features = Features({**dataset.features, "audio": PLAIN_AUDIO})
        info = dataset.info.copy()
        info.features = features
        return Dataset(dataset.data.cast(features.arrow_schema), info=info, split=dataset.split)
    if isinstance(feature, Value) and feature.dtype in ("string", "large_string"):
        audio = [{"bytes": None, "path": _path_in(path, Path.cwd())} for path in dataset["audio"]]
        return dataset.remove_columns("audio").add_column("audio", audio, feature=PLAIN_AUDIO)
    return dataset


def _as_strings(dataset: Dataset, column: str) -> Dataset:
    feature = dataset.features[column]
    if isinstance(feature, Value) and feature.dtype in ("string", "large_string"):
        return dataset
    texts = [None if value is None else str(value) for value in dataset[column]]
    return dataset.remove_columns(column).add_column(column, texts, feature=Value("string"))


def _with_ids(dataset: Dataset, split: str) -> Dataset:
    numbers = [f"{split}-{row:06d}" for row in range(len(dataset))]
    if "id" not in dataset.column_names:
        return dataset.add_column("id", numbers)
    dataset = _as_strings(dataset, "id")
    ids = list(dataset["id"])
    if None not in ids:
        return dataset
    filled = [number if row is None else row for row, number in zip(ids, numbers, strict=True)]
    return dataset.remove_columns("id").add_column("id", filled, feature=Value("string"))
