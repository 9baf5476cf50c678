"""The same search in another runtime: CTranslate2 writes the tokens that transformers would, sooner, and in int8.

Knows how a window's features become a request to the runtime; `generation` is the search in transformers.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration, WhisperProcessor
from transformers.modeling_outputs import BaseModelOutput

from hf_distil_whisper.inference.export import converted_once, import_ctranslate2
from hf_distil_whisper.inference.generation import (
    TokenSequence,
    decoder_prefix,
    language_token,
    language_tokens,
    max_generated_tokens,
    resolve_languages,
    timestamp_begin,
)

BACKENDS = ("transformers", "ctranslate2")
MAX_PARTS = 4
"""Parts of a batch that a CPU decodes side by side."""


class Ctranslate2Generator:
    """Transcribes batches of windows as [`generate_tokens`] does, by CTranslate2.

    Its tokens are those of transformers wherever two of them are not equally likely but for rounding. `mean_log_prob`
    is taken from the search: after the rules on timestamps and suppressed tokens, which transformers leaves out.

    Args:
        model (`WhisperForConditionalGeneration`): is converted on first use and kept in the Hugging Face cache.
        processor (`WhisperProcessor`): of the model.
        compute_type (`str`, *optional*, defaults to `"default"`): type of the weights and products: "float32" on a CPU
            by default; "int8", "float16" (GPU), ...
        num_beams (`int`, *optional*, defaults to 1): greedy.
        max_new_tokens (`int`, *optional*, defaults to what [`max_generated_tokens`] allows): bound on the tokens.
        return_timestamps (`bool`, *optional*, defaults to `False`): ask for and keep timestamp tokens.
        language (`str`, *optional*): see [`resolve_language`]; None detects it.
        task (`str`, *optional*, defaults to `"transcribe"`): or "translate".
        folder (`str` or `Path`, *optional*): written by [`export_ctranslate2`], in place of the conversion.

    Raises:
        ImportError: without the extra `ct2`.
        ValueError: for a compute type that the machine does not have, or a language that the model does not know.
    """

    def __init__(
        self,
        model: WhisperForConditionalGeneration,
        processor: WhisperProcessor,
        *,
        compute_type: str = "default",
        num_beams: int = 1,
        max_new_tokens: int | None = None,
        return_timestamps: bool = False,
        language: str | None = None,
        task: str = "transcribe",
        folder: str | Path | None = None,
    ):
        runtime = import_ctranslate2()
        self._as_input = runtime.StorageView.from_array
        self._model, self._task, self._timestamps = model, task, return_timestamps
        self._language = language
        resolve_languages(model, language, task, 1)  # an unknown one is refused before the conversion
        self._new_tokens = max_new_tokens or max_generated_tokens(model, return_timestamps)
        config = model.generation_config
        suppressed = list(config.suppress_tokens or [])
        if not return_timestamps:
            suppressed += range(timestamp_begin(model), model.config.vocab_size)
        latest = getattr(config, "max_initial_timestamp_index", None)
        self._settings = {
            "beam_size": num_beams,
            "suppress_tokens": suppressed,
            "suppress_blank": bool(config.begin_suppress_tokens),
            "max_initial_timestamp_index": model.config.max_source_positions if latest is None else latest,
            "return_scores": True,
            "return_no_speech_prob": True,
        }
        gpu, threads = model.device.type == "cuda", torch.get_num_threads()
        # The steps of a search are small: parts of a batch side by side keep the cores busier than shared products do.
        self._parts = 1 if gpu else min(threads, MAX_PARTS)
        self._runtime = runtime.models.Whisper(
            str(converted_once(model, processor) if folder is None else folder),
            device="cuda" if gpu else "cpu",
            device_index=(model.device.index or 0) if gpu else 0,
            compute_type=compute_type,
            inter_threads=self._parts,
            intra_threads=max(1, threads // self._parts),
        )
        torch.set_num_threads(threads)  # the runtime sets its own number for the whole process, and with it torch's

    def __call__(
        self,
        input_features: Tensor | None = None,
        *,
        encoder_states: Tensor | None = None,
        language: Sequence[str | None] | None = None,
    ) -> list[TokenSequence]:
        """Tokens of a batch of windows, with their statistics.

        Args:
            input_features (`Tensor`, *optional*): log-mel of shape (batch, mel bins, frames), padded to the window;
                may be None where `encoder_states` are given.
            encoder_states (`Tensor`, *optional*): (batch, frames, width), where the encoder has run already.
            language (`Sequence[str | None]`, *optional*): of each window, in place of the one for all.
        """
        windows = input_features if encoder_states is None else encoder_states
        if windows is None:
            raise ValueError("Ctranslate2Generator: expected `input_features` or `encoder_states`, got neither.")
        array = np.ascontiguousarray(windows.float().cpu().numpy())
        told = self._language if language is None else language
        codes = resolve_languages(self._model, told, self._task, len(array))
        languages = language_tokens(
            self._model, codes, lambda: self._detected(self._as_input(array), input_features, encoder_states)
        )
        prompts = [decoder_prefix(self._model, language, self._task, self._timestamps) for language in languages]
        size = -(-len(prompts) // self._parts)
        found = [
            result
            for start in range(0, len(prompts), size)
            for result in self._runtime.generate(
                self._as_input(array[start : start + size]),
                prompts[start : start + size],
                asynchronous=True,
                max_length=2 * self._new_tokens,  # it generates half of that at most, prompt or no prompt
                **self._settings,
            )
        ]
        return [self._sequence(result.result()) for result in found]

    def _detected(self, features: Any, input_features: Tensor | None, states: Tensor | None) -> list[int]:
        if not self._runtime.is_multilingual:  # it judges by the size of the vocabulary, 51,865 tokens or more
            encoded = None if states is None else BaseModelOutput(last_hidden_state=states)
            return self._model.detect_language(input_features, encoder_outputs=encoded).tolist()
        found = self._runtime.detect_language(features)
        return [language_token(self._model, likeliest[0][0].strip("<|>")) for likeliest in found]

    def _sequence(self, result: Any) -> TokenSequence:
        tokens, score = result.sequences_ids[0], result.scores[0]
        truncated = len(tokens) >= self._new_tokens
        # Its score is a mean over the tokens without `<|endoftext|>`, ours is one with it.
        mean = score * max(len(tokens), 1) / (len(tokens) + (not truncated))
        return TokenSequence(tokens, truncated, mean, result.no_speech_prob)
