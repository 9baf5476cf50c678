"""A labelled folder as it goes to the Hub: which rows of which shards, what is known of them, each shard as Parquet.

Knows what `pseudo-label` and `filter` write. Nothing is sent anywhere here.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Audio, Features

from hf_distil_whisper.data.row_index import INDEX, ROWS, read_row_index
from hf_distil_whisper.data.sources import RowErrors, shard_files
from hf_distil_whisper.shards import Shard, ShardStore

REPORT = "filter_report.json"
_ROW_GROUP = 100
"""Rows that a reader has to fetch at once: what the Hub's own viewer reads easily."""


@dataclass(frozen=True)
class LabelledSource:
    """The rows of one labelled folder, whole or as a filter chose them.

    Args:
        name (`str`): of the source; a configuration of the data set where there are several.
        files (`list[str]`): Parquet files of the shards, in order.
        rows (`list[np.ndarray]`): of each file, the numbers of the rows that are published.
        run (`dict`): what the labels were computed from: teacher and settings.
        shards (`list[Shard]`): with counts, hours and lost rows.
        report (`dict`, *optional*): of the filter.
    """

    name: str
    files: list[str]
    rows: list[np.ndarray]
    run: dict[str, Any]
    shards: list[Shard]
    report: dict[str, Any] | None = None

    @property
    def labelled(self) -> tuple[int, float]:
        """Rows and hours that have a label."""
        return sum(shard.info["rows"] for shard in self.shards), sum(shard.info["hours"] for shard in self.shards)

    @property
    def lost(self) -> int:
        """Rows of the source that could not be labelled."""
        return sum(len(shard.info["lost"]) for shard in self.shards)

    @property
    def kept(self) -> tuple[int, float]:
        """Rows and hours that are published."""
        if self.report is None:
            return self.labelled
        return self.report["kept"], self.report["hours_kept"]


def open_labelled(folder: str | Path, name: str) -> LabelledSource:
    """Looks into a folder that `pseudo-label` has filled, or that `filter` has written about one.

    Args:
        folder (`str` or `Path`): of the shards (a URL too), or of the filter's row numbers.
        name (`str`): of the source.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it holds something else, the labelling is not finished, or no row is left.
    """
    index, report, chosen, asked = Path(folder), None, None, folder
    if (index / INDEX).is_file():
        source, num_rows = read_row_index(index)
        chosen, folder = np.load(index / ROWS), source["name_or_path"]
        if (index / REPORT).is_file():
            report = json.loads((index / REPORT).read_text(encoding="utf-8"))
    elif "://" not in str(folder) and not index.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder. Name the --output_dir of `pseudo-label` or `filter`.")
    store = ShardStore(folder)
    run = store.identity() if "://" in str(folder) or Path(folder).is_dir() else None
    if run is None or "teacher" not in run:
        raise ValueError(
            f"{asked}: expected labels of `pseudo-label`, or the choice of `filter` among them, found neither. Name "
            "the --output_dir of one of these commands."
        )
    files = shard_files(store)
    shards = store.shards()
    counts = [shard.info["rows"] for shard in shards if shard.info["rows"]]
    if chosen is not None and num_rows != sum(counts) and source.get("max_samples") is None:
        raise ValueError(
            f"{asked} holds a choice among {num_rows} rows, {folder} has {sum(counts)} now. Filter it again."
        )
    return LabelledSource(name, files, _by_file(counts, chosen), run, shards, report)


def embedded_schema(sources: list[LabelledSource], audio: bool) -> dict[str, Features]:
    """The columns of each source, the same in all of its files.

    A column that is empty in one shard has no type there, and a reader that begins with it would refuse the others.

    Args:
        sources (`list[LabelledSource]`): whose files are looked at.
        audio (`bool`): whether there is a column `audio`.

    Returns:
        `dict[str, Features]`: by name of the source.
    """
    found = {}
    for source in sources:
        schemas = []
        for file in source.files:
            with fsspec.open(file, "rb") as opened:
                schemas.append(pq.read_schema(opened))
        names = [name for name in schemas[0].names if audio or name != "audio"]
        bare = [pa.schema([schema.field(name) for name in names if name != "audio"]) for schema in schemas]
        joined = pa.unify_schemas([schema.remove_metadata() for schema in bare], promote_options="permissive")
        told = Features.from_arrow_schema(schemas[0])  # knows more than Arrow: the labels of a class, for example
        guessed = Features.from_arrow_schema(joined)
        features: dict[str, Any] = {}
        for name in names:
            if name == "audio":
                features[name] = Audio()
            elif pa.types.is_null(joined.field(name).type):
                features[name] = Features.from_arrow_schema(pa.schema([(name, pa.string())]))[name]
            else:
                same = joined.field(name).type == schemas[0].field(name).type
                features[name] = (told if same else guessed)[name]
        found[source.name] = Features(features)
    return found


def write_part(source: LabelledSource, number: int, features: Features, target: Path, errors: RowErrors) -> int:
    """Writes the published rows of one file of a source, the recordings inside: the same rows, the same bytes.

    Args:
        source (`LabelledSource`): what to publish.
        number (`int`): of the file.
        features (`Features`): from [`embedded_schema`].
        target (`Path`): the new file.
        errors (`RowErrors`): takes the rows whose recording is gone.

    Returns:
        `int`: rows written.
    """
    schema = features.arrow_schema
    written = 0
    with fsspec.open(source.files[number], "rb") as opened, pq.ParquetWriter(target, schema) as writer:
        for batch in _chosen(pq.ParquetFile(opened), source.rows[number]):
            table = _embedded(batch, schema, errors)
            if len(table):
                writer.write_table(table)
                written += len(table)
    return written


def _by_file(counts: list[int], chosen: np.ndarray | None) -> list[np.ndarray]:
    ends = np.cumsum([0, *counts])
    if chosen is None:
        return [np.arange(count) for count in counts]
    kept = np.sort(chosen)
    return [kept[(kept >= begin) & (kept < end)] - begin for begin, end in pairwise(ends)]


def _chosen(file: pq.ParquetFile, rows: np.ndarray) -> Iterator[pa.Table]:
    begin = 0
    for batch in file.iter_batches(batch_size=_ROW_GROUP):
        here = rows[(rows >= begin) & (rows < begin + len(batch))] - begin
        begin += len(batch)
        if len(here):
            yield pa.Table.from_batches([batch]).take(pa.array(here))


def _embedded(table: pa.Table, schema: pa.Schema, errors: RowErrors) -> pa.Table:
    if "audio" in schema.names:
        sounds = [_with_bytes(sound) for sound in table["audio"].to_pylist()]
        for row, sound in enumerate(sounds):
            if isinstance(sound, str):
                errors.add(table["id"][row].as_py() if "id" in table.column_names else row, sound)
        there = [row for row, sound in enumerate(sounds) if not isinstance(sound, str)]
        audio = pa.array([sounds[row] for row in there], schema.field("audio").type)
        table = table.take(pa.array(there, pa.int64()))
        table = table.set_column(table.column_names.index("audio"), "audio", audio)
    columns = [table[field.name].cast(field.type) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def _with_bytes(sound: dict[str, Any] | None) -> dict[str, Any] | str:
    """The recording itself and the name of its file without the folders of this machine, or why it is missing."""
    sound = sound or {}
    path, content = sound.get("path"), sound.get("bytes")
    if content is None:
        if path is None:
            return "there is no audio in this row"
        try:
            with fsspec.open(path, "rb") as file:
                content = file.read()
        except OSError as error:
            return f"its recording {Path(path).name} cannot be read ({type(error).__name__})"
    return {"bytes": content, "path": None if path is None else Path(path).name}
