"""Toy Whispers that say letters, depend on what they hear, and come to an end: for tests that compare texts."""

import copy
import re
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from hf_distil_whisper.inference.encoder import window_features
from toy_models import toy_audio, toy_processor, toy_whisper

END_GAIN = 0.6
"""How loud `<|endoftext|>` is: at 0.6 most transcripts of toy audio end between 5 and 100 tokens."""


def talking_whisper(seed: int = 0, end_gain: float = END_GAIN, **changes: object) -> WhisperForConditionalGeneration:
    """A toy Whisper whose text tokens are restricted to words and letters of the toy vocabulary.

    Args:
        seed (`int`, *optional*, defaults to 0): of the random weights.
        end_gain (`float`, *optional*): larger values end transcripts sooner.
        changes: entries of `WhisperConfig`.
    """
    tokenizer = toy_processor().tokenizer
    model = toy_whisper(seed, **{"init_std": 1.0, **changes})
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    words = {
        index for token, index in tokenizer.get_vocab().items() if index < 300 and re.fullmatch("Ġ?[a-z]+", token)
    }
    first_time = tokenizer.convert_tokens_to_ids("<|0.00|>")
    model.generation_config.suppress_tokens = [token for token in range(first_time) if token not in words | {end}]
    with torch.no_grad():
        model.model.decoder.layer_norm.bias[:] = 1.0
        model.model.decoder.embed_tokens.weight[end] = end_gain
    return model


def multilingual_whisper(seed: int = 0) -> WhisperForConditionalGeneration:
    """A talking toy Whisper whose prefix names a language and a task."""
    tokenizer = toy_processor().tokenizer
    model = talking_whisper(seed)
    model.generation_config.is_multilingual = True
    model.generation_config.lang_to_id = {
        f"<|{code}|>": tokenizer.convert_tokens_to_ids(f"<|{code}|>") for code in LANGUAGES
    }
    model.generation_config.task_to_id = {
        task: tokenizer.convert_tokens_to_ids(f"<|{task}|>") for task in ("transcribe", "translate")
    }
    return model


def with_own_head(model: WhisperForConditionalGeneration) -> WhisperForConditionalGeneration:
    """The model with a language-model head that is not its token embedding."""
    model.config.tie_word_embeddings = False
    model.proj_out = copy.deepcopy(model.proj_out)
    with torch.no_grad():
        model.proj_out.weight[:300] = model.proj_out.weight[:300].roll(1, dims=0)
    return model


def toy_windows(model: WhisperForConditionalGeneration, count: int = 4) -> Tensor:
    """Features (count, mel bins, frames) of different toy recordings of 1, 2, ... s."""
    return window_features(model, toy_processor(), [toy_audio(1 + row, seed=row) for row in range(count)])


def count_encoder_windows(model: WhisperForConditionalGeneration) -> Callable[[], int]:
    """Counts the windows that pass the encoder from now on."""
    seen: list[int] = []
    model.get_encoder().register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(len(args[0] if args else kwargs["input_features"])), with_kwargs=True
    )
    return lambda: sum(seen)
