"""Networks of timm (Wightman, "PyTorch Image Models"), cut in two for LMBN; the extra `backbones`.

Nothing is downloaded: weights are timm's random ones until `warm_start` loads a local file. The
parameters of both halves have timm's names, those of a transformer's trunk below `vit.`.
"""

from __future__ import annotations

from collections import OrderedDict
from difflib import get_close_matches
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import nn

from deskpro.stages.base.errors import InputError
from deskpro.stages.models.tokens import Tokens

_STRIDE = 8
"""Where a network of stages is cut: a ResNet behind layer2."""
TRANSFORMERS = ("vision_transformer", "vision_transformer_hybrid", "deit")
"""The modules of timm whose networks are `VisionTransformer`s."""


class Parts(NamedTuple):
    """A network cut in two."""

    trunk: nn.Module
    """Images float [B, 3, H, W] → map [B, channels, H/stride, W/stride], or `Tokens`."""
    channels: int
    stride: int
    rest: nn.Module
    """What the trunk returns → map [B, out_channels, h', w']."""
    out_channels: int


def cut(name: str) -> Parts:
    """A network of timm with random weights, made afresh and cut in two.

    A network of stages that follow each other (ResNet, ResNeXt, RegNet, ConvNeXt, …) is cut at
    stride 8, a vision transformer (ViT, DeiT, DINOv2, CLIP's) behind half of its blocks.

    Raises:
        InputError: timm is absent, or has no such network, or its network is of neither kind.
    """
    timm, architecture = require(name), name.partition(".")[0]
    if timm.models.is_model_in_modules(architecture, TRANSFORMERS):
        return _transformer(timm, name, architecture)
    return _stages(timm, name, architecture)


def require(name: str) -> ModuleType:
    """timm, which has the network; what follows a dot names weights, not the network."""
    try:
        import timm
    except ImportError:
        raise InputError(
            f"backbone timm:{name} needs timm: pip install 'deskpro[backbones]'"
        ) from None
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        near = get_close_matches(architecture, timm.list_models(), 3, 0.5)
        hint = f"; similar names: {', '.join(near)}" if near else ""
        raise InputError(f"backbone timm:{name}: timm {timm.__version__} has no such network{hint}")
    return timm


def _stages(timm: ModuleType, name: str, architecture: str) -> Parts:
    network: Any = timm.create_model(architecture, pretrained=False, features_only=True)
    chain = isinstance(network, timm.models.FeatureDictNet) and network.output_fmt == "NCHW"
    fixed = timm.get_pretrained_cfg(architecture).fixed_input_size
    if not chain or fixed or _STRIDE not in network.feature_info.reduction():
        raise InputError(
            f"backbone timm:{name}: can't be cut in two for images of any size. Networks of stages "
            "(ResNet, RegNet, ConvNeXt, …) and vision transformers (vit_…, deit_…) can"
        )
    level = network.feature_info.reduction().index(_STRIDE)
    layers = list(network.items())
    behind = [layer for layer, _ in layers].index([*network.return_layers][level]) + 1
    channels = network.feature_info.channels()
    return Parts(
        nn.Sequential(OrderedDict(layers[:behind])),
        channels[level],
        _STRIDE,
        nn.Sequential(OrderedDict(layers[behind:])),
        channels[-1],
    )


def _transformer(timm: ModuleType, name: str, architecture: str) -> Parts:
    # dynamic: the position embedding is interpolated to the patches of the image.
    vit = timm.create_model(architecture, pretrained=False, num_classes=0, dynamic_img_size=True)
    half, stride = len(vit.blocks) // 2, vit.feature_info[0]["reduction"]
    rest = _LaterBlocks(vit, half)
    vit.prune_intermediate_layers([half - 1], prune_norm=True)
    return Parts(_FirstBlocks(vit, stride, name), vit.embed_dim, stride, rest, vit.embed_dim)


class _FirstBlocks(nn.Module):
    """Embedding of patches and positions, and the blocks that are left in `vit`."""

    def __init__(self, vit: Any, stride: int, name: str) -> None:
        super().__init__()
        self.vit, self.stride, self.name = vit, stride, name

    def forward(self, images: torch.Tensor) -> Tokens:
        """float [B, 3, H, W] → the map [B, C, H/p, W/p] of patches of p pixels, and the others.

        Raises InputError for sides that are no multiples of p.
        """
        count, _, height, width = images.shape
        if height % self.stride or width % self.stride:
            raise InputError(
                f"backbone timm:{self.name}: images of {height} × {width} pixels; both sides must "
                f"be multiples of its patches' {self.stride}. Set data.body_size, data.face_size"
            )
        # timm can't take a batch of nothing, such as the faces of people without a face.
        some = images if count else images.new_zeros(1, *images.shape[1:])
        [tokens] = self.vit.forward_intermediates(
            some, 1, output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True
        )
        patches, prefix = tokens if isinstance(tokens, tuple) else (tokens, tokens[:, :0])
        rows, columns = height // self.stride, width // self.stride
        grid = patches.transpose(1, 2).unflatten(2, (rows, columns)).contiguous()
        return Tokens(grid[:count], prefix[:count])


class _LaterBlocks(nn.Module):
    """The blocks from one on and the final norm, which is kept where a class token has it not."""

    def __init__(self, vit: Any, first: int) -> None:
        super().__init__()
        self.blocks, self.norm, self.fc_norm = vit.blocks[first:], vit.norm, vit.fc_norm

    def forward(self, cut: Tokens) -> torch.Tensor:
        """Map and other tokens → map of the same size."""
        tokens = torch.cat([cut.prefix, cut.map.flatten(2).transpose(1, 2)], 1)
        # Networks that average their tokens have the norm behind the average: one of two is empty.
        tokens = self.fc_norm(self.norm(self.blocks(tokens)))
        patches = tokens[:, cut.prefix.shape[1] :]
        return patches.transpose(1, 2).unflatten(2, cut.map.shape[2:])


def bottleneck(channels: int) -> nn.Module:
    """A ResNet's residual block that keeps the shape [B, channels, h, w].

    It stands in front of the head whose top rows are dropped, as the block of Batch DropBlock (Dai
    et al., ICCV 2019), so that what makes up for the dropped rows is learnt for that branch alone.
    timm's networks have blocks of many kinds; this one suits the map of each.
    """
    from timm.models.resnet import Bottleneck

    return Bottleneck(channels, channels // 4)
