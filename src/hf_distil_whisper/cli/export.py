"""`export`: writes a model for another runtime, and shows on recordings that it writes the same text there."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, Literal

from datasets import Dataset
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from hf_distil_whisper.checkpoints import (
    load_model,
    load_processor,
)
from hf_distil_whisper.cli.config import (
    DataSource,
    InputError,
    as_source,
    parse_arguments,
    setting,
    source_setting,
)
from hf_distil_whisper.cli.inputs import (
    Plan,
    best_device,
    describe_rows,
    machine,
)
from hf_distil_whisper.data.sources import (
    RowErrors,
    without_decoder,
)
from hf_distil_whisper.evaluation.evaluate import (
    EvaluationResult,
    evaluate_model,
)
from hf_distil_whisper.export.ggml import (
    GGML_QUANTIZATIONS,
    GgmlGenerator,
    check_ggml,
    export_ggml,
)
from hf_distil_whisper.export.onnx import (
    SUFFIXES,
    OnnxGenerator,
    export_onnx,
)
from hf_distil_whisper.inference.ctranslate2 import (
    Ctranslate2Generator,
    export_ctranslate2,
)
from hf_distil_whisper.inference.dataset import generate_rows
from hf_distil_whisper.inference.generation import (
    TokenSequence,
    generate_tokens,
)

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


@dataclass
class ExportArguments:
    """Flags of `export`.

    Args:
        model_name_or_path (`str`): student or teacher, Hub name or folder; also the first word that is no flag.
        format (`str`): `"ctranslate2"` (faster-whisper), `"ggml"` (whisper.cpp) or `"onnx"` (onnxruntime,
            transformers.js).
        quantization (`list[str]`, *optional*): types of the weights; of several, each goes to a folder of its name in
            `output_dir`. By default float32, for ggml float16.
        output_dir (`str`): new or empty folder.
        audio (`list[str]`, *optional*): recordings of up to a window (30 s), on which the export is compared.
        dataset ([`DataSource`], *optional*): the same, with their text, of which error rates are printed.
        batch_size (`int`, *optional*, defaults to 16): recordings in one pass.
        language (`str`, *optional*): of the recordings, for multilingual models; detected where left out.
        dry_run (`bool`, *optional*, defaults to `False`): check the inputs and print the plan only.
    """

    model_name_or_path: str | None = setting(None, "Model: Hub name or folder; also the first word.")
    format: Literal["ctranslate2", "ggml", "onnx"] | None = setting(None, "Of the runtime.")
    quantization: list[str] = field(
        default_factory=list, metadata={"help": "Types of the weights, for example `float32 int8`."}
    )
    output_dir: str | None = setting(None, "New or empty folder.")
    audio: list[str] = field(
        default_factory=list, metadata={"help": "Recordings of up to 30 s, on which the export is compared."}
    )
    dataset: DataSource | str | None = source_setting("The same with their text, of which error rates are printed.")
    batch_size: int = setting(16, "Recordings in one pass.")
    language: str | None = setting(None, "Of the recordings, for multilingual models; detected where left out.")
    dry_run: bool = setting(False, "Check the inputs and print the plan only.")

    def __post_init__(self) -> None:
        self.dataset = as_source(self.dataset, "dataset", "test") if self.dataset else None
        if self.batch_size < 1:
            raise InputError(f"--batch_size: expected a whole number above 0, got {self.batch_size}")
        if self.format is None:
            return
        known = QUANTIZATIONS[self.format]
        self.quantization = list(dict.fromkeys(self.quantization or known[:1]))
        for name in self.quantization:
            if name not in known:
                raise InputError(
                    f"--quantization: expected some of {', '.join(known)} for --format {self.format}, got {name!r}"
                )

    def folders(self) -> dict[str, str]:
        """Precision → where it goes."""
        folder = self.output_dir or ""
        if len(self.quantization) == 1:
            return {self.quantization[0]: folder}
        return {name: str(Path(folder, name)) for name in self.quantization}


def plan_export(args: ExportArguments) -> Plan:
    """Checks model, format and recordings.

    Args:
        args (`ExportArguments`): what to export to what.
    """
    plan = Plan("export")
    plan.single_process()
    model = plan.listener(args.model_name_or_path, args.language)
    if plan.require(args.format, "format", f"one of {', '.join(QUANTIZATIONS)}"):
        extra, packages = EXTRAS[str(args.format)]
        missing = [package for package in packages if find_spec(package) is None]
        if missing:
            plan.problems.append(
                f"--format {args.format} needs {missing[0]}, which is not installed: pip install "
                f"'hf-distil-whisper[{extra}]'"
            )
        if args.format == "ggml" and model is not None:
            try:
                check_ggml(model)
            except ValueError as error:
                plan.problems.append(f"--format ggml: {error}")
    plan.output(args.output_dir)
    for file in args.audio:
        if not Path(file).is_file():
            plan.problems.append(f"--audio: {file} is not there")
    if isinstance(args.dataset, DataSource):
        rows = plan.source(args.dataset, "dataset", ("audio",))
        if rows is not None:
            plan.figures["audio"] = describe_rows(rows)
    elif not args.audio:
        plan.problems.append(
            "--audio is missing: recordings of up to 30 s, or a --dataset, to compare the export with the model on"
        )
    for precision, folder in args.folders().items():
        plan.steps.append(f"export {args.model_name_or_path} to {args.format} in {precision}: {folder}")
    plan.steps.append("transcribe the recordings with transformers and with each export, and compare")
    return plan


def run(argv: Sequence[str]) -> None:
    """Entry point of the command.

    Args:
        argv (`Sequence[str]`): the model or a recipe, then flags.
    """
    if argv and not argv[0].startswith("-") and not argv[0].endswith((".yaml", ".yml")):
        argv = ["--model_name_or_path", *argv]
    (args,) = parse_arguments(ExportArguments, argv=argv, command="hf-distil-whisper export")
    plan = plan_export(args)
    if not plan.report(dry_run=args.dry_run):
        return
    rows: list[dict[str, Any]] = [{"id": file, "audio": file, "text": None} for file in args.audio]
    for row in without_decoder(plan.datasets["dataset"]) if "dataset" in plan.datasets else []:
        rows.append({"id": str(len(rows)), "text": None, **row})
    model = load_model(args.model_name_or_path).to(best_device())
    checks = export_and_check(
        model, load_processor(args.model_name_or_path), args.folders(), rows, runtime=str(args.format),
        batch_size=args.batch_size, language=args.language,
    )  # fmt: skip
    sys.stdout.write(f"{export_table(checks)}\n\n")
    sys.stdout.writelines(f"{line}\n" for line in differing_texts(checks))
    heard = checks[0].result
    sys.stdout.write(
        f"{len(heard.rows)} recordings of {heard.audio_seconds:.0f} s in all; speed: first {TIMED_ROWS} at most, "
        f"medians of {ROUNDS}, {machine()}\n"
    )
    if heard.row_errors:
        sys.stdout.write(heard.row_errors.summary() + "\n")
