"""How a training reads a `SpeechStream`, and goes on after a stop: every worker keeps its place with each checkpoint.

The Trainer itself would read everything again up to where it was; `torchdata`'s loader asks the workers instead.
"""

import zlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import IterableDataset
from datasets.distributed import split_dataset_by_node
from torch.utils.data import get_worker_info
from transformers import WhisperProcessor
from transformers.utils import logging

from hf_distil_whisper.data.audio import AudioError
from hf_distil_whisper.data.dataset import SampleMaker
from hf_distil_whisper.data.labels import (
    LabelError,
    draw_variant,
)
from hf_distil_whisper.data.mixture import (
    check_same_sources,
    check_weights,
)
from hf_distil_whisper.data.sources import (
    mean_duration,
    weighted_mean,
)

logger = logging.get_logger(__name__)

FILES_FOR_EACH = 20
"""From so many files on, one file more or less makes no difference to speak of between the parts of two workers."""


class SpeechStream(torch.utils.data.IterableDataset):
    """Samples for training from streams of recordings with transcripts, without end.

    In every pass over a source each row comes once, on one worker of one process, in an order drawn anew. Which
    variant of a sample is drawn depends on the seed, the pass and the row's id alone. A row that cannot be used is
    left out, logged, and counted in `lost`.

    A copy in a worker has `state_dict` and `load_state_dict`, as `torchdata`'s `StatefulDataLoader` asks for: what
    comes after loading is what would have come.

    Args:
        streams (`Mapping[str, IterableDataset]`): by name, as [`stream_source`] gives them, with a transcript.
        processor (`WhisperProcessor`): of the student.
        weights (`Mapping[str, float]`, *optional*): how often a row of each source is drawn, in relation to each
            other; by default all alike.
        stopping_strategy (`str`, *optional*, defaults to `"all_exhausted"`): what happens when a source ends. It
            begins anew ("all_exhausted"), all begin anew ("first_exhausted"), or it rests until the others have ended
            too ("all_exhausted_without_replacement").
        shuffle_buffer (`int`, *optional*, defaults to 1000): rows of a block, within which they are shuffled; files
            are shuffled too. Each worker holds a block of every source in memory, with its undecoded audio.
        transcript_column (`str`, *optional*, defaults to `"whisper_transcript"`): the text to learn.
        timestamp_probability (`float`, *optional*, defaults to 0.5): as for [`SpeechDataset`].
        condition_on_prev_probability (`float`, *optional*, defaults to 0.2): as for [`SpeechDataset`].
        language (`str`, *optional*): as for [`SpeechDataset`].
        language_column (`str`, *optional*): as for [`SpeechDataset`].
        task (`str`, *optional*, defaults to `"transcribe"`): as for [`SpeechDataset`].
        max_label_length (`int`, *optional*, defaults to 448): as for [`SpeechDataset`].
        seed (`int`, *optional*, defaults to 42): of all draws.

    Raises:
        ValueError: for no source, a weight that is not above 0, an unknown strategy, a column that a source lacks.

    Example:
        ```python
        >>> samples = SpeechStream({"read": stream_source("s3://speech/labelled")}, processor)
        >>> next(iter(samples))["input_features"].shape
        torch.Size([80, 3000])
        ```
    """

    def __init__(
        self,
        streams: Mapping[str, IterableDataset],
        processor: WhisperProcessor,
        *,
        weights: Mapping[str, float] | None = None,
        stopping_strategy: str = "all_exhausted",
        shuffle_buffer: int = 1000,
        transcript_column: str = "whisper_transcript",
        timestamp_probability: float = 0.5,
        condition_on_prev_probability: float = 0.2,
        language: str | None = None,
        language_column: str | None = None,
        task: str = "transcribe",
        max_label_length: int = 448,
        seed: int = 42,
    ):
        weights = dict.fromkeys(streams, 1.0) if weights is None else weights
        if list(weights) != list(streams):
            raise ValueError(f"expected weights for {', '.join(streams)} in this order, got {', '.join(weights)}.")
        check_weights(tuple(streams), tuple(weights.values()), stopping_strategy)
        if shuffle_buffer < 1:
            raise ValueError(f"`shuffle_buffer`: expected at least 1 row, got {shuffle_buffer}.")
        for name, stream in streams.items():
            there = stream.column_names or []
            for column in ("audio", transcript_column):
                if column not in there:
                    raise ValueError(f"{name}: no column {column!r}; there are {', '.join(there)}.")
        self.streams, self.weights, self.stopping_strategy = dict(streams), dict(weights), stopping_strategy
        self.shuffle_buffer, self.seed = shuffle_buffer, seed
        self._samples = SampleMaker(
            processor,
            transcript_column,
            language=language,
            language_column=language_column,
            task=task,
            max_label_length=max_label_length,
        )
        self._draw_variant = partial(
            draw_variant,
            timestamp_probability=timestamp_probability,
            condition_on_prev_probability=condition_on_prev_probability,
        )
        self.process, self.processes, self.workers = 0, 1, 0
        self._lost = torch.zeros((), dtype=torch.int64).share_memory_()
        self._draws, self._sources, self._given = 0, {}, None  # type: tuple[int, dict[str, _Share], dict | None]

    @property
    def lost(self) -> int:
        """Rows that were left out so far, by this process and its workers."""
        return int(self._lost)

    def mean_duration(self) -> float | None:
        """Seconds of a recording in the mean, by the first rows of each source and their weights."""
        return weighted_mean((mean_duration(stream), self.weights[name]) for name, stream in self.streams.items())

    def assign(self, process: int, processes: int, workers: int) -> None:
        """Says which process this is of how many; each worker of each gets its own part of every source.

        Args:
            process (`int`): from 0.
            processes (`int`): of the training.
            workers (`int`): of the data loader of each, 0 for none.
        """
        self.process, self.processes, self.workers = process, processes, workers

    def identity(self) -> dict[str, Any]:
        """What decides which samples come, as JSON takes it."""
        return {
            "names": list(self.streams),
            "weights": list(self.weights.values()),
            "stopping_strategy": self.stopping_strategy,
            "shuffle_buffer": self.shuffle_buffer,
            "seed": self.seed,
            "processes": self.processes,
            "workers": self.workers,
        }

    def check_same(self, state: Mapping[str, Any]) -> None:
        """Raises a `ValueError` where a stopped training read other streams, or the same in another order.

        Args:
            state (`Mapping`): what [`identity`] gave then.
        """
        check_same_sources(self.identity(), state)

    def state_dict(self) -> dict[str, Any]:
        """Where this worker is: between the last sample that it gave and the next one."""
        if self._given is not None:
            return self._given
        return {"draws": self._draws, "sources": {name: share.state() for name, share in self._sources.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from [`state_dict`] in the next iteration."""
        self._given = state

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        part, parts = self.process * workers + worker, self.processes * workers
        self._draws = 0
        self._sources = {
            name: _Share(_part(stream, part, parts), (self.seed, number), self.shuffle_buffer)
            for number, (name, stream) in enumerate(self.streams.items())
        }
        if self._given is not None:
            given, self._given = self._given, None
            self._draws = given["draws"]
            for name, place in given["sources"].items():  # none of a worker whose turn had not come yet
                self._sources[name].load(place)
        while True:
            name = self._draw_source(part)
            share = self._sources[name]
            row = share.next_row()
            if row is None:
                self._end_pass(name)
            elif (sample := self._sample(name, row, share.number)) is not None:
                share.used = True
                yield sample

    def _draw_source(self, part: int) -> str:
        """One of those that have rows left, by chance with their weights. The draw depends on its number alone."""
        self._draws += 1
        left = [name for name, share in self._sources.items() if not share.over]
        if len(left) == 1:
            return left[0]
        bounds = np.cumsum([self.weights[name] for name in left])
        random = np.random.default_rng((self.seed, part, self._draws)).random()
        return left[int(np.searchsorted(bounds, random * bounds[-1], side="right"))]

    def _end_pass(self, name: str) -> None:
        share = self._sources[name]
        if not share.used:
            raise ValueError(
                f"{name}: this worker's part of it holds no row that can be used. Check its columns, its filter and "
                "the warnings above; of a source with few rows, some workers get none: lower "
                "--dataloader_num_workers."
            )
        share.over = True
        if self.stopping_strategy == "all_exhausted":
            share.begin(share.number + 1)
        elif self.stopping_strategy == "first_exhausted" or all(each.over for each in self._sources.values()):
            for each in self._sources.values():
                each.begin(each.number + 1)

    def _sample(self, source: str, row: dict[str, Any], number: int) -> dict[str, Any] | None:
        name = f"{source} {row.get('id')}"
        variant = self._draw_variant(self.seed, number, zlib.crc32(name.encode()))
        try:
            labels = self._samples.labels(row, variant)
            return {**labels, "input_features": self._samples.features(row["audio"], name)}
        except (AudioError, LabelError) as error:
            self._lost += 1
            logger.warning(f"row {name} is left out: {error}")
            return None


class _Share:
    """A worker's part of one source: its rows pass by pass, shuffled within blocks.

    Args:
        stream (`IterableDataset`): the part, which no one else iterates.
        seed (`tuple[int, int]`): of the order.
        block_size (`int`): rows that are shuffled together.
    """

    def __init__(self, stream: IterableDataset, seed: tuple[int, int], block_size: int):
        self.stream, self.seed, self.block_size = stream, seed, block_size
        self.begin(0)

    def begin(self, number: int) -> None:
        """Begins a pass; nothing is read before the first row is asked for."""
        self.number, self.used, self.over = number, False, False
        self._block, self._taken, self._blocks = [], 0, 0  # type: tuple[list[dict[str, Any]], int, int]
        self._at: dict[str, Any] | None = None
        self._batches: Iterator[dict[str, list]] | None = None

    def next_row(self) -> dict[str, Any] | None:
        """The next row, or None at the end of the pass."""
        if self._taken == len(self._block):
            if self._batches is not None:
                self._at = self.stream.state_dict()
            self._read_block()
            self._blocks, self._taken = self._blocks + 1, 0
            if not self._block:
                return None
        self._taken += 1
        return self._block[self._taken - 1]

    def state(self) -> dict[str, Any]:
        """The block's begin in the stream, and how many of its rows were taken: a block is read anew, not kept."""
        return {
            "number": self.number,
            "used": self.used,
            "over": self.over,
            "blocks": self._blocks,
            "taken": self._taken,
            "at": self._at,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from [`state`]."""
        self.begin(state["number"])
        self.used, self.over = state["used"], state["over"]
        if state["blocks"] and not self.over:
            self._at, self._blocks = state["at"], state["blocks"] - 1
            if self._at is not None:
                self.stream.load_state_dict(self._at)
            self._read_block()
            self._blocks, self._taken = state["blocks"], state["taken"]

    def _read_block(self) -> None:
        if self._batches is None:
            # An epoch above 0 shuffles the files, and a state counts for its own epoch only.
            self.stream.set_epoch(1 + sum(self.seed) + self.number)
            # Not by rows, which `datasets` would share among the workers a second time.
            self._batches = self.stream.iter(self.block_size)
        batch: dict[str, list] = next(self._batches, {})
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        order = np.random.default_rng((*self.seed, self.number, self._blocks)).permutation(len(rows))
        self._block = [rows[place] for place in order]


def _part(stream: IterableDataset, part: int, parts: int) -> IterableDataset:
    """One of equal parts: whole files where that makes them equal, else every so manyth row of all files."""
    files = stream.num_shards
    if files % parts == 0 or files >= FILES_FOR_EACH * parts:
        return stream.shard(num_shards=parts, index=part, contiguous=False)
    return split_dataset_by_node(stream, part, parts)
