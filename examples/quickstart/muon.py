"""Muon in float32 for the matrices of a Whisper's layers, AdamW for all else: further in as many steps than AdamW."""

from collections.abc import Iterable
from typing import Any

import torch

COEFFICIENTS = (3.4445, -4.775, 2.0315)
"""Of the quintic Newton-Schulz iteration (Jordan et al., 2024, "Muon: An optimizer for hidden layers")."""

BETAS = (0.9, 0.98)


def split_parameters(named: Iterable[tuple[str, torch.nn.Parameter]]) -> tuple[list, list]:
    """Matrices of the layers, and everything else: embeddings, norms, biases, convolutions."""
    matrices, others = [], []
    for name, parameter in named:
        (matrices if "layers." in name and parameter.ndim == 2 else others).append(parameter)
    return matrices, others


def orthogonal(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The matrix with its singular values drawn close to 1."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / wide.norm().clamp(min=1e-7)
    first, third, fifth = COEFFICIENTS
    for _ in range(steps):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=third, alpha=fifth), wide, beta=first)
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are made orthogonal; the learning rate is that of AdamW.

    A group with `matrices=False` takes AdamW's own step instead. `torch.optim.Muon` works in bfloat16, which a CPU
    without AMX emulates sixty times slower than float32.
    """

    def __init__(self, params: Any, lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        settings = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "matrices": True}
        super().__init__(params, settings)

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """One step with Nesterov's momentum and decoupled weight decay."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                update = self._orthogonal_update if group["matrices"] else self._adam_update
                parameter.add_(update(parameter, group), alpha=-group["lr"])

    def _orthogonal_update(self, parameter: torch.Tensor, group: dict) -> torch.Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
        # The root mean square of AdamW's updates is about 0.2.
        scale = 0.2 * max(parameter.shape) ** 0.5
        return scale * orthogonal(parameter.grad.lerp(state["momentum"], group["momentum"]))

    def _adam_update(self, parameter: torch.Tensor, group: dict) -> torch.Tensor:
        state = self.state[parameter]
        if not state:
            state |= {"step": 0, "mean": torch.zeros_like(parameter), "square": torch.zeros_like(parameter)}
        state["step"] += 1
        state["mean"].lerp_(parameter.grad, 1 - BETAS[0])
        state["square"].lerp_(parameter.grad.square(), 1 - BETAS[1])
        mean = state["mean"] / (1 - BETAS[0] ** state["step"])
        square = state["square"] / (1 - BETAS[1] ** state["step"])
        return mean / (square.sqrt() + 1e-8)
