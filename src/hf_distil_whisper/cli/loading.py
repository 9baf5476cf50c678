"""Models of commands that only listen: weights, processor, and that both speak of the same tokens."""

from transformers import WhisperForConditionalGeneration, WhisperProcessor

from hf_distil_whisper.checkpoints import check_compatible, load_model, load_processor
from hf_distil_whisper.cli.plans import best_device, torch_dtype
from hf_distil_whisper.inference.assistant import create_assistant
from hf_distil_whisper.inference.cached_decoder import Assistant
from hf_distil_whisper.inference.speculative import check_assistant


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


def load_assistant(
    place: str, model: WhisperForConditionalGeneration
) -> tuple[WhisperForConditionalGeneration, Assistant]:
    """A checkpoint, and what drafts of it: its decoder where the encoder is the model's own, else all of it.

    Args:
        place (`str`): Hub name or folder.
        model (`WhisperForConditionalGeneration`): whose text it is.

    Raises:
        ValueError: for another vocabulary, or other mel bins.
    """
    whole = load_model(place, dtype=model.dtype).to(model.device).eval()
    check_assistant(whole, model)
    try:
        return whole, create_assistant(whole, model)
    except ValueError:
        return whole, whole
