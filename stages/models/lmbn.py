"""LMBN: a light multi-branch network with seven heads on OSNet (network.md)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from deskpro.stages.models import osnet

HEADS = ("global", "global_drop", "part_0", "part_1", "part_2", "channel_0", "channel_1")
"""The heads, in the order of every tensor here and in the target cache."""
TRIPLET_HEADS = HEADS[:3]
"""Heads whose feature before the BNNeck takes the triplet loss."""


def map_size(size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the trunk's map, and so of the attention, for an image's."""
    # conv1 and max-pool halve and round up, the average pool of conv2 halves and rounds down.
    height, width = (-(-side // 4) // 2 for side in size)
    return height, width


class Output(NamedTuple):
    """What a network gives, in training and in evaluation mode alike. H heads, C identities."""

    logits: torch.Tensor
    """[B, H, C] raw logits."""
    features: torch.Tensor
    """[B, H, D] inference features, after the BNNeck."""
    embeddings: torch.Tensor
    """[B, T, D] features before the BNNeck of the heads that take the triplet loss."""
    attention: torch.Tensor | None
    """[B, 1, h, w] spatial attention in 0..1; None for a face stream."""


class Head(NamedTuple):
    """One head's output: logits [B, C], feature after [B, D] and before the BNNeck [B, D]."""

    logits: torch.Tensor
    feature: torch.Tensor
    embedding: torch.Tensor


class SpatialAttention(nn.Module):
    """Cloth-irrelevant spatial attention: two 1×1 convolutions and a sigmoid.

    x [B, C, h, w] → attention [B, 1, h, w] in 0..1.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, 1, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.conv2(torch.relu(self.conv1(x))))


class BNNeck(nn.Module):
    """Pooled map [B, channels, 1, 1] → (reduction) → f → batch norm → g → classifier.

    The batch norm's bias is frozen at 0 and the classifier has none, so that the features for
    the triplet loss (f) and for inference (g) fit one hypersphere (Luo et al., CVPRW 2019).
    """

    def __init__(self, channels: int | None, dim: int, classes: int) -> None:
        """channels: of the pooled map; None where it already has `dim` channels, no reduction."""
        super().__init__()
        self.reduction = nn.Conv2d(channels, dim, 1, bias=False) if channels else nn.Identity()
        self.bn = nn.BatchNorm1d(dim)
        self.bn.bias.requires_grad_(False)
        self.classifier = nn.Linear(dim, classes, bias=False)

    def forward(self, x: torch.Tensor) -> Head:
        embedding = self.reduction(x).flatten(1)
        feature = self.bn(embedding)
        return Head(self.classifier(feature), feature, embedding)


def pool(x: torch.Tensor, kind: str) -> torch.Tensor:
    """Global pooling: [B, C, h, w] → [B, C, 1, 1]."""
    return x.amax((2, 3), keepdim=True) if kind == "max" else x.mean((2, 3), keepdim=True)


def drop_top_rows(x: torch.Tensor, share: float = 0.33) -> torch.Tensor:
    """Top-DropBlock: zero, per sample, the round(share·h) rows with the most active position.

    Activity is the channel sum of squares; its norm over positions doesn't change which rows are
    largest and is left out (Quispe & Pedrini, "Top-DB-Net", ICPR 2020). x [B, C, h, w].
    """
    rows = x.shape[2]
    strongest = x.square().sum(1).amax(-1)  # [B, h]
    top = strongest.topk(round(share * rows), dim=1).indices
    kept = torch.ones_like(strongest).scatter_(1, top, 0.0)
    return x * kept[:, None, :, None]


class BatchDropBlock(nn.Module):
    """The bottleneck before the two global heads (named as in the published checkpoints)."""

    def __init__(self, channels: int, wiring: str) -> None:
        super().__init__()
        self.drop_batch_bottleneck = osnet.OSBlock(channels, channels, wiring)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop_batch_bottleneck(x)


class GlobalBranch(nn.Module):
    """Heads `global` (average) and `global_drop` (Top-DropBlock in training, maximum)."""

    def __init__(self, width: float, wiring: str, dim: int, classes: int) -> None:
        super().__init__()
        channels = osnet.CHANNELS[width][3]
        self.backbone2 = osnet.branch(width, wiring)
        self.batch_drop_block = BatchDropBlock(channels, wiring)
        self.reduction_1 = BNNeck(channels, dim, classes)
        self.reduction_2 = BNNeck(channels, dim, classes)

    def forward(self, x: torch.Tensor) -> list[Head]:
        x = self.batch_drop_block(self.backbone2(x))
        dropped = drop_top_rows(x) if self.training else x
        return [self.reduction_1(pool(x, "mean")), self.reduction_2(pool(dropped, "max"))]


class PartBranch(nn.Module):
    """Heads `part_0` (whole map, maximum), `part_1` (upper half), `part_2` (lower half, mean)."""

    def __init__(self, width: float, wiring: str, dim: int, classes: int) -> None:
        super().__init__()
        channels = osnet.CHANNELS[width][3]
        self.backbone2 = osnet.branch(width, wiring)
        self.reduction_1 = BNNeck(channels, dim, classes)
        self.reduction_2 = BNNeck(channels, dim, classes)
        self.reduction_3 = BNNeck(channels, dim, classes)

    def forward(self, x: torch.Tensor) -> list[Head]:
        x = self.backbone2(x)
        halves = nn.functional.adaptive_avg_pool2d(x, (2, 1))
        return [
            self.reduction_1(pool(x, "max")),
            self.reduction_2(halves[:, :, :1]),
            self.reduction_3(halves[:, :, 1:]),
        ]


class ChannelBranch(nn.Module):
    """Heads `channel_0` and `channel_1`: the two halves of the channels, shared projection."""

    def __init__(self, width: float, wiring: str, dim: int, classes: int) -> None:
        super().__init__()
        channels = osnet.CHANNELS[width][3]
        self.backbone2 = osnet.branch(width, wiring)
        self.shared = nn.Sequential(
            nn.Conv2d(channels // 2, dim, 1, bias=False), nn.BatchNorm2d(dim), nn.ReLU()
        )
        self.reduction_ch_0 = BNNeck(None, dim, classes)
        self.reduction_ch_1 = BNNeck(None, dim, classes)

    def forward(self, x: torch.Tensor) -> list[Head]:
        first, second = pool(self.backbone2(x), "mean").chunk(2, dim=1)
        return [self.reduction_ch_0(self.shared(first)), self.reduction_ch_1(self.shared(second))]


class LMBN(nn.Module):
    """One stream: a face network, or with `attention` the body network of DeSKPro.

    images float [B, 3, H, W] of any size of at least 32 pixels → `Output` with 7 heads and 3
    embeddings. With attention the trunk's map, [B, C, H/8, W/8], is multiplied by it.
    """

    def __init__(
        self,
        classes: int,
        *,
        width: float = 1.0,
        block: str = "osnet",
        feature_dim: int = 512,
        attention: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = osnet.trunk(width, block)
        self.global_branch = GlobalBranch(width, block, feature_dim, classes)
        self.part_branch = PartBranch(width, block, feature_dim, classes)
        self.channel_branch = ChannelBranch(width, block, feature_dim, classes)
        osnet.initialise(self)
        # With torch's own initialisation the attention starts near 0.5 everywhere; He's by fan-out
        # would draw the weights to its single channel so large that the sigmoid starts saturated.
        self.spatial_attn = SpatialAttention(osnet.CHANNELS[width][2]) if attention else None

    def forward(self, images: torch.Tensor) -> Output:
        x = self.backbone(images)
        attention = None
        if self.spatial_attn is not None:
            attention = self.spatial_attn(x)
            x = x * attention
        heads = self.global_branch(x) + self.part_branch(x) + self.channel_branch(x)
        return Output(
            torch.stack([head.logits for head in heads], 1),
            torch.stack([head.feature for head in heads], 1),
            torch.stack([head.embedding for head in heads[: len(TRIPLET_HEADS)]], 1),
            attention,
        )
