"""Attention made visible on the picture that it is about."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def overlay(pictures: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
    """Pictures uint8 [B, 3, H, W] under attention float [B, 1, h, w] in 0..1: uint8 [B, 3, H, W].

    Where the attention is 1 the picture is red, where it is 0 it keeps half of its brightness.
    """
    heat = F.interpolate(attention.float(), pictures.shape[-2:], mode="bilinear").clamp(0, 1)
    red = torch.tensor([255.0, 30.0, 30.0], device=pictures.device).view(3, 1, 1)
    blended = pictures.float() * (0.5 - 0.4 * heat) + red * (0.6 * heat)
    return blended.round().to(torch.uint8)


def side_by_side(
    pictures: torch.Tensor, attention: torch.Tensor, target: torch.Tensor
) -> torch.Tensor:
    """A row per sample: the picture, under the student's attention, under its target.

    pictures uint8 [B, 3, H, W], attention and target [B, 1, h, w]: uint8 [3, B·H, 3·W].
    """
    columns = [pictures, overlay(pictures, attention), overlay(pictures, target)]
    return torch.cat([torch.cat([*column], 1) for column in columns], 2)
