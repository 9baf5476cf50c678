"""How much memory the loss of one batch takes: the fused one beside the plain one, each in a process of its own.

Random states and heads; the plain loss forms the logits of all positions, as the reference recipe does.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from hf_distil_whisper.training.fused_loss import fused_distillation_loss
from own_process import (
    in_own_process,
    peak_bytes,
    resident_bytes,
)


def loss_memory(rows: int = 8, length: int = 448, vocabulary: int = 51_866, width: int = 1280) -> dict[str, int]:
    """Bytes that loss and gradients take beyond states, heads and labels, on a CPU in float32.

    Args:
        rows (`int`, *optional*, defaults to 8): of the batch.
        length (`int`, *optional*, defaults to 448): positions, of which all count.
        vocabulary (`int`, *optional*, defaults to 51866): of large-v3.
        width (`int`, *optional*, defaults to 1280): of large-v3.

    Returns:
        `dict[str, int]`: for "plain" and "fused".
    """
    sizes = (rows, length, vocabulary, width)
    return {name: int(in_own_process(measure, sizes)[0]) for name, measure in (("plain", _plain), ("fused", _fused))}


def _plain(sizes: Sequence[int]) -> float:
    states, head, teacher_states, teacher_head, labels = _inputs(sizes)
    before = resident_bytes()
    logits = states @ head.T
    with torch.no_grad():
        teacher_logits = teacher_states @ teacher_head.T
    divergence = F.kl_div(F.log_softmax(logits / 2, -1), F.softmax(teacher_logits / 2, -1), reduction="none") * 4
    loss = 0.8 * divergence.sum() / labels.numel() + F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    loss.backward()
    return float(peak_bytes() - before)


def _fused(sizes: Sequence[int]) -> float:
    states, head, teacher_states, teacher_head, labels = _inputs(sizes)
    before = resident_bytes()
    fused_distillation_loss(states, head, teacher_states, teacher_head, labels).loss.backward()
    return float(peak_bytes() - before)


def _inputs(sizes: Sequence[int]) -> tuple[torch.Tensor, ...]:
    rows, length, vocabulary, width = sizes
    states, teacher_states = (torch.randn(rows, length, width) for _ in range(2))
    head, teacher_head = (torch.randn(vocabulary, width).div_(width**0.5) for _ in range(2))
    labels = torch.randint(vocabulary, (rows, length))
    return states.requires_grad_(), head.requires_grad_(), teacher_states, teacher_head, labels
