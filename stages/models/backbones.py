"""The backbones that LMBN can stand on: what it needs of each, and a row for each.

To add one: a function here that assembles it, with its row in `BACKBONES` (its building blocks may
have a module of their own, as OSNet's); its name in `BACKBONE_NAMES` of `base/training_options.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from torch import nn

from deskpro.stages.models import osnet


class Backbone(NamedTuple):
    """A network cut in two: a trunk that all branches share, and the rest, a copy per branch.

    Spatial attention gates the map between the two.
    """

    trunk: nn.Module
    """Images float [B, 3, H, W] → map [B, channels, h, w]."""
    channels: int
    stride: int
    """H/h and W/w of the trunk, where the image's sides are multiples of it."""
    branch: Callable[[], nn.Module]
    """Makes a fresh copy of the rest: [B, channels, h, w] → [B, out_channels, h', w']."""
    out_channels: int
    bottleneck: Callable[[], nn.Module]
    """Makes a fresh block that keeps the shape [B, out_channels, h', w']."""


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


BACKBONES: dict[str, Callable[..., Backbone]] = {"osnet": _osnet}
"""Name → function that makes it from the keywords `width` and `block` of the network's options."""


def initialise(network: nn.Module) -> None:
    """Initialise a network in place, whatever its backbone, as OSNet and LMBN are.

    Convolutions: He, fan out; batch norms: 1 and 0; linear layers (classifiers): normal, std 0.001.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.001)
