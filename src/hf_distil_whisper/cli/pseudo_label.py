"""`pseudo-label`: joins utterances of one speaker to windows and transcribes them with the teacher (section 4.2)."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from datasets import Dataset, IterableDataset

from hf_distil_whisper.checkpoints import (
    load_model,
    load_processor,
)
from hf_distil_whisper.cli.config import (
    DataSource,
    as_source,
    is_main_process,
    parse_arguments,
    setting,
    source_setting,
)
from hf_distil_whisper.cli.inputs import (
    FLAC_BYTES_PER_HOUR,
    Plan,
    best_device,
    describe_rows,
    generation_bytes,
    gigabytes,
    hours_of_audio,
    torch_dtype,
)
from hf_distil_whisper.inference.encoder import encoder_cache_bytes
from hf_distil_whisper.pseudo_labels.labeller import pseudo_label_dataset


@dataclass
class PseudoLabelArguments:
    """Flags of `pseudo-label`.

    Args:
        teacher_model_name_or_path (`str`): Whisper that transcribes, Hub name or folder.
        dataset ([`DataSource`]): the recordings.
        output_dir (`str`): folder or fsspec URL for the labelled rows; a run that was stopped goes on in it.
        streaming (`bool`, *optional*, defaults to `False`): reads the recordings as they come, file by file, without
            a download or copy before; only utterances of one speaker that lie side by side are joined then.
        pack (`bool`, *optional*, defaults to `True`): splits longer recordings where nobody speaks, and joins
            utterances of one speaker where a column `speaker` tells them. Without it, longer recordings are left out.
        max_duration (`float`, *optional*, defaults to 30.0): seconds of a row after that.
        max_words (`int`, *optional*): splits rows of more words at their punctuation, where `words` or `segments` hold
            their times (30 for AMI in appendix A).
        language (`str`, *optional*): of the speech, for multilingual teachers.
        task (`str`, *optional*, defaults to `"transcribe"`): or `"translate"`.
        batch_size (`int`, *optional*, defaults to 16): rows in one pass at most.
        token_budget (`int`, *optional*): tokens in one pass at most, so that short rows come in larger batches.
        num_beams (`int`, *optional*, defaults to 1): greedy, as in section 7.1.
        backend (`str`, *optional*, defaults to `"transformers"`): or `"ctranslate2"` (extra `ct2`).
        compute_type (`str`, *optional*, defaults to `"default"`): of CTranslate2.
        rows_per_shard (`int`, *optional*, defaults to 1000): rows that are written, and after a crash redone, at once.
        teacher_cache_dir (`str`, *optional*): keeps the encoder's states for a training with the same folder.
        dtype (`str`, *optional*, defaults to `"float32"`): type of the teacher's weights.
        dry_run (`bool`, *optional*, defaults to `False`): check the inputs and print the plan only.
    """

    teacher_model_name_or_path: str | None = setting(None, "Whisper that transcribes: Hub name or folder.")
    dataset: DataSource | str | None = source_setting("The recordings.")
    output_dir: str | None = setting(None, "Folder for the labelled rows.")
    streaming: bool = setting(False, "Read the recordings as they come, without a download before.")
    pack: bool = setting(True, "Split longer recordings in silence, join utterances of one speaker where it is known.")
    max_duration: float = setting(30.0, "Seconds of a row after that.")
    max_words: int | None = setting(None, "Split rows of more words at punctuation, where the words' times are known.")
    language: str | None = setting(None, "Of the speech, for multilingual teachers; detected where left out.")
    task: Literal["transcribe", "translate"] = setting("transcribe", "What the teacher writes.")
    batch_size: int = setting(16, "Rows in one pass at most.")
    token_budget: int | None = setting(None, "Tokens in one pass at most: short rows come in larger batches.")
    num_beams: int = setting(1, "Beams of the search; 1 is greedy.")
    backend: Literal["transformers", "ctranslate2"] = setting("transformers", "What runs the teacher.")
    compute_type: str = setting("default", "Of CTranslate2: float32, int8, float16, ...")
    rows_per_shard: int = setting(1000, "Rows that are written, and after a crash redone, at once.")
    teacher_cache_dir: str | None = setting(
        None, "Local folder that keeps the encoder's states, for a training with the same --teacher_cache_dir."
    )
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
    teacher = plan.model(args.teacher_model_name_or_path, "teacher_model_name_or_path")
    if teacher is not None:
        plan.processor(args.teacher_model_name_or_path or "", "teacher_model_name_or_path")
    source = as_source(args.dataset, "dataset") if args.dataset else None
    rows = plan.stream(source, "dataset") if args.streaming else plan.source(source, "dataset")
    plan.output(args.output_dir, goes_on=True)
    if args.max_words is not None and not args.pack:
        plan.problems.append("--max_words: splits rows, which --pack false forbids. Leave one of them out.")
    if rows is not None and args.pack:
        joins = "join utterances of one speaker and " if joins_speakers(args, rows) else ""
        words = "" if args.max_words is None else f" or {args.max_words} words"
        plan.steps.append(f"{joins}split longer recordings, to at most {args.max_duration:g} s{words}")
    search = "greedily" if args.num_beams == 1 else f"with {args.num_beams} beams"
    limit = f"{args.batch_size} rows" + ("" if args.token_budget is None else f" or {args.token_budget} tokens")
    plan.steps.append(f"transcribe with {args.teacher_model_name_or_path} {search}, {limit} in one pass")
    plan.steps.append(f"write the labelled rows to {args.output_dir}")
    if isinstance(rows, Dataset):
        hours = hours_of_audio(rows)
        plan.figures["audio"] = f"{hours:.2f} h in {len(rows):,} rows"
        plan.figures["disk expected"] = gigabytes(hours * FLAC_BYTES_PER_HOUR)
        if teacher is not None and args.teacher_cache_dir:
            windows = math.ceil(hours * 3600 / args.max_duration) if joins_speakers(args, rows) else len(rows)
            size = encoder_cache_bytes(windows, teacher.config, torch_dtype(args.dtype))
            plan.figures["encoder states expected"] = f"{gigabytes(size)} in {args.teacher_cache_dir}"
    elif rows is not None:
        plan.figures["audio"] = f"{rows.num_shards:,} files, read as they come"
    if teacher is not None:
        passes = args.batch_size * args.num_beams
        plan.figures["memory expected"] = gigabytes(generation_bytes(teacher, torch_dtype(args.dtype), passes))
    return plan


def joins_speakers(args: PseudoLabelArguments, rows: Dataset | IterableDataset) -> bool:
    """Whether utterances are joined: without a speaker nothing tells which of them belong together.

    Args:
        args (`PseudoLabelArguments`): says whether to.
        rows (`Dataset` or `IterableDataset`): the recordings, with or without `speaker`.
    """
    return args.pack and "speaker" in (rows.column_names or [])


def run_labelling(args: PseudoLabelArguments, rows: Dataset | IterableDataset) -> Dataset:
    """Labels the rows of a plan and writes them.

    Args:
        args (`PseudoLabelArguments`): as checked by [`plan_labels`].
        rows (`Dataset` or `IterableDataset`): the recordings, `plan.rows["dataset"]`.

    Returns:
        `Dataset`: the labelled rows, also in `args.output_dir`.
    """
    teacher = load_model(args.teacher_model_name_or_path or "", dtype=torch_dtype(args.dtype)).to(best_device())
    joined = joins_speakers(args, rows)
    return pseudo_label_dataset(
        sort_by_speaker(rows) if joined and isinstance(rows, Dataset) else rows,
        teacher,
        load_processor(args.teacher_model_name_or_path or ""),
        output_dir=args.output_dir or "",
        language=args.language,
        task=args.task,
        batch_size=args.batch_size,
        token_budget=args.token_budget,
        num_beams=args.num_beams,
        backend=args.backend,
        compute_type=args.compute_type,
        max_duration=args.max_duration if args.pack else None,
        max_words=args.max_words,
        rows_per_shard=args.rows_per_shard,
        teacher_cache_dir=args.teacher_cache_dir,
    )


def sort_by_speaker(dataset: Dataset) -> Dataset:
    """Makes the utterances of a speaker's recording neighbours, in the order of the source: only these are joined.

    Args:
        dataset (`Dataset`): rows with `speaker`, and `recording` where it is known.
    """
    names = [name for name in ("recording", "speaker") if name in dataset.column_names]
    # Stable, and by the last key first.
    order = np.lexsort([np.array([str(value) for value in dataset[name]]) for name in names])
    return dataset if (order[1:] > order[:-1]).all() else dataset.select(order)


def run(argv: Sequence[str]) -> None:
    """Entry point of the command.

    Args:
        argv (`Sequence[str]`): a recipe, then flags.
    """
    (args,) = parse_arguments(PseudoLabelArguments, argv=argv, command="hf-distil-whisper pseudo-label")
    plan = plan_labels(args)
    if not plan.settle(dry_run=args.dry_run):
        return
    labelled = run_labelling(args, plan.rows["dataset"])
    if not is_main_process():
        return
    sys.stdout.write(f"{describe_rows(labelled)} labelled, {sum(labelled['truncated'])} of them cut off\n")
