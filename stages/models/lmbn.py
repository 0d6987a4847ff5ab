"""LMBN: a light multi-branch network (Herzog et al., "Lightweight Multi-Branch Network for Person
Re-Identification", ICIP 2021), here with seven heads in three branches; or with one head."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from deskpro.stages.models.backbones import Backbone, initialise, make_backbone
from deskpro.stages.models.tokens import Cut, gate, map_of


class Output(NamedTuple):
    """What a network returns, in training and in evaluation mode alike.

    Float; H heads, T of them with triplet loss, C identities, features of length D.
    """

    logits: torch.Tensor
    """[B, H, C] raw logits."""
    features: torch.Tensor
    """[B, H, D] inference features, after the BNNeck."""
    before_neck: torch.Tensor
    """[B, T, D] features before the BNNeck of the heads that take the triplet loss."""
    attention: torch.Tensor | None
    """[B, 1, h, w] spatial attention in 0..1; None for a face stream."""
    projected: Mapping[str, torch.Tensor] = {}
    """Name of another teacher → [B, h, d], all features of a stream in that teacher's space; only
    of a student in training."""


class Head(NamedTuple):
    """One head's output: logits [B, C], feature after [B, D] and before the BNNeck [B, D]."""

    logits: torch.Tensor
    feature: torch.Tensor
    before_neck: torch.Tensor


class SpatialAttention(nn.Module):
    """Spatial attention, irrespective of clothes: two 1×1 convolutions and a sigmoid.

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

    The batch norm's bias is fixed at 0 and the classifier has none, so that the features of the
    triplet loss (f) and of inference (g) suit one hypersphere (Luo et al., "Bag of Tricks", CVPRW
    2019).
    """

    def __init__(self, channels: int | None, dim: int, classes: int) -> None:
        """channels: of the pooled map; None where it has `dim` channels and needs no reduction."""
        super().__init__()
        self.reduction = nn.Conv2d(channels, dim, 1, bias=False) if channels else nn.Identity()
        self.bn = nn.BatchNorm1d(dim)
        self.bn.bias.requires_grad_(False)
        self.classifier = nn.Linear(dim, classes, bias=False)

    def forward(self, x: torch.Tensor) -> Head:
        before_neck = self.reduction(x).flatten(1)
        feature = self.bn(before_neck)
        return Head(self.classifier(feature), feature, before_neck)


def pool(x: torch.Tensor, kind: str) -> torch.Tensor:
    """Global pooling: [B, C, h, w] → [B, C, 1, 1]."""
    return x.amax((2, 3), keepdim=True) if kind == "max" else x.mean((2, 3), keepdim=True)


def drop_top_rows(x: torch.Tensor, share: float = 0.33) -> torch.Tensor:
    """Top-DropBlock: zero, per sample, the round(share·h) rows with the most active position.

    A position's activity is the sum of squares over channels; normalising it over positions would
    not change the order of the rows (Quispe & Pedrini, "Top-DB-Net", ICPR 2020). x [B, C, h, w].
    """
    rows = x.shape[2]
    strongest = x.square().sum(1).amax(-1)  # [B, h]
    top = strongest.topk(round(share * rows), dim=1).indices
    kept = torch.ones_like(strongest).scatter_(1, top, 0.0)
    return x * kept[:, None, :, None]


class GlobalBranch(nn.Module):
    """Heads `global` (mean) and `global_drop` (Top-DropBlock in training, maximum)."""

    heads = ("global", "global_drop")

    def __init__(self, backbone: Backbone, dim: int, classes: int) -> None:
        super().__init__()
        self.backbone2 = backbone.branch()
        # A module of one, for its name in the published checkpoints.
        self.batch_drop_block = nn.Sequential(
            OrderedDict(drop_batch_bottleneck=backbone.bottleneck())
        )
        self.reduction_1 = BNNeck(backbone.out_channels, dim, classes)
        self.reduction_2 = BNNeck(backbone.out_channels, dim, classes)

    def forward(self, cut: Cut) -> list[Head]:
        x = self.batch_drop_block(self.backbone2(cut))
        dropped = drop_top_rows(x) if self.training else x
        return [self.reduction_1(pool(x, "mean")), self.reduction_2(pool(dropped, "max"))]


class PartBranch(nn.Module):
    """Heads `part_0` (whole map, maximum), `part_1` (upper half), `part_2` (lower half, mean)."""

    heads = ("part_0", "part_1", "part_2")

    def __init__(self, backbone: Backbone, dim: int, classes: int) -> None:
        super().__init__()
        self.backbone2 = backbone.branch()
        self.reduction_1 = BNNeck(backbone.out_channels, dim, classes)
        self.reduction_2 = BNNeck(backbone.out_channels, dim, classes)
        self.reduction_3 = BNNeck(backbone.out_channels, dim, classes)

    def forward(self, cut: Cut) -> list[Head]:
        x = self.backbone2(cut)
        halves = nn.functional.adaptive_avg_pool2d(x, (2, 1))
        return [
            self.reduction_1(pool(x, "max")),
            self.reduction_2(halves[:, :, :1]),
            self.reduction_3(halves[:, :, 1:]),
        ]


class ChannelBranch(nn.Module):
    """Heads `channel_0` and `channel_1`: the two halves of the channels, shared projection."""

    heads = ("channel_0", "channel_1")

    def __init__(self, backbone: Backbone, dim: int, classes: int) -> None:
        super().__init__()
        self.backbone2 = backbone.branch()
        self.shared = nn.Sequential(
            nn.Conv2d(backbone.out_channels // 2, dim, 1, bias=False),
            nn.BatchNorm2d(dim),
            nn.ReLU(),
        )
        self.reduction_ch_0 = BNNeck(None, dim, classes)
        self.reduction_ch_1 = BNNeck(None, dim, classes)

    def forward(self, cut: Cut) -> list[Head]:
        first, second = pool(self.backbone2(cut), "mean").chunk(2, dim=1)
        return [self.reduction_ch_0(self.shared(first)), self.reduction_ch_1(self.shared(second))]


class SingleBranch(nn.Module):
    """Head `global` (mean) alone: the whole backbone, global average pooling, BNNeck."""

    heads = ("global",)

    def __init__(self, backbone: Backbone, dim: int, classes: int) -> None:
        super().__init__()
        self.backbone2 = backbone.branch()
        self.reduction = BNNeck(backbone.out_channels, dim, classes)

    def forward(self, cut: Cut) -> list[Head]:
        return [self.reduction(pool(self.backbone2(cut), "mean"))]


BRANCHES: dict[str, dict[str, type[Any]]] = {
    "lmbn": {
        "global_branch": GlobalBranch,
        "part_branch": PartBranch,
        "channel_branch": ChannelBranch,
    },
    "global": {"single_branch": SingleBranch},
}
"""Kind of heads, an option → the branches that have them, in order, under their names."""


def head_names(heads: str = "lmbn") -> tuple[str, ...]:
    """Names of the heads of a kind, in the order of every tensor of `Output` and of the cache."""
    return tuple(name for branch in BRANCHES[heads].values() for name in branch.heads)


class LMBN(nn.Module):
    """One stream: a face network, or with `attention` the body network of DeSKPro.

    Images float [B, 3, H, W] of at least 32 pixels a side → `Output` with the logits and features
    of `heads` and what lies before the BNNeck of `triplet_heads`. Attention gates the trunk's map.

    Args:
        classes: number of identities.
        backbone: its name, as `make_backbone` takes it; options: its keywords, such as OSNet's
            width and block.
        heads: a kind of heads, a row of `BRANCHES`.
        feature_dim: length D of each head's feature.
        attention: whether it has the spatial attention.
        init: initial weights behind the backbone, "he" or "published".
    """

    def __init__(
        self,
        classes: int,
        *,
        backbone: str = "osnet",
        heads: str = "lmbn",
        feature_dim: int = 512,
        attention: bool = False,
        init: str = "he",
        **options: Any,
    ) -> None:
        super().__init__()
        self.backbone_name, parts = backbone, make_backbone(backbone, **options)
        self.feature_dim = feature_dim
        self.stride = parts.stride
        self.heads = head_names(heads)
        """Names of the heads, in the order of every tensor here and in the target cache."""
        self.triplet_heads = self.heads[:3]
        """Heads whose feature before the BNNeck takes the triplet loss."""
        self.backbone = parts.trunk
        self.branches = [*BRANCHES[heads]]
        for name, branch in BRANCHES[heads].items():
            self.add_module(name, branch(parts, feature_dim, classes))
        initialise(self, backbone=not parts.initialised)
        # Made after `initialise`: with torch's own initialisation the attention starts near 0.5;
        # He's by fan-out gives its single channel weights so large that the sigmoid saturates.
        self.spatial_attn = SpatialAttention(parts.channels) if attention else None
        if init == "published":
            self._initialise_as_published()

    def _initialise_as_published(self) -> None:
        """What stands behind the backbone has torch's weights, but the attention He's by fan-in.

        So start the networks of the published code, which calls for He's weights of the former,
        too, but in a way that reaches no convolution.
        """
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d) and "backbone" not in name:
                if "spatial_attn" in name:
                    nn.init.kaiming_normal_(module.weight, mode="fan_in")
                else:
                    module.reset_parameters()

    def attend(self, images: torch.Tensor) -> torch.Tensor:
        """The attention that `forward` returns, [B, 1, h, w], without the rest of the network."""
        assert self.spatial_attn is not None
        attention: torch.Tensor = self.spatial_attn(map_of(self.backbone(images)))
        return attention

    def forward(self, images: torch.Tensor) -> Output:
        x = self.backbone(images)
        attention = None
        if self.spatial_attn is not None:
            attention = self.spatial_attn(map_of(x))
            x = gate(x, attention)
        found = [head for name in self.branches for head in self.get_submodule(name)(x)]
        return Output(
            torch.stack([head.logits for head in found], 1),
            torch.stack([head.feature for head in found], 1),
            torch.stack([head.before_neck for head in found[: len(self.triplet_heads)]], 1),
            attention,
        )
