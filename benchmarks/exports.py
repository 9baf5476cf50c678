"""Compare exports with transformers: equal texts, word error rate, size and speed.

    python benchmarks/exports.py runs/quickstart/student examples/quickstart/corpus --split test_kathleen \
        --format onnx --quantization float32 float16 int8

prints a Markdown table of transformers and each export on the recordings of a corpus. Speed is measured on the first
32 recordings: medians of three rounds in which all runtimes take turns, so that other load slows all of them alike.
"""

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from hf_distil_whisper import (
    evaluate_model,
    export_ctranslate2,
    export_ggml,
    export_onnx,
    load_audio,
    load_model,
    load_processor,
    load_source,
)
from hf_distil_whisper.export.ggml import GgmlGenerator
from hf_distil_whisper.export.onnx import OnnxGenerator
from hf_distil_whisper.inference.ctranslate2 import Ctranslate2Generator
from hf_distil_whisper.inference.encoder import window_features
from hf_distil_whisper.inference.generation import generate_tokens
from tables import table

EXPORTERS = {"ctranslate2": export_ctranslate2, "ggml": export_ggml, "onnx": export_onnx}
TIMED_ROWS, ROUNDS = 32, 3


GENERATORS = {
    "ctranslate2": lambda model, processor, folder: Ctranslate2Generator(model, processor, folder=folder),
    "ggml": lambda model, _, folder: GgmlGenerator(model, folder),
    "onnx": lambda model, _, folder: OnnxGenerator(model, folder),
}


def weight_bytes(folder: Path) -> int:
    """Bytes on disk without settings and tokenizer."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and file.suffix != ".json")


def seconds(model: Any, processor: Any, recordings: list, generate: Any, batch_size: int) -> float:
    """Time of features and generation for all recordings."""
    start = time.perf_counter()
    for index in range(0, len(recordings), batch_size):
        generate(input_features=window_features(model, processor, recordings[index : index + batch_size]))
    return time.perf_counter() - start


def compare(name: str, corpus: str, split: str, runtime: str, quantizations: list[str], batch_size: int) -> str:
    """The table, as Markdown."""
    model, processor = load_model(name), load_processor(name)
    rows = load_source(corpus, split=split)
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    runs: list[tuple[str, str, int, Any]] = [("transformers", "float32", weights, partial(generate_tokens, model))]
    with tempfile.TemporaryDirectory() as work:
        for quantization in quantizations:
            folder = EXPORTERS[runtime](model, processor, Path(work, quantization), quantization=quantization)
            generate = GENERATORS[runtime](model, processor, folder)
            runs.append((runtime, quantization, weight_bytes(folder), generate))
        results = [evaluate_model(model, rows, processor, batch_size=batch_size)]
        results += [evaluate_model(model, rows, processor, batch_size=batch_size, generate=run[3]) for run in runs[1:]]
        recordings = [load_audio(rows[index]["audio"]) for index in range(min(TIMED_ROWS, len(rows)))]
        rounds = [[seconds(model, processor, recordings, run[3], batch_size) for run in runs] for _ in range(ROUNDS)]
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


def main() -> None:
    """Parses the flags and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="name or folder of the model")
    parser.add_argument("corpus", help="recordings of up to 30 s with text")
    parser.add_argument("--split", default="test", help="of the corpus (default: test)")
    parser.add_argument("--format", choices=tuple(EXPORTERS), default="ctranslate2")
    parser.add_argument("--quantization", nargs="+", default=["float32", "int8"])
    parser.add_argument("--batch_size", type=int, default=16, help="recordings per pass (default: 16)")
    args = parser.parse_args()
    print(compare(args.model, args.corpus, args.split, args.format, args.quantization, args.batch_size))
    print(f"\n{torch.get_num_threads()} threads, torch {torch.__version__}")


if __name__ == "__main__":
    main()
