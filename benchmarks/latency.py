"""Latency of models in turn over batch sizes and attention implementations (Tables 5, 24 and 25).

    OMP_NUM_THREADS=1 python benchmarks/latency.py --model_name_or_path runs/quickstart/student \
        --teacher_model_name_or_path runs/quickstart/teacher \
        --dataset.path examples/quickstart/corpus --dataset.split test_kathleen --samples 64

The defaults are the paper's protocol (appendix B.2), type and attention aside: 256 samples of each set; batch size 1
takes the recordings one by one, larger batches the same speech in a row, in overlapping chunks of one window, where
the teacher predicts timestamps. Cost: six minutes on one CPU core.
"""

import statistics
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset
from transformers.utils import is_flash_attn_2_available, logging

from hf_distil_whisper import AudioError, RowErrors, load_audio, parse_arguments, run_script
from hf_distil_whisper.cli.config import DataSource, InputError, as_training_sources, setting, source_setting
from hf_distil_whisper.data.audio import SAMPLING_RATE
from hf_distil_whisper.data.dataset import row_id
from hf_distil_whisper.data.sources import without_decoder
from hf_distil_whisper.evaluation.evaluate import readable_rows
from hf_distil_whisper.evaluation.latency import timed_pass
from hf_distil_whisper.inference.chunked import cut_chunks
from hf_distil_whisper.inference.encoder import window_features, window_seconds
from hf_distil_whisper.inference.prompt import max_generated_tokens
from inputs import LoadedModel, check_flags, list_setting, load_models, load_sets, ready
from memory import ProcessEndedError, pass_bytes
from tables import Timed, machine, save_json, short_names, table

# Below the package's logger, so that `run_script` shows its warnings.
logger = logging.get_logger("hf_distil_whisper.benchmarks.latency")

ATTENTION = ("sdpa", "eager", "flash_attention_2")


@dataclass(frozen=True)
class LatencyRow(Timed):
    """One model at one batch size with one attention implementation."""

    model: str  # its name
    attn_implementation: str  # of ATTENTION
    batch_size: int  # windows per pass
    timestamps: bool  # whether it predicted timestamps
    seconds: tuple[float, ...]  # of work on all recordings, one entry per repetition
    audio_seconds: float  # length of the recordings, without padding and the overlap of chunks
    num_recordings: int  # that could be read
    num_windows: int  # that they made
    num_tokens: int  # generated, over all windows
    parameters: int  # of the model
    peak_bytes: int | None = None  # of weights and one pass, see pass_bytes
    relative_latency: float | None = None  # how many times faster than the teacher in the same setting

    @property
    def inverse_rtf(self) -> float:
        """Seconds of audio per second of work."""
        return self.audio_seconds / self.median

    @property
    def tokens_per_second(self) -> float:
        """Over all windows of a batch together."""
        return self.num_tokens / self.median


def rtf_table(rows: Sequence[LatencyRow]) -> str:
    """Real-time factors in 10⁻³ by model, attention and batch size, as Markdown in the layout of Table 24."""
    attention = dict.fromkeys(row.attn_implementation for row in rows)
    columns = list(product(attention, dict.fromkeys(row.batch_size for row in rows)))
    rtf = {(row.model, row.attn_implementation, row.batch_size): f"{1000 * row.rtf:.1f}" for row in rows}
    models = dict.fromkeys(row.model for row in rows)
    heads = ["RTF / 10⁻³", *(f"{implementation}, batch {size}" for implementation, size in columns)]
    return table(heads, [[model, *(rtf[model, *column] for column in columns)] for model in models])


def latency_table(rows: Sequence[LatencyRow]) -> str:
    """All that was measured, a line each, as Markdown; the columns of Tables 5 and 12 among them."""
    head = [
        "Model", "Params / M", "batch", "attention", "timestamps", "seconds", "RTF / 10⁻³", "times real time",
        "tokens/s", "peak memory / MB", "Rel. Latency",
    ]  # fmt: skip
    cells = [
        [
            row.model, f"{row.parameters / 1e6:.1f}", str(row.batch_size), row.attn_implementation,
            "yes" if row.timestamps else "no", f"{row.median:.2f}", f"{1000 * row.rtf:.1f}",
            f"{row.inverse_rtf:.1f}", f"{row.tokens_per_second:.0f}",
            "-" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.0f}",
            "-" if row.relative_latency is None else f"{row.relative_latency:.2f}",
        ]
        for row in rows
    ]  # fmt: skip
    return table(head, cells)


@dataclass
class _Contender:
    """A model in one setting, and what was measured of it."""

    name: str
    loaded: LoadedModel
    attention: str
    batch_size: int
    windows: list[np.ndarray]
    settings: dict[str, Any]
    seconds: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    peak_bytes: int | None = None

    def take_turn(self, warm_up: bool) -> None:
        model, processor = self.loaded
        model.set_attn_implementation(self.attention)
        windows = self.windows[: self.batch_size] if warm_up else self.windows
        starts = range(0, len(windows), self.batch_size)
        batches = (window_features(model, processor, windows[start : start + self.batch_size]) for start in starts)
        seconds, lengths = timed_pass(model, batches, **self.settings)
        if not warm_up:
            self.seconds.append(seconds)
            self.lengths = lengths

    def measure_memory(self) -> None:
        self.loaded.model.set_attn_implementation(self.attention)
        # With as many tokens as the longest window had.
        settings = {**self.settings, "num_tokens": max(1, *self.lengths)}
        try:
            self.peak_bytes = pass_bytes(self.loaded.model, min(self.batch_size, len(self.windows)), **settings)
        except ProcessEndedError as error:  # the times are worth more than the memory, and measured by now
            if not error.killed:
                raise
            logger.warning(
                f"{self.name} at batch size {self.batch_size}: no peak memory. {error} That happens where the model "
                "does not fit into memory twice. The times stay; --memory false leaves the memory out."
            )


def latency_grid(
    models: Mapping[str, LoadedModel],
    dataset: Dataset | Sequence[Mapping],
    *,
    teacher: str | None = None,
    batch_sizes: Sequence[int] = (1, 4, 16),
    attn_implementations: Sequence[str] = ("sdpa",),
    timestamps: Collection[str] = (),
    chunked: bool = True,
    repeats: int = 3,
    memory: bool = True,
    **settings: Any,
) -> list[LatencyRow]:
    """Times models on the same speech at every batch size and with every attention implementation.

    All models and settings of a batch size run once unmeasured and then take turns in every repetition, so that a slow
    minute of the machine falls on all of them.
    """
    for loaded in models.values():
        check_attention(attn_implementations, loaded.model.device, loaded.model.dtype)
    recordings = _recordings(dataset)
    audio_seconds = sum(map(len, recordings)) / SAMPLING_RATE
    before = {name: loaded.model.config._attn_implementation for name, loaded in models.items()}
    rows: list[LatencyRow] = []
    try:
        for batch_size in batch_sizes:
            contenders = []
            for attention, name in product(attn_implementations, models):
                windows = _windows(recordings, window_seconds(models[name].processor), chunked and batch_size > 1)
                with_timestamps = batch_size > 1 and name in timestamps
                options = {"num_tokens": None, **settings, "return_timestamps": with_timestamps}
                contenders.append(_Contender(name, models[name], attention, batch_size, windows, options))
            for repeat in range(repeats + 1):
                for one in contenders:
                    one.take_turn(warm_up=repeat == 0)
            for one in contenders if memory else []:
                one.measure_memory()
            baselines = {one.attention: statistics.median(one.seconds) for one in contenders if one.name == teacher}
            rows += [
                LatencyRow(
                    one.name, one.attention, one.batch_size, one.settings["return_timestamps"], tuple(one.seconds),
                    audio_seconds, len(recordings), len(one.windows), sum(one.lengths),
                    one.loaded.model.num_parameters(), one.peak_bytes,
                    baselines[one.attention] / statistics.median(one.seconds) if baselines else None,
                )
                for one in contenders
            ]  # fmt: skip
    finally:
        for name, loaded in models.items():
            loaded.model.set_attn_implementation(before[name])
    return rows


def _recordings(dataset: Dataset | Sequence[Mapping]) -> list[np.ndarray]:
    rows = readable_rows(dataset, "audio")
    errors, recordings = RowErrors(), []
    for index in range(len(rows)):
        name = row_id(rows[index], index)
        try:
            recordings.append(load_audio(rows[index]["audio"], name=name))
        except AudioError as error:
            errors.add(name, str(error))
    if len(errors):
        logger.warning(errors.summary())
    if not recordings:
        raise ValueError(f"Expected recordings to measure on, could read none of {len(rows)}.\n{errors.summary()}")
    return recordings


def _windows(recordings: Sequence[np.ndarray], seconds: float, joined: bool) -> list[np.ndarray]:
    """Pieces of at most one window; what is longer is cut as [`transcribe_chunked`] does by default."""
    parts = [np.concatenate(recordings)] if joined else recordings
    return [samples for part in parts for _, samples in cut_chunks([part], seconds, seconds / 6)]


def check_attention(attn_implementations: Sequence[str], device: torch.device, dtype: torch.dtype) -> None:
    """Raises a `ValueError` for attention implementations that are unknown or cannot run here."""
    unknown = [name for name in attn_implementations if name not in ATTENTION]
    if unknown or not attn_implementations:
        raise ValueError(f"--attn_implementations: expected some of {', '.join(ATTENTION)}, got {unknown or 'none'}")
    if "flash_attention_2" in attn_implementations:
        lacking = [] if is_flash_attn_2_available() else ["the package flash-attn (extra `flash`)"]
        lacking += [] if device.type == "cuda" else ["a CUDA GPU"]
        lacking += [] if dtype in (torch.float16, torch.bfloat16) else ["float16 or bfloat16 weights"]
        if lacking:
            raise ValueError(
                f"--attn_implementations: flash_attention_2 needs {' and '.join(lacking)}, got {dtype} weights on "
                f"{device.type}. Leave it out to measure the others"
            )


@dataclass
class LatencyArguments:
    """Flags of the script."""

    model_name_or_path: str | None = setting(None, "Model to time: Hub name or folder.")
    teacher_model_name_or_path: str | None = setting(None, "Timed with it; relative latencies refer to it.")
    other_models: list[str] = list_setting([], "More models to time with them.")
    dataset: dict[str, DataSource] | str | None = source_setting("Recordings of any length, one set or {name: path}.")
    samples: int = setting(256, "Rows of each set.")
    batch_sizes: list[int] = list_setting([1, 4, 16], "Windows per pass.")
    attn_implementations: list[str] = list_setting(["sdpa"], "Some of: sdpa eager flash_attention_2.")
    num_tokens: int | None = setting(None, "Exactly so many tokens per window; by default models end by themselves.")
    chunked: bool = setting(True, "Batches of more than one take all recordings in a row, in chunks of a window.")
    repeats: int = setting(3, "Repetitions over all recordings, the models in turn.")
    memory: bool = setting(True, "Measure peak memory too.")
    dtype: Literal["float32", "bfloat16", "float16"] = setting("float32", "Type of the weights; float16 in the paper.")
    language: str | None = setting(None, "Of the speech, for multilingual models; detected where left out.")
    output_dir: str | None = setting(None, "Folder for results.json.")
    dry_run: bool = setting(False, "Load models and recordings only.")


def main(argv: Sequence[str]) -> None:
    """Entry point."""
    (args,) = parse_arguments(LatencyArguments, argv=argv, command="benchmarks/latency.py")
    whole = ("samples", "batch_sizes", "repeats")
    check_flags(args, "model_name_or_path", "dataset", whole=whole, folder=args.output_dir)
    teacher = [args.teacher_model_name_or_path] if args.teacher_model_name_or_path else []
    paths = short_names([*teacher, args.model_name_or_path, *args.other_models])
    models = load_models(paths, args.dtype, args.language)
    for name, loaded in models.items():
        most = max_generated_tokens(loaded.model, return_timestamps=False)
        if args.num_tokens is not None and not 1 <= args.num_tokens <= most:
            raise InputError(f"--num_tokens: {name} can write 1 to {most} in a window, got {args.num_tokens}")
        check_attention(args.attn_implementations, loaded.model.device, loaded.model.dtype)
    sets = load_sets(as_training_sources(args.dataset, "dataset", "test"))
    sets = {name: rows.select(range(min(args.samples, len(rows)))) for name, rows in sets.items()}
    if not ready(models, sets, args.dry_run):
        return
    baseline = next(iter(models)) if teacher else None
    rows = latency_grid(
        models, [row for of_set in sets.values() for row in without_decoder(of_set)], teacher=baseline,
        batch_sizes=args.batch_sizes, attn_implementations=args.attn_implementations, num_tokens=args.num_tokens,
        chunked=args.chunked, timestamps=[baseline] if baseline else [], repeats=args.repeats, language=args.language,
        memory=args.memory,
    )  # fmt: skip
    print(f"{rtf_table(rows)}\n\n{latency_table(rows)}\n")
    first = rows[0]
    print(
        f"{first.num_recordings} recordings of {first.audio_seconds:.0f} s in all, medians of {args.repeats}, "
        f"{args.dtype}, {machine()}"
    )
    if args.output_dir is not None:
        rates = ("rtf", "inverse_rtf", "tokens_per_second")
        content = [asdict(row) | {name: getattr(row, name) for name in rates} for row in rows]
        results = {"machine": machine(), "dtype": args.dtype, "rows": content}
        save_json(Path(args.output_dir, "results.json"), results)


if __name__ == "__main__":
    sys.exit(run_script(main))
