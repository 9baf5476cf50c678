"""Greedy search over a batch of windows whose encoder states are known: the tokens of `generate`, sooner.

`GenerationMixin.generate` prepares inputs, masks and outputs anew for every token, a third of the time of a two-layer
student on a CPU, and carries finished windows along until the last one ends. Knows nothing of Whisper's prefix or of
which tokens are allowed: `generation.py` says so.
"""

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, LogitsProcessorList, WhisperForConditionalGeneration


@torch.inference_mode()
def greedy_search(
    model: WhisperForConditionalGeneration,
    encoder_states: Tensor,
    prefix: Tensor,
    rules: LogitsProcessorList,
    *,
    end: int,
    max_new_tokens: int,
    min_new_tokens: int = 0,
) -> Tensor:
    """Appends the most probable allowed token until every window has ended.

    Windows that have ended leave the batch as soon as they are half of it: their share of the keys and values of the
    encoder's states, by far the largest part of a step, is then read no more.

    Args:
        model (`WhisperForConditionalGeneration`): in eval mode.
        encoder_states (`Tensor`): (batch, frames, width).
        prefix (`Tensor`): (batch, prefix) token ids.
        rules (`LogitsProcessorList`): applied to the float32 scores of every step, each row by itself.
        end (`int`): the token that ends a window, and fills its row afterwards.
        max_new_tokens (`int`): tokens behind the prefix at most, `end` included.
        min_new_tokens (`int`, *optional*, defaults to 0): no `end` before.

    Returns:
        `Tensor`: (batch, prefix + new tokens), the prefix included.
    """
    decoder = model.get_decoder()
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    rows = torch.arange(len(prefix), device=prefix.device)
    sequences = prefix.new_full((len(prefix), prefix.shape[1] + max_new_tokens), end)
    sequences[:, : prefix.shape[1]] = prefix
    inputs, ended = prefix, torch.zeros_like(rows, dtype=torch.bool)
    for step in range(max_new_tokens):
        length = prefix.shape[1] + step
        hidden = decoder(
            input_ids=inputs, encoder_hidden_states=encoder_states, past_key_values=cache, use_cache=True
        ).last_hidden_state
        scores = model.proj_out(hidden[:, -1]).float()
        if step < min_new_tokens:
            scores[:, end] = float("-inf")
        chosen = rules(sequences[rows, :length], scores).argmax(dim=-1).masked_fill(ended, end)
        sequences[rows, length] = chosen
        ended = chosen == end
        left = len(ended) - int(ended.sum())
        if left == 0:
            return sequences[:, : length + 1]
        if 2 * left <= len(ended):
            kept = torch.nonzero(~ended).squeeze(1)
            cache.batch_select_indices(kept)
            rows, chosen, ended, encoder_states = rows[kept], chosen[kept], ended[kept], encoder_states[kept]
        inputs = chosen.unsqueeze(1)
    return sequences
