"""Tables 10 to 12 and 21: trains and scores a student for every cell of a grid.

    python benchmarks/paper/sweep.py configs/sweeps/objective.yaml

The YAML file names the recipe of `train` that all cells share, what varies, and the sets to score on; its folder gets
`table.md`, `results.json` and `wer.png`, anew after every cell. A sweep that was stopped goes on there. Cost: one to
two hours for each file of `configs/sweeps` on two CPU cores; `make sweeps` runs them all.
"""

import hashlib
import json
import os
import re
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerCallback, TrainerControl

from averages import set_averages
from hf_distil_whisper import (
    DistillationTrainingArguments,
    RowErrors,
    TrainArguments,
    WordErrors,
    build_trainer,
    evaluate_model,
    get_normalizer,
    load_model,
    load_processor,
    parse_arguments,
    plan_training,
    run_script,
)
from hf_distil_whisper.checkpoints import checkpoint_fingerprint, module_fingerprint
from hf_distil_whisper.cli.config import (
    DataSource,
    InputError,
    as_sources,
    find_recipe,
    load_recipe,
    nearest,
    parse_yaml,
    setting,
    source_setting,
)
from hf_distil_whisper.cli.inputs import hours_of_audio
from hf_distil_whisper.evaluation.evaluate import EvaluationResult
from hf_distil_whisper.evaluation.noise import check_snrs, evaluate_in_noise
from hf_distil_whisper.inference.encoder import EncoderCache
from hf_distil_whisper.inference.generation import generate_tokens_cached

sys.path.append(str(Path(__file__).resolve().parents[1]))
from figures import wer_by_cell
from inputs import LoadedModel, check_flags, list_setting, load_sets, ready
from latency import latency_grid
from tables import save_json, table

COLUMNS = {
    "dropped": "Data filtered / %",
    "hours": "Size / h",
    "parameters": "Params / M",
    "steps": "Steps",
    "relative_latency": "Rel. latency",
}
"""What a table may show beside the errors, and its heading."""

STATES = "states"
"""Folder of encoder outputs of the sets beside those of the cells, while a sweep runs."""

LATENCY_ROWS = 8
"""Recordings of the first set on which student and teacher are timed in turn."""


@dataclass
class SweepArguments:
    """A sweep, usually a YAML file in `configs/sweeps`."""

    recipe: str | None = setting(None, "Recipe of `train` that all cells share: name or file.")
    title: str = setting("Sweep", "Of the table.")
    heading: str = setting("Cell", "Of its first column, what is varied.")
    grid: dict[str, Any] | str | None = setting(
        None, "Flag of `train`: list of values; every combination is a cell. null takes a value of the recipe away."
    )
    cells: dict[str, Any] | str | None = setting(None, "Name: flags of `train`; instead of a grid.")
    flags: dict[str, Any] | str | None = setting(None, "Flags of `train` for every cell, on top of the recipe.")
    seeds: list[int] = list_setting([42], "Every cell is trained with each.")
    minutes: float | None = setting(
        None, "Of training for every cell, in place of a number of steps; filling a teacher cache does not count."
    )
    eval_datasets: dict[str, DataSource] | str | None = source_setting("Sets in distribution: {name: path}.")
    ood_datasets: dict[str, DataSource] | str | None = source_setting("Sets out of distribution: {name: path}.")
    snrs: list[float] = list_setting([], "Ratios in dB of white noise in which the first set is scored too.")
    columns: list[str] = list_setting([], f"Shown beside errors: {', '.join(COLUMNS)}.")
    output_dir: str | None = setting(None, "Folder of the cells and the table; goes on where it was stopped.")
    dry_run: bool = setting(False, "Check every cell's inputs only.")

    def __post_init__(self) -> None:
        for name in ("grid", "cells", "flags"):
            value = getattr(self, name)
            setattr(self, name, parse_yaml(value) if isinstance(value, str) else value or {})
            if not isinstance(getattr(self, name), dict):
                raise InputError(f"{name}: expected a mapping, got {value!r}")
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
        self.snrs = check_snrs(self.snrs, "--snrs") if self.snrs else []


class Cell(NamedTuple):
    """One training: name of its settings, seed, folder, and flags of `train` on top of the recipe."""

    name: str
    seed: int
    folder: Path
    flags: dict[str, Any]

    def arguments(self, recipe: str) -> tuple[TrainArguments, DistillationTrainingArguments]:
        """The arguments that `train` would get."""
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


def cells_of(grid: Mapping[str, Sequence[Any]], cells: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Flags of every cell by its name: the combinations of `grid`, named after their values, or `cells`."""
    if bool(grid) == bool(cells):
        given = "both" if grid else "neither"
        raise InputError(f"expected either `grid` (flag: list of values) or `cells` (name: flags), got {given}")
    for name, flags in cells.items():
        if not isinstance(flags, Mapping):
            raise InputError(f"cells.{name}: expected a mapping of flags to values, got {flags!r}")
    for flag, values in grid.items():
        if not isinstance(values, list) or not values:
            raise InputError(f"grid.{flag}: expected a list of values, got {values!r}")
    if cells:
        return {str(name): dict(flags) for name, flags in cells.items()}
    combinations = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    return {", ".join(map(str, flags.values())): flags for flags in combinations}


def sweep_cells(args: SweepArguments) -> list[Cell]:
    """All trainings, seed by seed, so that a first table is there after a part of the time."""
    # Steps that no training reaches in its minutes.
    common = {} if args.minutes is None else {"max_steps": 1_000_000}
    cells = []
    for seed in args.seeds:
        for name, flags in cells_of(args.grid, args.cells).items():
            folder = Path(args.output_dir or "", re.sub(r"[^\w.=-]", "_", name) + f"-seed{seed}")
            cells.append(Cell(name, seed, folder, {**common, **args.flags, **flags}))
    return cells


@dataclass(frozen=True)
class CellResult:
    """Result of one training."""

    cell: str  # name of the settings
    seed: int  # of the training
    errors: dict[str, WordErrors]  # by set
    rows: int | None  # of the training; None for a stream, which does not know, as the next two
    rows_dropped: int | None  # by the filter
    hours: float | None  # of audio in rows
    steps: int  # of the training
    parameters: int  # of the student
    relative_latency: float | None = None  # how many times faster than the teacher
    noise: dict[str, WordErrors] = field(default_factory=dict)  # by the signal-to-noise ratio in dB, as text

    @property
    def dropped(self) -> float | None:
        """Share of the rows that the filter dropped."""
        if self.rows is None or self.rows_dropped is None:
            return None
        return self.rows_dropped / max(self.rows + self.rows_dropped, 1)


def read_cell(folder: Path, settings: Mapping[str, Any]) -> CellResult | None:
    """The result in a cell's folder, None where there is none yet."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    if not (folder / "cell.json").is_file():
        raise InputError(
            f"{folder} holds files that no sweep wrote (cell.json is missing). Choose another --output_dir."
        )
    before = json.loads((folder / "cell.json").read_text(encoding="utf-8"))
    if differing := _differing(before, json.loads(json.dumps(settings))):
        raise InputError(
            f"{folder} was made with other settings or data ({', '.join(differing)}): one table would mix both. "
            "Choose another --output_dir, or delete that folder to have it made anew."
        )
    if not (folder / "result.json").is_file():
        return None
    content = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    for kind in ("errors", "noise"):
        content[kind] = {name: WordErrors(**counts) for name, counts in content[kind].items()}
    return CellResult(**content)


_MISSING = object()


def _differing(before: Any, wanted: Any, name: str = "") -> list[str]:
    """Dotted names of the entries that differ; in `sets`, a missing one equals null."""
    if not isinstance(before, dict) or not isinstance(wanted, dict):
        return [] if before == wanted else [name]
    missing = None if name.startswith("sets") else _MISSING  # in flags null takes a value of the recipe away
    return [
        entry
        for key in sorted({*before, *wanted})
        for entry in _differing(before.get(key, missing), wanted.get(key, missing), f"{name}.{key}".strip("."))
    ]


def start_cell(folder: Path, settings: Mapping[str, Any]) -> None:
    """Writes what is going to be computed in a cell's folder, without what a stopped training left there."""
    shutil.rmtree(folder, ignore_errors=True)  # `read_cell` has recognised it as a cell's
    save_json(folder / "cell.json", settings)


def write_cell(folder: Path, result: CellResult) -> None:
    """Writes a result; whole or not at all."""
    save_json(folder / ".result.json", asdict(result))
    os.replace(folder / ".result.json", folder / "result.json")


def rows_fingerprint(rows: Dataset) -> str:
    """Of all columns but the audio; the fingerprint of `datasets` depends on paths and times of files in its cache."""
    digest = hashlib.sha256()
    columns = rows.select_columns(sorted({*rows.column_names} - {"audio"}))
    for batch in columns.with_format("arrow").iter(batch_size=10_000):
        for row in batch.to_pylist():
            digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()[:16]


def dependencies(args: SweepArguments, sets: Mapping[str, Dataset]) -> dict[str, dict[str, Any]]:
    """Checks the inputs of every cell; returns all that its result depends on but for the seed, by its name."""
    recipe = load_recipe(find_recipe(args.recipe))
    sources = {**args.eval_datasets, **args.ood_datasets}
    shared = {
        # Without the flags that a cell sets whatever the recipe says.
        "recipe": {key: value for key, value in recipe.items() if key not in ("disable_tqdm", "output_dir", "seed")},
        "minutes": args.minutes,
        "sets": {name: {**asdict(source), "rows": rows_fingerprint(sets[name])} for name, source in sources.items()},
        "first_set": next(iter(sets)),  # the one in noise, and timed
        "snrs": args.snrs,
        "latency": "relative_latency" in args.columns,
    }
    # The name of a model on the Hub is all that is known of it before the download.
    weights = lru_cache(lambda path: checkpoint_fingerprint(path) if path and Path(path).is_dir() else None)
    fingerprint = lru_cache(rows_fingerprint)
    depends, problems = {}, []
    for cell in (cell for cell in sweep_cells(args) if cell.seed == args.seeds[0]):
        try:
            training, training_args = cell.arguments(args.recipe)
        except InputError as error:
            problems.append(f"cell {cell.name!r}: {error}")
            continue
        training_args.output_dir = str(cell.folder / "planned")  # what a stopped cell left does not matter here
        plan = plan_training(training, training_args)
        problems += [f"cell {cell.name!r}: {problem}" for problem in plan.problems]
        # Of a stream only the path is known.
        rows = plan.data.train if plan.data is not None and not training.streaming else None
        depends[cell.name] = {
            **shared,
            "flags": cell.flags,
            "training_rows": None if rows is None else fingerprint(rows),
            "teacher_weights": weights(training.teacher_model_name_or_path),
            "student_weights": weights(training.model_name_or_path),
        }
    if problems:
        raise InputError("\n  ".join(["the inputs are not ready:", *problems]))
    return depends


def run_cells(
    args: SweepArguments, sets: Mapping[str, Dataset], depends: Mapping[str, Mapping[str, Any]]
) -> Iterator[CellResult]:
    """The results of all cells in turn; those that are there already are read, before the first training."""
    cells = sweep_cells(args)
    settings = [{"cell": cell.name, "seed": cell.seed, **depends[cell.name]} for cell in cells]
    results = [read_cell(cell.folder, one) for cell, one in zip(cells, settings, strict=True)]
    for cell, one, result in zip(cells, settings, results, strict=True):
        if result is None:
            start_cell(cell.folder, one)
            result = train_cell(args, cell, sets)
            write_cell(cell.folder, result)
        yield result


def train_cell(args: SweepArguments, cell: Cell, sets: Mapping[str, Dataset]) -> CellResult:
    """Trains and scores one student."""
    training, training_args = cell.arguments(args.recipe or "")
    plan = plan_training(training, training_args)
    plan.check()
    trainer = build_trainer(plan)
    if args.minutes is not None:
        limit_time(trainer, args.minutes)
    trainer.train()
    trainer.save_model(str(cell.folder / "student"), _internal_call=True)  # whole, also with LoRA; without a push
    student = load_model(cell.folder / "student").to(training_args.device).eval()
    loaded = LoadedModel(student, load_processor(cell.folder / "student"))
    results, noisy = score_student(args, training_args, loaded, sets)
    first, latency = next(iter(sets)), None
    if "relative_latency" in args.columns and training.teacher_model_name_or_path is not None:
        teacher = load_model(training.teacher_model_name_or_path).to(student.device).eval()
        rows = timed_rows(sets[first], results[first].row_errors)
        latency = relative_latency(loaded, LoadedModel(teacher, loaded.processor), rows, training_args.language)
    rows = None if training.streaming else plan.data.train
    sizes = (None,) * 3 if rows is None else (len(rows), plan.data.rows_dropped, hours_of_audio(rows))
    errors = {name: result.errors for name, result in results.items()}
    noise = {f"{snr:g}": result.errors for snr, result in noisy.items()}
    steps, parameters = trainer.state.global_step, student.num_parameters()
    return CellResult(cell.name, cell.seed, errors, *sizes, steps, parameters, latency, noise)


def score_student(
    args: SweepArguments, training_args: DistillationTrainingArguments, loaded: LoadedModel, sets: dict[str, Dataset]
) -> tuple[dict[str, EvaluationResult], dict[float, EvaluationResult]]:
    """Results on the sets by name, and on the first one in noise by ratio."""
    student, processor = loaded
    # The language's own normaliser is left to the scoring, which counts characters where words are not separated.
    named = training_args.normalizer if training_args.normalizer != training_args.language else None
    language, cache = training_args.language, None
    options: dict[str, Any] = {"language": language, "normalizer": get_normalizer(named) if named else None}
    if training_args.freeze_encoder:
        # Most of the time of scoring is spent in the encoder, which all cells with the same frozen one share.
        folder = Path(args.output_dir or "", STATES, module_fingerprint(student.model.encoder))
        cache = EncoderCache(student.model.encoder, student.dtype, folder)
        options["generate"] = partial(generate_tokens_cached, student, cache=cache, language=language)
    results = {name: evaluate_model(student, rows, processor, **options) for name, rows in sets.items()}
    first = next(iter(sets.values()))
    noisy = evaluate_in_noise(student, first, processor, snrs=args.snrs, **options) if args.snrs else {}
    if cache is not None:
        cache.flush()
    return results, noisy


def timed_rows(rows: Dataset, errors: RowErrors) -> Dataset:
    """The first `LATENCY_ROWS` of a set without those that scoring could not read."""
    unreadable = {row for row, _ in errors}
    return rows.select([index for index, row in enumerate(rows["id"]) if row not in unreadable][:LATENCY_ROWS])


def relative_latency(student: LoadedModel, teacher: LoadedModel, rows: Dataset, language: str | None) -> float | None:
    """How many times faster than the teacher a student is, both in turn, recording by recording."""
    models = {"teacher": teacher, "student": student}
    options = {"batch_sizes": [1], "repeats": 5, "memory": False, "language": language}
    measured = latency_grid(models, rows, teacher="teacher", **options)
    return next(row.relative_latency for row in measured if row.model == "student")


class TimeBudget(TrainerCallback):
    """Ends a training after so many minutes.

    The clock starts with the first step: filling a cache that all cells share does not count.
    """

    def __init__(self, minutes: float, clock: Callable[[], float] = time.monotonic):
        self.seconds, self.clock = 60 * minutes, clock
        self.start: float | None = None

    @property
    def used(self) -> float:
        """Share of the time that is over, 0 to 1."""
        return 0.0 if self.start is None else min((self.clock() - self.start) / self.seconds, 1.0)

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Starts the clock."""
        self.start = self.clock() if self.start is None else self.start

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **_: Any) -> None:
        """Stops after the step in which the time ran out."""
        control.should_training_stop |= self.used >= 1


def limit_time(trainer: Trainer, minutes: float, clock: Callable[[], float] = time.monotonic) -> TimeBudget:
    """Lets a trainer train for so many minutes; its learning rate rises by steps and falls to zero over that time.

    A cell that stopped at a high learning rate would be compared unfinished. `max_steps` still ends it before.
    """
    budget = TimeBudget(minutes, clock)
    optimizer = trainer.create_optimizer()
    warmup = trainer.args.get_warmup_steps(max(trainer.args.max_steps, 1))
    trainer.lr_scheduler = LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / (warmup + 1)) * (1 - budget.used))
    trainer.add_callback(budget)
    return budget


class Spread(NamedTuple):
    """One figure over several seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.mean(self.values)

    def __str__(self) -> str:
        around = f" ± {statistics.stdev(self.values):.1f}" if len(self.values) > 1 else ""
        return f"{self.mean:.1f}{around}"


def by_cell(results: Sequence[CellResult]) -> dict[str, list[CellResult]]:
    """Results of the seeds together, by the name of their cell."""
    grouped: dict[str, list[CellResult]] = {}
    for result in results:
        grouped.setdefault(result.cell, []).append(result)
    return grouped


def averages(results: Sequence[CellResult], out_of_distribution: Sequence[str]) -> dict[str, Spread]:
    """Macro-averages of the WER in % over the seeds of one cell: "ID Average", "OOD Average", "Average"."""
    seeds = [set_averages(result.errors, out_of_distribution) for result in results]
    return {kind: Spread(tuple(100 * means[kind][0] for means in seeds)) for kind in seeds[0]}


def noise_rates(results: Sequence[CellResult]) -> dict[str, Spread]:
    """WER in % in noise over the seeds of one cell, by the signal-to-noise ratio in dB as text."""
    return {snr: Spread(tuple(100 * result.noise[snr].wer for result in results)) for snr in results[0].noise}


def sweep_table(
    results: Sequence[CellResult], heading: str, columns: Sequence[str] = (), out_of_distribution: Sequence[str] = ()
) -> str:
    """The sweep as Markdown, in the layout of Tables 10 to 12 and 21, cells in the order of their results."""
    lines, heads = [], [heading]
    for name, of_cell in by_cell(results).items():
        rates = {f"{kind} WER / %": rate for kind, rate in averages(of_cell, out_of_distribution).items()}
        rates |= {f"WER at {snr} dB / %": rate for snr, rate in noise_rates(of_cell).items()}
        heads = [heading, *(COLUMNS[column] for column in columns), *rates]
        lines.append([name, *(_shown(column, of_cell) for column in columns), *map(str, rates.values())])
    return table(heads, lines, left=len(heads))


def _shown(column: str, results: Sequence[CellResult]) -> str:
    values = [value for result in results if (value := getattr(result, column)) is not None]
    if not values:
        return "-"
    if column == "relative_latency":
        return f"{statistics.median(values):.1f}"
    mean = statistics.mean(values)
    if column == "steps":
        return f"{mean:,.0f}"
    return f"{mean * {'dropped': 100, 'hours': 1, 'parameters': 1e-6}[column]:.{2 if column == 'hours' else 1}f}"


def save_sweep(args: SweepArguments, results: Sequence[CellResult]) -> str:
    """Writes table, counts and picture of the cells so far; returns the table."""
    folder, outside = Path(args.output_dir or ""), list(args.ood_datasets or {})
    text = sweep_table(results, args.heading, args.columns, outside)
    seeds, trainings = len({result.seed for result in results}), len(sweep_cells(args))
    notes = [f"{seeds} seeds, mean ± standard deviation" if seeds > 1 else "one seed"]
    notes += [] if args.minutes is None else [f"{args.minutes:g} min of training for every cell"]
    notes += [] if len(results) == trainings else [f"{len(results)} of {trainings} trainings"]
    folder.joinpath("table.md").write_text(f"{args.title}\n\n{text}\n\n{', '.join(notes)}.\n", encoding="utf-8")
    save_json(folder / "results.json", [asdict(result) for result in results])
    lines, noise = {}, {}
    for name, of_cell in by_cell(results).items():
        for kind, rate in averages(of_cell, outside).items():
            lines.setdefault(kind, {})[name] = rate.values
        noise[name] = {float(snr): rate.mean / 100 for snr, rate in noise_rates(of_cell).items()}
    wer_by_cell(lines, args.heading, folder / "wer.png", noise if args.snrs else None)
    return text


def main(argv: Sequence[str]) -> None:
    """Entry point."""
    (args,) = parse_arguments(SweepArguments, argv=argv, command="benchmarks/paper/sweep.py")
    check_flags(args, "recipe", "output_dir", "eval_datasets")
    sets = load_sets({**args.eval_datasets, **args.ood_datasets}, ("audio", "text"))
    depends = dependencies(args, sets)
    if not ready({}, sets, args.dry_run):
        return
    results: list[CellResult] = []
    for result in run_cells(args, sets, depends):
        results.append(result)
        save_sweep(args, results)
        rates = ", ".join(f"{name} {errors.wer:.2%}" for name, errors in result.errors.items())
        print(f"[{len(results)}] {result.cell}, seed {result.seed}: {result.steps} steps, WER {rates}", flush=True)
    shutil.rmtree(Path(args.output_dir, STATES), ignore_errors=True)
    print(f"\n{save_sweep(args, results)}")


if __name__ == "__main__":
    sys.exit(run_script(main))
