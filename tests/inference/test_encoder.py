"""Encoder hidden states: computed once, and the same from a cache."""

from pathlib import Path

import pytest
import torch

from hf_distil_whisper.inference.encoder import EncoderCache, encode, encode_cached
from hf_distil_whisper.inference.generation import generate_tokens, generate_tokens_cached
from talking_models import count_encoder_windows, talking_whisper, toy_windows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("in_folder", [False, True])
def test_cached_hidden_states_are_the_same_bits_and_encoded_once(
    tmp_path: Path, dtype: torch.dtype, in_folder: bool
) -> None:
    model = talking_whisper(4).to(dtype)
    cache = EncoderCache(model.model.encoder, dtype, tmp_path if in_folder else None)
    features = toy_windows(model, 3)
    expected, tokens = encode(model, features), generate_tokens(model, features, max_new_tokens=5)
    encoded = count_encoder_windows(model)
    assert torch.equal(encode_cached(model, features[:2], cache), expected[:2])
    assert torch.equal(encode_cached(model, features, cache), expected)
    assert generate_tokens_cached(model, features, cache, max_new_tokens=5) == tokens
    assert encoded() == 3
