"""Greedy search and speculative decoding: the gain at each batch size, with the same text (Tables 9 and 22).

    python benchmarks/speculative.py --model_name_or_path runs/quickstart/teacher \
        --assistants runs/quickstart/student --dataset "{path: examples/quickstart/corpus, split: test_kathleen}" \
        --long_form_dataset "{path: examples/quickstart/corpus, split: longform}" \
        --draft_lengths 1 2 4 8 12 16 --output_dir runs/assistant

Utterances as they are, the same joined to windows of 30 s, and long recordings; from samples to text, all methods in
turn. Without `--assistants`, this library's greedy search is compared with `generate` and the pipeline. Cost: about an
hour on two CPU cores.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset
from transformers import pipeline

from figures import latency_over_draft_length
from hf_distil_whisper import (
    AudioError,
    RowErrors,
    assistant_arguments,
    load_audio,
    pack_utterances,
    parse_arguments,
    run_script,
    transcribe_chunked,
    transcribe_sequential,
)
from hf_distil_whisper.cli.config import DataSource, as_source, setting, source_setting
from hf_distil_whisper.cli.inputs import load_assistant
from hf_distil_whisper.data.audio import SAMPLING_RATE
from hf_distil_whisper.inference.ctranslate2 import Ctranslate2Generator, import_runtime
from hf_distil_whisper.inference.decoder import Assistant
from hf_distil_whisper.inference.encoder import window_features, window_seconds
from hf_distil_whisper.inference.generation import generate_tokens
from hf_distil_whisper.inference.output import plain_text
from hf_distil_whisper.inference.prompt import is_multilingual, timestamp_begin
from hf_distil_whisper.inference.speculative import DraftCounts, added_parameters
from inputs import LoadedModel, check_flags, list_setting, load_models, load_sets, ready
from tables import machine, save_json, short_names, table

ALONE, GENERATE, PIPELINE = "alone", "alone, `generate`", "alone, pipeline"
"""The model without an assistant, by this library's search, whose text is the reference, and by transformers'."""


@dataclass(frozen=True)
class Output:
    """Output of one decoding method for a batch."""

    texts: list[str]  # one for each recording
    drafts: DraftCounts = field(default_factory=DraftCounts)  # of an assistant, where the method counts them


Method = Callable[[Sequence[np.ndarray]], Output]
"""From a batch of recordings at 16 kHz of up to one window each to texts."""

Assistants = Mapping[str, tuple[LoadedModel, Assistant]]
"""Each assistant's model and what drafts, by name."""


@dataclass(frozen=True)
class MethodTimes:
    """One method at one batch size."""

    seconds: tuple[float, ...]  # over all recordings, one entry per repetition
    num_same: int  # recordings whose text is that of the model alone
    num_recordings: int  # in all
    drafts: DraftCounts  # over all recordings

    @property
    def median(self) -> float:
        """Seconds over all recordings, median of the repetitions."""
        return statistics.median(self.seconds)


Times = Mapping[int, Mapping[str, MethodTimes]]
"""By batch size and method."""


def by_library(whisper: LoadedModel, language: str | None, **options: Any) -> Method:
    """This library's search; `options` of [`generate_tokens`]: `assistant`, `draft_length`."""
    return partial(_by_library, whisper, partial(generate_tokens, whisper.model, language=language, **options))


def by_ctranslate2(whisper: LoadedModel, language: str | None, compute_type: str) -> Method:
    """CTranslate2, greedy; the model is converted on first use."""
    generate = Ctranslate2Generator(whisper.model, whisper.processor, compute_type=compute_type, language=language)
    return partial(_by_library, whisper, generate)


def _by_library(whisper: LoadedModel, generate: Callable[..., Any], recordings: Sequence[np.ndarray]) -> Output:
    model, processor = whisper
    sequences = generate(window_features(model, processor, recordings))
    texts = [plain_text(one.tokens, processor.tokenizer, timestamp_begin(model)) for one in sequences]
    return Output(texts, _sum([one.drafts for one in sequences]))


def by_generate(whisper: LoadedModel, language: str | None) -> Method:
    """`model.generate` as it comes with transformers, greedy."""
    model, processor = whisper
    options = _transformers_options(whisper, language)

    def decode(recordings: Sequence[np.ndarray]) -> Output:
        features = window_features(model, processor, recordings)
        # `generate` cannot know from features that nothing is padding, and warns without a mask.
        mask = torch.ones(len(features), features.shape[-1], dtype=torch.long, device=features.device)
        sequences = model.generate(features, attention_mask=mask, **options)
        return Output([text.strip() for text in processor.batch_decode(sequences, skip_special_tokens=True)])

    return decode


def by_pipeline(
    whisper: LoadedModel, language: str | None, *, stock_assistant: Any = None, assistant: Assistant | None = None
) -> Method:
    """Transformers' pipeline, greedy: with an `assistant_model` (batch size 1), or by [`assistant_arguments`]."""
    model, processor = whisper
    recognise = pipeline(
        "automatic-speech-recognition", model=model, tokenizer=processor.tokenizer,
        feature_extractor=processor.feature_extractor, assistant_model=stock_assistant,
    )  # fmt: skip
    options = _transformers_options(whisper, language)
    if assistant is not None:
        options |= assistant_arguments(assistant)["generate_kwargs"]

    def decode(recordings: Sequence[np.ndarray]) -> Output:
        inputs = [{"raw": samples, "sampling_rate": SAMPLING_RATE} for samples in recordings]
        results = recognise(inputs, batch_size=len(inputs), generate_kwargs=options)
        return Output([one["text"].strip() for one in results])

    return decode


def by_long_form(
    whisper: LoadedModel, language: str | None, transcribe: Callable, assistant: Assistant | None
) -> Method:
    """Recordings of any length, one after another, by [`transcribe_chunked`] or [`transcribe_sequential`]."""

    def decode(recordings: Sequence[np.ndarray]) -> Output:
        results = [transcribe(*whisper, samples, assistant=assistant, language=language) for samples in recordings]
        drafts = [one.statistics.drafts for one in results if one.statistics]
        return Output([one.text for one in results], _sum(drafts))

    return decode


def _sum(drafts: Sequence[DraftCounts | None]) -> DraftCounts:
    return sum((one for one in drafts if one is not None), start=DraftCounts())


def _transformers_options(whisper: LoadedModel, language: str | None) -> dict[str, Any]:
    options: dict[str, Any] = {"num_beams": 1}
    return options | ({"language": language, "task": "transcribe"} if is_multilingual(whisper.model) else {})


def all_methods(
    whisper: LoadedModel, assistants: Assistants, batch_size: int, args: "SpeculativeArguments"
) -> dict[str, Method]:
    """The model alone, assisted, in the pipeline, in CTranslate2; and each assistant's model by itself."""
    language = args.language
    methods = {ALONE: by_library(whisper, language), GENERATE: by_generate(whisper, language)}
    methods[PIPELINE] = by_pipeline(whisper, language)
    for name, (whole, assistant) in assistants.items():
        methods[f"with {name}"] = by_library(whisper, language, assistant=assistant)
        methods[f"with {name}, pipeline"] = by_pipeline(whisper, language, assistant=assistant)
        if batch_size == 1 and assistant is not whole.model:
            methods[f"with {name}, pipeline's own"] = by_pipeline(whisper, language, stock_assistant=assistant)
        methods[f"{name} alone, other text"] = by_library(whole, language)
    for kind in args.compute_types:
        methods[f"alone, CTranslate2 {kind}"] = by_ctranslate2(whisper, language, kind)
        for name, (whole, _) in assistants.items():
            methods[f"{name} alone, CTranslate2 {kind}"] = by_ctranslate2(whole, language, kind)
    return methods


def measure_methods(
    methods: Mapping[str, Method], recordings: Sequence[np.ndarray], *, batch_size: int = 1, repeats: int = 3
) -> dict[str, MethodTimes]:
    """Times methods on the same recordings: each once unmeasured, then all in turn in every repetition."""
    batches = [recordings[start : start + batch_size] for start in range(0, len(recordings), batch_size)]
    for decode in methods.values():
        decode(batches[0])
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    outputs: dict[str, list[Output]] = {}
    for _ in range(repeats):
        for name, decode in methods.items():
            start = time.perf_counter()
            outputs[name] = [decode(batch) for batch in batches]
            seconds[name].append(time.perf_counter() - start)
    texts = {name: [text for one in of_method for text in one.texts] for name, of_method in outputs.items()}
    times = {}
    for name in methods:
        same = sum(text == expected for text, expected in zip(texts[name], texts[ALONE], strict=True))
        drafts = _sum([one.drafts for one in outputs[name]])
        times[name] = MethodTimes(tuple(seconds[name]), same, len(recordings), drafts)
    return times


def baseline_seconds(of_size: Mapping[str, MethodTimes], baselines: Sequence[str]) -> float:
    """The fastest baseline's median over all recordings: 1.00 in the table."""
    return min(of_size[baseline].median for baseline in baselines if baseline in of_size)


def methods_table(times: Times, parameters: Mapping[str, int], baselines: Sequence[str]) -> str:
    """Relative latencies by batch size, as Markdown: Tables 9 and 22."""
    heads = ["", "parameters", *(f"batch size {size}" for size in times), "same text", "accepted", "passes saved"]
    lines = []
    for name in dict.fromkeys(name for of_size in times.values() for name in of_size):
        measured = {size: of_size[name] for size, of_size in times.items() if name in of_size}
        cells = [name, f"{parameters[name] / 1e6:.2f} M" if name in parameters else ""]
        for size, of_size in times.items():
            best = baseline_seconds(of_size, baselines)
            cells.append(f"{best / measured[size].median:.2f}" if size in measured else "")
        same, drafts = min(one.num_same for one in measured.values()), _sum([one.drafts for one in measured.values()])
        cells.append(f"{same} of {next(iter(measured.values())).num_recordings}")
        cells += [f"{drafts.acceptance_rate:.0%}", f"{drafts.checks_saved:.0%}"] if drafts.drafted else ["", ""]
        lines.append(cells)
    return table(heads, lines, left=len(heads))


def packed_windows(rows: Dataset, count: int) -> list[np.ndarray]:
    """Utterances of one speaker joined to windows of nearly 30 s, with pauses of 0.3 s."""
    speaker = "speaker" if "speaker" in rows.column_names else None
    rows = rows.sort("speaker") if speaker else rows
    # Rows that cannot be read are counted where the utterances are loaded.
    packed = pack_utterances(rows, gap=0.3, speaker_column=speaker, errors=RowErrors())
    return [load_audio(row["audio"]) for row in islice((row for row in packed if row["duration"] > 25), count)]


def _recordings(rows: Dataset, errors: RowErrors) -> Iterator[np.ndarray]:
    for index, row in enumerate(rows):
        try:
            yield load_audio(row["audio"])
        except AudioError as error:
            errors.add(row.get("id", index), error)


@dataclass
class SpeculativeArguments:
    """Flags of the script."""

    model_name_or_path: str | None = setting(None, "The model whose text it is: Hub name or folder.")
    assistants: list[str] = list_setting(
        [], "Draft for it: students that share its encoder, or smaller Whispers of its vocabulary."
    )
    dataset: DataSource | str | None = source_setting("Utterances: as they are, and joined to windows of 30 s.")
    long_form_dataset: DataSource | str | None = source_setting("Recordings of any length.")
    samples: int = setting(64, "Utterances that are timed; texts are compared on all.")
    windows: int = setting(16, "Windows of 30 s that are timed.")
    batch_sizes: list[int] = list_setting([1, 4, 16], "Recordings per pass.")
    draft_lengths: list[int] = list_setting([], "Fixed draft lengths to measure too, for example `1 2 4 8 16`.")
    compute_types: list[str] = list_setting([], "Of CTranslate2, for example `int8`: the models alone in it.")
    repeats: int = setting(3, "Repetitions over all recordings, in turn.")
    dtype: Literal["float32", "bfloat16", "float16"] = setting("float32", "Type of the weights.")
    language: str | None = setting(None, "Of the speech, for multilingual models; detected where left out.")
    output_dir: str | None = setting(None, "Folder for results.json, and draft_length.svg with --draft_lengths.")
    dry_run: bool = setting(False, "Load models and recordings only.")


def main(argv: Sequence[str]) -> None:
    """Entry point."""
    (args,) = parse_arguments(SpeculativeArguments, argv=argv, command="benchmarks/speculative.py")
    whole = ["samples", "windows", "batch_sizes", "repeats", *["draft_lengths"] * bool(args.draft_lengths)]
    assisted = ["assistants"] * bool(args.draft_lengths or args.long_form_dataset)
    check_flags(args, "model_name_or_path", *assisted, "dataset", whole=whole, folder=args.output_dir)
    if args.compute_types:
        import_runtime("ctranslate2", "ct2")
    sources = {"dataset": args.dataset, "long_form_dataset": args.long_form_dataset}
    sets = load_sets({name: as_source(value, name) for name, value in sources.items() if value})
    models = load_models({"model": args.model_name_or_path}, args.dtype, args.language)
    whisper, assistants = models["model"], {}
    for name, path in short_names(args.assistants).items():
        student, assistant = load_assistant(path, whisper.model)
        assistants[name] = LoadedModel(student, whisper.processor), assistant
    if not ready(models, sets, args.dry_run):
        return
    alone = whisper.model.num_parameters()
    parameters = {ALONE: alone} | {
        f"with {name}": alone + added_parameters(assistant, whisper.model)
        for name, (_, assistant) in assistants.items()
    }
    errors = RowErrors()
    window = round(window_seconds(whisper.processor) * SAMPLING_RATE)
    utterances = [one for one in _recordings(sets["dataset"], errors) if len(one) <= window]
    windows = packed_windows(sets["dataset"], args.windows)
    times: dict[str, dict[int, dict[str, MethodTimes]]] = {}
    for title, recordings in (("utterances", utterances[: args.samples]), ("windows of 30 s", windows)):
        if not recordings:
            print(f"{title}: the dataset has too little speech of one speaker\n")
            continue
        times[title] = {}
        for size in args.batch_sizes:
            methods = all_methods(whisper, assistants, size, args)
            times[title][size] = measure_methods(methods, recordings, batch_size=size, repeats=args.repeats)
        _print(title, times[title], parameters, [ALONE, GENERATE])
    if "long_form_dataset" in sets:
        recordings = list(_recordings(sets["long_form_dataset"], errors))
        for algorithm, transcribe in (("sequential", transcribe_sequential), ("chunked", transcribe_chunked)):
            methods = {ALONE: by_long_form(whisper, args.language, transcribe, None)}
            for name, (_, assistant) in assistants.items():
                methods[f"with {name}"] = by_long_form(whisper, args.language, transcribe, assistant)
            title = f"long recordings, {algorithm}"
            times[title] = {1: measure_methods(methods, recordings, repeats=args.repeats)}
            _print(title, times[title], parameters, [ALONE])
    curves = {
        f"batch size {size}": _by_draft_length(whisper, next(iter(assistants.values()))[1], windows, size, args)
        for size in (args.batch_sizes if args.draft_lengths and windows else [])
    }
    methods = {ALONE: by_library(whisper, args.language), GENERATE: by_generate(whisper, args.language)}
    methods |= {f"with {name}": by_library(whisper, args.language, assistant=a) for name, (_, a) in assistants.items()}
    checked = measure_methods(methods, utterances, batch_size=16, repeats=1)
    same = ", ".join(f"{name} {one.num_same}" for name, one in checked.items() if name != ALONE)
    print(f"same text on all {len(utterances)} utterances in batches: {same}")
    print(f"{args.repeats} repetitions in turn, medians, {args.dtype}, {machine()}\n{errors.summary()}")
    if args.output_dir is not None:
        _save(times, curves, args)


def _print(title: str, times: Times, parameters: dict[str, int], baselines: list[str]) -> None:
    count = next(iter(next(iter(times.values())).values())).num_recordings
    print(f"{title} ({count}), times as fast as the model alone:\n\n{methods_table(times, parameters, baselines)}\n")
    seconds = {size: baseline_seconds(of_size, baselines) for size, of_size in times.items()}
    print(f"1.00 is {', '.join(f'{median:.2f} s at batch size {size}' for size, median in seconds.items())}\n")
    sys.stdout.flush()


def _by_draft_length(
    whisper: LoadedModel, assistant: Assistant, recordings: list, batch_size: int, args: SpeculativeArguments
) -> dict[str, float]:
    """Times as fast as the model alone, by draft length; "chosen" by the acceptance."""
    lengths: dict[str, int | None] = {"chosen": None, **{str(length): length for length in args.draft_lengths}}
    methods = {ALONE: by_library(whisper, args.language)}
    for label, length in lengths.items():
        methods[label] = by_library(whisper, args.language, assistant=assistant, draft_length=length)
    times = measure_methods(methods, recordings, batch_size=batch_size, repeats=args.repeats)
    ratios = {label: times[ALONE].median / times[label].median for label in lengths}
    shown = ", ".join(f"{label} {ratio:.2f}" for label, ratio in ratios.items())
    print(f"draft length at batch size {batch_size}: {shown}\n")
    return ratios


def _save(times: Mapping[str, Times], curves: Mapping[str, Mapping[str, float]], args: SpeculativeArguments) -> None:
    folder = Path(args.output_dir or "")
    content = {
        title: {size: {name: asdict(one) for name, one in methods.items()} for size, methods in sizes.items()}
        for title, sizes in times.items()
    }
    results = {"machine": machine(), "dtype": args.dtype, "times": content, "draft_lengths": curves}
    save_json(folder / "results.json", results)
    if curves:
        fixed = {
            label: {int(length): ratio for length, ratio in ratios.items() if length != "chosen"}
            for label, ratios in curves.items()
        }
        chosen = {label: ratios["chosen"] for label, ratios in curves.items()}
        latency_over_draft_length(fixed, chosen, folder / "draft_length.svg")


if __name__ == "__main__":
    sys.exit(run_script(main))
