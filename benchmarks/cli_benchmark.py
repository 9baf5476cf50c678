"""`benchmark`: how fast the library and its models are on this machine, as ratios."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from cli_benchmark_assistant import run_assistant
from cli_benchmark_early_exit import run_early_exit
from cli_benchmark_latency import run_latency
from cli_benchmark_long_form_memory import run_long_form_memory
from cli_benchmark_training import run_training
from data_speed import (
    StepSpeed,
    measure_data,
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
    load_listener,
    machine,
)
from labelling_speed import (
    PLAIN,
    LabellingSpeed,
    measure_labelling,
    mixed_recordings,
)


@dataclass
class LabellingBenchmarkArguments:
    """Flags of `benchmark label`.

    Args:
        teacher_model_name_or_path (`str`): Whisper that transcribes, Hub name or folder.
        dataset ([`DataSource`]): utterances with text and speaker; half of the recordings are joined from them.
        rows (`int`, *optional*, defaults to 600): recordings of up to 30 s.
        rounds (`int`, *optional*, defaults to 3): how often each way labels them all, in turn.
        batch_size (`int`, *optional*, defaults to 16): rows in one pass, the same for every way.
        compute_types (`list[str]`, *optional*): of CTranslate2 (extra `ct2`), for example `float32 int8`.
        num_beams (`list[int]`, *optional*): labels by beam search too, with so many beams, for example `5`.
        language (`str`, *optional*, defaults to `"en"`): whose normaliser scores the labels.
        dtype (`str`, *optional*, defaults to `"float32"`): type of the teacher's weights.
        dry_run (`bool`, *optional*, defaults to `False`): check the inputs only.
    """

    teacher_model_name_or_path: str | None = setting(None, "Whisper that transcribes: Hub name or folder.")
    dataset: DataSource | str | None = source_setting("Utterances with text and speaker.")
    rows: int = setting(600, "Recordings of up to 30 s.")
    rounds: int = setting(3, "How often each way labels them all.")
    batch_size: int = setting(16, "Rows in one pass.")
    compute_types: list[str] = field(
        default_factory=list, metadata={"help": "Of CTranslate2, for example `float32 int8`; none by default."}
    )
    num_beams: list[int] = field(
        default_factory=list, metadata={"help": "Labels by beam search too, for example `5`; not by default."}
    )
    language: str = setting("en", "Whose normaliser scores the labels.")
    dtype: Literal["float32", "bfloat16", "float16"] = setting("float32", "Type of the teacher's weights.")
    dry_run: bool = setting(False, "Check the inputs only.")

    def __post_init__(self) -> None:
        self.dataset = as_source(self.dataset, "dataset") if self.dataset else None
        for name in ("rows", "rounds", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name}: expected a whole number above 0, got {getattr(self, name)}")
        if any(beams < 2 for beams in self.num_beams):
            raise InputError(f"--num_beams: expected whole numbers above 1 (1 is greedy), got {self.num_beams}")


def labelling_table(found: dict[str, LabellingSpeed]) -> str:
    """Speed, agreement with plain `generate`, and word error rate of every way, as Markdown."""
    plain = found[PLAIN]
    lines = ["|  | seconds | times as fast | same text | WER |", "|---|---|---|---|---|"]
    for name, way in found.items():
        same = sum(ours == theirs for ours, theirs in zip(way.texts, plain.texts, strict=True)) / len(plain.texts)
        ratio = plain.median / way.median
        lines.append(f"| {name} | {way.median:.1f} | {ratio:.2f} | {same:.1%} | {way.errors.wer:.2%} |")
    return "\n".join(lines)


@dataclass
class DataBenchmarkArguments:
    """Flags of `benchmark data`.

    Args:
        rows (`int`, *optional*, defaults to 1000000): synthetic rows.
        fewer_rows (`int`, *optional*, defaults to 100000): the same again with so many, to see what memory depends on.
        seconds (`float`, *optional*, defaults to 0.5): of audio in each row; packing decodes and encodes it.
        folder (`str`, *optional*): on a disk with room for 250 bytes a row; by default that of temporary files.
        dry_run (`bool`, *optional*, defaults to `False`): print the plan only.
    """

    rows: int = setting(1_000_000, "Synthetic rows.")
    fewer_rows: int = setting(100_000, "The same again with so many, to see what memory depends on.")
    seconds: float = setting(0.5, "Of audio in each row.")
    folder: str | None = setting(None, "For what is written; by default that of temporary files.")
    dry_run: bool = setting(False, "Print the plan only.")

    def __post_init__(self) -> None:
        if not 0 < self.seconds <= 30:
            raise InputError(f"--seconds: expected more than 0 and at most 30, got {self.seconds}")
        if not 0 < self.fewer_rows < self.rows:
            raise InputError(f"--fewer_rows: expected more than 0 and less than {self.rows}, got {self.fewer_rows}")


def data_table(few: dict[str, StepSpeed], many: dict[str, StepSpeed]) -> str:
    """Rows per second and peak memory of every step, as Markdown."""
    lines = ["|  | rows | rows/s | peak memory | with fewer rows | more bytes a row |", "|---|---|---|---|---|---|"]
    for name, step in many.items():
        less = few[name]
        growth = (step.peak_bytes - less.peak_bytes) / (step.rows - less.rows)
        peaks = [f"{one.peak_bytes / 1e6:,.0f} MB" for one in (step, less)]
        lines.append(
            f"| {name} | {step.rows:,} | {step.rows / step.seconds:,.0f} | {peaks[0]} | {peaks[1]} ({less.rows:,}) | "
            f"{growth:.0f} |"
        )
    return "\n".join(lines)


def run(argv: Sequence[str]) -> None:
    """Entry point of the command.

    Args:
        argv (`Sequence[str]`): what to measure, then a recipe and flags.
    """
    subjects = {
        "label": run_label,
        "data": run_data,
        "train": lambda flags: run_training(flags, machine()),
        "latency": lambda flags: run_latency(flags, machine()),
        "assistant": lambda flags: run_assistant(flags, machine()),
        "early-exit": lambda flags: run_early_exit(flags, machine()),
        "long-form-memory": lambda flags: run_long_form_memory(flags, machine()),
    }
    subject, flags = (argv[0], argv[1:]) if argv else ("nothing", argv)
    if subject in ("-h", "--help"):
        others = [f"hf-distil-whisper benchmark {name} --help" for name in subjects if name != "label"]
        sys.stdout.write(f"Also: {', '.join(others)}\n")
        subject, flags = "label", ["--help"]
    if subject not in subjects:
        raise InputError(f"expected what to measure, `benchmark {' | '.join(subjects)}`, got {subject!r}")
    subjects[subject](flags)


def run_data(argv: Sequence[str]) -> None:
    """Measures packing, filter and index.

    Args:
        argv (`Sequence[str]`): flags.
    """
    (args,) = parse_arguments(DataBenchmarkArguments, argv=argv, command="hf-distil-whisper benchmark data")
    plan = Plan("benchmark data")
    plan.steps.append(
        f"send {args.fewer_rows:,} and {args.rows:,} rows of {args.seconds:g} s through packing, filter and index"
    )
    if not plan.settle(dry_run=args.dry_run):
        return
    few, many = (measure_data(rows, args.seconds, args.folder) for rows in (args.fewer_rows, args.rows))
    sys.stdout.write(f"{data_table(few, many)}\n\n{machine()}\n")


def run_label(argv: Sequence[str]) -> None:
    """Measures labelling.

    Args:
        argv (`Sequence[str]`): a recipe, then flags.
    """
    (args,) = parse_arguments(LabellingBenchmarkArguments, argv=argv, command="hf-distil-whisper benchmark label")
    plan = Plan("benchmark label")
    if plan.model(args.teacher_model_name_or_path, "teacher_model_name_or_path") is not None:
        plan.processor(args.teacher_model_name_or_path or "", "teacher_model_name_or_path")
    plan.source(as_source(args.dataset, "dataset") if args.dataset else None, "dataset")
    plan.steps.append(f"label {args.rows} recordings {args.rounds} times in every way")
    if not plan.settle(dry_run=args.dry_run):
        return
    rows = mixed_recordings(plan.datasets["dataset"], args.rows)
    teacher, processor = load_listener(args.teacher_model_name_or_path or "", args.dtype)
    found = measure_labelling(
        teacher, processor, rows, compute_types=args.compute_types, num_beams=args.num_beams,
        batch_size=args.batch_size, rounds=args.rounds, language=args.language,
    )  # fmt: skip
    sys.stdout.write(f"{labelling_table(found)}\n\n{args.rows} recordings, medians of {args.rounds}, {machine()}\n")
