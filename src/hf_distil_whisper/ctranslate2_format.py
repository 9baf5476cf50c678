"""Reads a Whisper that was converted to CTranslate2, as faster-whisper publishes them, as a transformers model."""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

_DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16, 5: np.uint16}
"""By CTranslate2's number; 5 is bfloat16, which numpy has not."""
_BFLOAT16 = 5

_MODULES = {
    "conv1": ["conv1"],
    "conv2": ["conv2"],
    "embeddings": ["embed_tokens"],
    "position_encodings": ["embed_positions"],
    "layer_norm": ["layer_norm"],
    "self_attention/layer_norm": ["self_attn_layer_norm"],
    # Query, key and value are one matrix, and so are key and value of the encoder's states.
    "self_attention/linear_0": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "self_attention/linear_1": ["self_attn.out_proj"],
    "attention/layer_norm": ["encoder_attn_layer_norm"],
    "attention/linear_0": ["encoder_attn.q_proj"],
    "attention/linear_1": ["encoder_attn.k_proj", "encoder_attn.v_proj"],
    "attention/linear_2": ["encoder_attn.out_proj"],
    "ffn/layer_norm": ["final_layer_norm"],
    "ffn/linear_0": ["fc1"],
    "ffn/linear_1": ["fc2"],
}
"""CTranslate2's module → transformers' modules that it joins."""
_LEAVES = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias", "encodings": "weight"}


def load_ctranslate2(
    file: Path,
    settings: Mapping[str, Any],
    vocabularies: Mapping[int, int],
    *,
    dtype: torch.dtype,
    attn_implementation: str | None = None,
) -> WhisperForConditionalGeneration:
    """The model of a `model.bin` and the `config.json` beside it.

    Args:
        file (`Path`): in CTranslate2's binary format, version 5 or 6, with weights of 16 or 32 bits.
        settings (`Mapping`): content of `config.json`.
        vocabularies (`Mapping[int, int]`): id of `<|endoftext|>` by size of the vocabulary.
        dtype (`torch.dtype`): of the model's weights.
        attn_implementation (`str`, *optional*): see [`load_model`].

    Raises:
        ValueError: for a file that is not such a Whisper; says what it is.
    """
    variables = read_variables(file)
    config = _config(file, variables, vocabularies)
    states = _state_dict(file, variables)
    config.tie_word_embeddings = torch.equal(states["proj_out.weight"], states["model.decoder.embed_tokens.weight"])
    with torch.device("meta"):
        model = WhisperForConditionalGeneration._from_config(config, attn_implementation=attn_implementation)
    try:
        model.load_state_dict({name: tensor.to(dtype) for name, tensor in states.items()}, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{file}: the weights are not those of a Whisper: {error}") from error
    model.tie_weights()
    model.generation_config = GenerationConfig(
        max_length=config.max_target_positions,
        suppress_tokens=list(settings.get("suppress_ids", ())),
        begin_suppress_tokens=list(settings.get("suppress_ids_begin", ())),
        max_initial_timestamp_index=50,  # 1 s, CTranslate2's default and OpenAI's
        **{
            name: getattr(config, name)
            for name in ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
        },
    )
    if settings.get("alignment_heads"):
        model.generation_config.alignment_heads = settings["alignment_heads"]
    return model.eval()


def read_variables(file: Path) -> dict[str, Tensor]:
    """The tensors of a CTranslate2 model by name; an alias has the tensor that it stands for."""
    try:
        with file.open("rb") as stream:
            return _variables(stream)
    except (ValueError, KeyError, struct.error) as error:
        raise ValueError(
            f"{file}: expected a Whisper in CTranslate2's format, version 5 or 6, got {error}. Convert it again "
            "(ct2-transformers-converter), or take a transformers checkpoint."
        ) from error


def _variables(stream: BinaryIO) -> dict[str, Tensor]:
    def take(form: str) -> int:
        (value,) = struct.unpack("<" + form, stream.read(struct.calcsize("<" + form)))
        return int(value)

    def text() -> str:
        return stream.read(take("H"))[:-1].decode()  # it ends with a zero

    version = take("I")
    if version not in (5, 6):
        raise ValueError(f"version {version}")
    specification, _ = text(), take("I")
    if specification != "WhisperSpec":
        raise ValueError(f"a {specification}")
    tensors: dict[str, Tensor] = {}
    for _ in range(take("I")):
        name = text()
        shape = [take("I") for _ in range(take("B"))]
        kind, size = take("B"), take("I")
        tensor = torch.from_numpy(np.frombuffer(bytearray(stream.read(size)), _DTYPES[kind]).reshape(shape))
        tensors[name] = tensor.view(torch.bfloat16) if kind == _BFLOAT16 else tensor
    for _ in range(take("I")):
        alias, target = text(), text()
        tensors[alias] = tensors[target].clone()  # equal weights, not shared ones: a training changes each of them
    return tensors


def _state_dict(file: Path, variables: Mapping[str, Tensor]) -> dict[str, Tensor]:
    states: dict[str, Tensor] = {}
    for name, tensor in variables.items():
        side, *module, leaf = name.split("/")
        if not tensor.ndim:
            continue  # number of heads, activation and other settings
        if tensor.dtype == torch.int8:
            raise ValueError(
                f"{file}: {name} has weights of 8 bits, which are not those of the model any more. Expected float16, "
                "bfloat16 or float32: convert the model again with --quantization float16."
            )
        if name == "decoder/projection/weight":
            states["proj_out.weight"] = tensor
            continue
        layer = (
            f"layers.{module.pop(0).removeprefix('layer_')}." if module[0].startswith("layer_") and module[1:] else ""
        )
        targets = _MODULES.get("/".join(module))
        if targets is None or leaf not in _LEAVES:
            raise ValueError(f"{file}: {name} is no weight of a Whisper. Expected a converted OpenAI Whisper.")
        for target, part in zip(targets, tensor.chunk(len(targets)), strict=True):
            if target.endswith("k_proj") and leaf == "bias":
                continue  # zeros: Whisper's keys have no bias
            states[f"model.{side}.{layer}{target}.{_LEAVES[leaf]}"] = part.contiguous()
    return states


def _config(file: Path, variables: Mapping[str, Tensor], vocabularies: Mapping[int, int]) -> WhisperConfig:
    """The config, by the shapes of the weights."""

    def count(side: str) -> int:
        return len(
            {name.split("/")[1] for name in variables if name.startswith(f"{side}/layer_") and name.count("/") > 2}
        )

    try:
        vocab_size, d_model = variables["decoder/embeddings/weight"].shape
        sizes = {
            "vocab_size": vocab_size,
            "d_model": d_model,
            "num_mel_bins": variables["encoder/conv1/weight"].shape[1],
            "max_source_positions": len(variables["encoder/position_encodings/encodings"]),
            "max_target_positions": len(variables["decoder/position_encodings/encodings"]),
        }
        for side in ("encoder", "decoder"):
            sizes[f"{side}_layers"] = count(side)
            sizes[f"{side}_attention_heads"] = int(variables[f"{side}/num_heads"])
            sizes[f"{side}_ffn_dim"] = len(variables[f"{side}/layer_0/ffn/linear_0/weight"])
        end = vocabularies[vocab_size]
    except KeyError as error:
        raise ValueError(
            f"{file}: expected a Whisper with a vocabulary of {', '.join(map(str, vocabularies))} tokens, found no "
            f"{error}. Take the transformers checkpoint that it was converted from."
        ) from error
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), end) | {"decoder_start_token_id": end + 1}
    return WhisperConfig(**sizes, **ids, activation_function="gelu")
