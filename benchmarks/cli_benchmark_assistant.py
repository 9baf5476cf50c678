"""`benchmark assistant`: what speculative decoding gains with any pair of models, and that the text stays the same."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from datasets import Dataset
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from assisted_latency import (
    ALONE,
    Way,
    WayTimes,
    assisted_parameters,
    generate_way,
    library_way,
    long_form_way,
    measure_ways,
    pipeline_way,
    runtime_way,
    ways_table,
)
from figures import latency_over_draft_length
from hf_distil_whisper.cli.config import (
    DataSource,
    InputError,
    as_source,
    parse_arguments,
    setting,
    short_names,
    source_setting,
)
from hf_distil_whisper.cli.inputs import (
    Plan,
    describe_rows,
    load_assistant,
    load_listener,
)
from hf_distil_whisper.data.audio import (
    SAMPLING_RATE,
    AudioError,
    load_audio,
)
from hf_distil_whisper.data.packing import pack_utterances
from hf_distil_whisper.data.sources import RowErrors
from hf_distil_whisper.inference.ctranslate2 import import_ctranslate2
from hf_distil_whisper.inference.decoder import Assistant
from hf_distil_whisper.inference.encoder import window_seconds

GENERATE, PIPELINE = "alone, `generate`", "alone, pipeline"
PAUSE = 0.3
"""Seconds between utterances that are joined to windows."""


@dataclass
class AssistantBenchmarkArguments:
    """Flags of `benchmark assistant`.

    Args:
        model_name_or_path (`str`): the model whose text it is, a teacher: Hub name or folder.
        assistants (`list[str]`): what drafts for it: students that share its encoder, or whole smaller Whispers of
            its vocabulary, which hear by themselves.
        dataset ([`DataSource`]): utterances; they are measured as they are, and joined to windows of 30 s.
        long_form_dataset ([`DataSource`], *optional*): recordings of any length.
        samples (`int`, *optional*, defaults to 64): utterances that are timed; texts are compared on all of them.
        windows (`int`, *optional*, defaults to 16): windows of 30 s that are timed.
        batch_sizes (`list[int]`, *optional*, defaults to 1, 4 and 16): recordings per pass (Table 22).
        draft_lengths (`list[int]`, *optional*): also measures these fixed lengths with the first assistant.
        compute_types (`list[str]`, *optional*): of CTranslate2 (extra `ct2`), for example `int8`: the models by
            themselves in that runtime, beside the others.
        repeats (`int`, *optional*, defaults to 3): repetitions over all recordings, in turn.
        dtype (`str`, *optional*, defaults to `"float32"`): type of the weights.
        language (`str`, *optional*): of the speech, for multilingual models.
        output_dir (`str`, *optional*): folder for `results.json`, and `draft_length.svg` with `draft_lengths`.
        dry_run (`bool`, *optional*, defaults to `False`): check the inputs and print the plan only.
    """

    model_name_or_path: str | None = setting(None, "The model whose text it is: Hub name or folder.")
    assistants: list[str] = field(default_factory=list, metadata={"help": "Students of it, or smaller Whispers."})
    dataset: DataSource | str | None = source_setting("Utterances: as they are, and joined to windows of 30 s.")
    long_form_dataset: DataSource | str | None = source_setting("Recordings of any length.")
    samples: int = setting(64, "Utterances that are timed; texts are compared on all.")
    windows: int = setting(16, "Windows of 30 s that are timed.")
    batch_sizes: list[int] = field(default_factory=lambda: [1, 4, 16], metadata={"help": "Recordings per pass."})
    draft_lengths: list[int] = field(
        default_factory=list, metadata={"help": "Fixed draft lengths to measure too, for example `1 2 4 8 16`."}
    )
    compute_types: list[str] = field(
        default_factory=list, metadata={"help": "Of CTranslate2, for example `int8`; none by default."}
    )
    repeats: int = setting(3, "Repetitions over all recordings, in turn.")
    dtype: Literal["float32", "bfloat16", "float16"] = setting("float32", "Type of the weights.")
    language: str | None = setting(None, "Of the speech, for multilingual models; detected where left out.")
    output_dir: str | None = setting(None, "Folder for results.json and the picture.")
    dry_run: bool = setting(False, "Check the inputs and print the plan only.")

    def __post_init__(self) -> None:
        self.dataset = as_source(self.dataset, "dataset") if self.dataset else None
        self.long_form_dataset = (
            as_source(self.long_form_dataset, "long_form_dataset") if self.long_form_dataset else None
        )
        for name in ("samples", "windows", "repeats"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name}: expected a whole number above 0, got {getattr(self, name)}")
        for name in ("batch_sizes", "draft_lengths"):
            if any(number < 1 for number in getattr(self, name)):
                raise InputError(f"--{name}: expected whole numbers above 0, got {getattr(self, name)}")
        if not self.batch_sizes:
            raise InputError("--batch_sizes: expected at least one, got none")


def plan_assistant(args: AssistantBenchmarkArguments) -> Plan:
    """Checks models, pairs and recordings.

    Args:
        args (`AssistantBenchmarkArguments`): what to measure on what.
    """
    plan = Plan("benchmark assistant")
    plan.single_process()
    plan.listener(args.model_name_or_path, args.language)
    plan.require(args.assistants, "assistants", "at least one model that drafts")
    for place in args.assistants:
        plan.model(place, "assistants")
    if plan.require(args.dataset, "dataset", "the utterances to measure on"):
        rows = plan.source(args.dataset, "dataset", ("audio",))  # type: ignore[arg-type]
        if rows is not None:
            plan.figures["utterances"] = describe_rows(rows)
    if args.long_form_dataset is not None:
        plan.source(args.long_form_dataset, "long_form_dataset", ("audio",))  # type: ignore[arg-type]
    sizes = ", ".join(map(str, args.batch_sizes))
    plan.steps.append(
        f"time {args.model_name_or_path} alone and assisted, {args.repeats} times, at batch sizes {sizes}"
    )
    if args.compute_types:
        try:
            import_ctranslate2()
        except ImportError as error:
            plan.problems.append(f"--compute_types: {error}")
    if args.output_dir is not None:
        plan.output(args.output_dir)
        plan.steps.append(f"write the results to {args.output_dir}")
    return plan


def short_ways(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    assistants: Mapping[str, Assistant],
    wholes: Mapping[str, WhisperForConditionalGeneration],
    batch_size: int,
    compute_types: Sequence[str],
    language: str | None,
) -> dict[str, Way]:
    """All ways from a window to its text: alone, assisted, in the pipeline; and each assistant's model by itself."""
    ways = {
        ALONE: library_way(model, processor, language=language),
        GENERATE: generate_way(model, processor, language=language),
        PIPELINE: pipeline_way(model, processor, language=language),
    }
    for name, assistant in assistants.items():
        ways[f"with {name}"] = library_way(model, processor, assistant=assistant, language=language)
        ways[f"with {name}, pipeline"] = pipeline_way(model, processor, assistant=assistant, language=language)
        if batch_size == 1 and assistant is not wholes[name]:
            ways[f"with {name}, pipeline's own"] = pipeline_way(
                model, processor, stock_assistant=assistant, language=language
            )
        ways[f"{name} alone, other text"] = library_way(wholes[name], processor, language=language)
    for kind in compute_types:
        ways[f"alone, CTranslate2 {kind}"] = runtime_way(model, processor, kind, language=language)
        for name, whole in wholes.items():
            ways[f"{name} alone, CTranslate2 {kind}"] = runtime_way(whole, processor, kind, language=language)
    return ways


def packed_windows(rows: Dataset, count: int) -> list[np.ndarray]:
    """Utterances of one speaker joined to windows of nearly 30 s, with a pause between them."""
    ordered = rows.sort("speaker") if "speaker" in rows.column_names else rows
    speaker = "speaker" if "speaker" in rows.column_names else None
    # Rows that cannot be read are told of where the utterances are.
    packed = pack_utterances(ordered, gap=PAUSE, speaker_column=speaker, errors=RowErrors())
    return [load_audio(row["audio"]) for row in islice((row for row in packed if row["duration"] > 25), count)]


def run_assistant(argv: Sequence[str], machine: str) -> None:
    """Measures speculative decoding.

    Args:
        argv (`Sequence[str]`): a recipe, then flags.
        machine (`str`): what it is measured on, in words.
    """
    (args,) = parse_arguments(AssistantBenchmarkArguments, argv=argv, command="hf-distil-whisper benchmark assistant")
    plan = plan_assistant(args)
    if not plan.settle(dry_run=args.dry_run):
        return
    model, processor = load_listener(args.model_name_or_path or "", args.dtype)
    pairs = {short: load_assistant(place, model) for short, place in short_names(args.assistants).items()}
    wholes = {short: whole for short, (whole, _) in pairs.items()}
    assistants = {short: assistant for short, (_, assistant) in pairs.items()}
    parameters = {
        short if short == ALONE else f"with {short}": count
        for short, count in assisted_parameters(model, assistants).items()
    }
    errors = RowErrors()
    window = round(window_seconds(processor) * SAMPLING_RATE)
    utterances = [one for one in _recordings(plan.datasets["dataset"], errors) if len(one) <= window]
    found: dict[str, dict[int, dict[str, WayTimes]]] = {}
    sets = {
        "utterances": utterances[: args.samples],
        "windows of 30 s": packed_windows(plan.datasets["dataset"], args.windows),
    }
    for title, recordings in sets.items():
        if not recordings:
            sys.stdout.write(f"{title}: the dataset has too little speech of one speaker\n\n")
            continue
        found[title] = {
            size: measure_ways(
                short_ways(model, processor, assistants, wholes, size, args.compute_types, args.language), recordings,
                batch_size=size, repeats=args.repeats,
            )
            for size in args.batch_sizes
        }  # fmt: skip
        _print(title, found[title], parameters, [ALONE, GENERATE])
    if args.long_form_dataset is not None:
        recordings = list(_recordings(plan.datasets["long_form_dataset"], errors))
        for title, times in _long_form(model, processor, assistants, recordings, args).items():
            found[title] = {1: times}
            _print(title, found[title], parameters, [ALONE])
    first = next(iter(assistants.values()))
    curves = {
        f"batch size {size}": _by_draft_length(model, processor, first, sets["windows of 30 s"], size, args)
        for size in (args.batch_sizes if args.draft_lengths and sets["windows of 30 s"] else [])
    }
    same = _same_everywhere(model, processor, assistants, utterances, args.language)
    sys.stdout.write(f"same text on all {len(utterances)} utterances in batches: {same}\n")
    sys.stdout.write(f"{args.repeats} repetitions in turn, medians, {args.dtype}, {machine}\n{errors.summary()}")
    if args.output_dir is not None:
        _save(found, curves, args.output_dir, machine=machine, dtype=args.dtype)


def _recordings(rows: Dataset, errors: RowErrors) -> Iterator[np.ndarray]:
    """Samples at 16 kHz; a row that cannot be read costs that row."""
    for number, row in enumerate(rows):
        try:
            yield load_audio(row["audio"])
        except AudioError as error:
            errors.add(row.get("id", number), error)


def _long_form(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    assistants: Mapping[str, Assistant],
    recordings: list[np.ndarray],
    args: AssistantBenchmarkArguments,
) -> dict[str, dict[str, WayTimes]]:
    """By algorithm: the model alone and with each assistant."""
    found = {}
    for title, chunked in (("long recordings, sequential", False), ("long recordings, chunked", True)):
        ways = {ALONE: long_form_way(model, processor, chunked=chunked, language=args.language)}
        for name, assistant in assistants.items():
            ways[f"with {name}"] = long_form_way(
                model, processor, assistant=assistant, chunked=chunked, language=args.language
            )
        found[title] = measure_ways(ways, recordings, repeats=args.repeats)
    return found


def _print(
    title: str, times: dict[int, dict[str, WayTimes]], parameters: dict[str, int], baselines: list[str]
) -> None:
    count = next(iter(next(iter(times.values())).values())).num_recordings
    sys.stdout.write(f"{title} ({count}), times as fast as the model alone:\n\n")
    sys.stdout.write(f"{ways_table(times, parameters, baselines)}\n\n")
    sys.stdout.flush()


def _by_draft_length(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    assistant: Assistant,
    recordings: list[np.ndarray],
    batch_size: int,
    args: AssistantBenchmarkArguments,
) -> dict[str, float]:
    """Times as fast as the model alone, by draft length; "chosen" by the acceptance."""
    lengths: dict[str, int | None] = {"chosen": None, **{str(length): length for length in args.draft_lengths}}
    ways = {ALONE: library_way(model, processor, language=args.language)}
    for label, length in lengths.items():
        ways[label] = library_way(model, processor, assistant=assistant, draft_length=length, language=args.language)
    times = measure_ways(ways, recordings, batch_size=batch_size, repeats=args.repeats)
    ratios = {label: times[ALONE].median / times[label].median for label in lengths}
    sys.stdout.write(
        f"draft length at batch size {batch_size}: "
        + ", ".join(f"{label} {ratio:.2f}" for label, ratio in ratios.items())
        + "\n\n"
    )
    sys.stdout.flush()
    return ratios


def _same_everywhere(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    assistants: Mapping[str, Assistant],
    recordings: list[np.ndarray],
    language: str | None,
) -> str:
    ways = {ALONE: library_way(model, processor, language=language)}
    for name, assistant in assistants.items():
        ways[name] = library_way(model, processor, assistant=assistant, language=language)
    times = measure_ways(ways, recordings, batch_size=16, repeats=1)
    return ", ".join(f"{name} {times[name].num_same}" for name in assistants)


def _save(
    found: Mapping[str, Mapping[int, Mapping[str, WayTimes]]],
    curves: Mapping[str, Mapping[str, float]],
    folder: str,
    **facts: object,
) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    content = {
        title: {size: {name: asdict(way) for name, way in ways.items()} for size, ways in sizes.items()}
        for title, sizes in found.items()
    }
    results = {**facts, "times": content, "draft_lengths": curves}
    Path(folder, "results.json").write_text(json.dumps(results, indent=2) + "\n")
    if curves:
        fixed = {
            label: {int(length): ratio for length, ratio in ratios.items() if length != "chosen"}
            for label, ratios in curves.items()
        }
        chosen = {label: ratios["chosen"] for label, ratios in curves.items()}
        latency_over_draft_length(fixed, chosen, Path(folder, "draft_length.svg"))
