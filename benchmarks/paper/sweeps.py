"""Trainings that differ in one thing, and the table of what came of them (paper, tables 10 to 12 and 21).

Knows the results of cells, how they are kept and averaged over seeds. Training and scoring a cell is the command's.
"""

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from hf_distil_whisper.evaluation.significance import set_averages
from hf_distil_whisper.metrics import WordErrors

COLUMNS = ("dropped", "hours", "parameters", "steps", "relative_latency")
"""What a table may show of the cells beside their errors."""

_HEADINGS = {
    "dropped": "Data filtered / %",
    "hours": "Size / h",
    "parameters": "Params / M",
    "steps": "Steps",
    "relative_latency": "Rel. latency",
}

_RESULT, _CELL = "result.json", "cell.json"


@dataclass(frozen=True)
class CellResult:
    """What came of one training.

    Args:
        cell (`str`): name of the settings.
        seed (`int`): of the training.
        errors (`dict[str, WordErrors]`): by set.
        rows (`int`, *optional*): that were trained on; None for a stream, which does not know, as the next two.
        rows_dropped (`int`, *optional*): by the filter.
        hours (`float`, *optional*): of audio in `rows`.
        steps (`int`): of the training.
        parameters (`int`): of the student.
        relative_latency (`float`, *optional*): how many times faster than the teacher.
        noise (`dict[str, WordErrors]`, *optional*): by the signal-to-noise ratio in dB, as text.
    """

    cell: str
    seed: int
    errors: dict[str, WordErrors]
    rows: int | None
    rows_dropped: int | None
    hours: float | None
    steps: int
    parameters: int
    relative_latency: float | None = None
    noise: dict[str, WordErrors] = field(default_factory=dict)

    @property
    def dropped(self) -> float | None:
        """Share of the rows that the filter dropped."""
        if self.rows is None or self.rows_dropped is None:
            return None
        return self.rows_dropped / max(self.rows + self.rows_dropped, 1)


def cells_of(grid: Mapping[str, Sequence[Any]], cells: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The settings of every cell by its name.

    Args:
        grid (`Mapping[str, Sequence]`): flag → values; every combination is a cell, named after its values.
        cells (`Mapping[str, Mapping]`): name → flags, instead of a grid.

    Raises:
        ValueError: if both or neither are given, or an entry is not of this form.

    Example:
        ```python
        >>> cells_of({"train_dataset.wer_threshold": [0.1, 0.05]}, {})
        {'0.1': {'train_dataset.wer_threshold': 0.1}, '0.05': {'train_dataset.wer_threshold': 0.05}}
        ```
    """
    if bool(grid) == bool(cells):
        raise ValueError(
            "expected either `grid` (flag: list of values) or `cells` (name: flags), got "
            + ("both" if grid else "neither")
        )
    for name, flags in cells.items():
        if not isinstance(flags, Mapping):
            raise ValueError(f"cells.{name}: expected a mapping of flags to values, got {flags!r}")
    if cells:
        return {str(name): dict(flags) for name, flags in cells.items()}
    for flag, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"grid.{flag}: expected a list of values, got {values!r}")
    combinations = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    return {", ".join(map(str, flags.values())): flags for flags in combinations}


def read_cell(folder: str | Path, settings: Mapping[str, Any]) -> CellResult | None:
    """The result in a cell's folder, None where there is none yet.

    Args:
        folder (`str` or `Path`): of the cell.
        settings (`Mapping[str, Any]`): that the cell is to have.

    Raises:
        ValueError: if the folder holds the result of other settings, or files that are no cell's.
    """
    folder = Path(folder)
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    if not (folder / _CELL).is_file():
        raise ValueError(
            f"{folder} holds files that no sweep wrote ({_CELL} is missing). Choose another --output_dir."
        )
    before = json.loads((folder / _CELL).read_text(encoding="utf-8"))
    if differing := _differing(before, json.loads(json.dumps(settings))):
        raise ValueError(
            f"{folder} was made with other settings or data ({', '.join(differing)}): one table would mix both. "
            "Choose another --output_dir, or delete that folder to have it made anew."
        )
    if not (folder / _RESULT).is_file():
        return None
    found = json.loads((folder / _RESULT).read_text(encoding="utf-8"))
    counts = {kind: {name: WordErrors(**errors) for name, errors in found[kind].items()} for kind in _COUNTS}
    return CellResult(**found | counts)


_COUNTS = ("errors", "noise")
_MISSING = object()


def _differing(before: Any, wanted: Any, name: str = "") -> list[str]:
    """Dotted names of the entries that differ; one of a set that is missing is as one that is null."""
    if not isinstance(before, dict) or not isinstance(wanted, dict):
        return [] if before == wanted else [name]
    missing = None if name.startswith("sets") else _MISSING  # in flags null takes a value of the recipe away
    return [
        found
        for key in sorted({*before, *wanted})
        for found in _differing(before.get(key, missing), wanted.get(key, missing), f"{name}.{key}".strip("."))
    ]


def begin_cell(folder: str | Path, settings: Mapping[str, Any]) -> None:
    """Notes in a cell's empty folder what is going to be computed there.

    Args:
        folder (`str` or `Path`): of the cell.
        settings (`Mapping[str, Any]`): of the cell.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    Path(folder, _CELL).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def write_cell(folder: str | Path, result: CellResult) -> None:
    """Keeps a result; whole or not at all.

    Args:
        folder (`str` or `Path`): of the cell.
        result ([`CellResult`]): what came of it.
    """
    partial = Path(folder, f".{_RESULT}")
    partial.write_text(json.dumps(asdict(result), indent=2) + "\n", encoding="utf-8")
    os.replace(partial, Path(folder, _RESULT))


@dataclass(frozen=True)
class Spread:
    """One figure over several seeds.

    Args:
        values (`tuple[float, ...]`): one each seed.
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.mean(self.values)

    def text(self, digits: int = 1) -> str:
        """Mean, and behind ± the standard deviation where there are several seeds."""
        around = f" ± {statistics.stdev(self.values):.{digits}f}" if len(self.values) > 1 else ""
        return f"{self.mean:.{digits}f}{around}"


def averages(results: Sequence[CellResult], out_of_distribution: Sequence[str]) -> dict[str, Spread]:
    """Macro-averages of the WER in %, over the sets in distribution, out of it, and all; over the seeds of one cell.

    Args:
        results (`Sequence[CellResult]`): of one cell, one each seed.
        out_of_distribution (`Sequence[str]`): names of sets.

    Returns:
        `dict[str, Spread]`: "ID Average", "OOD Average" and "Average"; the first two only where there are such sets.
    """
    inside = [name for name in results[0].errors if name not in out_of_distribution]
    seeds = [set_averages(result.errors, inside).macro for result in results]
    return {kind: Spread(tuple(100 * macro[kind] for macro in seeds)) for kind in seeds[0]}


def noise_rates(results: Sequence[CellResult]) -> dict[str, Spread]:
    """WER in % in noise, over the seeds of one cell.

    Args:
        results (`Sequence[CellResult]`): of one cell, one each seed.

    Returns:
        `dict[str, Spread]`: by the signal-to-noise ratio in dB, as text.
    """
    return {snr: Spread(tuple(100 * result.noise[snr].wer for result in results)) for snr in results[0].noise}


def sweep_table(
    results: Sequence[CellResult], heading: str, columns: Sequence[str] = (), out_of_distribution: Sequence[str] = ()
) -> str:
    """The sweep as Markdown, in the layout of tables 10 to 12 and 21, cells in the order of their results.

    Args:
        results (`Sequence[CellResult]`): of all cells and seeds.
        heading (`str`): of the first column, what was varied.
        columns (`Sequence[str]`, *optional*): of `COLUMNS`, shown behind it.
        out_of_distribution (`Sequence[str]`, *optional*): names of sets.
    """
    lines: list[str] = []
    for name, of_cell in by_cell(results).items():
        figures = averages(of_cell, out_of_distribution)
        noisy = noise_rates(of_cell)
        if not lines:
            rates = [f"{kind} WER / %" for kind in figures] + [f"WER at {snr} dB / %" for snr in noisy]
            head = [heading, *(_HEADINGS[column] for column in columns), *rates]
            lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        shown = [_shown(column, of_cell) for column in columns]
        spreads = [spread.text() for spread in (*figures.values(), *noisy.values())]
        lines.append("| " + " | ".join([name, *shown, *spreads]) + " |")
    return "\n".join(lines)


def by_cell(results: Sequence[CellResult]) -> dict[str, list[CellResult]]:
    """Results of the seeds together, by the name of their cell.

    Args:
        results (`Sequence[CellResult]`): of all cells and seeds.
    """
    found: dict[str, list[CellResult]] = {}
    for result in results:
        found.setdefault(result.cell, []).append(result)
    return found


def _shown(column: str, results: Sequence[CellResult]) -> str:
    found = [value for result in results if (value := getattr(result, column)) is not None]
    if not found:
        return "-"
    if column == "relative_latency":
        return f"{statistics.median(found):.1f}"
    mean = statistics.mean(found)
    if column == "steps":
        return f"{mean:,.0f}"
    return f"{mean * {'dropped': 100, 'hours': 1, 'parameters': 1e-6}[column]:.{2 if column == 'hours' else 1}f}"
