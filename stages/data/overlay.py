"""Attention maps drawn on their images."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def overlay(images: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
    """Images uint8 [B, 3, H, W] under attention float [B, 1, h, w] in 0..1: uint8 [B, 3, H, W].

    Where the attention is 1 the image is red, where it is 0 it keeps half of its brightness.
    """
    heat = F.interpolate(attention.float(), images.shape[-2:], mode="bilinear").clamp(0, 1)
    red = torch.tensor([255.0, 30.0, 30.0], device=images.device).view(3, 1, 1)
    blended = images.float() * (0.5 - 0.4 * heat) + red * (0.6 * heat)
    return blended.round().to(torch.uint8)


def side_by_side(
    images: torch.Tensor, attention: torch.Tensor, target: torch.Tensor
) -> torch.Tensor:
    """A row per sample: the image, then with the student's attention, then with its target.

    images uint8 [B, 3, H, W], attention and target [B, 1, h, w]: uint8 [3, B·H, 3·W].
    """
    columns = [images, overlay(images, attention), overlay(images, target)]
    return torch.cat([torch.cat([*column], 1) for column in columns], 2)
