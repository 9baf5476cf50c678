"""How much memory a model and one pass over a batch of windows take.

Memory does not depend on what is heard or on the weights, so that windows are silent and a CPU's model is made anew.
"""

from functools import partial
from typing import Any

import torch
from transformers import AutoModelForSpeechSeq2Seq, GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

from hf_distil_whisper.evaluation.latency import timed_pass
from own_process import (
    in_own_process,
    own_bytes,
    peak_while,
)


def pass_bytes(model: WhisperForConditionalGeneration, batch_size: int, **settings: Any) -> int | None:
    """Bytes of a model's weights and the most that a pass takes beside them.

    On a GPU what torch allocated, with the attention that the model has now. On a CPU what a process of its own held,
    which takes some seconds: memory that this process has given back before would hide a part of it.

    Args:
        model (`WhisperForConditionalGeneration`): in eval mode.
        batch_size (`int`): windows of the pass.
        settings: of [`timed_pass`]; `num_tokens` among them.

    Returns:
        `int | None`: None on a device that is neither.

    Raises:
        ProcessEndedError: if the process is killed, as where memory does not suffice for a second model.
    """
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
        there = torch.cuda.memory_allocated(model.device)
        _silent_pass(model, batch_size, settings)
        return weights + torch.cuda.max_memory_allocated(model.device) - there
    if model.device.type != "cpu":
        return None
    attention = model.config._attn_implementation
    taken, _ = in_own_process(
        _taken, model.config, model.generation_config, model.dtype, attention, batch_size, settings
    )
    return weights + int(taken)


def _taken(
    config: WhisperConfig,
    generation_config: GenerationConfig,
    dtype: torch.dtype,
    attention: str,
    batch_size: int,
    settings: dict[str, Any],
) -> float:
    """What a pass takes beside the weights, in a process that has done nothing before."""
    model = AutoModelForSpeechSeq2Seq.from_config(config, dtype=dtype, attn_implementation=attention).eval()
    model.generation_config = generation_config
    there = own_bytes()
    _, peak = peak_while(partial(_silent_pass, model, batch_size, settings))
    return float(peak - there)


def _silent_pass(model: WhisperForConditionalGeneration, batch_size: int, settings: dict[str, Any]) -> None:
    silence = torch.zeros(batch_size, model.config.num_mel_bins, 2 * model.config.max_source_positions)
    timed_pass(model, [silence], **settings)
