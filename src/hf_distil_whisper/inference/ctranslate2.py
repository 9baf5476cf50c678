"""CTranslate2 as a second inference engine: conversion of a model, and generation with the tokens of transformers."""

import importlib
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from huggingface_hub.constants import HF_HOME
from torch import Tensor
from transformers import WhisperForConditionalGeneration, WhisperProcessor
from transformers.utils import logging

from hf_distil_whisper.checkpoints import save_checkpoint, weights_fingerprint
from hf_distil_whisper.inference.encoder import encode
from hf_distil_whisper.inference.generation import GenerationSettings, TokenSequence
from hf_distil_whisper.inference.prompt import (
    WindowLanguage,
    decoder_prefix,
    detect_languages,
    max_generated_tokens,
    resolve_languages,
    timestamp_begin,
    unused_tokens,
    window_languages,
)

logger = logging.get_logger(__name__)

BACKENDS = ("transformers", "ctranslate2")

MAX_PARALLEL_PARTS = 4
"""Parts of a batch that a CPU decodes in parallel."""


def import_runtime(name: str, extra: str) -> ModuleType:
    """Imports an optional runtime; an `ImportError` names the extra of this package that installs it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"The runtime {name!r} is not installed: pip install 'hf-distil-whisper[{extra}]' ({error})."
        ) from error


def convert_to_ctranslate2(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, folder: Path, quantization: str = "float32"
) -> None:
    """Writes what CTranslate2 and faster-whisper load into an existing folder."""
    import_runtime("ctranslate2", "ct2")
    from ctranslate2.converters import TransformersConverter

    with tempfile.TemporaryDirectory(dir=folder.parent) as checkpoint:  # the converter reads a checkpoint from disk
        save_checkpoint(model, processor, checkpoint)
        converter = TransformersConverter(checkpoint, copy_files=["tokenizer.json", "preprocessor_config.json"])
        converter.convert(str(folder), quantization=quantization, force=True)  # force: the folder exists


def converted_once(model: WhisperForConditionalGeneration, processor: WhisperProcessor) -> Path:
    """Folder of the model in CTranslate2's format, in the Hugging Face cache; converted on first use."""
    folder = Path(HF_HOME, "hf_distil_whisper", "ctranslate2", weights_fingerprint(model))
    if not (folder / "model.bin").is_file():
        logger.info(f"converting the model to CTranslate2: {folder}")
        shutil.rmtree(folder, ignore_errors=True)  # left incomplete by an earlier run
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as staging:
            part = Path(staging, "model")
            part.mkdir()
            convert_to_ctranslate2(model, processor, part)
            try:
                os.replace(part, folder)
            except OSError:
                if not (folder / "model.bin").is_file():  # else another process finished first
                    raise
    return folder


class Ctranslate2Generator:
    """Generates tokens for batches of windows with CTranslate2, as [`generate_tokens`] does with transformers.

    The tokens are those of transformers unless two are equally likely up to rounding. `mean_log_prob` is taken from
    CTranslate2's search, after the timestamp rules and suppressed tokens, which [`generate_tokens`] leaves out.

    The model is converted on first use, into the Hugging Face cache, unless `folder` holds it already, as
    [`export_ctranslate2`] writes it. `compute_type` is the type of weights and matrix products, "float32" on a CPU by
    default. Of `settings` (or `keywords`, its fields), language, task, beams, length and timestamps apply.

    Raises:
        ImportError: without the extra `ct2`.
        ValueError: for a compute type that the machine does not support, or a language that the model does not know.
    """

    def __init__(
        self,
        model: WhisperForConditionalGeneration,
        processor: WhisperProcessor,
        settings: GenerationSettings | None = None,
        *,
        compute_type: str = "default",
        folder: str | Path | None = None,
        **keywords: Any,
    ):
        runtime = import_runtime("ctranslate2", "ct2")
        settings = replace(settings or GenerationSettings(), **keywords)
        resolve_languages(model, settings.language, settings.task, 1)  # fail before the conversion
        self._model, self._settings = model, settings
        self._timestamps = bool(settings.return_timestamps)
        self._max_new_tokens = settings.max_new_tokens or max_generated_tokens(model, self._timestamps)
        config = model.generation_config
        suppress_tokens = [*(config.suppress_tokens or []), *unused_tokens(model)]
        if not self._timestamps:
            suppress_tokens += range(timestamp_begin(model), model.config.vocab_size)
        # By default CTranslate2 takes its lists from the converted config, and starts no transcript after 1 s.
        max_initial = getattr(config, "max_initial_timestamp_index", None)
        self._options = {
            "beam_size": settings.num_beams,
            "suppress_tokens": suppress_tokens,
            "suppress_blank": bool(config.begin_suppress_tokens),
            "max_initial_timestamp_index": model.config.max_source_positions if max_initial is None else max_initial,
            "max_length": 2 * self._max_new_tokens,  # it generates half of that at most, with or without a prompt
            "return_scores": True,
            "return_no_speech_prob": True,
        }
        on_gpu, threads = model.device.type == "cuda", torch.get_num_threads()
        # Decoding steps are small: parts of a batch in parallel use the cores better than parallel matrix products.
        self._num_parts = 1 if on_gpu else min(threads, MAX_PARALLEL_PARTS)
        self._to_storage = runtime.StorageView.from_array
        self._runtime = runtime.models.Whisper(
            str(converted_once(model, processor) if folder is None else folder),
            device="cuda" if on_gpu else "cpu",
            device_index=(model.device.index or 0) if on_gpu else 0,
            compute_type=compute_type,
            inter_threads=self._num_parts,
            intra_threads=max(1, threads // self._num_parts),
        )
        # CTranslate2 sets the number of OpenMP threads of the process, and with it torch's.
        torch.set_num_threads(threads)

    def __call__(
        self,
        input_features: Tensor | None = None,
        *,
        encoder_hidden_states: Tensor | None = None,
        languages: Sequence[str | None] | None = None,
    ) -> list[TokenSequence]:
        """Tokens of a batch of windows, with their statistics; arguments as in [`generate_tokens`]."""
        windows = input_features if encoder_hidden_states is None else encoder_hidden_states
        if windows is None:
            raise ValueError(
                "Ctranslate2Generator: expected `input_features` or `encoder_hidden_states`, got neither."
            )
        # CTranslate2 takes features or hidden states, and tells them by their shape.
        array = np.ascontiguousarray(windows.float().cpu().numpy())
        task = self._settings.task
        codes = resolve_languages(self._model, languages or self._settings.language, task, len(array))
        decoded_in = window_languages(
            self._model,
            codes,
            lambda: self._detect(
                array, lambda: encode(self._model, windows) if encoder_hidden_states is None else windows
            ),
        )
        prompts = [decoder_prefix(self._model, one.code, task, self._timestamps) for one in decoded_in]
        part_size = -(-len(prompts) // self._num_parts)
        # All parts are submitted before the first result is awaited.
        results = [
            result
            for start in range(0, len(prompts), part_size)
            for result in self._runtime.generate(
                self._to_storage(array[start : start + part_size]),
                prompts[start : start + part_size],
                asynchronous=True,
                **self._options,
            )
        ]
        return [
            self._sequence(result.result(), language) for result, language in zip(results, decoded_in, strict=True)
        ]

    def _detect(self, array: np.ndarray, hidden_states: Callable[[], Tensor]) -> list[WindowLanguage]:
        # CTranslate2 takes a model for multilingual by the size of its vocabulary: 51,865 tokens or more.
        if not self._runtime.is_multilingual:
            return detect_languages(self._model, hidden_states())
        detected = self._runtime.detect_language(self._to_storage(array))  # per window, the likeliest first
        return [WindowLanguage(ranked[0][0].strip("<|>"), ranked[0][1]) for ranked in detected]

    def _sequence(self, result: Any, language: WindowLanguage) -> TokenSequence:
        tokens, score = result.sequences_ids[0], result.scores[0]
        truncated = len(tokens) >= self._max_new_tokens
        # CTranslate2 averages over the tokens without `<|endoftext|>`, this package over those with it.
        mean_log_prob = score * max(len(tokens), 1) / (len(tokens) + (not truncated))
        return TokenSequence(tokens, truncated, mean_log_prob, result.no_speech_prob, *language)
