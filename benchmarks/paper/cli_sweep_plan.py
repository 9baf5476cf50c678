"""What `sweep` is asked for, its cells, and its plan: every cell's inputs checked before the first training."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hf_distil_whisper.checkpoints import checkpoint_fingerprint
from hf_distil_whisper.cli.config import (
    DataSource,
    InputError,
    as_sources,
    find_recipe,
    load_recipe,
    nearest,
    parse_arguments,
    parse_yaml,
    setting,
    source_setting,
)
from hf_distil_whisper.cli.inputs import (
    Plan,
    describe_rows,
    gigabytes,
)
from hf_distil_whisper.cli.train import (
    TrainArguments,
    plan_training,
)
from hf_distil_whisper.data.array_store import rows_fingerprint
from hf_distil_whisper.evaluation.noise import check_snrs
from hf_distil_whisper.inference.encoder import encoder_cache_bytes
from hf_distil_whisper.training.args import DistillationTrainingArguments
from sweeps import (
    COLUMNS,
    cells_of,
    read_cell,
)

STATES = "states"
"""Folder of encoder states beside those of the cells, while a sweep runs."""

_OF_THE_CELL = ("disable_tqdm", "output_dir", "seed")
"""Flags that a cell sets whatever the recipe says."""

_FAR = 1_000_000
"""Steps that no training reaches within its minutes."""


@dataclass
class SweepArguments:
    """Settings of a sweep: a YAML file in `configs/sweeps`, for example.

    Args:
        recipe (`str`): of the training that all cells share: a name or a file, as for `train`.
        title (`str`): of the table.
        heading (`str`): of its first column, what is varied.
        grid (`dict[str, list]`, *optional*): flag of `train` → values; every combination is a cell. null takes
            a value of the recipe away, in cells and settings too.
        cells (`dict[str, dict]`, *optional*): name → flags of `train`, instead of a grid.
        settings (`dict`, *optional*): flags of `train` that replace those of the recipe in every cell.
        seeds (`list[int]`, *optional*, defaults to `[42]`): every cell is trained with each.
        minutes (`float`, *optional*): of training, the same for every cell, in place of a number of steps; a teacher
            cache is filled before they begin.
        eval_datasets (`dict[str, DataSource]`): sets in distribution to score on, by name.
        ood_datasets (`dict[str, DataSource]`, *optional*): sets out of distribution.
        snrs (`list[float]`, *optional*): also scores the first set in white noise at these ratios in dB.
        columns (`list[str]`, *optional*): of "dropped", "hours", "parameters", "steps" and "relative_latency".
        output_dir (`str`): one folder for each cell, `table.md`, `results.json` and `wer.png`; a sweep that was
            stopped goes on there.
        dry_run (`bool`, *optional*, defaults to `False`): check every cell's inputs only.
    """

    recipe: str | None = setting(None, "Recipe of `train` that all cells share: name or file.")
    title: str = setting("Sweep", "Of the table.")
    heading: str = setting("Cell", "Of its first column, what is varied.")
    grid: dict[str, Any] | str | None = setting(None, "Flag of `train`: list of values; every combination is a cell.")
    cells: dict[str, Any] | str | None = setting(None, "Name: flags of `train`; instead of a grid.")
    settings: dict[str, Any] | str | None = setting(None, "Flags of `train` for every cell, in place of the recipe's.")
    seeds: list[int] = field(default_factory=lambda: [42], metadata={"help": "Every cell is trained with each."})
    minutes: float | None = setting(None, "Of training for every cell, in place of a number of steps.")
    eval_datasets: dict[str, DataSource] | str | None = source_setting("Sets in distribution: {name: path}.")
    ood_datasets: dict[str, DataSource] | str | None = source_setting("Sets out of distribution: {name: path}.")
    snrs: list[float] = field(
        default_factory=list, metadata={"help": "Ratios in dB of white noise in which the first set is scored too."}
    )
    columns: list[str] = field(default_factory=list, metadata={"help": f"Shown beside errors: {', '.join(COLUMNS)}."})
    output_dir: str | None = setting(None, "Folder of the cells and the table; goes on where it was stopped.")
    dry_run: bool = setting(False, "Check every cell's inputs only.")

    def __post_init__(self) -> None:
        for name in ("grid", "cells", "settings"):
            value = getattr(self, name)
            value = parse_yaml(value) if isinstance(value, str) else value or {}
            if not isinstance(value, dict):
                raise InputError(f"{name}: expected a mapping, got {value!r}")
            setattr(self, name, value)
        self.eval_datasets = as_sources(self.eval_datasets, "eval_datasets")
        self.ood_datasets = as_sources(self.ood_datasets, "ood_datasets")
        if twice := sorted(set(self.eval_datasets) & set(self.ood_datasets)):
            raise InputError(f"ood_datasets: {twice[0]!r} is also the name of a set in eval_datasets")
        for column in self.columns:
            if column not in COLUMNS:
                raise InputError(f"columns: unknown {column!r}{nearest(column, list(COLUMNS))}: {', '.join(COLUMNS)}")
        if self.minutes is not None and not self.minutes > 0:
            raise InputError(f"minutes: expected more than 0, got {self.minutes}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise InputError(f"--seeds: expected at least one, and each once, got {self.seeds}")
        try:
            self.snrs = check_snrs(self.snrs) if self.snrs else []
        except ValueError as error:
            raise InputError(f"--snrs: {error}") from error

    def sets(self) -> dict[str, DataSource]:
        """What every cell is scored on, by name."""
        return {**as_sources(self.eval_datasets, "eval_datasets"), **as_sources(self.ood_datasets, "ood_datasets")}


class Cell(NamedTuple):
    """One training of a sweep.

    Args:
        name (`str`): of its settings.
        seed (`int`): of the training.
        folder (`Path`): its own.
        flags (`dict[str, Any]`): of `train`, on top of the recipe.
    """

    name: str
    seed: int
    folder: Path
    flags: dict[str, Any]

    def arguments(self, recipe: str) -> tuple[TrainArguments, DistillationTrainingArguments]:
        """What `train` would be called with.

        Args:
            recipe (`str`): name or file.
        """
        # Without a bar: where minutes end a training, it would be one over steps that are never reached.
        flags = {"disable_tqdm": True, **self.flags, "seed": self.seed, "output_dir": str(self.folder / "training")}
        argv = [recipe]
        for flag, value in flags.items():
            if isinstance(value, list) and "." not in flag:
                argv += [f"--{flag}", *map(str, value)]
            elif isinstance(value, str) and "." not in flag:
                argv.append(f"--{flag}={value}")
            else:  # read as YAML, which JSON is: parts of mappings keep their type, and null is no text
                argv.append(f"--{flag}={json.dumps(value, ensure_ascii=False)}")
        args, training_args = parse_arguments(
            TrainArguments, DistillationTrainingArguments, argv=argv, command="hf-distil-whisper train"
        )
        return args, training_args


def sweep_cells(args: SweepArguments) -> list[Cell]:
    """All trainings of a sweep, seed by seed, so that a first table is there after a part of the time.

    Args:
        args (`SweepArguments`): grid or cells, and seeds.

    Raises:
        InputError: on cells that are none.
    """
    try:
        cells = cells_of(args.grid or {}, args.cells or {})  # type: ignore[arg-type]
    except ValueError as error:
        raise InputError(str(error)) from error
    folder = Path(args.output_dir or "")
    common = {**args.settings, **({"max_steps": _FAR} if args.minutes is not None else {})}  # type: ignore[dict-item]
    names = {name: re.sub(r"[^\w.=-]", "_", name) for name in cells}
    return [
        Cell(name, seed, folder / f"{names[name]}-seed{seed}", {**common, **flags})
        for seed in args.seeds
        for name, flags in cells.items()
    ]


@dataclass
class SweepPlan(Plan):
    """A [`Plan`] that also knows the cells.

    Args:
        depends (`dict[str, dict[str, Any]]`): what a cell's results depend on but for the seed, by its name.
        encoders (`dict[str, tuple[str, ...]]`): of the cells that freeze it: which one, by the cell's name.
    """

    depends: dict[str, dict[str, Any]] = field(default_factory=dict)
    encoders: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def settings(self, cell: Cell) -> dict[str, Any]:
        """All that a cell's result depends on, as it is kept beside it.

        Args:
            cell ([`Cell`]): one of the sweep.
        """
        return {"cell": cell.name, "seed": cell.seed, **self.depends[cell.name]}


def plan_sweep(args: SweepArguments) -> SweepPlan:
    """Checks recipe, sets and every cell's inputs before the first training.

    Args:
        args (`SweepArguments`): all of it.
    """
    plan = SweepPlan("sweep")
    plan.single_process()
    plan.require(args.recipe, "recipe", "the training that all cells share, name or file")
    plan.require(args.output_dir, "output_dir", "the folder of the cells and the table")
    plan.require(args.eval_datasets, "eval_datasets", "at least one set to score on")
    for name, source in args.sets().items():
        rows = plan.source(source, f"eval_datasets.{name}", ("text",))
        if rows is not None:
            plan.figures[f"audio of {name}"] = describe_rows(rows)
    if plan.problems:
        return plan
    cells = sweep_cells(args)
    _plan_cells(plan, args, cells[: len(cells) // len(args.seeds)])
    waiting, done = [], 0
    for cell in (cell for cell in cells if cell.name in plan.depends):
        try:
            if read_cell(cell.folder, plan.settings(cell)) is None:
                waiting.append(cell)
            else:
                done += 1
        except ValueError as error:
            plan.problems.append(str(error))
    _plan_states(plan, args, {plan.encoders[cell.name] for cell in waiting if cell.name in plan.encoders})
    time = "" if args.minutes is None else f", {args.minutes:g} min of training each"
    plan.steps.append(f"train and score {len(cells) - done} of {len(cells)} cells{time}: {done} are there")
    plan.steps.append(f"write {args.output_dir}/table.md, results.json and wer.png")
    return plan


def _plan_cells(plan: SweepPlan, args: SweepArguments, cells: Sequence[Cell]) -> None:
    """Checks what cells are trained on, once for all seeds, and notes what their results depend on."""
    sets = {name: rows_fingerprint(plan.datasets[f"eval_datasets.{name}"]) for name in args.sets()}
    recipe = load_recipe(find_recipe(args.recipe or ""))
    shared = {
        "recipe": {key: value for key, value in recipe.items() if key not in _OF_THE_CELL},
        "minutes": args.minutes,
        "sets": {name: {**asdict(source), "rows": sets[name]} for name, source in args.sets().items()},
        "first_set": next(iter(sets)),  # the one in noise, and timed
        "snrs": args.snrs,
        "latency": "relative_latency" in args.columns,
    }
    weights = lru_cache(_weights)  # of this plan alone: before the next one they may be others
    labels: dict[str, str] = {}
    for cell in cells:
        try:
            training, training_args = cell.arguments(args.recipe or "")
        except InputError as error:
            plan.problems.append(f"cell {cell.name!r}: {error}")
            continue
        training_args.output_dir = str(cell.folder / "planned")  # what an unfinished cell left does not matter here
        planned = plan_training(training, training_args)
        plan.problems += [f"cell {cell.name!r}: {one}" for one in planned.problems]
        if planned.problems:
            continue
        # Of streams only the path is known.
        rows = planned.data.train if planned.data and not training.streaming else None
        if rows is not None and rows._fingerprint not in labels:
            labels[rows._fingerprint] = rows_fingerprint(rows)
        plan.depends[cell.name] = {
            **shared,
            "flags": cell.flags,
            "training_rows": None if rows is None else labels[rows._fingerprint],
            "teacher_weights": weights(training.teacher_model_name_or_path),
            "student_weights": weights(training.model_name_or_path),
        }
        if training_args.freeze_encoder:
            base = training.model_name_or_path or training.teacher_model_name_or_path or ""
            plan.encoders[cell.name] = (base, str(training.encoder_layers), str(training.encoder_layer_ids))


def _weights(place: str | None) -> str | None:
    """Of a checkpoint in a folder; the name of one on the Hub says all that is known of it."""
    return checkpoint_fingerprint(place) if place is not None and Path(place).is_dir() else None


def _plan_states(plan: SweepPlan, args: SweepArguments, encoders: set[tuple[str, ...]]) -> None:
    """The room that is taken by what encoders that stay frozen make of the sets."""
    first, *others = (len(rows) for rows in plan.datasets.values())
    windows = first * (1 + len(args.snrs)) + sum(others)
    configs = [plan.model_config(base, "recipe") for base, *_ in encoders]
    size = sum(encoder_cache_bytes(windows, config, torch.float32) for config in configs if config is not None)
    if size:
        plan.figures["encoder states"] = f"{gigabytes(size)} in {args.output_dir}/{STATES} while the sweep runs"
