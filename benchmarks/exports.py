"""Exports of a model beside transformers: equal texts, word error rate, size and speed.

    OMP_NUM_THREADS=1 python benchmarks/exports.py --model_name_or_path runs/quickstart/student \
        --dataset.path examples/quickstart/corpus --dataset.split test_kathleen \
        --exports onnx/float32 onnx/int8 ctranslate2/float32 ctranslate2/int8 ggml/float16 ggml/q8_0

All runtimes take turns on the same recordings, from samples to tokens, so that other load slows all of them alike.
Needs the extras `onnx`, `ct2` and `ggml` for what is compared. Cost: 20 minutes on one CPU core.
"""

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from datasets import Dataset

from hf_distil_whisper import evaluate_model, load_audio, parse_arguments, run_script
from hf_distil_whisper.cli.config import DataSource, InputError, as_source, setting, source_setting
from hf_distil_whisper.cli.export import FORMATS
from hf_distil_whisper.inference.encoder import window_features
from hf_distil_whisper.inference.generation import generate_tokens
from inputs import LoadedModel, ScoringArguments, check_flags, list_setting, load_scored_models, load_sets, ready
from tables import machine, table


def weight_bytes(folder: Path) -> int:
    """Bytes on disk without settings and tokenizer."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and file.suffix != ".json")


def seconds(loaded: LoadedModel, recordings: list, generate: Any, batch_size: int) -> float:
    """Time of features and generation for all recordings."""
    start = time.perf_counter()
    for index in range(0, len(recordings), batch_size):
        generate(input_features=window_features(*loaded, recordings[index : index + batch_size]))
    return time.perf_counter() - start


def compare(
    loaded: LoadedModel, rows: Dataset, exports: Sequence[tuple[str, str]], timed: int, repeats: int, batch_size: int,
    **scoring: Any,
) -> str:  # fmt: skip
    """The table, as Markdown; `exports`: format and quantization of each."""
    model, processor = loaded
    language = scoring["language"]
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    precision = str(model.dtype).removeprefix("torch.")
    runs = [("transformers", precision, weights, partial(generate_tokens, model, language=language))]
    with tempfile.TemporaryDirectory() as work:
        for runtime, quantization in exports:
            form, folder = FORMATS[runtime], Path(work, runtime, quantization)
            form.export(model, processor, folder, quantization=quantization)
            generate = form.load(model, processor, str(folder), language)
            runs.append((runtime, quantization, weight_bytes(folder), generate))
        results = [
            evaluate_model(model, rows, processor, batch_size=batch_size, generate=run[3], **scoring) for run in runs
        ]
        recordings = [load_audio(row["audio"]) for row in rows.select(range(min(timed, len(rows))))]
        rounds = [[seconds(loaded, recordings, run[3], batch_size) for run in runs] for _ in range(repeats)]
    times = [median(column) for column in zip(*rounds, strict=True)]
    duration = sum(map(len, recordings)) / 16_000
    heads = ["runtime", "precision", "equal texts", "WER / %", "MB on disk", "RTF / 10⁻³", "times as fast"]
    lines = []
    for (run, quantization, size, _), result, spent in zip(runs, results, times, strict=True):
        pairs = zip(result.rows, results[0].rows, strict=True)
        equal = sum(ours["prediction"] == theirs["prediction"] for ours, theirs in pairs)
        texts = f"{equal} ({equal / len(result.rows):.1%})", f"{100 * result.wer:.2f}"
        speed = f"{1000 * spent / duration:.1f}", f"{times[0] / spent:.2f}"
        lines.append([run, quantization, *texts, f"{size / 1e6:.1f}", *speed])
    return table(heads, lines, left=2)


@dataclass
class ExportsArguments(ScoringArguments):
    """Flags of the script."""

    model_name_or_path: str | None = setting(None, "Model to export: Hub name or folder.")
    dataset: DataSource | str | None = source_setting("Recordings of up to 30 s with text.")
    exports: list[str] = list_setting(["ctranslate2/float32", "ctranslate2/int8"], "Format and quantization of each.")
    samples: int = setting(32, "Recordings that are timed; texts are compared on all.")
    repeats: int = setting(3, "Repetitions over these, the runtimes in turn.")
    batch_size: int = setting(16, "Recordings in one pass.")

    def parsed_exports(self) -> list[tuple[str, str]]:
        """Format and quantization of each export."""
        pairs = []
        for name in self.exports:
            runtime, _, quantization = name.partition("/")
            if runtime not in FORMATS or quantization not in FORMATS[runtime].quantizations:
                known = "; ".join(f"{one}/ {', '.join(form.quantizations)}" for one, form in FORMATS.items())
                raise InputError(f"--exports: expected a format and a quantization ({known}), got {name!r}")
            pairs.append((runtime, quantization))
        return pairs


def main(argv: Sequence[str]) -> None:
    """Entry point."""
    (args,) = parse_arguments(ExportsArguments, argv=argv, command="benchmarks/exports.py")
    check_flags(args, "model_name_or_path", "dataset", whole=("samples", "repeats", "batch_size"))
    exports = args.parsed_exports()
    models = load_scored_models({"model": args.model_name_or_path}, args)
    sets = load_sets({"dataset": as_source(args.dataset, "dataset")}, ("audio", "text"))
    if not ready(models, sets, args.dry_run):
        return
    print(
        compare(models["model"], sets["dataset"], exports, args.samples, args.repeats, args.batch_size, **args.scoring)
    )
    total, timed = len(sets["dataset"]), min(args.samples, len(sets["dataset"]))
    print(f"\ntexts of {total}, times of {timed} recordings: medians of {args.repeats}, {args.dtype}, {machine()}")


if __name__ == "__main__":
    sys.exit(run_script(main))
