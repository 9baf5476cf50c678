"""Distillation losses from decoder hidden states, a chunk of tokens at a time, without the logits of all tokens.

The gradients are computed in closed form along with the loss. The plain formulas are in `losses`.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from hf_distil_whisper.training.losses import check_temperature, precise, reduce_losses, select_tokens

DEFAULT_CHUNK_SIZE = 256


class DistillationLoss(NamedTuple):
    """What `fused_distillation_loss` returns.

    Args:
        loss (`torch.Tensor`): kl_weight * kl + pl_weight * pl; the part that carries gradients.
        kl (`torch.Tensor`): temperature² * KL(teacher ‖ student), without gradient; 0 without a teacher.
        pl (`torch.Tensor`): cross-entropy with the labels, without gradient.
        num_tokens (`int`): labels that are not -100.
    """

    loss: torch.Tensor
    kl: torch.Tensor
    pl: torch.Tensor
    num_tokens: int


def fused_distillation_loss(
    student_states: torch.Tensor,
    student_head: torch.Tensor,
    teacher_states: torch.Tensor | None,
    teacher_head: torch.Tensor | None,
    labels: torch.Tensor,
    *,
    temperature: float = 2.0,
    kl_weight: float = 0.8,
    pl_weight: float = 1.0,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    reduction: str = "mean",
) -> DistillationLoss:
    """`kl_divergence_loss` and `pseudo_label_loss` from decoder states, without ever holding all logits.

    Logits take (tokens x vocabulary) floats, several times over: 28 GiB for 32 windows at full length. Here only the
    labelled tokens get logits, in chunks, and the gradients are computed along with the loss, so that nothing of size
    (tokens, vocab) is saved for the backward pass, which only scales them. Value and gradients are those of the plain
    formulas. Only `loss` carries gradients, to the student's states and head. When to use: in every training step.

    Args:
        student_states (`torch.Tensor` of shape `(batch, length, width)`): last decoder states, after the final norm.
        student_head (`torch.Tensor` of shape `(vocab, width)`): weight of the language-model head.
        teacher_states (`torch.Tensor` of shape `(batch, length, teacher width)`, *optional*): for the same decoder
            inputs; None where `kl_weight` is 0.
        teacher_head (`torch.Tensor` of shape `(vocab, teacher width)`, *optional*): as `teacher_states`.
        labels (`torch.Tensor` of shape `(batch, length)`): the target of each position, -100 to leave it out.
        temperature (`float`, *optional*, defaults to 2.0): of the KL divergence.
        kl_weight (`float`, *optional*, defaults to 0.8): weight of KL in equation 12.
        pl_weight (`float`, *optional*, defaults to 1.0): weight of PL in equation 12.
        chunk_size (`int`, *optional*, defaults to 256): tokens whose logits are in memory at once, about 24 bytes for
            each entry of the vocabulary.
        reduction (`str`, *optional*, defaults to `"mean"`): "mean" over the tokens, or "sum".

    Returns:
        `DistillationLoss`: all zero if every label is -100.

    Raises:
        ValueError: on labels outside the vocabulary, different vocabularies, no teacher for the KL divergence, or a
            chunk size or temperature of 0 or less.

    Example:
        ```python
        out = fused_distillation_loss(states, student.proj_out.weight, teacher_states, teacher.proj_out.weight, labels)
        out.loss.backward()
        ```
    """
    settings = _Settings(temperature, kl_weight, pl_weight, chunk_size, torch.is_grad_enabled())
    inputs = _Inputs.select(student_states, student_head, labels, settings)
    inputs = inputs.with_teacher(teacher_states, teacher_head, kl_weight)
    return _summed(student_head, inputs, settings, reduction)


@torch.no_grad()
def distillation_token_losses(
    student_states: torch.Tensor,
    student_head: torch.Tensor,
    teacher_states: torch.Tensor | None,
    teacher_head: torch.Tensor | None,
    labels: torch.Tensor,
    *,
    temperature: float = 1.0,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
) -> tuple[torch.Tensor, torch.Tensor]:
    """KL divergence and cross-entropy of each token, without gradient, in chunks as [`fused_distillation_loss`].

    When to use: in evaluation, where losses are summed by row.

    Arguments are those of [`fused_distillation_loss`]; `temperature` is 1 by default.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: KL divergence (0 without a teacher) and cross-entropy, each of shape
        `(batch, length)`, 0 where the label is -100.
    """
    settings = _Settings(temperature, 0.0, 0.0, chunk_size, with_gradients=False)
    inputs = _Inputs.select(student_states, student_head, labels, settings)
    inputs = inputs.with_teacher(teacher_states, teacher_head, kl_weight=0.0)
    with torch.autocast(labels.device.type, enabled=False):
        chunks = list(_chunks(inputs, settings))
    nothing = precise(inputs.student.new_zeros(0))
    kl = torch.cat([nothing, *(chunk.kl for chunk in chunks)])
    pl = torch.cat([nothing, *(chunk.pl for chunk in chunks)])
    return reduce_losses(kl, inputs.mask, "none"), reduce_losses(pl, inputs.mask, "none")


class _Settings(NamedTuple):
    temperature: float
    kl_weight: float
    pl_weight: float
    chunk_size: int
    with_gradients: bool


class _Inputs(NamedTuple):
    """The labelled tokens and the head, in the dtype of the matrix products: autocast's, else that of the head."""

    mask: torch.Tensor
    targets: torch.Tensor
    student: torch.Tensor
    student_head: torch.Tensor
    teacher: torch.Tensor | None = None
    teacher_head: torch.Tensor | None = None

    @classmethod
    def select(cls, states: torch.Tensor, head: torch.Tensor, labels: torch.Tensor, settings: _Settings) -> "_Inputs":
        check_temperature(settings.temperature)
        if settings.chunk_size < 1:
            raise ValueError(
                f"chunk_size: expected at least 1 token, got {settings.chunk_size}; set --loss_chunk_size."
            )
        mask, targets = select_tokens(labels, head.shape[0])
        head = head.detach().to(_product_dtype(head))
        # Prompt and padding get no logits: (tokens, width) in place of (batch, length, width).
        return cls(mask, targets, states[mask].to(head.dtype), head)

    def with_teacher(self, states: torch.Tensor | None, head: torch.Tensor | None, kl_weight: float) -> "_Inputs":
        """The same with the teacher's states and head, if there is a teacher."""
        if states is None or head is None:
            if kl_weight > 0:
                raise ValueError(
                    f"kl_weight is {kl_weight}, but there is no teacher: pass its states and head, or set kl_weight "
                    "to 0 to train on the labels alone."
                )
            return self
        if len(self.student_head) != len(head):
            raise ValueError(
                f"The student's head has {len(self.student_head)} tokens, the teacher's {len(head)}: KL "
                "compares them token by token, so student and teacher need the same vocabulary."
            )
        head = head.detach().to(_product_dtype(head))
        return self._replace(teacher=states.detach()[self.mask].to(head.dtype), teacher_head=head)


def _product_dtype(head: torch.Tensor) -> torch.dtype:
    device = head.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else head.dtype


class _Chunk(NamedTuple):
    part: slice
    kl: torch.Tensor
    pl: torch.Tensor
    gradient: torch.Tensor | None


def _chunks(inputs: _Inputs, settings: _Settings) -> Iterator[_Chunk]:
    """Losses of each token, and the gradient of their weighted sum with respect to the student's logits."""
    temperature = settings.temperature
    for start in range(0, len(inputs.targets), settings.chunk_size):
        part = slice(start, start + settings.chunk_size)
        logits = precise(inputs.student[part] @ inputs.student_head.T)  # (chunk, vocab)
        log_student = F.log_softmax(logits, dim=-1)
        index = inputs.targets[part, None]
        pl = -log_student.gather(1, index)[:, 0]
        kl, gradient = torch.zeros_like(pl), None
        # In place, here and below: each matrix of (chunk, vocab) in float32 takes 53 MB with 256 tokens.
        if settings.with_gradients:  # of pl: student - one-hot
            gradient = log_student.exp_().scatter_add_(1, index, -torch.ones_like(pl)[:, None])
            gradient.mul_(settings.pl_weight)
        if inputs.teacher is not None and inputs.teacher_head is not None:
            softened = F.log_softmax(logits.div_(temperature), dim=-1)
            del logits
            teacher_logits = precise(inputs.teacher[part] @ inputs.teacher_head.T)
            log_teacher = F.log_softmax(teacher_logits.div_(temperature), dim=-1)
            del teacher_logits
            teacher = log_teacher.exp()
            kl = temperature**2 * (log_teacher.sub_(softened).mul_(teacher)).sum(-1)
            if gradient is not None:  # of kl: T * (student - teacher), both softened
                gradient.add_(softened.exp_().sub_(teacher), alpha=settings.kl_weight * temperature)
        yield _Chunk(part, kl, pl, gradient)


def _summed(student_head: torch.Tensor, inputs: _Inputs, settings: _Settings, reduction: str) -> DistillationLoss:
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction: expected 'mean' or 'sum', got {reduction!r}.")
    with torch.autocast(inputs.mask.device.type, enabled=False):
        sums = _FusedLoss.apply(inputs.student, student_head, inputs, settings)
    num_tokens = len(inputs.targets)
    loss, kl, pl = (value / max(num_tokens, 1) if reduction == "mean" else value for value in sums)
    return DistillationLoss(loss, kl, pl, num_tokens)


class _FusedLoss(torch.autograd.Function):
    """Sums of loss, KL and PL over the tokens; computes the gradients in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, student: torch.Tensor, student_head: torch.Tensor, inputs: _Inputs, settings: _Settings
    ) -> tuple[torch.Tensor, ...]:
        inputs = inputs._replace(student=student.detach())
        for_states, for_head = (needed and settings.with_gradients for needed in ctx.needs_input_grad[:2])
        kl, pl = (precise(student.new_zeros(())) for _ in range(2))
        states_gradient = torch.zeros_like(student) if for_states else None
        head_gradient = precise(torch.zeros_like(student_head)) if for_head else None
        for chunk in _chunks(inputs, settings._replace(with_gradients=for_states or for_head)):
            kl, pl = kl + chunk.kl.sum(), pl + chunk.pl.sum()
            if chunk.gradient is None:
                continue
            gradient = chunk.gradient.to(student.dtype)
            if states_gradient is not None:
                states_gradient[chunk.part] = gradient @ inputs.student_head
            if head_gradient is not None:
                if head_gradient.dtype == gradient.dtype:  # without a second matrix of the head's size
                    head_gradient.addmm_(gradient.T, inputs.student[chunk.part])
                else:
                    head_gradient += gradient.T @ inputs.student[chunk.part]
        if head_gradient is not None:
            head_gradient = head_gradient.to(student_head.dtype)
        ctx.save_for_backward(states_gradient, head_gradient)
        ctx.mark_non_differentiable(kl, pl)
        return settings.kl_weight * kl + settings.pl_weight * pl, kl, pl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return *(None if gradient is None else gradient * scale for gradient in ctx.saved_tensors), None, None
