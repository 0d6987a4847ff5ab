"""Supervision of the cloth-irrelevant spatial attention (DeSKPro, ICIP 2022)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def attention(
    predicted: torch.Tensor, parsing: torch.Tensor, *, floor: float = 0.1
) -> torch.Tensor:
    """Mean squared error over batch and positions from `attention_target`.

    predicted float [B, 1, h, w] in 0..1, parsing uint8 [B, 4, h, w]. Float32 scalar.
    """
    from torch.nn import functional

    return functional.mse_loss(predicted.float(), attention_target(parsing, floor))


def attention_target(parsing: torch.Tensor, floor: float) -> torch.Tensor:
    """What the student's spatial attention should be: float32 [B, 1, h, w] in 0..1.

    parsing: uint8 [B, 4, h, w], first how much of a position is head, 0..255, last whether there is
    any. Positions without become `floor`, in steps of 1/255, so that the attention dims the rest of
    the body and keeps it. Others are what they are, also below it, as published.
    """
    import torch

    head, any_head = parsing[:, :1].float(), parsing[:, -1:] > 0
    return torch.where(any_head, head, round(255 * floor)) / 255
