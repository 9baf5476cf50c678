"""`benchmark`: how fast the library is on this machine, beside the plain way, as ratios."""

import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from hf_distil_whisper.checkpoints import load_model, load_processor
from hf_distil_whisper.cli.arguments import DataSource, as_source, parse_arguments, setting, source_setting
from hf_distil_whisper.cli.plans import Plan, best_device, torch_dtype
from hf_distil_whisper.cli.recipes import InputError
from hf_distil_whisper.evaluation.labelling_speed import (
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
    language: str = setting("en", "Whose normaliser scores the labels.")
    dtype: str = setting("float32", "Type of the teacher's weights.")
    dry_run: bool = setting(False, "Check the inputs only.")

    def __post_init__(self) -> None:
        self.dataset = as_source(self.dataset, "dataset") if self.dataset else None
        for name in ("rows", "rounds", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name}: expected a whole number above 0, got {getattr(self, name)}")


def labelling_table(found: dict[str, LabellingSpeed]) -> str:
    """Speed, agreement with plain `generate`, and word error rate of every way, as Markdown."""
    plain = found[PLAIN]
    lines = ["|  | seconds | times as fast | same text | WER |", "|---|---|---|---|---|"]
    for name, way in found.items():
        same = sum(ours == theirs for ours, theirs in zip(way.texts, plain.texts, strict=True)) / len(plain.texts)
        ratio = plain.median / way.median
        lines.append(f"| {name} | {way.median:.1f} | {ratio:.2f} | {same:.1%} | {way.errors.wer:.2%} |")
    return "\n".join(lines)


def machine() -> str:
    """What the figures were measured on, in words and without names."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} processor"
    level = torch.backends.cpu.get_cpu_capability()
    return f"{device} ({level}), {torch.get_num_threads()} threads, torch {torch.__version__}"


def run(argv: Sequence[str]) -> None:
    """Entry point of the command.

    Args:
        argv (`Sequence[str]`): what to measure, then a recipe and flags.
    """
    subject, flags = (argv[0], argv[1:]) if argv else ("nothing", argv)
    if subject in ("-h", "--help"):
        subject, flags = "label", ["--help"]
    if subject != "label":
        raise InputError(f"expected what to measure, `benchmark label`, got {subject!r}")
    (args,) = parse_arguments(LabellingBenchmarkArguments, argv=flags, command="hf-distil-whisper benchmark label")
    plan = Plan("benchmark label")
    if plan.model(args.teacher_model_name_or_path, "teacher_model_name_or_path") is not None:
        plan.processor(args.teacher_model_name_or_path or "", "teacher_model_name_or_path")
    plan.source(as_source(args.dataset, "dataset") if args.dataset else None, "dataset")
    plan.steps.append(f"label {args.rows} recordings {args.rounds} times in every way")
    if not plan.settle(dry_run=args.dry_run):
        return
    rows = mixed_recordings(plan.datasets["dataset"], args.rows)
    name = args.teacher_model_name_or_path or ""
    teacher = load_model(name, dtype=torch_dtype(args.dtype)).to(best_device()).eval()
    found = measure_labelling(
        teacher, load_processor(name), rows, compute_types=args.compute_types, batch_size=args.batch_size,
        rounds=args.rounds, language=args.language,
    )  # fmt: skip
    sys.stdout.write(f"{labelling_table(found)}\n\n{args.rows} recordings, medians of {args.rounds}, {machine()}\n")
