"""Export for CTranslate2 and faster-whisper."""

from pathlib import Path

from transformers import WhisperForConditionalGeneration, WhisperProcessor

from hf_distil_whisper.export import check_exportable, new_folder
from hf_distil_whisper.inference.ctranslate2 import convert_to_ctranslate2, import_runtime

QUANTIZATIONS = ("float32", "float16", "bfloat16", "int8", "int8_float32", "int8_float16", "int8_bfloat16", "int16")
"""Types of the weights on disk, the default first."""


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
        folder (`str` or `Path`): new or empty; written completely or not at all.
        quantization (`str`, *optional*, defaults to `"float32"`): type of the weights on disk: "float16", "bfloat16",
            "int8", "int8_float16" and so on. A runtime may load them as another one.

    Returns:
        `Path`: the folder.

    Raises:
        ImportError: without the extra `ct2`.
        ValueError: for another quantization, another model's processor, or a model with adapters.
        FileExistsError: if the folder is not empty.

    Example:
        ```python
        export_ctranslate2(student, processor, "student-ct2", quantization="int8")
        faster_whisper.WhisperModel("student-ct2").transcribe("talk.wav")
        ```
    """
    import_runtime("ctranslate2", "ct2")
    check_exportable(model, processor, quantization, QUANTIZATIONS)
    with new_folder(folder) as part:
        convert_to_ctranslate2(model, processor, part, quantization)
    return Path(folder)
