"""`export`: writes a model for another runtime, and shows on recordings that it writes the same text there."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from hf_distil_whisper.checkpoints import load_model, load_processor
from hf_distil_whisper.cli.arguments import DataSource, as_source, parse_arguments, setting, source_setting
from hf_distil_whisper.cli.benchmark import machine
from hf_distil_whisper.cli.plans import Plan, best_device, describe_rows
from hf_distil_whisper.cli.recipes import InputError
from hf_distil_whisper.data.sources import without_decoder
from hf_distil_whisper.evaluation.exports import (
    EXTRAS,
    QUANTIZATIONS,
    ROUNDS,
    TIMED_ROWS,
    differing_texts,
    export_and_check,
    export_table,
)
from hf_distil_whisper.inference.export_ggml import check_ggml


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
    if not plan.settle(dry_run=args.dry_run):
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
