"""Speed of labelling beside plain `generate`, how much of the speech labels hold, and the steps around it.

    python benchmarks/labelling.py --teacher_model_name_or_path runs/quickstart/teacher \
        --dataset examples/quickstart/corpus --compute_types float32 int8
    python benchmarks/labelling.py windows --teacher_model_name_or_path openai/whisper-base --dataset utterances/
    python benchmarks/labelling.py silence --teacher_model_name_or_path openai/whisper-base \
        --datasets '{read: utterances}' --noise noises
    python benchmarks/labelling.py data

The first labels the same 200 recordings of 1 to 30 s with every method, in turn: 20 minutes on two CPU cores. The
second labels utterances packed to windows of several lengths: half an hour for one of speech and whisper-base. The
third counts the labels of speech and of clips without any that the filter drops where there are no references. The
last sends a million synthetic rows through the steps before and after, each in a new process: 20 minutes and 250 MB of
disk.
"""

import random
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset, Value, concatenate_datasets

from hf_distil_whisper import (
    WordErrors,
    evaluate_model,
    load_audio,
    load_source,
    pack_utterances,
    parse_arguments,
    pseudo_label_dataset,
    run_script,
)
from hf_distil_whisper.cli.config import DataSource, InputError, as_source, as_sources, setting, source_setting
from hf_distil_whisper.data.audio import SAMPLING_RATE, encode_flac
from hf_distil_whisper.data.labels import plain_text as plain_transcript
from hf_distil_whisper.data.shards import ShardStore
from hf_distil_whisper.data.sources import write_row_index
from hf_distil_whisper.evaluation.results import non_speech_text
from hf_distil_whisper.inference.output import plain_text
from hf_distil_whisper.inference.prompt import is_multilingual, timestamp_begin
from hf_distil_whisper.metrics import errors_in_language
from hf_distil_whisper.pseudo_labels.filtering import passing_rows
from inputs import LoadedModel, check_flags, list_setting, load_models, load_sets, ready
from memory import in_new_process
from tables import machine, table

PLAIN = "generate"
"""The baseline: the model's own `generate`, batch after batch in the order of the rows."""


@dataclass(frozen=True)
class LabellingSpeed:
    """One method over all rounds."""

    seconds: list[float]  # from recordings to labels, one entry a round
    texts: list[str]  # the labels without timestamps
    errors: WordErrors  # of the labels

    @property
    def median(self) -> float:
        """Seconds of the middle round."""
        return statistics.median(self.seconds)


def mixed_recordings(rows: Dataset, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Recordings of all lengths up to 30 s in random order: half are rows as they are, the others are joined ones."""
    single = min(count // 2, len(rows))
    mixed: list[dict[str, Any]] = list(rows.select(range(single)))
    third, joined = (len(rows) - single) // 3, -(-(count - count // 2) // 3)
    for number, longest in enumerate((10.0, 20.0, 30.0) if third else ()):
        part = rows.select(range(single + number * third, single + (number + 1) * third))
        mixed += islice(pack_utterances(part, max_duration=longest, gap=0.3), joined)
    if len(mixed) < count:
        raise ValueError(
            f"The {len(rows)} utterances make {len(mixed)} recordings of up to 30 s, {count} were asked for: lower "
            "--rows, or name a larger --dataset."
        )
    random.Random(seed).shuffle(mixed)
    return mixed[:count]


def measure_labelling(
    teacher: LoadedModel,
    rows: Sequence[Mapping[str, Any]],
    *,
    compute_types: Sequence[str] = (),
    num_beams: Sequence[int] = (),
    batch_size: int = 16,
    rounds: int = 3,
    language: str = "en",
) -> dict[str, LabellingSpeed]:
    """Labels the same rows with every method, in turn within every round."""
    spoken = {"language": language} if is_multilingual(teacher.model) else {}
    methods: dict[str, Callable[[], tuple[list[str], float]]] = {
        PLAIN: partial(_generate_in_order, teacher, rows, batch_size, spoken)
    }
    for beams in (1, *num_beams):
        suffix = "" if beams == 1 else f", {beams} beams"
        settings: dict[str, Any] = {"num_beams": beams, "batch_size": batch_size, **spoken}
        methods[f"transformers{suffix}"] = partial(_pseudo_label, teacher, rows, **settings)
        for compute_type in compute_types:
            backend = {"backend": "ctranslate2", "compute_type": compute_type}
            methods[f"ctranslate2 {compute_type}{suffix}"] = partial(
                _pseudo_label, teacher, rows, **backend, **settings
            )
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    texts: dict[str, list[str]] = {}
    for _ in range(rounds):
        for name, label in methods.items():
            texts[name], spent = label()
            seconds[name].append(spent)
    references = [row["text"] for row in rows]
    return {
        name: LabellingSpeed(seconds[name], texts[name], known_errors(references, texts[name], language))
        for name in methods
    }


def known_errors(references: Sequence[str | None], texts: Sequence[str], language: str) -> WordErrors:
    """Of the texts whose reference is known."""
    known = [pair for pair in zip(references, texts, strict=True) if pair[0] is not None]
    return errors_in_language([reference for reference, _ in known], [text for _, text in known], language)


def _pseudo_label(teacher: LoadedModel, rows: Sequence[Mapping[str, Any]], **settings: Any) -> tuple[list[str], float]:
    """Texts of `pseudo_label_dataset`, and the seconds that it recorded; converting the teacher does not count."""
    recordings = Dataset.from_list([{"id": str(row), "audio": one["audio"]} for row, one in enumerate(rows)])
    with tempfile.TemporaryDirectory() as folder:
        labelled = pseudo_label_dataset(recordings, *teacher, output_dir=folder, **settings)
        texts = dict(zip(labelled["id"], map(plain_transcript, labelled["whisper_transcript"]), strict=True))
        seconds = sum(shard.info["seconds"] for shard in ShardStore(folder).shards())
    return [texts[str(row)] for row in range(len(rows))], seconds


@torch.inference_mode()
def _generate_in_order(
    teacher: LoadedModel, rows: Sequence[Mapping[str, Any]], batch_size: int, spoken: Mapping[str, str]
) -> tuple[list[str], float]:
    model, processor = teacher
    tokens: list[list[int]] = []
    end, start = model.generation_config.eos_token_id, time.perf_counter()
    for first in range(0, len(rows), batch_size):
        recordings = [load_audio(row["audio"]) for row in rows[first : first + batch_size]]
        features = processor.feature_extractor(recordings, sampling_rate=SAMPLING_RATE, return_tensors="pt")
        windows = features.input_features.to(model.device, model.dtype)
        sequences = model.generate(windows, return_timestamps=True, **spoken).tolist()
        tokens += [row[: row.index(end)] if end in row else row for row in sequences]
    texts = [plain_text(sequence, processor.tokenizer, timestamp_begin(model)) for sequence in tokens]
    return texts, time.perf_counter() - start


def labelling_table(speeds: Mapping[str, LabellingSpeed]) -> str:
    """Speed, agreement with plain `generate`, and word error rate of every method, as Markdown."""
    plain = speeds[PLAIN]
    lines = []
    for name, one in speeds.items():
        same = sum(text == other for text, other in zip(one.texts, plain.texts, strict=True)) / len(plain.texts)
        ratio = plain.median / one.median
        lines.append([name, f"{one.median:.1f}", f"{ratio:.2f}", f"{same:.1%}", f"{one.errors.wer:.2%}"])
    return table(["", "seconds", "times as fast", "same text", "WER"], lines, left=5)


@dataclass(frozen=True)
class WindowLabels:
    """Labels of the same utterances, packed to windows of one length."""

    rows: int
    errors: WordErrors
    open_ends: int  # labels that stop before the speech does
    seconds_lost: float  # of audio behind them


def measure_windows(
    teacher: LoadedModel,
    rows: Dataset,
    *,
    max_durations: Sequence[float],
    language: str,
    backend: str = "transformers",
    batch_size: int = 16,
) -> dict[str, WindowLabels]:
    """Labels utterances as they are, packed, and packed with a second window where a label stops early."""
    methods: dict[str, dict[str, Any]] = {"not packed": {"second_window": False}}
    for seconds in max_durations:
        methods[f"{seconds:g} s"] = {"max_duration": seconds, "second_window": False}
        methods[f"{seconds:g} s, second window"] = {"max_duration": seconds}
    labels_by_method = {}
    for name, packing in methods.items():
        with tempfile.TemporaryDirectory() as folder:
            labels = pseudo_label_dataset(
                rows, *teacher, output_dir=folder, backend=backend, language=language, batch_size=batch_size, **packing
            )
            open_ends = [row for row in labels.remove_columns("audio") if row["truncated"]]
            texts = [plain_transcript(text) for text in labels["whisper_transcript"]]
            errors = known_errors(labels["text"], texts, language)
        lost = sum(row["duration"] - end_of_speech(row["whisper_transcript"]) for row in open_ends)
        labels_by_method[name] = WindowLabels(len(labels), errors, len(open_ends), lost)
    return labels_by_method


def end_of_speech(transcript: str) -> float:
    """Seconds at which the last timestamp of a label lies, 0 without one."""
    return max((float(time) for time in re.findall(r"<\|(\d+\.\d+)\|>", transcript)), default=0.0)


def windows_table(labels: Mapping[str, WindowLabels]) -> str:
    """Errors and lost speech of every length of windows, as Markdown."""
    lines = [
        [name, str(one.rows), f"{one.errors.wer:.2%}", str(one.errors.deletions), str(one.open_ends),
         f"{one.seconds_lost:.1f}"]
        for name, one in labels.items()
    ]  # fmt: skip
    return table(["", "rows", "WER", "deletions", "open ends", "seconds lost"], lines, left=1)


KINDS_OF_NON_SPEECH = ("silence", "hum", "hiss", "noise")


def non_speech(noise: Dataset, count: int, seed: int = 0) -> Dataset:
    """Clips of 1 to 30 s without speech: silence, hum of the mains, white noise, and parts of recorded noises."""
    generator, recordings = np.random.default_rng(seed), [load_audio(row["audio"]) for row in noise]
    rows = []
    for number in range(count):
        kind, level = KINDS_OF_NON_SPEECH[number % 4], 10 ** generator.uniform(-4, -1)
        length = round(SAMPLING_RATE * generator.uniform(1, 30))
        clip = generator.standard_normal(length) * {"silence": 0.0, "hum": 0.02 * level}.get(kind, level)
        if kind == "hum":
            phase = 2 * np.pi * generator.choice([50, 60]) * np.arange(length) / SAMPLING_RATE
            clip += level * sum(np.sin(order * phase) / order for order in range(1, 6))
        elif kind == "noise":
            recording = recordings[generator.integers(len(recordings))]
            start = generator.integers(max(1, len(recording) - length + 1))
            clip = recording[start : start + length]
        audio = {"bytes": encode_flac(np.clip(clip, -1, 1).astype(np.float32)), "path": None}
        rows.append({"id": f"{kind}-{number}", "audio": audio})
    return Dataset.from_list(rows)


def measure_silence(
    teacher: LoadedModel, sets: Mapping[str, Dataset], *, language: str, backend: str, batch_size: int
) -> dict[str, tuple[int, dict[str, int]]]:
    """Rows of each set, and how many of their labels are dropped without a reference, by reason."""
    dropped: dict[str, tuple[int, dict[str, int]]] = {}
    for name, rows in sets.items():
        with tempfile.TemporaryDirectory() as folder:
            labels = pseudo_label_dataset(
                rows.select_columns("audio"), *teacher, output_dir=folder, backend=backend, language=language,
                batch_size=batch_size,
            ).remove_columns("audio")  # fmt: skip
        one_more = labels.select([0]).map(lambda row: {"whisper_transcript": "yes", "text": "yes"})  # passes always
        unknown = labels.add_column("text", [None] * len(labels), feature=Value("string"))
        _, report = passing_rows(concatenate_datasets([one_more.cast(unknown.features), unknown]))
        dropped[name] = len(labels), {reason: count for reason, count in report.by_reason.items() if count}
    return dropped


def silence_table(dropped: Mapping[str, tuple[int, Mapping[str, int]]]) -> str:
    """Share of labels dropped without a reference, as Markdown."""
    lines = [
        [name, str(rows), f"{sum(by_reason.values()) / rows:.1%}",
         ", ".join(f"{count} {reason}" for reason, count in by_reason.items()) or "-"]
        for name, (rows, by_reason) in dropped.items()
    ]  # fmt: skip
    return table(["", "rows", "dropped", "by reason"], lines, left=1)


WORDS = "the a one two quick brown lazy red old boat river house dog fox runs jumps sings over under near".split()
VOICES, PART = 100, 10_000


@dataclass(frozen=True)
class StepSpeed:
    """One step of the preparation."""

    rows: int  # that went in
    seconds: float  # wall time
    peak_bytes: int  # of the whole process, libraries included, mapped files not


def measure_data(rows: int, seconds: float = 0.5, folder: str | Path | None = None) -> dict[str, StepSpeed]:
    """Sends synthetic rows through packing, filter and index, each in a new process."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        labelled = str(Path(temporary, "labelled.parquet"))
        _write_labelled(rows, seconds, labelled)
        steps = {
            "packing": (_pack, (rows, seconds)),
            "filter": (_filter, (rows, labelled)),
            "index": (_index, (rows, labelled, str(Path(temporary, "index")))),
        }
        return {name: StepSpeed(rows, *in_new_process(step, *options)) for name, (step, options) in steps.items()}


def _pack(rows: int, seconds: float) -> float:
    start = time.perf_counter()
    packed = sum(len(window["ids"]) for window in pack_utterances(_utterances(rows, seconds)))
    if packed != rows:
        raise RuntimeError(f"{rows} rows were packed, {packed} came out.")
    return time.perf_counter() - start


def _filter(rows: int, labelled: str) -> float:
    dataset = load_source(labelled)
    start = time.perf_counter()
    passed, report = passing_rows(dataset, 0.1, language="en")
    if len(passed) + report.dropped != rows:
        raise RuntimeError(f"{rows} rows were judged, {len(passed)} passed and {report.dropped} were dropped.")
    return time.perf_counter() - start


def _index(rows: int, labelled: str, folder: str) -> float:
    start = time.perf_counter()
    half = np.arange(0, rows, 2)
    write_row_index(folder, {"name_or_path": labelled}, rows, half)
    chosen = load_source(folder)
    if len(chosen) != len(half) or chosen[len(chosen) - 1]["id"] != str(2 * (len(chosen) - 1)):
        raise RuntimeError("the index does not lead to its rows.")
    return time.perf_counter() - start


def _utterances(rows: int, seconds: float) -> Iterator[dict[str, Any]]:
    generator = np.random.default_rng(0)
    noises = [generator.normal(0, 0.1, round(seconds * SAMPLING_RATE)).astype(np.float32) for _ in range(16)]
    recordings = [encode_flac(noise) for noise in noises]
    for row in range(rows):
        audio = {"bytes": recordings[row % len(recordings)], "path": None}
        yield {"id": str(row), "audio": audio, "text": "Yes.", "speaker": str(row // 1000 % VOICES)}


def _write_labelled(rows: int, seconds: float, path: str) -> None:
    """Rows with a reference and a label in which every tenth word is another one."""
    generator = np.random.default_rng(1)
    words = np.array(WORDS)
    strings = [(name, pa.string()) for name in ("id", "text", "whisper_transcript", "speaker")]
    audio = ("audio", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    numbers = [("duration", pa.float64()), ("mean_log_prob", pa.float64()), ("truncated", pa.bool_())]
    schema = pa.schema([*strings, audio, *numbers])
    with pq.ParquetWriter(path, schema) as writer:
        for first in range(0, rows, PART):
            count = min(PART, rows - first)
            spoken = words[generator.integers(len(words), size=(count, 12))]
            others = words[generator.integers(len(words), size=spoken.shape)]
            labels = np.where(generator.random(spoken.shape) < 0.1, others, spoken)
            columns = {
                "id": [str(first + row) for row in range(count)],
                "audio": [{"bytes": b"", "path": None}] * count,
                "text": [" ".join(row) for row in spoken],
                "whisper_transcript": [f"<|0.00|> {' '.join(row)}<|{seconds:.2f}|>" for row in labels],
                "speaker": [str((first + row) % VOICES) for row in range(count)],
                "duration": np.full(count, seconds),
                "mean_log_prob": generator.normal(-0.2, 0.05, count),
                "truncated": np.zeros(count, dtype=bool),
            }
            writer.write_table(pa.table(columns, schema=schema))


def data_table(few: Mapping[str, StepSpeed], many: Mapping[str, StepSpeed]) -> str:
    """Rows per second and peak memory of every step, as Markdown."""
    lines = []
    for name, step in many.items():
        less = few[name]
        growth = (step.peak_bytes - less.peak_bytes) / (step.rows - less.rows)
        memory = f"{step.peak_bytes / 1e6:,.0f} MB", f"{less.peak_bytes / 1e6:,.0f} MB ({less.rows:,})"
        lines.append([name, f"{step.rows:,}", f"{step.rows / step.seconds:,.0f}", *memory, f"{growth:.0f}"])
    return table(["", "rows", "rows/s", "peak memory", "with fewer rows", "more bytes a row"], lines, left=6)


@dataclass
class LabellingArguments:
    """Flags of the script."""

    teacher_model_name_or_path: str | None = setting(None, "Whisper that transcribes: Hub name or folder.")
    dataset: DataSource | str | None = source_setting("Utterances with text and speaker.")
    rows: int = setting(200, "Recordings of up to 30 s; half of them are joined utterances.")
    rounds: int = setting(3, "How often each method labels them all.")
    batch_size: int = setting(16, "Rows in one pass.")
    compute_types: list[str] = list_setting([], "Of CTranslate2, for example `float32 int8`; none by default.")
    num_beams: list[int] = list_setting([], "Labels by beam search too, for example `5`; not by default.")
    language: str = setting("en", "Of the speech; its normaliser scores the labels.")
    dtype: Literal["float32", "bfloat16", "float16"] = setting("float32", "Type of the teacher's weights.")
    dry_run: bool = setting(False, "Load teacher and utterances only.")


@dataclass
class WindowsArguments:
    """Flags of `labelling.py windows`."""

    teacher_model_name_or_path: str | None = setting(None, "Whisper that transcribes: Hub name or folder.")
    dataset: DataSource | str | None = source_setting("Utterances with text and speaker.")
    max_durations: list[float] = list_setting([30.0, 28.0, 25.0], "Longest windows after packing, in seconds.")
    language: str = setting("en", "Of the speech.")
    backend: Literal["transformers", "ctranslate2"] = setting("transformers", "Runtime of the teacher.")
    batch_size: int = setting(16, "Windows in one pass.")
    dry_run: bool = setting(False, "Load teacher and utterances only.")


@dataclass
class SilenceArguments:
    """Flags of `labelling.py silence`."""

    teacher_model_name_or_path: str | None = setting(None, "Whisper that transcribes: Hub name or folder.")
    datasets: dict[str, DataSource] | str | None = source_setting("Sets of speech in the language: {name: path}.")
    noise: DataSource | str | None = source_setting("Recordings of noise.")
    clips: int = setting(80, "Clips without speech, of four kinds.")
    language: str = setting("en", "Of the speech.")
    backend: Literal["transformers", "ctranslate2"] = setting("transformers", "Runtime of the teacher.")
    batch_size: int = setting(16, "Windows in one pass.")
    dry_run: bool = setting(False, "Load teacher and recordings only.")


@dataclass
class DataArguments:
    """Flags of `labelling.py data`."""

    rows: int = setting(1_000_000, "Synthetic rows.")
    fewer_rows: int = setting(100_000, "The same again with so many, to see what memory depends on.")
    seconds: float = setting(0.5, "Of audio in each row; packing decodes and encodes it.")
    folder: str | None = setting(None, "For what is written; by default that of temporary files.")


def main(argv: Sequence[str]) -> None:
    """Entry point."""
    if argv[:1] == ["data"]:
        return _run_data(argv[1:])
    if argv[:1] == ["windows"]:
        return _run_windows(argv[1:])
    if argv[:1] == ["silence"]:
        return _run_silence(argv[1:])
    (args,) = parse_arguments(LabellingArguments, argv=argv, command="benchmarks/labelling.py")
    check_flags(args, "teacher_model_name_or_path", "dataset", whole=("rows", "rounds", "batch_size"))
    models = load_models({"teacher": args.teacher_model_name_or_path}, args.dtype)
    sets = load_sets({"dataset": as_source(args.dataset, "dataset")}, ("audio", "text", "speaker"))
    if not ready(models, sets, args.dry_run):
        return None
    speeds = measure_labelling(
        models["teacher"], mixed_recordings(sets["dataset"], args.rows), compute_types=args.compute_types,
        num_beams=args.num_beams, batch_size=args.batch_size, rounds=args.rounds, language=args.language,
    )  # fmt: skip
    print(f"{labelling_table(speeds)}\n\n{args.rows} recordings, medians of {args.rounds}, {machine()}")
    return None


def _run_windows(argv: Sequence[str]) -> None:
    (args,) = parse_arguments(WindowsArguments, argv=argv, command="benchmarks/labelling.py windows")
    check_flags(args, "teacher_model_name_or_path", "dataset", whole=("batch_size",))
    models = load_models({"teacher": args.teacher_model_name_or_path}, "float32")
    sets = load_sets({"dataset": as_source(args.dataset, "dataset")}, ("audio", "text", "speaker"))
    if not ready(models, sets, args.dry_run):
        return
    labels = measure_windows(
        models["teacher"], sets["dataset"], max_durations=args.max_durations, language=args.language,
        backend=args.backend, batch_size=args.batch_size,
    )  # fmt: skip
    print(f"{windows_table(labels)}\n\n{machine()}")


def _run_silence(argv: Sequence[str]) -> None:
    (args,) = parse_arguments(SilenceArguments, argv=argv, command="benchmarks/labelling.py silence")
    check_flags(args, "teacher_model_name_or_path", "noise", whole=("clips", "batch_size"))
    models = load_models({"teacher": args.teacher_model_name_or_path}, "float32")
    sets = load_sets({**as_sources(args.datasets, "datasets"), "noise": as_source(args.noise, "noise")})
    if not ready(models, sets, args.dry_run):
        return
    clips = non_speech(sets.pop("noise"), args.clips)
    dropped = measure_silence(
        models["teacher"], {**sets, "not speech": clips}, language=args.language, backend=args.backend,
        batch_size=args.batch_size,
    )  # fmt: skip
    silent = clips.add_column("text", [""] * len(clips))
    result = evaluate_model(models["teacher"].model, silent, models["teacher"].processor, language=args.language)
    print(f"{silence_table(dropped)}\n\n{non_speech_text({'not speech': {'teacher': result}})}\n\n{machine()}")


def _run_data(argv: Sequence[str]) -> None:
    (args,) = parse_arguments(DataArguments, argv=argv, command="benchmarks/labelling.py data")
    if not 0 < args.fewer_rows < args.rows:
        raise InputError(f"--fewer_rows: expected more than 0 and less than {args.rows}, got {args.fewer_rows}")
    few, many = (measure_data(rows, args.seconds, args.folder) for rows in (args.fewer_rows, args.rows))
    print(f"{data_table(few, many)}\n\n{machine()}")


if __name__ == "__main__":
    sys.exit(run_script(main))
