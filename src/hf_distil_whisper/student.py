"""Creates a student: copies spaced layers of a Whisper teacher into a shallower Whisper (section 4.1)."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from transformers import WhisperForConditionalGeneration

from hf_distil_whisper.checkpoints import load_model, repair_generation_config


def select_layers(num_teacher_layers: int, num_student_layers: int) -> list[int]:
    """Selects maximally spaced layers, including the first and the last (section 4.1).

    Args:
        num_teacher_layers (`int`): number of layers L to select from.
        num_student_layers (`int`): number of layers n to select, from 1 to L.

    Returns:
        `list[int]`: 0-based indices floor(i * (L - 1) / (n - 1)); `[0]` for one layer.

    Raises:
        ValueError: if n is not in 1 to L.

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
    """Creates a student with the teacher's weights and fewer layers (section 4.1).

    Embeddings, positions, layer norms and the language-model head are copied, and so is the whole encoder by default.
    The weights are copies: training the student does not change the teacher. The generation config is repaired
    (alignment heads remapped or dropped, `forced_decoder_ids` cleared, lengths explicit).

    Args:
        teacher (`WhisperForConditionalGeneration`, `str` or `Path`): a model, or the name or folder of a checkpoint.
        decoder_layers (`int`, *optional*, defaults to 2): number of evenly spaced decoder layers to copy.
        encoder_layers (`int`, *optional*): number of evenly spaced encoder layers to copy; by default all.
        decoder_layer_ids (`Sequence[int]`, *optional*): indices of the decoder layers to copy, in this order, instead
            of `decoder_layers`. Negative indices count from the end: `[0, -1]` are the first and the last.
        encoder_layer_ids (`Sequence[int]`, *optional*): the same for the encoder.

    Returns:
        `WhisperForConditionalGeneration`: the student, in float32 and eval mode.

    Raises:
        ValueError: for more layers than the teacher has, none, indices that are out of range or repeated, or a
            teacher that is not a Whisper.
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
    # The tokenizer's. Nothing reads it, but the Trainer warns of the <|startoftranscript|> of English-only configs.
    student_config.bos_token_id = config.eos_token_id
    with torch.device("meta"):  # no random initialisation that is overwritten anyway
        student = WhisperForConditionalGeneration(student_config)
    weights = _renumber(teacher.state_dict(), "model.decoder.layers.", decoder_ids)
    weights = _renumber(weights, "model.encoder.layers.", encoder_ids)
    copies = {name: weight.detach().to(torch.float32, copy=True) for name, weight in weights.items()}
    student.load_state_dict(copies, assign=True)
    student.tie_weights()
    student.generation_config = repair_generation_config(
        teacher.generation_config, len(decoder_ids), decoder_ids, max_length=config.max_target_positions
    )
    student.generation_config.bos_token_id = config.eos_token_id
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


def _renumber(weights: Mapping[str, torch.Tensor], prefix: str, layers: list[int]) -> dict[str, torch.Tensor]:
    """Weights of the selected layers under their new indices, and all weights outside of `prefix`."""
    renumbered = {}
    for name, weight in weights.items():
        if name.startswith(prefix):
            layer, rest = name.removeprefix(prefix).split(".", 1)
            if int(layer) not in layers:
                continue
            name = f"{prefix}{layers.index(int(layer))}.{rest}"
        renumbered[name] = weight
    return renumbered
