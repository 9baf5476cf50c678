"""`align-heads`: finds a student's alignment heads, stores them beside it, and says how good its word times are."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transformers import WhisperForConditionalGeneration

from hf_distil_whisper.checkpoints import (
    check_compatible,
    load_model,
    load_processor,
    save_generation_config,
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
    torch_dtype,
)
from hf_distil_whisper.data.sources import RowErrors
from hf_distil_whisper.evaluation.word_times import (
    WordTimeErrors,
    compare_word_times,
)
from hf_distil_whisper.inference.alignment_heads import (
    HeadSearch,
    find_alignment_heads,
)
from hf_distil_whisper.inference.prompt import resolve_language
from hf_distil_whisper.inference.word_timestamps import set_alignment_heads

logger = logging.getLogger(__name__)


@dataclass
class AlignHeadsArguments:
    """Flags of `align-heads`.

    Args:
        model_name_or_path (`str`): folder of the student, whose `generation_config.json` is changed.
        teacher_model_name_or_path (`str`): whose word times are aimed at, Hub name or folder.
        dataset ([`DataSource`]): recordings up to 30 s to choose on; text is not needed.
        test_dataset ([`DataSource`], *optional*): others to measure on; else those that the heads were chosen on.
        max_samples (`int`, *optional*, defaults to 32): rows of `dataset`.
        batch_size (`int`, *optional*, defaults to 16): recordings in one pass.
        language (`str`, *optional*): of the speech, for multilingual models.
        dtype (`str`, *optional*, defaults to `"float32"`): type of the weights.
        dry_run (`bool`, *optional*, defaults to `False`): check the inputs and print the plan only.
    """

    model_name_or_path: str | None = setting(None, "Folder of the student, whose generation_config.json is changed.")
    teacher_model_name_or_path: str | None = setting(None, "Whose word times are aimed at: Hub name or folder.")
    dataset: DataSource | str | None = source_setting("Recordings up to 30 s to choose on.")
    test_dataset: DataSource | str | None = source_setting("Others to measure on; else those of --dataset.")
    max_samples: int = setting(32, "Rows of --dataset.")
    batch_size: int = setting(16, "Recordings in one pass.")
    language: str | None = setting(None, "Of the speech, for multilingual models; detected where left out.")
    dtype: Literal["float32", "bfloat16", "float16"] = setting("float32", "Type of the weights.")
    dry_run: bool = setting(False, "Check the inputs and print the plan only.")

    def __post_init__(self) -> None:
        self.dataset = as_source(self.dataset, "dataset", "validation") if self.dataset else None
        self.test_dataset = as_source(self.test_dataset, "test_dataset", "test") if self.test_dataset else None
        for name in ("max_samples", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name}: expected a whole number above 0, got {getattr(self, name)}")


def plan_align_heads(args: AlignHeadsArguments) -> Plan:
    """Checks models and recordings.

    Args:
        args (`AlignHeadsArguments`): whose heads, by whose times, on what.
    """
    plan = Plan("align-heads")
    plan.single_process()
    student = plan.model(args.model_name_or_path, "model_name_or_path")
    teacher = plan.model(args.teacher_model_name_or_path, "teacher_model_name_or_path")
    if student is not None:
        _check_student(args, plan, student, teacher)
    for flag in ("dataset", "test_dataset"):
        source = getattr(args, flag)
        if source is None and flag == "test_dataset":
            continue
        rows = plan.source(as_source(source, flag) if source else None, flag, ("audio",))
        if rows is not None and flag == "dataset":
            plan.datasets[flag] = rows.select(range(min(args.max_samples, len(rows))))
        if rows is not None:
            plan.figures[flag] = describe_rows(plan.datasets[flag])
    plan.steps += [
        f"time the words of {args.teacher_model_name_or_path}, and choose heads of {args.model_name_or_path} by them",
        f"store the heads in {args.model_name_or_path}/generation_config.json",
        "compare the word times of both, each on its own transcripts",
    ]
    return plan


def _check_student(
    args: AlignHeadsArguments,
    plan: Plan,
    student: WhisperForConditionalGeneration,
    teacher: WhisperForConditionalGeneration | None,
) -> None:
    name = args.model_name_or_path or ""
    if not Path(name).is_dir():
        plan.problems.append(
            f"--model_name_or_path: {name!r} is no folder, the heads could not be stored. Save it first"
        )
    processor = plan.processor(name, "model_name_or_path")
    try:
        resolve_language(student, args.language)
    except ValueError as error:
        plan.problems.append(f"--language: {error}")
    try:
        check_compatible(student, teacher, processor)
    except ValueError as error:
        plan.problems.append(f"--teacher_model_name_or_path: {error}")


def search_report(search: HeadSearch, named: int = 5) -> str:
    """The heads that were found, as text for a terminal.

    Args:
        search (`HeadSearch`): from [`find_alignment_heads`].
        named (`int`, *optional*, defaults to 5): heads whose errors alone are named.
    """
    heads = ", ".join(f"[{layer}, {head}]" for layer, head in search.heads)
    single = ", ".join(f"[{layer}, {head}] {error:.2f} s" for (layer, head), error in search.single[:named])
    return (
        f"alignment heads [layer, head]: {heads}\n"
        f"chosen on {search.num_times} word times in {search.num_recordings} recordings: median error "
        f"{search.median_error:.2f} s; alone: {single}"
    )


def errors_report(errors: WordTimeErrors) -> str:
    """The student's word times beside the teacher's, as text for a terminal.

    Args:
        errors (`WordTimeErrors`): from [`compare_word_times`].
    """
    return (
        f"student against teacher, each on its own transcript: median {errors.percentile(50):.2f} s, 90 % within "
        f"{errors.percentile(90):.2f} s\n"
        f"start and end within 0.1 s: {errors.share_within:.1%}, {errors.within} of {errors.num_common} words that "
        f"both wrote; the teacher wrote {errors.num_words} in {errors.num_recordings} recordings"
    )


def run(argv: Sequence[str]) -> None:
    """Entry point of the command.

    Args:
        argv (`Sequence[str]`): a recipe, then flags.
    """
    (args,) = parse_arguments(AlignHeadsArguments, argv=argv, command="hf-distil-whisper align-heads")
    plan = plan_align_heads(args)
    if not plan.report(dry_run=args.dry_run):
        return
    folder, dtype, device = args.model_name_or_path, torch_dtype(args.dtype), best_device()
    student = load_model(folder, dtype=dtype).to(device)
    teacher = load_model(args.teacher_model_name_or_path, dtype=dtype).to(device)
    processor = load_processor(folder)
    options = {"language": args.language, "batch_size": args.batch_size}
    left_out, measured = RowErrors(), RowErrors()
    search = find_alignment_heads(student, teacher, processor, plan.datasets["dataset"], left_out, **options)
    set_alignment_heads(student, search.heads)
    save_generation_config(student, folder)
    sys.stdout.write(search_report(search) + "\n")
    rows = plan.datasets.get("test_dataset", plan.datasets["dataset"])
    sys.stdout.write(errors_report(compare_word_times(student, teacher, processor, rows, measured, **options)) + "\n")
    for errors in (left_out, measured if "test_dataset" in plan.datasets else RowErrors()):
        if errors:
            logger.warning(errors.summary())
