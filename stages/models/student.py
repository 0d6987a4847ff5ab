"""The student: a stream for the LR face, a stream for the body, or both."""

from __future__ import annotations

import torch
from torch import nn

from deskpro.stages.models.lmbn import HEADS, LMBN, TRIPLET_HEADS, Output

STREAMS = {"face": ("face",), "body": ("body",), "all": ("face", "body")}
"""Forward mode → its streams, in the order of the heads."""


class Student(nn.Module):
    """LR face and body image → one `Output` with the heads of all its streams.

    `heads` and `triplet` map each stream to its slice of the head dimension of logits and features,
    and of embeddings.
    """

    def __init__(
        self,
        classes: int,
        *,
        forward_mode: str = "all",
        width: float = 1.0,
        block: str = "osnet",
        feature_dim: int = 512,
    ) -> None:
        super().__init__()
        streams = STREAMS[forward_mode]
        self.heads = _slices(streams, len(HEADS))
        self.triplet = _slices(streams, len(TRIPLET_HEADS))

        def stream(attention: bool) -> LMBN:
            return LMBN(
                classes, width=width, block=block, feature_dim=feature_dim, attention=attention
            )

        self.lr_face_net = stream(attention=False) if "face" in streams else None
        self.nocloth_net = stream(attention=True) if "body" in streams else None

    def forward(self, lr_faces: torch.Tensor | None, bodies: torch.Tensor | None) -> Output:
        """lr_faces [B, 3, h, w] and bodies [B, 3, H, W], normalised; None for an absent stream."""
        outputs = []
        if self.lr_face_net is not None:
            outputs.append(self.lr_face_net(lr_faces))
        if self.nocloth_net is not None:
            outputs.append(self.nocloth_net(bodies))
        return Output(
            torch.cat([output.logits for output in outputs], 1),
            torch.cat([output.features for output in outputs], 1),
            torch.cat([output.embeddings for output in outputs], 1),
            outputs[-1].attention,
        )


def _slices(streams: tuple[str, ...], length: int) -> dict[str, slice]:
    return {name: slice(i * length, (i + 1) * length) for i, name in enumerate(streams)}
