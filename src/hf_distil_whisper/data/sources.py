"""Where recordings come from: the Hub, folders, Parquet, tar and manifests, all with the same columns.

Audio is never decoded here and never kept as a feature that `datasets` decodes by itself: it stays a plain
`{"bytes", "path"}` struct for `data.audio.load_audio`. Also keeps the list of rows that were left out, and why.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar, overload

from datasets import Audio, ClassLabel, Dataset, Features, IterableDataset, Value, concatenate_datasets

from hf_distil_whisper.data.row_index import INDEX, choose_rows, read_row_index
from hf_distil_whisper.data.source_files import (
    MANIFESTS,
    METADATA_FILES,
    SHARD_SUFFIXES,
    absolute_path,
    find_shards,
    load_from_hub,
    load_metadata,
    load_saved,
    no_split,
    read_parquet,
    read_shards,
    stream_shards,
)
from hf_distil_whisper.data.tar_shards import PLAIN_AUDIO
from hf_distil_whisper.shards import RUN, ShardStore

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
