"""`evaluate`: word error rates and real-time factors of a model, or of a student beside its teacher, on test sets."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from hf_distil_whisper.checkpoints import check_compatible, load_model, load_processor
from hf_distil_whisper.cli.arguments import DataSource, as_sources, parse_arguments, setting, source_setting
from hf_distil_whisper.cli.plans import Plan, best_device, describe_rows, generation_bytes, gigabytes, torch_dtype
from hf_distil_whisper.evaluation.long_form import evaluate_long_form
from hf_distil_whisper.evaluation.short_form import EvaluationResult, evaluate_model
from hf_distil_whisper.metrics import get_normalizer


@dataclass
class EvaluateArguments:
    """Flags of `evaluate`.

    Args:
        model_name_or_path (`str`): model to score, Hub name or folder.
        teacher_model_name_or_path (`str`, *optional*): scored on the same sets, in a column beside it.
        eval_datasets (`dict[str, DataSource]`, *optional*): sets of recordings up to 30 s, by name.
        long_form_datasets (`dict[str, DataSource]`, *optional*): sets of longer recordings, by name.
        long_form_method (`str`, *optional*, defaults to `"chunked"`): section 5, or `"sequential"`.
        output_dir (`str`, *optional*): folder for `results.json` and a file of rows for every set and model.
        language (`str`, *optional*): of the speech, for multilingual models.
        normalizer (`str`, *optional*): a language, or `"basic"`, in place of the language's own.
        batch_size (`int`, *optional*, defaults to 16): recordings or chunks in one pass.
        dtype (`str`, *optional*, defaults to `"float32"`): type of the weights.
        dry_run (`bool`, *optional*, defaults to `False`): check the inputs and print the plan only.
    """

    model_name_or_path: str | None = setting(None, "Model to score: Hub name or folder.")
    teacher_model_name_or_path: str | None = setting(None, "Scored beside it on the same sets.")
    eval_datasets: dict[str, DataSource] | str | None = source_setting("Recordings up to 30 s: {name: path}.")
    long_form_datasets: dict[str, DataSource] | str | None = source_setting("Longer recordings: {name: path}.")
    long_form_method: Literal["chunked", "sequential"] = setting("chunked", "How longer recordings are transcribed.")
    output_dir: str | None = setting(None, "Folder for results.json and the rows.")
    language: str | None = setting(None, "Of the speech, for multilingual models; detected where left out.")
    normalizer: str | None = setting(None, 'A language or "basic", in place of the language\'s own normaliser.')
    batch_size: int = setting(16, "Recordings or chunks in one pass.")
    dtype: Literal["float32", "bfloat16", "float16"] = setting("float32", "Type of the weights.")
    dry_run: bool = setting(False, "Check the inputs and print the plan only.")

    def __post_init__(self) -> None:
        self.eval_datasets = as_sources(self.eval_datasets, "eval_datasets")
        self.long_form_datasets = as_sources(self.long_form_datasets, "long_form_datasets")

    def models(self) -> dict[str, str]:
        """Names or paths to score, by column of the table."""
        teacher = {"teacher": self.teacher_model_name_or_path} if self.teacher_model_name_or_path else {}
        return {"model": self.model_name_or_path or "", **teacher}


def plan_evaluation(args: EvaluateArguments) -> Plan:
    """Checks models and test sets.

    Args:
        args (`EvaluateArguments`): what to score on what.
    """
    plan = Plan("evaluate")
    plan.single_process()
    model = plan.model(args.model_name_or_path, "model_name_or_path")
    if model is not None:
        plan.processor(args.model_name_or_path or "", "model_name_or_path")
    if args.teacher_model_name_or_path is not None:
        plan.model(args.teacher_model_name_or_path, "teacher_model_name_or_path")
        plan.processor(args.teacher_model_name_or_path, "teacher_model_name_or_path")
    short = as_sources(args.eval_datasets, "eval_datasets")
    long = as_sources(args.long_form_datasets, "long_form_datasets")
    if not short and not long:
        plan.problems.append("--eval_datasets and --long_form_datasets are missing: give at least one set to score on")
    for flag, sources in (("eval_datasets", short), ("long_form_datasets", long)):
        for name, source in sources.items():
            rows = plan.source(source, f"{flag}.{name}", ("text",))
            if rows is not None:
                plan.figures[f"audio of {name}"] = describe_rows(rows)
    for column, name in args.models().items():
        plan.steps.append(f"score {column} {name} on {', '.join([*short, *long]) or 'no set'}")
    if args.output_dir is not None:
        plan.output(args.output_dir)
        plan.steps.append(f"write the results to {args.output_dir}")
    if model is not None:
        expected = generation_bytes(model, torch_dtype(args.dtype), args.batch_size)
        plan.figures["memory expected"] = gigabytes(expected)
    return plan


def run_evaluation(args: EvaluateArguments, datasets: Mapping[str, Dataset]) -> dict[str, dict[str, EvaluationResult]]:
    """Scores the models of a plan, one after another.

    Args:
        args (`EvaluateArguments`): as checked by [`plan_evaluation`].
        datasets (`Mapping[str, Dataset]`): `plan.datasets`.

    Returns:
        `dict[str, dict[str, EvaluationResult]]`: by set, then by `"model"` and `"teacher"`.
    """
    results: dict[str, dict[str, EvaluationResult]] = {}
    for column, name in args.models().items():
        model = load_model(name, dtype=torch_dtype(args.dtype)).to(best_device())
        processor = load_processor(name)
        check_compatible(model, None, processor)
        for flag, rows in datasets.items():
            kind, dataset = flag.split(".", 1)
            result = _evaluate_set(args, model, processor, rows, long_form=kind == "long_form_datasets")
            results.setdefault(dataset, {})[column] = result
    return results


def _evaluate_set(
    args: EvaluateArguments,
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    rows: Dataset,
    *,
    long_form: bool,
) -> EvaluationResult:
    options: dict[str, Any] = {
        "language": args.language,
        "normalizer": get_normalizer(args.normalizer) if args.normalizer else None,
        "batch_size": args.batch_size,
    }
    if long_form:
        return evaluate_long_form(model, rows, processor, method=args.long_form_method, **options)
    return evaluate_model(model, rows, processor, **options)


def results_table(results: Mapping[str, Mapping[str, EvaluationResult]]) -> str:
    """WER in % and real-time factor by set and model, as text for a terminal.

    Args:
        results (`Mapping`): from [`run_evaluation`].
    """
    columns = list(next(iter(results.values())))
    lines = [f"{'set':24}" + "".join(f"{f'{column} WER %':>15}{f'{column} RTF':>14}" for column in columns)]
    for dataset, by_model in results.items():
        cells = "".join(f"{100 * by_model[column].wer:15.2f}{by_model[column].rtf:14.4f}" for column in columns)
        lines.append(f"{dataset:24}{cells}")
    return "\n".join(lines)


def save_results(results: Mapping[str, Mapping[str, EvaluationResult]], folder: str) -> None:
    """Writes `results.json` (counts and rates) and `<set>.<model>.jsonl` (rows) into a folder.

    Args:
        results (`Mapping`): from [`run_evaluation`].
        folder (`str`): made where it is missing.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    summary: dict[str, dict[str, dict[str, float]]] = {}
    for dataset, by_model in results.items():
        for column, result in by_model.items():
            summary.setdefault(dataset, {})[column] = {
                "wer": result.wer,
                **asdict(result.errors),
                "rtf": result.rtf,
                "audio_seconds": result.audio_seconds,
                "empty_references": result.empty_references,
                "unreadable_rows": len(result.row_errors),
            }
            lines = [json.dumps(row, ensure_ascii=False) for row in result.rows]
            (target / f"{dataset}.{column}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (target / "results.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


def run(argv: Sequence[str]) -> None:
    """Entry point of the command.

    Args:
        argv (`Sequence[str]`): a recipe, then flags.
    """
    (args,) = parse_arguments(EvaluateArguments, argv=argv, command="hf-distil-whisper evaluate")
    plan = plan_evaluation(args)
    if not plan.settle(dry_run=args.dry_run):
        return
    results = run_evaluation(args, plan.datasets)
    sys.stdout.write(results_table(results) + "\n")
    if args.output_dir is not None:
        save_results(results, args.output_dir)
