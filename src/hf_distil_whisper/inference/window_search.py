"""The library's searches inside transformers' own loop over windows: long recordings, and the pipeline.

`generate(..., custom_generate=...)` takes a function in place of transformers' search; these take its rules as they
come.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    WhisperForConditionalGeneration,
    WhisperTimeStampLogitsProcessor,
)

from hf_distil_whisper.inference.cached_decoder import Assistant
from hf_distil_whisper.inference.drafts import DraftCounts
from hf_distil_whisper.inference.search import greedy_search
from hf_distil_whisper.inference.speculative import speculative_search
from hf_distil_whisper.inference.token_rules import TimestampRules, TokenRules


def window_search(
    assistant: Assistant | None = None,
    draft_length: int | None = None,
    found: Callable[[list[DraftCounts]], None] | None = None,
) -> Callable[..., Tensor]:
    """A greedy search for `generate(custom_generate=...)`, with or without an assistant.

    Args:
        assistant (`WhisperForCausalLM` or `WhisperForConditionalGeneration`, *optional*): see [`create_assistant`].
        draft_length (`int`, *optional*): tokens of each draft; by default chosen by how many are accepted.
        found (`Callable[[list[DraftCounts]], None]`, *optional*): told what came of the drafts of each window.

    Returns:
        `Callable[..., Tensor]`: what transformers calls with a batch of windows; gives (batch, prefix + new tokens).
    """

    def search(
        model: WhisperForConditionalGeneration,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        generation_config: GenerationConfig,
        inputs_tensor: Tensor,
        encoder_outputs: Any,
        **kwargs: Any,
    ) -> Tensor:
        _check_settings(generation_config)
        states, length = encoder_outputs[0], input_ids.shape[1]
        limits = {
            "end": int(generation_config.eos_token_id),
            "max_new_tokens": generation_config.max_length - length,
            "min_new_tokens": _least_tokens(generation_config, length),
        }
        rules = rules_of(logits_processor, length, model.config.vocab_size, states.device)
        if assistant is None:
            return greedy_search(model, states, input_ids, rules, **limits)
        sequences, counts = speculative_search(
            model,
            assistant,
            states,
            input_ids,
            rules,
            input_features=inputs_tensor,
            draft_length=draft_length,
            **limits,
        )
        if found is not None:
            found(counts)
        return sequences

    return search


def rules_of(processors: LogitsProcessorList, begin: int, vocab_size: int, device: torch.device) -> TokenRules:
    """The rules that transformers has prepared for a Whisper, as one object.

    Args:
        processors (`LogitsProcessorList`): of suppressed tokens and timestamps.
        begin (`int`): tokens of the prefix, a prompt included.
        vocab_size (`int`): tokens of the model.
        device (`torch.device`): of the scores.

    Raises:
        ValueError: for a processor of another kind, which would be left out without a word.
    """
    always: list[int] = []
    at_begin: list[int] = []
    timestamps = None
    for processor in processors:
        if isinstance(processor, SuppressTokensLogitsProcessor):
            always += processor.suppress_tokens.tolist()
        elif isinstance(processor, SuppressTokensAtBeginLogitsProcessor):
            at_begin += processor.begin_suppress_tokens.tolist()
        elif isinstance(processor, WhisperTimeStampLogitsProcessor):
            timestamps = TimestampRules(
                processor.timestamp_begin, processor.eos_token_id, processor.max_initial_timestamp_index
            )
        elif type(processor).__name__ not in _BY_LENGTH:
            raise ValueError(
                f"This search knows Whisper's suppressed tokens and timestamps, and got {type(processor).__name__} "
                "beside them: leave out the setting of `generate` that it stands for, or the `custom_generate`."
            )
    return TokenRules(always, at_begin, begin, vocab_size, device, timestamps)


_BY_LENGTH = ("MinLengthLogitsProcessor", "MinNewTokensLengthLogitsProcessor")
"""Processors that are read from the generation config instead."""


def _least_tokens(config: GenerationConfig, prefix: int) -> int:
    return max((config.min_length or 0) - prefix, config.min_new_tokens or 0, 0)


def _check_settings(config: GenerationConfig) -> None:
    if config.num_beams != 1 or config.do_sample or config.return_dict_in_generate:
        raise ValueError(
            f"This search is greedy and returns tokens, but num_beams={config.num_beams}, do_sample="
            f"{config.do_sample} and return_dict_in_generate={config.return_dict_in_generate} came: set num_beams=1, "
            "and leave out temperatures, log-probability thresholds and scores."
        )
