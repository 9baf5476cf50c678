"""`export`: writes a model for another runtime and compares its texts with those of transformers."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

from datasets import Dataset
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from hf_distil_whisper.checkpoints import load_model, load_processor
from hf_distil_whisper.cli.config import DataSource, InputError, as_source, parse_arguments, setting, source_setting
from hf_distil_whisper.cli.inputs import Plan, best_device, describe_rows
from hf_distil_whisper.data.sources import RowErrors, without_decoder
from hf_distil_whisper.export import Generator, check_export, ctranslate2, ggml, greedy_texts, onnx
from hf_distil_whisper.inference.ctranslate2 import Ctranslate2Generator
from hf_distil_whisper.inference.prompt import resolve_language


class Format(NamedTuple):
    """An export format: what writes it and what runs it, its types of weights, and what must be installed."""

    export: Callable[..., Path]
    load: Callable[[WhisperForConditionalGeneration, WhisperProcessor, str, str | None], Generator]
    quantizations: tuple[str, ...]  # the default first
    extra: str  # of this package, with `packages`
    packages: tuple[str, ...]


FORMATS = {
    "ctranslate2": Format(
        ctranslate2.export_ctranslate2,
        lambda model, processor, folder, language: Ctranslate2Generator(
            model, processor, folder=folder, language=language
        ),
        ctranslate2.QUANTIZATIONS,
        "ct2",
        ("ctranslate2",),
    ),
    "ggml": Format(
        ggml.export_ggml,
        lambda model, processor, folder, language: ggml.GgmlGenerator(model, folder, language=language),
        ggml.QUANTIZATIONS,
        "ggml",
        ("pywhispercpp",),
    ),
    "onnx": Format(
        onnx.export_onnx,
        lambda model, processor, folder, language: onnx.OnnxGenerator(model, folder, language=language),
        tuple(onnx.SUFFIXES),
        "onnx",
        ("onnx", "onnxruntime", "onnxscript"),
    ),
}

SHOWN_DIFFERENCES = 3
"""Differing texts that are printed for each quantization."""


@dataclass
class ExportArguments:
    """Flags of `export`; the model may also be given as the first word."""

    model_name_or_path: str | None = setting(None, "Student or teacher: Hub name or folder; also the first word.")
    format: Literal["ctranslate2", "ggml", "onnx"] | None = setting(
        None, "Runtime: CTranslate2 and faster-whisper, whisper.cpp (ggml), or onnxruntime and transformers.js (onnx)."
    )
    quantization: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Types of the weights, for example `float32 int8` (default: float32, for ggml float16). Several "
            "of them go to folders of these names in --output_dir."
        },
    )
    output_dir: str | None = setting(None, "New or empty folder.")
    audio: list[str] = field(
        default_factory=list, metadata={"help": "Recordings of up to 30 s, on which the export is compared."}
    )
    dataset: DataSource | str | None = source_setting("More recordings to compare on; no text needed.")
    batch_size: int = setting(16, "Recordings per pass.")
    language: str | None = setting(None, "Language of the recordings, for multilingual models (default: detected).")
    dry_run: bool = setting(False, "Check the inputs and print the plan only.")

    def __post_init__(self) -> None:
        self.dataset = as_source(self.dataset, "dataset", "test") if self.dataset else None
        if self.batch_size < 1:
            raise InputError(f"--batch_size: expected a whole number above 0, got {self.batch_size}")
        if self.format is None:
            return
        known = FORMATS[self.format].quantizations
        self.quantization = list(dict.fromkeys(self.quantization or known[:1]))
        for name in self.quantization:
            if name not in known:
                raise InputError(
                    f"--quantization: expected some of {', '.join(known)} for --format {self.format}, got {name!r}"
                )

    def folders(self) -> dict[str, str]:
        """Quantization → folder."""
        folder = self.output_dir or ""
        if len(self.quantization) == 1:
            return {self.quantization[0]: folder}
        return {name: str(Path(folder, name)) for name in self.quantization}


@dataclass
class ExportPlan(Plan):
    """A [`Plan`] with the recordings of `--dataset`, None without it."""

    rows: Dataset | None = None


def plan_export(args: ExportArguments) -> ExportPlan:
    """Checks model, format and recordings."""
    plan = ExportPlan("export")
    plan.single_process()
    model = plan.model_and_processor(args.model_name_or_path, "model_name_or_path")
    if model is not None:
        with plan.collect("language"):
            resolve_language(model, args.language)
    if plan.require(args.format, "format", f"one of {', '.join(FORMATS)}"):
        form = FORMATS[str(args.format)]
        missing = [package for package in form.packages if find_spec(package) is None]
        if missing:
            plan.problems.append(
                f"--format {args.format} needs {missing[0]}, which is not installed: pip install "
                f"'hf-distil-whisper[{form.extra}]'"
            )
        if args.format == "ggml" and model is not None:
            with plan.collect("format ggml"):
                ggml.check_whisper_cpp(model)
    plan.output(args.output_dir)
    for file in args.audio:
        if not Path(file).is_file():
            plan.problems.append(f"--audio: {file} does not exist")
    if isinstance(args.dataset, DataSource):
        plan.rows = plan.source(args.dataset, "dataset", ("audio",))
        if plan.rows is not None:
            plan.figures["audio"] = describe_rows(plan.rows)
    elif not args.audio:
        plan.problems.append(
            "--audio is missing: recordings of up to 30 s, or a --dataset, to compare the export with the model on"
        )
    for quantization, folder in args.folders().items():
        plan.steps.append(f"export {args.model_name_or_path} to {args.format} in {quantization}: {folder}")
    plan.steps.append("transcribe the recordings with transformers and with each export, and compare the texts")
    return plan


def run(argv: Sequence[str]) -> None:
    """Entry point of the command: the model or a recipe, then flags."""
    if argv and not argv[0].startswith("-") and not argv[0].endswith((".yaml", ".yml")):
        argv = ["--model_name_or_path", *argv]
    (args,) = parse_arguments(ExportArguments, argv=argv, command="hf-distil-whisper export")
    plan = plan_export(args)
    if not plan.report(dry_run=args.dry_run):
        return
    rows: list[dict[str, Any]] = [{"id": file, "audio": file} for file in args.audio]
    for row in without_decoder(plan.rows) if plan.rows is not None else []:
        rows.append({"id": str(len(rows)), **row})
    model = load_model(args.model_name_or_path).to(best_device())
    processor, form = load_processor(args.model_name_or_path), FORMATS[str(args.format)]
    for quantization, folder in args.folders().items():
        form.export(model, processor, folder, quantization=quantization)
    options: dict[str, Any] = {"language": args.language, "batch_size": args.batch_size}
    errors = RowErrors()
    expected = greedy_texts(model, processor, rows, errors=errors, **options)
    for quantization, folder in args.folders().items():
        generate = form.load(model, processor, folder, args.language)
        check = check_export(model, processor, generate, rows, expected=expected, **options)
        sys.stdout.write(f"{args.format} {quantization}: {check}\n")
        for name, text, reference in check.differing[:SHOWN_DIFFERENCES]:
            sys.stdout.write(f"  {name}: {text!r} instead of {reference!r}\n")
    if errors:
        sys.stdout.write(errors.summary() + "\n")
