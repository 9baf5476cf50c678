"""`evaluate`: error rates and real-time factors of models on test sets, above all of a student beside its teacher."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from accelerate import PartialState
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
    Plan,
    as_fallback,
    check_method,
    describe_rows,
    fallback_setting,
    generation_bytes,
    gigabytes,
    load_listener,
    torch_dtype,
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
from hf_distil_whisper.metrics import get_normalizer

GROUPS = {
    "eval_datasets": IN_DISTRIBUTION,
    "ood_datasets": OUT_OF_DISTRIBUTION,
    "long_form_datasets": LONG_FORM,
    "ood_long_form_datasets": LONG_FORM_OUTSIDE,
}
"""Flag that names sets → what they are called in tables."""


@dataclass
class EvaluateArguments:
    """Flags of `evaluate`.

    Args:
        model_name_or_path (`str`): model to score, Hub name or folder: a Whisper, or a CTC model such as wav2vec2.
        teacher_model_name_or_path (`str`, *optional*): scored on the same sets; the others are tested against it.
        other_models (`dict[str, str]`, *optional*): more models to score, Hub name or folder by the name in the table.
        eval_datasets (`dict[str, DataSource]`, *optional*): sets of recordings up to 30 s, by name; of the kind that
            the model was trained on ("in distribution").
        ood_datasets (`dict[str, DataSource]`, *optional*): sets of recordings up to 30 s of other kinds.
        long_form_datasets (`dict[str, DataSource]`, *optional*): sets of longer recordings, by name.
        ood_long_form_datasets (`dict[str, DataSource]`, *optional*): sets of longer recordings of other kinds.
        reference (`str`, *optional*): one of `eval_datasets`; prints how models fare on `ood_datasets` in relation to
            it, beside the teacher (Table 6).
        long_form_method (`str`, *optional*, defaults to `"chunked"`): section 5, or `"sequential"`.
        temperature_fallback (`bool` or `dict`, *optional*): sequential only: repeat windows that come out repetitive
            or unlikely, skip those without speech; true, or a mapping of [`TemperatureFallback`]'s fields.
        condition_on_prev_tokens (`bool`, *optional*, defaults to `False`): sequential only: prompt each window with
            the text before it.
        output_dir (`str`, *optional*): folder for `results.json`, and for every set and model the rows and the worst
            of them.
        language (`str`, *optional*): of the speech, for multilingual models.
        normalizer (`str`, *optional*): a language, or `"basic"`, in place of the language's own.
        batch_size (`int`, *optional*, defaults to 16): recordings or chunks in one pass.
        dtype (`str`, *optional*, defaults to `"float32"`): type of the weights.
        dry_run (`bool`, *optional*, defaults to `False`): check the inputs and print the plan only.
    """

    model_name_or_path: str | None = setting(None, "Model to score: Hub name or folder.")
    teacher_model_name_or_path: str | None = setting(None, "Scored on the same sets; others are tested against it.")
    other_models: dict[str, str] | str | None = setting(None, "More models, Whisper or CTC: {name: path}.")
    eval_datasets: dict[str, DataSource] | str | None = source_setting("Recordings up to 30 s: {name: path}.")
    ood_datasets: dict[str, DataSource] | str | None = source_setting("The same, out of distribution.")
    long_form_datasets: dict[str, DataSource] | str | None = source_setting("Longer recordings: {name: path}.")
    ood_long_form_datasets: dict[str, DataSource] | str | None = source_setting("The same, out of distribution.")
    reference: str | None = setting(None, "Set in distribution that effective robustness refers to.")
    long_form_method: Literal["chunked", "sequential"] = setting("chunked", "How longer recordings are transcribed.")
    temperature_fallback: dict[str, Any] | str | None = fallback_setting()
    condition_on_prev_tokens: bool = setting(False, "Sequential only: prompt each window with the text before it.")
    output_dir: str | None = setting(None, "Folder for results.json and the rows.")
    language: str | None = setting(None, "Of the speech, for multilingual models; detected where left out.")
    normalizer: str | None = setting(None, 'A language or "basic", in place of the language\'s own normaliser.')
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

    def sources(self) -> dict[str, dict[str, DataSource]]:
        """The sets by name, for each flag that names some."""
        return {flag: as_sources(getattr(self, flag), flag) for flag in GROUPS}

    def groups(self) -> dict[str, str]:
        """What each set is: a value of `GROUPS`."""
        return {name: GROUPS[flag] for flag, sources in self.sources().items() for name in sources}


def _as_models(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    models = parse_yaml(value) if isinstance(value, str) else value
    if not isinstance(models, dict) or not all(isinstance(part, str) for pair in models.items() for part in pair):
        raise InputError(
            f"other_models: expected a mapping of names to models, got {value!r}. Write {{name: path}}, also where a "
            "name has a dot."
        )
    return models


def plan_evaluation(args: EvaluateArguments) -> Plan:
    """Checks models and test sets.

    Args:
        args (`EvaluateArguments`): what to score on what.
    """
    plan = Plan("evaluate")
    sources = args.sources()
    sets = [name for names in sources.values() for name in names]
    _check_names(plan, sets, [*_as_models(args.other_models)])
    _check_models(plan, args)
    _check_reference(plan, args)
    sequential = {name: getattr(args, name) for name in ("temperature_fallback", "condition_on_prev_tokens")}
    check_method(plan, args.long_form_method, "long_form_method", {}, sequential)
    if not sets:
        flags = ", ".join(f"--{flag}" for flag in GROUPS)
        plan.problems.append(f"{flags} are missing: give at least one set to score on")
    for flag, named in sources.items():
        for name, source in named.items():
            rows = plan.source(source, f"{flag}.{name}", ("text",))
            if rows is not None:
                plan.figures[f"audio of {name}"] = describe_rows(rows)
    for column, name in args.models().items():
        plan.steps.append(f"score {column} {name} on {', '.join(sets) or 'no set'}")
    if args.output_dir is not None:
        plan.output(args.output_dir)
        plan.steps.append(f"write the results to {args.output_dir}")
    return plan


def _check_reference(plan: Plan, args: EvaluateArguments) -> None:
    if args.reference is None:
        return
    sets = args.sources()
    if args.reference not in sets["eval_datasets"]:
        names = ", ".join(sets["eval_datasets"]) or "none"
        plan.problems.append(f"--reference: {args.reference!r} is not among --eval_datasets, which are {names}")
    if not sets["ood_datasets"] or args.teacher_model_name_or_path is None:
        plan.problems.append("--reference compares with a teacher out of distribution: give it and --ood_datasets too")


def _check_names(plan: Plan, sets: Sequence[str], models: Sequence[str]) -> None:
    """Each name is one row of the table and part of a file's name."""
    for name in sets:
        if sets.count(name) > 1:
            plan.problems.append(
                f"two sets are called {name!r}: one would replace the other in the results. Rename one"
            )
            break
    for name in {"model", TEACHER} & set(models):
        plan.problems.append(f"--other_models.{name}: {name!r} is the name of another model already. Rename it")
    for name in (*sets, *models):
        if Path(name).name != name:
            plan.problems.append(f"{name!r}: is part of a file's name, expected one without '/'. Rename it")


def _check_models(plan: Plan, args: EvaluateArguments) -> None:
    flags = {"model": "model_name_or_path", TEACHER: "teacher_model_name_or_path"}
    whispers, memory = {}, 0.0
    for column, name in args.models().items():
        flag = flags.get(column, f"other_models.{column}")
        model = plan.model(name, flag)
        if model is None:
            continue
        plan.processor(name, flag)
        memory = max(memory, generation_bytes(model, torch_dtype(args.dtype), args.batch_size))
        whispers[column] = model
    plan.scoring(whispers, args.language, args.normalizer)
    if memory:
        plan.figures["memory expected"] = gigabytes(memory)


def run_evaluation(args: EvaluateArguments, datasets: Mapping[str, Dataset]) -> dict[str, dict[str, EvaluationResult]]:
    """Scores the models of a plan, one after another. Several processes share the rows of each set.

    Args:
        args (`EvaluateArguments`): as checked by [`plan_evaluation`].
        datasets (`Mapping[str, Dataset]`): `plan.datasets`.

    Returns:
        `dict[str, dict[str, EvaluationResult]]`: by set, then by `"model"`, `"teacher"` and the names of other models;
        the same in every process.
    """
    results: dict[str, dict[str, EvaluationResult]] = {}
    for column, name in args.models().items():
        evaluate = _whisper_evaluation(args, name)
        for flag, rows in datasets.items():
            kind, dataset = flag.split(".", 1)
            heard = partial(evaluate, GROUPS[kind] in LONG_FORMS)
            results.setdefault(dataset, {})[column] = evaluate_shared(rows, heard)
    return results


def _whisper_evaluation(args: EvaluateArguments, name: str) -> Callable[[bool, Dataset], EvaluationResult]:
    model, processor = load_listener(name, args.dtype)
    options: dict[str, Any] = {
        "language": args.language,
        "normalizer": get_normalizer(args.normalizer) if args.normalizer else None,
        "batch_size": args.batch_size,
    }

    def evaluate(long_form: bool, rows: Dataset) -> EvaluationResult:
        if long_form:
            return evaluate_long_form(
                model,
                rows,
                processor,
                method=args.long_form_method,
                temperature_fallback=as_fallback(args.temperature_fallback),
                condition_on_prev_tokens=args.condition_on_prev_tokens,
                **options,
            )
        return evaluate_model(model, rows, processor, **options)

    return evaluate


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
    if is_main_process():
        if args.output_dir is not None:
            save_results(results, args.output_dir, args.groups(), args.reference)
        sys.stdout.write(results_table(results, args.groups(), args.reference) + "\n")
    # A process that leaves without this may abort with its work done: github.com/pytorch/pytorch/issues/190489
    PartialState().destroy_process_group()
