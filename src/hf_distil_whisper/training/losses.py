"""The losses of distillation: KL divergence, pseudo-labels and hidden states (arXiv 2311.00430, sections 4 and D.2).

Knows tensors only: the plain formulas, and a fused one that never holds the logits of more than a chunk of tokens.
Tokens are counted where the label is not -100; sums leave the division to the caller.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

IGNORE_INDEX = -100
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


def kl_divergence_loss(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    labels: torch.Tensor,
    temperature: float = 2.0,
    reduction: str = "mean",
) -> torch.Tensor:
    """Divergence of the student's distribution from the teacher's, temperature² * KL(teacher ‖ student).

    Both distributions are softened by the temperature; its square keeps the gradient's size independent of it. The
    teacher is a constant: no gradient flows to its logits.

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
    _check_settings(temperature)
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"The student's logits have the shape {tuple(student_logits.shape)}, the teacher's "
            f"{tuple(teacher_logits.shape)}: KL compares them token by token, so both need the same decoder inputs "
            "and vocabulary."
        )
    mask, _ = _select(labels, student_logits.shape[-1])
    log_student = F.log_softmax(_precise(student_logits[mask]) / temperature, dim=-1)
    log_teacher = F.log_softmax(_precise(teacher_logits[mask].detach()) / temperature, dim=-1)
    losses = temperature**2 * (log_teacher.exp() * (log_teacher - log_student)).sum(-1)
    return _reduce(losses, mask, reduction)


def pseudo_label_loss(student_logits: torch.Tensor, labels: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """Cross-entropy of the student with the teacher's transcript, the pseudo-label.

    Args:
        student_logits (`torch.Tensor` of shape `(batch, length, vocab)`): may be half precision; summed in float32.
        labels (`torch.Tensor` of shape `(batch, length)`): the target of each position, -100 to leave it out.
        reduction (`str`, *optional*, defaults to `"mean"`): "mean", "sum" or "none", as in `kl_divergence_loss`.

    Returns:
        `torch.Tensor`: in nats; 0 if every label is -100.

    Raises:
        ValueError: on labels outside the vocabulary.
    """
    mask, targets = _select(labels, student_logits.shape[-1])
    losses = F.cross_entropy(_precise(student_logits[mask]), targets, reduction="none")
    return _reduce(losses, mask, reduction)


def hidden_state_mse_loss(
    student_states: Sequence[torch.Tensor],
    teacher_states: Sequence[torch.Tensor],
    labels: torch.Tensor,
    layer_map: Sequence[int] | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Squared distance of the student's decoder states from those of the paired teacher layers (equation 10).

    For each token the mean over the width, summed over the student's layers.

    Args:
        student_states (`Sequence[torch.Tensor]`): `decoder_hidden_states` of the student, that is the embeddings and
            one tensor of shape `(batch, length, width)` for each of its L' layers.
        teacher_states (`Sequence[torch.Tensor]`): the same for the L layers of the teacher; a constant.
        labels (`torch.Tensor` of shape `(batch, length)`): tokens labelled -100 are left out.
        layer_map (`Sequence[int]`, *optional*): entry l - 1 is the teacher state for student state l. By default
            round(l * L / L') (equation 11): the two layers of a student are paired with 16 and 32 of 32.
        reduction (`str`, *optional*, defaults to `"mean"`): "mean", "sum" or "none", as in `kl_divergence_loss`.

    Raises:
        ValueError: if the widths differ, or the map does not name a teacher state for each student layer.
    """
    num_student, num_teacher = len(student_states) - 1, len(teacher_states) - 1
    if layer_map is None:
        layer_map = [round(layer * num_teacher / num_student) for layer in range(1, num_student + 1)]
    if len(layer_map) != num_student or not all(0 <= layer <= num_teacher for layer in layer_map):
        raise ValueError(
            f"layer_map: expected {num_student} numbers from 0 to {num_teacher}, one teacher state for each layer of "
            f"the student, got {list(layer_map)}."
        )
    if student_states[0].shape[-1] != teacher_states[0].shape[-1]:
        raise ValueError(
            f"The student's states are {student_states[0].shape[-1]} wide, the teacher's "
            f"{teacher_states[0].shape[-1]}: states of different width cannot be compared. Set mse_weight to 0."
        )
    mask = labels != IGNORE_INDEX
    losses = [
        (_precise(state[mask]) - _precise(teacher_states[paired][mask].detach())).square().mean(-1)
        for state, paired in zip(student_states[1:], layer_map, strict=True)
    ]
    return _reduce(torch.stack(losses).sum(0), mask, reduction)


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

    Logits take (tokens x vocabulary) floats, several times over: 28 GiB for 32 windows at full length. Here the tokens
    that count are taken in chunks. The gradients are formed along with the loss, chunk by chunk, so that nothing of
    size (tokens, vocab) waits for the backward pass, which only scales them. Value and gradients are those of the
    plain formulas. Only `loss` carries gradients, to the student's states and head.

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
        chunk_size (`int`, *optional*, defaults to 256): tokens whose logits are held at once; about 24 bytes for each
            of them and each entry of the vocabulary.
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
    inputs = _Inputs.select(student_states, student_head, teacher_states, teacher_head, labels, kl_weight)
    _check_settings(temperature, chunk_size)
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction: expected 'mean' or 'sum', got {reduction!r}.")
    settings = _Settings(temperature, kl_weight, pl_weight, chunk_size, torch.is_grad_enabled())
    with torch.autocast(labels.device.type, enabled=False):
        sums = _FusedLoss.apply(inputs.student, student_head, inputs, settings)
    num_tokens = len(inputs.targets)
    loss, kl, pl = (value / max(num_tokens, 1) if reduction == "mean" else value for value in sums)
    return DistillationLoss(loss, kl, pl, num_tokens)


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
    """The two losses of each token, for evaluation: without gradients, in chunks as `fused_distillation_loss`.

    Args:
        student_states (`torch.Tensor` of shape `(batch, length, width)`): last decoder states, after the final norm.
        student_head (`torch.Tensor` of shape `(vocab, width)`): weight of the language-model head.
        teacher_states (`torch.Tensor` of shape `(batch, length, teacher width)`, *optional*): None without a teacher.
        teacher_head (`torch.Tensor` of shape `(vocab, teacher width)`, *optional*): as `teacher_states`.
        labels (`torch.Tensor` of shape `(batch, length)`): the target of each position, -100 to leave it out.
        temperature (`float`, *optional*, defaults to 1.0): of the KL divergence.
        chunk_size (`int`, *optional*, defaults to 256): tokens whose logits are held at once.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: KL divergence (0 without a teacher) and cross-entropy, each of shape
        `(batch, length)`, 0 where the label is -100.
    """
    inputs = _Inputs.select(student_states, student_head, teacher_states, teacher_head, labels, kl_weight=0.0)
    _check_settings(temperature, chunk_size)
    settings = _Settings(temperature, 0.0, 0.0, chunk_size, with_gradients=False)
    with torch.autocast(labels.device.type, enabled=False):
        chunks = list(_chunks(inputs, settings))
    nothing = _precise(inputs.student.new_zeros(0))
    kl = torch.cat([nothing, *(chunk.kl for chunk in chunks)])
    pl = torch.cat([nothing, *(chunk.pl for chunk in chunks)])
    return _reduce(kl, inputs.mask, "none"), _reduce(pl, inputs.mask, "none")


class _Settings(NamedTuple):
    temperature: float
    kl_weight: float
    pl_weight: float
    chunk_size: int
    with_gradients: bool


class _Inputs(NamedTuple):
    """The tokens that count, and the heads, in the dtype of the products: autocast's, else that of the heads."""

    mask: torch.Tensor
    targets: torch.Tensor
    student: torch.Tensor
    student_head: torch.Tensor
    teacher: torch.Tensor | None
    teacher_head: torch.Tensor | None

    @classmethod
    def select(
        cls,
        student_states: torch.Tensor,
        student_head: torch.Tensor,
        teacher_states: torch.Tensor | None,
        teacher_head: torch.Tensor | None,
        labels: torch.Tensor,
        kl_weight: float,
    ) -> "_Inputs":
        mask, targets = _select(labels, student_head.shape[0])
        device = labels.device.type
        mixed = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        head = student_head.detach().to(mixed or student_head.dtype)
        student = student_states[mask].to(head.dtype)
        if teacher_states is None or teacher_head is None:
            if kl_weight > 0:
                raise ValueError(
                    f"kl_weight is {kl_weight}, but there is no teacher: pass its states and head, or set kl_weight "
                    "to 0 to train on the labels alone."
                )
            return cls(mask, targets, student, head, None, None)
        if student_head.shape[0] != teacher_head.shape[0]:
            raise ValueError(
                f"The student's head has {student_head.shape[0]} tokens, the teacher's {teacher_head.shape[0]}: KL "
                "compares them token by token, so student and teacher need the same vocabulary."
            )
        teacher_head = teacher_head.detach().to(mixed or teacher_head.dtype)
        return cls(mask, targets, student, head, teacher_states.detach()[mask].to(teacher_head.dtype), teacher_head)


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
        logits = _precise(inputs.student[part] @ inputs.student_head.T)
        log_student = F.log_softmax(logits, dim=-1)
        index = inputs.targets[part, None]
        pl = -log_student.gather(1, index)[:, 0]
        kl, gradient = torch.zeros_like(pl), None
        if settings.with_gradients:  # of pl: student - one-hot
            gradient = log_student.exp_().scatter_add_(1, index, -torch.ones_like(pl)[:, None])
            gradient.mul_(settings.pl_weight)
        if inputs.teacher is not None and inputs.teacher_head is not None:
            log_student = F.log_softmax(logits / temperature, dim=-1)
            teacher_logits = _precise(inputs.teacher[part] @ inputs.teacher_head.T)
            log_teacher = F.log_softmax(teacher_logits / temperature, dim=-1)
            teacher = log_teacher.exp()
            kl = temperature**2 * (log_teacher.sub_(log_student).mul_(teacher)).sum(-1)
            if gradient is not None:  # of kl: T * (student - teacher), both softened
                gradient.add_(log_student.exp_().sub_(teacher), alpha=settings.kl_weight * temperature)
        yield _Chunk(part, kl, pl, gradient)


class _FusedLoss(torch.autograd.Function):
    """Sums of loss, KL and PL over the tokens; the gradients are ready when the forward pass is over."""

    @staticmethod
    def forward(
        ctx: Any, student: torch.Tensor, student_head: torch.Tensor, inputs: _Inputs, settings: _Settings
    ) -> tuple[torch.Tensor, ...]:
        inputs = inputs._replace(student=student.detach())
        for_states, for_head = (needed and settings.with_gradients for needed in ctx.needs_input_grad[:2])
        kl, pl = (_precise(student.new_zeros(())) for _ in range(2))
        states_gradient = torch.zeros_like(student) if for_states else None
        head_gradient = _precise(torch.zeros_like(student_head)) if for_head else None
        for chunk in _chunks(inputs, settings._replace(with_gradients=for_states or for_head)):
            kl, pl = kl + chunk.kl.sum(), pl + chunk.pl.sum()
            if chunk.gradient is None:
                continue
            gradient = chunk.gradient.to(student.dtype)
            if states_gradient is not None:
                states_gradient[chunk.part] = gradient @ inputs.student_head
            if head_gradient is not None:
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


def _select(labels: torch.Tensor, vocab_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mask of the tokens that count, and their labels."""
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


def _reduce(losses: torch.Tensor, mask: torch.Tensor, reduction: str) -> torch.Tensor:
    if reduction == "mean":
        return losses.sum() / max(len(losses), 1)
    if reduction == "sum":
        return losses.sum()
    if reduction == "none":
        return losses.new_zeros(mask.shape).masked_scatter(mask, losses)
    raise ValueError(f"reduction: expected 'mean', 'sum' or 'none', got {reduction!r}.")


def _precise(values: torch.Tensor) -> torch.Tensor:
    """At least float32: sums over a vocabulary do not fit half precision."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _check_settings(temperature: float, chunk_size: int = 1) -> None:
    if temperature <= 0:
        raise ValueError(f"temperature: expected a number above 0 (2 in the paper), got {temperature}.")
    if chunk_size < 1:
        raise ValueError(f"chunk_size: expected at least 1 token, got {chunk_size}; set --loss_chunk_size.")
