"""Supervision of the cloth-irrelevant spatial attention (DeSKPro, ICIP 2022)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def attention(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared error over batch and positions, both float [B, 1, h, w] in 0..1."""
    from torch.nn import functional

    return functional.mse_loss(predicted.float(), target.float())
