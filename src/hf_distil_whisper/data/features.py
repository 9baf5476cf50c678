"""Log-mel features of recordings, as Whisper's extractor makes them.

Without work on the silence behind short ones, and of hours in the memory of a minute.
"""

from collections.abc import Iterable, Iterator, Sequence
from tempfile import TemporaryFile

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import WhisperFeatureExtractor

from hf_distil_whisper.data.audio import SAMPLING_RATE

_DYNAMICS = 8.0
"""Powers of ten below the loudest place of a recording at which the extractor cuts off."""
_PART = 3000
"""Frames that are made and scaled at once."""


def log_mel(extractor: WhisperFeatureExtractor, recordings: Sequence[np.ndarray]) -> Tensor:
    """Features of recordings of up to one window, padded with silence to the window.

    The extractor transforms whole windows, and most of what is recorded is a few seconds. Silence that no recording of
    the batch reaches has one value, that of any frame of it, so it is worked out once: an utterance of 4 s takes a
    tenth of the time.

    Args:
        extractor (`WhisperFeatureExtractor`): of the model that listens.
        recordings (`Sequence[np.ndarray]`): float32 mono at 16 kHz; what exceeds the window is cut off.

    Returns:
        `Tensor`: (batch, mel bins, frames) in float32, the extractor's own up to the rounding of sums.
    """
    hop, window = extractor.hop_length, extractor.n_samples
    # A frame reaches half a transform to both sides, and the signal is mirrored at its end.
    needed = max((len(recording) for recording in recordings), default=0) + 2 * extractor.n_fft
    # Dithered silence has no single value.
    length = window if getattr(extractor, "dither", 0.0) else min(-(-needed // hop) * hop, window)
    made = extractor(list(recordings), sampling_rate=SAMPLING_RATE, max_length=length, return_tensors="pt")
    features: Tensor = made.input_features.to(torch.float32)
    return F.pad(features, (0, window // hop - features.shape[2]), mode="replicate")


def recording_features(extractor: WhisperFeatureExtractor, blocks: Iterable[np.ndarray]) -> tuple[Tensor, int]:
    """Features of a recording of any length, made block by block.

    The extractor transforms a recording at once, in 1.8 GB an hour, since all of it is scaled by its loudest place.
    Here that is done in the end, in a file that the features stay in: the system takes what is not looked at from
    memory.

    Args:
        extractor (`WhisperFeatureExtractor`): of the model that listens.
        blocks (`Iterable[np.ndarray]`): float32 mono at 16 kHz, as [`audio_blocks`] gives it; longer in all than half
            the extractor's transform.

    Returns:
        `tuple[Tensor, int]`: (1, mel bins, frames) in float32, the extractor's own up to the rounding of sums, and the
            number of samples.
    """
    window, filters = torch.hann_window(extractor.n_fft), torch.from_numpy(extractor.mel_filters.T).float()
    samples, frames, loudest = 0, 0, -float("inf")

    def short_blocks() -> Iterator[np.ndarray]:
        nonlocal samples
        size = _PART * extractor.hop_length
        for block in blocks:
            samples += len(block)
            yield from (block[begin : begin + size] for begin in range(0, len(block), size))

    with TemporaryFile() as file:
        for signal in _overlapping(short_blocks(), extractor.n_fft, extractor.hop_length):
            if extractor.dither:
                signal = signal + extractor.dither * torch.randn(signal.shape)
            spectrum = torch.stft(
                signal, extractor.n_fft, extractor.hop_length, window=window, center=False, return_complex=True
            )
            powers = (filters @ spectrum.abs().square()).clamp(min=1e-10).log10()
            frames, loudest = frames + powers.shape[1], max(loudest, float(powers.max()))
            file.write(powers.T.contiguous().numpy().tobytes())
        file.flush()
        features = np.memmap(file, np.float32, "r+", shape=(frames, len(filters)))
    for begin in range(0, frames, _PART):
        part = features[begin : begin + _PART]
        np.add(np.maximum(part, loudest - _DYNAMICS), 4, out=part)
        part /= 4
    return torch.from_numpy(features).T[None], samples


def _overlapping(blocks: Iterable[np.ndarray], n_fft: int, hop: int) -> Iterator[Tensor]:
    """A recording, mirrored at both ends as `torch.stft` does it, in pieces that hold whole frames.

    The last frame belongs to no piece: the extractor leaves it out.
    """
    reach, mirrored = n_fft // 2, False
    held = np.zeros(0, np.float32)
    for block in blocks:
        held = np.concatenate([held, block])
        if not mirrored and len(held) > reach:
            held, mirrored = np.concatenate([held[reach:0:-1], held]), True
        if mirrored and (frames := (len(held) - n_fft) // hop) > 0:  # one fewer than there are
            yield torch.from_numpy(held[: (frames - 1) * hop + n_fft])
            held = held[frames * hop :]  # a whole frame at least, twice as long as what is mirrored
    held = np.concatenate([held, held[-2::-1][:reach]])
    if (frames := (len(held) - n_fft) // hop) > 0:
        yield torch.from_numpy(held[: (frames - 1) * hop + n_fft])
