"""`evaluate algorithms`: sequential and chunked transcription of long recordings side by side (Table 7)."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from hf_distil_whisper.cli.config import (
    DataSource,
    InputError,
    as_training_sources,
    parse_arguments,
    setting,
    source_setting,
)
from hf_distil_whisper.cli.inputs import (
    Plan,
    describe_rows,
    load_listener,
)
from hf_distil_whisper.metrics import get_normalizer
from long_form_algorithms import (
    AlgorithmRow,
    algorithm_table,
    algorithms_by_set,
    compare_algorithms,
)


@dataclass
class EvaluateAlgorithmsArguments:
    """Flags of `evaluate algorithms`.

    Args:
        model_name_or_path (`str`): model to score and time, Hub name or folder.
        teacher_model_name_or_path (`str`, *optional*): scored and timed in turn with it; latencies are relative to its
            sequential algorithm, or to the model's own where it is left out.
        dataset ([`DataSource`] or `dict[str, DataSource]`): long recordings with text, one set or several by name.
        batch_size (`int`, *optional*, defaults to 16): chunks in one pass.
        repeats (`int`, *optional*, defaults to 3): over all recordings, in turn.
        output_dir (`str`, *optional*): folder for `results.json` and `table.md`.
        language (`str`, *optional*): of the speech, for multilingual models.
        normalizer (`str`, *optional*): a language, or `"basic"`, in place of the language's own.
        dtype (`str`, *optional*, defaults to `"float32"`): type of the weights.
        dry_run (`bool`, *optional*, defaults to `False`): check the inputs and print the plan only.
    """

    model_name_or_path: str | None = setting(None, "Model to score and time: Hub name or folder.")
    teacher_model_name_or_path: str | None = setting(None, "In turn with it; latencies are relative to it.")
    dataset: dict[str, DataSource] | str | None = source_setting("Long recordings, one set or {name: path}.")
    batch_size: int = setting(16, "Chunks in one pass.")
    repeats: int = setting(3, "Over all recordings, in turn.")
    output_dir: str | None = setting(None, "Folder for results.json and table.md.")
    language: str | None = setting(None, "Of the speech, for multilingual models; detected where left out.")
    normalizer: str | None = setting(None, 'A language or "basic", in place of the language\'s own normaliser.')
    dtype: Literal["float32", "bfloat16", "float16"] = setting("float32", "Type of the weights.")
    dry_run: bool = setting(False, "Check the inputs and print the plan only.")

    def __post_init__(self) -> None:
        self.dataset = as_training_sources(self.dataset, "dataset", "test")
        for name in ("batch_size", "repeats"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name}: expected a whole number above 0, got {getattr(self, name)}")

    def models(self) -> dict[str, str]:
        """Names or paths by the name in the table; the first is the baseline."""
        teacher = {"teacher": self.teacher_model_name_or_path} if self.teacher_model_name_or_path else {}
        return {**teacher, "model": self.model_name_or_path or ""}


def plan_algorithms(args: EvaluateAlgorithmsArguments) -> Plan:
    """Checks models and recordings.

    Args:
        args (`EvaluateAlgorithmsArguments`): what to score and time on what.
    """
    plan = Plan("evaluate algorithms")
    plan.single_process()
    whispers = {}
    for column, name in args.models().items():
        flag = "teacher_model_name_or_path" if column == "teacher" else "model_name_or_path"
        model = plan.model(name, flag)
        if model is not None:
            whispers[column] = model
            plan.processor(name, flag)
            plan.steps.append(f"score and time {column} {name}, sequential and chunked, {args.repeats} times in turn")
    plan.scoring(whispers, args.language, args.normalizer)
    sources = args.dataset if isinstance(args.dataset, dict) else {}
    for name, source in sources.items() or [("dataset", None)]:
        flag = name if name == "dataset" else f"dataset.{name}"
        rows = plan.source(source, flag, ("text",))
        if rows is not None:
            plan.figures[f"audio of {name}"] = describe_rows(rows)
    if args.output_dir is not None:
        plan.output(args.output_dir)
        plan.steps.append(f"write rows and table to {args.output_dir}")
    return plan


def save_algorithms(rows: Mapping[str, Sequence[AlgorithmRow]], table: str, folder: str) -> None:
    """Writes `results.json` (counts and times by set) and `table.md` into a folder.

    Args:
        rows (`Mapping[str, Sequence[AlgorithmRow]]`): of [`compare_algorithms`], by set.
        table (`str`): of [`algorithm_table`] and [`algorithms_by_set`].
        folder (`str`): made where it is missing.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    found = {
        name: [
            {**asdict(row), "wer": row.errors.wer if row.errors.num_words else None, "rtf": row.rtf} for row in of_set
        ]
        for name, of_set in rows.items()
    }
    (target / "results.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    (target / "table.md").write_text(table + "\n", encoding="utf-8")


def run_algorithms(argv: Sequence[str]) -> None:
    """Entry point of the command.

    Args:
        argv (`Sequence[str]`): a recipe, then flags.
    """
    (args,) = parse_arguments(EvaluateAlgorithmsArguments, argv=argv, command="hf-distil-whisper evaluate algorithms")
    plan = plan_algorithms(args)
    if not plan.settle(dry_run=args.dry_run):
        return
    loaded = {column: load_listener(name, args.dtype) for column, name in args.models().items()}
    models = {column: model for column, (model, _) in loaded.items()}
    processors = {column: processor for column, (_, processor) in loaded.items()}
    rows = {
        flag.removeprefix("dataset."): compare_algorithms(
            models, dataset, processors, batch_size=args.batch_size, repeats=args.repeats, language=args.language,
            normalizer=get_normalizer(args.normalizer) if args.normalizer else None,
        )
        for flag, dataset in plan.datasets.items()
    }  # fmt: skip
    baseline = next(iter(models))
    table = algorithm_table(rows, baseline)
    if len(rows) > 1:
        table += f"\n\n{algorithms_by_set(rows)}"
    if args.output_dir is not None:
        save_algorithms(rows, table, args.output_dir)
    sys.stdout.write(f"{table}\n\nRel. Latency: times as fast as {baseline}, sequential. WER / %, mean of the sets.\n")
