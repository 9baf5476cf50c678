"""Peak memory: of transcribing recordings of minutes and hours, of one pass of a model, of any function.

    python benchmarks/memory.py --model_name_or_path runs/quickstart/student
    python benchmarks/memory.py --model_name_or_path runs/quickstart/student --method sequential

Each length of a recording is measured in a new process, on the CPU in float32. Cost: 20 minutes on two CPU
cores, since three hours are transcribed; `--minutes 5 30` shows the same in four.
"""

import math
import multiprocessing
import os
import resource
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import soundfile
import torch
from transformers import AutoModelForSpeechSeq2Seq, WhisperConfig, WhisperForConditionalGeneration

from hf_distil_whisper import (
    load_model,
    load_processor,
    parse_arguments,
    run_script,
    transcribe_chunked,
    transcribe_sequential,
)
from hf_distil_whisper.cli.config import InputError, setting
from hf_distil_whisper.evaluation.latency import timed_pass
from inputs import check_flags, list_setting
from tables import machine, table

T = TypeVar("T")

SHORTEST = 30.0
"""Minutes up to which shorter recordings are repeated: a look every 20 ms misses the peak of a second."""


class ProcessEndedError(RuntimeError):
    """A process ended without a result, as one does that the system kills for its memory."""

    def __init__(self, message: str, killed: bool):
        super().__init__(message)
        self.killed = killed


def anonymous_bytes() -> int:
    """Memory of this process without the files mapped into it, which the system takes back whenever it wants to."""
    status = Path("/proc/self/status")
    if not status.is_file():  # macOS knows the peak only
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return next(1024 * int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("RssAnon:"))


def peak_while(work: Callable[[], T]) -> tuple[T, int]:
    """Result of some work, and the most memory ([`anonymous_bytes`], every 20 ms) that this process took meanwhile."""
    peak, done = anonymous_bytes(), threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, anonymous_bytes())

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        value = work()
    finally:
        done.set()
        watching.join()
    return value, max(peak, anonymous_bytes())


def in_new_process(measure: Callable[..., float], *arguments: Any) -> tuple[float, int]:
    """Runs a function of a module in a new process; returns its number and the peak memory of the process."""
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(sending, measure, *arguments))
    # glibc and Arrow return freed buffers at once with these; else they hold on to tens of MB, the more the longer a
    # process runs. glibc reads its variable when a process starts, so that it must be set before.
    variables = {"MALLOC_MMAP_THRESHOLD_": str(128 * 1024), "ARROW_DEFAULT_MEMORY_POOL": "system"}
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        process.start()
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
    sending.close()
    try:
        result = receiving.recv()
    except EOFError:
        process.join()
        message = f"{measure.__name__.strip('_')}: the process ended with {process.exitcode}."
        raise ProcessEndedError(message, killed=(process.exitcode or 0) < 0) from None
    process.join()
    return result


def _report(sending: Any, measure: Callable[..., float], *arguments: Any) -> None:
    sending.send(peak_while(partial(measure, *arguments)))


def pass_bytes(model: WhisperForConditionalGeneration, batch_size: int, **settings: Any) -> int | None:
    """Bytes of a model's weights and the most that one pass takes beside them; None if neither on a GPU nor a CPU.

    Memory depends neither on the speech nor on the weights: the windows are silent, and on a CPU a new process builds
    the model again, since memory that this process has freed before would hide a part of it.
    """
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
        before = torch.cuda.memory_allocated(model.device)
        _silent_pass(model, batch_size, settings)
        return weights + torch.cuda.max_memory_allocated(model.device) - before
    if model.device.type != "cpu":
        return None
    attention, dtype = model.config._attn_implementation, model.dtype
    taken, _ = in_new_process(
        _pass_alone, model.config, model.generation_config, dtype, attention, batch_size, settings
    )
    return weights + int(taken)


def _pass_alone(
    config: WhisperConfig, generation_config: Any, dtype: torch.dtype, attention: str, batch_size: int, settings: dict
) -> float:
    model = AutoModelForSpeechSeq2Seq.from_config(config, dtype=dtype, attn_implementation=attention).eval()
    model.generation_config = generation_config
    before = anonymous_bytes()
    _, peak = peak_while(partial(_silent_pass, model, batch_size, settings))
    return float(peak - before)


def _silent_pass(model: WhisperForConditionalGeneration, batch_size: int, settings: dict[str, Any]) -> None:
    silence = torch.zeros(batch_size, model.config.num_mel_bins, 2 * model.config.max_source_positions)
    timed_pass(model, [silence], **settings)


def long_form_memory(
    model_name_or_path: str,
    minutes: Sequence[float] = (5, 180),
    *,
    method: str = "chunked",
    temperature_fallback: bool = False,
    batch_size: int = 4,
    rate: int = 16_000,
) -> dict[float, int]:
    """Peak memory of a transcription by the length of the recording, libraries and weights included."""
    options = {"batch_size": batch_size} if method == "chunked" else {"temperature_fallback": temperature_fallback}
    peaks = {}
    with tempfile.TemporaryDirectory() as folder:
        for length in minutes:
            file = Path(folder, "recording.flac")
            _write_recording(file, length, rate)
            times = math.ceil(SHORTEST / length)
            peaks[length] = in_new_process(_transcribe, model_name_or_path, str(file), method, options, times)[1]
    return peaks


def _write_recording(file: Path, minutes: float, rate: int) -> None:
    time = np.arange(10 * rate) / rate  # ten seconds of a warbling tone, repeated
    piece = 0.3 * np.sin(2 * np.pi * (200 + 50 * np.sin(3 * time)) * time)
    with soundfile.SoundFile(file, "w", rate, 2, format="FLAC", subtype="PCM_16") as sound:
        for _ in range(round(6 * minutes)):
            sound.write(np.stack([piece, 0.5 * piece], axis=1))


def _transcribe(model_name_or_path: str, file: str, method: str, options: dict[str, Any], times: int) -> float:
    model, processor = load_model(model_name_or_path), load_processor(model_name_or_path)
    transcribe = transcribe_chunked if method == "chunked" else transcribe_sequential
    return float(sum(len(transcribe(model, processor, file, **options).text) for _ in range(times)))


def long_form_memory_table(peaks: Mapping[float, int]) -> str:
    """Peak memory by length, and how much more it is than for the first one, as Markdown."""
    first = next(iter(peaks.values()))
    lines = [[f"{minutes:g}", f"{peak / 1e6:.0f}", f"{(peak - first) / 1e6:+.0f}"] for minutes, peak in peaks.items()]
    return table(["recording / min", "peak memory / MB", "beyond the first / MB"], lines, left=0)


@dataclass
class MemoryArguments:
    """Flags of the script."""

    model_name_or_path: str | None = setting(None, "Model that transcribes: Hub name or folder.")
    minutes: list[float] = list_setting([5.0, 180.0], "Lengths of the recordings that are made for it.")
    method: Literal["chunked", "sequential"] = setting("chunked", "Algorithm of long form.")
    temperature_fallback: bool = setting(False, "Transcribe unlikely windows again; --method sequential only.")
    batch_size: int = setting(4, "Chunks in one pass; --method chunked only.")
    rate: int = setting(44_100, "Sampling rate of the recordings in Hz.")


def main(argv: Sequence[str]) -> None:
    """Entry point."""
    (args,) = parse_arguments(MemoryArguments, argv=argv, command="benchmarks/memory.py")
    check_flags(args, "model_name_or_path")
    if min(args.minutes) < 1 or len(set(args.minutes)) < len(args.minutes):
        raise InputError(f"--minutes: expected different lengths of at least 1, got {args.minutes}")
    if args.temperature_fallback and args.method == "chunked":
        raise InputError("--temperature_fallback: belongs to --method sequential, but it is chunked")
    peaks = long_form_memory(
        args.model_name_or_path, args.minutes, method=args.method, temperature_fallback=args.temperature_fallback,
        batch_size=args.batch_size, rate=args.rate,
    )  # fmt: skip
    print(f"{long_form_memory_table(peaks)}\n\n{args.method}, stereo at {args.rate} Hz, {machine()}")


if __name__ == "__main__":
    sys.exit(run_script(main))
