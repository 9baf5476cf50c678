"""Recordings read one after the other, for sources that are too large to be copied: the Hub, Parquet, Arrow and tar.

Gives a stream the columns that `sources` gives a data set. Knows nothing of labels.
"""

import hashlib
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Features, IterableDataset, Value, concatenate_datasets

from hf_distil_whisper.data.sources import name_columns, open_split, without_decoder
from hf_distil_whisper.data.tar_shards import PLAIN_AUDIO

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
