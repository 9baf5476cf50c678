"""The training step of the reference recipe, as a baseline: full logits of both models, labels padded to one length.

What `training_speed` measures this library beside, and what the fast step must equal.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import WhisperForConditionalGeneration

from hf_distil_whisper.training.losses import IGNORE_INDEX


def plain_loss(
    student: WhisperForConditionalGeneration,
    teacher: WhisperForConditionalGeneration,
    batch: dict[str, Tensor],
    *,
    temperature: float = 2.0,
    kl_weight: float = 0.8,
    pl_weight: float = 1.0,
) -> Tensor:
    """Equation 12 written down plainly: the shared encoder once, then both decoders with the logits of all positions.

    As in the reference scripts, both models compute the cross-entropy of their logits, the teacher's for nothing, and
    the divergence of padding is computed and then left out.

    Args:
        student (`WhisperForConditionalGeneration`): its frozen encoder serves both.
        teacher (`WhisperForConditionalGeneration`): of the same vocabulary.
        batch (`dict[str, Tensor]`): `input_features`, `decoder_input_ids` and `labels`, -100 where nothing counts.
        temperature (`float`, *optional*, defaults to 2.0): of the KL divergence.
        kl_weight (`float`, *optional*, defaults to 0.8): of the KL divergence.
        pl_weight (`float`, *optional*, defaults to 1.0): of the cross-entropy with the labels.

    Returns:
        `Tensor`: mean over the tokens, with gradients.
    """
    given = {name: batch[name] for name in ("decoder_input_ids", "labels")}
    with torch.no_grad():
        states = student.model.encoder(batch["input_features"].to(student.dtype))
        theirs = teacher(encoder_outputs=states, **given)
    ours = student(encoder_outputs=states, **given)
    log_student = F.log_softmax(ours.logits / temperature, dim=-1)
    teacher_share = F.softmax(theirs.logits / temperature, dim=-1)
    divergence = F.kl_div(log_student, teacher_share, reduction="none") * temperature**2
    counts = batch["labels"] != IGNORE_INDEX
    kl = (divergence * counts[..., None]).sum() / counts.sum()
    return kl_weight * kl + pl_weight * ours.loss


def padded(batch: dict[str, Tensor], length: int, pad_token: int) -> dict[str, Tensor]:
    """The same batch with decoder inputs and labels of `length` positions, as the reference scripts pad it."""
    more = length - batch["labels"].shape[1]
    return {
        **batch,
        "decoder_input_ids": F.pad(batch["decoder_input_ids"], (0, more), value=pad_token),
        "labels": F.pad(batch["labels"], (0, more), value=IGNORE_INDEX),
    }
