"""`sweep`: trains and scores a student for every cell of a grid, and writes the paper's table for it."""

import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from cli_sweep_plan import (
    STATES,
    Cell,
    SweepArguments,
    SweepPlan,
    plan_sweep,
    sweep_cells,
)
from figures import wer_by_cell
from hf_distil_whisper.checkpoints import (
    load_model,
    load_processor,
    module_fingerprint,
)
from hf_distil_whisper.cli.config import parse_arguments
from hf_distil_whisper.cli.inputs import hours_of_audio
from hf_distil_whisper.cli.train import (
    TrainingPlan,
    build_trainer,
    plan_training,
)
from hf_distil_whisper.data.sources import RowErrors
from hf_distil_whisper.evaluation.evaluate import EvaluationResult, evaluate_model
from hf_distil_whisper.evaluation.noise import evaluate_in_noise
from hf_distil_whisper.inference.encoder import EncoderCache
from hf_distil_whisper.inference.generation import generate_tokens_cached
from hf_distil_whisper.metrics import get_normalizer
from hf_distil_whisper.training.args import DistillationTrainingArguments
from latency_grid import latency_grid
from sweeps import (
    CellResult,
    averages,
    begin_cell,
    by_cell,
    noise_rates,
    read_cell,
    sweep_table,
    write_cell,
)
from time_budget import limit_time

LATENCY_WINDOWS = 8
"""Recordings of the first set on which student and teacher are timed in turn."""


def run_sweep(args: SweepArguments, plan: SweepPlan) -> Iterator[CellResult]:
    """The results of all cells in turn; those that are there already are read.

    Args:
        args (`SweepArguments`): as checked by [`plan_sweep`].
        plan ([`SweepPlan`]): what it returned.
    """
    sets = {flag.partition(".")[2]: rows for flag, rows in plan.datasets.items()}
    for cell in sweep_cells(args):
        settings = plan.settings(cell)
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
    trainer = build_trainer(plan)
    if args.minutes is not None:
        limit_time(trainer, args.minutes)
    trainer.train()
    trainer.save_model(str(cell.folder / "student"), _internal_call=True)  # whole, also with LoRA; without a push
    student = load_model(cell.folder / "student").to(training_args.device).eval()
    processor = load_processor(cell.folder / "student")
    found, noisy = _score(args, training_args, student, processor, sets)
    first = next(iter(sets))
    latency = None
    if "relative_latency" in args.columns and training.teacher_model_name_or_path is not None:
        heard = readable(sets[first], found[first].row_errors)
        teacher = load_model(training.teacher_model_name_or_path).to(student.device).eval()
        latency = relative_latency(student, teacher, processor, heard, training_args.language)
    return CellResult(
        cell.name,
        cell.seed,
        {name: result.errors for name, result in found.items()},
        steps=trainer.state.global_step,
        parameters=student.num_parameters(),
        relative_latency=latency,
        noise={f"{snr:g}": result.errors for snr, result in noisy.items()},
        **_training_size(plan),
    )


def _score(
    args: SweepArguments,
    training_args: DistillationTrainingArguments,
    student: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    sets: Mapping[str, Dataset],
) -> tuple[dict[str, EvaluationResult], dict[float, EvaluationResult]]:
    """What a student makes of the sets, by name, and of the first one in noise, by ratio."""
    states = _states_of(student, args) if training_args.freeze_encoder else None
    # The language's own is left to the scoring, which counts characters where there is no space between words.
    named = training_args.normalizer if training_args.normalizer != training_args.language else None
    options: dict[str, Any] = {
        "language": training_args.language,
        "normalizer": get_normalizer(named) if named else None,
    }
    if states is not None:
        options["generate"] = partial(generate_tokens_cached, student, cache=states, language=training_args.language)
    found = {name: evaluate_model(student, rows, processor, **options) for name, rows in sets.items()}
    first = next(iter(sets.values()))
    noisy = evaluate_in_noise(student, first, processor, snrs=args.snrs, **options) if args.snrs else {}
    if states is not None:
        states.flush()
    return found, noisy


def _states_of(student: WhisperForConditionalGeneration, args: SweepArguments) -> EncoderCache:
    """What the encoder that cells share makes of the sets: hearing them is most of the time of scoring a student."""
    folder = Path(args.output_dir or "", STATES, module_fingerprint(student.model.encoder))
    return EncoderCache(student.model.encoder, student.dtype, folder)


def _training_size(plan: TrainingPlan) -> dict[str, Any]:
    data = plan.data
    if data is None or plan.args.streaming:
        return {"rows": None, "rows_dropped": None, "hours": None}
    return {"rows": len(data.train), "rows_dropped": data.rows_dropped, "hours": hours_of_audio(data.train)}


def readable(rows: Dataset, errors: RowErrors) -> Dataset:
    """The first rows of a set, as many as are timed, without those that scoring has left out.

    Args:
        rows (`Dataset`): with `id`.
        errors (`RowErrors`): of scoring the same rows.
    """
    left_out = {row for row, _ in errors}
    numbers = [number for number, row in enumerate(rows["id"]) if row not in left_out]
    return rows.select(numbers[:LATENCY_WINDOWS])


def relative_latency(
    student: WhisperForConditionalGeneration,
    teacher: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    rows: Dataset,
    language: str | None,
) -> float | None:
    """How many times faster than the teacher a student is, both in turn, recording by recording.

    Args:
        student (`WhisperForConditionalGeneration`): in eval mode.
        teacher (`WhisperForConditionalGeneration`): on the same device.
        processor (`WhisperProcessor`): of both.
        rows (`Dataset`): recordings.
        language (`str`, *optional*): for multilingual models.
    """
    found = latency_grid(
        {"teacher": teacher, "student": student}, rows, processor, teacher="teacher", batch_sizes=[1], repeats=5,
        language=language, memory=False,
    )  # fmt: skip
    return next(row.relative_latency for row in found if row.model == "student")


def save_sweep(args: SweepArguments, results: Sequence[CellResult]) -> str:
    """Writes table, counts and picture of what is there so far; returns the table.

    Args:
        args (`SweepArguments`): of the sweep.
        results (`Sequence[CellResult]`): of the cells so far.
    """
    folder, outside = Path(args.output_dir or ""), list(args.ood_datasets or {})
    table = sweep_table(results, args.heading, args.columns, outside)
    cells, seeds = sweep_cells(args), len({result.seed for result in results})
    told = [f"{seeds} seeds, mean ± standard deviation" if seeds > 1 else "one seed"]
    told += [] if args.minutes is None else [f"{args.minutes:g} min of training for every cell"]
    told += [] if len(results) == len(cells) else [f"{len(results)} of {len(cells)} trainings"]
    folder.joinpath("table.md").write_text(f"{args.title}\n\n{table}\n\n{', '.join(told)}.\n", encoding="utf-8")
    found = [json.loads(cell.folder.joinpath("result.json").read_text()) for cell in cells[: len(results)]]
    folder.joinpath("results.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    trained = by_cell(results)
    figures = {name: averages(of_cell, outside) for name, of_cell in trained.items()}
    kinds = next(iter(figures.values()))
    lines = {kind: {name: rates[kind].values for name, rates in figures.items()} for kind in kinds}
    noise = {
        name: {float(snr): rate.mean / 100 for snr, rate in noise_rates(of_cell).items()}
        for name, of_cell in trained.items()
    }
    wer_by_cell(lines, args.heading, folder / "wer.png", noise if args.snrs else None)
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
    for result in run_sweep(args, plan):
        results.append(result)
        save_sweep(args, results)
        rates = ", ".join(f"{name} {errors.wer:.2%}" for name, errors in result.errors.items())
        sys.stdout.write(f"[{len(results)}] {result.cell}, seed {result.seed}: {result.steps} steps, WER {rates}\n")
        sys.stdout.flush()
    shutil.rmtree(Path(args.output_dir or "", STATES), ignore_errors=True)
    sys.stdout.write(f"\n{save_sweep(args, results)}\n")
