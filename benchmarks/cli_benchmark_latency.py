"""`benchmark latency`: how fast models transcribe, in turn, over batch sizes, attention implementations and caches."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Literal

from hf_distil_whisper.checkpoints import (
    load_model,
    load_processor,
)
from hf_distil_whisper.cli.config import (
    DataSource,
    InputError,
    as_training_sources,
    parse_arguments,
    setting,
    short_names,
    source_setting,
)
from hf_distil_whisper.cli.inputs import (
    Plan,
    best_device,
    describe_rows,
    torch_dtype,
)
from hf_distil_whisper.data.sources import without_decoder
from hf_distil_whisper.inference.prompt import (
    max_generated_tokens,
    resolve_language,
)
from latency_grid import (
    CACHES,
    PAPER_SAMPLES,
    check_attention,
    latency_grid,
)
from latency_rows import (
    LatencyRow,
    latency_table,
    rtf_table,
)


@dataclass
class LatencyBenchmarkArguments:
    """Flags of `benchmark latency`; the defaults are the paper's protocol (appendix B.2), type and attention aside.

    Args:
        model_name_or_path (`str`): model to time, Hub name or folder.
        teacher_model_name_or_path (`str`, *optional*): timed with it; relative latencies are to it. It predicts
            timestamps in batches of more than one, the others do not.
        other_models (`list[str]`, *optional*): more models to time with them.
        dataset ([`DataSource`] or `dict[str, DataSource]`): recordings of any length; several sets by name.
        samples (`int`, *optional*, defaults to 256): rows of each set.
        batch_sizes (`list[int]`, *optional*, defaults to 1, 4 and 16): windows per pass.
        attn_implementations (`list[str]`, *optional*, defaults to `sdpa`): also `eager`, `flash_attention_2`.
        caches (`list[str]`, *optional*, defaults to `dynamic`): of keys and values; also `static`.
        num_tokens (`int`, *optional*): exactly so many tokens per window; models end by themselves where left out.
        chunked (`bool`, *optional*, defaults to `True`): batches of more than one hear all recordings in a row, in
            chunks of a window.
        repeats (`int`, *optional*, defaults to 3): repetitions over all recordings, in turn.
        memory (`bool`, *optional*, defaults to `True`): measure peak memory too.
        dtype (`str`, *optional*, defaults to `"float32"`): type of the weights; float16 in the paper.
        language (`str`, *optional*): of the speech, for multilingual models.
        output_dir (`str`, *optional*): folder for `results.json`.
        dry_run (`bool`, *optional*, defaults to `False`): check the inputs and print the plan only.
    """

    model_name_or_path: str | None = setting(None, "Model to time: Hub name or folder.")
    teacher_model_name_or_path: str | None = setting(None, "Timed with it; relative latencies are to it.")
    other_models: list[str] = field(default_factory=list, metadata={"help": "More models to time with them."})
    dataset: dict[str, DataSource] | str | None = source_setting("Recordings, one set or {name: path}.")
    samples: int = setting(PAPER_SAMPLES, "Rows of each set.")
    batch_sizes: list[int] = field(default_factory=lambda: [1, 4, 16], metadata={"help": "Windows per pass."})
    attn_implementations: list[str] = field(
        default_factory=lambda: ["sdpa"], metadata={"help": "Some of: sdpa eager flash_attention_2."}
    )
    caches: list[str] = field(default_factory=lambda: ["dynamic"], metadata={"help": "Some of: dynamic static."})
    num_tokens: int | None = setting(None, "Exactly so many tokens per window; else models end by themselves.")
    chunked: bool = setting(True, "Batches of more than one hear all recordings in a row, in chunks of a window.")
    repeats: int = setting(3, "Repetitions over all recordings, in turn.")
    memory: bool = setting(True, "Measure peak memory too.")
    dtype: Literal["float32", "bfloat16", "float16"] = setting("float32", "Type of the weights.")
    language: str | None = setting(None, "Of the speech, for multilingual models; detected where left out.")
    output_dir: str | None = setting(None, "Folder for results.json.")
    dry_run: bool = setting(False, "Check the inputs and print the plan only.")

    def __post_init__(self) -> None:
        self.dataset = as_training_sources(self.dataset, "dataset", "test")
        for name in ("samples", "repeats"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name}: expected a whole number above 0, got {getattr(self, name)}")
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise InputError(f"--batch_sizes: expected whole numbers above 0, got {self.batch_sizes}")
        if not self.caches or not set(self.caches) <= set(CACHES):
            raise InputError(f"--caches: expected some of {', '.join(CACHES)}, got {self.caches}")

    def models(self) -> dict[str, str]:
        """Names or paths by the name that stands in the tables."""
        teacher = self.teacher_model_name_or_path
        return short_names([*([teacher] if teacher else []), self.model_name_or_path or "", *self.other_models])


def plan_latency(args: LatencyBenchmarkArguments) -> Plan:
    """Checks models and recordings.

    Args:
        args (`LatencyBenchmarkArguments`): what to time on what.
    """
    plan = Plan("benchmark latency")
    plan.single_process()
    flags = [("model_name_or_path", args.model_name_or_path)]
    if args.teacher_model_name_or_path is not None:
        flags.append(("teacher_model_name_or_path", args.teacher_model_name_or_path))
    for flag, place in [*flags, *(("other_models", place) for place in args.other_models)]:
        model = plan.model(place, flag)
        if model is None:
            continue
        plan.processor(place or "", flag)
        try:
            resolve_language(model, args.language)
        except ValueError as error:
            plan.problems.append(f"--language: {place}: {error}")
        most = max_generated_tokens(model, return_timestamps=False)
        if args.num_tokens is not None and not 1 <= args.num_tokens <= most:
            plan.problems.append(f"--num_tokens: {place} can write 1 to {most} in a window, got {args.num_tokens}")
    try:
        check_attention(args.attn_implementations, best_device(), torch_dtype(args.dtype))
    except ValueError as error:
        plan.problems.append(f"--{error}")
    sources = args.dataset if isinstance(args.dataset, dict) else {}
    for name, source in sources.items() or [("dataset", None)]:
        flag = name if name == "dataset" else f"dataset.{name}"
        rows = plan.source(source, flag, ("audio",))
        if rows is not None:
            plan.datasets[flag] = rows.select(range(min(args.samples, len(rows))))
            plan.figures[f"audio of {name}"] = describe_rows(plan.datasets[flag])
    sizes, settings = ", ".join(map(str, args.batch_sizes)), product(args.attn_implementations, args.caches)
    plan.steps.append(
        f"time {' and '.join(args.models())}, {args.repeats} times in turn, at batch sizes {sizes}, with "
        + ", ".join(f"{attention} and a {cache} cache" for attention, cache in settings)
    )
    if args.output_dir is not None:
        plan.output(args.output_dir)
        plan.steps.append(f"write the results to {args.output_dir}")
    return plan


def save_latencies(rows: Sequence[LatencyRow], folder: str, **facts: object) -> None:
    """Writes `results.json`: every row with its counts and rates, and how it was measured.

    Args:
        rows (`Sequence[LatencyRow]`): from [`latency_grid`].
        folder (`str`): made where it is missing.
        facts: that hold for all rows, for example `machine` and `dtype`.
    """
    rates = ("rtf", "inverse_rtf", "tokens_per_second")
    content = [asdict(row) | {name: getattr(row, name) for name in rates} for row in rows]
    Path(folder).mkdir(parents=True, exist_ok=True)
    Path(folder, "results.json").write_text(json.dumps({**facts, "rows": content}, indent=2) + "\n")


def run_latency(argv: Sequence[str], machine: str) -> None:
    """Measures latencies.

    Args:
        argv (`Sequence[str]`): a recipe, then flags.
        machine (`str`): what it is measured on, in words.
    """
    (args,) = parse_arguments(LatencyBenchmarkArguments, argv=argv, command="hf-distil-whisper benchmark latency")
    plan = plan_latency(args)
    if not plan.settle(dry_run=args.dry_run):
        return
    places = args.models()
    models = {name: load_model(at, dtype=torch_dtype(args.dtype)).to(best_device()) for name, at in places.items()}
    processors = {name: load_processor(at) for name, at in places.items()}
    teacher = next(iter(places)) if args.teacher_model_name_or_path else None
    heard = [row for rows in plan.datasets.values() for row in without_decoder(rows)]
    rows = latency_grid(
        models, heard, processors, teacher=teacher, batch_sizes=args.batch_sizes,
        attn_implementations=args.attn_implementations, caches=args.caches, num_tokens=args.num_tokens,
        chunked=args.chunked, timestamps=[teacher] if teacher else [], repeats=args.repeats, language=args.language,
        memory=args.memory,
    )  # fmt: skip
    sys.stdout.write(f"{rtf_table(rows)}\n\n{latency_table(rows)}\n\n")
    sys.stdout.write(
        f"{rows[0].num_recordings} recordings of {rows[0].audio_seconds:.0f} s in all, medians of {args.repeats}, "
        f"{args.dtype}, {machine}\n"
    )
    if args.output_dir is not None:
        save_latencies(rows, args.output_dir, machine=machine, dtype=args.dtype)
