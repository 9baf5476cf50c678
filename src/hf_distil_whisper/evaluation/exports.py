"""An exported model in its runtime beside transformers: same texts, word error rate, size and speed.

Knows how each format is written, run and measured; the formats are known by `inference`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from datasets import Dataset
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from hf_distil_whisper.data.sources import RowErrors
from hf_distil_whisper.evaluation.scoring import EvaluationResult
from hf_distil_whisper.evaluation.short_form import evaluate_model
from hf_distil_whisper.inference.backends import Ctranslate2Generator
from hf_distil_whisper.inference.export import export_ctranslate2
from hf_distil_whisper.inference.export_ggml import GGML_QUANTIZATIONS, export_ggml
from hf_distil_whisper.inference.export_onnx import SUFFIXES, export_onnx
from hf_distil_whisper.inference.generation import TokenSequence, generate_tokens
from hf_distil_whisper.inference.rows import generate_rows
from hf_distil_whisper.inference.run_ggml import GgmlGenerator
from hf_distil_whisper.inference.run_onnx import OnnxGenerator

QUANTIZATIONS = {
    "ctranslate2": (
        "float32",
        "float16",
        "bfloat16",
        "int8",
        "int8_float32",
        "int8_float16",
        "int8_bfloat16",
        "int16",
    ),
    "ggml": GGML_QUANTIZATIONS,
    "onnx": tuple(SUFFIXES),
}
"""Format → what its weights may be on disk, the default first."""
EXTRAS = {
    "ctranslate2": ("ct2", ("ctranslate2",)),
    "ggml": ("ggml", ("pywhispercpp",)),
    "onnx": ("onnx", ("onnx", "onnxruntime", "onnxscript")),
}
"""Format → the extra that installs what it needs, and the packages."""
_EXPORTERS = {"ctranslate2": export_ctranslate2, "ggml": export_ggml, "onnx": export_onnx}
TIMED_ROWS, ROUNDS = 32, 3
"""The first recordings are timed, so often, the runtimes in turn."""
_SETTINGS = (".json", ".txt")


@dataclass(frozen=True)
class ExportCheck:
    """A runtime on recordings, beside transformers.

    Args:
        runtime (`str`): "transformers", or the format.
        precision (`str`): of the weights.
        result (`EvaluationResult`): what it made of the recordings.
        weight_bytes (`int`): on disk, settings and tokenizer not counted.
        same (`int`): recordings of which it wrote the very text of transformers.
        rtf (`float`): seconds of work per second of audio, of the recordings that are timed.
        relative_latency (`float`): seconds of transformers over its own; larger is faster.
    """

    runtime: str
    precision: str
    result: EvaluationResult
    weight_bytes: int
    same: int
    rtf: float
    relative_latency: float


def run_export(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    folder: Path,
    runtime: str,
    language: str | None,
) -> Callable[..., list[TokenSequence]]:
    """Loads an exported model, to transcribe windows with it.

    Args:
        model (`WhisperForConditionalGeneration`): what was exported.
        processor (`WhisperProcessor`): of the model.
        folder (`Path`): of the export.
        runtime (`str`): a key of `QUANTIZATIONS`.
        language (`str`, *optional*): of the recordings.
    """
    if runtime == "ctranslate2":
        return Ctranslate2Generator(model, processor, folder=folder, language=language)
    if runtime == "ggml":
        return GgmlGenerator(model, folder, language=language)
    return OnnxGenerator(model, folder, language=language)


def export_and_check(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    folders: Mapping[str, str | Path],
    rows: Dataset | Sequence[Mapping],
    *,
    runtime: str,
    batch_size: int = 16,
    language: str | None = None,
) -> list[ExportCheck]:
    """Exports a model in several precisions and transcribes the same recordings with each and with transformers.

    Args:
        model (`WhisperForConditionalGeneration`): float32, in eval mode.
        processor (`WhisperProcessor`): of the model.
        folders (`Mapping[str, str | Path]`): precision → folder, new or empty.
        rows (`Dataset` or `Sequence[Mapping]`): with `audio` of up to one window, `text` (or None) and possibly `id`.
        runtime (`str`): a key of `QUANTIZATIONS`.
        batch_size (`int`, *optional*, defaults to 16): recordings in one pass.
        language (`str`, *optional*): of the recordings, for multilingual models.

    Returns:
        `list[ExportCheck]`: transformers first.
    """
    score = partial(evaluate_model, model, rows, processor, batch_size=batch_size, language=language)
    plain = score()
    for precision, folder in folders.items():
        _EXPORTERS[runtime](model, processor, folder, quantization=precision)
    generators: list[Callable[..., list[TokenSequence]]] = [partial(generate_tokens, model, language=language)]
    generators += [run_export(model, processor, Path(folder), runtime, language) for folder in folders.values()]
    results = [plain, *(score(generate=one) for one in generators[1:])]
    rtfs = _real_time_factors(model, processor, rows, generators, batch_size)
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    names = [("transformers", str(model.dtype).removeprefix("torch.")), *((runtime, name) for name in folders)]
    sizes = [weights, *(_weight_bytes(Path(folder)) for folder in folders.values())]
    return [
        ExportCheck(*name, result, size, _same_texts(result, plain), rtf, rtfs[0] / rtf)
        for name, result, size, rtf in zip(names, results, sizes, rtfs, strict=True)
    ]


def _same_texts(result: EvaluationResult, plain: EvaluationResult) -> int:
    pairs = zip(result.rows, plain.rows, strict=True)
    return sum(ours["prediction"] == theirs["prediction"] for ours, theirs in pairs)


def _real_time_factors(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    rows: Dataset | Sequence[Mapping],
    generators: Sequence[Callable[..., list[TokenSequence]]],
    batch_size: int,
) -> list[float]:
    """Medians over rounds in which all take their turn: what else the machine does then slows all of them down."""
    first = [rows[index] for index in range(min(TIMED_ROWS, len(rows)))]
    factors: list[list[float]] = [[] for _ in generators]
    for _ in range(ROUNDS):
        for found, generate in zip(factors, generators, strict=True):
            heard = generate_rows(model, processor, first, RowErrors(), generate, batch_size=batch_size)
            found.append(heard.seconds / max(sum(heard.durations.values()), 1e-9))
    return [median(found) for found in factors]


def export_table(checks: Sequence[ExportCheck]) -> str:
    """Texts, word error rate, size and speed of every runtime, as Markdown.

    Args:
        checks (`Sequence[ExportCheck]`): from [`export_and_check`].
    """
    lines = [
        "| runtime | precision | text identical | WER / % | MB on disk | RTF / 10⁻³ | times as fast |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for check in checks:
        result, total = check.result, len(check.result.rows)
        wer = f"{100 * result.wer:.2f}" if result.errors.num_words else "-"
        lines.append(
            f"| {check.runtime} | {check.precision} | {check.same} of {total} ({check.same / total:.1%}) | {wer} | "
            f"{check.weight_bytes / 1e6:.1f} | {1000 * check.rtf:.1f} | {check.relative_latency:.2f} |"
        )
    return "\n".join(lines)


def differing_texts(checks: Sequence[ExportCheck], limit: int = 3) -> list[str]:
    """The first texts of each runtime that are not those of transformers, a line each.

    Args:
        checks (`Sequence[ExportCheck]`): from [`export_and_check`].
        limit (`int`, *optional*, defaults to 3): of each runtime.
    """
    lines = []
    for check in checks[1:]:
        pairs = zip(checks[0].result.rows, check.result.rows, strict=True)
        other = [(plain, ours) for plain, ours in pairs if plain["prediction"] != ours["prediction"]]
        for plain, ours in other[:limit]:
            lines.append(
                f"{check.runtime} {check.precision}, {ours['id']}: {ours['prediction']!r} instead of "
                f"{plain['prediction']!r}"
            )
    return lines


def _weight_bytes(folder: Path) -> int:
    files = [file for file in folder.rglob("*") if file.is_file() and file.suffix not in _SETTINGS]
    return sum(file.stat().st_size for file in files)
