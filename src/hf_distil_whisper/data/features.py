"""Log-mel features of recordings, as Whisper's extractor makes them, without work on the silence behind them."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import WhisperFeatureExtractor

from hf_distil_whisper.data.audio import SAMPLING_RATE


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
