"""`benchmark long-form-memory`: the memory that recordings of minutes and of hours take to transcribe."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from hf_distil_whisper.cli.config import (
    InputError,
    parse_arguments,
    setting,
)
from hf_distil_whisper.cli.inputs import Plan
from long_form_memory import long_form_memory


@dataclass
class LongFormMemoryArguments:
    """Flags of `benchmark long-form-memory`.

    Args:
        model_name_or_path (`str`): model that transcribes, Hub name or folder; on the CPU, in float32.
        minutes (`list[float]`, *optional*, defaults to 5 and 180): lengths of the recordings, stereo files of sound
            that are made for it.
        method (`str`, *optional*, defaults to `"chunked"`): or "sequential".
        temperature_fallback (`bool`, *optional*, defaults to `False`): with "sequential".
        batch_size (`int`, *optional*, defaults to 4): chunks in one pass.
        rate (`int`, *optional*, defaults to 44100): of the recordings, Hz.
        dry_run (`bool`, *optional*, defaults to `False`): check the inputs only.
    """

    model_name_or_path: str | None = setting(None, "Model that transcribes: Hub name or folder.")
    minutes: list[float] = field(
        default_factory=lambda: [5.0, 180.0], metadata={"help": "Lengths of the recordings that are made for it."}
    )
    method: Literal["chunked", "sequential"] = setting("chunked", "Algorithm of long form.")
    temperature_fallback: bool = setting(False, "Repeat unlikely windows, with --method sequential.")
    batch_size: int = setting(4, "Chunks in one pass.")
    rate: int = setting(44_100, "Of the recordings, Hz.")
    dry_run: bool = setting(False, "Check the inputs only.")

    def __post_init__(self) -> None:
        if min(self.minutes) < 1 or len(set(self.minutes)) < len(self.minutes):
            raise InputError(f"--minutes: expected different lengths of at least 1, got {self.minutes}")
        for name, least in (("batch_size", 1), ("rate", 8_000)):
            if getattr(self, name) < least:
                raise InputError(f"--{name}: expected a whole number of at least {least}, got {getattr(self, name)}")


def long_form_memory_table(found: Mapping[float, int]) -> str:
    """Peak memory by length, and what is taken beyond the first one, as Markdown.

    Args:
        found (`Mapping[float, int]`): of [`long_form_memory`].
    """
    first = next(iter(found.values()))
    lines = ["| recording / min | peak memory / MB | beyond the first / MB |", "|---:|---:|---:|"]
    lines += [f"| {minutes:g} | {peak / 1e6:.0f} | {(peak - first) / 1e6:+.0f} |" for minutes, peak in found.items()]
    return "\n".join(lines)


def run_long_form_memory(argv: Sequence[str], machine: str) -> None:
    """Measures peak memory, each length in a process of its own.

    Args:
        argv (`Sequence[str]`): a recipe, then flags.
        machine (`str`): what it is measured on, in words.
    """
    (args,) = parse_arguments(
        LongFormMemoryArguments, argv=argv, command="hf-distil-whisper benchmark long-form-memory"
    )
    plan = Plan("benchmark long-form-memory")
    plan.single_process()
    plan.listener(args.model_name_or_path, None)
    plan.long_form_method(args.method, "method", {}, {"temperature_fallback": args.temperature_fallback})
    lengths = ", ".join(f"{minutes:g}" for minutes in args.minutes)
    way = "window after window" if args.method == "sequential" else f"in chunks, {args.batch_size} a pass"
    way += ", repeated where unlikely" if args.temperature_fallback else ""
    plan.steps.append(f"transcribe stereo recordings of {lengths} minutes {way}, each in a process of its own")
    if not plan.settle(dry_run=args.dry_run):
        return
    place = args.model_name_or_path or ""
    found = long_form_memory(
        place,
        args.minutes,
        method=args.method,
        temperature_fallback=args.temperature_fallback,
        batch_size=args.batch_size,
        rate=args.rate,
    )
    sys.stdout.write(
        f"{long_form_memory_table(found)}\n\n{way.capitalize()}, stereo at {args.rate} Hz; weights and libraries "
        f"included, {machine}\n"
    )
