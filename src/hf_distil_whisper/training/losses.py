"""The losses of distillation as plain formulas: KL divergence, pseudo-labels and hidden states (arXiv 2311.00430).

They need the logits of all tokens; `fused_loss` computes the same values and gradients without them.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

IGNORE_INDEX = -100


def kl_divergence_loss(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    labels: torch.Tensor,
    temperature: float = 2.0,
    reduction: str = "mean",
) -> torch.Tensor:
    """Divergence of the student's distribution from the teacher's, temperature² * KL(teacher ‖ student) (section 4).

    Both distributions are softened by the temperature; its square keeps the gradient's size independent of it. The
    teacher is a constant: no gradient flows to its logits. When to use: for analysis and for short sequences; a
    training step with Whisper's vocabulary needs [`fused_distillation_loss`].

    Args:
        student_logits (`torch.Tensor` of shape `(batch, length, vocab)`): may be half precision; summed in float32.
        teacher_logits (`torch.Tensor` of shape `(batch, length, vocab)`): for the same decoder inputs.
        labels (`torch.Tensor` of shape `(batch, length)`): tokens labelled -100 (prompt, padding) are left out.
        temperature (`float`, *optional*, defaults to 2.0): 2 in training, 1 in evaluation.
        reduction (`str`, *optional*, defaults to `"mean"`): "mean" over the tokens, "sum", or "none" for a tensor of
            shape `(batch, length)` with 0 where the label is -100.

    Returns:
        `torch.Tensor`: in nats; 0 if every label is -100.

    Raises:
        ValueError: on labels outside the vocabulary, different vocabularies or a temperature of 0 or less.
    """
    check_temperature(temperature)
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"The student's logits have the shape {tuple(student_logits.shape)}, the teacher's "
            f"{tuple(teacher_logits.shape)}: KL compares them token by token, so both need the same decoder inputs "
            "and vocabulary."
        )
    mask, _ = select_tokens(labels, student_logits.shape[-1])
    log_student = F.log_softmax(precise(student_logits[mask]) / temperature, dim=-1)
    log_teacher = F.log_softmax(precise(teacher_logits[mask].detach()) / temperature, dim=-1)
    losses = temperature**2 * (log_teacher.exp() * (log_teacher - log_student)).sum(-1)
    return reduce_losses(losses, mask, reduction)


def pseudo_label_loss(student_logits: torch.Tensor, labels: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """Cross-entropy of the student with the teacher's transcript, the pseudo-label (section 4).

    When to use: alone as the baseline without a teacher (Table 21), or with [`kl_divergence_loss`] as in equation 12.

    Args:
        student_logits (`torch.Tensor` of shape `(batch, length, vocab)`): may be half precision; summed in float32.
        labels (`torch.Tensor` of shape `(batch, length)`): the target of each position, -100 to leave it out.
        reduction (`str`, *optional*, defaults to `"mean"`): "mean", "sum" or "none", as in `kl_divergence_loss`.

    Returns:
        `torch.Tensor`: in nats; 0 if every label is -100.

    Raises:
        ValueError: on labels outside the vocabulary.
    """
    mask, targets = select_tokens(labels, student_logits.shape[-1])
    losses = F.cross_entropy(precise(student_logits[mask]), targets, reduction="none")
    return reduce_losses(losses, mask, reduction)


def hidden_state_mse_loss(
    student_states: Sequence[torch.Tensor],
    teacher_states: Sequence[torch.Tensor],
    labels: torch.Tensor,
    layer_map: Sequence[int] | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Squared distance of the student's decoder states from those of the paired teacher layers (equation 10).

    For each token the mean over the width, summed over the student's layers. When to use: only to repeat Table 21,
    where it gained nothing; student and teacher must have the same width.

    Args:
        student_states (`Sequence[torch.Tensor]`): `decoder_hidden_states` of the student, that is the embeddings and
            one tensor of shape `(batch, length, width)` for each of its L' layers.
        teacher_states (`Sequence[torch.Tensor]`): the same for the L layers of the teacher; a constant.
        labels (`torch.Tensor` of shape `(batch, length)`): tokens labelled -100 are left out.
        layer_map (`Sequence[int]`, *optional*): entry l - 1 is the teacher state for student state l. By default
            round(l * L / L') (equation 11): the two layers of a student are paired with 16 and 32 of 32.
        reduction (`str`, *optional*, defaults to `"mean"`): "mean", "sum" or "none", as in `kl_divergence_loss`.

    Returns:
        `torch.Tensor`: 0 if every label is -100.

    Raises:
        ValueError: if the widths differ, or the map does not name a teacher state for each student layer.
    """
    num_student, num_teacher = len(student_states) - 1, len(teacher_states) - 1
    if layer_map is None:
        layer_map = paired_layers(num_student, num_teacher)
    if len(layer_map) != num_student or not all(0 <= layer <= num_teacher for layer in layer_map):
        raise ValueError(
            f"layer_map: expected {num_student} numbers from 0 to {num_teacher}, one teacher state for each layer of "
            f"the student, got {list(layer_map)}."
        )
    if student_states[0].shape[-1] != teacher_states[0].shape[-1]:
        raise ValueError(
            f"The student's hidden states are {student_states[0].shape[-1]} wide, the teacher's "
            f"{teacher_states[0].shape[-1]}: different widths cannot be compared. Set mse_weight to 0."
        )
    mask = labels != IGNORE_INDEX
    losses = [
        (precise(state[mask]) - precise(teacher_states[paired][mask].detach())).square().mean(-1)
        for state, paired in zip(student_states[1:], layer_map, strict=True)
    ]
    return reduce_losses(torch.stack(losses).sum(0), mask, reduction)


def paired_layers(num_student: int, num_teacher: int) -> list[int]:
    """The teacher state that is compared with each layer of the student, the last one with the last (equation 11)."""
    return [round(layer * num_teacher / num_student) for layer in range(1, num_student + 1)]


def select_tokens(labels: torch.Tensor, vocab_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mask (batch, length) of the labelled tokens, and their labels (tokens,)."""
    mask = labels != IGNORE_INDEX
    targets = labels[mask]
    if len(targets) > 0:
        low, high = (int(bound) for bound in targets.aminmax())
        if low < 0 or high >= vocab_size:
            raise ValueError(
                f"labels: expected tokens from 0 to {vocab_size - 1}, or {IGNORE_INDEX} to leave a position out, got "
                f"{low if low < 0 else high}. The labels come from a tokenizer with another vocabulary than the model."
            )
    return mask, targets


def reduce_losses(losses: torch.Tensor, mask: torch.Tensor, reduction: str) -> torch.Tensor:
    """Reduces the `losses` of the tokens in `mask` to their mean or sum, or ("none") scatters them to its shape."""
    if reduction == "mean":
        return losses.sum() / max(len(losses), 1)
    if reduction == "sum":
        return losses.sum()
    if reduction == "none":
        return losses.new_zeros(mask.shape).masked_scatter(mask, losses)
    raise ValueError(f"reduction: expected 'mean', 'sum' or 'none', got {reduction!r}.")


def precise(values: torch.Tensor) -> torch.Tensor:
    """Casts to at least float32: half precision is too narrow for sums over a vocabulary."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def check_temperature(temperature: float) -> None:
    """Raises a `ValueError` on a temperature of 0 or less."""
    if temperature <= 0:
        raise ValueError(f"temperature: expected a number above 0 (2 in the paper), got {temperature}.")
