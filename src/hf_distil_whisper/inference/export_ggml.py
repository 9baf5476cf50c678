"""A checkpoint for whisper.cpp: one file in its GGML format, also in 8 or 5 bits.

The format is that of whisper.cpp's `models/convert-h5-to-ggml.py`, which is a script and no package; the blocks of
quantised weights are those of `ggml-quants.c`. All numbers are little-endian.
"""

import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from transformers import WhisperForConditionalGeneration, WhisperProcessor
from transformers.convert_slow_tokenizer import bytes_to_unicode

from hf_distil_whisper.inference.export import check_exportable, new_folder

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
