"""Several data sets in one training, each drawn as often as its weight says.

The order of rows depends on seed and epoch alone, so that a resumed training continues in the middle of an epoch.
`interleave_datasets` starts every source at its first row in each epoch. Streams are mixed in `streaming`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, Value, concatenate_datasets

STOPPING_STRATEGIES = ("first_exhausted", "all_exhausted", "all_exhausted_without_replacement")


@dataclass(frozen=True)
class Mixture:
    """The order in which the rows of joined sources are drawn.

    A source is read in passes, each a new permutation of its rows, across epochs: of a large source with a small
    weight every row comes once before one comes twice.

    Args:
        names (`tuple[str, ...]`): of the sources, in the order in which their rows were joined.
        sizes (`tuple[int, ...]`): number of rows of each.
        weights (`tuple[float, ...]`): how often a row of each source is drawn, relative to each other.
        stopping_strategy (`str`, *optional*, defaults to `"all_exhausted"`): how long an epoch is, in the words of
            `datasets.interleave_datasets`: until the first source is exhausted ("first_exhausted"), until all are, the
            rows of the others repeated ("all_exhausted"), or every row once, where the weights only decide how early a
            source's rows come ("all_exhausted_without_replacement").
        seed (`int`, *optional*, defaults to 42): of the order.

    Raises:
        ValueError: for no source, an empty one, a weight that is not above 0, or an unknown strategy.

    Example:
        ```python
        >>> mixture = Mixture(("read", "spoken"), (100, 20), (1.0, 1.0))
        >>> len(mixture), mixture.draws
        (200, (100, 100))
        ```
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    weights: tuple[float, ...]
    stopping_strategy: str = "all_exhausted"
    seed: int = 42

    def __post_init__(self) -> None:
        check_weights(self.names, self.weights, self.stopping_strategy)
        if len(self.sizes) != len(self.names) or min(self.sizes) < 1:
            raise ValueError(f"expected at least one row of each of {', '.join(self.names)}, got {self.sizes}.")

    @property
    def draws(self) -> tuple[int, ...]:
        """Rows drawn of each source in an epoch."""
        if self.stopping_strategy == "all_exhausted_without_replacement":
            return self.sizes
        lengths = [size / weight for size, weight in zip(self.sizes, self.weights, strict=True)]
        length = min(lengths) if self.stopping_strategy == "first_exhausted" else max(lengths)
        return tuple(max(1, round(weight * length)) for weight in self.weights)

    def __len__(self) -> int:
        return sum(self.draws)

    def rows(self, epoch: int) -> np.ndarray:
        """Row indices of an epoch (from 0) among the joined rows, in the order in which they are drawn.

        Returns:
            `np.ndarray` of shape `(len(mixture),)`: int64.
        """
        times, rows, offset = [], [], 0
        for source, (size, weight, count) in enumerate(zip(self.sizes, self.weights, self.draws, strict=True)):
            # A source lasts count / weight; rows sorted by uniform times in it are mixed in the ratio of the weights.
            times.append(self._random(source, 0, epoch).uniform(0.0, count / weight, count))
            rows.append(offset + self._passes(source, size, epoch * count, count))
            offset += size
        return np.concatenate(rows)[np.argsort(np.concatenate(times), kind="stable")]

    def state(self) -> dict[str, Any]:
        """All that decides the order, as JSON takes it."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def _passes(self, source: int, size: int, start: int, count: int) -> np.ndarray:
        """Entries `start` to `start + count` of the endless sequence of permutations of a source."""
        first, last = start // size, (start + count - 1) // size
        orders = [self._random(source, 1, number).permutation(size) for number in range(first, last + 1)]
        return np.concatenate(orders)[start - first * size :][:count]

    def _random(self, source: int, use: int, number: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, source, use, number))


def join_sources(datasets: Mapping[str, Dataset], columns: Sequence[str]) -> Dataset:
    """Joins several sources to one data set, one source after the other, each row with its `source`.

    Args:
        datasets (`Mapping[str, Dataset]`): by name.
        columns (`Sequence[str]`): to keep; a source without one of them gets nulls, one that none has is left out.

    Raises:
        ValueError: if a column has another type in one source than in another.
    """
    features = {}
    for name in columns:
        types = [rows.features[name] for rows in datasets.values() if name in rows.features]
        if types and all(isinstance(one, dict) for one in types):  # some may pick parts of recordings, others not
            features[name] = {key: value for one in types for key, value in one.items()}
        elif types:  # a column of nulls alone has no type yet
            features[name] = next((feature for feature in types if feature != Value("null")), types[0])
    schema = Features({**features, "source": Value("string")})
    parts = []
    for source, rows in datasets.items():
        part = rows.select_columns([name for name in features if name in rows.column_names])
        for name, feature in features.items():
            if name not in part.column_names:
                part = part.add_column(name, [None] * len(part), feature=feature)
        part = part.add_column("source", [source] * len(part), feature=Value("string"))
        try:
            parts.append(part.select_columns(list(schema)).cast(schema))
        except (TypeError, ValueError, pa.ArrowException) as error:
            raise ValueError(f"{source}: its columns do not go with those of the other sources ({error}).") from error
    return concatenate_datasets(parts)


def weights_by(sizes: Sequence[float]) -> tuple[float, ...]:
    """Weights in the ratio of the sources' rows or hours; they sum to 1. A `ValueError` if a source has none."""
    if not sizes or min(sizes) <= 0:
        raise ValueError(f"expected sources with rows or hours above 0, got {list(sizes)}.")
    return tuple(size / sum(sizes) for size in sizes)


def check_same_sources(now: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """Raises a `ValueError` that names what differs between the sources of a training and of the one that stopped.

    Args:
        now (`Mapping[str, Any]`): [`Mixture.state`] or [`SpeechStream.identity`].
        before (`Mapping[str, Any]`): that of the training that was stopped.
    """
    for name, value in now.items():
        if value != before.get(name):
            raise ValueError(
                f"the mixture's {name} were {before.get(name)} when the training was stopped and are {value} now: "
                "other rows than those that were still to come would follow. Resume with the same sources in the same "
                "order, or start a new training in another `output_dir`."
            )


def check_weights(names: Sequence[str], weights: Sequence[float], stopping_strategy: str) -> None:
    """Raises a `ValueError` where these make no mixture."""
    if not names or len(names) != len(weights) or not all(weight > 0 for weight in weights):
        raise ValueError(
            f"a mixture needs sources and a weight above 0 for each, got {dict(zip(names, weights, strict=False))}."
        )
    if stopping_strategy not in STOPPING_STRATEGIES:
        raise ValueError(
            f"`stopping_strategy` is {stopping_strategy!r}, expected one of {', '.join(STOPPING_STRATEGIES)}."
        )
