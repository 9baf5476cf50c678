"""How fast rows pass packing, filter and index, and how much memory that takes: what `benchmark data` measures.

The rows are synthetic: noise and a sentence each. Knows nothing of models.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hf_distil_whisper.data.audio import (
    SAMPLING_RATE,
    encode_flac,
)
from hf_distil_whisper.data.packing import pack_utterances
from hf_distil_whisper.data.sources import load_source, write_row_index
from hf_distil_whisper.pseudo_labels.filtering import passing_rows
from own_process import in_own_process

VOICES, UTTERANCES = 100, 16
WORDS = "the a one two quick brown lazy red old boat river house dog fox runs jumps sings over under near".split()
_PART = 10_000


@dataclass(frozen=True)
class StepSpeed:
    """What a step took for a number of rows.

    Args:
        rows (`int`): that went in.
        seconds (`float`): wall time.
        peak_bytes (`int`): of the whole process, libraries included, mapped files not.
    """

    rows: int
    seconds: float
    peak_bytes: int


def measure_data(rows: int, seconds: float = 0.5, folder: str | Path | None = None) -> dict[str, StepSpeed]:
    """Sends synthetic rows through every step, each in a process of its own, so that memory is that step's.

    Args:
        rows (`int`): how many.
        seconds (`float`, *optional*, defaults to 0.5): of audio in each, which only packing reads.
        folder (`str` or `Path`, *optional*): for what is written, about 250 bytes a row; by default a temporary one.

    Returns:
        `dict[str, StepSpeed]`: for "packing", "filter" and "index".
    """
    with tempfile.TemporaryDirectory(dir=folder) as place:
        labelled = str(Path(place, "labelled.parquet"))
        _write_labelled(rows, seconds, labelled)
        return {
            "packing": _alone(_pack, rows, str(seconds)),
            "filter": _alone(_filter, rows, labelled),
            "index": _alone(_index, rows, labelled, str(Path(place, "index"))),
        }


def _alone(step: Callable[..., float], rows: int, *arguments: str) -> StepSpeed:
    seconds, peak = in_own_process(step, rows, *arguments)
    return StepSpeed(rows, seconds, peak)


def _pack(rows: int, seconds: str) -> float:
    begin = time.perf_counter()
    packed = sum(len(window["ids"]) for window in pack_utterances(_utterances(rows, float(seconds))))
    if packed != rows:
        raise RuntimeError(f"{rows} rows were packed, {packed} came out.")
    return time.perf_counter() - begin


def _filter(rows: int, labelled: str) -> float:
    dataset = load_source(labelled)
    begin = time.perf_counter()
    kept, report = passing_rows(dataset, 0.1)
    if len(kept) + report.dropped != rows:
        raise RuntimeError(f"{rows} rows were judged, {len(kept)} kept and {report.dropped} dropped.")
    return time.perf_counter() - begin


def _index(rows: int, labelled: str, folder: str) -> float:
    begin = time.perf_counter()
    half = np.arange(0, rows, 2)
    write_row_index(folder, {"name_or_path": labelled}, rows, half)
    chosen = load_source(folder)
    if len(chosen) != len(half) or chosen[len(chosen) - 1]["id"] != str(2 * (len(chosen) - 1)):
        raise RuntimeError("the index does not lead to its rows.")
    return time.perf_counter() - begin


def _utterances(rows: int, seconds: float) -> Iterator[dict[str, Any]]:
    random = np.random.default_rng(0)
    noises = [random.normal(0, 0.1, round(seconds * SAMPLING_RATE)).astype(np.float32) for _ in range(UTTERANCES)]
    recordings = [encode_flac(noise) for noise in noises]
    for row in range(rows):
        audio = {"bytes": recordings[row % UTTERANCES], "path": None}
        yield {"id": str(row), "audio": audio, "text": "Yes.", "speaker": str(row // 1000 % VOICES)}


def _write_labelled(rows: int, seconds: float, path: str) -> None:
    """Rows with a reference and a label in which every tenth word is another one."""
    random = np.random.default_rng(1)
    words = np.array(WORDS)
    strings = [(name, pa.string()) for name in ("id", "text", "whisper_transcript", "speaker")]
    audio = ("audio", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    numbers = [("duration", pa.float64()), ("mean_log_prob", pa.float64()), ("truncated", pa.bool_())]
    schema = pa.schema([*strings, audio, *numbers])
    with pq.ParquetWriter(path, schema) as writer:
        for begin in range(0, rows, _PART):
            count = min(_PART, rows - begin)
            spoken = words[random.integers(len(words), size=(count, 12))]
            heard = np.where(
                random.random(spoken.shape) < 0.1, words[random.integers(len(words), size=spoken.shape)], spoken
            )
            columns = {
                "id": [str(begin + row) for row in range(count)],
                "audio": [{"bytes": b"", "path": None}] * count,
                "text": [" ".join(row) for row in spoken],
                "whisper_transcript": [f"<|0.00|> {' '.join(row)}<|{seconds:.2f}|>" for row in heard],
                "speaker": [str((begin + row) % VOICES) for row in range(count)],
                "duration": np.full(count, seconds),
                "mean_log_prob": random.normal(-0.2, 0.05, count),
                "truncated": np.zeros(count, dtype=bool),
            }
            writer.write_table(pa.table(columns, schema=schema))
