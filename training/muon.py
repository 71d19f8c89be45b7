"""Muon (Jordan, 2024), for matrices; scaled as in arXiv 2502.16982, section 2.2."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from model import COMPUTE


def orthogonal(m: Tensor) -> Tensor:
    """[n, rows, columns] with singular values near 1, by Newton-Schulz."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = m.to(COMPUTE.dtype)
    is_tall = x.shape[-2] > x.shape[-1]
    if is_tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        y = x @ x.mT
        x = a * x + (b * y + c * (y @ y)) @ x
    return (x.mT if is_tall else x).float()


class Muon:
    """Steps along the orthogonal part of each matrix's momentum.

    Args:
        parameters: [n, rows, columns] each.
        decay: of weights, times the rate.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], decay: float = 0.05) -> None:
        self.parameters, self.decay = list(parameters), decay
        self.momentum = [torch.zeros_like(p) for p in self.parameters]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """With the gradients that the parameters have."""
        for p, m in zip(self.parameters, self.momentum, strict=True):
            assert p.grad is not None
            m.lerp_(p.grad, 0.05)
            update = orthogonal(p.grad.lerp(m, 0.95))
            p.mul_(1 - rate * self.decay)
            p.add_(update, alpha=-rate * 0.2 * math.sqrt(max(p.shape[-2:])))

    def forget(self) -> None:
        """The momentum."""
        for m in self.momentum:
            m.zero_()
