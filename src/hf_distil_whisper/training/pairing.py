"""Student and teacher as a pair: what is frozen, whether one encoder serves both, what does not go together.

Knows models and weights; batches, losses and the Trainer are left to `trainer`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import WhisperForConditionalGeneration
from transformers.utils import logging

from hf_distil_whisper.training.fused_loss import TopKLogits
from hf_distil_whisper.training.training_args import DistillationTrainingArguments

logger = logging.get_logger(__name__)

_ENCODER_SHAPE = (
    "d_model",
    "encoder_layers",
    "encoder_attention_heads",
    "encoder_ffn_dim",
    "activation_function",
    "num_mel_bins",
    "max_source_positions",
)


class TeacherOutput(NamedTuple):
    """What the teacher says of a batch; all None without a teacher.

    A teacher that was asked beforehand, by a cache, only says `kept`.

    Args:
        states (`Tensor`, *optional*): last decoder states, (batch, length, width).
        head (`Tensor`, *optional*): weight of the language-model head, (vocab, width).
        hidden_states (`tuple[Tensor, ...]`, *optional*): of all decoder layers, where MSE asks for them.
        kept (`TopKLogits`, *optional*): its likeliest tokens at each label that counts.
    """

    states: Tensor | None = None
    head: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    kept: TopKLogits | None = None


def check_pair(
    student: WhisperForConditionalGeneration,
    teacher: WhisperForConditionalGeneration | None,
    args: DistillationTrainingArguments,
) -> None:
    """Makes sure that the settings ask nothing of the two models that they cannot give.

    Args:
        student (`WhisperForConditionalGeneration`): the model to train.
        teacher (`WhisperForConditionalGeneration`, *optional*): None to train on labels alone.
        args (`DistillationTrainingArguments`): weights of the losses, and what is frozen.

    Raises:
        ValueError: names the flag or argument to change.
    """
    for name, model in (("model", student), ("teacher_model", teacher)):
        if model is not None and not isinstance(model, WhisperForConditionalGeneration):
            raise ValueError(f"{name}: expected a WhisperForConditionalGeneration, got {type(model).__name__}.")
    if teacher is student:
        raise ValueError(
            "model and teacher_model are the same object: freezing the teacher would freeze the student. Make the "
            "student with create_student, or pass copy.deepcopy(model) as teacher_model."
        )
    if teacher is None and (args.kl_weight > 0 or args.mse_weight > 0):
        raise ValueError(
            f"There is no teacher_model, but --kl_weight is {args.kl_weight} and --mse_weight {args.mse_weight}: both "
            "compare with a teacher. Pass one, or set both to 0 to train on the labels alone."
        )
    if teacher is not None and args.mse_weight > 0 and student.config.d_model != teacher.config.d_model:
        raise ValueError(
            f"--mse_weight is {args.mse_weight}, but the student's states are {student.config.d_model} wide and the "
            f"teacher's {teacher.config.d_model}: states of different width cannot be compared. Set --mse_weight 0; "
            "KL and pseudo-labels work with any width."
        )
    if args.n_gpu > 1:
        raise ValueError(
            f"One process sees {args.n_gpu} GPUs and would split each batch between them (DataParallel), which is not "
            "supported. Start one process per GPU: accelerate launch or torchrun --nproc_per_node."
        )
    if args.freeze_encoder and student.config.apply_spec_augment:
        logger.warning(
            "The student's config asks for SpecAugment (apply_spec_augment), which has no effect on a frozen encoder: "
            "the teacher would see masked speech too. Set --freeze_encoder false to use it."
        )


def freeze(student: WhisperForConditionalGeneration, args: DistillationTrainingArguments) -> list[nn.Module]:
    """Takes the gradients from the parts that `args` freeze.

    Returns:
        `list[nn.Module]`: those to keep in eval mode, so that nothing is dropped in what cannot adapt to it.
    """
    frozen: list[nn.Module] = []
    if args.freeze_encoder:
        frozen.append(student.model.encoder)
    if args.freeze_decoder:
        frozen.append(student.model.decoder)
    for part in frozen:
        part.requires_grad_(False)
    if args.freeze_embed_positions:
        student.model.decoder.embed_positions.requires_grad_(False)
    student.proj_out.requires_grad_(True)  # the head, tied to the token embeddings, is always trained
    return frozen


def same_encoder(student: WhisperForConditionalGeneration, teacher: WhisperForConditionalGeneration) -> bool:
    """Whether both encoders give the same states: same shape and, weight by weight, same numbers.

    Weights of different precision are compared in the lower one: a teacher in half precision has the encoder of the
    float32 student that was made from it.

    Args:
        student (`WhisperForConditionalGeneration`): one of the models.
        teacher (`WhisperForConditionalGeneration`): the other one; may lie on another device.
    """
    if any(getattr(student.config, name) != getattr(teacher.config, name) for name in _ENCODER_SHAPE):
        return False
    ours, theirs = student.model.encoder.state_dict(), teacher.model.encoder.state_dict()
    return ours.keys() == theirs.keys() and all(_same(weight, theirs[name]) for name, weight in ours.items())


def _same(ours: Tensor, theirs: Tensor) -> bool:
    lower = min(ours.dtype, theirs.dtype, key=lambda dtype: dtype.itemsize)
    return torch.equal(ours.to(lower), theirs.to(ours.device, lower))


@contextmanager
def as_forward(module: nn.Module, function: Callable) -> Iterator[None]:
    """Lets whatever is wrapped around `module` run `function` as its forward pass.

    DDP, FSDP and the like only take care of gradients and weights inside the wrapped forward pass. The module's own
    one would form the logits of all tokens, which the fused loss avoids.

    Args:
        module (`nn.Module`): inside the wrapper, or not wrapped at all.
        function (`Callable`): gets the wrapper's arguments.
    """
    before = vars(module).get("forward")
    module.forward = function
    try:
        yield
    finally:
        del module.forward
        if before is not None:  # mixed precision puts its own forward pass there
            module.forward = before
