"""`evaluate`: error rates and real-time factors of models on test sets, above all of a student beside its teacher."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from datasets import Dataset

from hf_distil_whisper.cli.config import (
    DataSource,
    InputError,
    as_sources,
    is_main_process,
    parse_arguments,
    parse_yaml,
    setting,
    source_setting,
)
from hf_distil_whisper.cli.inputs import (
    DTYPES,
    Plan,
    as_fallback,
    describe_rows,
    fallback_setting,
    generation_bytes,
    gigabytes,
    load_for_inference,
)
from hf_distil_whisper.evaluation.evaluate import EvaluationResult, evaluate_model, evaluate_shared
from hf_distil_whisper.evaluation.long_form import evaluate_long_form
from hf_distil_whisper.evaluation.results import (
    IN_DISTRIBUTION,
    LONG_FORM,
    LONG_FORM_OUTSIDE,
    LONG_FORMS,
    OUT_OF_DISTRIBUTION,
    TEACHER,
    results_table,
    save_results,
)
from hf_distil_whisper.inference.prompt import is_multilingual, resolve_language
from hf_distil_whisper.metrics import get_normalizer

GROUPS = {
    "eval_datasets": IN_DISTRIBUTION,
    "ood_datasets": OUT_OF_DISTRIBUTION,
    "long_form_datasets": LONG_FORM,
    "ood_long_form_datasets": LONG_FORM_OUTSIDE,
}
"""Flag → heading of its sets in tables."""


@dataclass
class EvaluateArguments:
    """Flags of `evaluate`."""

    model_name_or_path: str | None = setting(None, "Model to score: Hub name or folder of a Whisper.")
    teacher_model_name_or_path: str | None = setting(
        None, "Scored on the same sets; the other models are tested against it."
    )
    other_models: dict[str, str] | str | None = setting(
        None, "More models, by their names in the table: {name: path}."
    )
    eval_datasets: dict[str, DataSource] | str | None = source_setting(
        "Sets of recordings up to 30 s, of the kind that the model was trained on: {name: path}."
    )
    ood_datasets: dict[str, DataSource] | str | None = source_setting(
        "Sets of recordings up to 30 s, out of distribution: {name: path}."
    )
    long_form_datasets: dict[str, DataSource] | str | None = source_setting("Sets of longer recordings: {name: path}.")
    ood_long_form_datasets: dict[str, DataSource] | str | None = source_setting(
        "Sets of longer recordings, out of distribution: {name: path}."
    )
    reference: str | None = setting(
        None, "One of --eval_datasets: prints effective robustness on --ood_datasets relative to it (Table 6)."
    )
    long_form_method: Literal["chunked", "sequential"] = setting(
        "chunked", "Algorithm for recordings over 30 s: chunked (section 5) or sequential."
    )
    temperature_fallback: dict[str, Any] | str | None = fallback_setting()
    condition_on_prev_tokens: bool = setting(False, "Sequential only: prompt each window with the text before it.")
    output_dir: str | None = setting(
        None, "Folder for results.json, tables, and for each set and model its rows and the worst of them."
    )
    language: str | None = setting(None, "Language of the speech, for multilingual models, of rows that name none.")
    normalizer: str | None = setting(
        None, 'Language of the text normaliser, or "basic" (default: that of --language).'
    )
    unit: Literal["word", "character"] | None = setting(
        None, "What errors are counted in (default: that of the language)."
    )
    batch_size: int = setting(16, "Recordings or chunks in one pass.")
    dtype: Literal["float32", "bfloat16", "float16"] = setting("float32", "Type of the weights.")
    dry_run: bool = setting(False, "Check the inputs and print the plan only.")

    def __post_init__(self) -> None:
        self.temperature_fallback = as_fallback(self.temperature_fallback)  # type: ignore[assignment]
        self.other_models = _as_models(self.other_models)
        for flag in GROUPS:
            setattr(self, flag, as_sources(getattr(self, flag), flag))

    def models(self) -> dict[str, str]:
        """Names or paths to score, by the name in the table."""
        teacher = {TEACHER: self.teacher_model_name_or_path} if self.teacher_model_name_or_path else {}
        return {"model": self.model_name_or_path or "", **teacher, **_as_models(self.other_models)}


def _as_models(value: Any) -> dict[str, str]:
    models = parse_yaml(value) if isinstance(value, str) else value or {}
    if not isinstance(models, dict) or not all(isinstance(part, str) for pair in models.items() for part in pair):
        raise InputError(
            f"other_models: expected a mapping of names to models, got {value!r}. Write {{name: path}}, also where a "
            "name has a dot."
        )
    return models


class EvaluationSet(NamedTuple):
    """One set to score on: its name, its group (a value of `GROUPS`), and recordings with `text`."""

    name: str
    group: str
    rows: Dataset


@dataclass
class EvaluationPlan(Plan):
    """A [`Plan`] with the sets to score on, in the order of the flags."""

    sets: list[EvaluationSet] = field(default_factory=list)


def plan_evaluation(args: EvaluateArguments) -> EvaluationPlan:
    """Checks models and test sets."""
    plan = EvaluationPlan("evaluate")
    sources = [(flag, name, source) for flag in GROUPS for name, source in getattr(args, flag).items()]
    names = [name for _, name, _ in sources]
    _check_names(plan, names, [*_as_models(args.other_models)])
    if args.reference is not None:
        if args.reference not in (args.eval_datasets or {}):
            known = ", ".join(args.eval_datasets or {}) or "none"
            plan.problems.append(f"--reference: {args.reference!r} is not among --eval_datasets, which are {known}")
        if not args.ood_datasets or args.teacher_model_name_or_path is None:
            plan.problems.append(
                "--reference compares with a teacher out of distribution: give it and --ood_datasets too"
            )
    sequential = {name: getattr(args, name) for name in ("temperature_fallback", "condition_on_prev_tokens")}
    plan.long_form_method(args.long_form_method, "long_form_method", chunked={}, sequential=sequential)
    if not sources:
        flags = ", ".join(f"--{flag}" for flag in GROUPS)
        plan.problems.append(f"{flags} are missing: give at least one set to score on")
    for flag, name, source in sources:
        rows = plan.source(source, f"{flag}.{name}", ("text",))
        if rows is not None:
            plan.sets.append(EvaluationSet(name, GROUPS[flag], rows))
            plan.figures[f"audio of {name}"] = describe_rows(rows)
    _check_models(plan, args)
    for column, name in args.models().items():
        plan.steps.append(f"score {column} {name} on {', '.join(names) or 'no set'}")
    if args.output_dir is not None:
        plan.output(args.output_dir)
        plan.steps.append(f"write the results to {args.output_dir}")
    return plan


def _check_names(plan: Plan, sets: Sequence[str], models: Sequence[str]) -> None:
    """Each name is one row of the table and part of a file's name."""
    twice = [name for name in sets if sets.count(name) > 1]
    if twice:
        plan.problems.append(
            f"two sets are called {twice[0]!r}: one would replace the other in the results. Rename one"
        )
    for name in {"model", TEACHER} & set(models):
        plan.problems.append(f"--other_models.{name}: {name!r} is the name of another model already. Rename it")
    for name in (*sets, *models):
        if Path(name).name != name:
            plan.problems.append(f"{name!r}: is part of a file's name, expected one without '/'. Rename it")


def _check_models(plan: EvaluationPlan, args: EvaluateArguments) -> None:
    """Checks that all models know the language, and that there is one to normalise by."""
    flags = {"model": "model_name_or_path", TEACHER: "teacher_model_name_or_path"}
    models = {}
    for column, name in args.models().items():
        model = plan.model_and_processor(name, flags.get(column, f"other_models.{column}"))
        if model is not None:
            models[column] = model
    for model in models.values():
        with plan.collect("language"):
            resolve_language(model, args.language)
    multilingual = [column for column, model in models.items() if is_multilingual(model)]
    unnamed = [one.name for one in plan.sets if "language" not in one.rows.column_names]
    if multilingual and unnamed and args.language is None and args.normalizer is None:
        plan.problems.append(
            f"--language is missing: {', '.join(multilingual)} would detect it, and error rates depend on it. Give "
            f"the language of the speech, a language_column of {', '.join(unnamed)}, or a --normalizer"
        )
    if models:
        dtype = DTYPES[args.dtype]
        memory = max(generation_bytes(model, dtype, args.batch_size) for model in models.values())
        plan.figures["memory expected"] = gigabytes(memory)


def run_evaluation(args: EvaluateArguments, sets: Sequence[EvaluationSet]) -> dict[str, dict[str, EvaluationResult]]:
    """Scores the models, one after another. Several processes share the rows of each set.

    Args:
        args (`EvaluateArguments`): as checked by [`plan_evaluation`].
        sets (`Sequence[EvaluationSet]`): those of the plan.

    Returns:
        `dict[str, dict[str, EvaluationResult]]`: by set, then by `"model"`, `"teacher"` and the names of other models;
        the same in every process.
    """
    options: dict[str, Any] = {
        "language": args.language,
        "normalizer": get_normalizer(args.normalizer) if args.normalizer else None,
        "unit": args.unit,
        "batch_size": args.batch_size,
    }
    of_long_form: dict[str, Any] = {
        "method": args.long_form_method,
        "temperature_fallback": as_fallback(args.temperature_fallback),
        "condition_on_prev_tokens": args.condition_on_prev_tokens,
    }
    results: dict[str, dict[str, EvaluationResult]] = {one.name: {} for one in sets}
    for column, name in args.models().items():
        model, processor = load_for_inference(name, args.dtype)
        short = partial(evaluate_model, model, processor=processor, **options)
        long = partial(evaluate_long_form, model, processor=processor, **options, **of_long_form)
        for one in sets:
            results[one.name][column] = evaluate_shared(one.rows, long if one.group in LONG_FORMS else short)
    return results


def run(argv: Sequence[str]) -> None:
    """Entry point of the command: a recipe, then flags."""
    (args,) = parse_arguments(EvaluateArguments, argv=argv, command="hf-distil-whisper evaluate")
    plan = plan_evaluation(args)
    if not plan.report(dry_run=args.dry_run):
        return
    results = run_evaluation(args, plan.sets)
    if is_main_process():
        groups = {one.name: one.group for one in plan.sets}
        if args.output_dir is not None:
            save_results(results, args.output_dir, groups, args.reference)
        sys.stdout.write(results_table(results, groups, args.reference) + "\n")
