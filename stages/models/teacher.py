"""Teachers never change; the first is a face network that sees HR faces."""

from __future__ import annotations

from typing import Self

import torch
from torch import nn

from deskpro.stages.models.lmbn import LMBN, Output


class Frozen(nn.Module):
    """A module in evaluation mode, whatever its caller does.

    In training mode its batch statistics would drift and Top-DropBlock would blank rows: the
    targets would depend on the batch.
    """

    def train(self, mode: bool = True) -> Self:
        return super().train(False)


class Teacher(Frozen):
    """A frozen network. Images float [B, 3, H, W] → `Output` without gradient."""

    def __init__(self, face_net: LMBN, *, joined: bool = False) -> None:
        """joined: its features are one, [B, 1, H·D]: those of its heads, one after the other."""
        super().__init__()
        self.face_net, self.joined = face_net.requires_grad_(False), joined
        self.eval()

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> Output:
        output: Output = self.face_net(images)
        if self.joined:
            output = output._replace(features=output.features.flatten(1)[:, None])
        return output
