"""A checkpoint for another runtime: CTranslate2, which runs Whisper sooner on a CPU, and in int8.

Knows the converters; `backends` runs what they write.
"""

import os
import shutil
import tempfile
from pathlib import Path
from types import ModuleType

from huggingface_hub.constants import HF_HOME
from transformers import WhisperForConditionalGeneration, WhisperProcessor
from transformers.utils import logging

from hf_distil_whisper.checkpoints import save_checkpoint, weights_fingerprint

logger = logging.get_logger(__name__)

_COPIED = ("tokenizer.json", "preprocessor_config.json")
"""What faster-whisper reads beside the weights."""


def import_ctranslate2() -> ModuleType:
    """The package, or an error that says how to get it.

    Raises:
        ImportError: if it is not installed.
    """
    try:
        import ctranslate2
    except ImportError as error:
        raise ImportError(
            "The backend 'ctranslate2' needs a package that is not installed: pip install 'hf-distil-whisper[ct2]'."
        ) from error
    return ctranslate2


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
        folder (`str` or `Path`): made anew; what was there is replaced only by a whole model.
        quantization (`str`, *optional*, defaults to `"float32"`): type of the weights on disk: "float16", "bfloat16",
            "int8", "int8_float16" and so on. A runtime may load them as another one.

    Returns:
        `Path`: the folder.

    Raises:
        ImportError: without the extra `ct2`.
        ValueError: for a quantization that CTranslate2 does not know.
    """
    import_ctranslate2()
    from ctranslate2.converters import TransformersConverter

    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        source, converted = Path(work, "source"), Path(work, "converted")
        save_checkpoint(model, processor, source)
        converter = TransformersConverter(str(source), copy_files=list(_COPIED))
        converter.convert(str(converted), quantization=quantization)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(converted, folder)
    return folder


def converted_once(model: WhisperForConditionalGeneration, processor: WhisperProcessor) -> Path:
    """The model for CTranslate2 in the Hugging Face cache, written on first use.

    Args:
        model (`WhisperForConditionalGeneration`): found again by its weights.
        processor (`WhisperProcessor`): of the model.
    """
    folder = Path(HF_HOME, "hf_distil_whisper", "ctranslate2", weights_fingerprint(model))
    if not (folder / "model.bin").is_file():
        logger.info(f"converting the model to CTranslate2: {folder}")
        try:
            export_ctranslate2(model, processor, folder)
        except OSError:
            if not (folder / "model.bin").is_file():  # else another process was sooner
                raise
    return folder
