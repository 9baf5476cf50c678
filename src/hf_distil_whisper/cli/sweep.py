"""`sweep`: trains and scores a student for every cell of a grid, and writes the paper's table for it."""

import json
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from hf_distil_whisper.checkpoints import load_model, load_processor, module_fingerprint
from hf_distil_whisper.cli.arguments import DataSource, as_sources, parse_arguments, setting, source_setting
from hf_distil_whisper.cli.plans import Plan, best_device, describe_rows, hours_of_audio
from hf_distil_whisper.cli.recipes import InputError, nearest, parse_yaml
from hf_distil_whisper.cli.train import build_trainer
from hf_distil_whisper.cli.training_plan import TrainArguments, TrainingPlan, plan_training
from hf_distil_whisper.data.audio import load_audio
from hf_distil_whisper.evaluation.latency import measure_latency
from hf_distil_whisper.evaluation.noise import evaluate_in_noise
from hf_distil_whisper.evaluation.short_form import evaluate_model
from hf_distil_whisper.evaluation.sweeps import (
    COLUMNS,
    CellResult,
    averages,
    begin_cell,
    by_cell,
    cells_of,
    read_cell,
    sweep_table,
    write_cell,
)
from hf_distil_whisper.figures import wer_by_cell
from hf_distil_whisper.inference.encoder_cache import EncoderCache
from hf_distil_whisper.inference.generation import generate_once, window_features
from hf_distil_whisper.training.time_budget import limit_time
from hf_distil_whisper.training.training_args import DistillationTrainingArguments

LATENCY_WINDOWS = 8
"""Recordings of the first set on which student and teacher are timed in turn."""

_STATES = "states"
"""Folder of encoder states beside those of the cells, while a sweep runs."""

_FAR = 1_000_000
"""Steps that no training reaches within its minutes."""


@dataclass
class SweepArguments:
    """Settings of a sweep: a YAML file in `configs/sweeps`, for example.

    Args:
        recipe (`str`): of the training that all cells share: a name or a file, as for `train`.
        title (`str`): of the table.
        heading (`str`): of its first column, what is varied.
        grid (`dict[str, list]`, *optional*): flag of `train` → values; every combination is a cell.
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
            if isinstance(value, list):
                argv += [f"--{flag}", *map(str, value)]
            else:
                argv.append(f"--{flag}={json.dumps(value) if isinstance(value, dict | bool) else value}")
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


def plan_sweep(args: SweepArguments) -> Plan:
    """Checks recipe, sets and every cell's inputs before the first training.

    Args:
        args (`SweepArguments`): all of it.
    """
    plan = Plan("sweep")
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
    done = 0
    for cell in cells:
        try:
            done += read_cell(cell.folder, cell_settings(args, cell)) is not None
        except ValueError as error:
            plan.problems.append(str(error))
    for cell in cells[: len(cells) // len(args.seeds)]:
        try:
            training, training_args = cell.arguments(args.recipe or "")
        except InputError as error:
            plan.problems.append(f"cell {cell.name!r}: {error}")
            continue
        training_args.output_dir = str(cell.folder / "planned")  # what an unfinished cell left does not matter here
        plan.problems += [f"cell {cell.name!r}: {one}" for one in plan_training(training, training_args).problems]
    time = "" if args.minutes is None else f", {args.minutes:g} min of training each"
    plan.steps.append(f"train and score {len(cells) - done} of {len(cells)} cells{time}: {done} are there")
    plan.steps.append(f"write {args.output_dir}/table.md, results.json and wer.png")
    return plan


def cell_settings(args: SweepArguments, cell: Cell) -> dict[str, Any]:
    """All that a cell's result depends on, as it is kept beside it.

    Args:
        args (`SweepArguments`): of the sweep.
        cell ([`Cell`]): one of it.
    """
    return {
        "cell": cell.name,
        "seed": cell.seed,
        "recipe": args.recipe,
        "flags": cell.flags,
        "minutes": args.minutes,
        "sets": {name: f"{source.path} {source.split}" for name, source in args.sets().items()},
        "snrs": args.snrs,
        "latency": "relative_latency" in args.columns,
    }


def run_sweep(args: SweepArguments, datasets: Mapping[str, Dataset]) -> Iterator[CellResult]:
    """The results of all cells in turn; those that are there already are read.

    Args:
        args (`SweepArguments`): as checked by [`plan_sweep`].
        datasets (`Mapping[str, Dataset]`): `plan.datasets`.
    """
    sets = {flag.partition(".")[2]: rows for flag, rows in datasets.items()}
    for cell in sweep_cells(args):
        settings = cell_settings(args, cell)
        result = read_cell(cell.folder, settings)
        if result is None:
            shutil.rmtree(cell.folder, ignore_errors=True)  # a training that was stopped; `read_cell` knows it as ours
            begin_cell(cell.folder, settings)
            result = _run_cell(args, cell, sets)
            write_cell(cell.folder, result)
        yield result


def _run_cell(args: SweepArguments, cell: Cell, sets: Mapping[str, Dataset]) -> CellResult:
    training, training_args = cell.arguments(args.recipe or "")
    plan = plan_training(training, training_args)
    plan.check()
    trainer = build_trainer(training, training_args, plan.rows)
    if args.minutes is not None:
        limit_time(trainer, args.minutes)
    trainer.train()
    trainer.save_model(str(cell.folder / "student"), _internal_call=True)  # whole, also with LoRA; without a push
    student = load_model(cell.folder / "student").to(training_args.device).eval()
    processor = load_processor(cell.folder / "student")
    first = next(iter(sets.values()))
    language = training_args.language
    states = _states_of(student, args) if training_args.freeze_encoder else None
    generate = None if states is None else partial(generate_once, student, cache=states, language=language)
    score = partial(evaluate_model, student, processor=processor, language=language, generate=generate)
    errors = {name: score(rows).errors for name, rows in sets.items()}
    noisy = {}
    if args.snrs:
        noisy = evaluate_in_noise(student, first, processor, snrs=args.snrs, language=language, generate=generate)
    if states is not None:
        states.flush()
    return CellResult(
        cell.name,
        cell.seed,
        errors,
        steps=trainer.state.global_step,
        parameters=student.num_parameters(),
        relative_latency=(
            _relative_latency(student, training, processor, first) if "relative_latency" in args.columns else None
        ),
        noise={f"{snr:g}": result.errors for snr, result in noisy.items()},
        **_training_size(plan),
    )


def _states_of(student: WhisperForConditionalGeneration, args: SweepArguments) -> EncoderCache:
    """What the encoder that cells share makes of the sets: hearing them is most of the time of scoring a student."""
    folder = Path(args.output_dir or "", _STATES, module_fingerprint(student.model.encoder))
    return EncoderCache(student.model.encoder, student.dtype, folder)


def _training_size(plan: TrainingPlan) -> dict[str, Any]:
    rows = plan.datasets["train_dataset"]
    return {"rows": len(rows), "rows_dropped": plan.rows_dropped, "hours": hours_of_audio(rows)}


def _relative_latency(
    student: WhisperForConditionalGeneration,
    training: TrainArguments,
    processor: WhisperProcessor,
    rows: Dataset,
) -> float | None:
    """How many times faster than the teacher, recording by recording."""
    if training.teacher_model_name_or_path is None:
        return None
    teacher = load_model(training.teacher_model_name_or_path).to(best_device()).eval()
    recordings = [load_audio(row["audio"]) for row in rows.select(range(min(LATENCY_WINDOWS, len(rows))))]
    features = window_features(teacher, processor, recordings)
    times = measure_latency({"teacher": teacher, "student": student}, features)
    return times["student"].speedup_over(times["teacher"])


def save_sweep(args: SweepArguments, results: Sequence[CellResult]) -> str:
    """Writes table, counts and picture of what is there so far; returns the table.

    Args:
        args (`SweepArguments`): of the sweep.
        results (`Sequence[CellResult]`): of the cells so far.
    """
    folder, outside = Path(args.output_dir or ""), list(args.ood_datasets or {})
    table = sweep_table(results, args.heading, args.columns, outside)
    seeds = f"{len(args.seeds)} seeds, mean ± standard deviation" if len(args.seeds) > 1 else "one seed"
    time = "" if args.minutes is None else f", {args.minutes:g} min of training for every cell"
    folder.joinpath("table.md").write_text(f"{args.title}\n\n{table}\n\n{seeds}{time}.\n", encoding="utf-8")
    found = [json.loads(cell.folder.joinpath("result.json").read_text()) for cell in sweep_cells(args)[: len(results)]]
    folder.joinpath("results.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    figures = {name: averages(of_cell, outside) for name, of_cell in by_cell(results).items()}
    kinds = next(iter(figures.values()))
    lines = {kind: {name: rates[kind].values for name, rates in figures.items()} for kind in kinds}
    wer_by_cell(lines, args.heading, folder / "wer.png")
    return table


def run(argv: Sequence[str]) -> None:
    """Entry point of the command.

    Args:
        argv (`Sequence[str]`): the sweep's YAML file, then flags.
    """
    (args,) = parse_arguments(SweepArguments, argv=argv, command="hf-distil-whisper sweep")
    plan = plan_sweep(args)
    if not plan.settle(dry_run=args.dry_run):
        return
    results: list[CellResult] = []
    for result in run_sweep(args, plan.datasets):
        results.append(result)
        save_sweep(args, results)
        rates = ", ".join(f"{name} {errors.wer:.2%}" for name, errors in result.errors.items())
        sys.stdout.write(f"[{len(results)}] {result.cell}, seed {result.seed}: {result.steps} steps, WER {rates}\n")
        sys.stdout.flush()
    shutil.rmtree(Path(args.output_dir or "", _STATES), ignore_errors=True)
    sys.stdout.write(f"\n{save_sweep(args, results)}\n")
