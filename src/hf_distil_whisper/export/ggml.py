"""Export to the file that whisper.cpp loads, `ggml-model.bin`."""

import atexit
import re
import struct
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration, WhisperProcessor
from transformers.convert_slow_tokenizer import bytes_to_unicode

from hf_distil_whisper.checkpoints import OFFICIAL_VOCABULARIES
from hf_distil_whisper.export import check_exportable, new_folder
from hf_distil_whisper.inference.ctranslate2 import import_runtime
from hf_distil_whisper.inference.generation import TokenSequence
from hf_distil_whisper.inference.prompt import max_generated_tokens, resolve_languages

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

    whisper.cpp has the token ids of OpenAI's vocabularies and windows of 30 s built in, so a model with others is
    refused. It predicts timestamps by default; the option `no_timestamps` switches them off.

    Args:
        model (`WhisperForConditionalGeneration`): left as it is.
        processor (`WhisperProcessor`): of the model.
        folder (`str` or `Path`): new or empty; written completely or not at all.
        quantization (`str`, *optional*, defaults to `"float16"`): type of the weight matrices, that of whisper.cpp's
            own files; "q8_0" (8 bits, 8.5 with their scales) or "q5_0" (5, 5.5).

    Returns:
        `Path`: the folder.

    Raises:
        ValueError: for another vocabulary or window than the official ones, another quantization, rows that are no
            multiple of 32 where weights are quantised, a language-model head that is not the embedding, another
            model's processor, or a model with adapters.
        FileExistsError: if the folder is not empty.

    Example:
        ```python
        export_ggml(student, processor, "student-ggml", quantization="q8_0")
        pywhispercpp.model.Model("student-ggml/ggml-model.bin").transcribe("talk.wav")
        ```
    """
    check_exportable(model, processor, quantization, tuple(_PACKED))
    check_whisper_cpp(model)
    if not torch.equal(model.proj_out.weight, model.get_decoder().embed_tokens.weight):
        raise ValueError(
            "whisper.cpp takes the token embedding as language-model head, the model has another one "
            "(`tie_word_embeddings` is false): it would be lost. Export it for CTranslate2 or ONNX."
        )
    with new_folder(folder) as part, open(part / GGML_FILE, "wb") as file:
        _write_header(file, model, processor, quantization)
        for name, weight in _named_weights(model):
            _write_tensor(file, name, weight, _type_of(name, weight, quantization))
    return Path(folder)


def check_whisper_cpp(model: WhisperForConditionalGeneration) -> None:
    """Raises a `ValueError` for a vocabulary, window or feed-forward size that whisper.cpp has not built in."""
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
            f"whisper.cpp reads windows of 30 s ({_OFFICIAL_FRAMES} encoder positions), the model has "
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
    # whisper.cpp computes its features with the file's filters: (mel bins, frequencies), transformers has them turned.
    filters = np.ascontiguousarray(processor.feature_extractor.mel_filters.T, dtype="<f4")
    file.write(struct.pack("<2i", *filters.shape) + filters.tobytes())
    # The tokenizer writes each byte as a printable character, as GPT-2's does; the file holds the bytes.
    raw = {character: byte for byte, character in bytes_to_unicode().items()}
    # Text tokens only: the runtime adds the special ones behind the last that is written.
    count = OFFICIAL_VOCABULARIES[config.vocab_size]
    file.write(struct.pack("<i", count))
    for token in processor.tokenizer.convert_ids_to_tokens(range(count)):
        content = bytes(raw[character] for character in token)
        file.write(struct.pack("<i", len(content)) + content)


def _named_weights(model: WhisperForConditionalGeneration) -> Iterator[tuple[str, np.ndarray]]:
    for name, weight in model.state_dict().items():
        if name == "proj_out.weight":  # tied to the embedding, as export_ggml checks
            continue
        for pattern, replacement in _NAMES.items():
            name = re.sub(pattern, replacement, name)
        array = weight.detach().float().cpu().numpy()
        # The runtime adds a convolution's bias to (channels, frames) and broadcasts it from (channels, 1).
        yield name, array[:, None] if re.fullmatch(r"encoder\.conv\d\.bias", name) else array


def _type_of(name: str, weight: np.ndarray, quantization: str) -> str:
    """Type that the runtime expects: float32 for vectors and positions, float16 for convolutions."""
    if weight.ndim == 1 or re.fullmatch(r".*\.positional_embedding|encoder\.conv\d\.bias", name):
        return "float32"
    return "float16" if weight.ndim == 3 else quantization


def _write_tensor(file: BinaryIO, name: str, weight: np.ndarray, quantization: str) -> None:
    tensor_type, _, pack = _FLOAT32 if quantization == "float32" else _PACKED[quantization]
    if quantization.startswith("q") and weight.shape[-1] % BLOCK:
        raise ValueError(
            f"`quantization`: {quantization} needs rows of a multiple of {BLOCK} weights, {name} has rows of "
            f"{weight.shape[-1]}. Take float16."
        )
    encoded = name.encode()
    file.write(struct.pack("<3i", weight.ndim, len(encoded), tensor_type))
    # ggml lists dimensions from the fastest one on.
    file.write(struct.pack(f"<{weight.ndim}i", *reversed(weight.shape)) + encoded)
    file.write(pack(weight).tobytes())


def pack_q8_0(weights: np.ndarray) -> np.ndarray:
    """Blocks of 32 weights as a half-precision scale and 32 signed bytes, (blocks, 34)."""
    blocks = weights.astype(np.float32).reshape(-1, BLOCK)
    scales = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    scaled = blocks * _inverse(scales)
    rounded = np.copysign(np.floor(np.abs(scaled) + np.float32(0.5)), scaled).astype(np.int8)  # C's roundf
    return np.concatenate([scales.astype("<f2").view(np.uint8), rounded.view(np.uint8)], axis=1)


def pack_q5_0(weights: np.ndarray) -> np.ndarray:
    """Blocks of 32 weights as a half-precision scale, 32 fifth bits, and two weights' low bits per byte."""
    blocks = weights.astype(np.float32).reshape(-1, BLOCK)
    # -16 has no positive counterpart in five bits: the weight of largest magnitude gets it, whatever its sign.
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1, keepdims=True), axis=1)
    scales = largest / np.float32(-16)
    levels = np.minimum((blocks * _inverse(scales) + np.float32(16.5)).astype(np.int8), 31).astype(np.uint8)
    low, high = levels & 15, levels >> 4
    fifth = np.packbits(high, axis=1, bitorder="little")
    # The first half of a block in the low four bits of 16 bytes, the second half in the high ones.
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
"""Name → (tensor type, file type, packing of weights). No float32: whisper.cpp 1.8 aborts the process unless its
convolutions are in half precision."""

QUANTIZATIONS = tuple(_PACKED)
"""Types of the weight matrices on disk, the default first."""

_LOG_LEVEL_ERROR = 4

_MAX_TOKENS = 219
"""Tokens that whisper.cpp writes into a window at most: half of the decoder's context, less its prefix."""


class GgmlGenerator:
    """Greedy search of whisper.cpp through its Python binding `pywhispercpp`, to check what [`export_ggml`] wrote.

    whisper.cpp always suppresses special tokens and leading blanks, and a built-in list of non-speech symbols where
    the generation config suppresses any text token. Temperature fallback and the silence threshold are switched off.
    Of `model` only the configs are read; `max_new_tokens` is at most whisper.cpp's 219.
    """

    def __init__(
        self,
        model: WhisperForConditionalGeneration,
        folder: str | Path,
        *,
        language: str | None = None,
        max_new_tokens: int | None = None,
    ):
        import_runtime("pywhispercpp", "ggml")
        self._runtime = runtime = import_runtime("_pywhispercpp", "ggml")
        file = Path(folder, GGML_FILE)
        if not file.is_file():
            raise FileNotFoundError(f"`folder`: {folder} holds no {GGML_FILE}, which export_ggml writes.")
        resolve_languages(model, language, "transcribe", 1)
        self._model, self._language = model, language
        self._max_new_tokens = min(max_new_tokens or max_generated_tokens(model, False), _MAX_TOKENS)
        self._messages: list[str] = []
        runtime.whisper_log_set(partial(_collect_errors, self._messages))  # else pages about memory are printed
        atexit.register(runtime.whisper_log_set, None)  # else the binding crashes when the process ends
        self._context = runtime.whisper_init_from_file_with_params(str(file), runtime.whisper_context_default_params())
        if self._messages:  # the binding returns a context in any case, and crashes when it is used
            raise ValueError(f"whisper.cpp does not load {file}: {' '.join(self._messages)}")
        weakref.finalize(self, runtime.whisper_free, self._context)

    def __call__(self, input_features: Tensor) -> list[TokenSequence]:
        """Tokens of log-mel features (batch, mel bins, frames), one window after the other."""
        codes = resolve_languages(self._model, self._language, "transcribe", len(input_features))
        sequences = []
        for features, code in zip(input_features.float().cpu().numpy(), codes, strict=True):
            bins, frames = features.shape
            self._runtime.whisper_set_mel(self._context, np.ascontiguousarray(features), frames, bins)
            sequences.append(self._search(np.zeros(0, dtype=np.float32), code))  # no samples: it takes the features
        return sequences

    def _search(self, samples: np.ndarray, language: str | None) -> TokenSequence:
        runtime, context = self._runtime, self._context
        if runtime.whisper_full(context, self._parameters(language), samples, len(samples)) != 0:
            raise RuntimeError(f"whisper.cpp could not transcribe a window: {' '.join(self._messages)}")
        tokens = [
            runtime.whisper_full_get_token_id(context, segment, position)
            for segment in range(runtime.whisper_full_n_segments(context))
            for position in range(runtime.whisper_full_n_tokens(context, segment))
        ]
        end = runtime.whisper_token_eot(context)
        text_tokens = [token for token in tokens if token < end][: self._max_new_tokens]
        return TokenSequence(text_tokens, len(text_tokens) >= self._max_new_tokens)

    def _parameters(self, language: str | None) -> Any:
        strategy = self._runtime.whisper_sampling_strategy.WHISPER_SAMPLING_GREEDY
        parameters = self._runtime.whisper_full_default_params(strategy)
        config = self._model.generation_config
        parameters.n_threads = torch.get_num_threads()
        parameters.language = language or ("auto" if self._runtime.whisper_is_multilingual(self._context) else "en")
        parameters.no_timestamps = parameters.single_segment = True
        parameters.max_tokens = max(self._max_new_tokens - 1, 1)  # it writes one more
        parameters.suppress_blank = bool(config.begin_suppress_tokens)
        parameters.suppress_nst = any(token < config.eos_token_id for token in config.suppress_tokens or [])
        parameters.greedy = {"best_of": 1}
        parameters.temperature_inc = 0.0
        parameters.logprob_thold = -1e9  # nothing is unlikely enough to be skipped as silence
        parameters.print_progress = parameters.print_timestamps = False
        return parameters


def _collect_errors(messages: list[str], level: int, text: str) -> None:
    """Log callback. Not a method: the runtime would keep the generator, and its model, alive for good."""
    if level >= _LOG_LEVEL_ERROR:
        messages.append(text.strip())
