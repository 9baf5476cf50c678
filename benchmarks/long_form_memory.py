"""How much memory a recording of minutes or hours takes to transcribe, each in a process of its own."""

import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from hf_distil_whisper.checkpoints import (
    load_model,
    load_processor,
)
from hf_distil_whisper.inference.chunked import transcribe_chunked
from hf_distil_whisper.inference.output import Transcription
from hf_distil_whisper.inference.sequential import transcribe_sequential
from own_process import in_own_process

_PIECE = 10
"""Seconds of sound that are repeated: what is said does not matter here."""
_MINUTES = 30.0
"""Shorter recordings are transcribed again and again up to these: a look every 20 ms misses the peak of a second."""


def long_form_memory(
    model_name_or_path: str | Path,
    minutes: Sequence[float] = (5, 180),
    *,
    method: str = "chunked",
    temperature_fallback: bool = False,
    batch_size: int = 4,
    rate: int = 16_000,
) -> dict[float, int]:
    """Peak memory of a transcription by the length of the recording, on a CPU in float32.

    Args:
        model_name_or_path (`str` or `Path`): a checkpoint with its processor.
        minutes (`Sequence[float]`, *optional*, defaults to `(5, 180)`): lengths of the recordings, stereo FLAC files
            that are written for it.
        method (`str`, *optional*, defaults to `"chunked"`): [`transcribe_chunked`], or "sequential",
            [`transcribe_sequential`].
        temperature_fallback (`bool`, *optional*, defaults to `False`): sequential only.
        batch_size (`int`, *optional*, defaults to 4): chunks per pass; chunked only.
        rate (`int`, *optional*, defaults to 16000): of the files, Hz.

    Returns:
        `dict[float, int]`: minutes → bytes of anonymous memory at most, the libraries' and the model's included.
    """
    found: dict[float, int] = {}
    way = {"batch_size": batch_size} if method == "chunked" else {"temperature_fallback": temperature_fallback}
    with tempfile.TemporaryDirectory() as folder:
        for length in minutes:
            file = Path(folder) / "recording.flac"
            _write(file, length, rate)
            times = math.ceil(_MINUTES / length)
            found[length] = in_own_process(_transcribe, str(model_name_or_path), str(file), method, way, times)[1]
    return found


def _write(file: Path, minutes: float, rate: int) -> None:
    time = np.arange(_PIECE * rate) / rate
    piece = 0.3 * np.sin(2 * np.pi * (200 + 50 * np.sin(3 * time)) * time)
    with soundfile.SoundFile(file, "w", rate, 2, format="FLAC", subtype="PCM_16") as sound:
        for _ in range(round(60 * minutes / _PIECE)):
            sound.write(np.stack([piece, 0.5 * piece], axis=1))


def _transcribe(model_name_or_path: str, file: str, method: str, way: dict[str, Any], times: int) -> float:
    model, processor = load_model(model_name_or_path), load_processor(model_name_or_path)
    transcribe: Callable[..., Transcription] = transcribe_chunked if method == "chunked" else transcribe_sequential
    return float(sum(len(transcribe(model, processor, file, **way).text) for _ in range(times)))
