"""Supervision of the cloth-irrelevant spatial attention (DeSKPro, ICIP 2022; network.md)."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def attention(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared error over batch and positions, both float [B, 1, h, w] in 0..1."""
    return F.mse_loss(predicted.float(), target.float())
