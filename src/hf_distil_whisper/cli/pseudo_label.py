"""`pseudo-label`: packs utterances of one speaker into windows and transcribes them with the teacher (section 4.2)."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from datasets import Dataset, IterableDataset
from transformers import WhisperForConditionalGeneration

from hf_distil_whisper.checkpoints import load_model, load_processor
from hf_distil_whisper.cli.config import (
    DataSource,
    as_source,
    is_main_process,
    parse_arguments,
    setting,
    source_setting,
)
from hf_distil_whisper.cli.inputs import (
    DTYPES,
    Plan,
    best_device,
    describe_rows,
    generation_bytes,
    gigabytes,
    hours_of_audio,
)
from hf_distil_whisper.inference.encoder import encoder_cache_bytes
from hf_distil_whisper.inference.prompt import resolve_language
from hf_distil_whisper.pseudo_labels.labeller import pseudo_label_dataset

FLAC_BYTES_PER_HOUR = 65e6
"""Speech at 16 kHz and 16 bit after FLAC's compression, measured on read speech: 55 to 60 % of PCM."""


@dataclass
class PseudoLabelArguments:
    """Flags of `pseudo-label`."""

    teacher_model_name_or_path: str | None = setting(None, "Teacher that transcribes: Hub name or folder.")
    dataset: DataSource | str | None = source_setting("The recordings, with or without text.")
    output_dir: str | None = setting(
        None, "Folder or fsspec URL for the labelled rows; a run that was stopped goes on in it."
    )
    streaming: bool = setting(
        False, "Read the recordings file by file, without a download or copy before; packs neighbouring rows only."
    )
    pack: bool = setting(
        True, "Split longer recordings in silence, and pack utterances of one speaker where speakers are known."
    )
    max_duration: float = setting(30.0, "Longest window after packing, in seconds.")
    max_words: int | None = setting(
        None,
        "Split windows with more words at punctuation, where word or segment times are known (paper: 30 for AMI).",
    )
    second_window: bool = setting(
        True,
        "Transcribe on where a label leaves off before the speech does; false: only mark it as truncated (the paper).",
    )
    language: str | None = setting(None, "Language of the speech, for multilingual teachers (default: detected).")
    task: Literal["transcribe", "translate"] = setting("transcribe", "Transcribe, or translate to English.")
    batch_size: int = setting(16, "Windows in one pass, at most.")
    token_budget: int | None = setting(None, "Tokens in one pass, at most: short windows come in larger batches.")
    num_beams: int = setting(1, "Beams of the search; 1 is greedy, as in the paper.")
    backend: Literal["transformers", "ctranslate2"] = setting(
        "transformers", "Runtime of the teacher; ctranslate2 needs the extra ct2."
    )
    compute_type: str = setting("default", "Type of CTranslate2's computation: float32, float16, int8, ...")
    rows_per_shard: int = setting(1000, "Rows that are written at once, and done again after a crash.")
    teacher_cache_dir: str | None = setting(
        None, "Local folder to keep the encoder outputs in, for a training with the same --teacher_cache_dir."
    )
    dtype: Literal["float32", "bfloat16", "float16"] = setting("float32", "Type of the teacher's weights.")
    dry_run: bool = setting(False, "Check the inputs and print the plan only.")

    def __post_init__(self) -> None:
        self.dataset = as_source(self.dataset, "dataset")


@dataclass
class LabellingPlan(Plan):
    """A [`Plan`] with the recordings, None where it has problems."""

    rows: Dataset | IterableDataset | None = None


def plan_labels(args: PseudoLabelArguments) -> LabellingPlan:
    """Checks teacher, recordings and output folder."""
    plan = LabellingPlan("pseudo-label")
    teacher = plan.model_and_processor(args.teacher_model_name_or_path, "teacher_model_name_or_path")
    if teacher is not None:
        with plan.collect("language"):
            resolve_language(teacher, args.language, args.task)
    source = as_source(args.dataset, "dataset")
    plan.rows = plan.stream(source, "dataset") if args.streaming else plan.source(source, "dataset")
    plan.output(args.output_dir, resumes=True)
    if args.max_words is not None and not args.pack:
        plan.problems.append("--max_words: splits rows, which --pack false forbids. Leave one of them out.")
    if plan.rows is not None and args.pack:
        joins = "pack utterances of one speaker and " if _packs_speakers(args, plan.rows) else ""
        words = "" if args.max_words is None else f" or {args.max_words} words"
        plan.steps.append(f"{joins}split longer recordings, to at most {args.max_duration:g} s{words}")
    search = "greedily" if args.num_beams == 1 else f"with {args.num_beams} beams"
    limit = f"{args.batch_size} rows" + ("" if args.token_budget is None else f" or {args.token_budget} tokens")
    plan.steps.append(f"transcribe with {args.teacher_model_name_or_path} {search}, {limit} in one pass")
    plan.steps.append(f"write the labelled rows to {args.output_dir}")
    _plan_costs(plan, args, teacher)
    return plan


def _plan_costs(
    plan: LabellingPlan, args: PseudoLabelArguments, teacher: WhisperForConditionalGeneration | None
) -> None:
    rows = plan.rows
    if isinstance(rows, IterableDataset):
        plan.figures["audio"] = f"{rows.num_shards:,} files, read as they come"
    elif rows is not None:
        hours = hours_of_audio(rows)
        plan.figures["audio"] = describe_rows(rows)
        plan.figures["disk expected"] = gigabytes(hours * FLAC_BYTES_PER_HOUR)
        if teacher is not None and args.teacher_cache_dir:
            windows = math.ceil(hours * 3600 / args.max_duration) if _packs_speakers(args, rows) else len(rows)
            size = encoder_cache_bytes(windows, teacher.config, DTYPES[args.dtype])
            plan.figures["encoder outputs expected"] = f"{gigabytes(size)} in {args.teacher_cache_dir}"
    if teacher is not None:
        memory = generation_bytes(teacher, DTYPES[args.dtype], args.batch_size * args.num_beams)
        plan.figures["memory expected"] = gigabytes(memory)


def _packs_speakers(args: PseudoLabelArguments, rows: Dataset | IterableDataset) -> bool:
    return args.pack and "speaker" in (rows.column_names or [])


def sort_by_speaker(dataset: Dataset) -> Dataset:
    """Makes the utterances of a speaker's recording neighbours, in the order of the source: only these are packed."""
    names = [name for name in ("recording", "speaker") if name in dataset.column_names]
    order = np.lexsort([np.array([str(value) for value in dataset[name]]) for name in names])  # stable, last key first
    return dataset if (order[1:] > order[:-1]).all() else dataset.select(order)


def run(argv: Sequence[str]) -> None:
    """Entry point of the command: a recipe, then flags."""
    (args,) = parse_arguments(PseudoLabelArguments, argv=argv, command="hf-distil-whisper pseudo-label")
    plan = plan_labels(args)
    if not plan.report(dry_run=args.dry_run) or plan.rows is None:
        return
    rows = plan.rows
    if isinstance(rows, Dataset) and _packs_speakers(args, rows):
        rows = sort_by_speaker(rows)
    labelled = pseudo_label_dataset(
        rows,
        load_model(args.teacher_model_name_or_path, dtype=DTYPES[args.dtype]).to(best_device()),
        load_processor(args.teacher_model_name_or_path),
        output_dir=args.output_dir,
        language=args.language,
        task=args.task,
        batch_size=args.batch_size,
        token_budget=args.token_budget,
        num_beams=args.num_beams,
        backend=args.backend,
        compute_type=args.compute_type,
        max_duration=args.max_duration if args.pack else None,
        max_words=args.max_words,
        second_window=args.second_window,
        rows_per_shard=args.rows_per_shard,
        teacher_cache_dir=args.teacher_cache_dir,
    )
    if is_main_process():
        sys.stdout.write(f"{describe_rows(labelled)} labelled, {sum(labelled['truncated'])} of them truncated\n")
