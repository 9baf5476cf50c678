"""The quickstart's table: word error rates, real-time factors, speed-ups, and their acceptance bounds."""

import math
import statistics
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from digit_strings import digit_strings
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from hf_distil_whisper import (
    WordErrors,
    evaluate_long_form,
    evaluate_model,
    get_normalizer,
    load_audio,
    load_source,
    measure_latency,
    pack_utterances,
    transcribe,
)
from hf_distil_whisper.inference.encoder import EncoderCache, window_features
from hf_distil_whisper.inference.generation import generate_tokens_cached

SETS = {"test": "test", "unseen voices": "test_unseen"}


@dataclass(frozen=True)
class Scores:
    """One row of the table: weights, and errors by set."""

    parameters: int
    errors: dict[str, WordErrors]


@dataclass(frozen=True)
class Speeds:
    """On windows packed to 30 s, batch size 1.

    `rtf` is by model, seconds of work a second of audio at 100 tokens a window; `ratios` says by tokens a window how
    many times faster the student is.
    """

    rtf: dict[str, float]
    ratios: dict[int, float]


def score(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    corpus: Path,
    chunk_length: float,
    states: EncoderCache,
    brief: bool = False,
) -> Scores:
    """Scores a model on the test sets, long recordings in chunks of `chunk_length` seconds.

    `states` caches the hidden states of the encoder that all models share. `brief`: only the first 96 rows of each
    set, except for long recordings, which differ too much.
    """
    limit = 96 if brief else None
    generate = partial(generate_tokens_cached, model.eval(), cache=states)
    errors = {}
    for name, split in SETS.items():
        rows = load_source(corpus, split=split, max_samples=limit)
        errors[name] = evaluate_model(model, rows, processor, language="en", generate=generate).errors
    rows = load_source(corpus, split="longform")
    errors["long form"] = evaluate_long_form(model, rows, processor, chunk_length=chunk_length, language="en").errors
    return Scores(model.num_parameters(), errors)


def speeds(models: dict[str, WhisperForConditionalGeneration], processor: WhisperProcessor, corpus: Path) -> Speeds:
    """Times the models in turn; `teacher` and `student` are two of them."""
    rows = load_source(corpus, split="train", max_samples=60)
    windows = [load_audio(row["audio"]) for row in pack_utterances(rows) if row["duration"] > 25][:4]
    seconds = sum(len(window) for window in windows) / len(windows) / 16_000
    features = window_features(models["teacher"], processor, windows)
    many = measure_latency(models, features, num_tokens=100, repeats=3)
    few = measure_latency({name: models[name] for name in ("teacher", "student")}, features, num_tokens=16, repeats=3)
    ratios = {tokens: times["student"].speedup_over(times["teacher"]) for tokens, times in ((100, many), (16, few))}
    return Speeds({name: time.median / seconds for name, time in many.items()}, ratios)


def digit_wer(model: WhisperForConditionalGeneration, processor: WhisperProcessor, folder: Path) -> float:
    """On 300 strings of human digits from fsdd's test split, seed 0; a digit is a word."""
    rows = list(digit_strings(folder, "test", 300, seed=0))
    return evaluate_model(model, rows, processor, normalizer=get_normalizer("basic")).wer


def timestamp_error(model: WhisperForConditionalGeneration, processor: WhisperProcessor, corpus: Path) -> float:
    """Median distance in seconds of the segments' starts and ends from the true ones, in windows of several sentences.

    A window counts where the model found as many segments as there are sentences; NaN where none does.
    """
    rows = load_source(corpus, split="test").sort("speaker")
    seconds = dict(zip(rows["id"], rows["duration"], strict=True))
    gap, distances = 0.3, []
    windows = [row for row in pack_utterances(rows, gap=gap) if len(row["ids"]) > 1]
    found = transcribe(model, processor, [row["audio"] for row in windows], batch_size=16, return_timestamps=True)
    for row, transcription in zip(windows, found, strict=True):
        if len(transcription.segments) == len(row["ids"]):
            start = 0.0
            for name, segment in zip(row["ids"], transcription.segments, strict=True):
                distances += [abs(segment.start - start), abs(segment.end - start - seconds[name])]
                start += seconds[name] + gap
    return statistics.median(distances) if distances else math.nan


def table(scores: dict[str, Scores], speeds: Speeds) -> str:
    """The result as Markdown."""
    names = list(next(iter(scores.values())).errors)
    head = ["", "parameters", *(f"WER {name}" for name in names), "RTF"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for model, row in scores.items():
        rates = [f"{100 * row.errors[name].wer:.1f} %" for name in names]
        cells = [model, f"{row.parameters / 1e6:.2f} M", *rates, f"{speeds.rtf[model]:.3f}"]
        lines.append("| " + " | ".join(cells) + " |")
    faster = ", ".join(f"{ratio:.1f}× at {tokens} tokens" for tokens, ratio in speeds.ratios.items())
    return "\n".join([*lines, "", f"Student against teacher, batch size 1, windows packed to 30 s: {faster}."])


def print_bounds(
    scores: dict[str, Scores], ratios: dict[int, float], human: float | None, seconds: float, minutes: float
) -> None:
    """Each bound with what was measured."""
    teacher, student, before = scores["teacher"].errors, scores["student"].errors, scores["student before"].errors
    seen, unseen = teacher["test"].wer, teacher["unseen voices"].wer
    gap = student["test"].wer - teacher["test"].wer
    times = before["test"].wer / max(student["test"].wer, 1e-9)
    rows = [
        ("teacher's WER on test", f"{seen:.2%}", "at most 3 %", seen <= 0.03),
        ("teacher's WER on unseen voices", f"{unseen:.2%}", "at most 8 %", unseen <= 0.08),
        ("teacher's timestamps, median error", f"{seconds:.2f} s", "at most 0.2 s", seconds <= 0.2),
        ("student's WER above the teacher's on test", f"{gap:+.2%}", "at most 1 %", gap <= 0.01),
        ("student's speed at 100 tokens", f"{ratios[100]:.2f}×", "at least 2×", ratios[100] >= 2),
        ("student's WER before distillation", f"{times:.1f}× that after", "at least 5×", times >= 5),
        ("minutes", f"{minutes:.1f}", "at most 10", minutes <= 10),
    ]  # fmt: skip
    if human is not None:
        rows.insert(2, ("teacher's WER on human digits", f"{human:.2%}", "at most 5 %", human <= 0.05))
    print()
    for name, measured, bound, met in rows:
        print(f"{'met   ' if met else 'MISSED'} {name}: {measured} ({bound})")
