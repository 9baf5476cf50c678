"""Models of commands that only listen: weights, processor, and that both speak of the same tokens."""

from transformers import WhisperForConditionalGeneration, WhisperProcessor

from hf_distil_whisper.checkpoints import check_compatible, load_model, load_processor
from hf_distil_whisper.cli.plans import best_device, torch_dtype


def load_listener(name_or_path: str, dtype: str) -> tuple[WhisperForConditionalGeneration, WhisperProcessor]:
    """A Whisper on the best device, in eval mode, with its processor.

    Args:
        name_or_path (`str`): Hub name or folder.
        dtype (`str`): type of the weights, for example `"float32"`.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if model and processor do not go together.
    """
    model, processor = load_model(name_or_path, dtype=torch_dtype(dtype)), load_processor(name_or_path)
    check_compatible(model, None, processor)
    return model.to(best_device()), processor
