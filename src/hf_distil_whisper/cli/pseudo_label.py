"""`pseudo-label`: joins utterances of one speaker to windows and transcribes them with the teacher (section 4.2)."""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from datasets import Dataset, Features, List, Value

from hf_distil_whisper.checkpoints import load_model, load_processor
from hf_distil_whisper.cli.arguments import DataSource, as_source, parse_arguments, setting, source_setting
from hf_distil_whisper.cli.plans import (
    FLAC_BYTES_PER_HOUR,
    Plan,
    best_device,
    describe_rows,
    generation_bytes,
    gigabytes,
    hours_of_audio,
    torch_dtype,
)
from hf_distil_whisper.data.packing import pack_utterances
from hf_distil_whisper.data.sources import RowErrors
from hf_distil_whisper.pseudo_labels.labeller import pseudo_label_dataset

_PACKED = Features(
    {
        "id": Value("string"),
        "ids": List(Value("string")),
        "audio": {"bytes": Value("binary"), "path": Value("string")},
        "text": Value("string"),
        "speaker": Value("string"),
        "duration": Value("float64"),
        "condition_on_prev": Value("bool"),
    }
)


@dataclass
class PseudoLabelArguments:
    """Flags of `pseudo-label`.

    Args:
        teacher_model_name_or_path (`str`): Whisper that transcribes, Hub name or folder.
        dataset ([`DataSource`]): the recordings.
        output_dir (`str`): folder for the labelled rows, as `save_to_disk` writes them.
        pack (`bool`, *optional*, defaults to `True`): joins utterances of one speaker; needs a column `speaker`.
        max_duration (`float`, *optional*, defaults to 30.0): seconds of a joined row.
        language (`str`, *optional*): of the speech, for multilingual teachers.
        task (`str`, *optional*, defaults to `"transcribe"`): or `"translate"`.
        batch_size (`int`, *optional*, defaults to 16): rows in one pass.
        num_beams (`int`, *optional*, defaults to 1): greedy, as in section 7.1.
        dtype (`str`, *optional*, defaults to `"float32"`): type of the teacher's weights.
        dry_run (`bool`, *optional*, defaults to `False`): check the inputs and print the plan only.
    """

    teacher_model_name_or_path: str | None = setting(None, "Whisper that transcribes: Hub name or folder.")
    dataset: DataSource | str | None = source_setting("The recordings.")
    output_dir: str | None = setting(None, "Folder for the labelled rows.")
    pack: bool = setting(True, "Join utterances of one speaker; needs a speaker column.")
    max_duration: float = setting(30.0, "Seconds of a joined row.")
    language: str | None = setting(None, "Of the speech, for multilingual teachers; detected where left out.")
    task: Literal["transcribe", "translate"] = setting("transcribe", "What the teacher writes.")
    batch_size: int = setting(16, "Rows in one pass.")
    num_beams: int = setting(1, "Beams of the search; 1 is greedy.")
    dtype: Literal["float32", "bfloat16", "float16"] = setting("float32", "Type of the teacher's weights.")
    dry_run: bool = setting(False, "Check the inputs and print the plan only.")

    def __post_init__(self) -> None:
        self.dataset = as_source(self.dataset, "dataset") if self.dataset else None


def plan_labels(args: PseudoLabelArguments) -> Plan:
    """Checks teacher, recordings and output folder.

    Args:
        args (`PseudoLabelArguments`): what to label, with what.
    """
    plan = Plan("pseudo-label")
    plan.single_process()
    teacher = plan.model(args.teacher_model_name_or_path, "teacher_model_name_or_path")
    if teacher is not None:
        plan.processor(args.teacher_model_name_or_path or "", "teacher_model_name_or_path")
    rows = plan.source(as_source(args.dataset, "dataset") if args.dataset else None, "dataset")
    plan.output(args.output_dir)
    if rows is not None and packs(args, rows):
        plan.steps.append(f"join utterances of one speaker to at most {args.max_duration:g} s")
    search = "greedily" if args.num_beams == 1 else f"with {args.num_beams} beams"
    plan.steps.append(
        f"transcribe with {args.teacher_model_name_or_path} {search}, {args.batch_size} rows in one pass"
    )
    plan.steps.append(f"write the labelled rows to {args.output_dir}")
    if rows is not None:
        hours = hours_of_audio(rows)
        plan.figures["audio"] = f"{hours:.2f} h in {len(rows):,} rows"
        plan.figures["disk expected"] = gigabytes(hours * FLAC_BYTES_PER_HOUR)
    if teacher is not None:
        passes = args.batch_size * args.num_beams
        plan.figures["memory expected"] = gigabytes(generation_bytes(teacher, torch_dtype(args.dtype), passes))
    return plan


def packs(args: PseudoLabelArguments, rows: Dataset) -> bool:
    """Whether utterances are joined: without a speaker nothing tells which of them belong together.

    Args:
        args (`PseudoLabelArguments`): says whether to.
        rows (`Dataset`): the recordings, with or without `speaker`.
    """
    return args.pack and "speaker" in rows.column_names


def run_labelling(args: PseudoLabelArguments, rows: Dataset) -> Dataset:
    """Labels the rows of a plan and writes them.

    Args:
        args (`PseudoLabelArguments`): as checked by [`plan_labels`].
        rows (`Dataset`): the recordings, `plan.datasets["dataset"]`.

    Returns:
        `Dataset`: the labelled rows, also in `args.output_dir`.
    """
    errors = RowErrors()
    teacher = load_model(args.teacher_model_name_or_path or "", dtype=torch_dtype(args.dtype)).to(best_device())
    with tempfile.TemporaryDirectory() as folder:
        if packs(args, rows):
            rows = pack_dataset(rows, folder, args.max_duration, errors)
        labelled = pseudo_label_dataset(
            rows,
            teacher,
            load_processor(args.teacher_model_name_or_path or ""),
            output_dir=args.output_dir or "",
            language=args.language,
            task=args.task,
            batch_size=args.batch_size,
            num_beams=args.num_beams,
            errors=errors,
        )
    return labelled


def pack_dataset(dataset: Dataset, folder: str, max_duration: float, errors: RowErrors) -> Dataset:
    """Joins utterances of one speaker, written to `folder`, since all audio at once would not fit into memory.

    Args:
        dataset (`Dataset`): rows with `speaker`.
        folder (`str`): holds the joined rows as long as they are used.
        max_duration (`float`): seconds of a joined row.
        errors (`RowErrors`): takes the rows that cannot be read.

    Returns:
        `Dataset`: sorted by speaker, within a speaker in the order of the source.
    """
    speakers = np.array([str(speaker) for speaker in dataset["speaker"]])
    rows = dataset.select(np.argsort(speakers, kind="stable"))
    options = {"rows": rows, "max_duration": max_duration, "errors": errors}
    return Dataset.from_generator(pack_utterances, gen_kwargs=options, features=_PACKED, cache_dir=folder)


def run(argv: Sequence[str]) -> None:
    """Entry point of the command.

    Args:
        argv (`Sequence[str]`): a recipe, then flags.
    """
    (args,) = parse_arguments(PseudoLabelArguments, argv=argv, command="hf-distil-whisper pseudo-label")
    plan = plan_labels(args)
    if not plan.settle(dry_run=args.dry_run):
        return
    labelled = run_labelling(args, plan.datasets["dataset"])
    sys.stdout.write(f"{describe_rows(labelled)} labelled, {sum(labelled['truncated'])} of them cut off\n")
