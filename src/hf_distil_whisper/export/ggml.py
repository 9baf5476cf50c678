"""What [`export_ggml`] writes, run by whisper.cpp through its Python binding `pywhispercpp`.

Knows the settings that make its search the one of `generation.py`; `export_ggml` knows the file.
"""

import atexit
import re
import struct
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration, WhisperProcessor
from transformers.convert_slow_tokenizer import bytes_to_unicode

from hf_distil_whisper.inference.ctranslate2 import (
    check_exportable,
    import_runtime,
    new_folder,
)
from hf_distil_whisper.inference.generation import TokenSequence
from hf_distil_whisper.inference.prompt import (
    max_generated_tokens,
    resolve_languages,
)

OFFICIAL_VOCABULARIES = {51_864: 50_256, 51_865: 50_257, 51_866: 50_257}
"""Tokens of OpenAI's checkpoints (English-only, multilingual, large-v3) → id of `<|endoftext|>`."""

GGML_FILE = "ggml-model.bin"
BLOCK = 32
"""Neighbouring weights of a row that share a scale."""

_MAGIC, _OFFICIAL_FRAMES = 0x67676D6C, 1500
_QUANTISATION_VERSION = 2000

_NAMES = {
    r"^model\.": "",
    r"\.layers\.": ".blocks.",
    r"\.self_attn\.": ".attn.",
    r"\.encoder_attn\.": ".cross_attn.",
    r"\.q_proj\.": ".query.",
    r"\.k_proj\.": ".key.",
    r"\.v_proj\.": ".value.",
    r"\.out_proj\.": ".out.",
    r"\.self_attn_layer_norm\.": ".attn_ln.",
    r"\.encoder_attn_layer_norm\.": ".cross_attn_ln.",
    r"\.final_layer_norm\.": ".mlp_ln.",
    r"\.fc1\.": ".mlp.0.",
    r"\.fc2\.": ".mlp.2.",
    r"^encoder\.layer_norm\.": "encoder.ln_post.",
    r"^decoder\.layer_norm\.": "decoder.ln.",
    r"\.embed_positions\.weight$": ".positional_embedding",
    r"\.embed_tokens\.": ".token_embedding.",
}
"""Part of a weight's name in transformers → in OpenAI's Whisper, which whisper.cpp keeps."""


def export_ggml(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    folder: str | Path,
    *,
    quantization: str = "float16",
) -> Path:
    """Writes a model as whisper.cpp loads it: `ggml-model.bin`.

    The runtime has the ids of OpenAI's vocabularies built in, so a model with any other one is refused. It knows only
    windows of 30 s, and starts no transcript without timestamps unless it is told (`no_timestamps`).

    Args:
        model (`WhisperForConditionalGeneration`): left as it is.
        processor (`WhisperProcessor`): of the model.
        folder (`str` or `Path`): new or empty; written whole or not at all.
        quantization (`str`, *optional*, defaults to `"float16"`): type of the weight matrices, as whisper.cpp's own
            files have it; "q8_0" (8 bits, 8.5 with their scales) or "q5_0" (5, 5.5).

    Returns:
        `Path`: the folder.

    Raises:
        ValueError: for another vocabulary or window than the official ones, another quantization, rows that are no
            multiple of 32 where weights are quantised, or a model with adapters.
        FileExistsError: if the folder is not empty.

    Example:
        ```python
        export_ggml(student, processor, "student-ggml", quantization="q8_0")
        pywhispercpp.model.Model("student-ggml/ggml-model.bin").transcribe("talk.wav")
        ```
    """
    check_exportable(model, quantization, tuple(_PACKED))
    check_ggml(model)
    with new_folder(folder) as part, open(part / GGML_FILE, "wb") as file:
        _write_header(file, model, processor, quantization)
        for name, weight in _named_weights(model):
            _write_tensor(file, name, weight, _type_of(name, weight, quantization))
    return Path(folder)


def check_ggml(model: WhisperForConditionalGeneration) -> None:
    """Makes sure that whisper.cpp can run a model, which may be on the meta device.

    Raises:
        ValueError: says what is not official about it, and what to do.
    """
    config = model.config
    end = OFFICIAL_VOCABULARIES.get(config.vocab_size)
    if end is None or config.eos_token_id != end:
        known = ", ".join(f"{size:,}" for size in OFFICIAL_VOCABULARIES)
        raise ValueError(
            f"whisper.cpp has the official vocabularies built in ({known} tokens), the model has "
            f"{config.vocab_size:,} with <|endoftext|> at {config.eos_token_id}: it would write other tokens than it "
            "was trained on. Export it for CTranslate2 or ONNX."
        )
    if config.max_source_positions != _OFFICIAL_FRAMES:
        raise ValueError(
            f"whisper.cpp hears windows of 30 s ({_OFFICIAL_FRAMES} encoder positions), the model has "
            f"{config.max_source_positions}. Export it for CTranslate2 or ONNX."
        )
    if {config.encoder_ffn_dim, config.decoder_ffn_dim} != {4 * config.d_model}:
        raise ValueError(
            f"whisper.cpp expects feed-forward layers of 4 x d_model = {4 * config.d_model}, the model has "
            f"{config.encoder_ffn_dim} in the encoder and {config.decoder_ffn_dim} in the decoder. Export it for "
            "CTranslate2 or ONNX."
        )


def _write_header(
    file: BinaryIO, model: WhisperForConditionalGeneration, processor: WhisperProcessor, quantization: str
) -> None:
    config = model.config
    sizes = (
        *(config.vocab_size, config.max_source_positions, config.d_model),
        *(config.encoder_attention_heads, config.encoder_layers),
        *(config.max_target_positions, config.d_model, config.decoder_attention_heads, config.decoder_layers),
        *(config.num_mel_bins, _PACKED[quantization][1]),
    )
    file.write(struct.pack("<12i", _MAGIC, *sizes))
    filters = np.ascontiguousarray(processor.feature_extractor.mel_filters.T, dtype="<f4")
    file.write(struct.pack("<2i", *filters.shape) + filters.tobytes())
    raw = {character: byte for byte, character in bytes_to_unicode().items()}
    # The others are special: the runtime makes them up behind the last one that is written.
    count = OFFICIAL_VOCABULARIES[config.vocab_size]
    file.write(struct.pack("<i", count))
    for token in processor.tokenizer.convert_ids_to_tokens(range(count)):
        content = bytes(raw[character] for character in token)
        file.write(struct.pack("<i", len(content)) + content)


def _named_weights(model: WhisperForConditionalGeneration) -> Iterator[tuple[str, np.ndarray]]:
    for name, weight in model.state_dict().items():
        if name == "proj_out.weight":  # that of the embedding, in every Whisper
            continue
        for pattern, replacement in _NAMES.items():
            name = re.sub(pattern, replacement, name)
        numbers = weight.detach().float().cpu().numpy()
        yield name, numbers[:, None] if re.fullmatch(r"encoder\.conv\d\.bias", name) else numbers


def _type_of(name: str, weight: np.ndarray, quantization: str) -> str:
    """What the runtime expects: vectors and positions in float32, convolutions not quantised."""
    if weight.ndim == 1 or re.fullmatch(r".*\.positional_embedding|encoder\.conv\d\.bias", name):
        return "float32"
    return "float16" if weight.ndim == 3 else quantization


def _write_tensor(file: BinaryIO, name: str, weight: np.ndarray, quantization: str) -> None:
    number, _, pack = _FLOAT32 if quantization == "float32" else _PACKED[quantization]
    if quantization.startswith("q") and weight.shape[-1] % BLOCK:
        raise ValueError(
            f"`quantization`: {quantization} needs rows of a multiple of {BLOCK} weights, {name} has rows of "
            f"{weight.shape[-1]}. Take float16."
        )
    encoded = name.encode()
    file.write(struct.pack("<3i", weight.ndim, len(encoded), number))
    file.write(struct.pack(f"<{weight.ndim}i", *reversed(weight.shape)) + encoded)
    file.write(pack(weight).tobytes())


def pack_q8_0(weights: np.ndarray) -> np.ndarray:
    """Blocks of 32 weights as a half-precision scale and 32 signed bytes.

    Args:
        weights (`np.ndarray`): float32, rows of a multiple of 32.

    Returns:
        `np.ndarray`: (blocks, 34) bytes.
    """
    blocks = weights.astype(np.float32).reshape(-1, BLOCK)
    scales = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    scaled = blocks * _inverse(scales)
    rounded = np.copysign(np.floor(np.abs(scaled) + np.float32(0.5)), scaled).astype(np.int8)  # C's roundf
    return np.concatenate([scales.astype("<f2").view(np.uint8), rounded.view(np.uint8)], axis=1)


def pack_q5_0(weights: np.ndarray) -> np.ndarray:
    """Blocks of 32 weights as a half-precision scale, 32 fifth bits and 32 times four bits, two halves side by side.

    Args:
        weights (`np.ndarray`): float32, rows of a multiple of 32.

    Returns:
        `np.ndarray`: (blocks, 22) bytes.
    """
    blocks = weights.astype(np.float32).reshape(-1, BLOCK)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1, keepdims=True), axis=1)
    scales = largest / np.float32(-16)
    levels = np.minimum((blocks * _inverse(scales) + np.float32(16.5)).astype(np.int8), 31).astype(np.uint8)
    low, high = levels & 15, levels >> 4
    fifth = np.packbits(high, axis=1, bitorder="little")
    halves = low[:, : BLOCK // 2] | low[:, BLOCK // 2 :] << 4
    return np.concatenate([scales.astype("<f2").view(np.uint8), fifth, halves], axis=1)


def _inverse(scales: np.ndarray) -> np.ndarray:
    return np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales != 0)


_Packing = tuple[int, int, Callable[[np.ndarray], np.ndarray]]
_FLOAT32: _Packing = (0, 0, lambda weight: weight.astype("<f4"))
_PACKED: dict[str, _Packing] = {
    "float16": (1, 1, lambda weight: weight.astype("<f2")),
    "q8_0": (8, _QUANTISATION_VERSION + 7, pack_q8_0),
    "q5_0": (6, _QUANTISATION_VERSION + 8, pack_q5_0),
}
"""Name → number of the tensor type, number of the file type, how to pack weights. No float32: the convolutions of
whisper.cpp (1.8) take half precision only, and end the process otherwise."""
GGML_QUANTIZATIONS = tuple(_PACKED)


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
