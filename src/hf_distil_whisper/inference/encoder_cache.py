"""What an encoder made of a recording, kept for whoever needs it next: labelling runs it first, then training.

Knows one encoder and its states; `cache_store` keeps the arrays.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import WhisperConfig, WhisperForConditionalGeneration

from hf_distil_whisper.cache_store import CacheStore
from hf_distil_whisper.checkpoints import module_fingerprint

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By bytes: numpy has no bfloat16, so what is kept are the bits."""


@torch.no_grad()
def encode(model: WhisperForConditionalGeneration, input_features: Tensor) -> Tensor:
    """The states of a model's encoder, (batch, frames, width), without gradient.

    Args:
        model (`WhisperForConditionalGeneration`): teacher, or student with a frozen encoder.
        input_features (`Tensor`): log-mel of shape (batch, mel bins, 2 * frames), in any precision.
    """
    encoder = model.model.encoder
    return encoder(input_features.to(encoder.dtype)).last_hidden_state


class EncoderCache:
    """An encoder's states by the content of the recording, in memory or in a folder that runs and processes share.

    Args:
        encoder (`nn.Module`): whose states these are; a folder belongs to one encoder.
        dtype (`torch.dtype`): of the states.
        folder (`str` or `Path`, *optional*): on a local disk; the states lie in `states` below it. None for memory.

    Raises:
        ValueError: if the folder is a URL.
        StaleRunError: if the folder holds the states of another encoder, or others of this one.
    """

    def __init__(self, encoder: nn.Module, dtype: torch.dtype, folder: str | Path | None = None):
        self.dtype = dtype
        if folder is None:
            self._store = CacheStore()
        else:
            identity = {"encoder": module_fingerprint(encoder), "dtype": str(dtype)}
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
            self._store.add(key, {"states": states.view(_BITS[self.dtype.itemsize]).numpy()})

    def get(self, key: bytes) -> Tensor | None:
        """The states of one recording, in memory of their own; None where there are none."""
        found = self._store.get(key)
        return None if found is None else torch.from_numpy(found["states"].copy()).view(self.dtype)

    def flush(self) -> None:
        """Commits what has been added."""
        self._store.flush()

    def reload(self) -> None:
        """Finds what other processes have committed."""
        self._store.reload()


def encoder_cache_bytes(num_rows: int, config: WhisperConfig, dtype: torch.dtype) -> int:
    """Bytes of the encoder states of `num_rows` windows."""
    return num_rows * config.max_source_positions * config.d_model * dtype.itemsize
