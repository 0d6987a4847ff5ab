"""The teacher: a face network that sees HR faces and never changes."""

from __future__ import annotations

from typing import Self

import torch
from torch import nn

from deskpro.stages.models.lmbn import LMBN, Output


class Teacher(nn.Module):
    """A frozen network in evaluation mode, whatever its caller does.

    In training mode its batch statistics would drift and Top-DropBlock would blank rows: the
    targets would depend on the batch. HR faces float [B, 3, H, W] → `Output` without gradient.
    """

    def __init__(self, face_net: LMBN) -> None:
        super().__init__()
        self.face_net = face_net.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    @torch.no_grad()
    def forward(self, hr_faces: torch.Tensor) -> Output:
        return self.face_net(hr_faces)
