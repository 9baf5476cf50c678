"""How long the recordings of a data set are, without decoding them."""

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow.compute as pc
from datasets import Dataset, IterableDataset
from tqdm.auto import tqdm

from hf_distil_whisper.data.audio import AudioError, audio_duration
from hf_distil_whisper.data.sources import without_decoder

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
