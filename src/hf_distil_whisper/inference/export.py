"""A checkpoint for another runtime: CTranslate2, which runs Whisper sooner on a CPU, and in int8.

Knows CTranslate2's converter, and what all exports have in common: a new folder that is whole or not there.
`export_ggml` and `export_onnx` know the other formats, `backends` runs what the converter writes.
"""

import importlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from huggingface_hub.constants import HF_HOME
from transformers import WhisperForConditionalGeneration, WhisperProcessor
from transformers.utils import logging

from hf_distil_whisper.checkpoints import save_checkpoint, weights_fingerprint

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
