"""Whisper models of a few thousand weights with all of Whisper's special tokens, built in milliseconds."""

import json
from functools import lru_cache

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)
from transformers.models.whisper.tokenization_whisper import LANGUAGES

SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "Mister Quilter is the apostle of the middle classes.",
    "How vexingly quick daft zebras jump!",
]
NAMES = (
    *("endoftext", "startoftranscript", *LANGUAGES, "translate", "transcribe"),
    *("startoflm", "startofprev", "nospeech", "notimestamps"),
)
SPECIAL_TOKENS = [f"<|{name}|>" for name in NAMES]
"""In OpenAI's order: a language's id is that of `<|startoftranscript|>` + 1 + its index."""


@lru_cache(maxsize=1)
def toy_processor() -> WhisperProcessor:
    """80 mel bins, 30 s windows, 300 byte-level tokens before the special ones. Shared: do not change it in a test."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    )
    vocab, merges = bpe.get_vocab(), json.loads(bpe.to_str())["model"]["merges"]
    vocab |= {token: len(vocab) + index for index, token in enumerate(SPECIAL_TOKENS)}
    special = [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    tokenizer = WhisperTokenizer(
        vocab=vocab, merges=list(map(tuple, merges)), pad_token="<|endoftext|>", extra_special_tokens=special
    )
    tokenizer.add_tokens(
        [AddedToken(f"<|{0.02 * step:.2f}|>", special=False, normalized=False) for step in range(1501)]
    )
    return WhisperProcessor(WhisperFeatureExtractor(feature_size=80), tokenizer)


def generation_config() -> GenerationConfig:
    """What `generate` needs to know of an English-only Whisper with the toy vocabulary."""
    ids = dict(zip(NAMES, toy_processor().tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS), strict=True))
    return GenerationConfig(
        bos_token_id=ids["endoftext"],
        eos_token_id=ids["endoftext"],
        pad_token_id=ids["endoftext"],
        decoder_start_token_id=ids["startoftranscript"],
        no_timestamps_token_id=ids["notimestamps"],
        prev_sot_token_id=ids["startofprev"],
        begin_suppress_tokens=None,
        suppress_tokens=list(ids.values())[1:-1],
        is_multilingual=False,
        max_initial_timestamp_index=50,
        max_length=448,
    )


def toy_whisper(seed: int = 0, **changes: object) -> WhisperForConditionalGeneration:
    """A random Whisper of width 16 with 2 encoder and 4 decoder layers, in eval mode.

    Args:
        seed (`int`, *optional*, defaults to 0): of the random weights.
        changes: entries of `WhisperConfig` to replace, for example `decoder_layers=2` or `d_model=32`.
    """
    settings = generation_config()
    config = WhisperConfig(
        **{
            "vocab_size": len(toy_processor().tokenizer),
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
