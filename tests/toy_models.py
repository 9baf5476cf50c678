"""Whisper models of a few thousand weights with all of Whisper's special tokens, built in milliseconds."""

import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration, WhisperProcessor

QUICKSTART = Path(__file__).parents[1] / "examples" / "quickstart"
sys.path.insert(0, str(QUICKSTART))

from vocabulary import build_processor, generation_config  # noqa: E402

SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "Mister Quilter is the apostle of the middle classes.",
    "How vexingly quick daft zebras jump!",
]


@lru_cache(maxsize=1)
def toy_processor() -> WhisperProcessor:
    """80 mel bins, 30 s windows, 300 byte-level tokens before the special ones. Shared: do not change it in a test."""
    return build_processor(SENTENCES, vocab_size=300)


def toy_whisper(seed: int = 0, **changes: object) -> WhisperForConditionalGeneration:
    """A random Whisper of width 16 with 2 encoder and 4 decoder layers, in eval mode.

    Args:
        seed (`int`, *optional*, defaults to 0): of the random weights.
        changes: entries of `WhisperConfig` to replace, for example `decoder_layers=2` or `d_model=32`.
    """
    tokenizer = toy_processor().tokenizer
    settings = generation_config(tokenizer)
    config = WhisperConfig(
        **{
            "vocab_size": len(tokenizer),
            "num_mel_bins": 80,
            "d_model": 16,
            "encoder_layers": 2,
            "decoder_layers": 4,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "decoder_ffn_dim": 32,
            "max_source_positions": 1500,
            "max_target_positions": 448,
            "pad_token_id": settings.pad_token_id,
            "bos_token_id": settings.bos_token_id,
            "eos_token_id": settings.eos_token_id,
            "decoder_start_token_id": settings.decoder_start_token_id,
            "begin_suppress_tokens": None,
            "init_std": 0.2,
            **changes,
        }
    )
    torch.manual_seed(seed)
    model = WhisperForConditionalGeneration(config).eval()
    model.generation_config = settings
    return model


def toy_audio(seconds: float = 1.0, seed: int = 0) -> np.ndarray:
    """Noise with a changing tone in it, float32 at 16 kHz."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * 16_000)) / 16_000
    tone = 0.3 * np.sin(2 * np.pi * (200 + 50 * seed + 30 * np.sin(3 * time)) * time)
    return (tone + 0.01 * rng.standard_normal(len(time))).astype(np.float32)


def toy_rows(count: int = 4, seconds: float = 1.0) -> list[dict]:
    """Rows of a data set: audio as array and rate, text, speaker, id."""
    return [
        {
            "id": f"row-{index}",
            "audio": {"array": toy_audio(seconds, seed=index), "sampling_rate": 16_000},
            "text": SENTENCES[index % len(SENTENCES)],
            "speaker": f"speaker-{index % 2}",
        }
        for index in range(count)
    ]
