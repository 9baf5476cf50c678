"""Log-mel features equal to those of Whisper's extractor, and the keys that they are cached under.

Short recordings skip the work on the silence behind them, and hours take the memory of a minute.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import WhisperFeatureExtractor, WhisperProcessor

from hf_distil_whisper.data.array_store import content_key
from hf_distil_whisper.data.audio import SAMPLING_RATE, AudioError, load_audio

_DYNAMIC_RANGE = 8.0
"""Powers of ten below the loudest value of a recording at which the extractor cuts off."""
_BLOCK = 3000
"""Frames that are computed and scaled at once."""


def log_mel(extractor: WhisperFeatureExtractor, recordings: Sequence[np.ndarray]) -> Tensor:
    """Features of recordings of up to one window, padded with silence to the window.

    The extractor transforms whole windows, and most recordings are a few seconds long. Frames of silence that no
    recording of the batch reaches all have the same value, so only one is computed: an utterance of 4 s takes a tenth
    of the time.

    Args:
        extractor (`WhisperFeatureExtractor`): of the model.
        recordings (`Sequence[np.ndarray]`): float32 mono at 16 kHz; what exceeds the window is cut off.

    Returns:
        `Tensor` of shape `(batch, mel_bins, frames)`: float32, equal to the extractor's up to the rounding of sums.
    """
    hop, window = extractor.hop_length, extractor.n_samples
    # A frame reaches half a transform to both sides, and the signal is mirrored at its end.
    needed = max((len(recording) for recording in recordings), default=0) + 2 * extractor.n_fft
    # Dithered silence has no single value.
    length = window if getattr(extractor, "dither", 0.0) else min(-(-needed // hop) * hop, window)
    # A training in bf16 on a CPU reads within autocast, in which the extractor would compute in bf16.
    with torch.autocast("cpu", enabled=False):
        extracted = extractor(list(recordings), sampling_rate=SAMPLING_RATE, max_length=length, return_tensors="pt")
    features: Tensor = extracted.input_features.to(torch.float32)
    return F.pad(features, (0, window // hop - features.shape[2]), mode="replicate")


def recording_features(extractor: WhisperFeatureExtractor, blocks: Iterable[np.ndarray]) -> tuple[Tensor, int]:
    """Features of a recording of any length, computed block by block.

    The extractor transforms a recording at once, in 1.8 GB an hour, since its loudest value scales all of it. Here the
    features are scaled at the end, in a memory-mapped file.

    Args:
        extractor (`WhisperFeatureExtractor`): of the model.
        blocks (`Iterable[np.ndarray]`): float32 mono at 16 kHz, as [`audio_blocks`] gives it; in total longer than
            half the extractor's transform.

    Returns:
        `tuple[Tensor, int]`: features of shape `(1, mel_bins, frames)`, float32, equal to the extractor's up to the
        rounding of sums, and the number of samples.
    """
    window, filters = torch.hann_window(extractor.n_fft), torch.from_numpy(extractor.mel_filters.T).float()
    samples, frames, loudest = 0, 0, -float("inf")

    def short_blocks() -> Iterator[np.ndarray]:
        nonlocal samples
        size = _BLOCK * extractor.hop_length
        for block in blocks:
            samples += len(block)
            yield from (block[start : start + size] for start in range(0, len(block), size))

    with TemporaryFile() as file:
        for signal in _overlapping(short_blocks(), extractor.n_fft, extractor.hop_length):
            if extractor.dither:
                signal = signal + extractor.dither * torch.randn(signal.shape)
            spectrum = torch.stft(
                signal, extractor.n_fft, extractor.hop_length, window=window, center=False, return_complex=True
            )
            powers = (filters @ spectrum.abs().square()).clamp(min=1e-10).log10()  # (mel_bins, frames of the block)
            frames, loudest = frames + powers.shape[1], max(loudest, float(powers.max()))
            file.write(powers.T.contiguous().numpy().tobytes())
        file.flush()
        features = np.memmap(
            file, np.float32, "r+", shape=(frames, len(filters))
        )  # stays mapped behind the closed file
    # As the extractor: at least 8 powers of ten below the loudest value of all, then scaled by (x + 4) / 4.
    for start in range(0, frames, _BLOCK):
        block = features[start : start + _BLOCK]
        np.add(np.maximum(block, loudest - _DYNAMIC_RANGE), 4, out=block)
        block /= 4
    return torch.from_numpy(features).T[None], samples


def recording_key(audio: Any, settings: bytes, name: str) -> bytes:
    """Key of the features of a recording or part, whose file is read but not decoded.

    Args:
        audio (`dict`, `str` or `Path`): as [`load_source`] gives it, or anything else that [`load_audio`] takes.
        settings (`bytes`): from [`extractor_settings`].
        name (`str`): of the row; stands for the content of a file that cannot be read, which decoding will report.
    """
    content, part = audio, {}
    if isinstance(audio, dict) and audio.get("array") is None:
        content = audio.get("path") if audio.get("bytes") is None else audio["bytes"]
        part = {key: audio[key] for key in ("offset", "duration", "channel") if audio.get(key) is not None}
    if part:  # keys of whole recordings stay as they were
        settings += json.dumps(part, default=float).encode()
    try:
        if isinstance(content, str | Path):
            file = Path(content)
            # A call of an hour has a thousand parts: it is not read for each.
            content = _digest(file, file.stat().st_mtime_ns) if part else file.read_bytes()
        return content_key(content if isinstance(content, bytes) else load_audio(audio, name=name), settings)
    except (OSError, AudioError):
        return content_key(f"{name}: {audio!r}"[:1000].encode(), settings)


@lru_cache(maxsize=64)
def _digest(file: Path, modified: int) -> bytes:
    return content_key(file.read_bytes())


def extractor_settings(processor: WhisperProcessor) -> bytes:
    """All settings of a processor that features depend on, for [`recording_key`]."""
    return json.dumps(processor.feature_extractor.to_dict(), sort_keys=True, default=str).encode()


def _overlapping(blocks: Iterable[np.ndarray], n_fft: int, hop: int) -> Iterator[Tensor]:
    """Pieces of whole frames of a recording that is mirrored at both ends as `torch.stft` does it.

    The last frame belongs to no piece: the extractor leaves it out.
    """
    margin, is_mirrored = n_fft // 2, False
    buffer = np.zeros(0, np.float32)
    for block in blocks:
        buffer = np.concatenate([buffer, block])
        if not is_mirrored and len(buffer) > margin:
            buffer, is_mirrored = np.concatenate([buffer[margin:0:-1], buffer]), True
        if is_mirrored and (frames := (len(buffer) - n_fft) // hop) > 0:  # one fewer than there are
            yield torch.from_numpy(buffer[: (frames - 1) * hop + n_fft])
            buffer = buffer[frames * hop :]  # a whole frame at least, twice as long as the mirrored end
    buffer = np.concatenate([buffer, buffer[-2::-1][:margin]])
    if (frames := (len(buffer) - n_fft) // hop) > 0:
        yield torch.from_numpy(buffer[: (frames - 1) * hop + n_fft])
