"""The weighted losses of one batch, from what student and teacher say of it.

Joins the formulas of `losses` and `fused_loss` as the training arguments weigh them; knows neither models nor Trainer.
"""

import math
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import Seq2SeqModelOutput

from hf_distil_whisper.training.fused_loss import (
    distillation_token_losses,
    fused_distillation_loss,
    top_k_distillation_loss,
)
from hf_distil_whisper.training.losses import IGNORE_INDEX, hidden_state_mse_loss
from hf_distil_whisper.training.pairing import TeacherOutput
from hf_distil_whisper.training.training_args import DistillationTrainingArguments


def batch_losses(
    student: Seq2SeqModelOutput,
    head: Tensor,
    teacher: TeacherOutput,
    labels: Tensor,
    args: DistillationTrainingArguments,
) -> tuple[Tensor, Tensor]:
    """The loss of equation 12 and its parts, for training.

    Args:
        student (`Seq2SeqModelOutput`): last decoder states, (batch, length, width), and all where MSE asks for them.
        head (`Tensor`): weight of the student's language-model head.
        teacher (`TeacherOutput`): for the same decoder inputs.
        labels (`Tensor`): (batch, length), -100 where nothing counts.
        args (`DistillationTrainingArguments`): weights and temperature.

    Returns:
        `tuple[Tensor, Tensor]`: the loss, and without gradient KL, PL and MSE, (3,): sums over the batch's tokens.
    """
    settings: dict[str, Any] = {
        "temperature": args.temperature,
        "kl_weight": args.kl_weight,
        "pl_weight": args.pl_weight,
        "chunk_size": args.loss_chunk_size,
        "reduction": "sum",
    }
    ours = student.last_hidden_state, head
    if teacher.kept is not None:
        fused = top_k_distillation_loss(*ours, teacher.kept, labels, **settings)
    else:
        fused = fused_distillation_loss(*ours, teacher.states, teacher.head, labels, **settings)
    loss, mse = fused.loss, torch.zeros_like(fused.kl)
    if teacher.hidden_states is not None:
        mse = hidden_state_mse_loss(student.decoder_hidden_states, teacher.hidden_states, labels, reduction="sum")
        loss = loss + args.mse_weight * mse
    return loss, torch.stack([fused.kl, fused.pl, mse.detach()])


def row_losses(
    student: Seq2SeqModelOutput,
    head: Tensor,
    teacher: TeacherOutput,
    labels: Tensor,
    args: DistillationTrainingArguments,
) -> Tensor:
    """Loss at temperature 1, KL, PL, MSE and the number of tokens of each row, for evaluation.

    Args:
        student (`Seq2SeqModelOutput`): as for [`batch_losses`], and so are the others.
        head (`Tensor`): weight of the student's language-model head.
        teacher (`TeacherOutput`): for the same decoder inputs.
        labels (`Tensor`): (batch, length).
        args (`DistillationTrainingArguments`): weights.

    Returns:
        `Tensor`: (batch, 5), sums over the row's tokens.
    """
    kl, pl = distillation_token_losses(
        student.last_hidden_state,
        head,
        teacher.states,
        teacher.head,
        labels,
        temperature=1.0,
        chunk_size=args.loss_chunk_size,
    )
    mse = torch.zeros_like(pl)
    if teacher.hidden_states is not None:
        mse = hidden_state_mse_loss(student.decoder_hidden_states, teacher.hidden_states, labels, reduction="none")
    loss = args.kl_weight * kl + args.pl_weight * pl + args.mse_weight * mse
    return torch.stack([values.sum(1) for values in (loss, kl, pl, mse, (labels != IGNORE_INDEX).to(pl))], dim=1)


def check_finite(parts: Tensor) -> None:
    """Stops a training before the gradients of a broken batch destroy the student's weights.

    Args:
        parts (`Tensor`): KL, PL and MSE, (3,). Waits for the device, as the Trainer's own check of the loss does.

    Raises:
        ValueError: if one is not a finite number.
    """
    kl, pl, mse = parts.tolist()
    if not math.isfinite(pl):
        raise ValueError(
            f"The cross-entropy of student and labels is {pl}: the student's weights or states are no numbers any "
            "more. Go on from an earlier checkpoint with a lower --learning_rate, or with --bf16 instead of --fp16."
        )
    if not math.isfinite(kl + mse):
        raise ValueError(
            f"The teacher's states are no numbers (KL {kl}, MSE {mse}) and would destroy the student's weights. Half "
            "precision may be too narrow for it: set --bf16 instead of --fp16. If it is the same without, its "
            "checkpoint is damaged: score it alone with `hf-distil-whisper evaluate`."
        )
