"""The same search in another runtime: CTranslate2 writes the tokens that transformers would, sooner, and in int8.

Knows how a window's features become a request to the runtime; `generation` is the search in transformers.
"""

import importlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from huggingface_hub.constants import HF_HOME
from torch import Tensor
from transformers import WhisperForConditionalGeneration, WhisperProcessor
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import logging

from hf_distil_whisper.checkpoints import (
    save_checkpoint,
    weights_fingerprint,
)
from hf_distil_whisper.inference.generation import TokenSequence
from hf_distil_whisper.inference.prompt import (
    decoder_prefix,
    language_token,
    language_tokens,
    max_generated_tokens,
    resolve_languages,
    timestamp_begin,
)

logger = logging.get_logger(__name__)

_COPIED = ("tokenizer.json", "preprocessor_config.json")
"""What faster-whisper reads beside the weights."""


def import_runtime(name: str, extra: str) -> ModuleType:
    """A runtime's package, or an error that says how to get it.

    Args:
        name (`str`): of the module.
        extra (`str`): of this package, which installs it.

    Raises:
        ImportError: if it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"The runtime {name!r} is not installed: pip install 'hf-distil-whisper[{extra}]' ({error})."
        ) from error


def import_ctranslate2() -> ModuleType:
    """CTranslate2, or an error that names the extra."""
    return import_runtime("ctranslate2", "ct2")


@contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """A folder to fill, which takes its place when all is written: an export that fails leaves nothing behind.

    Args:
        folder (`str` or `Path`): made, with the folders above it.

    Raises:
        FileExistsError: if it holds something already, or is a file.
    """
    folder = Path(folder)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise FileExistsError(
            f"`folder`: {folder} is there already and not an empty folder; an export would mix with what it holds. "
            "Choose a new folder, or empty this one."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        part = Path(work, "export")
        part.mkdir()
        yield part
        if folder.is_dir():
            folder.rmdir()
        os.replace(part, folder)


def check_exportable(model: WhisperForConditionalGeneration, quantization: str, known: tuple[str, ...]) -> None:
    """Refuses what an export would write wrongly without a word.

    Args:
        model (`WhisperForConditionalGeneration`): to export.
        quantization (`str`): type of the weights.
        known (`tuple[str, ...]`): what the format has.

    Raises:
        ValueError: for another quantization, or a model that still carries adapters.
    """
    if quantization not in known:
        raise ValueError(f"`quantization`: expected one of {', '.join(known)}, got {quantization!r}.")
    if any(".lora_" in name for name, _ in model.named_parameters()):
        raise ValueError(
            "The model carries LoRA adapters beside its weights, which no other runtime reads. Merge them first "
            "(`LoraStudent.save_merged`, or the folder that `train --lora` wrote) and export the merged student."
        )


def export_ctranslate2(
    model: WhisperForConditionalGeneration,
    processor: WhisperProcessor,
    folder: str | Path,
    *,
    quantization: str = "float32",
) -> Path:
    """Writes a model as CTranslate2 and faster-whisper load it.

    Args:
        model (`WhisperForConditionalGeneration`): left as it is.
        processor (`WhisperProcessor`): of the model.
        folder (`str` or `Path`): new or empty; written whole or not at all.
        quantization (`str`, *optional*, defaults to `"float32"`): type of the weights on disk: "float16", "bfloat16",
            "int8", "int8_float16" and so on. A runtime may load them as another one.

    Returns:
        `Path`: the folder.

    Raises:
        ImportError: without the extra `ct2`.
        ValueError: for a quantization that CTranslate2 does not know, or a model with adapters.
        FileExistsError: if the folder is not empty.

    Example:
        ```python
        export_ctranslate2(student, processor, "student-ct2", quantization="int8")
        faster_whisper.WhisperModel("student-ct2").transcribe("talk.wav")
        ```
    """
    import_ctranslate2()
    from ctranslate2.converters import TransformersConverter
    from ctranslate2.specs.model_spec import ACCEPTED_MODEL_TYPES

    check_exportable(model, quantization, ACCEPTED_MODEL_TYPES)
    with new_folder(folder) as part:
        source = part.parent / "source"
        save_checkpoint(model, processor, source)
        converter = TransformersConverter(str(source), copy_files=list(_COPIED))
        converter.convert(str(part), quantization=quantization, force=True)  # into the folder that is there already
    return Path(folder)


def converted_once(model: WhisperForConditionalGeneration, processor: WhisperProcessor) -> Path:
    """The model for CTranslate2 in the Hugging Face cache, written on first use.

    Args:
        model (`WhisperForConditionalGeneration`): found again by its weights.
        processor (`WhisperProcessor`): of the model.
    """
    folder = Path(HF_HOME, "hf_distil_whisper", "ctranslate2", weights_fingerprint(model))
    if not (folder / "model.bin").is_file():
        logger.info(f"converting the model to CTranslate2: {folder}")
        shutil.rmtree(folder, ignore_errors=True)  # what is there without a model is of no use
        try:
            export_ctranslate2(model, processor, folder)
        except OSError:
            if not (folder / "model.bin").is_file():  # else another process was sooner
                raise
    return folder


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
        encoder_hidden_states: Tensor | None = None,
        languages: Sequence[str | None] | None = None,
    ) -> list[TokenSequence]:
        """Tokens of a batch of windows, with their statistics.

        Args:
            input_features (`Tensor`, *optional*): log-mel of shape (batch, mel bins, frames), padded to the window;
                may be None where `encoder_hidden_states` are given.
            encoder_hidden_states (`Tensor`, *optional*): (batch, frames, width), where the encoder has run already.
            languages (`Sequence[str | None]`, *optional*): of each window, in place of the one for all.
        """
        windows = input_features if encoder_hidden_states is None else encoder_hidden_states
        if windows is None:
            raise ValueError(
                "Ctranslate2Generator: expected `input_features` or `encoder_hidden_states`, got neither."
            )
        array = np.ascontiguousarray(windows.float().cpu().numpy())
        codes = resolve_languages(self._model, languages or self._language, self._task, len(array))
        language_ids = language_tokens(
            self._model, codes, lambda: self._detected(self._as_input(array), input_features, encoder_hidden_states)
        )
        prompts = [decoder_prefix(self._model, language, self._task, self._timestamps) for language in language_ids]
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
