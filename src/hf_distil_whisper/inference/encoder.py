"""What an encoder made of a recording, kept for whoever needs it next: labelling runs it first, then training.

Knows one encoder and its states; `cache_store` keeps the arrays.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import WhisperConfig, WhisperForConditionalGeneration, WhisperProcessor

from hf_distil_whisper.checkpoints import module_fingerprint
from hf_distil_whisper.data.array_store import (
    CacheStore,
    content_key,
)
from hf_distil_whisper.data.audio import SAMPLING_RATE
from hf_distil_whisper.data.features import log_mel

STATES_DTYPES = ("auto", "int8")
"""Types in which states may be kept: that of the model that reads them, or 8 bits."""

INT8_BLOCK = 64
"""Neighbouring numbers of a state that share a scale: the few large ones of a Whisper spoil no others then."""

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By bytes: numpy has no bfloat16, so what is kept are the bits."""


@torch.no_grad()
def encode(model: WhisperForConditionalGeneration, input_features: Tensor) -> Tensor:
    """The states of a model's encoder, (batch, frames, width), without gradient.

    On a CPU one window after the other: what the encoder makes of several is too large for the caches, and for the
    allocator to keep (glibc fetches tensors of more than 32 MB anew each time). Of 16 windows of the small teacher of
    examples/quickstart that saves a quarter of the time.

    Args:
        model (`WhisperForConditionalGeneration`): teacher, or student with a frozen encoder.
        input_features (`Tensor`): log-mel of shape (batch, mel bins, 2 * frames), in any precision.
    """
    encoder = model.model.encoder
    features = input_features.to(encoder.dtype)
    batches = features.split(1) if features.device.type == "cpu" else (features,)
    states = [encoder(batch).last_hidden_state for batch in batches]
    return states[0] if len(states) == 1 else torch.cat(states)


class EncoderCache:
    """An encoder's states by the content of the recording, in memory or in a folder that runs and processes share.

    Args:
        encoder (`nn.Module`): whose states these are; a folder belongs to one encoder.
        dtype (`torch.dtype`): of the states.
        folder (`str` or `Path`, *optional*): on a local disk; the states lie in `states` below it. None for memory.
        int8 (`bool`, *optional*, defaults to `False`): keep them in 8 bits, each block of 64 numbers with a scale:
            half the room of bfloat16, and numbers that are off by at most 0.4 % of the largest of their block.

    Raises:
        ValueError: if the folder is a URL.
        StaleRunError: if the folder holds the states of another encoder, or others of this one.
    """

    def __init__(self, encoder: nn.Module, dtype: torch.dtype, folder: str | Path | None = None, int8: bool = False):
        self.dtype, self.int8 = dtype, int8
        if folder is None:
            self._store = CacheStore()
        else:
            identity = {"encoder": module_fingerprint(encoder), "dtype": "int8" if int8 else str(dtype)}
            self._store = CacheStore(Path(folder, "states"), identity)
            self._store.remove_damaged()

    def __contains__(self, key: bytes) -> bool:
        return key in self._store

    def add(self, key: bytes, states: Tensor) -> None:
        """Keeps the states of one recording, unless they are there.

        Args:
            key (`bytes`): from [`recording_key`].
            states (`Tensor`): (frames, width), in any precision.
        """
        if key not in self._store:
            states = states.detach().to("cpu", self.dtype, copy=True)
            self._store.add(
                key, _quantized(states) if self.int8 else {"states": states.view(_BITS[self.dtype.itemsize]).numpy()}
            )

    def get(self, key: bytes) -> Tensor | None:
        """The states of one recording, in memory of their own; None where there are none."""
        found = self._store.get(key)
        if found is None:
            return None
        if self.int8:
            return _restored(found["states"], found["scales"]).to(self.dtype)
        return torch.from_numpy(found["states"].copy()).view(self.dtype)

    def flush(self) -> None:
        """Commits what has been added."""
        self._store.flush()

    def reload(self) -> None:
        """Finds what other processes have committed."""
        self._store.reload()


def encode_once(model: WhisperForConditionalGeneration, input_features: Tensor, cache: EncoderCache) -> Tensor:
    """As [`encode`], but windows that the cache knows are not heard again; the others are kept in it.

    Args:
        model (`WhisperForConditionalGeneration`): with the cache's encoder.
        input_features (`Tensor`): log-mel of shape (batch, mel bins, 2 * frames).
        cache ([`EncoderCache`]): of the model's dtype, so that the states are the same to the last bit.
    """
    keys = [content_key(window.cpu().numpy()) for window in input_features]
    states = [cache.get(key) for key in keys]
    unheard = [place for place, known in enumerate(states) if known is None]
    if unheard:
        for place, heard in zip(unheard, encode(model, input_features[unheard]), strict=True):
            cache.add(keys[place], heard)
            states[place] = heard
    return torch.stack([known.to(input_features.device) for known in states if known is not None])


def encoder_cache_bytes(num_rows: int, config: WhisperConfig, dtype: torch.dtype, int8: bool = False) -> int:
    """Bytes of the encoder states of `num_rows` windows."""
    frame = config.d_model + 2 * -(-config.d_model // INT8_BLOCK) if int8 else config.d_model * dtype.itemsize
    return num_rows * config.max_source_positions * frame


def _quantized(states: Tensor) -> dict[str, np.ndarray]:
    """States (frames, width) as integers from -127 to 127, and the scale of each block, (frames, blocks)."""
    width = states.shape[1]
    blocks = F.pad(states.float(), (0, -width % INT8_BLOCK)).unflatten(1, (-1, INT8_BLOCK))
    # Rounded up to a number of half precision, so that no integer exceeds 127.
    scales = (blocks.abs().amax(2) / 127 * (1 + 2**-10)).clamp(min=2**-24).half()
    integers = (blocks / scales.float()[..., None]).round().clamp(-127, 127).to(torch.int8)
    return {"states": integers.flatten(1)[:, :width].numpy(), "scales": scales.numpy()}


def _restored(states: np.ndarray, scales: np.ndarray) -> Tensor:
    factors = torch.from_numpy(scales.astype(np.float32)).repeat_interleave(INT8_BLOCK, dim=1)
    return torch.from_numpy(states.astype(np.float32)) * factors[:, : states.shape[1]]


def window_seconds(processor: WhisperProcessor) -> float:
    """Length of the encoder's window in seconds: 30 for all published models."""
    return processor.feature_extractor.n_samples / SAMPLING_RATE


def window_features(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, recordings: Sequence[np.ndarray]
) -> Tensor:
    """Log-mel features of recordings of up to one window, padded with silence to the window.

    Args:
        model (`WhisperForConditionalGeneration`): the features come in its dtype and on its device.
        processor (`WhisperProcessor`): holds the feature extractor.
        recordings (`Sequence[np.ndarray]`): float32 mono at 16 kHz.

    Returns:
        `Tensor`: (batch, mel bins, frames).
    """
    return log_mel(processor.feature_extractor, recordings).to(model.device, model.dtype)
