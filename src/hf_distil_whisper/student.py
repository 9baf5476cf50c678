"""Makes a student: copies spaced layers of a Whisper teacher into a shallower Whisper (arXiv 2311.00430, section 4.1).

Knows which layers are kept; files are left to `checkpoints`.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from transformers import WhisperForConditionalGeneration

from hf_distil_whisper.checkpoints import (
    load_model,
    repair_generation_config,
)


def select_layers(num_teacher_layers: int, num_student_layers: int) -> list[int]:
    """Chooses maximally spaced layers, the first and the last among them (section 4.1).

    Args:
        num_teacher_layers (`int`): layers to choose from.
        num_student_layers (`int`): layers to choose, from 1 to `num_teacher_layers`.

    Returns:
        `list[int]`: 0-based numbers, floor(i * (L - 1) / (n - 1)); `[0]` for one layer.

    Raises:
        ValueError: if there is no such choice.

    Example:
        ```python
        select_layers(32, 2)  # [0, 31]
        select_layers(12, 4)  # [0, 3, 7, 11]
        ```
    """
    if not 1 <= num_student_layers <= num_teacher_layers:
        raise ValueError(
            f"Expected 1 to {num_teacher_layers} layers for the student, got {num_student_layers}: its layers are "
            f"copied from the teacher's {num_teacher_layers}. Choose another --decoder_layers or --encoder_layers."
        )
    if num_student_layers == 1:
        return [0]
    return [layer * (num_teacher_layers - 1) // (num_student_layers - 1) for layer in range(num_student_layers)]


def create_student(
    teacher: WhisperForConditionalGeneration | str | Path,
    *,
    decoder_layers: int = 2,
    encoder_layers: int | None = None,
    decoder_layer_ids: Sequence[int] | None = None,
    encoder_layer_ids: Sequence[int] | None = None,
) -> WhisperForConditionalGeneration:
    """Makes a student that starts from the teacher's weights, with fewer layers (section 4.1).

    Embeddings, positions, normalisations and the language-model head are copied as they are; so is the whole encoder,
    unless told otherwise. The weights are the student's own: training it leaves the teacher alone. Its generation
    config is repaired (alignment heads renumbered or dropped, `forced_decoder_ids` cleared, lengths explicit).

    Args:
        teacher (`WhisperForConditionalGeneration`, `str` or `Path`): a model, or name or folder of a checkpoint.
        decoder_layers (`int`, *optional*, defaults to 2): evenly spaced decoder layers to keep.
        encoder_layers (`int`, *optional*): evenly spaced encoder layers to keep; all of them if absent.
        decoder_layer_ids (`Sequence[int]`, *optional*): the teacher's decoder layers to keep, in this order, instead
            of `decoder_layers`. Negative numbers count from the end: `[0, -1]` is the first and the last.
        encoder_layer_ids (`Sequence[int]`, *optional*): the same for the encoder.

    Returns:
        `WhisperForConditionalGeneration`: the student, in float32 and eval mode.

    Raises:
        ValueError: on more layers than the teacher has, none, numbers out of range or repeated, or a teacher that is
            not a Whisper.
        FileNotFoundError: if `teacher` names no checkpoint.

    Example:
        ```python
        student = create_student("openai/whisper-small.en", decoder_layers=2)
        student = create_student("openai/whisper-small.en", decoder_layer_ids=[0, 5, -1])
        ```
    """
    if isinstance(teacher, str | Path):
        teacher = load_model(teacher)
    if not isinstance(teacher, WhisperForConditionalGeneration):
        raise ValueError(
            f"Expected a WhisperForConditionalGeneration as teacher, got {type(teacher).__name__}: only a Whisper's "
            "layers can be copied. Pass a Whisper model, or the name or folder of its checkpoint."
        )
    config = teacher.config
    decoder_ids = _choose(config.decoder_layers, decoder_layers, decoder_layer_ids, "decoder")
    encoder_ids = _choose(config.encoder_layers, encoder_layers, encoder_layer_ids, "encoder")

    student_config = copy.deepcopy(config)
    student_config.decoder_layers = len(decoder_ids)
    student_config.encoder_layers = len(encoder_ids)
    student_config.dtype = torch.float32
    student_config.forced_decoder_ids = None  # old checkpoints force a language from here too
    with torch.device("meta"):  # nothing is drawn at random only to be overwritten
        student = WhisperForConditionalGeneration(student_config)
    weights = _renumber(teacher.state_dict(), "model.decoder.layers.", decoder_ids)
    weights = _renumber(weights, "model.encoder.layers.", encoder_ids)
    copies = {name: weight.detach().to(torch.float32, copy=True) for name, weight in weights.items()}
    student.load_state_dict(copies, assign=True)
    student.tie_weights()
    student.generation_config = repair_generation_config(
        teacher.generation_config, len(decoder_ids), decoder_ids, max_length=config.max_target_positions
    )
    return student.eval()


def _choose(num_teacher_layers: int, count: int | None, ids: Sequence[int] | None, part: str) -> list[int]:
    if ids is None:
        return select_layers(num_teacher_layers, num_teacher_layers if count is None else count)
    flag = f"--{part}_layer_ids"
    if not ids:
        raise ValueError(f"{flag}: expected at least one layer of the teacher's {num_teacher_layers}, got none.")
    for layer in ids:
        if not -num_teacher_layers <= layer < num_teacher_layers:
            raise ValueError(
                f"{flag}: the teacher's {part} has the layers 0 to {num_teacher_layers - 1} (or -1 to "
                f"-{num_teacher_layers} from the end), got {layer}."
            )
    chosen = [layer % num_teacher_layers for layer in ids]
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"{flag}: each layer can be copied once, got {list(ids)}, that is {chosen}.")
    return chosen


def _renumber(weights: Mapping[str, torch.Tensor], prefix: str, kept: list[int]) -> dict[str, torch.Tensor]:
    """Keeps the weights of the layers `kept` under their new numbers, and all weights that belong to no such layer."""
    renumbered = {}
    for name, weight in weights.items():
        if name.startswith(prefix):
            layer, rest = name.removeprefix(prefix).split(".", 1)
            if int(layer) not in kept:
                continue
            name = f"{prefix}{kept.index(int(layer))}.{rest}"
        renumbered[name] = weight
    return renumbered
