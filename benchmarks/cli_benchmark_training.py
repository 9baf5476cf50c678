"""`benchmark train`: steps of this library in every mode beside the plain one, for a checkpoint's shape."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

import torch

from hf_distil_whisper.cli.config import (
    InputError,
    parse_arguments,
    setting,
)
from hf_distil_whisper.cli.inputs import (
    Plan,
    best_device,
)
from loss_memory import loss_memory
from training_speed import (
    SHAPES,
    TRIMMED,
    TrainingSpeed,
    measure_training,
    random_batch,
    random_whisper,
)


@dataclass
class TrainingBenchmarkArguments:
    """Flags of `benchmark train`.

    Args:
        shape (`str`, *optional*, defaults to `"small"`): of the teacher: "tiny" to "large-v3", with random weights.
        decoder_layers (`int`, *optional*, defaults to 2): of the student.
        batch_size (`int`, *optional*, defaults to 4): windows of a step.
        shortest (`int`, *optional*, defaults to 51): tokens of the shortest label of a batch.
        longest (`int`, *optional*, defaults to 128): tokens of the longest one.
        rounds (`int`, *optional*, defaults to 5): steps of each way, in turn, after one that is not counted.
        top_k (`int`, *optional*, defaults to 64): tokens kept of the teacher's distributions.
        bf16 (`bool`, *optional*, defaults to `False`): mixed precision.
        padded_step (`bool`, *optional*, defaults to `True`): measure the plain step with labels padded to 448 as well.
        memory (`bool`, *optional*, defaults to `False`): measure what the loss alone takes for 8 labels of 448 tokens
            of large-v3, on the CPU; the plain one needs 10 GB.
        dry_run (`bool`, *optional*, defaults to `False`): print the plan only.
    """

    shape: Literal["tiny", "base", "small", "medium", "large-v2", "large-v3"] = setting("small", "Of the teacher.")
    decoder_layers: int = setting(2, "Of the student.")
    batch_size: int = setting(4, "Windows of a step.")
    shortest: int = setting(51, "Tokens of the shortest label.")
    longest: int = setting(128, "Tokens of the longest label.")
    rounds: int = setting(5, "Steps of each way.")
    top_k: int = setting(64, "Tokens kept of the teacher's distributions.")
    bf16: bool = setting(False, "Mixed precision.")
    padded_step: bool = setting(True, "Also measure the plain step with labels padded to 448.")
    memory: bool = setting(False, "Also measure the memory of the loss alone, on the CPU; needs 10 GB.")
    dry_run: bool = setting(False, "Print the plan only.")

    def __post_init__(self) -> None:
        for name in ("decoder_layers", "batch_size", "rounds", "top_k"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name}: expected a whole number above 0, got {getattr(self, name)}")
        if not 1 <= self.shortest <= self.longest <= 447:
            raise InputError(
                "--shortest, --longest: expected 1 <= shortest <= longest <= 447, got "
                f"{self.shortest} and {self.longest}"
            )
        if self.decoder_layers > SHAPES[self.shape][1]:
            raise InputError(
                f"--decoder_layers: {self.shape} has {SHAPES[self.shape][1]}, {self.decoder_layers} were asked for"
            )


def training_table(found: TrainingSpeed, rows: int) -> str:
    """Every way as a line of Markdown, then the stages of a step and where its forward pass goes."""
    baseline = found.steps[TRIMMED].median
    lines = [
        "|  | s/step | samples/s | times as fast | TFLOP | floor, s | step / floor | trained | peak memory |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, step in found.steps.items():
        floor = found.floor(name)
        memory = "-" if step.peak_bytes is None else f"{step.peak_bytes / 1e9:.1f} GB"
        lines.append(
            f"| {name} | {step.median:.3g} | {rows / step.median:.3g} | {baseline / step.median:.2f} | "
            f"{step.flops / 1e12:.2f} | {floor:.3g} | {step.median / floor:.2f} | "
            f"{step.trained_bytes / 1e9:.3f} GB | {memory} |"
        )
    lines += ["", "|  | loss | backward | optimizer |", "|---|---|---|---|"]
    for name, step in found.steps.items():
        shares = [median(step.stages[stage]) / step.median for stage in ("loss", "backward", "optimizer")]
        lines.append(f"| {name} | " + " | ".join(f"{share:.0%}" for share in shares) + " |")
    parts = ", ".join(f"{name} {seconds:.3g} s" for name, seconds in found.parts.items())
    lines += [
        "",
        f"Forward alone: {parts}.",
        f"Exact against plain from equal weights: loss {found.loss_difference:.1e}, gradients "
        f"{found.gradient_difference:.1e} apart (relative).",
        f"The floor: {found.matrix_rate / 1e9:,.0f} GFLOP/s in matrix products, {found.copy_rate / 1e9:.1f} GB/s in "
        "copies.",
    ]
    return "\n".join(lines)


def run_training(argv: Sequence[str], machine: str) -> None:
    """Measures training steps.

    Args:
        argv (`Sequence[str]`): flags.
        machine (`str`): what it is measured on, in words.
    """
    (args,) = parse_arguments(TrainingBenchmarkArguments, argv=argv, command="hf-distil-whisper benchmark train")
    plan = Plan("benchmark train")
    plan.steps.append(
        f"take {args.rounds} steps of {args.batch_size} windows in every way, whisper-{args.shape} to "
        f"{args.decoder_layers} decoder layers"
    )
    if not plan.settle(dry_run=args.dry_run):
        return
    # An accelerator draws the weights of large-v3 in a second, a CPU in half a minute.
    with torch.device(best_device()):
        teacher = random_whisper(args.shape, torch.bfloat16 if args.bf16 else torch.float32)
    found = measure_training(
        teacher, random_batch(teacher.config, args.batch_size, args.shortest, args.longest),
        decoder_layers=args.decoder_layers, rounds=args.rounds, top_k=args.top_k, bf16=args.bf16,
        with_padding=args.padded_step,
    )  # fmt: skip
    sys.stdout.write(f"{training_table(found, args.batch_size)}\n")
    if args.memory:
        peaks = loss_memory()
        sys.stdout.write(
            f"The loss alone at (8, 448, 51,866), width 1280: plain {peaks['plain'] / 1e9:.2f} GB, fused "
            f"{peaks['fused'] / 1e9:.2f} GB, a ratio of {peaks['plain'] / peaks['fused']:.1f}.\n"
        )
    precision = "bf16" if args.bf16 else "float32"
    sys.stdout.write(
        f"\nwhisper-{args.shape}, batch {args.batch_size}, {args.shortest} to {args.longest} tokens, {precision}, "
        f"medians of {args.rounds}; {machine}\n"
    )
