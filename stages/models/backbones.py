"""The backbones that LMBN can stand on: what it needs of each, and a row for each.

To add one: a function here that assembles it, with its row in `BACKBONES` (its building blocks may
have a module of their own, as OSNet's); its name in `BACKBONE_NAMES` of `base/training_options.py`.
Networks of timm are there already, as `timm:NAME`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import nn

from deskpro.stages.models import osnet, timm_networks
from deskpro.stages.models.tokens import map_of


class Backbone(NamedTuple):
    """A network cut in two: a trunk that all branches share, and the rest, a copy per branch.

    Spatial attention gates the map between the two.
    """

    trunk: nn.Module
    """Images float [B, 3, H, W] → map [B, channels, h, w], or `Tokens` with it."""
    channels: int
    stride: int
    """H/h and W/w of the trunk, where the image's sides are multiples of it."""
    branch: Callable[[], nn.Module]
    """Makes a fresh copy of the rest: what the trunk returns → map [B, out_channels, h', w']."""
    out_channels: int
    bottleneck: Callable[[], nn.Module]
    """Makes a fresh block that keeps the shape [B, out_channels, h', w']."""
    initialised: bool = False
    """Whether trunk and branch have initial weights of their own, which `initialise` leaves."""


def _osnet(width: float = 1.0, block: str = "osnet") -> Backbone:
    _, _, channels, out_channels = osnet.CHANNELS[width]
    return Backbone(
        trunk=osnet.trunk(width, block),
        channels=channels,
        stride=8,
        branch=partial(osnet.branch, width, block),
        out_channels=out_channels,
        bottleneck=partial(osnet.OSBlock, out_channels, out_channels, block),
    )


def _timm(name: str, **_: Any) -> Backbone:
    """Each branch has random weights of its own, as OSNet's have."""
    parts = timm_networks.cut(name)
    return Backbone(
        trunk=parts.trunk,
        channels=parts.channels,
        stride=parts.stride,
        branch=lambda: timm_networks.cut(name).rest,
        out_channels=parts.out_channels,
        bottleneck=partial(timm_networks.bottleneck, parts.out_channels),
        initialised=True,
    )


BACKBONES: dict[str, Callable[..., Backbone]] = {"osnet": _osnet, "timm": _timm}
"""Name → function that makes it. All are called with the keywords `width` and `block`, options of
OSNet; others ignore them (`**_`). Of `timm:NAME` what precedes the colon, and NAME comes first."""


def make_backbone(name: str, **options: Any) -> Backbone:
    """The backbone of a name of the options, such as `osnet` or `timm:resnet50`.

    Raises InputError where it can't be made.
    """
    row, *model = name.split(":", 1)
    return BACKBONES[row](*model, **options)


@cache
def map_size(name: str, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the trunk's map, and so of the attention, for those of an image.

    They depend on no other option.

    Raises InputError for images that the backbone can't take.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        trunk = make_backbone(name).trunk.eval()
        height, width = map_of(trunk(torch.zeros(1, 3, *size))).shape[2:]
    return height, width


def initialise(network: nn.Module, *, backbone: bool = True) -> None:
    """Initialise a network in place, as OSNet and LMBN are.

    backbone: with its trunk and the branches' copies of the rest; else what stands behind alone.
    Convolutions: He, fan out; batch norms: 1 and 0; linear layers (classifiers): normal, std 0.001.
    """
    for name, module in network.named_modules():
        if not backbone and "backbone" in name:
            continue
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.001)
