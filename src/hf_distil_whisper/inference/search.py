"""Greedy search over a batch of windows whose encoder states are known: the tokens of `generate`, sooner.

`GenerationMixin.generate` prepares inputs, masks and outputs anew for every token, a third of the time of a two-layer
student on a CPU, and carries finished windows along until the last one ends. Knows nothing of Whisper's prefix or of
which tokens are allowed: `generation.py` says so.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration

from hf_distil_whisper.inference.cached_decoder import CachedDecoder


@torch.inference_mode()
def greedy_search(
    model: WhisperForConditionalGeneration,
    encoder_states: Tensor,
    prefix: Tensor,
    rules: Callable[[Tensor, Tensor], Tensor],
    *,
    end: int,
    max_new_tokens: int,
    min_new_tokens: int = 0,
    static_cache: bool = False,
) -> Tensor:
    """Appends the most probable allowed token until every window has ended.

    Windows that have ended leave the batch as soon as they are half of it: their share of the keys and values of the
    encoder's states, by far the largest part of a step, is then read no more.

    Args:
        model (`WhisperForConditionalGeneration`): in eval mode.
        encoder_states (`Tensor`): (batch, frames, width).
        prefix (`Tensor`): (batch, prefix) token ids.
        rules (`Callable[[Tensor, Tensor], Tensor]`): applied to the tokens so far and the float32 scores of every
            step, each row by itself: [`TokenRules`], or a `LogitsProcessorList`.
        end (`int`): the token that ends a window, and fills its row afterwards.
        max_new_tokens (`int`): tokens behind the prefix at most, `end` included.
        min_new_tokens (`int`, *optional*, defaults to 0): no `end` before.
        static_cache (`bool`, *optional*, defaults to `False`): room for the keys and values of all tokens is taken at
            once, and every step looks at all of it; all windows stay until the last one ends. The tokens are the same
            (appendix D.5).

    Returns:
        `Tensor`: (batch, prefix + new tokens), the prefix included.

    Raises:
        ValueError: for a static cache with flash attention.
    """
    decoder = CachedDecoder(model, encoder_states, prefix.shape[1] + max_new_tokens, static_cache)
    rows = torch.arange(len(prefix), device=prefix.device)
    sequences = prefix.new_full((len(prefix), prefix.shape[1] + max_new_tokens), end)
    sequences[:, : prefix.shape[1]] = prefix
    inputs, ended = prefix, torch.zeros_like(rows, dtype=torch.bool)
    for step in range(max_new_tokens):
        length = prefix.shape[1] + step
        scores = decoder.scores(inputs, length - inputs.shape[1])[:, 0]
        if step < min_new_tokens:
            scores[:, end] = float("-inf")
        chosen = rules(sequences[rows, :length], scores).argmax(dim=-1).masked_fill(ended, end)
        sequences[rows, length] = chosen
        ended = chosen == end
        left = len(ended) - int(ended.sum())
        if left == 0:
            return sequences[:, : length + 1]
        if 2 * left <= len(ended) and not static_cache:
            kept = torch.nonzero(~ended).squeeze(1)
            decoder.keep(kept)
            rows, chosen, ended = rows[kept], chosen[kept], ended[kept]
        inputs = chosen.unsqueeze(1)
    return sequences
