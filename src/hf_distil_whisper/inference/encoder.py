"""Run Whisper's encoder: features of a window, hidden states, and a cache that labelling and training share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import WhisperConfig, WhisperForConditionalGeneration, WhisperProcessor

from hf_distil_whisper.checkpoints import module_fingerprint
from hf_distil_whisper.data.array_store import ArrayStore, content_key
from hf_distil_whisper.data.audio import SAMPLING_RATE
from hf_distil_whisper.data.features import log_mel

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integer type by item size: numpy has no bfloat16, so the bits are stored."""


@torch.no_grad()
def encode(model: WhisperForConditionalGeneration, input_features: Tensor) -> Tensor:
    """Encoder hidden states (batch, frames, d_model) of features (batch, mel bins, 2 * frames), without gradient."""
    encoder = model.model.encoder
    features = input_features.to(encoder.dtype)
    # One window at a time on a CPU: the activations of a batch exceed the CPU's caches, and glibc gives tensors above
    # 32 MB back to the system each time.
    batches = features.split(1) if features.device.type == "cpu" else (features,)
    states = [encoder(batch).last_hidden_state for batch in batches]
    return states[0] if len(states) == 1 else torch.cat(states)


class StateCache:
    """Hidden states by key, in memory or in a local folder that processes share.

    Args:
        dtype (`torch.dtype`): that they are stored in.
        folder (`Path`, *optional*): by default they are in memory.
        identity (`dict`, *optional*): what they depend on, for the folder.

    Raises:
        ValueError: if the folder is a URL.
        StaleRunError: if the folder holds hidden states of another identity.
    """

    def __init__(self, dtype: torch.dtype, folder: Path | None = None, identity: dict[str, Any] | None = None):
        self.dtype = dtype
        if folder is None:
            self._store = ArrayStore()
        else:
            self._store = ArrayStore(folder, identity)
            self._store.remove_damaged()

    def __len__(self) -> int:
        return len(self._store)

    def __contains__(self, key: bytes) -> bool:
        return key in self._store

    def add(self, key: bytes, states: Tensor) -> None:
        """Adds hidden states (positions, d_model) under a key, unless it has them."""
        if key not in self._store:
            states = states.detach().to("cpu", self.dtype, copy=True)
            self._store.add(key, {"states": states.view(_BITS[self.dtype.itemsize]).numpy()})

    def get(self, key: bytes) -> Tensor | None:
        """A copy of the hidden states of a key, (positions, d_model); None if they are not cached."""
        arrays = self._store.get(key)
        return None if arrays is None else torch.from_numpy(arrays["states"].copy()).view(self.dtype)

    def flush(self) -> None:
        """Commits the added hidden states to the folder."""
        self._store.flush()

    def reload(self) -> None:
        """Reads the hidden states that other processes have committed."""
        self._store.reload()


class EncoderCache(StateCache):
    """Encoder hidden states by the content of the recording ([`recording_key`]), shared by labelling and training.

    Raises:
        ValueError: if the folder is a URL.
        StaleRunError: if the folder holds hidden states of another encoder or dtype.
    """

    def __init__(self, encoder: nn.Module, dtype: torch.dtype, folder: str | Path | None = None):
        if folder is None:
            super().__init__(dtype)
        else:
            identity = {"encoder": module_fingerprint(encoder, dtype=dtype), "dtype": str(dtype)}
            super().__init__(dtype, Path(folder, "states"), identity)


def encode_cached(model: WhisperForConditionalGeneration, input_features: Tensor, cache: EncoderCache) -> Tensor:
    """[`encode`], with hidden states from the cache where it has them; new ones are added to it."""
    keys = [content_key(window.float().cpu().numpy()) for window in input_features]  # numpy has no bfloat16
    states = [cache.get(key) for key in keys]
    missing = [index for index, cached in enumerate(states) if cached is None]
    if missing:
        for index, encoded in zip(missing, encode(model, input_features[missing]), strict=True):
            cache.add(keys[index], encoded)
            states[index] = encoded
    return torch.stack([cached.to(input_features.device) for cached in states if cached is not None])


def encoder_cache_bytes(num_rows: int, config: WhisperConfig, dtype: torch.dtype) -> int:
    """Bytes of the encoder hidden states of `num_rows` windows."""
    return num_rows * config.max_source_positions * config.d_model * dtype.itemsize


def window_seconds(processor: WhisperProcessor) -> float:
    """Length of the encoder's window in seconds: 30 in all published models."""
    return processor.feature_extractor.n_samples / SAMPLING_RATE


def window_features(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, recordings: Sequence[np.ndarray]
) -> Tensor:
    """Log-mel features (batch, mel bins, frames) of recordings at 16 kHz, padded with silence to the window."""
    return log_mel(processor.feature_extractor, recordings).to(model.device, model.dtype)
