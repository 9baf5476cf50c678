"""Training samples from streams of recordings: endless, shuffled, mixed, and continued exactly by a resumed training.

The Trainer would read a stream again up to where it stopped; `torchdata`'s `StatefulDataLoader` saves the state of
every worker instead.
"""

import dataclasses
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from datasets import IterableDataset
from datasets.distributed import split_dataset_by_node
from torch.utils.data import get_worker_info
from transformers import WhisperProcessor
from transformers.utils import logging

from hf_distil_whisper.data.audio import AudioError
from hf_distil_whisper.data.dataset import LabelSettings, SampleMaker
from hf_distil_whisper.data.labels import LabelError
from hf_distil_whisper.data.mixture import check_weights
from hf_distil_whisper.data.sources import mean_duration, weighted_mean

logger = logging.get_logger(__name__)

FILES_PER_WORKER = 20
"""From so many files on, one file more or less hardly changes the sizes of two workers' parts."""


class SpeechStream(torch.utils.data.IterableDataset):
    """Endless samples for training from streams of recordings with transcripts.

    In every pass over a source each row comes once, on one worker of one process, in an order drawn anew. Which
    variant of a sample is drawn depends on the seed, the pass and the row's id alone. A row that cannot be used is
    left out, logged, and counted in `num_skipped`.

    A copy in a worker has `state_dict` and `load_state_dict`, as `torchdata`'s `StatefulDataLoader` asks for: the
    samples after loading are those that would have followed.

    Args:
        streams (`Mapping[str, IterableDataset]`): by name, as [`load_source`] gives them with `streaming=True`, with a
            transcript.
        processor (`WhisperProcessor`): of the student.
        settings ([`LabelSettings`], *optional*): of the labels.
        weights (`Mapping[str, float]`, *optional*): how often a row of each source is drawn, relative to each other;
            by default all the same.
        stopping_strategy (`str`, *optional*, defaults to `"all_exhausted"`): what happens when a source ends. It
            starts again ("all_exhausted"), all start again ("first_exhausted"), or it waits until the others have
            ended too ("all_exhausted_without_replacement").
        shuffle_buffer (`int`, *optional*, defaults to 1000): rows of a block, within which they are shuffled; files
            are shuffled too. Each worker holds a block of every source in memory, with its undecoded audio.
        seed (`int`, *optional*, defaults to 42): of all draws.
        **label_settings: fields of [`LabelSettings`] as keywords, such as `transcript_column="text"`.

    Raises:
        ValueError: for no source, a weight that is not above 0, an unknown strategy, a column that a source lacks.

    Example:
        ```python
        >>> samples = SpeechStream({"read": load_source("s3://speech/labelled", streaming=True)}, processor)
        >>> next(iter(samples))["input_features"].shape
        torch.Size([80, 3000])
        ```
    """

    def __init__(
        self,
        streams: Mapping[str, IterableDataset],
        processor: WhisperProcessor,
        settings: LabelSettings | None = None,
        *,
        weights: Mapping[str, float] | None = None,
        stopping_strategy: str = "all_exhausted",
        shuffle_buffer: int = 1000,
        seed: int = 42,
        **label_settings: Any,
    ):
        self.settings = dataclasses.replace(settings or LabelSettings(), **label_settings)
        weights = dict.fromkeys(streams, 1.0) if weights is None else weights
        if list(weights) != list(streams):
            raise ValueError(f"expected weights for {', '.join(streams)} in this order, got {', '.join(weights)}.")
        check_weights(tuple(streams), tuple(weights.values()), stopping_strategy)
        if shuffle_buffer < 1:
            raise ValueError(f"`shuffle_buffer`: expected at least 1 row, got {shuffle_buffer}.")
        for name, stream in streams.items():
            existing = stream.column_names or []
            for column in ("audio", self.settings.transcript_column):
                if column not in existing:
                    raise ValueError(f"{name}: no column {column!r}; there are {', '.join(existing)}.")
        self.streams, self.weights, self.stopping_strategy = dict(streams), dict(weights), stopping_strategy
        self.shuffle_buffer, self.seed = shuffle_buffer, seed
        self.process, self.processes, self.workers = 0, 1, 0
        self._samples = SampleMaker(processor, self.settings)
        # In shared memory, so that workers count for this process too.
        self._num_skipped = torch.zeros((), dtype=torch.int64).share_memory_()
        # State of this copy: each worker has one, filled in `__iter__`.
        self._draws = 0
        self._readers: dict[str, _SourceReader] = {}
        self._loaded_state: dict[str, Any] | None = None

    @property
    def num_skipped(self) -> int:
        """Rows that were left out so far, by this process and its workers."""
        return int(self._num_skipped)

    def mean_duration(self) -> float | None:
        """Mean duration of a recording in seconds, from the first rows of each source and the weights."""
        return weighted_mean((mean_duration(stream), self.weights[name]) for name, stream in self.streams.items())

    def assign(self, process: int, processes: int, workers: int) -> None:
        """Sets which of the training's `processes` this is, from 0, and the number of its loader's `workers`."""
        self.process, self.processes, self.workers = process, processes, workers

    def identity(self) -> dict[str, Any]:
        """All that decides which samples come in which order, as JSON takes it."""
        return {
            "names": list(self.streams),
            "weights": list(self.weights.values()),
            "stopping_strategy": self.stopping_strategy,
            "shuffle_buffer": self.shuffle_buffer,
            "seed": self.seed,
            "processes": self.processes,
            "workers": self.workers,
        }

    def state_dict(self) -> dict[str, Any]:
        """The position of this worker, between the last sample that it gave and the next one."""
        if self._loaded_state is not None:  # asked for before the first sample after loading
            return self._loaded_state
        return {"draws": self._draws, "sources": {name: reader.state() for name, reader in self._readers.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from [`state_dict`] in the next iteration."""
        self._loaded_state = state

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        # Each worker of each process reads a separate part of every source, and draws sources by itself.
        part, parts = self.process * workers + worker, self.processes * workers
        self._draws = 0
        self._readers = {
            name: _SourceReader(_part_of(stream, part, parts), (self.seed, number), self.shuffle_buffer)
            for number, (name, stream) in enumerate(self.streams.items())
        }
        if self._loaded_state is not None:
            # {"draws": number of draws so far, "sources": {name: state of its reader}}; no sources if this worker had
            # not given a sample yet.
            state, self._loaded_state = self._loaded_state, None
            self._draws = state["draws"]
            for name, reader_state in state["sources"].items():
                self._readers[name].load(reader_state)
        while True:
            name = self._draw_source(part)
            reader = self._readers[name]
            row = reader.next_row()
            if row is None:
                self._end_pass(name)
            elif (sample := self._sample(name, row, reader.number)) is not None:
                reader.has_samples = True
                yield sample

    def _draw_source(self, part: int) -> str:
        """Draws one of the sources that have rows left, by their weights; seed, part and number of the draw decide."""
        self._draws += 1
        left = [name for name, reader in self._readers.items() if not reader.is_exhausted]
        if len(left) == 1:
            return left[0]
        # A generator for each draw: the count of draws is all the state that this needs.
        bounds = np.cumsum([self.weights[name] for name in left])
        random = np.random.default_rng((self.seed, part, self._draws)).random()
        return left[int(np.searchsorted(bounds, random * bounds[-1], side="right"))]

    def _end_pass(self, name: str) -> None:
        reader = self._readers[name]
        if not reader.has_samples:
            raise ValueError(
                f"{name}: this worker's part of it holds no row that can be used. Check its columns, its filter and "
                "the warnings above; of a source with few rows, some workers get none: lower "
                "--dataloader_num_workers."
            )
        reader.is_exhausted = True
        if self.stopping_strategy == "all_exhausted":
            reader.start_pass(reader.number + 1)
        elif self.stopping_strategy == "first_exhausted" or all(each.is_exhausted for each in self._readers.values()):
            for each in self._readers.values():
                each.start_pass(each.number + 1)

    def _sample(self, source: str, row: dict[str, Any], number: int) -> dict[str, Any] | None:
        name = f"{source} {row.get('id')}"
        # A row has no index in a stream: the checksum of its name stands for it.
        variant = self.settings.draw_variant(self.seed, number, zlib.crc32(name.encode()))
        try:
            labels = self._samples.labels(row, variant)
            return {**labels, "input_features": self._samples.features(row["audio"], name)}
        except (AudioError, LabelError) as error:
            self._num_skipped += 1
            logger.warning(f"row {name} is left out: {error}")
            return None


class _SourceReader:
    """Reads a worker's part of one source, pass by pass, in blocks of rows that are shuffled together.

    The state is the position of the block in the stream and the number of its rows that were given: to continue, the
    block is read again and shuffled in the same order. No audio goes into a checkpoint.
    """

    def __init__(self, stream: IterableDataset, seed: tuple[int, int], block_size: int):
        self.stream, self.seed, self.block_size = stream, seed, block_size
        self.start_pass(0)

    def start_pass(self, number: int) -> None:
        """Nothing is read before the first row is asked for."""
        self.number, self.has_samples, self.is_exhausted = number, False, False
        self._block: list[dict[str, Any]] = []
        self._num_given, self._num_blocks = 0, 0  # rows of the block; blocks of the pass, this one included
        self._block_start: dict[str, Any] | None = None  # state of the stream; None: the start of the pass
        self._batches: Iterator[dict[str, list]] | None = None

    def next_row(self) -> dict[str, Any] | None:
        """The next row, or None at the end of the pass."""
        if self._num_given == len(self._block):
            if self._batches is not None:
                # Behind the last row of the block before, since a batch is read only when it is asked for.
                self._block_start = self.stream.state_dict()
            self._read_block()
            self._num_blocks, self._num_given = self._num_blocks + 1, 0
            if not self._block:
                return None
        self._num_given += 1
        return self._block[self._num_given - 1]

    def state(self) -> dict[str, Any]:
        """For [`load`]; goes into checkpoints."""
        return {
            "number": self.number,
            "used": self.has_samples,
            "over": self.is_exhausted,
            "blocks": self._num_blocks,
            "taken": self._num_given,
            "at": self._block_start,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Continues from [`state`]."""
        self.start_pass(state["number"])
        self.has_samples, self.is_exhausted = state["used"], state["over"]
        if state["blocks"] and not self.is_exhausted:
            # The shuffle of a block depends on how many came before it.
            self._block_start, self._num_blocks = state["at"], state["blocks"] - 1
            if self._block_start is not None:
                self.stream.load_state_dict(self._block_start)
            self._read_block()
            self._num_blocks, self._num_given = state["blocks"], state["taken"]

    def _read_block(self) -> None:
        if self._batches is None:
            # `datasets` shuffles the files only in epochs above 0, and a state is valid in its epoch only.
            self.stream.set_epoch(1 + sum(self.seed) + self.number)
            # In batches: iterated row by row, `datasets` would split the stream among the workers a second time.
            self._batches = self.stream.iter(self.block_size)
        batch: dict[str, list] = next(self._batches, {})
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        order = np.random.default_rng((*self.seed, self.number, self._num_blocks)).permutation(len(rows))
        self._block = [rows[index] for index in order]


def _part_of(stream: IterableDataset, part: int, parts: int) -> IterableDataset:
    """One of `parts` parts of the same size: whole files where they divide evenly, else every `parts`-th row."""
    files = stream.num_shards
    if files % parts == 0 or files >= FILES_PER_WORKER * parts:
        return stream.shard(num_shards=parts, index=part, contiguous=False)
    return split_dataset_by_node(stream, part, parts)
