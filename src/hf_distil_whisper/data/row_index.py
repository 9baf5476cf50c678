"""A choice of rows of a data set that stays where it is: what a filter writes instead of a second copy of the audio.

A folder with `row_index.json`, which says how the data set is loaded, and `rows.npy`, the numbers of its rows. Knows
no reasons.
"""

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset
from datasets.fingerprint import Hasher
from datasets.table import InMemoryTable

INDEX, ROWS = "row_index.json", "rows.npy"


def write_row_index(
    folder: str | Path, source: Mapping[str, Any], num_rows: int, rows: Sequence[int] | np.ndarray
) -> None:
    """Writes a choice of rows.

    Args:
        folder (`str` or `Path`): is created; [`load_source`] reads it as a data set.
        source (`Mapping`): arguments of [`load_source`] by name, `name_or_path` among them; a path is made absolute.
        num_rows (`int`): of the data set, to notice when it has changed.
        rows (`Sequence[int]`): numbers of the chosen rows.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    place = str(source["name_or_path"])
    if Path(place).expanduser().exists():
        place = str(Path(place).expanduser().resolve())
    np.save(folder / ROWS, np.asarray(rows, dtype=np.int64))
    facts = {"source": {**source, "name_or_path": place}, "num_rows": num_rows}
    (folder / INDEX).write_text(json.dumps(facts, indent=2), encoding="utf-8")  # last: it makes the folder an index


def read_row_index(folder: str | Path) -> tuple[dict[str, Any], int]:
    """The data set that an index was made of: arguments of [`load_source`], and how many rows it had."""
    facts = json.loads(Path(folder, INDEX).read_text(encoding="utf-8"))
    return facts["source"], facts["num_rows"]


def choose_rows(folder: str | Path, dataset: Dataset) -> Dataset:
    """The chosen rows of a data set that was loaded as [`read_row_index`] says.

    Raises:
        ValueError: if the data set has another number of rows than when they were chosen.
    """
    source, num_rows = read_row_index(folder)
    if len(dataset) != num_rows:
        raise ValueError(
            f"{folder} holds a choice among {num_rows} rows of {source['name_or_path']}, which has {len(dataset)} "
            "now: the numbers would name other rows. Filter it again."
        )
    return select_rows(dataset, np.load(Path(folder, ROWS), mmap_mode="r"))


def select_rows(dataset: Dataset, rows: np.ndarray) -> Dataset:
    """`dataset.select(rows)`, which makes a list of the numbers, 85 bytes a row; here they stay where they are.

    Args:
        dataset (`Dataset`): any.
        rows (`np.ndarray`): int64; a mapped file stays one.
    """
    if dataset._indices is not None or not len(rows):
        return dataset.select(rows)
    table = InMemoryTable(pa.table({"indices": pa.array(rows.view(np.uint64))}))
    return Dataset(
        dataset.data,
        dataset.info,
        dataset.split,
        indices_table=table,
        fingerprint=Hasher.hash([dataset._fingerprint, sha256(rows.data).hexdigest()]),
    )
