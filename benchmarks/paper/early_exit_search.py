"""Greedy search that leaves the decoder early, by the confidence of CALM (Schuster et al. 2022; paper, appendix D.1).

A layer whose two likeliest tokens are far enough apart decides; its state stands in for those of the layers that are
skipped. Knows the layers of Whisper's decoder, nothing of recordings.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, WhisperForConditionalGeneration
from transformers.masking_utils import create_causal_mask

FULL_DEPTH = 1.0
"""A threshold that no difference of two probabilities exceeds."""


def softmax_difference(scores: Tensor) -> float:
    """CALM's confidence: how far apart the probabilities of the two likeliest tokens are.

    Args:
        scores (`Tensor`): (vocabulary,), before the softmax; minus infinity for what may not be chosen.

    Returns:
        `float`: 0 (undecided) to 1.
    """
    first, second = scores.softmax(dim=-1).topk(2).values.tolist()
    return first - second


class EarlyExitSearch:
    """[`greedy_search`] for one window that asks every decoder layer and takes the first answer that is sure enough.

    The confidence is that of the tokens that may be chosen: how likely a suppressed one is says nothing about the
    choice. With a threshold of 1 no layer but the last is asked, and the tokens are those of [`greedy_search`].

    Args:
        threshold (`float`): of the confidence, 0 to 1.

    Attributes:
        depths (`list[int]`): layers run for every token so far, over all windows.
    """

    def __init__(self, threshold: float):
        self.threshold = threshold
        self.depths: list[int] = []

    @torch.inference_mode()
    def __call__(
        self,
        model: WhisperForConditionalGeneration,
        encoder_states: Tensor,
        prefix: Tensor,
        rules: Callable[[Tensor, Tensor], Tensor],
        *,
        end: int,
        max_new_tokens: int,
        min_new_tokens: int = 0,
    ) -> Tensor:
        """Takes and returns what [`greedy_search`] does, for a batch of one."""
        if len(prefix) != 1:
            raise ValueError(f"Early exit decides for one window at a time, got a batch of {len(prefix)}.")
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        sequence, inputs = prefix, prefix
        for step in range(max_new_tokens):
            past = sequence.shape[1] - inputs.shape[1]
            decide = partial(self._scores, model, rules, sequence, end if step < min_new_tokens else None)
            scores = self._layers(model, encoder_states, inputs, past, cache, decide)
            inputs = scores.argmax(dim=-1, keepdim=True)
            sequence = torch.cat([sequence, inputs], dim=1)
            if inputs.item() == end:
                break
        return sequence

    def _layers(
        self,
        model: WhisperForConditionalGeneration,
        encoder_states: Tensor,
        inputs: Tensor,
        past: int,
        cache: EncoderDecoderCache,
        decide: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Scores (1, vocabulary) of the first layer that is sure enough; the others get its state."""
        decoder = model.get_decoder()
        hidden = decoder.embed_tokens(inputs) + decoder.embed_positions(inputs, past_key_values_length=past)
        mask = None  # a single token looks at everything before it
        if inputs.shape[1] > 1:
            mask = create_causal_mask(
                config=model.config, inputs_embeds=hidden, attention_mask=None, past_key_values=cache
            )
        for depth, layer in enumerate(decoder.layers, 1):
            hidden = layer(hidden, mask, encoder_states, past_key_values=cache, use_cache=True)
            last = depth == len(decoder.layers)
            if last or self.threshold < FULL_DEPTH:
                scores = decide(hidden)
                if last or softmax_difference(scores[0]) > self.threshold:
                    break
        for skipped in decoder.layers[depth:]:
            _fill_cache(skipped, hidden, cache)
        self.depths.append(depth)
        return scores

    def _scores(
        self,
        model: WhisperForConditionalGeneration,
        rules: Callable[[Tensor, Tensor], Tensor],
        sequence: Tensor,
        forbidden: int | None,
        hidden: Tensor,
    ) -> Tensor:
        """What a layer's state (1, length, width) would say: equation 8, behind the decoder's final norm."""
        scores = model.proj_out(model.get_decoder().layer_norm(hidden[:, -1])).float()
        if forbidden is not None:
            scores[:, forbidden] = float("-inf")
        return rules(sequence, scores)


def _fill_cache(layer: Any, hidden: Tensor, cache: EncoderDecoderCache) -> None:
    """Keys and values that a layer would have had of this state: later tokens that reach it look at them.

    Those of the encoder's states follow by themselves when the layer is first run.
    """
    attention = layer.self_attn
    states = layer.self_attn_layer_norm(hidden)
    shape = (*states.shape[:2], attention.num_heads, attention.head_dim)
    keys, values = (
        project(states).view(shape).transpose(1, 2).contiguous() for project in (attention.k_proj, attention.v_proj)
    )
    cache.self_attention_cache.update(keys, values, attention.layer_idx)
