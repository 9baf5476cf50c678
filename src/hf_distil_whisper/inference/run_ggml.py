"""What [`export_ggml`] writes, run by whisper.cpp through its Python binding `pywhispercpp`.

Knows the settings that make its search the one of `generation.py`; `export_ggml` knows the file.
"""

import atexit
import weakref
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration

from hf_distil_whisper.inference.export import import_runtime
from hf_distil_whisper.inference.export_ggml import GGML_FILE
from hf_distil_whisper.inference.generation import TokenSequence, max_generated_tokens, resolve_languages

_ERROR = 4
"""Level of a message of the runtime."""

_NO_MORE = 219
"""Tokens that whisper.cpp writes into a window at most: half of the decoder's context, less its prefix."""


class GgmlGenerator:
    """Transcribes windows as [`generate_tokens`] does, by whisper.cpp, one after the other.

    whisper.cpp suppresses special tokens always, blanks at the beginning, and a built-in list of non-speech symbols
    where the model's generation config suppresses any text token: the official lists, by and large. It tries no
    second time at a higher temperature here, and skips no window as silence.

    Args:
        model (`WhisperForConditionalGeneration`): what was exported; its configs are read.
        folder (`str` or `Path`): written by [`export_ggml`].
        max_new_tokens (`int`, *optional*, defaults to what [`max_generated_tokens`] allows): bound on the tokens; the
            runtime's own is 219.
        language (`str`, *optional*): see [`resolve_language`]; None detects it.
        task (`str`, *optional*, defaults to `"transcribe"`): or "translate".

    Raises:
        ImportError: without the extra `ggml`.
        FileNotFoundError: if there is no exported model.
    """

    def __init__(
        self,
        model: WhisperForConditionalGeneration,
        folder: str | Path,
        *,
        max_new_tokens: int | None = None,
        language: str | None = None,
        task: str = "transcribe",
    ):
        import_runtime("pywhispercpp", "ggml")
        self._runtime = runtime = import_runtime("_pywhispercpp", "ggml")
        file = Path(folder, GGML_FILE)
        if not file.is_file():
            raise FileNotFoundError(f"`folder`: {folder} holds no {GGML_FILE}, which export_ggml writes.")
        self._model, self._language, self._task = model, language, task
        resolve_languages(model, language, task, 1)
        self._messages: list[str] = []
        runtime.whisper_log_set(partial(_listen, self._messages))  # it prints pages about memory otherwise
        atexit.register(runtime.whisper_log_set, None)  # else the process ends with a crash of the binding
        self._context = runtime.whisper_init_from_file_with_params(str(file), runtime.whisper_context_default_params())
        if self._messages:  # the binding gives a context in any case, and a crash with its first use
            raise ValueError(f"whisper.cpp does not load {file}: {' '.join(self._messages)}")
        weakref.finalize(self, runtime.whisper_free, self._context)
        self._new_tokens = min(max_new_tokens or max_generated_tokens(model, False), _NO_MORE)

    def __call__(self, input_features: Tensor, *, language: Sequence[str | None] | None = None) -> list[TokenSequence]:
        """Tokens of a batch of windows.

        Args:
            input_features (`Tensor`): log-mel of shape (batch, mel bins, frames), padded to the window.
            language (`Sequence[str | None]`, *optional*): of each window, in place of the one for all.
        """
        told = self._language if language is None else language
        codes = resolve_languages(self._model, told, self._task, len(input_features))
        windows = input_features.float().cpu().numpy()
        return [self._window(window, code) for window, code in zip(windows, codes, strict=True)]

    def from_samples(self, samples: np.ndarray, language: str | None = None) -> TokenSequence:
        """Tokens of a recording of up to 30 s, whose features the runtime works out by itself.

        Args:
            samples (`np.ndarray`): float32 mono at 16 kHz.
            language (`str`, *optional*): None detects it.
        """
        return self._search(samples.astype(np.float32), language)

    def _window(self, features: np.ndarray, language: str | None) -> TokenSequence:
        bins, frames = features.shape
        self._runtime.whisper_set_mel(self._context, np.ascontiguousarray(features), frames, bins)
        return self._search(np.zeros(0, dtype=np.float32), language)  # without samples it takes the features

    def _search(self, samples: np.ndarray, language: str | None) -> TokenSequence:
        runtime, context = self._runtime, self._context
        if runtime.whisper_full(context, self._parameters(language), samples, len(samples)) != 0:
            raise RuntimeError(f"whisper.cpp could not transcribe a window: {' '.join(self._messages)}")
        end = runtime.whisper_token_eot(context)
        tokens = [
            runtime.whisper_full_get_token_id(context, segment, place)
            for segment in range(runtime.whisper_full_n_segments(context))
            for place in range(runtime.whisper_full_n_tokens(context, segment))
        ]
        words = [token for token in tokens if token < end][: self._new_tokens]
        return TokenSequence(words, len(words) >= self._new_tokens)

    def _parameters(self, language: str | None) -> Any:
        found = self._runtime.whisper_full_default_params(
            self._runtime.whisper_sampling_strategy.WHISPER_SAMPLING_GREEDY
        )
        settings = self._model.generation_config
        found.n_threads = torch.get_num_threads()
        found.language = language or ("auto" if self._runtime.whisper_is_multilingual(self._context) else "en")
        found.translate = self._task == "translate"
        found.no_timestamps = found.single_segment = True
        found.max_tokens = max(self._new_tokens - 1, 1)  # it writes one more
        found.suppress_blank = bool(settings.begin_suppress_tokens)
        found.suppress_nst = any(token < settings.eos_token_id for token in settings.suppress_tokens or [])
        found.greedy = {"best_of": 1}
        found.temperature_inc = 0.0
        found.logprob_thold = -1e9  # with it, nothing counts as silence
        found.print_progress = found.print_timestamps = False
        return found


def _listen(messages: list[str], level: int, text: str) -> None:
    """Keeps what goes wrong. No method: the runtime would keep the generator, and its model, for good."""
    if level >= _ERROR:
        messages.append(text.strip())
