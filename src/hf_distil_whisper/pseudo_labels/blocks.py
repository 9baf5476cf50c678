"""How the rows of a source are cut into blocks, one for each shard of labels, and which of them a process labels.

A data set is cut by row numbers, a stream file by file. Knows names of shards, not what is written into them.
"""

import os
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from datasets import Dataset, IterableDataset

from hf_distil_whisper.data.sources import END_OF_FILE
from hf_distil_whisper.inference.progress import AudioProgress
from hf_distil_whisper.shards import ShardStore


class Block(NamedTuple):
    """Rows that are labelled and committed together.

    Args:
        name (`str`): of their shard; shards sorted by name are in the order of the source.
        rows (`Dataset`): in their order.
    """

    name: str
    rows: Dataset


def own_blocks(
    dataset: Dataset | IterableDataset, store: ShardStore, rows_per_shard: int, progress: AudioProgress
) -> Iterator[Block]:
    """The blocks of this process that are not labelled yet, or in which no row could be read before.

    Of a data set the processes take turns at the blocks, of a stream at its files, so that none reads another's audio.

    Args:
        dataset (`Dataset` or `IterableDataset`): the source.
        store (`ShardStore`): of the labels.
        rows_per_shard (`int`): rows of a block.
        progress ([`AudioProgress`]): told of what is passed over.
    """
    rank, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if isinstance(dataset, IterableDataset):
        yield from _blocks_of_files(
            dataset, store, rows_per_shard, range(rank, dataset.num_shards, processes), progress
        )
        return
    done = {shard.name for shard in store.shards() if shard.info["rows"]}
    for number, start in enumerate(range(0, len(dataset), rows_per_shard)):
        rows = dataset.select(range(start, min(start + rows_per_shard, len(dataset))))
        if _name(start) in done:
            progress.skip(len(rows))
        elif number % processes == rank:
            store.remove(_name(start))
            yield Block(_name(start), rows)


def blocks_missing(dataset: Dataset | IterableDataset, rows_per_shard: int, there: set[str]) -> int:
    """How many blocks of a data set, or files of a stream, are not labelled to their end.

    Args:
        dataset (`Dataset` or `IterableDataset`): the source.
        rows_per_shard (`int`): rows of a block.
        there (`set[str]`): names of the shards.
    """
    if isinstance(dataset, IterableDataset):
        return dataset.num_shards - sum(name.endswith(END_OF_FILE) for name in there)
    return len({_name(start) for start in range(0, len(dataset), rows_per_shard)} - there)


def check_ids(rows: Dataset) -> None:
    """Raises a `ValueError` if an id stands for several rows: their labels could not be told apart."""
    if "id" not in rows.column_names:
        return
    counts = Counter(rows["id"])
    if twice := [str(name) for name, count in counts.items() if count > 1]:
        raise ValueError(
            f"{len(twice)} ids stand for several rows, {', '.join(twice[:3])} among them: labels could not be "
            "told apart. Name a column of unique ids with `id_column` when loading."
        )


def _blocks_of_files(
    stream: IterableDataset, store: ShardStore, rows_per_shard: int, files: range, progress: AudioProgress
) -> Iterator[Block]:
    done = {shard.name: shard.info for shard in store.shards() if shard.info["rows"] or not shard.info["source_rows"]}
    for file in files:
        start, ended = 0, False
        while not ended and (name := next((name for name in _names(file, start) if name in done), None)):
            start, ended = start + done[name]["source_rows"], name.endswith(END_OF_FILE)
        progress.skip(start)
        if not ended:
            rows = iter(stream.shard(num_shards=stream.num_shards, index=file).skip(start))
            for number, block, last in _cut(rows, rows_per_shard):
                name = _names(file, start + number)[last]
                for unfinished in _names(file, start + number):
                    store.remove(unfinished)
                yield Block(name, _as_dataset(block, stream))


def _cut(rows: Iterator[dict], size: int) -> Iterator[tuple[int, list[dict], bool]]:
    """Blocks of rows with the number of their first one, and whether it is the last block. Reads one row ahead."""
    number, first = 0, next(rows, None)
    last = False
    while not last:
        block = [] if first is None else [first, *islice(rows, size - 1)]
        first = next(rows, None)
        last = first is None
        yield number, block, last
        number += len(block)


def _as_dataset(rows: list[dict], stream: IterableDataset) -> Dataset:
    dataset = Dataset.from_list(rows, features=stream.features) if rows else Dataset.from_dict({})
    check_ids(dataset)
    return dataset


def _name(start: int) -> str:
    return f"{start:010d}"


def _names(file: int, start: int) -> tuple[str, str]:
    """Of a block of a stream, and of the same as the last one of its file."""
    name = f"{file:06d}-{start:010d}"
    return name, name + END_OF_FILE
