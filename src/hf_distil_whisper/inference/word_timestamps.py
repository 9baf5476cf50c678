"""Word timestamps from the decoder's cross-attention by dynamic time warping, as in OpenAI's Whisper and transformers.

The times are those of `generate(return_token_timestamps=True)`, from one pass of the decoder over the finished tokens:
the model keeps its attention implementation, where transformers leaves it in eager mode.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration, WhisperProcessor, WhisperTokenizer

# Private, but the times have to be those of `generate` and the words those of the pipeline.
from transformers.models.whisper.generation_whisper import _dynamic_time_warping as dynamic_time_warping
from transformers.models.whisper.generation_whisper import _median_filter as median_filter
from transformers.models.whisper.tokenization_whisper import LANGUAGES
from transformers.models.whisper.tokenization_whisper import _combine_tokens_into_words as combine_tokens_into_words

from hf_distil_whisper.inference.output import TIME_PRECISION, Word
from hf_distil_whisper.inference.prompt import languages_of


@dataclass(frozen=True)
class TimedToken:
    """A token, timestamps included, with its times in seconds from the start of the window."""

    token: int
    start: float
    end: float
    probability: float  # before any token is suppressed


def alignment_heads(model: WhisperForConditionalGeneration) -> list[tuple[int, int]]:
    """(decoder layer, head) of a model's generation config; a `ValueError` if there are none, or wrong ones."""
    heads = model.generation_config.to_dict().get("alignment_heads") or []
    if not heads:
        raise ValueError(
            "The model's generation_config has no `alignment_heads`, which word timestamps are read from. Take them "
            "from the checkpoint that the model was made from and store them with `set_alignment_heads(model, heads)`."
        )
    check_heads(model, heads)
    return [(layer, head) for layer, head in heads]


def set_alignment_heads(model: WhisperForConditionalGeneration, heads: Sequence[Sequence[int]]) -> None:
    """Stores alignment heads in a model's generation config, where transformers and converters read them.

    Args:
        model (`WhisperForConditionalGeneration`): its generation config is changed; [`save_checkpoint`] writes it.
        heads (`Sequence[Sequence[int]]`): (decoder layer, head), both counted from 0.

    Raises:
        ValueError: for an empty list, or heads that the decoder does not have.

    Example:
        ```python
        >>> set_alignment_heads(student, [[1, 0], [1, 3]])
        >>> transcribe(student, processor, "talk.wav", return_timestamps="word")[0].words
        ```
    """
    check_heads(model, heads)
    model.generation_config.alignment_heads = [[int(layer), int(head)] for layer, head in heads]


def check_heads(model: WhisperForConditionalGeneration, heads: Sequence[Sequence[int]]) -> None:
    """Raises a `ValueError` unless all heads are cross-attention heads of the model's decoder, and there is one."""
    # A student that keeps the heads of a deeper teacher crashes faster-whisper (#1283) and transformers.js (#441).
    layers, width = model.config.decoder_layers, model.config.decoder_attention_heads
    if not heads:
        raise ValueError("`alignment_heads`: expected at least one pair of decoder layer and head, got none.")
    for pair in heads:
        if len(pair) != 2 or not (0 <= pair[0] < layers and 0 <= pair[1] < width):
            raise ValueError(
                f"`alignment_heads` holds {list(pair)}, expected [layer, head] with layers 0 to {layers - 1} and "
                f"heads 0 to {width - 1} of the model's decoder: they belong to another model. Set its own with "
                "`set_alignment_heads(model, heads)`."
            )


def num_positions(processor: WhisperProcessor, num_samples: int) -> int:
    """Encoder positions of 20 ms that cover a recording, at least 1; the others cover padding."""
    extractor = processor.feature_extractor
    frames = -(-num_samples // extractor.hop_length)
    return min(max(frames // 2, 1), extractor.nb_max_frames // 2)


def time_tokens(
    model: WhisperForConditionalGeneration,
    encoder_hidden_states: Tensor,
    prefix: Sequence[int],
    tokens: Sequence[int],
    positions: int,
) -> list[TimedToken]:
    """Times of the tokens of one window, given its encoder hidden states (1, frames, d_model).

    `prefix` holds the decoder's first tokens, with or without a prompt, `tokens` those behind it without
    `<|endoftext|>`. No time exceeds `positions`, those of [`num_positions`].
    """
    heads = alignment_heads(model)
    if not tokens:
        return []
    weights, probabilities = cross_attention_weights(model, encoder_hidden_states, prefix, tokens, heads)
    ends = TIME_PRECISION * _first_positions(weights[..., :positions], model.config.median_filter_width)
    # As in OpenAI's Whisper, the attention at a token's position shows where the *next* token is spoken: the first
    # token starts at 0, and each token ends where the next one starts.
    starts = [0.0, *ends[:-1]]
    return [
        TimedToken(int(token), float(start), float(end), probability)
        for token, start, end, probability in zip(tokens, starts, ends, probabilities, strict=True)
    ]


def _first_positions(weights: Tensor, filter_width: int) -> np.ndarray:
    """Encoder position at which the alignment path reaches each token, from weights (heads, tokens, positions)."""
    deviation = weights.std(dim=-2, keepdim=True, unbiased=False)
    scores = (weights - weights.mean(dim=-2, keepdim=True)) / deviation
    # A single token, or a position at which all tokens look alike, has deviation 0; transformers computes NaN there.
    scores = median_filter(scores.nan_to_num(0.0, 0.0, 0.0), filter_width)
    matrix = scores.cpu().double().numpy().mean(axis=0)  # (tokens, positions)
    text_indices, time_indices = dynamic_time_warping(-matrix)
    return time_indices[np.diff(text_indices, prepend=-1).astype(bool)]


@torch.inference_mode()
def cross_attention_weights(
    model: WhisperForConditionalGeneration,
    encoder_hidden_states: Tensor,
    prefix: Sequence[int],
    tokens: Sequence[int],
    heads: Sequence[tuple[int, int]],
) -> tuple[Tensor, list[float]]:
    """Cross-attention (heads, tokens, frames) of some heads to known tokens in float32, and the tokens' probabilities.

    With any attention implementation, given encoder hidden states (1, frames, d_model) and heads (layer, head).
    """
    input_ids = torch.tensor([[*prefix, *tokens]], device=encoder_hidden_states.device)
    # Only eager attention returns weights, and those of all heads: compute these from queries and keys instead.
    with _record_projections(model, {layer for layer, _ in heads}) as projections:
        hidden = model.get_decoder()(
            input_ids=input_ids, encoder_hidden_states=encoder_hidden_states, use_cache=False
        ).last_hidden_state[0]
    head_dim = model.config.d_model // model.config.decoder_attention_heads
    weights = []  # softmax(q kᵀ / sqrt(head_dim)) of one head at a time, (tokens, frames)
    for layer, head in heads:
        columns = slice(head * head_dim, (head + 1) * head_dim)
        # (prefix + tokens, head_dim) and (frames, head_dim)
        query, key = (projections[layer, name][0, :, columns].float() for name in ("q_proj", "k_proj"))
        weights.append((query[len(prefix) :] @ key.T * head_dim**-0.5).softmax(dim=-1))
    # The logits at a position are those of the next token.
    probabilities = model.proj_out(hidden[len(prefix) - 1 : -1]).float().softmax(dim=-1)
    return torch.stack(weights), probabilities.gather(1, input_ids[0, len(prefix) :, None]).squeeze(1).tolist()


@contextmanager
def _record_projections(
    model: WhisperForConditionalGeneration, layers: set[int]
) -> Iterator[dict[tuple[int, str], Tensor]]:
    """Queries and keys, (1, length, d_model), of the cross-attention of some decoder layers inside the block."""
    projections: dict[tuple[int, str], Tensor] = {}

    def record(layer: int, name: str) -> torch.utils.hooks.RemovableHandle:
        module = model.get_decoder().layers[layer].encoder_attn.get_submodule(name)
        return module.register_forward_hook(lambda _, inputs, output: projections.update({(layer, name): output}))

    handles = [record(layer, name) for layer in layers for name in ("q_proj", "k_proj")]
    try:
        yield projections
    finally:
        for handle in handles:
            handle.remove()


def prefix_language(model: WhisperForConditionalGeneration, prefix: Sequence[int]) -> str | None:
    """English name of the language that a prefix names, if any; it decides how tokens are split into words."""
    (code,) = languages_of(model, torch.tensor([list(prefix)]))
    return None if code is None else LANGUAGES[code]


def join_words(
    timed: Sequence[TimedToken],
    tokenizer: WhisperTokenizer,
    timestamp_begin: int,
    language: str | None,
    offset: float = 0.0,
) -> list[Word]:
    """Joins tokens to words as transformers' pipeline does, punctuation attached; no word crosses a timestamp.

    `language` is an English name: Chinese, Japanese, Thai, Lao, Burmese and Cantonese are split into characters.
    `offset` is the start of the tokens' window in seconds.
    """
    special = set(tokenizer.all_special_ids)
    words = []
    for is_text, group in groupby(timed, key=lambda one: one.token < timestamp_begin):
        run = [one for one in group if one.token not in special]
        if not is_text or not run:
            continue
        texts, _, parts = combine_tokens_into_words(tokenizer, [one.token for one in run], language)
        for text, part in zip(texts, parts, strict=True):
            if text.strip():
                start, end = run[part[0]].start, run[part[-1]].end
                probability = sum(run[index].probability for index in part) / len(part)
                words.append(Word(round(offset + start, 2), round(offset + end, 2), text.strip(), probability))
    return words


def in_order(words: Sequence[Word]) -> list[Word]:
    """The same words with times that never go back, as those of overlapping windows may."""
    ordered: list[Word] = []
    for word in words:
        earliest = ordered[-1].end if ordered else 0.0
        ordered.append(replace(word, start=max(word.start, earliest), end=max(word.end, earliest)))
    return ordered
