"""Muon in float32 for the matrices of a Whisper's layers, AdamW for the rest: a lower loss in as many steps."""

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


def orthogonal(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Matrices of shape (number, rows, columns) with their singular values drawn close to 1."""
    turned = matrices.shape[1] > matrices.shape[2]
    wide = matrices.mT if turned else matrices
    wide = wide / wide.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]
    first, third, fifth = COEFFICIENTS
    for _ in range(steps):
        gram = wide @ wide.mT
        wide = torch.baddbmm(wide, torch.baddbmm(gram, gram, gram, beta=third, alpha=fifth), wide, beta=first)
    return wide.mT if turned else wide


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
            moving = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in moving:
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
            if group["matrices"]:
                # Matrices of one shape together: each alone is too small to keep a core busy.
                by_shape: dict[torch.Size, list[torch.nn.Parameter]] = {}
                for parameter in moving:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
                for shape, alike in by_shape.items():
                    updates = orthogonal(torch.stack([self._momentum(parameter, group) for parameter in alike]))
                    for parameter, update in zip(alike, updates, strict=True):
                        # The root mean square of AdamW's updates is about 0.2.
                        parameter.add_(update, alpha=-group["lr"] * 0.2 * max(shape) ** 0.5)
            else:
                for parameter in moving:
                    parameter.add_(self._adam_update(parameter), alpha=-group["lr"])

    def _momentum(self, parameter: torch.Tensor, group: dict) -> torch.Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
        return parameter.grad.lerp(state["momentum"], group["momentum"])

    def _adam_update(self, parameter: torch.Tensor) -> torch.Tensor:
        state = self.state[parameter]
        if not state:
            state |= {"step": 0, "mean": torch.zeros_like(parameter), "square": torch.zeros_like(parameter)}
        state["step"] += 1
        state["mean"].lerp_(parameter.grad, 1 - BETAS[0])
        state["square"].lerp_(parameter.grad.square(), 1 - BETAS[1])
        mean = state["mean"] / (1 - BETAS[0] ** state["step"])
        square = state["square"] / (1 - BETAS[1] ** state["step"])
        return mean / (square.sqrt() + 1e-8)
