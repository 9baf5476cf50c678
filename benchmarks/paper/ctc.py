"""CTC models (wav2vec2, HuBERT, WavLM, ...) beside Whisper, as the comparison of Table 8.

Knows how a recording of any length becomes text by greedy CTC: one token a frame of 20 ms, repetitions and blanks
taken out. Such a model has no decoder that could go on without hearing anything.
"""

import math
from pathlib import Path

import numpy as np
import torch
from transformers import (
    MODEL_FOR_CTC_MAPPING,
    AutoConfig,
    AutoModelForCTC,
    PreTrainedConfig,
    PreTrainedModel,
    Wav2Vec2Processor,
)

from hf_distil_whisper.data.audio import SAMPLING_RATE
from hf_distil_whisper.inference.chunked import (
    check_chunks,
    cut_chunks,
)

_SHORTEST = SAMPLING_RATE // 10
"""Samples to which shorter clips are padded with silence: wav2vec2 needs 400 for its first frame."""


def is_ctc(config: PreTrainedConfig) -> bool:
    """Whether a checkpoint's config is that of a CTC model that hears the waveform.

    Args:
        config (`PreTrainedConfig`): as read from `config.json`.
    """
    kind = type(config)
    return kind in MODEL_FOR_CTC_MAPPING and MODEL_FOR_CTC_MAPPING[kind].main_input_name == "input_values"


def load_ctc(
    name_or_path: str | Path, *, dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedModel, Wav2Vec2Processor]:
    """Loads a CTC model and its processor, from safetensors only. A language model beside it is not used.

    Args:
        name_or_path (`str` or `Path`): folder of a checkpoint, or name of a model on the Hub, for example
            "facebook/wav2vec2-large-960h" of Table 8.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`): of the weights.

    Returns:
        `tuple[PreTrainedModel, Wav2Vec2Processor]`: the model in eval mode.

    Raises:
        OSError: if there is no checkpoint, or no processor beside it.
        ValueError: if it is another kind of model, or has no trained head.
    """
    config = AutoConfig.from_pretrained(str(name_or_path))
    if not is_ctc(config):
        raise ValueError(
            f"{name_or_path}: expected a CTC model that hears the waveform (wav2vec2, HuBERT, WavLM, ...), got "
            f"model_type {config.model_type!r}."
        )
    model, report = AutoModelForCTC.from_pretrained(
        str(name_or_path), dtype=dtype, use_safetensors=True, output_loading_info=True
    )
    if any(key.startswith("lm_head") for key in report["missing_keys"]):
        raise ValueError(
            f"{name_or_path}: the head that writes characters (lm_head) is missing in the file and would be random. "
            "Expected a checkpoint fine-tuned for speech recognition, such as facebook/wav2vec2-large-960h."
        )
    return model.eval(), Wav2Vec2Processor.from_pretrained(str(name_or_path))


@torch.inference_mode()
def transcribe_ctc(
    model: PreTrainedModel,
    processor: Wav2Vec2Processor,
    samples: np.ndarray,
    *,
    chunk_length: float = 30.0,
    stride: float | None = None,
) -> str:
    """The text of one recording, greedily.

    Longer recordings are heard in overlapping chunks, as by transformers' pipeline: of every chunk only the middle is
    kept, so that each frame has been heard with what came before and after it. One chunk at a time: padding beside
    longer ones changes what many of these models hear (those without an attention mask), and there is no decoder that
    a batch would make faster.

    Args:
        model (`PreTrainedModel`): from [`load_ctc`].
        processor (`Wav2Vec2Processor`): of the model.
        samples (`np.ndarray`): (samples,), float, 16 kHz; from [`load_audio`]. Clips below 0.1 s are padded with
            silence.
        chunk_length (`float`, *optional*, defaults to 30.0): seconds.
        stride (`float`, *optional*, defaults to `chunk_length / 6`): seconds at either side of a chunk that are heard
            but not kept.

    Returns:
        `str`: stripped, in the letters of the model's vocabulary (capitals for those of LibriSpeech).

    Raises:
        ValueError: if the strides leave nothing of a chunk.
    """
    hop = model.config.inputs_to_logits_ratio
    # Chunks begin and end between two frames, so that no frame is lost or heard twice where two of them meet.
    length, margin = (
        round(seconds * SAMPLING_RATE / hop) * hop / SAMPLING_RATE
        for seconds in (chunk_length, chunk_length / 6 if stride is None else stride)
    )
    if len(samples) < _SHORTEST:
        samples = np.pad(samples, (0, _SHORTEST - len(samples)))
    check_chunks(length, margin, window=math.inf)
    tokens: list[int] = []
    for chunk, heard in cut_chunks([samples], length, margin):
        found = _frame_tokens(model, processor, heard)
        cut = round(margin * SAMPLING_RATE / hop)
        first = cut if chunk.start > 0 else 0
        last = (chunk.stop - chunk.start) // hop - cut if chunk.stop < len(samples) else len(found)
        tokens += found[first:last]
    return str(processor.tokenizer.decode(tokens)).strip()


def _frame_tokens(model: PreTrainedModel, processor: Wav2Vec2Processor, samples: np.ndarray) -> list[int]:
    heard = processor.feature_extractor(samples, sampling_rate=SAMPLING_RATE, return_tensors="pt")
    values = heard.input_values.to(model.device, model.dtype)
    return model(values).logits[0].argmax(dim=-1).tolist()
