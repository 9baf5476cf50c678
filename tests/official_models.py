"""Whispers of OpenAI's vocabularies and random weights, for what runs no other ones."""

from functools import lru_cache
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration, WhisperProcessor

from toy_models import toy_processor, toy_whisper

WHISPER_FILES = Path(__file__).parents[1].parent / "shared" / "whisper-files"
needs_files = pytest.mark.skipif(not WHISPER_FILES.is_dir(), reason="needs ../shared/whisper-files")


def official_whisper(
    name: str = "whisper-tiny.en", seed: int = 0
) -> tuple[WhisperForConditionalGeneration, WhisperProcessor]:
    """A random Whisper of width 64 and the vocabulary of `name`.

    Its weights are small, so that a runtime's rounding stays small too, its positions and cross-attention large, so
    that it does not repeat one token. Where the official files are missing, model and processor are toys that say they
    are official.

    Args:
        name (`str`, *optional*, defaults to `"whisper-tiny.en"`): folder of `../shared/whisper-files`.
        seed (`int`, *optional*, defaults to 0): of the weights.
    """
    sizes = {"d_model": 64, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "init_std": 0.05}
    sizes |= {"encoder_ffn_dim": 256, "decoder_ffn_dim": 256, "encoder_layers": 2, "decoder_layers": 3}
    if not (WHISPER_FILES / name).is_dir():
        return toy_whisper(seed, **sizes, vocab_size=51_864, eos_token_id=50_256), toy_processor()
    processor, settings = _files(name)
    torch.manual_seed(seed)
    config = WhisperConfig.from_pretrained(WHISPER_FILES / name, **sizes)
    model = WhisperForConditionalGeneration(config).eval()
    model.generation_config = GenerationConfig.from_dict(settings)
    with torch.no_grad():
        model.model.decoder.embed_positions.weight *= 12
        for layer in model.model.decoder.layers:
            layer.encoder_attn.v_proj.weight *= 2
            layer.encoder_attn.out_proj.weight *= 4
    return model.half().float(), processor  # in half precision the weights of the export are the same


def small_official_whisper(name: str, **changes: object) -> tuple[WhisperForConditionalGeneration, WhisperProcessor]:
    """A random Whisper of width 16, with the configs and the processor of `name` as they were published."""
    sizes = {"d_model": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16}
    sizes |= {"decoder_ffn_dim": 16, "encoder_layers": 1, "decoder_layers": 2}
    processor, settings = _files(name)
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(WhisperConfig.from_pretrained(WHISPER_FILES / name, **sizes, **changes))
    model.generation_config = GenerationConfig.from_dict(settings)
    return model.eval(), processor


@lru_cache(maxsize=2)
def _files(name: str) -> tuple[WhisperProcessor, dict]:
    settings = GenerationConfig.from_pretrained(WHISPER_FILES / name).to_dict()
    return WhisperProcessor.from_pretrained(WHISPER_FILES / name), settings
